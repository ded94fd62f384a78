"""fit(): steps, cadence, resume, Ctrl-C, NaN."""

import json
import os
import signal
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest

from instructjax import steps
from instructjax.errors import UserError
from instructjax.runs import loop, writers
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.hooks import hook
from instructjax.runs.loop import fit

TX = optax.sgd(0.1)


def fresh():
  return steps.init_state(jax.random.key(0), {"w": jnp.float32(1)}, TX)


@pytest.fixture(scope="module")
def step():
  """w <- w - 0.1 (w - x): a NaN in the batch shows in the loss of its step."""

  def run(state, x):
    loss = 0.5 * (state.params["w"] - x) ** 2
    state = steps.update(state, {"w": state.params["w"] - x}, TX)
    return replace(state, iteration=state.iteration + 1), {"loss": loss, "w": state.params["w"]}

  return steps.compiled(run, fresh())


def batch(i):
  return jnp.float32(i)


@pytest.fixture
def writer(tmp_path):
  with writers.open_run(tmp_path / "run", {"lr": 0.1}, seed=1) as run_writer:
    yield run_writer


def rows(tmp_path):
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def rows_without_times(tmp_path):
  """The same of two equal runs, which take different times."""
  return [{k: row[k] for k in row if not k.startswith(loop.OF_MACHINE)} for row in rows(tmp_path)]


def test_steps_have_their_seconds_and_tokens(step, writer, tmp_path):
  """But for the first one, which compiles, and those beside an evaluation, which takes time."""

  def with_tokens(state, x):
    state, metrics = step(state, x)
    time.sleep(0.02)
    return state, metrics | {"tokens": jnp.float32(7)}

  fit(
    with_tokens,
    fresh(),
    batch,
    steps=8,
    stage="a",
    writer=writer,
    evaluate=lambda state: {"eval/nll": 1.0},
    evaluate_every=4,
  )
  timed = {row["step"]: row for row in rows(tmp_path) if "time/seconds" in row}
  assert sorted(timed) == [2, 3, 6, 7]
  for row in timed.values():
    assert 0.01 < row["time/seconds"] < 5
    assert row["tokens/s"] == pytest.approx(7 / row["time/seconds"])


def test_tokens_a_second_are_real_ones(step, writer, tmp_path):
  """Where a stage counts the tokens that carry loss too, these are not the rate."""

  def with_tokens(state, x):
    state, metrics = step(state, x)
    return state, metrics | {"tokens": jnp.float32(7), "tokens/real": jnp.float32(70)}

  fit(with_tokens, fresh(), batch, steps=3, stage="a", writer=writer)
  row = rows(tmp_path)[1]
  assert row["tokens/s"] == pytest.approx(70 / row["time/seconds"])


def test_mfu_is_the_seconds_at_the_peak_over_those_of_the_step(step, writer, tmp_path):
  fit(
    step,
    fresh(),
    batch,
    steps=4,
    stage="a",
    writer=writer,
    seconds_at_peak=lambda metrics: 1e-3 * metrics["w"],
  )
  first, *others = rows(tmp_path)[:-1]
  assert "mfu" not in first  # which compiles
  for row in others:
    assert row["mfu"] == pytest.approx(1e-3 * row["w"] / row["time/seconds"])


def test_each_line_has_the_peak_of_memory_and_no_mfu_where_the_peak_is_unknown(
  step, writer, tmp_path
):
  fit(step, fresh(), batch, steps=3, stage="a", writer=writer)
  for row in rows(tmp_path):
    assert 1e7 < row["memory/peak"] < 1e12  # bytes
    assert "mfu" not in row


def test_the_parts_of_a_step_stand_beside_its_seconds(step, writer, tmp_path):
  """Where the step has seconds: the first one compiles, and so do its parts."""
  asked = []

  def part_seconds():
    asked.append(len(asked) + 1)
    return {"time/rollout": float(len(asked))}

  fit(step, fresh(), batch, steps=4, stage="a", writer=writer, part_seconds=part_seconds)
  assert asked == [1, 2, 3, 4]  # once a step, or the times would be those of another one
  times = [row.get("time/rollout") for row in rows(tmp_path)]
  assert times == [None, 2.0, 3.0, None]


