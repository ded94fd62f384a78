"""`instructjax bench` times the wired stages: every step compiles once, and its cost is counted."""

import json
from functools import cache

import jax
import pytest

from instructjax.errors import UserError
from instructjax.plan import bench, counting
from instructjax.runs import origin
from instructjax.stages import running

SMALL = {"batch": 4, "prompt": 8, "response": 8, "length": 16, "minibatches": 2, "repeats": 2}
RATES = {
  "sft": {"tokens/s": 4 * 16},
  "reward": {"pairs/s": 4, "tokens/s": 4 * (8 + 2 * 8)},
  "rollout": {"sampled tokens/s": 4 * 8, "episodes/s": 4},
  "ppo": {"episodes/s": 4, "sampled tokens/s": 4 * 8},
  "dpo": {"pairs/s": 4, "tokens/s": 4 * (8 + 2 * 8)},
}


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
  """A shape that compiles in no time, and a machine whose rates are known."""
  monkeypatch.setattr(bench, "SHAPES", {"tiny": origin.SHAPES["tiny"]})
  monkeypatch.setattr(bench, "machine_rates", lambda: (1e9, 1e6))


def options(stage, **changes):
  return bench.Bench(stage, "tiny", **SMALL | changes)


@cache
def flops(stage, **changes):
  b = options(stage, **changes)
  work = bench.STAGES[b.stage](b, bench.language_model(b))
  step = jax.jit(work.stage.step)
  return bench.cost_of(step, work.stage, work.state, work.frozen, work.batches(0)).flops


@pytest.mark.parametrize("stage", bench.STAGES)
def test_a_stage_is_timed_and_compiles_once(stage):
  report = bench.measure(options(stage))
  assert report["compilations"] == 1
  assert len(report["seconds"]) == 2
  for name, count in RATES[stage].items():
    assert report[name] == pytest.approx(count / report["median_s"])
  assert report["limit_s"] >= report["flops"] / 1e9 > 0
  assert report["share_of_limit"] == pytest.approx(report["limit_s"] / report["median_s"])
  assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize(
  ("stage", "change"), [("sft", {"top": 1}), ("reward", {"lora": 2}), ("ppo", {"top": 1})]
)
def test_what_is_not_trained_costs_less(stage, change):
  assert flops(stage, **change) < flops(stage)


def test_an_iteration_costs_what_its_parts_cost():
  b = options("ppo", ptx=1, epochs=2)
  work = bench.start_ppo(b, bench.language_model(b))
  values = dict(work.batches(0))
  total = 0.0
  for part in work.stage.parts:
    arguments = (work.state, work.frozen, *(values[name] for name in part.reads))
    total += counting.count(jax.make_jaxpr(part.function)(*arguments), [], part.trips).flops
    if part.writes != "state":
      values[part.writes] = jax.eval_shape(part.function, *arguments)
  assert flops("ppo", ptx=1, epochs=2) == total


def test_a_rollout_is_the_part_of_an_iteration_and_samples_anew():
  b = options("rollout")
  work = bench.start_rollout(b, bench.language_model(b))
  whole = bench.start_ppo(b, bench.language_model(b))
  rollout = jax.jit(whole.stage.parts[0].function)
  step = jax.jit(work.stage.step)
  batch = work.batches(0)
  state, rows = step(work.state, work.frozen, batch)
  assert (rows.tokens == rollout(whole.state, whole.frozen, batch["prompts"]).tokens).all()
  assert rows.mask.all()
  _, later = step(state, work.frozen, batch)
  assert (rows.tokens != later.tokens).any()


def test_the_report_is_printed_as_a_table_or_as_json(capsys):
  bench.main(options("reward"))
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("reward tiny float32, batch 4, ")
  assert lines[2].split()[0] == "pairs/s"
  assert "GFLOP/s float32" in lines[-1]
  bench.main(options("reward"), as_json=True)
  assert json.loads(capsys.readouterr().out)["stage"] == "reward"


@pytest.mark.parametrize(
  ("b", "message"),
  [
    (options("grpo"), "unknown stage 'grpo'; choose one of sft, reward, rollout, ppo"),
    (bench.Bench("sft", "7b"), "unknown shape '7b'; choose one of tiny"),
    (options("sft", repeats=0), "--repeats=0 measures nothing"),
    (options("rollout", lora=8), "--lora=8 says what is trained"),
    (options("sft", top=1, lora=8), r"config\.(top|lora)"),
    (options("ppo", batch=5), r"config\.batch=5: it does not divide by config\.ppo\.minibatches=2"),
    (options("sft", length=300), "300 tokens, the model's context is 256"),
  ],
)
def test_what_cannot_be_measured_is_refused(b, message):
  with pytest.raises(UserError, match=message):
    bench.measure(b)


def test_a_stage_starts_as_a_run_does():
  """The state and what is frozen have the shapes that `Stage.init` gives a run."""
  b = options("ppo", top=1)
  lm = bench.language_model(b)
  work = bench.start_ppo(b, lm)
  again = running.start(
    work.stage, 0, *[origin.random_params(lm, 0)] * 2, work.frozen.reward["head"]
  )
  assert jax.tree.structure(again) == jax.tree.structure((work.state, work.frozen))
