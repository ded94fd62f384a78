"""Where records come from: files (JSONL, Parquet), prepared TFDS data sets, data sets on the hub,
buckets.

  path/to/file.jsonl[.gz], file.parquet     files on this machine; several by commas or patterns: data/*.jsonl,more.parquet
  tfds:NAME[/CONFIG][@SPLIT]                a TFDS data set that was prepared under TFDS_DATA_DIR or TFDS's own default
  tfds-dir:FOLDER[@SPLIT]                   the folder of a prepared TFDS data set, which holds dataset_info.json
  hub:OWNER/NAME/path/file.jsonl            one file of a hub data set (.jsonl, .jsonl.gz or .parquet)
  hub:OWNER/NAME[/CONFIG][@SPLIT]           a hub data set through the `datasets` library, if it is installed
  gs://BUCKET/file.jsonl                    a file in a bucket, where etils reaches it

SPLIT is train unless it is given; TFDS also slices: @train[:10%].
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.data.records import mappings, records, validation
from instructjax.data.records.mappings import Mapping
from instructjax.data.records.records import Spelling, native
from instructjax.errors import UserError

FILES = (
  ".jsonl",
  ".json",
  ".gz",
  ".parquet",
)  # endings by which a file of a hub data set is told from a configuration
RECORDS = (
  ".jsonl",
  ".json",
  ".parquet",
)  # endings of files of records; any other file may be plain text
PATTERN = "*?["


class Part(NamedTuple):
  """The rows of one file or data set.

  name      stands before the line or row number in messages
  rows      opens them: dicts, or lines of JSON
  mapping   the ready one of a TFDS data set
  reach     opens the rows of a TFDS data set by their number
  plain     its rows are lines of any text, by its name, where text is wanted
  """

  name: str
  rows: Callable[[], Iterable[Any]]
  mapping: Mapping | None = None
  reach: Callable[[], Any] | None = None
  plain: bool = False


def load(
  source: str | Path, kind: str, spelling: Spelling | None = None, *, folder: str | None = None
) -> list:
  """The records of one kind that a source holds.  Without a spelling: our own fields, or the ready
  mapping of a TFDS name.

  `folder` is where TFDS data sets were prepared.  Raises UserError where the source cannot be
  read and for every bad record, with its place: the file and the line, or the data set and the
  number of the row.
  """
  found, problems = examine(source, kind, spelling, folder=folder)
  records.report(problems)
  return found


def examine(
  source: str | Path, kind: str, spelling: Spelling | None = None, *, folder: str | None = None
) -> tuple[list, list[str]]:
  """(records, problems) of a source: every problem, and never an error."""
  found, problems = [], []
  try:
    for part in parts(source, folder):
      chosen = spelling or (part.mapping.spell if part.mapping else native)
      good, wrong = records.scan(part.rows(), kind, chosen, name=part.name)
      found += good
      problems += wrong
  except UserError as error:
    problems += str(error).split("\n")
  return found, problems


def kind_of(source: str | Path, folder: str | None = None) -> str | None:
  """The kind of record that a source holds: what its ready mapping or the fields of its first
  readable row say.
  """
  return next((kind for part in parts(source, folder) if (kind := told(part))), None)


def told(part: Part) -> str | None:
  """The kind of record that the rows of a part are."""
  if part.mapping:
    return part.mapping.kind
  return next((kind for row in validation.objects(part.rows()) if (kind := told_by(row))), None)


def told_by(fields: Iterable[str]) -> str | None:
  """The kind of record that has these fields."""
  tells = {
    "completions": "comparison",
    "completion": "demonstration",
    "pairs": "few_shot",
    "text": "text",
    "prompt": "prompt",
  }
  names = set(fields)
  return next((kind for field, kind in tells.items() if field in names), None)


def parts(source: str | Path, folder: str | None = None) -> list[Part]:
  """The files and data sets of a source.  Raises UserError where there is no such thing."""
  text = str(source)
  pieces = [text] if exists(text) else [piece.strip() for piece in text.split(",")]
  if not all(pieces):
    raise UserError(f"{text!r}: names no file between two commas; give FILE,FILE")
  return [part for piece in pieces for part in _parts(piece, folder)]


def _parts(piece: str, folder: str | None) -> list[Part]:
  for prefix, opened in (
    ("tfds:", lambda rest: tfds(rest, folder)),
    ("tfds-dir:", tfds_folder),
    ("hub:", hub),
  ):
    if piece.startswith(prefix):
      return [opened(piece.removeprefix(prefix))]
  if "://" in piece:
    return [file(path) for path in _bucket(piece)]
  if exists(f"{piece.partition('@')[0]}/dataset_info.json"):
    return [tfds_folder(piece)]
  if any(letter in piece for letter in PATTERN) and not exists(piece):
    start = Path(Path(piece).anchor)
    found = sorted(start.glob(str(Path(piece).relative_to(start))))
    if not found:
      raise UserError(f"{piece}: no file has such a name")
    return [file(path) for path in found]
  return [file(Path(piece))]


def exists(text: str) -> bool:
  """Whether there is such a file or folder; False for what can be no name."""
  try:
    return Path(text).exists()
  except (OSError, ValueError):  # too long or with a NUL
    return False


# --- files ---


def file(path: Any) -> Part:
  """A JSONL or Parquet file under a `Path` or etils' path of a bucket."""
  rows = (
    (lambda: parquet(path))
    if path.suffix == ".parquet"
    else (lambda: _reached(path, records.lines))
  )
  return Part(str(path), rows, plain=not str(path).removesuffix(".gz").endswith(RECORDS))