def test_goodput_is_the_time_of_kept_steps_over_all_time_since_the_first_start():
  """Three steps were kept, of which two took 2 and 4 seconds: 3 x 3 s of 18."""
  goodput = loop.goodput_of(None)
  assert goodput.measures(1, 5.0) == {}  # no step has seconds yet
  goodput.count(2.0)
  goodput.count(4.0)
  assert goodput.measures(3, 18.0) == {"time/goodput": 0.5}
  assert goodput.timed() == {"steps": 2, "seconds": 6.0}


def test_goodput_goes_on_from_the_checkpoint(step, tmp_path):
  """The seconds of the steps up to the checkpoint are in it; a day passed since the first start."""
  checkpoints = Checkpoints(tmp_path / "c")
  about = {"stage": "a", "steps": 3, loop.TIMED: {"steps": 2, "seconds": 6.0}}
  state = fresh()
  for i in range(3):
    state, _ = step(state, batch(i))
  checkpoints.save(3, state, about)
  checkpoints.wait()
  day = 24 * 3600
  with writers.open_run(tmp_path / "run", {"lr": 0.1}, seed=1) as writer:
    fit(
      step,
      fresh(),
      batch,
      steps=4,
      stage="a",
      writer=writer,
      checkpoints=checkpoints,
      first_start=time.time() - day,
    )
  (row,) = rows(tmp_path)
  # Step 4 has no seconds: it compiles. It counts as the others do, 3 seconds.
  assert row["time/goodput"] == pytest.approx(4 * 3 / day, rel=1e-3)
  assert checkpoints.extra()[loop.TIMED] == {"steps": 2, "seconds": 6.0}


def test_a_metric_of_the_machine_chooses_no_checkpoint():
  metrics = {"loss": 1.0, "tokens/s": 7.0, "memory/peak": 1e9, "mfu": 0.4, "time/seconds": 1.0}
  with pytest.raises(UserError, match=r"'mfu': .* it measures loss$"):
    loop.check_best("mfu", metrics)


def test_every_step_sees_its_batch_and_is_written_once(step, writer, tmp_path):
  state = fit(step, fresh(), batch, steps=5, stage="a", writer=writer)
  assert int(state.iteration) == 5
  w = 1.0
  for i, row in enumerate(rows(tmp_path)):
    assert row["step"] == i + 1
    assert row["loss"] == pytest.approx(0.5 * (w - i) ** 2)
    w -= 0.1 * (w - i)
    assert row["w"] == pytest.approx(w)
  assert step._cache_size() == 1


def test_cadence_of_lines_evaluations_and_checkpoints(step, writer, tmp_path):
  checkpoints = Checkpoints(tmp_path / "c", keep=9)
  settings = {"log_every": 3, "evaluate_every": 2, "checkpoint_every": 3}
  fit(
    step,
    fresh(),
    batch,
    steps=7,
    stage="a",
    writer=writer,
    checkpoints=checkpoints,
    extra={"x": 1},
    evaluate=lambda state: {"eval/w": state.params["w"]},
    **settings,
  )
  assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [3, 6, 7]
  assert [row["step"] for row in rows(tmp_path) if "eval/w" in row] == [2, 4, 6, 7]
  assert sorted(int(path.name) for path in (tmp_path / "c").iterdir()) == [3, 6, 7]
  extra = checkpoints.extra()
  assert {"stage": "a", "steps": 7, "x": 1}.items() <= extra.items()


def test_metrics_are_fetched_while_the_next_step_runs(writer):
  order = []

  def step(state, x):
    order.append(f"step {int(state.iteration) + 1}")
    return replace(state, iteration=state.iteration + 1), {"loss": jnp.float32(0)}

  def batches(i):
    order.append(f"batch {i + 1}")
    return batch(i)

  seen = writer._replace(metrics=lambda at, stage, values: order.append(f"metrics {at}"))
  fit(step, fresh(), batches, steps=3, stage="a", writer=seen)
  assert order == [
    "batch 1",
    "step 1",
    "batch 2",
    "step 2",
    "batch 3",
    "metrics 1",
    "step 3",
    "metrics 2",
    "metrics 3",
  ]


