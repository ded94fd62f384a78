"""The error that a user can fix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(Exception):
  """Something that the user can fix: the message has the numbers, the place and the remedy."""


@contextlib.contextmanager
def naming(field: str, value: object) -> Iterator[None]:
  """Puts the name of a setting in front of a UserError whose message does not name it.

  What lies deep (a reader of files, a loader of weights) does not know which setting led there.
  """
  try:
    yield
  except UserError as error:
    if field in str(error):
      raise
    raise UserError(f"{field}={value}: {error}") from error
