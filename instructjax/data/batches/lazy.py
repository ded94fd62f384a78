"""Text that is read and tokenised when a row is asked for, for corpora that do not fit in memory.

The windows are those of `pipeline.text`, token for token: all documents joined by the token that
ends a document, and cut. To find a window without the ones before it, the tokens of every document
are counted once, in one pass that also checks the documents. The counts (4 bytes a document) stay
in the user's cache, so that a run that goes on, or another one with the same text and tokenizer,
starts after one reading of the files, which shows that they are the same. A window reads the
documents that it lies in, and a document is tokenised whole for each of its windows.

Rows can be reached by their number in JSONL files, in Parquet files (whose row groups are read
whole, so write small ones) and in prepared TFDS data sets.

Dimensions: N documents, M pieces of documents.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import mmap
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from instructjax.data.batches.pipeline import Row, special_problems
from instructjax.data.records import files, places, records, sources
from instructjax.data.records.named import Layout
from instructjax.data.records.places import Row as PlacedRow
from instructjax.data.records.records import Spelling, Text, native
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.data.tokens.vocabulary import document_end
from instructjax.errors import UserError
from instructjax.system import download

TABLES = 16  # row groups of a Parquet file that are held at once
CHECKS = 2  # another number counts, and so checks, all texts again


# --- rows by their number ---


class Lines:
  """The lines of a JSONL file. Only the places where they begin are held in memory.

  Raises:
    UserError: if the file cannot be read, or is in another layout.
  """

  def __init__(self, path: Path):
    self.content: Any = b""
    try:
      with path.open("rb") as file:
        if path.stat().st_size:  # an empty file cannot be mapped
          self.content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
      raise UserError(
        f"{path}: cannot be read ({error}); give a JSONL file, one record a line"
      ) from None
    head = bytes(self.content[: files.PIECE])
    if not files.holds_lines(head, len(head) == len(self.content), str(path)):
      raise _not_lazy(str(path))
    begins = [0]
    newline = self.content.find(b"\n")
    while newline >= 0:
      begins.append(newline + 1)
      newline = self.content.find(b"\n", newline + 1)
    # Line i ends one byte before line i + 1 begins. A last line without a newline is given the
    # end that it would have with one.
    if begins[-1] < len(self.content):
      begins.append(len(self.content) + 1)
    # Empty lines at the end are none.
    while len(begins) > 1 and not self.content[begins[-2] : begins[-1]].strip():
      begins.pop()
    self.begins = np.asarray(begins, np.int64)

  def __len__(self) -> int:
    return len(self.begins) - 1

  def __getitem__(self, i: int) -> bytes:
    line = bytes(self.content[self.begins[i] : self.begins[i + 1] - 1])
    return line.removeprefix(files.BYTE_ORDER_MARK) if i == 0 else line


class ParquetRows:
  """The rows of a Parquet file."""

  def __init__(self, path: Path):
    try:
      # pyarrow is an optional dependency.
      module = importlib.import_module("pyarrow.parquet")
      self.file = module.ParquetFile(path)
    except ImportError:
      raise UserError(f"{path}: pyarrow is not installed; run pip install pyarrow") from None
    except (OSError, ValueError) as error:
      raise UserError(f"{path}: cannot be read ({_reason(error)}); give a Parquet file") from None
    groups = range(self.file.num_row_groups)
    sizes = [self.file.metadata.row_group(group).num_rows for group in groups]
    self.ends = np.cumsum(sizes)  # rows up to the end of each row group
    self.group = lru_cache(TABLES)(self.file.read_row_group)

  def __len__(self) -> int:
    return int(self.ends[-1]) if len(self.ends) else 0

  def __getitem__(self, i: int) -> dict[str, Any]:
    group = int(np.searchsorted(self.ends, i, side="right"))
    first = int(self.ends[group - 1]) if group else 0
    (row,) = self.group(group).slice(i - first, 1).to_pylist()
    return sources.plain(row)


def _reason(error: Exception) -> str:
  """Returns the first line of an error's text."""
  return str(error).strip().partition("\n")[0]