def test_resume_goes_on_and_leaves_no_line_twice(step, writer, tmp_path):
  whole = fit(step, fresh(), batch, steps=6, stage="whole", writer=writer)
  checkpoints = Checkpoints(tmp_path / "c")
  settings = {"stage": "a", "writer": writer, "checkpoints": checkpoints, "checkpoint_every": 2}

  def crash(i):
    if i == 5:
      raise SystemExit  # as SIGKILL, nothing is saved
    return batch(i)

  with pytest.raises(SystemExit):
    fit(step, fresh(), crash, steps=6, **settings)
  assert checkpoints.latest() == 4
  state = fit(step, fresh(), batch, steps=6, **settings)
  assert state.params["w"] == whole.params["w"]
  by_stage = [
    [row | {"stage": ""} for row in rows_without_times(tmp_path) if row["stage"] == name]
    for name in ("whole", "a")
  ]
  assert by_stage[0] == by_stage[1]
  before = rows(tmp_path)
  fit(step, fresh(), batch, steps=6, **settings)
  assert rows(tmp_path) == before


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_resume(step, writer, tmp_path, capsys):
  checkpoints = Checkpoints(tmp_path / "c")

  def pressed(i):
    if i == 2:
      os.kill(os.getpid(), signal.SIGINT)
    return batch(i)

  before = signal.getsignal(signal.SIGINT)
  with pytest.raises(
    loop.Interrupted, match="a: stopped at step 2 of 9; run the same command again"
  ):
    fit(step, fresh(), pressed, steps=9, stage="a", writer=writer, checkpoints=checkpoints)
  assert signal.getsignal(signal.SIGINT) is before
  assert checkpoints.latest() == 2
  assert [row["step"] for row in rows(tmp_path)] == [1, 2]
  assert "stopping after this step" in capsys.readouterr().err
  assert (
    int(
      fit(
        step, fresh(), batch, steps=9, stage="a", writer=writer, checkpoints=checkpoints
      ).iteration
    )
    == 9
  )
  assert [row["step"] for row in rows(tmp_path)] == list(range(1, 10))


def test_ctrl_c_while_the_last_checkpoint_is_written_counts(step, writer, tmp_path, monkeypatch):
  """The step is kept, and what would follow the loop does not: another stage of the quickstart."""
  from orbax.checkpoint import CheckpointManager

  checkpoints = Checkpoints(tmp_path / "c")
  wait = CheckpointManager.wait_until_finished

  def pressed(self):
    if checkpoints._step == 3:
      monkeypatch.setattr(CheckpointManager, "wait_until_finished", wait)
      os.kill(os.getpid(), signal.SIGINT)
    wait(self)

  monkeypatch.setattr(CheckpointManager, "wait_until_finished", pressed)
  settings = {"stage": "a", "writer": writer, "checkpoints": checkpoints}
  with pytest.raises(loop.Interrupted, match="a: stopped at step 3 of 3; run the same command"):
    fit(step, fresh(), batch, steps=3, **settings)
  assert checkpoints.latest() == 3
  assert int(fit(step, fresh(), batch, steps=3, **settings).iteration) == 3


def test_sigterm_finishes_the_step_and_is_reported(step, writer, tmp_path, capsys):
  checkpoints = Checkpoints(tmp_path / "c")

  def preempted(i):
    if i == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return batch(i)

  with pytest.raises(
    loop.Interrupted, match="a: stopped at step 2 of 9; run the same command again"
  ) as stop:
    fit(step, fresh(), preempted, steps=9, stage="a", writer=writer, checkpoints=checkpoints)
  assert stop.value.number == signal.SIGTERM
  assert checkpoints.latest() == 2


def test_a_second_sigterm_lets_the_checkpoint_be_written(step, writer, tmp_path, capsys):
  """A launcher passes one on, beside that which every process of a machine gets."""
  checkpoints = Checkpoints(tmp_path / "c")

  def preempted(i):
    if i == 2:
      os.kill(os.getpid(), signal.SIGTERM)
      os.kill(os.getpid(), signal.SIGTERM)
    return batch(i)

  before = signal.signal(signal.SIGTERM, lambda number, frame: pytest.fail("it came through"))
  try:
    with pytest.raises(loop.Interrupted, match="a: stopped at step 2 of 9") as stop:
      fit(step, fresh(), preempted, steps=9, stage="a", writer=writer, checkpoints=checkpoints)
  finally:
    signal.signal(signal.SIGTERM, before)
  assert stop.value.number == signal.SIGTERM
  assert checkpoints.latest() == 2
  assert capsys.readouterr().err.count("stopping after this step") == 1