def parquet(path: Any) -> Iterator[Any]:
  """The rows of a Parquet file, one row group after the other."""
  try:
    module = importlib.import_module("pyarrow.parquet")
  except ImportError:
    raise UserError(
      f"{path}: pyarrow is not installed; run pip install 'instructjax[parquet]'"
    ) from None
  try:
    with (
      _reached(path, lambda path: path.open("rb")) as stream,
      module.ParquetFile(stream) as table,
    ):
      for batch in table.iter_batches(batch_size=1024):
        yield from map(plain, batch.to_pylist())
  except FileNotFoundError:
    raise UserError(f"{path}: no such file; give a Parquet file") from None
  except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
    raise UserError(f"{path}: cannot be read ({_first_line(error)}); give a Parquet file") from None


def _bucket(address: str) -> list[Any]:
  """The paths of gs://... (or what else etils knows), with patterns in the last part."""
  from etils import epath

  try:
    path = epath.Path(address)
    if any(letter in path.name for letter in PATTERN):
      found = sorted(_reached(path.parent, lambda parent: list(parent.glob(path.name))))
      if not found:
        raise UserError(f"{address}: no file has such a name")
      return found
  except (
    KeyError,
    NotImplementedError,
    ValueError,
  ) as error:  # KeyError: a scheme that etils does not know
    raise UserError(
      f"{address}: no such kind of address ({_first_line(error)}); give gs://BUCKET/FILE"
    ) from None
  return [path]


def _reached(path: Any, read: Callable[[Any], Any]) -> Any:
  """read(path); whatever the client library of a bucket raises is a UserError."""
  if isinstance(path, Path):
    return read(path)
  try:
    return read(path)
  except UserError:
    raise
  except ImportError as error:
    raise UserError(
      f"{path}: {_first_line(error)}; run pip install gcsfs and log in (gcloud auth "
      "application-default login), or mount "
      "the bucket, or copy the file here"
    ) from None
  except Exception as error:  # the clients of buckets have no common type
    raise UserError(
      f"{path}: cannot be reached ({_first_line(error)}); check the name, the network and your "
      "login"
    ) from error


# --- TFDS ---