def by_number(part: sources.Part) -> Any:
  """Returns the rows of a source, with `len` and `[i]`.

  Raises:
    UserError: if the source can only be read from the front.
  """
  path = Path(part.name)
  remote = part.name.startswith("hub:") or "://" in part.name
  if path.suffix in (".jsonl", ".json") and not remote:
    return Lines(path)
  if path.suffix == ".parquet" and not remote:
    return ParquetRows(path)
  if part.reach:  # a prepared TFDS data set
    return part.reach()
  raise _not_lazy(part.name)


def _not_lazy(name: str) -> UserError:
  return UserError(
    f"{name}: cannot be read lazily; give a JSONL file that is not compressed (instructjax data "
    "convert writes one), a Parquet file or a prepared TFDS data set on this machine, or leave "
    "config.data.lazy off"
  )


@dataclass(frozen=True)
class Texts:
  """The documents of a source by their number, read when they are asked for.

  `name` stands before the number in messages. `parts` are (name, rows, spelling) of each file or
  data set. `spelling_name` is the spelling in the words of the configuration.
  """

  name: str
  parts: tuple[tuple[str, Any, Spelling], ...]
  spelling_name: str = ""

  def __len__(self) -> int:
    return sum(len(rows) for _, rows, _ in self.parts)

  def __getitem__(self, i: int) -> Text:
    documents, problems = self.scan(i)
    records.report(problems)
    return documents[0]

  def __iter__(self) -> Iterator[Text]:
    return (self[i] for i in range(len(self)))

  def scan(self, i: int) -> tuple[list, list[str]]:
    """Returns ([document i], []), or ([], what is wrong with it).

    Raises:
      UserError: if the file is damaged there.
    """
    name, rows, spelling, number = self._find(i)
    return _scan_row(name, rows, number, spelling)

  def place(self, i: int) -> str:
    """Returns where document i stands, as `file:line`."""
    name, _, _, number = self._find(i)
    return places.line(name, number + 1)

  def _find(self, i: int) -> tuple[str, Any, Spelling, int]:
    """Returns (name, rows, spelling) of the part that holds document i, and its number there."""
    number = i
    for name, rows, spelling in self.parts:
      if number < len(rows):
        return name, rows, spelling, number
      number -= len(rows)
    raise IndexError(i)


def _scan_row(name: str, rows: Any, number: int, spelling: Spelling) -> tuple[list, list[str]]:
  """Returns what `Texts.scan` returns, for a row of one part."""
  place = places.line(name, number + 1)
  try:
    row = rows[number]
  # These are the errors of a row group of Parquet, and of a record of TFDS.
  except (OSError, ValueError, RuntimeError) as error:
    raise UserError(
      f"{place}: cannot be read ({_reason(error)}); the file is damaged: put a whole copy in its "
      "place"
    ) from error
  return records.collect([PlacedRow(place, row)], "text", spelling)


def texts(source: str, spelling: Spelling | Layout | None = None, spelling_name: str = "") -> Texts:
  """Returns the documents of a source.

  `spelling_name` names the spelling: token counts in the cache are kept apart by it.

  Raises:
    UserError: if a part of the source cannot be reached by number.
  """
  parts = []
  for part in sources.parts(source):
    # Rows are read one by one, so none of them says how the others are read.
    named_spelling = spelling.spell if isinstance(spelling, Layout) else spelling
    chosen = named_spelling or (part.mapping.spell if part.mapping else native)
    if isinstance(chosen, records.Whole):
      raise UserError(
        f"{part.name}: this spelling needs all rows at once; leave config.data.lazy off"
      )
    if part.reach:
      chosen = _spell_plain(chosen)
    parts.append((part.name, by_number(part), chosen))
  return Texts(source, tuple(parts), spelling_name)


def _spell_plain(spelling: Callable[[dict[str, Any], str], dict[str, Any]]) -> Spelling:
  """Returns the spelling for rows of TFDS, whose values are arrays and bytes."""

  def spell(row: dict[str, Any], kind: str) -> dict[str, Any]:
    return spelling(sources.plain(row), kind)

  return spell


