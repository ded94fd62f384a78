"""Reading, checking and writing the five kinds of records, one JSON object a line.

  demonstration  prompt, completion           [FROM, annotations]
  comparison     prompt, completions, ranks   [labeler, FROM, annotations, ratings, sources]
  prompt         prompt                       [FROM, annotations]
  few_shot       instruction, pairs           [FROM, annotations]
  text           text                         [id, source]

The fields in brackets are optional. FROM stands for id, user, organisation, source, use_case, group
(what belongs together, such as the tree of a chat: `hygiene` never splits it) and consent (true or
false: may this be used for training?). A prompt may have any other field too: it reaches a reward.

A prompt is a text, or a chat: a list of {role, content} messages, which is also read as the
transcript that HH uses. `annotations` is the metadata of a prompt in Table 7 of Ouyang et al. 2022.

A comparison has K of 2 to 9 completions and as many ranks: 1 is best, and equal ranks are ties.
`ratings` is Table 3's metadata of each completion, or that of Fig. 11 for the continuation of a
text. `sources` says where each completion is from: {model, temperature, seed}, or a text, which is
the name of the model.

A few_shot record is a labeler's instruction with at least two {input, output} pairs.

`read` checks every line before it returns anything and lists all problems in one error: nothing is
skipped.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from instructjax.data.records import validation
from instructjax.data.records.schemas import (
  ANNOTATIONS,
  CONTINUATION,
  KINDS,
  MADE,
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

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


# --- spellings ---


class Whole(NamedTuple):
  """A spelling that needs all the rows at once, because a record is made of several of them.

  `spell` takes (line, row) pairs and the kind of record. It gives pairs of a line and the fields of
  a record, or of a line and what is wrong there.
  """

  spell: Callable[
    [list[tuple[int, dict[str, Any]]], str], Iterable[tuple[int, dict[str, Any] | RecordError]]
  ]


# A spelling turns a row of a file, and the kind of record that is wanted, into the fields of a
# record. It raises RecordError where it cannot. `formats` and `feedback` have the public ones.
Spelling = Callable[[dict[str, Any], str], dict[str, Any]] | Whole


def native(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Returns the row as it is: the spelling of files that have our own field names."""
  return row


# --- reading ---


def read(path: str | Path, kind: str, spelling: Spelling = native) -> list:
  """Returns all records of a JSONL file, which is gzipped where its name ends in .gz.

  Record n of the list is line n + 1 of the file, unless the spelling is a `Whole` one.

  Raises:
    UserError: with a line for every problem: the place, the field and what to do.
  """
  path = Path(path)
  return parse(lines(path), kind, spelling, name=str(path))


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
  rows: Iterable[Any], kind: str, spelling: Spelling = native, *, name: str = "data"
) -> tuple[list, list[str]]:
  """Returns the records of rows and the problems, each of them as `name:line: problem`.

  Every row gives a record or at least one problem. With a `Whole` spelling a record may be made of
  several rows, and a row need not give any.

  Raises:
    UserError: for an unknown kind.
  """
  if kind not in KINDS:
    raise UserError(f"unknown kind of record {kind!r}; there are {', '.join(KINDS)}")
  records, problems = [], []
  is_empty = True
  for line, fields in _spelled(rows, kind, spelling):
    is_empty = False
    try:
      if isinstance(fields, RecordError):
        raise fields
      records.append(validation.record(fields, kind))
    except RecordError as error:
      # The place goes in front here, because a check does not know where its row is from.
      problems += [f"{name}:{line}: {validation.printable(message)}" for message in error.args]
  if is_empty:
    hint = f"give one JSON object a line with the fields {validation.required(kind)}"
    problems.append(f"{name}: no records; {hint}")
  return records, problems


def _spelled(
  rows: Iterable[Any], kind: str, spelling: Spelling
) -> Iterator[tuple[int, dict[str, Any] | RecordError]]:
  """Yields the number of each line with the fields of its record, or with what is wrong there."""
  numbered_rows = []
  for line, row in enumerate(rows, 1):
    try:
      fields = validation.json_object(row)
      if isinstance(spelling, Whole):
        # It is spelled below, when all the rows are there.
        numbered_rows.append((line, fields))
        continue
      fields = spelling(fields, kind)
    except RecordError as error:
      yield line, error
    else:
      yield line, fields
  if isinstance(spelling, Whole):
    yield from spelling.spell(numbered_rows, kind)


def report(problems: Sequence[str], limit: int = 20) -> None:
  """Raises one UserError with the first problems, a line each; does nothing where there are none.

  At most `limit` problems are listed, and the last line says how many more there are.
  """
  if not problems:
    return
  messages = list(problems[:limit])
  if len(problems) > limit:
    messages.append(f"... and {len(problems) - limit} more problems")
  raise UserError("\n".join(messages))


@runtime_checkable
class PathLike(Protocol):
  """What `lines` needs of a path: `pathlib.Path` has it, and so have the paths of etils."""

  @property
  def suffix(self) -> str: ...

  def read_bytes(self) -> bytes: ...


def lines(path: PathLike) -> list[bytes]:
  """Returns the lines of a file. An empty line at the end, after the last newline, is none.

  Raises:
    UserError: if the file cannot be read.
  """
  try:
    content = path.read_bytes()
    if path.suffix == ".gz":
      content = gzip.decompress(content)
  except FileNotFoundError:
    raise UserError(f"{path}: no such file; give a JSONL file, one record a line") from None
  # A name with a NUL character is a ValueError.
  except (OSError, EOFError, ValueError, zlib.error) as error:
    raise UserError(
      f"{path}: cannot be read ({error}); give a JSONL file, gzipped if it ends in .gz"
    ) from None
  pieces = content.removeprefix(BYTE_ORDER_MARK).split(b"\n")
  return pieces[:-1] if pieces[-1] == b"" else pieces


# --- writing ---


def write(path: str | Path, records: Iterable[Record]) -> None:
  """Writes one JSON object a line without its empty fields, gzipped where the name ends in .gz.

  The file is replaced at once, so that nobody ever finds half of it.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  content = b"".join(_line(record) for record in records)
  if path.suffix == ".gz":
    # Without the time of the compression, equal records make equal files.
    content = gzip.compress(content, mtime=0)
  atomic.replace(path, content)


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
  fields = {key: value for key, value in dataclasses.asdict(record).items() if value is not None}
  turns = fields.pop("turns", None)
  if turns:
    # A chat is written as its messages. The transcript is made of them when they are read.
    fields["prompt"] = turns
  if isinstance(record, Prompt):
    # Further fields stand beside the others, as in the row that they were read from.
    fields |= fields.pop("fields", {})
  return fields


def _line(record: Record) -> bytes:
  return jsons.text_with_nulls(as_row(record)).encode() + b"\n"


# The names of `schemas` and `validation` that everybody who works with records needs.
__all__ = [
  "ANNOTATIONS",
  "CONTINUATION",
  "KINDS",
  "MADE",
  "RATINGS",
  "TURN",
  "Comparison",
  "Demonstration",
  "FewShot",
  "K",
  "Labelled",
  "Message",
  "PathLike",
  "Prompt",
  "Record",
  "RecordError",
  "Spelling",
  "Text",
  "Whole",
  "as_row",
  "chat",
  "fingerprint",
  "lines",
  "native",
  "parse",
  "read",
  "report",
  "scan",
  "transcript",
  "write",
]
