"""The loop of every stage: run the steps, log, evaluate, checkpoint; resume, stop on NaN, survive
Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from instructjax.errors import UserError
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.writers import Writer
from instructjax.system import memory
from instructjax.types import Metrics, TrainState

QUIET = 2.0  # seconds before anything is shown
EVERY = 10.0  # seconds between lines where there is no terminal

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
Evaluate = Callable[[TrainState], Mapping[str, Any]]


class Interrupted(KeyboardInterrupt):
  """Ctrl-C or SIGTERM stopped a stage.  The message says what was saved, `number` is the signal."""

  def __init__(self, message: str, number: int = signal.SIGINT):
    super().__init__(message)
    self.number = number


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

  `step` is compiled and donates its state (`steps.compiled`).  Where `checkpoints` holds a step,
  the run goes on from there and metrics that were written after it are dropped.  A checkpoint is
  made every `checkpoint_every` steps, at the end and on Ctrl-C or SIGTERM, with `extra` and the
  name of the stage; it is written while the next steps run.  Metrics of a step are fetched while
  the next one runs; those of every `log_every`-th step and of the last are written. `evaluate`
  runs every `evaluate_every` steps, at the end, and before a checkpoint where it measures
  `checkpoints.best`. 0 as `..._every` means: not before the end.

  Raises UserError when a metric named "loss..." is not finite (what is on disk stays good),
  Interrupted on Ctrl-C, and what a step, a batch or `evaluate` raises, when the last whole state
  is saved.  (With several processes only where all of them raise it: a UserError of a step or of
  `evaluate`.)
  """
  state, start = resume(state, checkpoints, steps, stage, extra or {})
  writer.rewind(stage, start)
  progress = open_progress(stage, start, steps)
  waiting: list[tuple[int, Metrics]] = []
  measured: dict[str, float] = {}  # at the last step
  best = checkpoints.best if checkpoints is not None else ""

  def flush(keep: int = 0) -> None:
    """Fetches, checks, shows and writes the metrics that wait, but for the last `keep`."""
    while len(waiting) > keep:
      at, metrics = waiting.pop(0)
      values = {name: float(value) for name, value in jax.device_get(metrics).items()}
      if at % log_every == 0 or at == steps:
        writer.metrics(at, stage, values)
      progress.show(at, values)
      check(values, stage, at, checkpoints)
      measured.clear()
      measured.update(values)

  def measure(at: int, evaluate: Evaluate) -> None:
    flush()
    with saving(at):
      values = {name: float(value) for name, value in evaluate(state).items()}
    writer.metrics(at, stage, values)
    measured.update(values)

  def save(at: int) -> None:
    flush()
    if checkpoints is not None:
      checkpoints.save(at, state, {"stage": stage, "steps": steps} | dict(extra or {}), measured)

  @contextlib.contextmanager
  def saving(at: int, together: bool = True) -> Iterator[None]:
    """Saves the state of step `at` where its body fails; `together`: with several processes it
    fails in all of them.
    """
    try:
      yield
    except Exception as error:
      able = jax.process_count() == 1 or (together and isinstance(error, UserError))
      if checkpoints is None or at == start or state.iteration.is_deleted() or not able:
        raise
      save(at)
      kept = (
        f"{stage}: step {at} of {steps} is kept; run the same command again to go on from there"
      )
      if isinstance(error, UserError):
        raise UserError(f"{error}. {kept}") from error
      error.add_note(kept)
      raise

  with stop_signal() as stopped:
    try:
      batch = batches(start) if start < steps else None
      for at in range(start + 1, steps + 1):
        with saving(at - 1):  # a reward from outside may fail
          state, metrics = step(state, batch)
        waiting.append((at, metrics))
        with saving(at, together=False):
          batch = batches(at) if at < steps else None  # prepared while the step runs
        flush(keep=1)
        if at == start + 1:
          memory.release()  # what compiling left behind
        due = at == steps or bool(checkpoint_every and at % checkpoint_every == 0)
        if evaluate is not None and (
          at == steps
          or (evaluate_every and at % evaluate_every == 0)
          or (due and best.startswith("eval/"))
        ):
          measure(at, evaluate)
        if due:
          save(at)
          known(best, measured)
        if number := stopped(at):
          raise Interrupted("", number)
    except KeyboardInterrupt as stop:
      at = None if state.iteration.is_deleted() else int(state.iteration)
      if at is not None and at > start:
        save(at)
      number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
      raise Interrupted(interruption(stage, steps, checkpoints), number) from None
    finally:
      progress.close()
      if checkpoints is not None:
        checkpoints.wait()
  return state


