"""A reward that is a Python function of the user: `python:FILE.py:FUNCTION`, or by module."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from instructjax.errors import UserError
from instructjax.system import user_code


def open_function(
  target: str,
  limit: float = 0.0,
) -> tuple[Callable[..., Any], dict[str, Any]]:
  """Opens FILE.py:FUNCTION or MODULE:FUNCTION.

  Args:
    target: The function.
    limit: The seconds that a call may take; 0 sets no limit.

  Returns:
    A function of lists of texts, and its entry in the manifest. It raises UserError with the
    user's line where the user's function raises anything.

  Raises:
    UserError: there is no such function, as `user_code.find` explains.
  """
  function, file = user_code.find(target)
  name = target.rpartition(":")[2]

  def call(arguments: Sequence[list[str]]) -> Any:
    with user_code.guarding(name, file.parent):
      return function(*arguments)

  def score(*texts: Sequence[str]) -> Any:
    # The user's function may change its arguments, so it gets lists of its own.
    arguments = [list(part) for part in texts]
    if not limit:
      return call(arguments)
    return _within(limit, name, partial(call, arguments))

  # A module inside an archive is not a file.
  digest = ""
  if file.is_file():
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
  return score, {"sha256": digest}


def _within(limit: float, name: str, call: Callable[[], Any]) -> Any:
  """Returns call(), which runs in a thread of its own.

  Python cannot end a thread from outside. It goes on until the program ends, and its result is
  dropped.

  Raises:
    UserError: where it takes longer than `limit` seconds.
  """
  result: Future[Any] = Future()

  def run() -> None:
    try:
      result.set_result(call())
    # Nothing else leaves the guard around the user's function.
    except (UserError, KeyboardInterrupt) as error:
      result.set_exception(error)

  threading.Thread(target=run, name=f"reward {name}", daemon=True).start()
  try:
    return result.result(limit)
  except TimeoutError:
    raise UserError(
      f"{name} took longer than the {limit:g} seconds of #limit=; make it faster or raise the limit"
    ) from None
