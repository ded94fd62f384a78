"""Rows of evaluation data from any source of `data.sources` (JSONL, Parquet, prepared TFDS data
sets, the hub, buckets), and from files that end in .csv or .tsv, whose first line names the
columns.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from instructjax.data.records import records, sources
from instructjax.data.records.records import RecordError
from instructjax.errors import UserError

T = TypeVar("T")


def read(
  source: str, convert: Callable[[Mapping[str, Any]], T], *, folder: str | None = None
) -> list[T]:
  """convert(row) of every row of a source, in order.

  `convert` raises RecordError, its message beginning with the field, for a row that is not what
  it expects.  Raises UserError with a line for every bad row, naming the file and the line, and
  where there is no row.
  """
  found, problems = [], []
  for part in _parts(source, folder):
    for line, row in enumerate(part.rows(), 1):
      try:
        found.append(convert(_object(row)))
      except RecordError as problem:
        problems += [f"{part.name}:{line}: {what}" for what in problem.args]
      except KeyError as problem:
        problems.append(f"{part.name}:{line}: {problem.args[0]}: missing")
  records.report(problems)
  if not found:
    raise UserError(f"{source}: holds no rows; give evaluation data, one JSON object a line")
  return found


def named(text: str, default: str) -> dict[str, str]:
  """{name: source} of "NAME=SOURCE; NAME=SOURCE"; a single source needs no name.  Raises UserError
  for a name that stands twice and for several without names.
  """
  found: dict[str, str] = {}
  parts = [part.strip() for part in text.split(";") if part.strip()]
  for part in parts:
    match = re.fullmatch(r"([A-Za-z][\w.-]*)=(.+)", part)
    if not match and len(parts) > 1:
      raise UserError(f"{part!r}: of several each needs a name, NAME=SOURCE; NAME=SOURCE")
    name, source = (match[1], match[2].strip()) if match else (default, part)
    if name in found:
      raise UserError(f"{text!r}: the name {name!r} stands twice")
    found[name] = source
  return found


def _parts(source: str, folder: str | None) -> list[sources.Part]:
  if source.endswith((".csv", ".tsv")):
    return [sources.Part(source, lambda: _table(Path(source)))]
  return sources.parts(source, folder)


def _table(path: Path) -> Iterator[Mapping[str, str]]:
  try:
    with path.open(encoding="utf-8-sig", newline="") as lines:
      quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
      table = csv.reader(
        lines, delimiter="\t" if path.suffix == ".tsv" else ",", quoting=quoting, strict=True
      )
      names = next(table, [])
      for cells in table:
        if len(cells) != len(names):
          raise UserError(
            f"{path}:{table.line_num}: {len(cells)} cells, the first line names {len(names)} "
            "columns"
          )
        yield dict(zip(names, cells, strict=True))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"{path}: cannot be read as a table in UTF-8 ({error})") from None


def _object(row: Any) -> Mapping[str, Any]:
  if isinstance(row, bytes):
    try:
      row = json.loads(row)
    except (ValueError, RecursionError) as error:
      raise RecordError(f"not JSON ({error})") from None
  if not isinstance(row, Mapping):
    raise RecordError(f"a JSON object is expected, this is a {type(row).__name__}")
  return row


def text(row: Mapping[str, Any], field: str) -> str:
  """A text that is not empty.  Raises RecordError for anything else."""
  value = row.get(field)
  if not isinstance(value, str) or not value.strip():
    raise RecordError(
      f"{field}: a text is expected, this is "
      f"{json.dumps(value, ensure_ascii=False, default=str)[:60]}"
    )
  return value


def texts(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
  """A list of texts.  Raises RecordError for anything else."""
  value = row.get(field)
  if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
    shown = json.dumps(value, ensure_ascii=False, default=str)[:60]
    raise RecordError(f"{field}: a list of texts is expected, this is {shown}")
  return tuple(value)


def choice(row: Mapping[str, Any], field: str, count: int) -> int:
  """A whole number from 0 to count - 1.  Raises RecordError for anything else; -1 is how public
  test sets hide answers.
  """
  value = row.get(field)
  if type(value) is not int or not 0 <= value < count:
    hidden = (
      "; the answers of this split are not public, use train or validation" if value == -1 else ""
    )
    raise RecordError(
      f"{field}: a whole number from 0 to {count - 1} is expected, this is {value!r}{hidden}"
    )
  return value
