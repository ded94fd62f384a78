"""Values of files that describe models, checked as they are read.

A file may say anything. What comes out of these functions has the type and the range that the
models compute with, and the error for everything else names the file and the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.models import transformer
from instructjax.settings.fields import LARGEST, Limits
from instructjax.system.plain_json import shown

DEEPEST = 10_000  # layers
EPSILON = Limits(above=0, below=1)  # of a norm
# The base of the rotation. At 1 nothing rotates; the largest that is published is 1e11.
BASE = Limits(low=1, high=1e15)
SHARE = Limits(above=0, high=1)  # of the features of a head
FACTOR = Limits(above=0, high=1e9)  # of the stretched context
CAP = Limits(low=0, high=1e9)  # of scores; 0 is none


def size(value: Any, key: str, path: Path, high: int = LARGEST) -> int:
  """Returns a whole number from 1 to `high`."""
  # Python counts True among the whole numbers.
  if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
    raise UserError(
      f"{path}: '{key}' is {shown(value)}; it must be a positive whole number, at most {high:,}"
    )
  return value


def number(value: Any, key: str, path: Path, limits: Limits) -> float:
  """Returns a number within the limits, which no NaN and no infinity is."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  # A comparison with NaN is false, so that `hold` alone would take it.
  if not is_number or value != value or not limits.hold(value):
    raise UserError(f"{path}: '{key}' is {shown(value)}; it must be a number {limits.words()}")
  return float(value)


def flag(value: Any, key: str, path: Path) -> bool:
  """Returns true or false; a text such as "false" is neither."""
  if not isinstance(value, bool):
    raise UserError(f"{path}: '{key}' is {shown(value)}; it must be true or false")
  return value


def mapping(value: Any, key: str, path: Path) -> dict[str, Any]:
  """Returns an object; null and what is left out are an empty one."""
  if value is None:
    return {}
  if not isinstance(value, dict):
    raise UserError(f"{path}: '{key}' is {shown(value)}; it must be an object")
  return value


def items(value: Any, key: str, path: Path) -> list[Any]:
  """Returns a list; null and what is left out are an empty one."""
  if value is None:
    return []
  if not isinstance(value, list):
    raise UserError(f"{path}: '{key}' is {shown(value)}; it must be a list")
  return value


def heads(config: Any, path: Path) -> None:
  """Checks that heads divide the width, that key/value heads divide them, and what rotates.

  Raises:
    UserError: where they do not; `models.build` would say so without the file.
  """
  kv_heads = getattr(config, "kv_heads", config.heads)
  own_head_width = getattr(config, "head_width", 0)
  try:
    transformer.check(config.width, config.heads, kv_heads, own_head_width)
  except UserError as error:
    raise UserError(f"{path}: {error}") from None
  head_width = own_head_width or config.width // config.heads
  # In a GPT 0 means that positions are learned, and in a Llama that all features rotate.
  rotary = config.rotary
  if not rotary and hasattr(config, "kv_heads"):
    rotary = head_width
  if rotary % 2 or rotary > head_width:
    raise UserError(
      f"{path}: {rotary} of the {head_width} features of a head rotate; they must be an even number"
    )
