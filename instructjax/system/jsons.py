"""JSON as it is written into files and read back: standard, whole, and with errors in one line.

Python's own writer puts `NaN` and `Infinity` into a file, which no other reader of JSON takes. All
JSON of this package is made here: a number that is not finite is refused, or becomes null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from instructjax.errors import UserError
from instructjax.system import atomic, places
from instructjax.system.places import AnyPath


def text(
  value: Any,
  *,
  indent: int | None = None,
  ascii_only: bool = False,
  sort_keys: bool = False,
  default: Callable[[Any], Any] | None = None,
) -> str:
  """Returns a value as JSON.

  `default` makes something of what JSON has no form for.

  Raises:
    ValueError: it holds a number that is not finite; the message names its place.
    TypeError: it holds what JSON has no form for.
  """
  try:
    return json.dumps(
      value,
      indent=indent,
      ensure_ascii=ascii_only,
      sort_keys=sort_keys,
      default=default,
      allow_nan=False,
    )
  except ValueError as error:
    place = _not_finite(value)
    if not place:
      raise  # a value that contains itself, for example
    raise ValueError(f"{place}, which JSON does not have") from error


def text_with_nulls(value: Any, **options: Any) -> str:
  """Returns a value as JSON with null in the place of every number that is not finite.

  `options` are those of `text`.
  """
  try:
    return text(value, **options)
  except ValueError:  # almost never, so that nothing is copied
    return text(finite(value), **options)


def lines(rows: Iterable[Any]) -> str:
  """Returns one line of JSON for each row, with nulls as `text_with_nulls` has them."""
  return "".join(text_with_nulls(row) + "\n" for row in rows)


def finite(value: Any) -> Any:
  """Returns the value with null in the place of every number that is not finite: it is unknown."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {name: finite(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [finite(part) for part in value]
  return value


def write(path: AnyPath, value: Any, indent: int | None = 2) -> None:
  """Leaves a value in a file, whole or not at all; a number that is not finite becomes null.

  Raises:
    OSError: the file could not be written; what was there before is untouched.
  """
  atomic.replace(path, text_with_nulls(value, indent=indent) + "\n")


def read(path: AnyPath, remedy: str) -> Any:
  """Returns the value of a file that `write` left.

  Raises:
    UserError: the file is missing or is no JSON. The message ends with `remedy`.
  """
  try:
    with places.reaching(path):
      content = path.read_text(encoding="utf-8")
    return json.loads(content)
  except UserError:  # of a bucket that cannot be reached
    raise
  except (OSError, ValueError, RecursionError) as error:
    problem = error.strerror if isinstance(error, OSError) else error
    raise UserError(f"{path}: cannot be read ({problem}); {remedy}") from error


def read_object(path: AnyPath, remedy: str) -> dict[str, Any]:
  """Returns the object of a file that `write` left.  Raises as `read`, also for another value."""
  value = read(path, remedy)
  if not isinstance(value, dict):
    raise UserError(f"{path}: an object of JSON is expected, this is {text(value)[:40]}; {remedy}")
  return value


def _not_finite(value: Any, place: str = "") -> str:
  """Returns where a number is that is not finite, and what it is; "" where there is none."""
  if isinstance(value, float) and not math.isfinite(value):
    return f"{place or 'the value'} is {value}"
  parts: Iterable[tuple[Any, Any]] = ()
  if isinstance(value, dict):
    parts = ((f"{place}.{name}" if place else name, part) for name, part in value.items())
  elif isinstance(value, list | tuple):
    parts = ((f"{place}[{index}]", part) for index, part in enumerate(value))
  for part_place, part in parts:
    problem = _not_finite(part, str(part_place))
    if problem:
      return problem
  return ""
