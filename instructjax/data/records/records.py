"""Reading, checking and writing the five kinds of records.

  demonstration  prompt, completion           [FROM, annotations]
  comparison     prompt, completions, ranks   [labeler, FROM, annotations, ratings, sources]
                 or pairs in place of ranks
  prompt         prompt                       [FROM, annotations]
  few_shot       instruction, pairs           [FROM, annotations]
  text           text                         [id, source]

The fields in brackets are optional. FROM stands for id, user, organisation, source, use_case, group
(what belongs together, such as the tree of a chat: `hygiene` never splits it) and consent (true or
false: may this be used for training?). A prompt may have any other field too: it reaches a reward.

A prompt is a text, or a chat: a list of {role, content} messages, which is also read as the
transcript that HH uses. `annotations` is the metadata of a prompt in Table 7 of Ouyang et al. 2022.

A comparison has K of 2 to 9 completions and as many ranks: 1 is best, and equal ranks are ties.
Labels of pairs that are no ranking stand in `pairs` instead (`schemas.Comparison`).
`ratings` is Table 3's metadata of each completion, or that of Fig. 11 for the continuation of a
text. `sources` says where each completion is from: {model, temperature, seed}, or a text, which is
the name of the model.

A few_shot record is a labeler's instruction with at least two {input, output} pairs.

`read` checks every row before it returns anything and lists all problems in one error: nothing is
skipped. `files` knows the layouts in which rows stand in a file. `each` takes one row at a time,
for files of any length.
"""

from __future__ import annotations

import bz2
import dataclasses
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.data.records import files, places, validation
from instructjax.data.records.places import Row
from instructjax.data.records.problems import Problems
from instructjax.data.records.schemas import (
  ANNOTATIONS,
  CONTINUATION,
  DERIVED,
  KINDS,
  RATINGS,
  Comparison,
  Demonstration,
  FewShot,
  K,
  Labelled,
  Message,
  Prompt,
  Record,
  RecordError,
  Text,
)
from instructjax.data.records.validation import TURN, chat, transcript
from instructjax.errors import UserError
from instructjax.system import atomic, jsons

# --- spellings ---


class Whole(NamedTuple):
  """A spelling that needs all the rows at once, because a record is made of several of them.

  `spell` takes (place, row) pairs and the kind of record. It gives pairs of a place and the fields
  of a record, or of a place and what is wrong there.
  """

  spell: Callable[
    [list[tuple[str, dict[str, Any]]], str], Iterable[tuple[str, dict[str, Any] | RecordError]]
  ]


# A spelling turns a row of a file, and the kind of record that is wanted, into the fields of a
# record. It raises RecordError where it cannot. `formats` and `feedback` have the public ones.
Spelling = Callable[[dict[str, Any], str], dict[str, Any]] | Whole


