"""The five kinds of records, one JSON object a line, and their validation.

  demonstration  prompt, completion           [FROM, annotations]
  comparison     prompt, completions, ranks   [labeler, FROM, annotations, ratings, sources]
  prompt         prompt                       [FROM, annotations]
  few_shot       instruction, pairs           [FROM, annotations]
  text           text                         [id, source]

FROM is id, user, organisation, source, use_case and consent (true or false: may this be used for
training?); `annotations` is Table 7's metadata of a prompt, `ratings` Table 3's of each
completion, or Fig. 11's of a continuation. A prompt is a text, or a chat: a list of {role,
content} messages, which is also read as the transcript that HH uses. A comparison has K of 2 to
9 completions and as many ranks: 1 is best, equal ranks are ties.  `sources` says where each
completion is from: {model, temperature, seed}, or a text for the model. A few_shot record is a
labeler's instruction with at least two {input, output} pairs (see `few_shot`). `read` checks
every line before it returns anything and lists all problems in one error: nothing is skipped.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from instructjax.data.records import validation
from instructjax.data.records.schemas import (
  ANNOTATIONS,
  CONTINUATION,
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
from instructjax.system import atomic


@runtime_checkable
class PathLike(Protocol):
  """What `lines` needs of a path: `pathlib.Path`, or etils' for buckets."""

  @property
  def suffix(self) -> str: ...

  def read_bytes(self) -> bytes: ...


class Whole(NamedTuple):
  """A spelling that needs all rows at once: (line, row) pairs to (line, our fields, or what is
  wrong there) pairs.
  """

  spell: Callable[
    [list[tuple[int, dict[str, Any]]], str], Iterable[tuple[int, dict[str, Any] | RecordError]]
  ]


Spelling = Callable[[dict[str, Any], str], dict[str, Any]] | Whole


def native(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Our own field names: nothing to translate.  `formats` has the other spellings."""
  return row


def read(path: str | Path, kind: str, spelling: Spelling = native) -> list:
  """All records of a JSONL file (gzipped where it ends in .gz).  Record n of the list is line n + 1
  of the file.

  Raises UserError with one line for every problem: the place, the field and what to do.
  """
  path = Path(path)
  return parse(lines(path), kind, spelling, name=str(path))


def parse(
  rows: Iterable[Any], kind: str, spelling: Spelling = native, *, name: str = "data"
) -> list:
  """Records out of rows: dicts, or the text of a JSON object each.  Raises UserError as `read`
  does.
  """
  records, problems = scan(rows, kind, spelling, name=name)
  report(problems)
  return records


def scan(
  rows: Iterable[Any], kind: str, spelling: Spelling = native, *, name: str = "data"
) -> tuple[list, list[str]]:
  """(records, problems): every row gives a record or at least one problem, `name:line: what`.  A
  `Whole` spelling makes of all rows together what it makes of them.

  Raises UserError for an unknown kind.
  """
  if kind not in KINDS:
    raise UserError(f"unknown kind of record {kind!r}; there are {', '.join(KINDS)}")
  records, problems, empty = [], [], True
  for line, row in _spelled(rows, kind, spelling):
    empty = False
    try:
      if isinstance(row, RecordError):
        raise row
      records.append(validation.record(row, kind))
    except RecordError as problem:
      problems.extend(f"{name}:{line}: {validation.printable(what)}" for what in problem.args)
  if empty:
    problems.append(
      f"{name}: no records; give one JSON object a line with the fields {validation.required(kind)}"
    )
  return records, problems


def _spelled(
  rows: Iterable[Any], kind: str, spelling: Spelling
) -> Iterator[tuple[int, dict[str, Any] | RecordError]]:
  """(line, our fields or what is wrong) of every row."""
  good = []
  for line, row in enumerate(rows, 1):
    try:
      fields = validation.json_object(row)
      if isinstance(spelling, Whole):
        good.append((line, fields))
        continue
      fields = spelling(fields, kind)
    except RecordError as problem:
      yield line, problem
    else:
      yield line, fields
  if isinstance(spelling, Whole):
    yield from spelling.spell(good, kind)


def report(problems: Sequence[str], shown: int = 20) -> None:
  """Raise one UserError with a line for each problem; nothing where there is none."""
  if problems:
    more = [f"... and {len(problems) - shown} more problems"] if len(problems) > shown else []
    raise UserError("\n".join([*problems[:shown], *more]))


def write(path: str | Path, records: Iterable[Record]) -> None:
  """One JSON object a line without empty fields, gzipped where the name ends in .gz.  Never half a
  file.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  content = b"".join(_line(record) for record in records)
  atomic.replace(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def fingerprint(records: Iterable[Record]) -> str:
  """sha256 of the records as they would be written: the same data has the same fingerprint in any
  file.
  """
  digest = hashlib.sha256()
  for record in records:
    digest.update(_line(record))
  return digest.hexdigest()


def as_row(record: Record) -> dict[str, Any]:
  """A record as it is written: without empty fields, a chat as its messages."""
  fields = {key: value for key, value in dataclasses.asdict(record).items() if value is not None}
  return fields | ({"prompt": turns} if (turns := fields.pop("turns", None)) else {})


def _line(record: Record) -> bytes:
  return json.dumps(as_row(record), ensure_ascii=False).encode() + b"\n"


def lines(path: PathLike) -> list[bytes]:
  """The lines of a file, without the last line's end.  Raises UserError where it cannot be read."""
  try:
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
  except FileNotFoundError:
    raise UserError(f"{path}: no such file; give a JSONL file, one record a line") from None
  except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: a NUL in the name
    raise UserError(
      f"{path}: cannot be read ({error}); give a JSONL file, gzipped if it ends in .gz"
    ) from None
  found = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
  return found[:-1] if found[-1] == b"" else found


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
