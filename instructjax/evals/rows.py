"""Rows of evaluation data, from any source of `data.sources`, CSV and TSV files and JSON arrays.

Sources are JSONL, Parquet, prepared TFDS data sets, the hub and buckets. A file whose name ends in
.csv or .tsv names its columns in the first line. One whose name ends in .json may be an array of
objects; the number after its name in a message is then that of the object.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from instructjax.data.records import places, records, sources, validation
from instructjax.data.records.records import RecordError
from instructjax.errors import UserError
from instructjax.system import jsons

T = TypeVar("T")
SHOWN = 60  # characters of a wrong value in a message


def read(
  source: str,
  convert: Callable[[Mapping[str, Any]], T],
  *,
  folder: str | None = None,
) -> list[T]:
  """Returns convert(row) of every row of a source, in order.

  Args:
    source: the source.
    convert: makes an item of a row. It raises RecordError, with a message that begins with the name
      of the field, for a row that is not as expected.
    folder: where TFDS data sets were prepared; None is the default of TFDS.

  Raises:
    UserError: if there is no row or a bad one; it has a line with file and line for every bad row.
  """
  converted: list[T] = []
  problems: list[str] = []
  for part in _parts(source, folder):
    for place, row in part.rows():
      try:
        converted.append(convert(validation.json_object(row)))
      except RecordError as problem:
        problems += [places.problem(place, complaint) for complaint in problem.args]
      except KeyError as problem:
        problems.append(places.problem(place, f"{problem.args[0]}: missing"))
  records.report(problems)
  if not converted:
    raise UserError(f"{source}: holds no rows; give evaluation data, one JSON object a line")
  return converted


def named(text: str, default: str) -> dict[str, str]:
  """Returns {name: source} of "NAME=SOURCE; NAME=SOURCE"; a single source may go without a name.

  Raises:
    UserError: if a name occurs twice, or one of several sources has none.
  """
  source_by_name: dict[str, str] = {}
  parts = [part.strip() for part in text.split(";")]
  parts = [part for part in parts if part]
  for part in parts:
    match = re.fullmatch(r"([A-Za-z][\w.-]*)=(.+)", part)
    if match:
      name, source = match[1], match[2].strip()
    elif len(parts) == 1:
      name, source = default, part
    else:
      raise UserError(f"{part!r}: of several each needs a name, NAME=SOURCE; NAME=SOURCE")
    if name in source_by_name:
      raise UserError(f"{text!r}: the name {name!r} occurs twice")
    source_by_name[name] = source
  return source_by_name


# --- reading ---


def _parts(source: str, folder: str | None) -> list[sources.Part]:
  """Returns the files of a source."""
  if source.endswith((".csv", ".tsv")):
    return [sources.Part(source, lambda: places.numbered(_table(Path(source)), source))]
  return sources.parts(source, folder)


def _table(path: Path) -> Iterator[Mapping[str, str]]:
  """Yields the rows of a CSV or TSV file.

  Raises:
    UserError: if the file cannot be read, or a line has another number of cells than the first.
  """
  is_tsv = path.suffix == ".tsv"
  # In a TSV file a quotation mark is a character like any other.
  quoting = csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL
  delimiter = "\t" if is_tsv else ","
  try:
    # utf-8-sig drops the byte order mark that spreadsheets write.
    with path.open(encoding="utf-8-sig", newline="") as lines:
      table = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
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


# --- fields ---


def text(row: Mapping[str, Any], field: str) -> str:
  """Returns a text that is not empty.

  Raises:
    RecordError: if the field holds anything else.
  """
  value = row.get(field)
  if not isinstance(value, str) or not value.strip():
    raise RecordError(f"{field}: a text is expected, this is {_shortened(value)}")
  return value


def texts(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
  """Returns a list of texts.

  Raises:
    RecordError: if the field holds anything else.
  """
  value = row.get(field)
  if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
    return tuple(value)
  raise RecordError(f"{field}: a list of texts is expected, this is {_shortened(value)}")


def choice(row: Mapping[str, Any], field: str, count: int) -> int:
  """Returns a whole number from 0 to count - 1.

  Raises:
    RecordError: if the field holds anything else.
  """
  value = row.get(field)
  if type(value) is int and 0 <= value < count:  # not isinstance: true and false are no numbers
    return value
  message = f"{field}: a whole number from 0 to {count - 1} is expected, this is {value!r}"
  if value == -1:  # how public test sets hide their answers
    message += "; the answers of this split are not public, use train or validation"
  raise RecordError(message)


def _shortened(value: Any) -> str:
  """Returns the beginning of a value as JSON, for a message."""
  return jsons.text_with_nulls(value, default=str)[:SHOWN]