# --- the index ---


@dataclass(frozen=True)
class Index:
  """How many tokens each document has, and the fingerprint of all documents together.

  The token that ends a document counts.
  """

  counts: Int[np.ndarray, " N"]
  fingerprint: str


def index(documents: Texts, tokenizer: Tokenizer) -> Index:
  """Counts the tokens of every document, or reads the counts from the user's cache.

  The cache is a folder of `download.cache_folder()`.

  Raises:
    UserError: lists every document that is no record, or says why the cache cannot be written.
  """
  # The key changes with everything that the counts depend on.
  contents = [(name, len(rows), _content(name, rows)) for name, rows, _ in documents.parts]
  identity = repr((contents, documents.spelling_name, tokenizer.fingerprint, CHECKS))
  key = hashlib.sha256(identity.encode()).hexdigest()
  path = download.cache_folder() / "counts" / f"{key[:32]}.npz"
  # If there is no file, or a damaged one, the tokens are counted again.
  unreadable = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
  with contextlib.suppress(*unreadable), path.open("rb") as file, np.load(file) as cached:
    return Index(cached["counts"], str(cached["fingerprint"]))
  with _new_file(path) as file:
    result = _count_tokens(documents, tokenizer)
    np.savez(file, counts=result.counts, fingerprint=result.fingerprint)
  return result


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Any]:
  """Opens a new file, which gets its name when all of it is written.

  Raises:
    UserError: if it cannot be written; as far as that can be known, before anything is counted.
  """
  unfinished: Path | None = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
      unfinished = Path(file.name)
      yield file
    unfinished.replace(path)
  except OSError as error:
    raise UserError(
      f"{path.parent}: the token counts of config.data.lazy cannot be kept there "
      f"({error.strerror or error}); free some space or set INSTRUCTJAX_CACHE to another folder"
    ) from error
  finally:
    # After the file was renamed there is nothing left to delete.
    if unfinished is not None:
      unfinished.unlink(missing_ok=True)


def _count_tokens(documents: Texts, tokenizer: Tokenizer) -> Index:
  counts = np.zeros(len(documents), np.int32)
  problems: list[str] = []
  for name, rows, spelling in documents.parts:
    if not len(rows):
      # A scan of no rows gives the message for an empty file.
      _, problems_of_part = records.scan([], "text", spelling, name=name)
      problems += problems_of_part

  def count_each() -> Iterator[Text]:
    for i in range(len(documents)):
      readable, problems_of_row = documents.scan(i)
      problems.extend(problems_of_row)
      for text in readable:
        ids = tokenizer.encode(text.text)
        problems.extend(special_problems(tokenizer, text.text, ids, f"{documents.place(i)}: text"))
        counts[i] = len(ids) + 1  # with the token that ends it
        yield text

  # One pass counts, checks and hashes: the fingerprint draws the documents out of the generator.
  fingerprint = records.fingerprint(count_each())
  records.report(problems)
  return Index(counts, fingerprint)


def _content(name: str, rows: Any) -> str:
  """Returns the digest of what a part of a source holds.

  The bytes of a file count, and not its name, size and time: another text may have the same. A
  TFDS data set may be too large for that. It is known by the description in its folder, and by the
  names, sizes and times of its files; the time of the inode is one that no program can set.
  """
  info = getattr(rows, "dataset_info", None)
  try:
    if info is not None:
      return _folder_content(Path(info.data_dir))
    if not Path(name).is_file():
      return ""
    with Path(name).open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(f"{name}: cannot be read ({_reason(error)}); put it back") from None


