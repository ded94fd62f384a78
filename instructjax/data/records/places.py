"""Where a row stands, in the one way in which all messages name it.

data.jsonl:3        line 3 of a file, counted from 1; row 3 of a table or a data set
data.json[1]        element 1 of a JSON array, counted from 0
data.jsonl:3: user  a field of the first
data.json[1].user   a field of the second
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Row(NamedTuple):
  """A row and its place.

  `value` is an object of fields, or whatever else stands there, or a RecordError that says why it
  cannot be read.
  """

  place: str
  value: Any


def line(name: str, number: int) -> str:
  """Returns the place of a line or a row, counted from 1."""
  return f"{name}:{number}"


def element(name: str, index: int) -> str:
  """Returns the place of an element of a JSON array, counted from 0."""
  return f"{name}[{index}]"


def numbered(rows: Iterable[Any], name: str) -> Iterator[Row]:
  """Yields each row of a data set with its place."""
  for number, row in enumerate(rows, 1):
    yield Row(line(name, number), row)


def of(record: Any, name: str, index: int) -> str:
  """Returns the place of a record: where it was read, or else its number in a list.

  `index` is that of the record in the list, from 0, and `name` is what the list is called. A record
  that was made by a program was not read anywhere.
  """
  return record.place or line(name, index + 1)


def field(place: str, name: str) -> str:
  """Returns the place of a field."""
  return f"{place}.{name}" if place.endswith("]") else f"{place}: {name}"


def problem(place: str, message: str) -> str:
  """Returns a message with its place in front. It may begin with a field, as "user: empty" does."""
  name, colon, rest = message.partition(": ")
  if colon and " " not in name:
    return f"{field(place, name)}: {rest}"
  return f"{place}: {message}"
