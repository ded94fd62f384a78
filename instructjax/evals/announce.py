"""What `instructjax eval` says while it works: lines at once, and one every 15 seconds after that.

The lines go to stderr, from the first process alone. A thread prints them, so that they come
during a long batch, while a model is opened and while a judge thinks. On a terminal a bar shows
the steps as well.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from instructjax.runs.progress import duration, progressing

EVERY = 15.0  # seconds between two lines at most


class Voice(NamedTuple):
  """say(line) prints a line at once; doing(what) is repeated every 15 seconds until the next."""

  say: Callable[[str], None]
  doing: Callable[[str], None]


SILENT = Voice(lambda line: None, lambda what: None)


@contextlib.contextmanager
def speaking(every: float = EVERY) -> Iterator[Voice]:
  """Opens a voice, whose thread ends with the block whatever happens."""
  if jax.process_index() > 0:
    yield SILENT
    return
  begin = time.monotonic()
  activity = ""
  over = threading.Event()

  def say(line: str) -> None:
    print(f"eval: {line}", file=sys.stderr, flush=True)

  def doing(what: str) -> None:
    nonlocal activity
    activity = what

  def repeat() -> None:
    while not over.wait(every):
      if activity:
        say(f"{activity}  ({duration(time.monotonic() - begin)})")

  thread = threading.Thread(target=repeat, daemon=True)
  thread.start()
  try:
    yield Voice(say, doing)
  finally:
    over.set()
    thread.join()


@contextlib.contextmanager
def stepping(voice: Voice, name: str, steps: int) -> Iterator[Callable[[int, str], None]]:
  """Opens a part of so many steps; yields a function (steps done, what else to say)."""

  def show(done: int, more: str = "") -> None:
    voice.doing(f"{name}  {done}/{steps}{more}")
    if bar is not None:
      bar.show(done, {})

  with contextlib.ExitStack() as stack:
    bar = None
    if sys.stderr.isatty():
      bar = stack.enter_context(progressing(name, 0, steps))
    show(0)
    yield show


def seconds_left(costs: Sequence[float], seconds: Sequence[float]) -> float | None:
  """Returns the seconds that the rest of the steps takes, by those that were measured.

  `costs` are of all steps, in any unit, and `seconds` of the first of them that are done, less than
  0 where nothing was done. The first one compiles its program, and does not count once there are
  others. None where nothing was measured.
  """
  measured = [(cost, took) for cost, took in zip(costs, seconds, strict=False) if took >= 0]
  if not measured:
    return None
  if len(measured) > 1:
    measured = measured[1:]
  spent = sum(took for _, took in measured)
  rate = spent / sum(cost for cost, _ in measured)
  return rate * sum(costs[len(seconds) :])


def about(seconds: float) -> str:
  """A time as an estimate: "less than a minute", "about 3 minutes"."""
  if seconds < 60:
    return "less than a minute"
  minutes = math.ceil(seconds / 60 - 0.5)
  return f"about {minutes} minute{'s' if minutes > 1 else ''}"
