"""The checker of annotated functions; an int is a float, as PEP 484 has it."""

from __future__ import annotations

from collections.abc import Callable

from beartype import BeartypeConf, beartype

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
  """Returns the function with a check of its annotations at each call."""
  return _checked(function)
