"""The one exception that is meant for users.

The command line prints its message as one line and exits with code 2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
  """A mistake that the user can correct.

  The message carries the numbers, the place (file, line, field) and the remedy.
  """


@contextlib.contextmanager
def naming(field: str, value: object) -> Iterator[None]:
  """Puts the name of a setting in front of a UserError whose message does not name it.

  What lies deep (a reader of files, a loader of weights) does not know which setting led there. A
  message that begins with another setting is left as it is: that one is to blame.
  """
  try:
    yield
  except UserError as error:
    if field in str(error) or str(error).startswith("config."):
      raise
    # A message that begins with the value says it already.
    setting = field if str(error).startswith(str(value)) else f"{field}={value}"
    raise UserError(f"{setting}: {error}") from error
