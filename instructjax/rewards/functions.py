"""A reward that is a Python function of the user: `python:FILE.py:FUNCTION`, or by module."""

from __future__ import annotations

import copy
import hashlib
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from instructjax.errors import UserError
from instructjax.system import user_code

# The further fields of the prompt of a response, by name.
Fields = Mapping[str, Any]
# The parameter of a user's function that gets those of each response.
FIELDS = "fields"


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
    user's line where the user's function raises anything. A user's function that has a parameter
    `fields` gets what it is called with under that name; any other one does not.

  Raises:
    UserError: there is no such function, as `user_code.find` explains.
  """
  function, file = user_code.find(target)
  name = target.rpartition(":")[2]

  def call(arguments: Sequence[list[str]], named: Mapping[str, Any]) -> Any:
    with user_code.guarding(name, file.parent):
      return function(*arguments, **named)

  def score(*texts: Sequence[str], fields: Sequence[Fields] | None = None) -> Any:
    # The user's function may change its arguments, so it gets lists of its own.
    arguments = [list(part) for part in texts]
    named = {}
    if fields is not None and takes_fields(function):
      named = {FIELDS: [copy.deepcopy(dict(row)) for row in fields]}
    if not limit:
      return call(arguments, named)
    return _within(limit, name, partial(call, arguments, named))

  # A module inside an archive is not a file.
  digest = ""
  if file.is_file():
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
  return score, {"sha256": digest}


def takes_fields(function: Callable[..., Any]) -> bool:
  """Returns whether a user's function has a parameter `fields`."""
  try:
    return FIELDS in inspect.signature(function).parameters
  except (TypeError, ValueError):
    # Some functions of C do not say what they take.
    return False


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
