"""JSON that others wrote: of model folders, servers and settings files.

Python's own reader takes more than JSON allows (NaN, Infinity, the last of two equal keys), and
fails in four ways. Here everything that is no plain JSON is one `UserError` with its place.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from instructjax.errors import UserError

DEEPEST = 64  # objects and lists in each other; no file that we read has more than ten
# The largest whole number. Float64 must hold it; some tokenizers write 1e30 for "no limit".
LARGEST = 10**300


def parse(text: str | bytes, place: str, remedy: str) -> Any:
  """Returns the value of a JSON text.

  Args:
    text: The text, or its bytes in UTF-8.
    place: Where the text is from, which begins the error.
    remedy: What to do about it, which ends the error.

  Raises:
    UserError: for anything but JSON, and for what cannot be used: a number that is infinite or
      larger than float64, a key that occurs twice, half a character, and too many levels.
  """
  try:
    return decode(text)
  except ValueError as error:
    raise UserError(f"{place}: malformed JSON ({error}); {remedy}") from None


def decode(text: str | bytes) -> Any:
  """Returns the value of a JSON text; raises ValueError where `parse` raises UserError."""
  if isinstance(text, bytes):
    text = text.decode("utf-8")
  try:
    value = json.loads(
      text,
      object_pairs_hook=_unique_keys,
      parse_constant=_refuse_constant,
      parse_float=_finite,
      parse_int=_whole,
    )
  except RecursionError:
    raise ValueError(f"more than {DEEPEST} objects and lists in each other") from None
  _check_parts(value)
  return value


def read_object(path: Path, missing: str, remedy: str) -> dict[str, Any]:
  """Returns the JSON object in a file.

  Args:
    path: The file.
    missing: What to do where it cannot be read.
    remedy: What to do where it holds something else.

  Raises:
    UserError: where there is none.
  """
  try:
    content = path.read_bytes()
  except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{path}: cannot be read ({reason}); {missing}") from None
  value = parse(content, str(path), remedy)
  if not isinstance(value, dict):
    raise UserError(f"{path}: holds no JSON object; {remedy}")
  return value


def shown(value: Any, limit: int = 80) -> str:
  """Returns a value for an error: on one line, of at most `limit` characters."""
  text = repr(value)
  return text if len(text) <= limit else text[: limit - 3] + "..."


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns an object as a dict; of two values under one key Python would drop the first."""
  fields = dict(pairs)
  if len(fields) < len(pairs):
    keys = [key for key, _ in pairs]
    repeated = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f"the key {shown(repeated)} occurs twice in one object")
  return fields


def _refuse_constant(name: str) -> float:
  raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
  number = float(text)
  if math.isinf(number):
    raise ValueError(f"{text[:40]} is larger than float64 holds")
  return number


def _whole(text: str) -> int:
  # Python refuses to read more than 4,300 digits, with advice for programmers.
  if len(text) > len(str(LARGEST)):
    raise ValueError(f"a whole number of {len(text)} digits is larger than float64 holds")
  return int(text)


def _check_parts(value: Any) -> None:
  """Raises ValueError for parts that lie too deep and for texts that UTF-8 cannot express."""
  waiting = [(value, 0)]
  while waiting:
    part, depth = waiting.pop()
    if depth > DEEPEST:
      raise ValueError(f"more than {DEEPEST} objects and lists in each other")
    if isinstance(part, dict):
      waiting += [(key, depth + 1) for key in part]
      waiting += [(inner, depth + 1) for inner in part.values()]
    elif isinstance(part, list):
      waiting += [(inner, depth + 1) for inner in part]
    elif isinstance(part, str) and not part.isascii():
      part.encode()  # a UnicodeEncodeError is a ValueError
