"""A reward that is a Python function of the user: `python:FILE.py:FUNCTION`, or by module."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from instructjax.errors import UserError
from instructjax.system import user_code


def open_function(target: str) -> tuple[Callable[..., Any], dict[str, Any]]:
  """Opens FILE.py:FUNCTION or MODULE:FUNCTION.

  Returns:
    A function of lists of texts, and its entry in the manifest. It raises UserError with the
    user's line where the user's function raises anything.

  Raises:
    UserError: there is no such function, as `user_code.find` explains.
  """
  function, file = user_code.find(target)

  def score(*texts: Sequence[str]) -> Any:
    # The user's function may change its arguments, so it gets lists of its own.
    arguments = [list(part) for part in texts]
    try:
      return function(*arguments)
    except Exception as error:
      name = target.rpartition(":")[2]
      place = user_code.innermost(error, file.parent)
      raise UserError(f"{name} raised {user_code.described(error)} at {place}") from error

  # A module inside an archive is not a file.
  digest = ""
  if file.is_file():
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
  return score, {"sha256": digest}
