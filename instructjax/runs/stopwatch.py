"""How long the parts of a step take that are dispatched apart, such as rollout and update of PPO.

A device works through the parts in their order while the host goes on, so a part takes from the end
of the part before it to the moment at which its result is there; what the host does between two
parts belongs to the second. The first part of a step takes from its own dispatch where that is
later. Nobody waits for these moments but who waits for the metrics of the step anyway. A loop that
waits between the parts, as that of PPO does, settles them there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Stopwatch(NamedTuple):
  """The parts of the steps that have been dispatched and not been asked for.

  begin()             a step begins
  mark(name, result)  a part of it is dispatched; a small array of its result is enough
  settle()            waits for all parts so far: where the host waits for the last one anyway, and
                      would otherwise look at the others too late
  seconds()           the seconds of each part of the oldest step, as `time/NAME`; waits for them
  """

  begin: Callable[[], None]
  mark: Callable[[str, Any], None]
  settle: Callable[[], None]
  seconds: Callable[[], dict[str, float]]


class _Part(NamedTuple):
  name: str
  begin: float  # not before this moment
  result: Any


def stopwatch() -> Stopwatch:
  """Returns a stopwatch without any step."""
  waiting: deque[deque[_Part]] = deque()  # of each step the parts whose end is not known
  settled: deque[dict[str, float]] = deque()  # of each step the seconds of the others
  end = 0.0  # of the last part that was waited for

  def begin() -> None:
    waiting.append(deque())
    settled.append({})

  def mark(name: str, result: Any) -> None:
    is_first = not waiting[-1] and not settled[-1]
    waiting[-1].append(_Part(name, time.perf_counter() if is_first else 0.0, result))

  def settle_step(number: int) -> None:
    nonlocal end
    while waiting[number]:
      part = waiting[number].popleft()
      jax.block_until_ready(part.result)
      begun = max(end, part.begin)
      end = time.perf_counter()
      settled[number][f"time/{part.name}"] = end - begun

  def settle() -> None:
    for number in range(len(waiting)):
      settle_step(number)

  def seconds() -> dict[str, float]:
    if not waiting:
      return {}
    settle_step(0)
    waiting.popleft()
    return settled.popleft()

  return Stopwatch(begin, mark, settle, seconds)