def test_a_second_ctrl_c_acts_at_once(step, writer, tmp_path):
  checkpoints = Checkpoints(tmp_path / "c")

  def pressed(i):
    if i == 2:
      # Another thread may take the signals of `os.kill`, and Python then acts a little later.
      signal.raise_signal(signal.SIGTERM)
      signal.raise_signal(signal.SIGINT)
      pytest.fail("the second signal was to act at once")
    return batch(i)

  # A process that a shell began in the background ignores Ctrl-C from its start.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with pytest.raises(loop.Interrupted, match="a: stopped at step 2 of 9"):
      fit(step, fresh(), pressed, steps=9, stage="a", writer=writer, checkpoints=checkpoints)
  finally:
    signal.signal(signal.SIGINT, before)
  assert checkpoints.latest() == 2


@pytest.mark.parametrize("part_at", [0, 1])
def test_a_signal_within_a_step_ends_the_run_after_that_part(step, writer, tmp_path, part_at):
  """Of the third step's parts, one gets SIGTERM: the state of step 2 is saved, the step itself is
  not begun, and the run that goes on is that of nobody's signal.
  """
  calls = []
  is_armed = True

  def part(number):
    def run(state, value):
      calls.append((number, int(state.iteration)))
      if is_armed and calls[-1] == (part_at, 2):
        os.kill(os.getpid(), signal.SIGTERM)
      return value + number  # the last part adds 1

    return run

  checkpoints = Checkpoints(tmp_path / "c")
  settings = {"steps": 4, "writer": writer, "early": [part(0), part(1)]}
  with pytest.raises(loop.Interrupted, match="a: stopped at step 2 of 4") as stop:
    fit(step, fresh(), batch, stage="a", checkpoints=checkpoints, **settings)
  assert stop.value.number == signal.SIGTERM
  assert calls == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)][: 5 + part_at]
  assert checkpoints.latest() == 2
  assert [row["step"] for row in rows(tmp_path)] == [1, 2]
  is_armed = False
  parts = fit(step, fresh(), batch, stage="a", checkpoints=checkpoints, **settings)
  whole = fit(step, fresh(), batch, stage="whole", **settings)
  assert parts.params["w"] == whole.params["w"]
  # By hand: w <- w - 0.1 (w - x) for x = 1, 2, 3, 4, from 1 on.
  assert float(whole.params["w"]) == pytest.approx(1.561, abs=1e-6)


def test_no_part_begins_before_the_step_before_it_is_done(step, writer, monkeypatch):
  """Or a signal during the step would be seen after the part that waits behind it."""
  events = []
  monkeypatch.setattr(jax, "block_until_ready", lambda value: events.append("wait") or value)

  def part(state, value):
    events.append("part")
    return value

  def run(state, value):
    events.append("step")
    return step(state, value)

  fit(run, fresh(), batch, steps=2, stage="a", writer=writer, early=[part])
  assert events == ["part", "wait", "step", "wait"] * 2


def test_several_processes_stop_where_the_preemption_service_says(
  step, writer, tmp_path, monkeypatch, capsys
):
  """SIGTERM is the service's; a Ctrl-C is passed on to it as a SIGTERM; the step is the one that it
  names.
  """
  from jax.experimental import multihost_utils

  signals = []
  steps_asked = []
  monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    multihost_utils, "reached_preemption_sync_point", lambda at: steps_asked.append(at) or at == 4
  )
  before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))

  def pressed(i):
    if i == 2:
      os.kill(os.getpid(), signal.SIGINT)
    return batch(i)

  try:
    with pytest.raises(loop.Interrupted, match="nothing was saved") as stop:
      fit(step, fresh(), pressed, steps=9, stage="a", writer=writer)
  finally:
    signal.signal(signal.SIGTERM, before)
  assert signals == [signal.SIGTERM]
  assert steps_asked == [1, 2, 3, 4]
  assert stop.value.number == signal.SIGINT


