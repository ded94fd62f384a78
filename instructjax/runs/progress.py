"""How far a stage has come: a bar on a terminal, a line now and then elsewhere.

Everything goes to stderr and comes from the first process alone, so that the output of a command
can be piped and several processes do not talk at once.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax

QUIET = 2.0  # seconds before anything is shown, so that a quick stage leaves no trace
EVERY = 10.0  # seconds between lines where there is no terminal

# Seconds over which rich averages the speed for its time left. Its own 30 seconds hold too few
# of the slow steps of a large model.
SPEED_PERIOD = 600

# The metrics that a passer-by looks at, in the order in which they are shown.
SHOWN_METRICS = ("loss", "loss/total", "accuracy", "objective/scores", "objective/kl")


class Progress(NamedTuple):
  """Two functions: `show(step, values)` is called after each step, `close()` at the end."""

  show: Callable[[int, Mapping[str, float]], None]
  close: Callable[[], None]


def open_progress(stage: str, start: int, steps: int) -> Progress:
  """Returns the progress of a stage that goes from step `start` to step `steps`.

  It shows a bar with rate and time left on a terminal and a line now and then elsewhere. It is
  silent for the first two seconds, and throughout where nothing is left to do.
  """
  if jax.process_index() > 0 or start >= steps:
    return Progress(show=lambda step, values: None, close=lambda: None)
  if sys.stderr.isatty():
    return _bar(stage, start, steps)
  return _lines(stage, steps)


@contextlib.contextmanager
def progressing(stage: str, start: int, steps: int) -> Iterator[Progress]:
  """Opens a progress and closes it whatever happens.

  A bar that is left open on a terminal keeps the cursor hidden.
  """
  progress = open_progress(stage, start, steps)
  try:
    yield progress
  finally:
    progress.close()


def _bar(stage: str, start: int, steps: int) -> Progress:
  """Returns a bar of rich, which appears once the stage has run for QUIET seconds."""
  from rich import progress
  from rich.console import Console

  columns = (
    progress.TextColumn("{task.description}"),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TextColumn("{task.fields[rate]}"),
    progress.TimeRemainingColumn(),
    progress.TextColumn("{task.fields[values]}"),
  )
  bar = progress.Progress(
    *columns,
    console=Console(stderr=True),
    speed_estimate_period=SPEED_PERIOD,
  )
  task = bar.add_task(stage, total=steps, completed=start, rate="", values="")
  begin = time.monotonic()
  rate_at = rates()

  def show(step: int, values: Mapping[str, float]) -> None:
    is_quiet = time.monotonic() - begin <= QUIET
    if not bar.live.is_started and not is_quiet:
      bar.start()
    rate = speed(rate_at(step))
    bar.update(task, completed=step, rate=rate, values=brief(values))

  return Progress(show=show, close=bar.stop)


def _lines(stage: str, steps: int) -> Progress:
  """Returns a progress that prints a line every EVERY seconds and one at the end."""
  rate_at = rates()
  begin = time.monotonic()
  last_line = begin

  def show(step: int, values: Mapping[str, float]) -> None:
    nonlocal last_line
    rate = rate_at(step)
    now = time.monotonic()
    is_last = step == steps
    # The last step always gets its line, unless the whole stage was too quick for any.
    is_due = now - last_line >= EVERY or (is_last and now - begin > QUIET)
    if not is_due:
      return
    last_line = now
    if is_last:
      time_text = f"  in {duration(now - begin)}"
    elif rate:
      time_text = f"  {duration((steps - step) / rate)} left"
    else:
      time_text = ""  # one step alone says nothing about the speed
    line = f"{stage} {step}/{steps}  {speed(rate)}{time_text}  {brief(values)}"
    print(line, file=sys.stderr, flush=True)

  return Progress(show=show, close=lambda: None)


def rates() -> Callable[[int], float]:
  """Returns a function from the step just done to the mean number of steps a second.

  The first step that it is called with compiles the program, so the clock starts after it.
  """
  first: tuple[int, float] | None = None

  def rate(step: int) -> float:
    nonlocal first
    now = time.monotonic()
    if first is None:
      first = (step, now)
    first_step, first_time = first
    if now <= first_time:
      return 0.0
    return (step - first_step) / (now - first_time)

  return rate


def speed(rate: float) -> str:
  """A rate as a reader likes it: steps a second, or seconds a step where steps are slow."""
  if not rate:
    return ""
  if rate >= 1:
    return f"{rate:.1f} steps/s"
  return f"{1 / rate:.1f} s/step"


def duration(seconds: float) -> str:
  """A time in the form 1:02:03."""
  minutes, rest = divmod(int(seconds), 60)
  return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def brief(values: Mapping[str, float]) -> str:
  """The few metrics of a step that fit beside its bar, with the last part of their names."""
  parts = []
  for name in SHOWN_METRICS:
    if name in values:
      short_name = name.rpartition("/")[2]
      parts.append(f"{short_name} {values[name]:.3f}")
  return "  ".join(parts)
