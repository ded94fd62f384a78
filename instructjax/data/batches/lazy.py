"""Text that is read and tokenised when it is drawn, for corpora that do not fit in memory.

The windows are those of `pipeline.text`, token for token: all documents joined by end-of-text
tokens and cut.  To find a window without the ones before it, the tokens of every document are
counted once, in one pass that also checks the documents. The counts (4 bytes a document) stay in
the user's cache, so that a run that goes on, or another one with the same text and tokenizer,
starts at once.  A window reads the documents that it lies in; a document is tokenised whole for
each of its windows.

Rows are reached by their number in JSONL files, in Parquet files (whose row groups are read
whole: write small ones) and in prepared TFDS data sets.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import mmap
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from instructjax.data.batches.pipeline import Row
from instructjax.data.records import records, sources
from instructjax.data.records.records import Spelling, Text, native
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.system import download

TABLES = 16  # row groups of a Parquet file that are held at once


# --- rows by their number ---


class Lines:
  """The lines of a JSONL file; only the places where they begin are held."""

  def __init__(self, path: Path):
    try:
      with path.open("rb") as file:
        self.content: Any = (
          mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        )
    except OSError as error:
      raise UserError(
        f"{path}: cannot be read ({error}); give a JSONL file, one record a line"
      ) from None
    begins, at = [0], self.content.find(b"\n")
    while at >= 0:
      begins.append(at + 1)
      at = self.content.find(b"\n", at + 1)
    if begins[-1] < len(self.content):
      begins.append(len(self.content) + 1)
    self.begins = np.asarray(begins, np.int64)

  def __len__(self) -> int:
    return len(self.begins) - 1

  def __getitem__(self, i: int) -> bytes:
    return bytes(self.content[self.begins[i] : self.begins[i + 1] - 1]).removeprefix(
      b"\xef\xbb\xbf" if i == 0 else b""
    )


class ParquetRows:
  """The rows of a Parquet file."""

  def __init__(self, path: Path):
    try:
      module = importlib.import_module("pyarrow.parquet")
      self.file = module.ParquetFile(path)
    except ImportError:
      raise UserError(
        f"{path}: pyarrow is not installed; run pip install 'instructjax[parquet]'"
      ) from None
    except (OSError, ValueError) as error:
      raise UserError(f"{path}: cannot be read ({_reason(error)}); give a Parquet file") from None
    sizes = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
    self.ends = np.cumsum(sizes)
    self.group = lru_cache(TABLES)(self.file.read_row_group)

  def __len__(self) -> int:
    return int(self.ends[-1]) if len(self.ends) else 0

  def __getitem__(self, i: int) -> dict[str, Any]:
    group = int(np.searchsorted(self.ends, i, side="right"))
    first = int(self.ends[group - 1]) if group else 0
    return sources.plain(self.group(group).slice(i - first, 1).to_pylist()[0])


def _reason(error: Exception) -> str:
  return str(error).strip().partition("\n")[0]


def by_number(part: sources.Part) -> Any:
  """The rows of a source with `len` and `[i]`.  Raises UserError where it can only be read from the
  front.
  """
  path, remote = Path(part.name), part.name.startswith("hub:") or "://" in part.name
  if path.suffix in (".jsonl", ".json") and not remote:
    return Lines(path)
  if path.suffix == ".parquet" and not remote:
    return ParquetRows(path)
  if part.reach:
    return part.reach()
  raise UserError(
    f"{part.name}: cannot be read lazily; give a JSONL file that is not gzipped, a Parquet file or "
    "a prepared TFDS data set "
    "on this machine, or leave config.data.lazy off"
  )


@dataclass(frozen=True)
class Texts:
  """The documents of a source by their number, read when they are asked for.

  `name` stands before the number in messages; `parts` are (name, rows, spelling) of each file or
  data set.
  """

  name: str
  parts: tuple[tuple[str, Any, Spelling], ...]
  said: str = ""  # the spelling, in the words of the configuration

  def __len__(self) -> int:
    return sum(len(rows) for _, rows, _ in self.parts)

  def __getitem__(self, i: int) -> Text:
    found, problems = self.scan(i)
    records.report(problems)
    return found[0]

  def __iter__(self) -> Iterator[Text]:
    return (self[i] for i in range(len(self)))

  def scan(self, i: int) -> tuple[list, list[str]]:
    """([the document], [], or [], what is wrong with it).  Raises UserError where the file is
    damaged there.
    """
    at = i
    for name, rows, spelling in self.parts:
      if at < len(rows):
        try:
          row = rows[at]
        except (
          OSError,
          ValueError,
          RuntimeError,
        ) as error:  # of a row group of Parquet, or a record of TFDS
          raise UserError(
            f"{name}:{at + 1}: cannot be read ({_reason(error)}); the file is damaged: put a whole "
            "copy in its place"
          ) from error
        found, problems = records.scan([row], "text", spelling, name="")
        return found, [f"{name}:{at + 1}:{problem.removeprefix(':1:')}" for problem in problems]
      at -= len(rows)
    raise IndexError(i)


def texts(source: str, spelling: Spelling | None = None, said: str = "") -> Texts:
  """The documents of a source; `said` tells its spelling from others.

  Raises UserError where one of its parts cannot be reached by number.
  """
  parts = []
  for part in sources.parts(source):
    chosen = spelling or (part.mapping.spell if part.mapping else native)
    if isinstance(chosen, records.Whole):
      raise UserError(
        f"{part.name}: this spelling needs all rows at once; leave config.data.lazy off"
      )
    if part.reach:
      chosen = lambda row, kind, inner=chosen: inner(sources.plain(row), kind)
    parts.append((part.name, by_number(part), chosen))
  return Texts(source, tuple(parts), said)


# --- the index ---


@dataclass(frozen=True)
class Index:
  """How many tokens each document has, its end-of-text token among them, and the fingerprint of all
  documents.
  """

  counts: Int[np.ndarray, " N"]
  fingerprint: str


def index(found: Texts, tokenizer: Tokenizer) -> Index:
  """Counts the tokens of every document, or reads the counts from the cache
  (`download.cache_folder`).

  Raises UserError listing every document that is no record, and where the cache cannot be written.
  """
  places = [(name, len(rows), _state(name, rows)) for name, rows, _ in found.parts]
  key = hashlib.sha256(repr((places, found.said, tokenizer.fingerprint)).encode()).hexdigest()
  path = download.cache_folder() / "counts" / f"{key[:32]}.npz"
  damaged = (ValueError, KeyError, EOFError, zipfile.BadZipFile)
  with contextlib.suppress(OSError, *damaged), path.open("rb") as file, np.load(file) as kept:
    return Index(
      kept["counts"], str(kept["fingerprint"])
    )  # else there is none that is whole: count again
  with _kept(path) as file:
    result = _counted(found, tokenizer)
    np.savez(file, counts=result.counts, fingerprint=result.fingerprint)
  return result


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[Any]:
  """A new file, which has its name when all is written.  Raises UserError where it cannot be,
  before anything is counted.
  """
  half: Path | None = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
      half = Path(file.name)
      yield file
    half.replace(path)
  except OSError as error:
    raise UserError(
      f"{path.parent}: the token counts of config.data.lazy cannot be kept there "
      f"({error.strerror or error}); free some space "
      "or set INSTRUCTJAX_CACHE to another folder"
    ) from error
  finally:
    if half is not None:
      half.unlink(missing_ok=True)


def _counted(found: Texts, tokenizer: Tokenizer) -> Index:
  counts = np.zeros(len(found), np.int32)
  empty = [(name, spelling) for name, rows, spelling in found.parts if not len(rows)]
  problems = [
    what for name, spelling in empty for what in records.scan([], "text", spelling, name=name)[1]
  ]

  def documents() -> Iterator[Text]:
    for i in range(len(found)):
      good, wrong = found.scan(i)
      problems.extend(wrong)
      for text in good:
        counts[i] = len(tokenizer.encode(text.text)) + 1
        yield text

  fingerprint = records.fingerprint(documents())
  records.report(problems)
  return Index(counts, fingerprint)


def _state(name: str, rows: Any) -> tuple[str, int, int]:
  """Size and time of a file: another file under the same name is counted again; of a TFDS data set
  its folder and those of what was prepared there last.
  """
  info = getattr(rows, "dataset_info", None)
  folder = "" if info is None else str(info.data_dir)
  path = Path(folder, "dataset_info.json") if folder else Path(name)
  if not path.is_file():
    return folder, 0, 0
  found = path.stat()
  return folder, found.st_size, found.st_mtime_ns


# --- rows of tokens ---


@dataclass(frozen=True)
class Windows:
  """`pipeline.text` by number: the whole windows of `length` tokens."""

  texts: Texts
  ends: Int[np.ndarray, " N"]  # tokens up to the end of each document
  tokenizer: Tokenizer
  length: int

  def __len__(self) -> int:
    return int(self.ends[-1]) // self.step

  @property
  def step(self) -> int:
    return self.length - len(self.tokenizer.bos)

  def __getitem__(self, i: int) -> Row:
    start, stop = i * self.step, (i + 1) * self.step
    first = int(np.searchsorted(self.ends, start, side="right"))
    ids: list[int] = []
    skip = start - (int(self.ends[first - 1]) if first else 0)
    for at in itertools.count(first):
      ids += encoded(
        self.texts, at, self.tokenizer, int(self.ends[at] - (self.ends[at - 1] if at else 0))
      )
      if self.ends[at] >= stop:
        return Row(np.asarray([*self.tokenizer.bos, *ids[skip : skip + self.step]], np.int32), 1)
    raise IndexError(i)


def windows(found: Texts, index: Index, tokenizer: Tokenizer, length: int) -> Windows:
  """Raises UserError where the text does not fill one window."""
  rows = Windows(found, np.cumsum(index.counts, dtype=np.int64), tokenizer, length)
  if not len(rows):
    raise UserError(
      f"{found.name}: {index.counts.sum()} tokens do not fill a window of {length}; give more text "
      "or a shorter window"
    )
  return rows


@dataclass(frozen=True)
class Pieces:
  """`pipeline.documents` by number; `sizes` are the tokens of each piece."""

  texts: Texts
  counts: Int[np.ndarray, " N"]
  tokenizer: Tokenizer
  length: int
  places: Int[np.ndarray, "M 2"]  # document, first token
  sizes: Int[np.ndarray, " M"]

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, i: int) -> Row:
    document, start = map(int, self.places[i])
    ids = encoded(self.texts, document, self.tokenizer, int(self.counts[document]))
    step = self.length - len(self.tokenizer.bos)
    return Row(np.asarray([*self.tokenizer.bos, *ids[start : start + step]], np.int32), 1)


def pieces(found: Texts, index: Index, tokenizer: Tokenizer, length: int) -> Pieces:
  bos = len(tokenizer.bos)
  step = length - bos
  each = -(-index.counts // step)
  document = np.repeat(np.arange(len(each)), each)
  start = step * (np.arange(len(document)) - np.repeat(np.cumsum(each) - each, each))
  sizes = np.minimum(index.counts[document] - start, step) + bos
  kept = sizes >= 2
  return Pieces(
    found, index.counts, tokenizer, length, np.stack([document, start], 1)[kept], sizes[kept]
  )


def encoded(found: Texts, at: int, tokenizer: Tokenizer, count: int) -> Sequence[int]:
  """The ids of a document and its end.  Raises UserError where they are not as many as were
  counted.
  """
  ids = [*tokenizer.encode(found[at].text), tokenizer.eos[0]]
  if len(ids) != count:
    raise UserError(
      f"{found.name}: document {at + 1} has {len(ids)} tokens and had {count} when they were "
      "counted: the text changed; "
      "put it back, or start again in a new --workdir"
    )
  return ids