def test_the_best_checkpoint_stays_and_is_measured(step, writer, tmp_path):
  checkpoints = Checkpoints(tmp_path / "c", keep=1, best="eval/nll")
  nll = {2: 3.0, 4: 1.0, 6: 2.0, 8: 5.0}
  fit(
    step,
    fresh(),
    batch,
    steps=8,
    stage="a",
    writer=writer,
    checkpoints=checkpoints,
    checkpoint_every=2,
    evaluate=lambda state: {"eval/nll": nll[int(state.iteration)]},
  )
  assert checkpoints.steps() == [4, 8]
  assert [row["step"] for row in rows(tmp_path) if "eval/nll" in row] == [2, 4, 6, 8]
  typo = Checkpoints(tmp_path / "d", best="nll")
  with pytest.raises(
    UserError, match=r"config.best='nll': this stage does not measure it; it measures loss, w"
  ):
    fit(step, fresh(), batch, steps=8, stage="a", writer=writer, checkpoints=typo)


def test_training_goes_on_while_a_checkpoint_is_written(step, writer, tmp_path, monkeypatch):
  """The commit waits until all steps are done: with donated states, what is written is still the
  state of its step.
  """
  import threading

  from orbax.checkpoint import CheckpointManager

  done = threading.Event()
  finalize = CheckpointManager._finalize
  monkeypatch.setattr(
    CheckpointManager, "_finalize", lambda self, *args: (done.wait(60), finalize(self, *args))
  )
  checkpoints = Checkpoints(tmp_path / "c", keep=9)
  seen = []

  def batches(i):
    if i == 8:
      seen.append([path.name for path in (tmp_path / "c").iterdir()])
      done.set()
    return batch(i)

  fit(
    step,
    fresh(),
    batches,
    steps=9,
    stage="a",
    writer=writer,
    checkpoints=checkpoints,
    checkpoint_every=4,
  )
  assert checkpoints.steps() == [4, 8, 9]
  restored, _ = checkpoints.restore(fresh(), step=4)
  w = next(row["w"] for row in rows(tmp_path) if row["step"] == 4)
  assert float(restored.params["w"]) == w
  assert int(restored.iteration) == 4


def test_an_interrupt_that_cut_a_step_keeps_the_checkpoint_before(step, writer, tmp_path):
  checkpoints = Checkpoints(tmp_path / "c")

  def cut(state, x):
    state, metrics = step(state, x)
    if int(state.iteration) == 4:
      raise KeyboardInterrupt
    return state, metrics

  with pytest.raises(loop.Interrupted, match="stopped at step 2 of 9"):
    fit(
      cut,
      fresh(),
      batch,
      steps=9,
      stage="a",
      writer=writer,
      checkpoints=checkpoints,
      checkpoint_every=2,
    )
  assert checkpoints.latest() == 2


def test_without_checkpoints_an_interrupt_says_so(step, writer):
  def cut(i):
    raise KeyboardInterrupt

  with pytest.raises(loop.Interrupted, match="nothing was saved"):
    fit(step, fresh(), cut, steps=9, stage="a", writer=writer)


@pytest.mark.parametrize("place", ["batch", "step", "evaluation"])
@pytest.mark.parametrize(
  "error", [UserError("t.jsonl:7: bad"), OSError("no such disk")], ids=["mendable", "any"]
)
def test_what_fails_in_the_middle_leaves_what_was_done(step, writer, tmp_path, place, error):
  """Step 3 is done when batch 3 is made and evaluation 3 begins; step 4 fails after step 3."""
  whole = fit(step, fresh(), batch, steps=6, stage="whole", writer=writer)
  broken = True

  def fails(current_place, at):
    if broken and current_place == place and at == 3:
      raise error

  def fragile_step(state, x):
    fails("step", int(state.iteration))
    return step(state, x)

  def evaluate(state):
    fails("evaluation", int(state.iteration))
    return {"eval/w": state.params["w"]}

  checkpoints = Checkpoints(tmp_path / "c")
  batches = lambda i: fails("batch", i) or batch(i)
  settings = {
    "steps": 6,
    "stage": "a",
    "writer": writer,
    "checkpoints": checkpoints,
    "evaluate": evaluate,
    "evaluate_every": 3,
  }
  advice = "a: step 3 of 6 is kept; run the same command again to go on from there"
  with pytest.raises(type(error), match=str(error)) as raised:
    fit(fragile_step, fresh(), batches, **settings)
  assert advice in (str(raised.value) if isinstance(error, UserError) else raised.value.__notes__)
  assert checkpoints.latest() == 3
  if place == "batch":  # nothing is done before it comes again
    with pytest.raises(type(error)) as raised:
      fit(fragile_step, fresh(), batches, **settings)
    assert "is kept" not in str(raised.value)
  broken = False
  state = fit(fragile_step, fresh(), batches, **settings)
  assert state.params["w"] == whole.params["w"]
  assert [row["step"] for row in rows(tmp_path) if row["stage"] == "a" and "loss" in row] == [
    1,
    2,
    3,
    4,
    5,
    6,
  ]