def _folder_content(folder: Path) -> str:
  """Returns the digest of a prepared data set."""
  facts: list[Any] = []
  for path in sorted(folder.iterdir()):
    stat = path.stat()
    facts.append((path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
  description = folder / "dataset_info.json"
  if description.is_file():
    facts.append(description.read_bytes())
  return hashlib.sha256(repr(facts).encode()).hexdigest()


# --- rows of tokens ---


@dataclass(frozen=True)
class Windows:
  """The whole windows of `length` tokens by their number, as `pipeline.text` cuts them."""

  texts: Texts
  ends: Int[np.ndarray, " N"]  # tokens up to the end of each document
  tokenizer: Tokenizer
  length: int

  def __len__(self) -> int:
    return int(self.ends[-1]) // self.step

  @property
  def step(self) -> int:
    """The tokens of text in a window: all but the `bos` that it begins with."""
    return self.length - len(self.tokenizer.bos)

  def begin(self, document: int) -> int:
    """Returns the number of tokens before a document."""
    return int(self.ends[document - 1]) if document else 0

  def __getitem__(self, i: int) -> Row:
    start = i * self.step
    stop = start + self.step
    # The first document that ends after the window begins.
    first = int(np.searchsorted(self.ends, start, side="right"))
    skip = start - self.begin(first)
    ids: list[int] = []
    for document in itertools.count(first):
      end = int(self.ends[document])
      ids += encoded(self.texts, document, self.tokenizer, end - self.begin(document))
      if end >= stop:
        break
    window = ids[skip : skip + self.step]
    return Row(np.asarray([*self.tokenizer.bos, *window], np.int32), 1)


def windows(
  documents: Texts,
  index: Index,
  tokenizer: Tokenizer,
  length: int,
) -> Windows:
  """Returns the windows of `length` tokens of all documents.

  Raises:
    UserError: if the text does not fill one window.
  """
  ends = np.cumsum(index.counts, dtype=np.int64)
  rows = Windows(documents, ends, tokenizer, length)
  if not len(rows):
    raise UserError(
      f"{documents.name}: {index.counts.sum()} tokens do not fill a window of {length}; give more "
      "text or a shorter window"
    )
  return rows


@dataclass(frozen=True)
class Pieces:
  """The pieces of documents by their number, as `pipeline.documents` cuts them."""

  texts: Texts
  counts: Int[np.ndarray, " N"]  # tokens of each document
  tokenizer: Tokenizer
  length: int
  places: Int[np.ndarray, "M 2"]  # the document of each piece, and its first token there
  sizes: Int[np.ndarray, " M"]  # tokens of each piece, with `bos`

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, i: int) -> Row:
    document, start = map(int, self.places[i])
    ids = encoded(self.texts, document, self.tokenizer, int(self.counts[document]))
    stop = start + self.length - len(self.tokenizer.bos)
    return Row(np.asarray([*self.tokenizer.bos, *ids[start:stop]], np.int32), 1)


def pieces(
  documents: Texts,
  index: Index,
  tokenizer: Tokenizer,
  length: int,
) -> Pieces:
  """Returns the pieces of at most `length` tokens of each document."""
  bos = len(tokenizer.bos)
  step = length - bos  # tokens of text in a piece
  pieces_of_each = -(-index.counts // step)
  document = np.repeat(np.arange(len(pieces_of_each)), pieces_of_each)
  # The number of a piece within its document: its number in all, less that of the document's first.
  first_piece = np.cumsum(pieces_of_each) - pieces_of_each
  number = np.arange(len(document)) - np.repeat(first_piece, pieces_of_each)
  start = step * number
  sizes = np.minimum(index.counts[document] - start, step) + bos
  long_enough = sizes >= 2  # a single token has no next one to predict
  return Pieces(
    texts=documents,
    counts=index.counts,
    tokenizer=tokenizer,
    length=length,
    places=np.stack([document, start], 1)[long_enough],
    sizes=sizes[long_enough],
  )


def encoded(documents: Texts, number: int, tokenizer: Tokenizer, count: int) -> Sequence[int]:
  """Returns the ids of a document and of the token that ends it.

  Raises:
    UserError: if there are not as many ids as were counted.
  """
  ids = [*tokenizer.encode(documents[number].text), document_end(tokenizer)]
  if len(ids) != count:
    raise UserError(
      f"{documents.name}: document {number + 1} has {len(ids)} tokens and had {count} when they "
      "were counted: the text changed; put it back, or start again in a new --workdir"
    )
  return ids