def resume(
  state: TrainState,
  checkpoints: Checkpoints | None,
  steps: int,
  stage: str,
  extra: Mapping[str, Any],
) -> tuple[TrainState, int]:
  """(state of the last checkpoint, its iteration); the state as it is where there is none.

  Raises UserError for a checkpoint of another stage, model, configuration or other data
  (`extra["fingerprints"]`).
  """
  if checkpoints is None or checkpoints.latest() is None:
    return state, int(state.iteration)
  saved = checkpoints.extra()
  found = saved.get("stage", stage)
  if found != stage:
    raise UserError(
      f"{checkpoints.folder}: holds checkpoints of stage '{found}', not '{stage}'; name another "
      "--workdir"
    )
  before, now = saved.get("fingerprints", {}), extra.get("fingerprints", {})
  for name in before.keys() & now.keys():
    if before[name] != now[name]:
      raise UserError(
        f"{checkpoints.folder}: holds checkpoints of a run with another {name} "
        f"({before[name][:8]}, this one is "
        f"{now[name][:8]}); name another --workdir"
      )
  state, _ = checkpoints.restore(state)
  start = int(state.iteration)
  if start > steps:
    raise UserError(
      f"{checkpoints.folder}: is at step {start}, beyond the {steps} asked for; name another "
      "--workdir"
    )
  return state, start


def known(best: str, measured: Mapping[str, float]) -> None:
  """Raises UserError where the metric that chooses the best checkpoint is not measured."""
  if best and best not in measured:
    raise UserError(
      f"config.best={best!r}: this stage does not measure it; it measures "
      f"{', '.join(sorted(measured))}"
    )


def check(
  values: Mapping[str, float], stage: str, at: int, checkpoints: Checkpoints | None
) -> None:
  """Raises UserError naming the first loss that is not finite."""
  for name, value in values.items():
    if name.startswith("loss") and not math.isfinite(value):
      last = None if checkpoints is None else checkpoints.latest()
      kept = (
        "no state was saved before" if last is None else f"the good state of step {last} is kept"
      )
      raise UserError(
        f"{stage}: {name} is {value} at step {at}; {kept}. Lower the learning rate or clip the "
        "gradient, in a "
        "new --workdir"
      )


def interruption(stage: str, steps: int, checkpoints: Checkpoints | None) -> str:
  """What the user reads after Ctrl-C or SIGTERM."""
  last = None if checkpoints is None else checkpoints.latest()
  if last is None:
    return f"{stage}: stopped; nothing was saved"
  return (
    f"{stage}: stopped at step {last} of {steps}; run the same command again to go on from there"
  )


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], int]]:
  """Turns the first Ctrl-C or SIGTERM into a number to ask for after each step, so that a step is
  never cut in half; the second one acts at once.

  Several processes stop at the same step, whichever of them was signalled: JAX's preemption
  service, which listens to SIGTERM in each of them, agrees on it; a Ctrl-C is passed on to it.
  Signals are left alone outside the main thread.
  """
  asked = 0
  main, several = threading.current_thread() is threading.main_thread(), jax.process_count() > 1
  numbers = () if not main else (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.getsignal(number) for number in numbers}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def handle(number, frame) -> None:
    nonlocal asked
    asked = number
    restore()
    if several:
      os.kill(os.getpid(), signal.SIGTERM)
    print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)

  def agreed(at: int) -> int:
    from jax.experimental import multihost_utils

    return (asked or signal.SIGTERM) if multihost_utils.reached_preemption_sync_point(at) else 0

  for number in before:
    signal.signal(number, handle)
  try:
    yield agreed if several else lambda at: asked
  finally:
    restore()


# --- progress ---


def open_progress(stage: str, start: int, steps: int) -> Progress:
  """A bar with rate and time left on a terminal, a line now and then elsewhere; silent for the
  first two seconds.
  """
  if jax.process_index() > 0 or start >= steps:
    return Progress(lambda at, values: None, lambda: None)
  return _bar(stage, start, steps) if sys.stderr.isatty() else _lines(stage, start, steps)


@contextlib.contextmanager
def progressing(stage: str, start: int, steps: int) -> Iterator[Progress]:
  """`open_progress`, closed whatever happens: a bar that is left on a terminal hides its cursor."""
  progress = open_progress(stage, start, steps)
  try:
    yield progress
  finally:
    progress.close()


def _bar(stage: str, start: int, steps: int) -> Progress:
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
    print(
      f"{stage} {at}/{steps}  {speed(rate)}{left}{took}  {brief(values)}",
      file=sys.stderr,
      flush=True,
    )

  return Progress(show, lambda: None)


def rates() -> Callable[[int], float]:
  """A function from the step just done to steps a second since the first one, which compiles and is
  left out.
  """
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
  return "  ".join(
    f"{name.rpartition('/')[2]} {values[name]:.3f}" for name in names if name in values
  )
