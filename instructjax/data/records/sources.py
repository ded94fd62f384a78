"""Where records come from: files, prepared TFDS data sets, data sets on the hub, and buckets.

  path/to/file.jsonl, file.json, file.csv, file.parquet
      files on this machine in the layouts of `files`; several by commas or patterns, such as
      data/*.jsonl.gz,more.parquet
  tfds:NAME[/CONFIG][@SPLIT]
      a TFDS data set that was prepared under TFDS_DATA_DIR or in TFDS's own default folder
  tfds-dir:FOLDER[@SPLIT]
      the folder of a prepared TFDS data set, which holds dataset_info.json
  path/to/folder[@SPLIT]
      a folder that save_to_disk of `datasets` wrote, if that library is installed; or the folder of
      a prepared TFDS data set
  hub:OWNER/NAME/path/file.jsonl
      one file of a hub data set, in the layouts of `files` or .parquet
  hub:OWNER/NAME[/CONFIG][@SPLIT]
      a hub data set through the `datasets` library, if it is installed
  gs://BUCKET/file.jsonl
      a file in a bucket that etils can reach

SPLIT is train unless it is given; TFDS also has slices, such as @train[:10%].
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.data.records import detect, files, mappings, places, records, validation
from instructjax.data.records.detect import Notes
from instructjax.data.records.mappings import Mapping
from instructjax.data.records.named import Layout
from instructjax.data.records.places import Row
from instructjax.data.records.records import Record, Spelling, native
from instructjax.errors import UserError
from instructjax.system.places import see_all_writers

# With one of these endings, the last part of a hub address is a file and no configuration.
FILES = (".jsonl", ".json", ".parquet", ".zst", *files.TABLES, *files.COMPRESSIONS)
# What stands before `spelling` and `fields` in messages where a source has no such settings.
CONVERT = "instructjax data convert --"
# The rows at the beginning of a file of which some may say how it is read.
HEAD = 64
# A path with one of these characters is a pattern.
PATTERN = "*?["

# A folder that `save_to_disk` of the `datasets` library wrote holds one of these. The first is of
# one data set, the second of several, which are called splits.
SAVED = ("state.json", "dataset_dict.json")


class Part(NamedTuple):
  """The rows of one file or data set.

  Attributes:
    name: stands before the number of the line or the row in messages.
    rows: opens the rows with their places.
    mapping: the ready mapping of a TFDS data set.
    reach: opens the rows of a TFDS data set for access by their number.
    lines: opens the lines of a file that is plain text where text is wanted, by its name.
  """

  name: str
  rows: Callable[[], Iterable[Row]]
  mapping: Mapping | None = None
  reach: Callable[[], Any] | None = None
  lines: Callable[[], Iterable[Row]] | None = None


def load(
  source: str | Path,
  kind: str,
  spelling: Spelling | Layout | None = None,
  *,
  folder: str | None = None,
  notes: Notes | None = None,
  place: str = CONVERT,
  empty_completions: bool = False,
) -> list:
  """Returns the records of one kind that a source holds.

  Args:
    source: an address, as above.
    kind: the kind of record that is wanted.
    spelling: how the rows are read. By default the source says it: the ready mapping of a TFDS
      name, or the columns of the first rows.
    folder: where TFDS data sets were prepared.
    notes: get what there is to say about how the source was read (`detect.sentences`).
    place: what stands before `spelling` and `fields` in messages.
    empty_completions: whether a comparison may rank an empty text.

  Raises:
    UserError: if the source cannot be read, and for bad records with the place of each: the file
      and the line, or the data set and the number of the row.
  """
  rows, problems = examine(
    source,
    kind,
    spelling,
    folder=folder,
    notes=notes,
    place=place,
    empty_completions=empty_completions,
  )
  records.report(problems)
  return rows


def examine(
  source: str | Path,
  kind: str,
  spelling: Spelling | Layout | None = None,
  *,
  folder: str | None = None,
  notes: Notes | None = None,
  place: str = CONVERT,
  empty_completions: bool = False,
) -> tuple[list, list[str]]:
  """Returns the records of a source and all its problems. It never raises because of the source."""
  rows, all_problems = [], []
  for record, problems in each(
    source,
    kind,
    spelling,
    folder=folder,
    notes=notes,
    place=place,
    empty_completions=empty_completions,
  ):
    if record is not None:
      rows.append(record)
    all_problems += problems
  return rows, all_problems


def each(
  source: str | Path,
  kind: str,
  spelling: Spelling | Layout | None = None,
  *,
  folder: str | None = None,
  notes: Notes | None = None,
  place: str = CONVERT,
  empty_completions: bool = False,
) -> Iterator[tuple[Record | None, list[str]]]:
  """Yields what `examine` returns, a record or the problems of a row at a time.

  What follows a problem that ends the reading of a file, as where it is cut off, is its next file.
  """
  notes = Notes() if notes is None else notes
  try:
    all_parts = parts(source, folder)
  except UserError as error:
    yield None, _problems_of(error)
    return
  for part in all_parts:
    try:
      rows, part_kind, spell = read_part(part, kind, spelling, notes, place)
      yield from records.each(
        rows, part_kind, spell, name=part.name, empty_completions=empty_completions
      )
    except UserError as error:
      yield None, _problems_of(error)


def _problems_of(error: UserError) -> list[str]:
  """Returns the problems that an error holds, a line each."""
  return str(error).split("\n")


def read_part(
  part: Part,
  kind: str,
  spelling: Spelling | Layout | None,
  notes: Notes,
  place: str = CONVERT,
) -> tuple[Iterable[Row], str, Spelling]:
  """Returns (rows, kind, spelling), as `records.each` takes them, of a file or data set.

  Raises:
    UserError: if nothing says how the rows are read, or they are of another kind.
  """
  first, rows = _head(part)
  objects = validation.objects(first)
  spell = _spelling_of_part(part, objects, kind, spelling, notes, place)
  return itertools.chain(first, rows), kind, spell


def _head(part: Part) -> tuple[list[Row], Iterator[Row]]:
  """Returns the first rows of a part, HEAD of them at most, and those that follow.

  Where a file cannot be read any further among the first ones, the error comes after them.

  Raises:
    UserError: if no row can be read.
  """
  rows = iter(part.rows())
  first: list[Row] = []
  try:
    while len(first) < HEAD and (row := next(rows, None)) is not None:
      first.append(row)
  except UserError as error:
    if not first:
      raise
    return first, _ending(error)
  return first, rows


def _ending(error: UserError) -> Iterator[Row]:
  """Returns rows that end with an error at once."""
  yield from ()
  raise error


def _spelling_of_part(
  part: Part,
  first: Iterator[dict[str, Any]],
  kind: str,
  spelling: Spelling | Layout | None,
  notes: Notes,
  place: str,
) -> Spelling:
  """Returns how the rows of a part are read; `first` are its first ones that are objects."""
  if spelling is not None and not isinstance(spelling, Layout):
    return spelling
  is_native = spelling is None or spelling.name == "native"
  if part.mapping and is_native:
    return part.mapping.spell
  if spelling is not None and is_native:
    return native
  return detect.reader(part.name, first, kind, spelling, place, notes)


# --- kinds ---


def kind_of(source: str | Path, folder: str | None = None) -> str | None:
  """Returns the kind of record that a source holds, or None if it does not say.

  The ready mapping of a TFDS data set says so, or else the fields of the first readable row.
  """
  for part in parts(source, folder):
    kind = kind_of_part(part)
    if kind:
      return kind
  return None


def kind_of_part(part: Part) -> str | None:
  """Returns the kind of record that the rows of one file or data set are."""
  if part.mapping:
    return part.mapping.kind
  return detect.kind_of(_columns(part))


def hint(part: Part, place: str) -> str | None:
  """Returns a sentence about rows of no known kind, with the option that reads them.

  It is None where no row is an object.
  """
  columns = _columns(part)
  return f"{part.name}: {detect.hint(columns, None, place)}" if columns else None


def _columns(part: Part) -> detect.Columns:
  """Returns the columns of the first rows of a part that are objects."""
  first, _ = _head(part)
  return detect.columns_of(validation.objects(first))


# --- addresses ---


def parts(source: str | Path, folder: str | None = None) -> list[Part]:
  """Returns the files and data sets of a source.

  Raises:
    UserError: if there is no such file or data set.
  """
  text = str(source)
  # The name of a file may have a comma in it.
  pieces = [text] if exists(text) else [piece.strip() for piece in text.split(",")]
  if not all(pieces):
    raise UserError(f"{text!r}: names no file between two commas; give FILE,FILE")
  return [part for piece in pieces for part in _parts_of_piece(piece, folder)]


def _parts_of_piece(piece: str, folder: str | None) -> list[Part]:
  """Returns the files and data sets of an address without commas."""
  if piece.startswith("tfds:"):
    return [tfds(piece.removeprefix("tfds:"), folder)]
  if piece.startswith("tfds-dir:"):
    return [tfds_folder(piece.removeprefix("tfds-dir:"))]
  if piece.startswith("hub:"):
    return [hub(piece.removeprefix("hub:"))]
  if "://" in piece:
    return [file(path) for path in _bucket_paths(piece)]
  folder_name = piece.partition("@")[0]
  if any(exists(f"{folder_name}/{name}") for name in SAVED):
    return [saved(piece)]
  # The folder of a prepared TFDS data set may stand without its prefix.
  if exists(f"{folder_name}/dataset_info.json"):
    return [tfds_folder(piece)]
  if _is_pattern(piece) and not exists(piece):
    # `glob` wants a relative pattern, so it starts at the root for an absolute path.
    root = Path(Path(piece).anchor)
    paths = sorted(root.glob(str(Path(piece).relative_to(root))))
    if not paths:
      raise UserError(f"{piece}: no file has such a name")
    return [file(path) for path in paths]
  return [file(Path(piece))]


def _is_pattern(name: str) -> bool:
  return any(letter in name for letter in PATTERN)


def exists(text: str) -> bool:
  """Returns whether there is a file or a folder of this name."""
  try:
    return Path(text).exists()
  except (OSError, ValueError):
    # The name is too long, or it has a NUL character, so there is no such file.
    return False


# --- files ---


def file(path: Any, name: str | None = None) -> Part:
  """Returns the rows of a file under a `Path` or under etils' path of a bucket.

  `name` is what messages call it: the path unless it is given.
  """
  file_name = name or str(path)
  has_records = files.is_records(path.name)

  def rows() -> Iterator[Row]:
    with _reaching(path):
      if path.suffix == ".parquet":
        yield from places.numbered(parquet(path), file_name)
      else:
        yield from files.rows(path, file_name)

  def lines() -> Iterator[Row]:
    with _reaching(path):
      yield from files.lines(path, file_name)

  return Part(file_name, rows, lines=None if has_records else lines)


def parquet(path: Any) -> Iterator[Any]:
  """Yields the rows of a Parquet file. Only a batch of them is in memory at a time.

  Raises:
    UserError: if pyarrow is not installed or the file cannot be read.
  """
  try:
    module = importlib.import_module("pyarrow.parquet")
  except ImportError:
    raise UserError(f"{path}: pyarrow is not installed; run pip install pyarrow") from None
  try:
    with path.open("rb") as stream, module.ParquetFile(stream) as table:
      for batch in table.iter_batches(batch_size=1024):
        yield from map(plain, batch.to_pylist())
  except FileNotFoundError:
    raise UserError(f"{path}: no such file; give a Parquet file") from None
  except (OSError, ValueError) as error:
    # pyarrow's ArrowInvalid, for what is no Parquet file, is a ValueError.
    raise UserError(f"{path}: cannot be read ({_first_line(error)}); give a Parquet file") from None


# --- buckets ---


def _bucket_paths(address: str) -> list[Any]:
  """Returns the paths of gs://... or of another address that etils can open.

  The last part of the address may be a pattern.
  """
  from etils import epath

  see_all_writers()  # runs may lie in the same bucket, and the client is made once
  try:
    path = epath.Path(address)
  except (KeyError, NotImplementedError, ValueError) as error:
    # A KeyError is a scheme that etils does not know.
    raise UserError(
      f"{address}: no such kind of address ({_first_line(error)}); give gs://BUCKET/FILE"
    ) from None
  if not _is_pattern(path.name):
    return [path]
  with _reaching(path.parent):
    paths = sorted(path.parent.glob(path.name))
  if not paths:
    raise UserError(f"{address}: no file has such a name")
  return paths


@contextlib.contextmanager
def _reaching(path: Any) -> Iterator[None]:
  """Turns whatever the client of a bucket raises into a UserError."""
  if isinstance(path, Path):
    yield
    return
  try:
    yield
  except UserError:
    raise
  except ImportError as error:
    raise UserError(
      f"{path}: {_first_line(error)}; run pip install gcsfs and log in (gcloud auth "
      "application-default login), or mount the bucket, or copy the file here"
    ) from None
  except Exception as error:
    # The errors of these clients have no type in common.
    raise UserError(
      f"{path}: cannot be reached ({_first_line(error)}); check the name, the network and your "
      "login"
    ) from error


# --- TFDS ---


def tfds(name: str, folder: str | None = None) -> Part:
  """Returns the rows of a TFDS data set through its random-access reader.

  The reader needs no TensorFlow, but the data set must have been prepared as array_record or
  Parquet: `download_and_prepare(file_format="array_record")`.
  """
  name, _, split = name.partition("@")
  split = split or "train"

  def read(module: Any) -> Any:
    return module.data_source(name, split=split, data_dir=folder, download=False)

  return _prepared_part(f"tfds:{name}@{split}", read, name)


def tfds_folder(place: str) -> Part:
  """Returns the rows of a prepared TFDS data set, whose name is in its dataset_info.json.

  Raises:
    UserError: if the folder holds no such file or cannot be opened.
  """
  folder, _, split = place.partition("@")
  split = split or "train"
  if not (Path(folder) / "dataset_info.json").is_file():
    raise UserError(
      f"{folder}: holds no dataset_info.json; give the folder of one version of a prepared TFDS "
      "data set"
    )
  name = f"{folder}@{split}"
  # The builder is opened at once, because its full name decides the mapping.
  builder = _open_prepared(name, lambda module: module.builder_from_directory(folder))

  def read(module: Any) -> Any:
    return builder.as_data_source(split)

  return _prepared_part(name, read, builder.info.full_name)


def _prepared_part(place: str, read: Callable[[Any], Any], name: str) -> Part:
  """Returns the rows of a TFDS data set of this name, which `read` opens."""

  def reach() -> Any:
    return _open_prepared(place, read)

  def rows() -> Iterator[Row]:
    return places.numbered(map(plain, reach()), place)

  return Part(place, rows, mappings.of(name), reach)


def _open_prepared(place: str, read: Callable[[Any], Any]) -> Any:
  """Returns read(tensorflow_datasets). What that raises becomes a UserError with a remedy."""
  try:
    module = importlib.import_module("tensorflow_datasets")
  except ImportError:
    raise UserError(
      f"{place}: tensorflow-datasets is not installed; run pip install tensorflow-datasets"
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
  """Returns the rows of a file of a hub data set, or of a whole one through `datasets`.

  What is fetched stays in the hub's own cache.

  Raises:
    UserError: if the address names no data set, or if the data set cannot be fetched.
  """
  owner, _, rest = path.partition("/")
  name, _, inside = rest.partition("/")
  if not owner or not name.partition("@")[0]:
    raise UserError(
      f"hub:{path}: give OWNER/NAME/path/file.jsonl, the data set and the file in it, or "
      "OWNER/NAME@SPLIT"
    )
  if inside.endswith(FILES):
    return _hub_file(f"{owner}/{name}", inside, path)
  return _hub_data_set(path)


def _hub_file(repository: str, inside: str, path: str) -> Part:
  from huggingface_hub import hf_hub_download

  try:
    local = hf_hub_download(repository, inside, repo_type="dataset")
  except (OSError, ValueError) as error:
    raise UserError(
      f"hub:{path}: cannot be fetched ({_first_line(error)}); check the name and the network or "
      "give a file"
    ) from error
  # Messages name the address, not the file in the cache.
  return file(Path(local), f"hub:{path}")


def _hub_data_set(path: str) -> Part:
  name, _, split = path.partition("@")
  # The configuration is whatever follows the second slash, and often there is none.
  owner, repository, config = [*name.split("/", 2), ""][:3]
  try:
    datasets = importlib.import_module("datasets")
  except ImportError:
    raise UserError(
      f"hub:{path}: the datasets library is not installed; run pip install 'instructjax[hub]', or "
      "give OWNER/NAME/path/file.jsonl, a file of the data set"
    ) from None
  try:
    rows = datasets.load_dataset(f"{owner}/{repository}", config or None, split=split or "train")
  except Exception as error:
    # A data set may have a script of its own, and this may raise anything.
    raise UserError(
      f"hub:{path}: cannot be loaded ({_first_line(error)}); check the name, the configuration, "
      "the split and the network"
    ) from error
  place = f"hub:{name}@{split or 'train'}"
  return Part(place, lambda: places.numbered(map(plain, rows), place))


# --- folders of the `datasets` library ---


def saved(place: str) -> Part:
  """Returns the rows of a folder that `save_to_disk` of `datasets` wrote.

  The split is train where the folder has splits and none is named.

  Raises:
    UserError: if the library is not installed, or the folder cannot be opened or has no such split.
  """
  folder, _, split = place.partition("@")
  try:
    datasets = importlib.import_module("datasets")
  except ImportError:
    raise UserError(
      f"{folder}: a folder that save_to_disk of the datasets library wrote, and the library is not "
      "installed; run pip install 'instructjax[hub]', or write the data set with to_json"
    ) from None
  try:
    rows = datasets.load_from_disk(folder)
  except Exception as error:
    # The library's errors have no type in common.
    raise UserError(
      f"{folder}: cannot be opened by the datasets library ({_first_line(error)}); write the data "
      "set again with save_to_disk or to_json"
    ) from error
  name = folder
  if isinstance(rows, dict):
    name = f"{folder}@{split or 'train'}"
    if (split or "train") not in rows:
      raise UserError(f"{name}: no such split; there are {', '.join(rows)}")
    rows = rows[split or "train"]
  elif split:
    raise UserError(f"{place}: this folder has no splits; leave @{split} out")
  return Part(name, lambda: places.numbered(map(plain, rows), name))


# --- values ---


def plain(value: Any) -> Any:
  """Returns what a data set holds as plain Python values: bytes become text, and arrays lists.

  A byte that is not UTF-8 becomes half a surrogate pair. No record may hold one, so the row is
  reported with its place.
  """
  if isinstance(value, dict):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  # Arrays and scalars of NumPy have `tolist`.
  if hasattr(value, "tolist"):
    return plain(value.tolist())
  return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _first_line(error: Exception) -> str:
  """Returns the first line of an error's message, or its type where it has no message."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__
