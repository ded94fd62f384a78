"""The loop of every stage: runs the steps, logs, evaluates and saves checkpoints.

It goes on from the last checkpoint, stops where a loss, a gradient or the state itself is not
finite, and loses no finished step to Ctrl-C, SIGTERM or an error.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from instructjax.errors import UserError
from instructjax.runs.checkpoint import Checkpoints, first_not_finite
from instructjax.runs.hooks import Hook
from instructjax.runs.profile import Profile, tracing
from instructjax.runs.progress import open_progress
from instructjax.runs.writers import Writer
from instructjax.system import memory
from instructjax.types import Metrics, TrainState

# The metrics that are finite as long as a run is healthy, by the beginnings of their names. Others
# may be NaN: an explained variance has no value where the returns do not vary. An evaluation gives
# None for what it cannot know, such as an accuracy where every pair ties.
VITAL = ("loss", "grad/norm", "eval/")

# The metrics that tell of the machine and not of the model: two equal runs differ in them.
OF_MACHINE = ("time/", "tokens/s", "mfu", "memory/")

# What counts the real tokens of a step, padding left out; the first of them that a stage has.
REAL_TOKENS = ("tokens/real", "tokens")

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
# A part of a step that comes before the state changes: it turns a batch into what the next part,
# or the step itself, takes in its place.
EarlyPart = Callable[[TrainState, Any], Any]
# A value of None is unknown: there was nothing to measure it on.
Evaluate = Callable[[TrainState], Mapping[str, Any]]
# Of the metrics of a step: the seconds that its work takes at the peak of the devices.
SecondsAtPeak = Callable[[Mapping[str, float]], float]


class Interrupted(KeyboardInterrupt):
  """Ctrl-C or SIGTERM stopped a stage; the message says what was saved.

  `number` is the signal, from which the command line makes its exit status.
  """

  def __init__(self, message: str, number: int = signal.SIGINT):
    super().__init__(message)
    self.number = number


def fit(
  step: Step,
  state: TrainState,
  batches: Callable[[int], Any],
  *,
  steps: int,
  stage: str,
  writer: Writer,
  early: Sequence[EarlyPart] = (),
  checkpoints: Checkpoints | None = None,
  checkpoint_every: int = 0,
  log_every: int = 1,
  evaluate: Evaluate | None = None,
  evaluate_every: int = 0,
  extra: Mapping[str, Any] | None = None,
  seconds_at_peak: SecondsAtPeak | None = None,
  part_seconds: Callable[[], Mapping[str, float]] | None = None,
  first_start: float | None = None,
  hook: Hook | None = None,
  profile: Profile | None = None,
  samples: Hook | None = None,
) -> TrainState:
  """Runs `step` on batches `state.iteration` to `steps - 1` and returns the last state.

  `step` is compiled and donates its state (`steps.compiled`). A step that takes longer than the
  notice of a preemption has parts: those of `early` run first, one after the other, and leave the
  state as it is. A signal that comes during one of them ends the run after it: the state of the
  step before is saved, and the step is repeated when the run goes on.

  Where `checkpoints` holds a step, the run goes on from there, and metrics that were written after
  it are dropped. A checkpoint is saved every `checkpoint_every` steps, at the end and on Ctrl-C or
  SIGTERM, with `extra` and the name of the stage; it is written while the next steps run. The
  metrics of a step are fetched while the next one runs; those of every `log_every`-th step and of
  the last are written.
  `evaluate` runs every `evaluate_every` steps, at the end, and before a checkpoint where it
  measures `checkpoints.best`. An interval of 0 means that nothing happens before the end.

  Beside the metrics of a step stand those of the machine (OF_MACHINE): the seconds of the step and,
  from `part_seconds`, of its parts; real tokens a second; `mfu` where `seconds_at_peak` is known;
  the peak of memory; and, where `first_start` says when the run was first started (seconds since
  1970), its goodput (`Goodput`). A step that compiles or stands beside an evaluation or a
  checkpoint has no seconds.

  `hook` is called with the metrics and the state after each of its steps and after the last one. It
  may stop the run, which then ends as after its last step, with an evaluation and a checkpoint. A
  run that its hook has stopped does not go on when it is started again with a hook; without one it
  does.

  `samples` is called as a hook is, and stops nothing. `profile` names steps whose trace is written.

  The metrics of VITAL are looked at in each step. A loss tells of the state before its update, so
  the state itself is looked at before every evaluation and checkpoint and at the end.

  Raises:
    UserError: when a metric of VITAL, a parameter, an average or a part of the optimizer's state is
      not finite. What is on disk stays good. Also where `profile` names steps that are not there.
    Interrupted: on Ctrl-C or SIGTERM.
    Exception: whatever a step, a batch or `evaluate` raises, after the last whole state is saved.
      With several processes it is saved only where all of them raise the error, which holds for
      a UserError of a step or of `evaluate`.
  """
  state, start = resume(state, checkpoints, steps, stage, extra or {})
  if hook is not None and start < steps and (reason := stopped_before(checkpoints)):
    print(f"{stage}: was stopped at step {start} of {steps}: {reason}", file=sys.stderr, flush=True)
    return state
  writer.rewind(stage, start)  # later lines are of steps that run again
  trace = tracing(profile, stage, start, steps)
  progress = open_progress(stage, start, steps)
  # Metrics of steps that are dispatched but not fetched, so that the device need not wait for us.
  pending: list[tuple[int, Metrics]] = []
  last_metrics: dict[str, float] = {}  # of the last step that was fetched, with its evaluation
  clock = step_clock(seconds_at_peak)
  goodput = goodput_of(checkpoints)
  best = checkpoints.best if checkpoints is not None else ""
  questions = itertools.count(1)  # to all processes, whether one of them has got a signal

  def flush(leave: int = 0) -> None:
    """Fetches, writes, shows and checks the pending metrics, except for the last `leave` steps."""
    while len(pending) > leave:
      iteration, metrics = pending.pop(0)
      # Before the metrics, which come with the last of the parts.
      parts = part_seconds() if part_seconds is not None else {}
      values = _floats(jax.device_get(metrics))
      # Metrics come at the pace of the steps only while one step is always left running.
      if leave:
        measured = clock.measures(values)
        if measured:
          values |= measured | {**parts}
          goodput.count(measured["time/seconds"])
      else:
        clock.restart()
      if iteration % log_every == 0 or iteration == steps:
        of_run: dict[str, float] = {"memory/peak": memory.device_peak()}
        if first_start is not None:
          of_run |= goodput.measures(iteration, time.time() - first_start)
        writer.metrics(iteration, stage, values | of_run)
      progress.show(iteration, values)
      # After the metrics are written, so that the file shows where a loss became NaN.
      check_metrics(values, stage, iteration, checkpoints)
      last_metrics.clear()
      last_metrics.update(values)

  def measure(iteration: int, evaluate: Evaluate) -> None:
    """Evaluates the state and writes the results beside the metrics of its step."""
    with saving_on_error(iteration):
      results = evaluate(state)
    measured = _floats({name: value for name, value in results.items() if value is not None})
    unknown = dict.fromkeys(results.keys() - measured.keys(), math.nan)
    # Both are null in metrics.jsonl, but only a number that came out as NaN is a failure.
    writer.metrics(iteration, stage, measured | unknown)
    check_metrics(measured, stage, iteration, checkpoints)
    last_metrics.update(measured | unknown)

  def ask(iteration: int, hook: Hook) -> str:
    """Calls the hook on the metrics and the state of a step; returns why the run stops, or ""."""
    flush()
    # A hook looks at what it likes, so it may fail in one process alone.
    with saving_on_error(iteration, in_all_processes=False):
      reason = hook.call(iteration, last_metrics, state)
    if not reason or iteration == steps:
      return ""
    if iteration % log_every:
      writer.metrics(iteration, stage, last_metrics)
    text = f"{stage}: stopped at step {iteration} of {steps} by {hook.name}: {reason}"
    if jax.process_index() == 0:
      print(text, file=sys.stderr, flush=True)
    return f"{hook.name}: {reason}"

  def save(iteration: int, stopped: str = "") -> None:
    """Starts to write a checkpoint, after the metrics up to it and the state are checked.

    `stopped` says which hook stopped the run there, and why.
    """
    flush()
    check_state(state, stage, iteration, checkpoints)
    if checkpoints is not None:
      # A run that goes on from this checkpoint does not write the metrics before it again.
      writer.flush()
      about = {"stage": stage, "steps": steps, **(extra or {}), TIMED: goodput.timed()}
      if stopped:
        about[STOPPED] = stopped
      checkpoints.save(iteration, state, about, last_metrics)

  @contextlib.contextmanager
  def saving_on_error(iteration: int, in_all_processes: bool = True) -> Iterator[None]:
    """Saves the state of step `iteration` where the body fails, then lets the error go on.

    `in_all_processes` says that a UserError of the body is raised in every process. Saving is a
    collective operation, so it must not begin where the other processes would not join.
    """
    try:
      yield
    except Exception as error:
      is_shared = in_all_processes and isinstance(error, UserError)
      can_save = jax.process_count() == 1 or is_shared
      is_new = iteration > start and not state.iteration.is_deleted()
      if checkpoints is None or not is_new or not can_save:
        raise
      save(iteration)
      advice = (
        f"{stage}: step {iteration} of {steps} is kept; "
        "run the same command again to go on from there"
      )
      if isinstance(error, UserError):
        raise UserError(f"{error}. {advice}") from error
      error.add_note(advice)
      raise

  with stop_signal() as signal_at:

    def stop_if_asked() -> None:
      """Ends the run where a signal has come; the message is made below, after saving."""
      if number := signal_at(next(questions)):
        raise Interrupted("", number)

    try:
      batch = batches(start) if start < steps else None
      for iteration in range(start + 1, steps + 1):
        if trace.begins(iteration):
          flush()  # the steps before it are over
          trace.start()
        name_in_trace = jax.profiler.StepTraceAnnotation(stage, step_num=iteration)
        # A reward from outside may fail within a step.
        with saving_on_error(iteration - 1), name_in_trace:
          for part in early:
            batch = jax.block_until_ready(part(state, batch))
            stop_if_asked()
          state, metrics = step(state, batch)
        pending.append((iteration, metrics))

        # The next batch is prepared while the step runs on the device. Each process reads its
        # own part of the data, so a bad record may fail in one process alone.
        with saving_on_error(iteration, in_all_processes=False):
          batch = batches(iteration) if iteration < steps else None
        flush(leave=1)
        if trace.ends(iteration):
          flush()
          trace.stop()
        if iteration == start + 1:
          memory.release()  # what compiling left behind

        is_last = iteration == steps
        is_checkpoint = is_last or _is_due(iteration, checkpoint_every)
        chooses_best = is_checkpoint and best.startswith("eval/")
        is_evaluation = is_last or _is_due(iteration, evaluate_every) or chooses_best
        if evaluate is not None and is_evaluation:
          flush()
          check_state(state, stage, iteration, checkpoints)
          measure(iteration, evaluate)
        if samples is not None and (is_last or _is_due(iteration, samples.every)):
          flush()
          with saving_on_error(iteration, in_all_processes=False):
            samples.call(iteration, last_metrics, state)
        stopped = ""
        if hook is not None and (is_last or _is_due(iteration, hook.every)):
          stopped = ask(iteration, hook)
        if stopped and evaluate is not None and not is_evaluation:
          check_state(state, stage, iteration, checkpoints)
          measure(iteration, evaluate)
        if is_checkpoint or stopped:
          save(iteration, stopped)
          check_best(best, last_metrics)
        if stopped:
          break
        if early:
          # Otherwise the next part would be waiting behind this step, and a signal behind both.
          jax.block_until_ready(state)
        stop_if_asked()
      if checkpoints is not None:
        checkpoints.wait()
      # A signal that came while the last checkpoint was written counts too: more may follow.
      if start < steps:
        stop_if_asked()
    except KeyboardInterrupt as stop:
      # A second Ctrl-C may cut a step in half. Its donated state is then gone, and the last
      # checkpoint is what remains.
      is_whole = not state.iteration.is_deleted()
      if is_whole and int(state.iteration) > start:
        save(int(state.iteration))
      number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
      raise Interrupted(interruption(stage, steps, checkpoints), number) from None
    finally:
      trace.stop()
      progress.close()
      if checkpoints is not None:
        checkpoints.wait()
  return state


class Clock(NamedTuple):
  """How long a step takes, from the metrics of one step to those of the next.

  measures(values)   the seconds of the step whose metrics have come, its real tokens a second where
                     the metrics count them and its MFU where the peak of the devices is known;
                     nothing for the first one after a restart
  restart()          before an evaluation or a checkpoint, whose time is not that of a step
  """

  measures: Callable[[Mapping[str, float]], dict[str, float]]
  restart: Callable[[], None]


def step_clock(seconds_at_peak: SecondsAtPeak | None = None) -> Clock:
  """Returns a clock at rest: the first step compiles, and is not measured."""
  began: float | None = None

  def measures(values: Mapping[str, float]) -> dict[str, float]:
    nonlocal began
    now = time.perf_counter()
    before, began = began, now
    if before is None:
      return {}
    seconds = now - before
    measured = {"time/seconds": seconds}
    counts = [values[name] for name in REAL_TOKENS if name in values]
    if counts:
      measured["tokens/s"] = counts[0] / seconds
    if seconds_at_peak is not None:
      measured["mfu"] = seconds_at_peak(values) / seconds
    return measured

  def restart() -> None:
    nonlocal began
    began = None

  return Clock(measures, restart)


# What a checkpoint says of the steps up to it that have seconds: how many, and their sum.
TIMED = "timed"


class Goodput(NamedTuple):
  """The share of the time since the first start of a run that was spent in steps it has kept.

  The steps it has kept are those up to now: what a crash threw away is computed again and counts
  once. Each counts the mean of the steps that have seconds. All the rest is lost: starting,
  compiling, evaluations, checkpoints, steps that are computed again, and the time between two
  starts.

  count(seconds)            a step of so many seconds was kept
  measures(steps, elapsed)  the goodput after so many steps and seconds since the first start;
                            nothing while no step has seconds
  timed()                   what the next start needs to know, for a checkpoint
  """

  count: Callable[[float], None]
  measures: Callable[[int, float], dict[str, float]]
  timed: Callable[[], dict[str, float]]


def goodput_of(checkpoints: Checkpoints | None) -> Goodput:
  """Returns the goodput of a run that goes on from its last checkpoint, if there is one."""
  steps, total = 0, 0.0
  if checkpoints is not None and checkpoints.latest() is not None:
    saved = checkpoints.extra().get(TIMED, {})  # earlier versions saved none
    steps, total = saved.get("steps", 0), saved.get("seconds", 0.0)

  def count(seconds: float) -> None:
    nonlocal steps, total
    steps += 1
    total += seconds

  def measures(kept: int, elapsed: float) -> dict[str, float]:
    if not steps or elapsed <= 0:
      return {}
    return {"time/goodput": kept * total / steps / elapsed}

  def timed() -> dict[str, float]:
    return {"steps": steps, "seconds": total}

  return Goodput(count, measures, timed)


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
  return {name: float(value) for name, value in metrics.items()}


def _is_due(iteration: int, interval: int) -> bool:
  """Returns whether something that happens every `interval` steps happens now; 0 is never."""
  return interval != 0 and iteration % interval == 0


def resume(
  state: TrainState,
  checkpoints: Checkpoints | None,
  steps: int,
  stage: str,
  extra: Mapping[str, Any],
) -> tuple[TrainState, int]:
  """Returns the state of the last checkpoint and its iteration; without one, the state as it is.

  Raises:
    UserError: for a checkpoint of another stage, model or configuration, of other data
      (`extra["fingerprints"]`), of a later step than `steps`, or that is not finite.
  """
  if checkpoints is None or checkpoints.latest() is None:
    return state, int(state.iteration)
  saved = checkpoints.extra()
  saved_stage = saved.get("stage", stage)
  if saved_stage != stage:
    raise UserError(
      f"{checkpoints.folder}: holds checkpoints of stage '{saved_stage}', not '{stage}'; "
      "name another --workdir"
    )
  if "fingerprints" in saved:
    before, now = saved["fingerprints"], extra.get("fingerprints", {})
    # One that only one side has is a difference too: the other run reads other data.
    for name in sorted(before.keys() | now.keys()):
      if before.get(name) != now.get(name):
        raise UserError(
          f"{checkpoints.folder}: holds checkpoints of a run with another {name} "
          f"({_brief(before.get(name))}, this one is {_brief(now.get(name))}); name another "
          "--workdir"
        )
  last = checkpoints.latest()
  state, _ = checkpoints.restore(state)
  leaf = first_not_finite(state)
  if leaf:  # an earlier version wrote such states
    raise UserError(
      f"{checkpoints.folder / str(last)}: '{leaf}' is not finite, so the run cannot go on from it; "
      "move this folder away and run the same command again, which goes on from the step before"
    )
  start = int(state.iteration)
  if start > steps:
    raise UserError(
      f"{checkpoints.folder}: is at step {start}, beyond the {steps} asked for; "
      "name another --workdir"
    )
  return state, start


# What a checkpoint says where a hook stopped the run: which one, and why.
STOPPED = "stopped"


def stopped_before(checkpoints: Checkpoints | None) -> str:
  """Returns which hook stopped the run at its last checkpoint, and why; "" where none did."""
  if checkpoints is None or checkpoints.latest() is None:
    return ""
  return checkpoints.extra().get(STOPPED, "")


def _brief(fingerprint: str | None) -> str:
  return "none" if fingerprint is None else fingerprint[:8]


def check_best(best: str, metrics: Mapping[str, float]) -> None:
  """Checks that the metric that chooses the best checkpoint is measured.

  Raises:
    UserError: where it is not.
  """
  names = [name for name in metrics if not name.startswith(OF_MACHINE)]
  if best and best not in names:
    raise UserError(
      f"config.best={best!r}: this stage does not measure it; "
      f"it measures {', '.join(sorted(names))}"
    )


def check_metrics(
  metrics: Mapping[str, float],
  stage: str,
  iteration: int,
  checkpoints: Checkpoints | None,
) -> None:
  """Checks that every metric of VITAL is finite.

  Raises:
    UserError: for the first one that is not.
  """
  for name, value in metrics.items():
    if name.startswith(VITAL) and not math.isfinite(value):
      raise _unhealthy(f"{name} is {value} at step {iteration}", stage, checkpoints)


def check_state(
  state: TrainState,
  stage: str,
  iteration: int,
  checkpoints: Checkpoints | None,
) -> None:
  """Checks that parameters, averages and the optimizer's state are finite after a step.

  Raises:
    UserError: for the first array that is not.
  """
  leaf = first_not_finite(state)
  if leaf:
    problem = f"'{leaf}' is not finite after the update of step {iteration}"
    raise _unhealthy(problem, stage, checkpoints)


def _unhealthy(problem: str, stage: str, checkpoints: Checkpoints | None) -> UserError:
  """The error for a run that has become NaN or infinite, with what remains of it."""
  remains = "no state was saved before" if checkpoints is None else checkpoints.remains()
  return UserError(
    f"{stage}: {problem}; {remains}. "
    "Lower the learning rate or clip the gradient, in a new --workdir"
  )


def interruption(stage: str, steps: int, checkpoints: Checkpoints | None) -> str:
  """The message that the user reads after Ctrl-C or SIGTERM."""
  last = None if checkpoints is None else checkpoints.latest()
  if last is None:
    return f"{stage}: stopped; nothing was saved"
  return (
    f"{stage}: stopped at step {last} of {steps}; run the same command again to go on from there"
  )


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], int]]:
  """Turns the first Ctrl-C or SIGTERM into a number that is asked for after each step or part.

  Neither is thus ever cut in half. A second Ctrl-C acts at once. A second SIGTERM does not: where
  a machine is shut down, every process gets one, and a launcher passes on its own besides. Signals
  are left alone outside the main thread.

  Several processes stop at the same place, whichever of them got the signal. JAX's preemption
  service, which listens to SIGTERM in each process, lets them agree on it; a Ctrl-C is passed on
  to the service as a SIGTERM.

  Yields:
    A function from the number of the question, from 1 on and the same in all processes, to the
    number of the signal, or 0 where the run goes on.
  """
  signal_number = 0  # of the signal that has come
  is_distributed = jax.process_count() > 1
  if threading.current_thread() is not threading.main_thread():
    numbers = ()  # Python lets no other thread set a handler
  elif is_distributed:
    numbers = (signal.SIGINT,)  # the preemption service holds SIGTERM
  else:
    numbers = (signal.SIGINT, signal.SIGTERM)
  handlers_before = {number: signal.getsignal(number) for number in numbers}

  def restore_handlers() -> None:
    for number, handler in handlers_before.items():
      signal.signal(number, handler)

  def handle(number, frame) -> None:
    nonlocal signal_number
    is_first = signal_number == 0
    signal_number = number
    signal.signal(signal.SIGINT, handlers_before[signal.SIGINT])  # the next Ctrl-C acts at once
    if is_distributed:
      os.kill(os.getpid(), signal.SIGTERM)
    if is_first:
      print("stopping after this step; Ctrl-C now stops at once", file=sys.stderr, flush=True)

  def own_signal(question: int) -> int:
    return signal_number

  def agreed_signal(question: int) -> int:
    from jax.experimental import multihost_utils

    if not multihost_utils.reached_preemption_sync_point(question):
      return 0
    return signal_number or signal.SIGTERM  # 0 here means that another process got the signal

  for number in numbers:
    signal.signal(number, handle)
  try:
    yield agreed_signal if is_distributed else own_signal
  finally:
    restore_handlers()
