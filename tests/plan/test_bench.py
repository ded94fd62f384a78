"""`instructjax bench` times the wired stages: every step compiles once, and its cost is counted."""

import json
from functools import cache

import jax
import numpy as np
import pytest

from instructjax.errors import UserError
from instructjax.plan import bench, counting, lengths
from instructjax.runs import origin
from instructjax.stages import running, trips

SMALL = {"batch": 4, "prompt": 8, "response": 8, "length": 16, "minibatches": 2, "repeats": 2}
RATES = {
  "sft": {"tokens/s": 4 * 16},
  "reward": {"pairs/s": 4, "tokens/s": 4 * (8 + 2 * 8)},
  "rollout": {"sampled tokens/s": 4 * 8, "episodes/s": 4},
  "ppo": {"episodes/s": 4, "sampled tokens/s": 4 * 8},
  "dpo": {"pairs/s": 4, "tokens/s": 4 * (8 + 2 * 8)},
  "grpo": {"episodes/s": 4 * 4, "sampled tokens/s": 16 * 8, "tokens/s": 16 * (8 + 8)},
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
  costs = bench.costs_of(work.stage, work.state, work.frozen, work.batches(0))
  return sum(cost.flops for cost in costs.values())


@pytest.mark.parametrize("stage", bench.STAGES)
def test_a_stage_is_timed_and_compiles_once(stage):
  report = bench.measure(options(stage))
  assert report["compilations"] == 1
  assert len(report["seconds"]) == 2
  a, b = report["seconds"]
  for name, count in RATES[stage].items():
    assert report[name] == pytest.approx((count / a + count / b) / 2)
  assert report["real_share"] == 1
  assert report["flops"] == flops(stage)  # all of it is useful
  assert report["limit_s"] >= report["flops"] / 1e9 > 0
  limit = report["limit_s"]
  assert report["share_of_limit"] == pytest.approx((limit / a + limit / b) / 2)
  assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize(
  ("stage", "change"), [("sft", {"top": 1}), ("reward", {"lora": 2}), ("ppo", {"top": 1})]
)
def test_what_is_not_trained_costs_less(stage, change):
  assert flops(stage, **change) < flops(stage)


def test_an_iteration_costs_what_its_parts_cost():
  # With one minibatch the loops of a name run equally often in all parts.
  b = options("ppo", ptx=1, epochs=2, minibatches=1)
  work = bench.start_ppo(b, bench.language_model(b))
  traced = jax.jit(work.stage.step).trace(work.state, work.frozen, work.batches(0))
  trips = {name: n for part in work.stage.parts for name, n in part.trips.items()}
  assert (
    flops("ppo", ptx=1, epochs=2, minibatches=1) == counting.count(traced.jaxpr, [], trips).flops
  )


@pytest.mark.parametrize("stage", ["sft", "rollout", "ppo", "dpo", "grpo"])
def test_drawn_lengths_are_those_of_the_batch_and_their_rates_are_of_real_tokens(stage):
  """Every repeat has other rows, of which nothing is compiled again."""
  b = options(stage, lengths="uniform", completions=3)
  report = bench.measure(b)
  assert report["compilations"] == 1
  work = bench.STAGES[stage](b, bench.language_model(b))
  first, second, again = work.batches(0), work.batches(1), work.batches(0)
  assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), first, again))
  name = {"sft": "rows", "reward": "comparisons", "dpo": "comparisons"}.get(stage, "prompts")
  assert (first[name].tokens != second[name].tokens).any()
  responses = 4 if stage == "grpo" else 1  # to each prompt, all of one length
  for number, batch in enumerate([first, second]):
    real = (batch[name].valid > 0).sum()
    if name == "prompts":
      real += batch[name].ends.sum()
      assert batch[name].valid[:, -1].all()  # padded on the left
    counts = work.counts(number)
    assert counts["tokens"] == responses * real
  positions = {"sft": 4 * 16, "dpo": 4 * (8 + 3 * 8)}.get(stage, responses * 4 * (8 + 8))
  counts = [work.counts(number)["tokens"] for number in (1, 2)]
  assert report["real_share"] == pytest.approx(np.mean(counts) / positions)
  rates = np.divide(counts, report["seconds"])
  assert report["tokens/s"] == pytest.approx(np.median(rates))
  assert 0 < report["flops"] < flops(stage, completions=3)