@pytest.mark.parametrize("place", ["batch", "evaluation"])
def test_a_nan_of_the_last_step_is_not_saved_by_another_failure(step, writer, tmp_path, place):
  checkpoints = Checkpoints(tmp_path / "c")

  def fails(current_place):
    if current_place == place:
      raise UserError("bad")

  batches = lambda i: jnp.float32("nan") if i == 2 else (i == 3 and fails("batch")) or batch(i)
  with pytest.raises(UserError, match="loss is nan at step 3; no state was saved before"):
    fit(
      step,
      fresh(),
      batches,
      steps=6,
      stage="a",
      writer=writer,
      checkpoints=checkpoints,
      evaluate=lambda state: fails("evaluation"),
      evaluate_every=3,
    )
  assert checkpoints.latest() is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_good_state(step, writer, tmp_path, bad):
  checkpoints = Checkpoints(tmp_path / "c")
  batches = lambda i: jnp.float32(bad if i == 4 else i)
  with pytest.raises(
    UserError, match=rf"a: loss is {bad} at step 5; the finite state of step 4 is kept"
  ):
    fit(
      step,
      fresh(),
      batches,
      steps=9,
      stage="a",
      writer=writer,
      checkpoints=checkpoints,
      checkpoint_every=2,
    )
  assert checkpoints.latest() == 4
  restored, _ = checkpoints.restore(fresh())
  assert jnp.isfinite(restored.params["w"])
  assert rows(tmp_path)[-1]["loss"] is None


def test_nan_right_at_a_checkpoint_is_not_saved(step, writer, tmp_path):
  checkpoints = Checkpoints(tmp_path / "c")
  batches = lambda i: jnp.float32("nan" if i == 3 else i)
  with pytest.raises(UserError, match="at step 4; the finite state of step 2 is kept"):
    fit(
      step,
      fresh(),
      batches,
      steps=9,
      stage="a",
      writer=writer,
      checkpoints=checkpoints,
      checkpoint_every=2,
    )
  assert checkpoints.latest() == 2


def poisoned(place, at, value):
  """A step whose loss stays finite while its update makes one part of the state `value`."""

  def run(state, x):
    iteration = state.iteration + 1
    bad = jnp.where(iteration == at, jnp.float32(value), jnp.float32(1))
    grad_norm = jnp.float32(1)
    if place == "params":
      state = replace(state, params={"w": state.params["w"] * bad})
    elif place == "opt_state":
      state = replace(state, opt_state={"nu": state.opt_state["nu"] * bad})
    elif place == "ema":
      state = replace(state, ema={"w": state.ema["w"] * bad})
    else:
      grad_norm = bad
    return replace(state, iteration=iteration), {"loss": jnp.float32(1), "grad/norm": grad_norm}

  return run


def whole_state():
  return replace(
    fresh(), opt_state={"nu": jnp.float32(1)}, ema={"w": jnp.float32(1)}, params={"w": jnp.ones(3)}
  )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
  ("place", "named"),
  [
    ("params", "'params/w' is not finite after the update of step 4"),
    ("opt_state", "'opt_state/nu' is not finite after the update of step 4"),
    ("ema", "'ema/w' is not finite after the update of step 4"),
    ("grad", "grad/norm is .* at step 4"),
  ],
)
def test_a_state_that_is_not_finite_is_never_saved_though_the_loss_is(
  writer, tmp_path, place, named, value
):
  """The step that the message names can be gone on from."""
  checkpoints = Checkpoints(tmp_path / "c", keep=9)
  settings = {"steps": 6, "stage": "a", "writer": writer, "checkpoints": checkpoints}
  settings["checkpoint_every"] = 1
  with pytest.raises(UserError, match=f"a: {named}; the finite state of step 3 is kept"):
    fit(poisoned(place, 4, value), whole_state(), batch, **settings)
  assert checkpoints.steps() == [1, 2, 3]
  state = fit(poisoned(place, 0, value), whole_state(), batch, **settings)
  assert int(state.iteration) == 6
  assert jnp.isfinite(state.params["w"]).all()


