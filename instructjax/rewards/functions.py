"""A reward that is a Python function of the user: python:FILE.py:FUNCTION or
python:MODULE:FUNCTION.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from instructjax.errors import UserError
from instructjax.system import user_code


def open_function(target: str) -> tuple[Callable[..., Any], dict[str, Any]]:
  """(the function of lists of texts, what the manifest says about it).

  Raises UserError as `user_code.find` does; the function returned raises one, which names the
  line, where the user's raises anything.
  """
  function, home = user_code.find(target)

  def score(*texts: Sequence[str]) -> Any:
    try:
      return function(*map(list, texts))
    except Exception as error:
      name, place = target.rpartition(":")[2], user_code.innermost(error, home.parent)
      raise UserError(f"{name} raised {user_code.described(error)} at {place}") from error

  digest = hashlib.sha256(home.read_bytes()).hexdigest() if home.is_file() else ""
  return score, {"sha256": digest}