def test_a_run_and_its_benchmark_make_as_many_updates():
  assert [bench.minibatches_of(bench.Bench(stage)) for stage in ("ppo", "grpo", "sft")] == [8, 1, 1]
  assert bench.minibatches_of(bench.Bench("grpo", minibatches=2)) == 2


def test_grpo_computes_no_value_network_and_reads_a_prompt_once():
  """Its 16 episodes cost less than those of PPO, but for the rollout nearly 4 times those of 4."""
  by_part = {}
  for stage, batch in (("ppo", 16), ("grpo", 4)):
    b = options(stage, batch=batch)
    work = bench.STAGES[stage](b, bench.language_model(b))
    costs = bench.costs_of(work.stage, work.state, work.frozen, work.batches(0))
    by_part[stage] = {name: cost.flops for name, cost in costs.items()}
  assert by_part["grpo"].keys() == by_part["ppo"].keys() == {"rollout", "scoring", "update"}
  assert all(by_part["grpo"][name] < cost for name, cost in by_part["ppo"].items())


def test_responses_end_by_the_schedule():
  b = options("rollout", lengths="uniform")
  work = bench.start_rollout(b, bench.language_model(b))
  batch = work.batches(1)
  _, rows = jax.jit(work.stage.step)(work.state, work.frozen, batch)
  np.testing.assert_array_equal(rows.mask.sum(-1), batch["prompts"].ends)
  assert work.counts(1)["sampled tokens"] == rows.mask.sum()


def test_a_prompt_stands_once_before_its_completions():
  """Random completions of a prompt may begin with the same token, which then stands there too."""
  b = options("dpo", lengths="uniform", completions=3)
  part = lengths.draws("uniform", b.prompt, b.response)(0, 4 * 3)
  groups = bench.random_comparisons(b, 257, learnt=True).groups(0)
  assert [(group.branch == 0).sum() for group in groups] == part.prompt[::3].tolist()
  in_branches = [(group.branch == k).sum() for group in groups for k in (1, 2, 3)]
  assert in_branches == part.response.tolist()


def test_the_share_of_useful_positions_is_reported_where_a_stage_says_it():
  b = options("reward", lengths="uniform", repeats=3)
  report = bench.measure(b)
  work = bench.start_reward(b, bench.language_model(b))
  tokens = [(work.batches(number)["comparisons"].valid > 0).sum() for number in (1, 2, 3)]
  assert 0 < report["update/useful"] <= 1
  assert report["real_share"] == pytest.approx(np.mean(tokens) / (4 * (8 + 2 * 8)))
  report |= {"update/useful": 0.6, "real_share": 0.25}
  lines = bench.table(report).splitlines()
  assert "  useful           60 % of update, 25 % of the padded positions are real" in lines


def test_a_rollout_reports_its_real_tokens_among_the_positions_that_it_computed():
  b = options("rollout", lengths="uniform")
  report = bench.measure(b)
  work = bench.start_rollout(b, bench.language_model(b))
  cfg = bench.Sampling(response=b.response)
  shares = []
  for number in (1, 2):
    tokens = work.counts(number)["tokens"]
    part = lengths.draws("uniform", b.prompt, b.response)(number, 4)
    loops = trips.of_rollout(cfg, b.prompt, *part)
    # All 4 rows have a slot, and every prompt fits in one part of 8 columns.
    positions = loops["refills"] * 4 * 8 + loops["refills"] * loops["steps"] * 4
    shares.append((tokens - 4) / positions)  # the last of each row is never read
  assert report["rollout/useful"] == pytest.approx(np.median(shares))


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
    (options("grop"), "unknown stage 'grop'; choose one of sft, reward, rollout, ppo"),
    (bench.Bench("sft", "7b"), "unknown shape '7b'; choose one of tiny"),
    (options("sft", repeats=0), "--repeats=0 measures nothing"),
    (options("grpo", ptx=1), "--ptx=1 is text of PPO-ptx, and grpo learns from none"),
    (options("grpo", minibatches=3), "it has 16 episodes, which do not divide"),
    (options("rollout", lora=8), "--lora=8 says what is trained"),
    (options("sft", top=1, lora=8), r"config\.(top|lora)"),
    (options("sft", text="a.jsonl", lengths="paper"), "--lengths=paper draws rows, and --text"),
    (options("rollout", lengths="papr"), "--lengths=papr: cannot be read"),
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