def tfds(name: str, folder: str | None = None) -> Part:
  """A TFDS data set through its random-access reader, which needs no TensorFlow.

  It must be prepared as array_record or parquet
  (`download_and_prepare(file_format="array_record")`).
  """
  name, _, split = name.partition("@")
  split = split or "train"
  place = f"tfds:{name}@{split}"
  read = lambda module: module.data_source(name, split=split, data_dir=folder, download=False)
  return _reader(place, read, name)


def tfds_folder(place: str) -> Part:
  """A prepared TFDS data set by its folder; what it is called stands in its dataset_info.json."""
  folder, _, split = place.partition("@")
  split = split or "train"
  if not (Path(folder) / "dataset_info.json").is_file():
    raise UserError(
      f"{folder}: holds no dataset_info.json; give the folder of one version of a prepared TFDS "
      "data set"
    )
  name = f"{folder}@{split}"
  builder = _prepared(name, lambda module: module.builder_from_directory(folder))
  read = lambda module: builder.as_data_source(split)
  return _reader(name, read, builder.info.full_name)


def _reader(place: str, read: Callable[[Any], Any], name: str) -> Part:
  reach = lambda: _prepared(place, read)
  return Part(place, lambda: map(plain, reach()), mappings.of(name), reach)


def _prepared(place: str, read: Callable[[Any], Any]) -> Any:
  try:
    module = importlib.import_module("tensorflow_datasets")
  except ImportError:
    raise UserError(
      f"{place}: tensorflow-datasets is not installed; run pip install 'instructjax[tfds]'"
    ) from None
  try:
    return read(module)
  except (ValueError, KeyError, OSError, AssertionError, NotImplementedError, ImportError) as error:
    raise UserError(
      f"{place}: cannot be opened ({_first_line(error)}); prepare it first with "
      "download_and_prepare(file_format='array_record') under TFDS_DATA_DIR"
    ) from error


# --- the hub ---


def hub(path: str) -> Part:
  """A file of a data set on the hub, or a whole one through the `datasets` library.  Both stay in
  the hub's own cache.
  """
  owner, _, rest = path.partition("/")
  name, _, inside = rest.partition("/")
  if not owner or not name.partition("@")[0]:
    raise UserError(
      f"hub:{path}: give OWNER/NAME/path/file.jsonl, the data set and the file in it, or "
      "OWNER/NAME@SPLIT"
    )
  return (
    _hub_file(f"{owner}/{name}", inside, path) if inside.endswith(FILES) else _hub_data_set(path)
  )


def _hub_file(repository: str, inside: str, path: str) -> Part:
  from huggingface_hub import hf_hub_download

  try:
    local = hf_hub_download(repository, inside, repo_type="dataset")
  except (OSError, ValueError) as error:
    raise UserError(
      f"hub:{path}: cannot be fetched ({_first_line(error)}); check the name and the network or "
      "give a file"
    ) from error
  return file(Path(local))._replace(name=f"hub:{path}")


def _hub_data_set(path: str) -> Part:
  name, _, split = path.partition("@")
  owner, repository, config = [*name.split("/", 2), ""][:3]
  try:
    datasets = importlib.import_module("datasets")
  except ImportError:
    raise UserError(
      f"hub:{path}: the datasets library is not installed; run pip install 'instructjax[hub]', or "
      "give OWNER/NAME/path/"
      "file.jsonl, a file of the data set"
    ) from None
  try:
    rows = datasets.load_dataset(f"{owner}/{repository}", config or None, split=split or "train")
  except Exception as error:  # a script of the data set's own may raise anything
    raise UserError(
      f"hub:{path}: cannot be loaded ({_first_line(error)}); check the name, the configuration, "
      "the split and the network"
    ) from error
  return Part(f"hub:{name}@{split or 'train'}", lambda: map(plain, rows))


def plain(value: Any) -> Any:
  """Python values out of what a data set returns: bytes become text, arrays lists.  A byte that is
  not UTF-8 becomes half a surrogate pair, which no record may hold.
  """
  if isinstance(value, dict):
    return {key: plain(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [plain(one) for one in value]
  if hasattr(value, "tolist"):
    return plain(value.tolist())
  return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