@pytest.mark.parametrize("with_checkpoints", [True, False])
def test_the_last_update_is_looked_at_and_nothing_is_measured_on_it(
  writer, tmp_path, with_checkpoints
):
  checkpoints = Checkpoints(tmp_path / "c") if with_checkpoints else None
  measured = []
  settings = {"evaluate": lambda state: measured.append(1) or {}, "checkpoints": checkpoints}
  with pytest.raises(UserError, match="'params/w' is not finite after the update of step 6"):
    fit(
      poisoned("params", 6, jnp.inf),
      whole_state(),
      batch,
      steps=6,
      stage="a",
      writer=writer,
      **settings,
    )
  assert not measured
  assert not (tmp_path / "c").exists()


def test_an_evaluation_that_is_not_finite_stops(step, writer, tmp_path):
  """Huge weights are finite, and what they compute is not."""
  checkpoints = Checkpoints(tmp_path / "c")
  with pytest.raises(UserError, match="a: eval/nll is nan at step 2; no state was saved before"):
    fit(
      step,
      fresh(),
      batch,
      steps=2,
      stage="a",
      writer=writer,
      checkpoints=checkpoints,
      evaluate=lambda state: {"eval/nll": jnp.float32("nan")},
    )
  assert checkpoints.latest() is None
  assert rows(tmp_path)[-1]["eval/nll"] is None


def test_an_unknown_value_is_null_and_no_failure(step, writer, tmp_path):
  """None is not NaN: there was nothing to measure, and the run is healthy."""
  checkpoints = Checkpoints(tmp_path / "c", best="eval/accuracy")
  fit(
    step,
    fresh(),
    batch,
    steps=2,
    stage="a",
    writer=writer,
    checkpoints=checkpoints,
    evaluate=lambda state: {"eval/accuracy": None, "eval/nll": 1.0},
  )
  last = rows(tmp_path)[-1]
  assert (last["eval/accuracy"], last["eval/nll"]) == (None, 1.0)
  assert checkpoints.latest() == 2


def test_ctrl_c_saves_no_state_that_is_not_finite(writer, tmp_path):
  checkpoints = Checkpoints(tmp_path / "c")

  def pressed(i):
    if i == 2:
      raise KeyboardInterrupt
    return batch(i)

  with pytest.raises(UserError, match="is not finite after the update of step 2; no state was sav"):
    fit(
      poisoned("params", 2, jnp.nan),
      whole_state(),
      pressed,
      steps=6,
      stage="a",
      writer=writer,
      checkpoints=checkpoints,
    )
  assert checkpoints.latest() is None


def test_a_checkpoint_that_an_earlier_version_left_infinite_is_named(
  step, writer, tmp_path, monkeypatch
):
  from instructjax.runs import checkpoint

  checkpoints = Checkpoints(tmp_path / "c")
  monkeypatch.setattr(checkpoint, "first_not_finite", lambda tree: "")
  broken = replace(fresh(), params={"w": jnp.float32("inf")}, iteration=jnp.int32(2))
  checkpoints.save(2, broken, {"stage": "a"})
  checkpoints.wait()
  message = r"c/2: 'params/w' is not finite, so the run cannot go on from it; move this folder away"
  with pytest.raises(UserError, match=message):
    fit(step, fresh(), batch, steps=3, stage="a", writer=writer, checkpoints=checkpoints)


def test_a_metric_that_is_no_loss_may_be_nan(writer, tmp_path):
  step = lambda state, x: (
    replace(state, iteration=state.iteration + 1),
    {"explained": jnp.float32("nan")},
  )
  fit(step, fresh(), batch, steps=2, stage="a", writer=writer)
  assert rows_without_times(tmp_path)[0] == {"step": 1, "stage": "a", "explained": None}


def test_checkpoints_of_another_stage_are_refused(step, writer, tmp_path):
  checkpoints = Checkpoints(tmp_path / "c")
  fit(step, fresh(), batch, steps=2, stage="a", writer=writer, checkpoints=checkpoints)
  with pytest.raises(UserError, match="holds checkpoints of stage 'a', not 'b'"):
    fit(step, fresh(), batch, steps=2, stage="b", writer=writer, checkpoints=checkpoints)
  with pytest.raises(UserError, match="is at step 2, beyond the 1 asked for"):
    fit(step, fresh(), batch, steps=1, stage="a", writer=writer, checkpoints=checkpoints)


