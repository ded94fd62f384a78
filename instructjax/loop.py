"""The loop of every stage: run the steps, log, evaluate, checkpoint; resume, stop on NaN, survive Ctrl-C."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from instructjax import memory
from instructjax.checkpoint import Checkpoints
from instructjax.errors import UserError
from instructjax.types import Metrics, TrainState
from instructjax.writers import Writer

QUIET = 2.0  # seconds before anything is shown
EVERY = 10.0  # seconds between lines where there is no terminal

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
Evaluate = Callable[[TrainState], Mapping[str, Any]]


class Interrupted(KeyboardInterrupt):
  """The user stopped a stage; the message says what was saved."""


class Progress(NamedTuple):
  """`show(step, values)` after each step, `close()` at the end."""

  show: Callable[[int, Mapping[str, float]], None]
  close: Callable[[], None]


def fit(
  step: Step,
  state: TrainState,
  batches: Callable[[int], Any],
  *,
  steps: int,
  stage: str,
  writer: Writer,
  checkpoints: Checkpoints | None = None,
  checkpoint_every: int = 0,
  log_every: int = 1,
  evaluate: Evaluate | None = None,
  evaluate_every: int = 0,
  extra: Mapping[str, Any] | None = None,
) -> TrainState:
  """Runs `step` on batches `state.iteration` to `steps - 1` and returns the last state.

  `step` is compiled and donates its state (`steps.compiled`).  Where `checkpoints` holds a step, the run goes on from
  there and metrics that were written after it are dropped.  A checkpoint is made every `checkpoint_every` steps, at the
  end and on Ctrl-C, with `extra` and the name of the stage.  Metrics of a step are fetched while the next one runs;
  those of every `log_every`-th step and of the last are written.  `evaluate` runs every `evaluate_every` steps and at
  the end.  0 as `..._every` means: not before the end.

  Raises UserError when a metric named "loss..." is not finite (what is on disk stays good) and Interrupted on Ctrl-C.
  """
  state, start = resume(state, checkpoints, steps, stage)
  writer.rewind(stage, start)
  progress = open_progress(stage, start, steps)
  waiting: list[tuple[int, Metrics]] = []

  def flush(keep: int = 0) -> None:
    """Fetches, checks, shows and writes the metrics that wait, but for the last `keep`."""
    while len(waiting) > keep:
      at, metrics = waiting.pop(0)
      values = {name: float(value) for name, value in jax.device_get(metrics).items()}
      if at % log_every == 0 or at == steps:
        writer.metrics(at, stage, values)
      progress.show(at, values)
      check(values, stage, at, checkpoints)

  def save(at: int) -> None:
    flush()
    if checkpoints is not None:
      checkpoints.save(at, state, {"stage": stage, "steps": steps} | dict(extra or {}))

  with stop_signal() as stopped:
    try:
      batch = batches(start) if start < steps else None
      for at in range(start + 1, steps + 1):
        state, metrics = step(state, batch)
        waiting.append((at, metrics))
        batch = batches(at) if at < steps else None  # prepared while the step runs
        flush(keep=1)
        if at == start + 1:
          memory.release()  # what compiling left behind
        if evaluate is not None and (at == steps or (evaluate_every and at % evaluate_every == 0)):
          flush()
          writer.metrics(at, stage, {name: float(value) for name, value in evaluate(state).items()})
        if at == steps or (checkpoint_every and at % checkpoint_every == 0):
          save(at)
        if stopped():
          raise KeyboardInterrupt
    except KeyboardInterrupt:
      at = None if state.iteration.is_deleted() else int(state.iteration)
      if at is not None and at > start:
        save(at)
      raise Interrupted(interruption(stage, steps, checkpoints)) from None
    finally:
      progress.close()
  return state


def resume(state: TrainState, checkpoints: Checkpoints | None, steps: int, stage: str) -> tuple[TrainState, int]:
  """(state of the last checkpoint, its iteration); the state as it is where there is none.

  Raises UserError for a checkpoint of another stage, model or configuration.
  """
  if checkpoints is None or checkpoints.latest() is None:
    return state, int(state.iteration)
  found = checkpoints.extra().get("stage", stage)
  if found != stage:
    raise UserError(
      f"{checkpoints.folder}: holds checkpoints of stage '{found}', not '{stage}'; name another --workdir"
    )
  state, _ = checkpoints.restore(state)
  start = int(state.iteration)
  if start > steps:
    raise UserError(f"{checkpoints.folder}: is at step {start}, beyond the {steps} asked for; name another --workdir")
  return state, start


def check(values: Mapping[str, float], stage: str, at: int, checkpoints: Checkpoints | None) -> None:
  """Raises UserError naming the first loss that is not finite."""
  for name, value in values.items():
    if name.startswith("loss") and not math.isfinite(value):
      last = None if checkpoints is None else checkpoints.latest()
      kept = "no state was saved before" if last is None else f"the good state of step {last} is kept"
      raise UserError(
        f"{stage}: {name} is {value} at step {at}; {kept}. Lower the learning rate or clip the gradient, in a "
        "new --workdir"
      )


def interruption(stage: str, steps: int, checkpoints: Checkpoints | None) -> str:
  """What the user reads after Ctrl-C."""
  last = None if checkpoints is None else checkpoints.latest()
  if last is None:
    return f"{stage}: stopped; nothing was saved"
  return f"{stage}: stopped at step {last} of {steps}; run the same command again to go on from there"


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
  """Turns the first Ctrl-C (or termination) into a flag, so that a step is never cut in half; the second one raises.

  Only in the main thread of a single process: several processes must stop at the same step.
  """
  asked = False
  if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
    yield lambda: asked
    return
  before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def handle(number, frame) -> None:
    nonlocal asked
    asked = True
    restore()
    print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)

  for number in before:
    signal.signal(number, handle)
  try:
    yield lambda: asked
  finally:
    restore()


# --- progress ---


def open_progress(stage: str, start: int, steps: int) -> Progress:
  """A bar with rate and time left on a terminal, a line now and then elsewhere; silent for the first two seconds."""
  if jax.process_index() > 0 or start >= steps:
    return Progress(lambda at, values: None, lambda: None)
  return _bar(stage, start, steps) if sys.stderr.isatty() else _lines(stage, start, steps)


def _bar(stage: str, start: int, steps: int) -> Progress:
  from rich import progress
  from rich.console import Console

  columns = (
    progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
    progress.TextColumn("{task.fields[rate]}"), progress.TimeRemainingColumn(),
    progress.TextColumn("{task.fields[values]}"),
  )  # fmt: skip
  bar = progress.Progress(*columns, console=Console(stderr=True), speed_estimate_period=600)
  task = bar.add_task(stage, total=steps, completed=start, rate="", values="")
  begun, rate = time.monotonic(), rates()

  def show(at: int, values: Mapping[str, float]) -> None:
    if not bar.live.is_started and time.monotonic() - begun > QUIET:
      bar.start()
    bar.update(task, completed=at, rate=speed(rate(at)), values=brief(values))

  return Progress(show, bar.stop)


def _lines(stage: str, start: int, steps: int) -> Progress:
  rate_at = rates()
  shown = begun = time.monotonic()

  def show(at: int, values: Mapping[str, float]) -> None:
    nonlocal shown
    rate, now = rate_at(at), time.monotonic()
    last = at == steps and now - begun > QUIET
    if now - shown < EVERY and not last:
      return
    shown = now
    left = "" if not rate or at == steps else f"  {duration((steps - at) / rate)} left"
    took = f"  in {duration(now - begun)}" if at == steps else ""
    print(f"{stage} {at}/{steps}  {speed(rate)}{left}{took}  {brief(values)}", file=sys.stderr, flush=True)

  return Progress(show, lambda: None)


def rates() -> Callable[[int], float]:
  """A function from the step just done to steps a second since the first one, which compiles and is left out."""
  first: tuple[int, float] | None = None

  def rate(at: int) -> float:
    nonlocal first
    now = time.monotonic()
    first = first or (at, now)
    return (at - first[0]) / (now - first[1]) if now > first[1] else 0.0

  return rate


def speed(rate: float) -> str:
  return "" if not rate else f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"


def duration(seconds: float) -> str:
  minutes, rest = divmod(int(seconds), 60)
  return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def brief(values: Mapping[str, float]) -> str:
  """The metrics that a passer-by looks at."""
  names = ("loss", "loss/total", "accuracy", "objective/scores", "objective/kl")
  return "  ".join(f"{name.rpartition('/')[2]} {values[name]:.3f}" for name in names if name in values)