def native(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Returns the row as it is: the spelling of files that have our own field names."""
  return row


# --- reading ---


def read(path: str | Path, kind: str, spelling: Spelling = native) -> list:
  """Returns all records of a file, in any layout of `files`.

  Raises:
    UserError: with a line for every problem: the place, the field and what to do.
  """
  path = Path(path)
  records, problems = collect(files.rows(path), kind, spelling, name=str(path))
  report(problems)
  return records


def parse(
  rows: Iterable[Any], kind: str, spelling: Spelling = native, *, name: str = "data"
) -> list:
  """Returns the records of rows, which are dicts or lines of JSON.

  `name` says in messages where the rows are from.

  Raises:
    UserError: with a line for every problem, as `read` does.
  """
  records, problems = scan(rows, kind, spelling, name=name)
  report(problems)
  return records


def scan(
  rows: Iterable[Any],
  kind: str,
  spelling: Spelling = native,
  *,
  name: str = "data",
  empty_completions: bool = False,
) -> tuple[list, list[str]]:
  """Returns the records of rows and the problems, each of them as `name:line: problem`.

  Every row gives a record or at least one problem. With a `Whole` spelling a record may be made of
  several rows, and a row need not give any. With `empty_completions` a comparison may rank an empty
  text.

  Raises:
    UserError: for an unknown kind.
  """
  placed_rows = places.numbered(rows, name)
  return collect(placed_rows, kind, spelling, name=name, empty_completions=empty_completions)


def collect(
  rows: Iterable[Row],
  kind: str,
  spelling: Spelling = native,
  *,
  name: str = "data",
  empty_completions: bool = False,
) -> tuple[list, list[str]]:
  """Returns the records of rows with places, and the problems, as `scan` does.

  Raises:
    UserError: for an unknown kind, and what the rows raise.
  """
  records, all_problems = [], []
  for record, problems in each(
    rows, kind, spelling, name=name, empty_completions=empty_completions
  ):
    if record is not None:
      records.append(record)
    all_problems += problems
  return records, all_problems


def each(
  rows: Iterable[Row],
  kind: str,
  spelling: Spelling = native,
  *,
  name: str = "data",
  empty_completions: bool = False,
) -> Iterator[tuple[Record | None, list[str]]]:
  """Yields each record with no problem, or none with its problems. One row is in memory at a time.

  No rows at all are a problem.

  Raises:
    UserError: for an unknown kind, and what the rows raise.
  """
  if kind not in KINDS:
    raise UserError(f"unknown kind of record {kind!r}; there are {', '.join(KINDS)}")
  is_empty = True
  for place, fields in _spelled(rows, kind, spelling):
    is_empty = False
    try:
      if isinstance(fields, RecordError):
        raise fields
      record = validation.record(fields, kind, place, empty_completions=empty_completions)
    except RecordError as error:
      # The place goes in front here, because a check does not know where its row is from.
      yield None, [places.problem(place, validation.printable(text)) for text in error.args]
    else:
      yield record, []
  if is_empty:
    hint = f"give one JSON object a line with the fields {validation.required(kind)}"
    yield None, [f"{name}: no records; {hint}"]


def _spelled(
  rows: Iterable[Row], kind: str, spelling: Spelling
) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
  """Yields the place of each row with the fields of its record, or with what is wrong there."""
  placed_rows = []
  for place, value in rows:
    try:
      fields = validation.json_object(value)
      if isinstance(spelling, Whole):
        # It is spelled below, when all the rows are there.
        placed_rows.append((place, fields))
        continue
      fields = spelling(fields, kind)
    except RecordError as error:
      yield place, error
    else:
      yield place, fields
  if isinstance(spelling, Whole):
    yield from spelling.spell(placed_rows, kind)


def report(problems: Sequence[str]) -> None:
  """Raises one UserError with the problems, a line each; does nothing where there are none.

  Many problems are a line for each sort of them, and the last line says how many more there are.
  """
  listed = Problems()
  for problem in problems:
    listed.add(problem)
  if listed.count:
    raise UserError("\n".join(listed.lines()))


# --- writing ---

# The fields that the row of each kind may have, in their order.
FIELDS = {
  kind: [field.name for field in dataclasses.fields(kind) if field.name not in DERIVED]
  for kind in KINDS.values()
}


def write(path: str | Path, records: Iterable[Record]) -> None:
  """Writes one JSON object a line without its empty fields, compressed as the name's ending says.

  The file is replaced at once, so that nobody ever finds half of it. One record is in memory at a
  time.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(path) as file:
    compressor = _compressor(path.suffix)
    for record in records:
      file.write(compressor.compress(_line(record)))
    file.write(compressor.flush())


class _Plain:
  """What leaves the lines as they are, in the place of a compressor."""

  def compress(self, content: bytes) -> bytes:
    return content

  def flush(self) -> bytes:
    return b""


def _compressor(suffix: str) -> Any:
  """Returns what compresses a file with this ending. Equal records make equal files."""
  if suffix == ".gz":
    return zlib.compressobj(level=9, wbits=31)  # as gzip, without the time
  if suffix == ".bz2":
    return bz2.BZ2Compressor()
  if suffix == ".xz":
    return lzma.LZMACompressor()
  return _Plain()


def fingerprint(records: Iterable[Record]) -> str:
  """Returns the sha256 of the records as `write` would write them, uncompressed.

  The same data has the same fingerprint in whatever file it is stored.
  """
  digest = hashlib.sha256()
  # One line after the other: a corpus need not fit into memory a second time.
  for record in records:
    digest.update(_line(record))
  return digest.hexdigest()


def as_row(record: Record) -> dict[str, Any]:
  """Returns the JSON object of a record, without its empty fields."""
  fields = {}
  for name in FIELDS[type(record)]:
    value = getattr(record, name)
    if value is not None:
      fields[name] = value
  if isinstance(record, Comparison) and record.pairs:
    # The pairs stand in the place of the ranks, which are empty.
    del fields["ranks"]
  turns = getattr(record, "turns", None)
  if turns:
    # A chat is written as its messages. The transcript is made of them when they are read.
    fields["prompt"] = turns
  if isinstance(record, Prompt):
    # Further fields stand beside the others, as in the row that they were read from.
    fields |= record.fields or {}
  return fields


def _line(record: Record) -> bytes:
  return jsons.text_with_nulls(as_row(record)).encode() + b"\n"


# The names of `schemas` and `validation` that everybody who works with records needs.
__all__ = [
  "ANNOTATIONS",
  "CONTINUATION",
  "KINDS",
  "RATINGS",
  "TURN",
  "Comparison",
  "Demonstration",
  "FewShot",
  "K",
  "Labelled",
  "Message",
  "Prompt",
  "Record",
  "RecordError",
  "Spelling",
  "Text",
  "Whole",
  "as_row",
  "chat",
  "collect",
  "each",
  "fingerprint",
  "native",
  "parse",
  "read",
  "report",
  "scan",
  "transcript",
  "write",
]