def test_checkpoints_of_other_data_or_settings_are_refused(step, writer, tmp_path):
  checkpoints = Checkpoints(tmp_path / "c")
  settings = {"steps": 2, "stage": "a", "writer": writer, "checkpoints": checkpoints}
  fit(step, fresh(), batch, extra={"fingerprints": {"text": "a" * 64}}, **settings)
  with pytest.raises(
    UserError, match=r"a run with another text \(aaaaaaaa, this one is bbbbbbbb\)"
  ):
    fit(step, fresh(), batch, extra={"fingerprints": {"text": "b" * 64}}, **settings)
  # Data that only one of the two runs reads is a difference too.
  more = {"text": "a" * 64, "valid": "c" * 64}
  with pytest.raises(UserError, match=r"with another valid \(none, this one is cccccccc\)"):
    fit(step, fresh(), batch, extra={"fingerprints": more}, **settings)
  with pytest.raises(UserError, match=r"with another text \(aaaaaaaa, this one is none\)"):
    fit(step, fresh(), batch, **settings)


# --- hooks ---


def stopping(at, seen):
  def stop(step, metrics, state):
    seen.append((step, metrics["w"], float(state.params["w"])))
    return f"w is {metrics['w']:.2f}" if step == at else None

  return stop


def test_a_hook_sees_the_metrics_and_the_state_of_its_steps(step, writer):
  seen = []
  fit(step, fresh(), batch, steps=5, stage="a", writer=writer, hook=hook(stopping(0, seen), 2))
  assert [number for number, _, _ in seen] == [2, 4, 5]
  for _, measured, w in seen:
    assert w == pytest.approx(measured)  # both are after the update


def test_a_hook_stops_the_run_in_order(step, writer, tmp_path, capsys):
  """With its metrics, an evaluation and a checkpoint, as after the last step."""
  checkpoints = Checkpoints(tmp_path / "c")
  run = {
    "steps": 9,
    "stage": "a",
    "writer": writer,
    "checkpoints": checkpoints,
    "log_every": 5,
    "evaluate": lambda state: {"eval/w": state.params["w"]},
  }
  state = fit(step, fresh(), batch, **run, hook=hook(stopping(4, []), 2, name="mine"))
  assert int(state.iteration) == 4
  assert checkpoints.latest() == 4
  assert checkpoints.extra()["stopped"] == "mine: w is 1.22"
  assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [4]
  assert [row["step"] for row in rows(tmp_path) if "eval/w" in row] == [4]
  assert "a: stopped at step 4 of 9 by mine: w is 1.22" in capsys.readouterr().err

  # The same command leaves it there, and one without a hook goes on.
  again = fit(step, fresh(), batch, **run, hook=hook(stopping(0, []), 2, name="mine"))
  assert int(again.iteration) == 4
  assert "a: was stopped at step 4 of 9: mine: w is 1.22" in capsys.readouterr().err
  assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [4]
  on = fit(step, fresh(), batch, **run)
  assert int(on.iteration) == 9
  assert "stopped" not in checkpoints.extra()


def test_a_hook_that_fails_loses_no_step(step, writer, tmp_path):
  def broken(number, metrics, state):
    return metrics["lss"]

  checkpoints = Checkpoints(tmp_path / "c")
  with pytest.raises(UserError, match=r"KeyError: 'lss' at .*test_loop.py:\d+. a: step 3 of 9"):
    fit(
      step,
      fresh(),
      batch,
      steps=9,
      stage="a",
      writer=writer,
      checkpoints=checkpoints,
      hook=hook(broken, 3),
    )
  assert checkpoints.latest() == 3


def test_a_stop_at_the_last_step_is_no_stop(step, writer, tmp_path):
  """The run is finished, and a longer one may go on from there."""
  checkpoints = Checkpoints(tmp_path / "c")
  run = {"stage": "a", "writer": writer, "checkpoints": checkpoints}
  fit(step, fresh(), batch, steps=2, **run, hook=hook(stopping(2, [])))
  assert "stopped" not in checkpoints.extra()
