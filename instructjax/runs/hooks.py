"""A user's own function that looks on while a stage trains, and may stop it.

It is `FILE.py:FUNCTION` or `package.module:FUNCTION`, as a reward is, and is called with the number
of a step, the metrics of that step and the state after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from instructjax.errors import UserError
from instructjax.system import user_code
from instructjax.types import TrainState

# What a user's function does: (step, metrics, state) -> whether to stop, or why.
Function = Callable[[int, dict[str, float], TrainState], Any]


class Hook(NamedTuple):
  """A function that is called after every `every`-th step and after the last one.

  `call(step, metrics, state)` returns why the run stops, and "" where it goes on. `sha256` is that
  of the file in which the function is defined, "" where it is in none.
  """

  name: str
  every: int
  call: Callable[[int, Mapping[str, float], TrainState], str]
  sha256: str = ""


def hook(function: Function, every: int = 1, *, name: str = "", file: Path | None = None) -> Hook:
  """Returns the hook of a Python function.

  The function gets the metrics as floats by name, those of an evaluation of the same step among
  them, and the state, whose arrays the next step takes over: what it keeps, it copies. It returns
  True or a text, which says why, to stop the run; None or False let it go on. `file` is where its
  code lies, and `name` what messages call it.

  With several processes each of them calls it, so that it may compute on the state, and what the
  first one returns counts for all.

  The hook raises UserError, with the line, where the function raises anything, and where it returns
  something else.
  """
  shown_name = name or getattr(function, "__qualname__", "the hook")
  code = getattr(function, "__code__", None)  # an object that can be called has none
  own_file = file or (Path(code.co_filename) if code else None)
  folder = own_file.parent if own_file else Path.cwd()
  # What is typed into Python has no file.
  has_file = own_file is not None and own_file.is_file()
  sha256 = hashlib.sha256(own_file.read_bytes()).hexdigest() if has_file else ""

  def call(step: int, metrics: Mapping[str, float], state: TrainState) -> str:
    with user_code.guarding(shown_name, folder):
      answer = function(step, dict(metrics), state)
    reason = _reason(shown_name, answer)
    if jax.process_count() == 1:
      return reason
    from jax.experimental import multihost_utils

    is_stop = multihost_utils.broadcast_one_to_all(np.int32(bool(reason)))
    return (reason or "the first process stopped it") if is_stop else ""

  return Hook(shown_name, every, call, sha256)


def open_hook(target: str, every: int = 1) -> Hook:
  """Returns the hook of `FILE.py:FUNCTION` or `package.module:FUNCTION`.

  Raises:
    UserError: there is no such function, as `user_code.find` explains.
  """
  function, file = user_code.find(target)
  return hook(function, every, name=target, file=file)


def _reason(name: str, answer: Any) -> str:
  """Returns why a function that returned this stops the run; "" where it does not.

  Raises:
    UserError: where it says neither.
  """
  if answer is None:
    return ""
  if isinstance(answer, str) and answer.strip():
    return answer.strip()
  # A comparison with an array of NumPy or JAX is a truth value of theirs.
  is_scalar = isinstance(answer, bool | np.bool_ | jax.Array) and np.ndim(answer) == 0
  if is_scalar and np.asarray(answer).dtype == np.bool_:
    return "it returned True" if answer else ""
  raise UserError(
    f"{name}: returned {type(answer).__name__} {str(answer)[:40]!r}; return True or a text to stop "
    "the run, and None or False to go on"
  )
