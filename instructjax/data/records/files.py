"""From the bytes of a file to rows with places. Nothing but a piece of the file is in memory.

A file holds one object a line (JSONL), one JSON array of objects, objects over several lines or
side by side, or a table whose first line names the columns (.csv, .tsv). It may be compressed with
gzip, bzip2 or xz, whatever its name. What it holds decides, and only tables go by their names.

What is none of these is refused once and by its name: a web page, a Git LFS pointer, a file in
UTF-16, one that is cut off.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from json import JSONDecodeError
from typing import Any, NamedTuple

from instructjax.data.records import decoding, places
from instructjax.data.records.places import Row
from instructjax.data.records.schemas import RecordError
from instructjax.errors import UserError

PIECE = 1 << 20  # bytes that are read at once
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Compression(NamedTuple):
  """A way of compressing a file: its name, what such a file is, how it begins, what opens it."""

  name: str
  adjective: str
  begin: bytes
  open: Callable[[Any], Any]


# By the ending of the file's name.
COMPRESSIONS = {
  ".gz": Compression("gzip", "gzipped", b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
  ".bz2": Compression("bzip2", "compressed with bzip2", b"BZh", bz2.BZ2File),
  ".xz": Compression("xz", "compressed with xz", b"\xfd7zXZ\0", lzma.LZMAFile),
}
# What separates the columns of a table.
TABLES = {".csv": ",;\t", ".tsv": "\t"}
# How files of other kinds begin, what they are, and what to do.
OTHERS = {
  b"\x28\xb5\x2f\xfd": "compressed with Zstandard, which is not read; decompress it, zstd -d FILE",
  b"PK\x03\x04": "a zip archive; unpack it, unzip FILE",
  b"PAR1": "a Parquet file; give it a name that ends in .parquet",
  b"ARROW1": "an Arrow file; give the folder that save_to_disk of `datasets` wrote",
  b"%PDF": "a PDF document; give records, one JSON object a line",
  b"SQLite format 3": "an SQLite database; export its rows, one JSON object a line",
  b"version https://git-lfs": "a Git LFS pointer and not the file itself; fetch it, git lfs pull",
}
UTF_16 = "text in UTF-16; save the file as UTF-8, iconv -f UTF-16 -t UTF-8 FILE > NEW"
# A mark, or else one of two bytes of the first bracket that is zero.
UTF_16_BEGINS = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{", b"[\0", b"\0[")
WEB_PAGE = (
  "a web page and not a file of data; download the file itself (on the hub its address has "
  "/resolve/ where that of the page has /blob/)"
)
WEB_PAGE_BEGINS = (b"<!doctype", b"<html", b"<head", b"<?xml")
JSONL = "give one JSON object a line"


def rows(path: Any, name: str | None = None) -> Iterator[Row]:
  """Yields the rows of a file of records with their places.

  The path is a `pathlib.Path`, or one of etils to a file in a bucket. `name` stands in the places
  and in messages; it is the path unless it is given.

  Raises:
    UserError: if the file cannot be read, where it is cut off, and if it is no file of records.
  """
  name = name or str(path)
  pieces = _pieces(path, name)
  ending = _endings(path)[0]
  if ending in TABLES:
    yield from _table(_texts(pieces, name), TABLES[ending], name)
    return
  head, rest = _head(pieces)
  layout = _layout(head, len(head) < PIECE, name)
  yield from layout(itertools.chain([head], rest), name)


def lines(path: Any, name: str | None = None) -> Iterator[Row]:
  """Yields the lines of a plain text, as bytes without their ends, with their places.

  An empty line at the end, after the last newline, is none.

  Raises:
    UserError: as in `rows`, for what concerns the file as a whole.
  """
  name = name or str(path)
  return places.numbered(_split(_pieces(path, name)), name)


def is_records(name: str) -> bool:
  """Returns whether the name of a file says that it holds records and no plain text."""
  ending, _ = _endings_of_name(name)
  return ending in (".jsonl", ".json", ".parquet", *TABLES)


def holds_lines(begin: bytes, is_whole: bool, name: str) -> bool:
  """Returns whether a file is not compressed and holds one object a line.

  `begin` is the beginning of the file; `is_whole` says whether that is all of it.

  Raises:
    UserError: if it is no file of records.
  """
  if any(begin.startswith(compression.begin) for compression in COMPRESSIONS.values()):
    return False
  return _layout(begin, is_whole, name) is _lines


def _endings(path: Any) -> tuple[str, str]:
  return _endings_of_name(path.name)


def _endings_of_name(name: str) -> tuple[str, str]:
  """Returns the ending of a name without that of a compression, and that of the compression."""
  stem, dot, last = name.lower().rpartition(".")
  compression = dot + last if dot + last in COMPRESSIONS else ""
  if compression:
    _, dot, last = stem.rpartition(".")
  return dot + last, compression


# --- bytes ---


def _pieces(path: Any, name: str) -> Iterator[bytes]:
  """Yields the bytes of a file, decompressed, in pieces."""
  try:
    with contextlib.ExitStack() as stack:
      file = stack.enter_context(path.open("rb"))
      begin = file.read(max(len(compression.begin) for compression in COMPRESSIONS.values()))
      file.seek(0)
      compression = _compression(path, begin, name)
      if compression is None:
        yield from iter(lambda: file.read(PIECE), b"")
      else:
        yield from _decompressed(stack.enter_context(compression.open(file)), compression, name)
  except FileNotFoundError:
    raise UserError(f"{name}: no such file; {JSONL}") from None
  except IsADirectoryError:
    raise UserError(f"{name}: a folder; give its files, such as {name}/*.jsonl") from None
  # A name with a NUL character is a ValueError. UserError is one too, and says it all.
  except UserError:
    raise
  except (OSError, ValueError) as error:
    raise UserError(f"{name}: cannot be read ({error}); {JSONL}") from None


def _compression(path: Any, begin: bytes, name: str) -> Compression | None:
  """Returns how a file is compressed. Its first bytes say so, whatever its name is."""
  for compression in COMPRESSIONS.values():
    if begin.startswith(compression.begin):
      return compression
  _, ending = _endings(path)
  if ending and begin:
    other = _kind_of(begin)
    if other:
      raise UserError(f"{places.line(name, 1)}: {other}")
    raise UserError(
      f"{places.line(name, 1)}: not {COMPRESSIONS[ending].adjective}, though its name ends in "
      f"{ending}; rename the file, or fetch it again"
    )
  return None


def _decompressed(stream: Any, compression: Compression, name: str) -> Iterator[bytes]:
  """Yields the pieces of a compressed stream; what is read of a damaged one comes out first."""
  count = 0
  while True:
    try:
      piece = stream.read1(PIECE)
    except EOFError:
      raise UserError(
        f"{places.line(name, 1)}: cut off, the {compression.name} data end early, after {count} "
        "whole lines; fetch the file again"
      ) from None
    except (OSError, ValueError, zlib.error, lzma.LZMAError) as error:
      raise UserError(
        f"{places.line(name, 1)}: damaged after {count} whole lines, {compression.name} cannot "
        f"read on ({error}); fetch the file again"
      ) from None
    if not piece:
      return
    count += piece.count(b"\n")
    yield piece


def _head(pieces: Iterator[bytes]) -> tuple[bytes, Any]:
  """Returns the first bytes of a file, at least PIECE if it has as many, and the other pieces."""
  parts = []
  length = 0
  for piece in pieces:
    parts.append(piece)
    length += len(piece)
    if length >= PIECE:
      break
  return b"".join(parts), pieces


def _split(pieces: Iterable[bytes]) -> Iterator[bytes]:
  """Yields the lines in the pieces of a file without their ends, nor the mark of the byte order."""
  mark = BYTE_ORDER_MARK
  parts: list[bytes] = []  # of a line whose end is yet to come
  for piece in pieces:
    first, *others = piece.split(b"\n")
    parts.append(first)
    if not others:
      continue
    yield b"".join(parts).removeprefix(mark)
    mark = b""
    *whole, last = others
    yield from whole
    parts = [last]
  last = b"".join(parts).removeprefix(mark)
  if last:
    yield last


def _texts(pieces: Iterable[bytes], name: str) -> Iterator[str]:
  """Yields the pieces of a file as text without the mark of the byte order."""
  decoder = codecs.getincrementaldecoder("utf-8-sig")()
  line = 1
  # The empty piece at the end shows a character that is cut off.
  for piece in itertools.chain(pieces, [b""]):
    try:
      text = decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
      line += error.object[: error.start].count(b"\n")
      raise UserError(
        f"{places.line(name, line)}: not UTF-8 from here on; save the file as UTF-8"
      ) from None
    line += text.count("\n")
    yield text


# --- what a file is ---


def _layout(begin: bytes, is_whole: bool, name: str) -> Callable[..., Iterator[Row]]:
  """Returns the function that reads a file which begins so, or raises a UserError."""
  place = places.line(name, 1)
  sentence = _kind_of(begin.lstrip())
  text = begin.removeprefix(BYTE_ORDER_MARK).lstrip()
  if not text:
    sentence = f"an empty file, no records; {JSONL}"
  elif text.startswith((b"{", b"[")) and text.lstrip(b"[{ \t\r\n").startswith(b"'"):
    sentence = "as Python prints it, in single quotes, and no JSON; write it with json.dumps"
  if sentence:
    raise UserError(f"{place}: {sentence}")
  if text.startswith(b"["):
    return _lines if _has_lists_in_lines(text) else _array
  if text.startswith(b"{"):
    return _objects if _has_objects_across_lines(text, is_whole, place) else _lines
  _refuse_plain_text(text, place)
  return _lines


def _kind_of(begin: bytes) -> str | None:
  """Returns what a file is that is no file of records, and what to do; None where it may be one."""
  for other, sentence in OTHERS.items():
    if begin.startswith(other):
      return sentence
  if begin.startswith(UTF_16_BEGINS):
    return UTF_16
  if begin[:100].lower().startswith(WEB_PAGE_BEGINS):
    return WEB_PAGE
  return None


def _refuse_plain_text(begin: bytes, place: str) -> None:
  """Raises a UserError for a text none of whose lines, as far as it is here, could be JSON."""
  all_lines = begin.split(b"\n")
  # Half a line may stand at the end.
  if any(line.lstrip().startswith((b"{", b"[")) for line in all_lines):
    return
  with contextlib.suppress(RecordError):
    decoding.values(all_lines[0])
    return  # the checks of its lines say more
  if b"\0" in begin:
    raise UserError(f"{place}: binary data, no text; {JSONL}")
  first = all_lines[0].decode("utf-8", "replace").strip()
  separators = [separator for separator in ",\t;" if separator in first]
  if separators and len(all_lines) > 1 and separators[0].encode() in all_lines[1]:
    raise UserError(
      f"{place}: not JSON, it begins {_beginning(first)}; if this is a table, give it a name that "
      "ends in .csv or .tsv"
    )
  raise UserError(f"{place}: not JSON, it begins {_beginning(first)}; {JSONL}")


def _beginning(text: str) -> str:
  return repr(text if len(text) <= 40 else text[:37] + "...")


def _has_lists_in_lines(begin: bytes) -> bool:
  """Returns whether a file that begins with a list has lists in several lines, and is no array."""
  first, *others = begin.split(b"\n", 2)
  if not others or not others[0].lstrip().startswith(b"["):
    return False
  try:
    decoding.values(first)
  except RecordError:
    return False
  return True


def _has_objects_across_lines(begin: bytes, is_whole: bool, place: str) -> bool:
  """Returns whether the first object of a file ends in another line, or shares it with more.

  `begin` is the beginning of the file.

  Raises:
    UserError: for objects with commas between them.
  """
  first, newline, _ = begin.partition(b"\n")
  try:
    decoding.values(first)
  except RecordError:
    pass
  else:
    # It is whole, and so are the lines of other objects. One without an end is read as a text.
    return not newline and not is_whole
  text = begin.decode("utf-8", "replace")
  scanner = decoding.Scanner(iter([text]))
  try:
    scanner.value()
  except JSONDecodeError as error:
    # The object may be longer than what is here of it. A line of many lines is no JSON in itself.
    return not is_whole and error.pos > len(first)
  except RecordError:
    return False
  ending = scanner.next_character()
  if ending == ",":
    raise UserError(
      f"{place}: a comma after the object; take the commas out, or put [ before the first object "
      "and ] behind the last"
    )
  return scanner.line() > 1 or ending == "{"


# --- layouts ---


def _lines(pieces: Iterable[bytes], name: str) -> Iterator[Row]:
  """Yields the values of the lines of a file. Empty lines at its end are none."""
  empty_lines = []
  for number, line in enumerate(_split(pieces), 1):
    if not line or line.isspace():
      empty_lines.append(number)
      continue
    # They were not at the end.
    for empty in empty_lines:
      yield Row(places.line(name, empty), RecordError("an empty line; take it out"))
    empty_lines.clear()
    place = places.line(name, number)
    try:
      values = decoding.values(line)
    except RecordError as error:
      yield Row(place, error)
    else:
      for value in values:
        yield Row(place, value)


def _array(pieces: Iterable[bytes], name: str) -> Iterator[Row]:
  """Yields the elements of a JSON array."""
  scanner = decoding.Scanner(_texts(pieces, name))
  scanner.next_character()
  scanner.skip()  # the bracket
  if scanner.next_character() == "]":
    raise UserError(f"{name}: an empty array, no records; {JSONL}")
  for index in itertools.count():
    place = places.element(name, index)
    yield Row(place, _element(scanner, place))
    mark = scanner.next_character()
    if mark == "]":
      break
    if mark != ",":
      message = "cut off" if not mark else f"no comma after it in line {scanner.line()}"
      raise UserError(
        f"{place}: {message}, the array does not end; fetch the file again or correct it"
      )
    scanner.skip()
  scanner.skip()
  if scanner.next_character():
    place = places.line(name, scanner.line())
    raise UserError(
      f"{place}: more text after the end of the array; a file holds one array, or one object a line"
    )


def _element(scanner: decoding.Scanner, place: str) -> Any:
  """Returns the next element of an array. What follows one that is no JSON cannot be read."""
  if not scanner.next_character():
    raise UserError(f"{place}: cut off, the array does not end; fetch the file again")
  try:
    return scanner.value()
  except JSONDecodeError as error:
    reason = f"not JSON ({error.msg} in line {_line_of(error, scanner)})"
  except RecordError as error:
    reason = str(error)
  raise UserError(f"{place}: {reason}; nothing after it can be read: correct it") from None


def _line_of(error: JSONDecodeError, scanner: decoding.Scanner) -> int:
  """Returns the line in which the value that begins at the scanner stops to be JSON."""
  return scanner.line() + error.doc.count("\n", scanner.position, error.pos)


def _objects(pieces: Iterable[bytes], name: str) -> Iterator[Row]:
  """Yields objects that go over several lines or stand side by side.

  After one that is no JSON the next line that begins with an object is the next.
  """
  scanner = decoding.Scanner(_texts(pieces, name))
  while scanner.next_character():
    place = places.line(name, scanner.line())
    try:
      value = scanner.value()
    except JSONDecodeError as error:
      reason = f"{error.msg} in line {_line_of(error, scanner)}"
      value = RecordError(f"not JSON ({reason}); write one object a line")
    except RecordError as error:
      value = error
    else:
      yield Row(place, value)
      continue
    yield Row(place, value)
    if not scanner.skip_to_object():
      return


# --- tables ---


def _table(texts: Iterable[str], separators: str, name: str) -> Iterator[Row]:
  """Yields the rows of a table as objects of texts. An empty cell is a field that is missing.

  A row stands in the line where it begins.
  """
  # The module's own limit is 128 KiB; a text may be longer.
  csv.field_size_limit(2**31 - 1)
  table_lines = _text_lines(texts)
  header = next(table_lines, "")
  if not header.strip():
    raise UserError(f"{places.line(name, 1)}: no header; name the columns in the first line")
  separator = next((mark for mark in separators if mark in header), separators[0])
  table = csv.reader(itertools.chain([header], table_lines), delimiter=separator, strict=True)
  columns: list[str] | None = None
  while True:
    place = places.line(name, table.line_num + 1)
    try:
      cells = next(table, None)
    except csv.Error as error:
      raise UserError(
        f'{place}: no row of a table ({error}); quote a text with quotation marks as "a ""b"""'
      ) from None
    if cells is None:
      return
    if columns is None:
      columns = _columns(cells, place)
    elif len(cells) != len(columns) and cells:
      yield Row(place, RecordError(f"{len(cells)} cells, the first line names {len(columns)}"))
    elif cells:
      pairs = zip(columns, cells, strict=True)
      yield Row(place, {column: cell for column, cell in pairs if cell})


def _columns(cells: list[str], place: str) -> list[str]:
  """Returns the names of the columns; one without a name is called by its number."""
  columns = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
  repeated = [column for column in columns if columns.count(column) > 1]
  if repeated:
    raise UserError(f"{place}: two columns are called {repeated[0]!r}; rename one of them")
  return columns


def _text_lines(texts: Iterable[str]) -> Iterator[str]:
  """Yields the lines of a text that comes in pieces, with their ends."""
  rest = ""
  for text in texts:
    *whole, rest = (rest + text).split("\n")
    for line in whole:
      yield line + "\n"
  if rest:
    yield rest
