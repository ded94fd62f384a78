"""The quickstart on a tiny random Llama: what it writes, that it resumes, and what it measures."""

import contextlib
import dataclasses
import importlib.util
import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from instructjax import quickstart
from instructjax.data.public import tone
from instructjax.data.records.records import Comparison, Text
from instructjax.models import llama, save
from instructjax.quickstart import data, duration, judging, ranking, recipe, tables, telling
from instructjax.quickstart.judging import Judged
from instructjax.quickstart.models import POLICIES
from instructjax.runs import loop, origin
from instructjax.runs.checkpoint import Checkpoints
from instructjax.settings.subjects import ModelSettings

TINY = dataclasses.replace(
  quickstart.FAST,
  top=1,
  dtype="float32",
  unroll=1,
  prompt=96,
  response=16,
  text=24,
  demonstrations=32,
  comparisons=8,
  gold=8,
  test_prompts=4,
  best_of=2,
  test_comparisons=4,
  text_rows=32,
  text_valid=4,
  iterations=2,
  episodes=8,
  minibatches=2,
  ptx_ratio=2,
  ptx_micro=1,
)
TEMPLATE = (
  "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|end|>' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
PARTS_OF_WINS = ("", "_answered", "_by_slice")
NAMES = ["sft", "rl_init", "reward", "gold", "ppo", "ptx"]
MODEL = ModelSettings(dtype="float32", remat="none")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A folder with a random two-block Llama and a byte-level BPE tokenizer."""
  folder = tmp_path_factory.mktemp("model")
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<|end|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator([row.text for row in tone.load()[:400]], trainer)
  config = llama.LlamaConfig(
    vocab_size=tokenizer.get_vocab_size(),
    context=128,
    width=32,
    depth=2,
    heads=4,
    kv_heads=2,
    mlp=48,
  )
  save(folder, config, llama.llama(config).init(jax.random.key(0)))
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"eos_token": "<|end|>", "chat_template": TEMPLATE})
  )
  return folder


def run(model, workdir, **changes):
  page = quickstart.main(dataclasses.replace(TINY, model=str(model), **changes), workdir)
  assert page == workdir / "report.html"
  return json.loads((workdir / "results.json").read_text())


def numbers(results):
  return {name: part for name, part in results.items() if name in ("rm", "models")}


def rows(path):
  """The objects of a file, without what the machine did, which differs from run to run."""
  objects = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    {name: row[name] for name in row if not name.startswith(loop.OF_MACHINE)} for row in objects
  ]


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
  """(directory, results) of a whole run."""
  workdir = tmp_path_factory.mktemp("finished")
  return workdir, run(model, workdir)


def test_results_are_complete(finished):
  workdir, results = finished
  assert list(results["models"]) == ["base", "sft", "best_of_n", "ppo", "ptx", "people"]
  for name, row in results["models"].items():
    judged = {"score", "gold", "directed", "empty", "repeated", "distinct"}
    judged |= {"follows", "follows_praise", "follows_criticise"}
    # What people wrote was not sampled, and best-of-n is no model of its own.
    sampled = {"kl", "length", "eos_rate", "pretrain_nll"} if name in POLICIES else set()
    # Nobody wins against themselves.
    rivals = [rival for rival in ("sft", "base") if rival != name]
    wins = {f"win_rate_vs_{rival}{part}" for rival in rivals for part in PARTS_OF_WINS}
    assert set(row) == judged | sampled | wins
    assert row["gold"]["n"] == 12 and row["directed"]["n"] == 6
    assert row["follows_praise"]["n"] == row["follows_criticise"]["n"] == 6
    for rival in rivals:
      rate = row[f"win_rate_vs_{rival}"]
      assert rate["n"] == 12 and 0 <= rate["low"] <= rate["high"] <= 1
      assert row[f"win_rate_vs_{rival}_answered"]["n"] <= 12
      assert set(row[f"win_rate_vs_{rival}_by_slice"]) == {*tone.TEST, *tone.DIRECTIONS}
  people = results["models"]["people"]
  assert people["empty"]["value"] == 0
  # Of several answers the one with the highest score was chosen, and SFT's is one of them.
  best = [sample["scores"]["best_of_n"] for sample in rows(workdir / "samples.jsonl")]
  first = [sample["scores"]["sft"] for sample in rows(workdir / "samples.jsonl")]
  assert all(ours >= theirs for ours, theirs in zip(best, first, strict=True)) and best != first
  rates = tables.policy_table(results["models"]).rows[-3]
  assert rates[0] == "gold win rate against sft"
  assert rates[2] == "–" and all(" to " in rate for rate in (rates[1], *rates[3:]))
  accuracies = tables.ranking_table(results["rm"]).rows
  pairs, prompts = (results["rm"]["pair_accuracy"][name] for name in ("n", "clusters"))
  assert pairs > prompts and accuracies[0][2] == f"{pairs} in {prompts}"
  assert list(results["rm"]["by_domain"]) == ["movies", "tweets", "amazon"]
  assert list(results["rm"]["by_direction"]) == ["praise", "criticise"]
  assert sum(row["n"] for row in results["rm"]["calibration"]) > 0
  assert results["seed"] == 0
  assert results["peak_rss_gb"] > 0
  assert set(results["seconds"]) == {"set-up", *NAMES, "evaluation", "total"}
  samples = rows(workdir / "samples.jsonl")
  assert len(samples) == 12
  assert all(set(sample["responses"]) == set(results["models"]) for sample in samples)


def test_every_stage_is_a_run_that_left_a_model(model, finished):
  """The models are whole, and no stage has changed what lies below its top blocks."""
  workdir, _ = finished
  base = origin.open_model(str(workdir / "models" / "base"), MODEL, 0)
  source = origin.open_model(str(model), MODEL, 0)
  assert all(map(np.array_equal, jax.tree.leaves(base.params), jax.tree.leaves(source.params)))
  for name in NAMES:
    folder = workdir / "models" / name
    assert json.loads((folder / "config.json").read_text())["top"] == 1
    if name in ("reward", "gold"):
      trained = origin.open_reward_model(str(folder), MODEL)
    else:
      trained = origin.open_model(str(folder), MODEL, 0)
    # A response of every one of them ends at a new line.
    assert trained.tokenizer.eos[0] == source.tokenizer.encode("\n")[0]
    for ours, theirs in zip(
      jax.tree.leaves(trained.params["blocks"]), jax.tree.leaves(base.params["blocks"]), strict=True
    ):
      assert np.array_equal(ours[0], theirs[0])
    changed = jax.tree.map(
      lambda ours, theirs: not np.array_equal(ours[1], theirs[1]),
      trained.params["blocks"],
      base.params["blocks"],
    )
    assert any(jax.tree.leaves(changed)), name


def test_metrics_stand_under_the_names_of_the_runs(finished):
  workdir, results = finished
  metrics = rows(workdir / "metrics.jsonl")
  assert list(dict.fromkeys(row["stage"] for row in metrics)) == NAMES
  # The loss on held-out text before and after PPO; the last one is that of the results.
  losses = [row for row in metrics if "eval/pretrain_nll" in row]
  assert [(row["stage"], row["step"]) for row in losses] == [
    ("ppo", 0),
    ("ppo", 2),
    ("ptx", 0),
    ("ptx", 2),
  ]
  assert losses[3]["eval/pretrain_nll"] == results["models"]["ptx"]["pretrain_nll"]["value"]


def test_a_finished_run_trains_nothing_again(model, finished, monkeypatch):
  """The report can be made again, with the same numbers."""
  workdir, results = finished
  metrics = (workdir / "metrics.jsonl").read_text()
  monkeypatch.setattr(loop, "fit", None)
  again = run(model, workdir)
  assert numbers(again) == numbers(results)
  assert (workdir / "metrics.jsonl").read_text() == metrics


@pytest.mark.release
def test_an_interrupted_run_goes_on_to_the_same_numbers(model, finished, tmp_path, monkeypatch):
  workdir, results = finished
  whole = loop.stop_signal
  fits = iter(range(100))

  @contextlib.contextmanager
  def stop_in_third_stage():
    if next(fits) == 2:
      yield lambda step: signal.SIGINT if step == 2 else 0
    else:
      yield lambda step: 0

  monkeypatch.setattr(loop, "stop_signal", stop_in_third_stage)
  with pytest.raises(KeyboardInterrupt, match="stopped at step 2 of 4"):
    run(model, tmp_path)
  left = tmp_path / "models" / "reward" / "checkpoints"
  assert Checkpoints(left / "reward").latest() == 2
  assert Checkpoints(left / "final").latest() is None
  monkeypatch.setattr(loop, "stop_signal", whole)
  assert numbers(run(model, tmp_path)) == numbers(results)
  assert rows(tmp_path / "metrics.jsonl") == rows(workdir / "metrics.jsonl")
  assert rows(tmp_path / "samples.jsonl") == rows(workdir / "samples.jsonl")


def test_the_recipe_is_that_of_the_method(tmp_path):
  runs = recipe.runs(quickstart.Quickstart(), tmp_path)
  assert list(runs) == NAMES
  settings = {name: stage_run.settings for name, stage_run in runs.items()}
  folder = tmp_path / "models"
  # Both reward models start from the SFT model, on comparisons of different people.
  for name, comparisons in (("reward", "comparisons"), ("gold", "gold")):
    assert settings[name].model.source == str(folder / "sft")
    assert settings[name].data.comparisons == str(tmp_path / "data" / f"{comparisons}.jsonl")
  assert settings["gold"].seed == settings["reward"].seed + 1
  # A tenth of a batch of rl_init is pretraining text, to the nearest row.
  assert (settings["rl_init"].batch, settings["rl_init"].rows_of_text) == (16, 2)
  # PPO and PPO-ptx differ in the mix alone.
  ppo = settings["ppo"]
  assert (ppo.rl_init, ppo.reward_model) == (str(folder / "rl_init"), str(folder / "reward"))
  with_mix = dataclasses.replace(ppo.ppo, ptx_coef=quickstart.Quickstart().ptx_coef)
  assert (ppo.ppo.ptx_coef, dataclasses.replace(ppo, ppo=with_mix)) == (0.0, settings["ptx"])


def test_all_blocks_are_trained_without_stems(tmp_path):
  runs = recipe.runs(dataclasses.replace(quickstart.FAST, top=None), tmp_path)
  for stage_run in runs.values():
    assert stage_run.settings.top is None
    assert not stage_run.settings.data.stems


def test_no_more_text_is_kept_than_is_drawn_from():
  texts = [Text(f"{'word ' * 9}word", id=str(number)) for number in range(5)]
  words = spelled_as([1] * 10)
  assert data.first_texts(texts, words, 22) == texts[:2]  # eleven tokens each, with the end
  assert data.first_texts(texts, words, 23) == texts[:3]
  assert data.first_texts(texts, words, 1000) == texts


def spelled_as(ids):
  from instructjax.data.tokens.tokenizers import Tokenizer as Ours

  return Ours(lambda text: ids, lambda ids: "", 5, (3,), (0,), (), "x")


def test_one_line_ends_responses_with_a_new_line():
  spell = {0: "a", 1: "\n", 2: "b\n", 3: "<end>", 4: "\n\n"}
  plain = spelled_as([1])._replace(decode=lambda ids: spell[ids[0]] if ids[0] != 3 else "")
  changed = quickstart.one_line(plain)
  assert changed.eos == (1, 3)
  assert changed.banned == (0, 2, 4)


def test_calibration_counts_pairs_by_their_probability():
  comparison = Comparison("p", ("a", "b", "c"), (1, 2, 2))
  table = ranking.calibration([[2.0, 0.0, 3.0]], [comparison], bins=2)
  assert [row["n"] for row in table] == [1, 1]  # a over b with p = .88, a over c with p = .73
  assert [row["correct"] for row in table] == [0.0, 1.0]
  np.testing.assert_allclose(
    [row["p"] for row in table], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2))]
  )


def judged(reward, gold, crossed):
  """Verdicts about four answers, to two instructions."""
  scores = {"reward": np.asarray(reward), "gold": np.asarray(gold)}
  return Judged(scores, np.asarray(crossed), np.asarray(gold))


def test_the_praise_is_directed_where_gold_finds_it_the_more_positive():
  # Praise, criticism, praise, criticism; both criticisms under the prompt that asks for praise.
  verdict = judged([0, 0, 0, 0], [1.0, 9.0, 2.0, 9.0], [0.5, 3.0])
  assert judging.directed(verdict).tolist() == [1, 0]
  assert judging.directed(judged([0] * 4, [1.0, 9, 2, 9], [1.0, 2.0])).tolist() == [0.5, 0.5]


def test_best_of_n_is_chosen_by_the_reward_model_and_never_by_gold():
  first = (["a", "b", "c", "d"], judged([1, 1, 1, 1], [0, 10, 20, 30], [100, 300]))
  second = (["A", "B", "C", "D"], judged([0, 2, 0, 2], [1, 11, 21, 31], [101, 301]))
  texts, best = judging.best_of([first, second])
  assert texts == ["a", "B", "c", "D"]
  assert best.scores["gold"].tolist() == [0, 11, 20, 31]
  assert best.crossed.tolist() == [101, 301]


def test_diversity_by_hand():
  assert judging.distinct(["A b c", "a b"]) == 2 / 3  # a b, b c and again a b
  assert judging.distinct(["", "one"]) == 0
  assert judging.repeated(["x", "y", "x"]).tolist() == [1, 0, 1]


def test_the_duration_follows_the_speed_of_the_machine(monkeypatch):
  whole = duration.Whole(compiling=120.0, products=300.0)
  same = duration.estimate(whole, duration.REFERENCE)
  assert same == pytest.approx(420)
  compiling, products = duration.REFERENCE
  slower = duration.Speed(2 * compiling, products / 4)
  assert duration.estimate(whole, slower) == pytest.approx(4 * 300 + 2 * 120)
  monkeypatch.setattr(duration, "measure", lambda: slower)
  fast, full = (duration.minutes(preset) for preset in (quickstart.FAST, quickstart.Quickstart()))
  assert fast is not None and full is not None and 0 < fast < full
  assert duration.minutes(dataclasses.replace(quickstart.FAST, seed=7, model="folder")) == fast
  assert duration.minutes(TINY) is None


def test_a_machine_is_timed():
  speed = duration.measure()
  assert 0 < speed.compiling < 60 and speed.products > 0


def test_what_was_learnt_is_said_by_the_first_and_the_last_quarter():
  metrics = [{"step": step, "loss": 4.0 - 0.1 * step, "accuracy": step / 20} for step in range(20)]
  assert telling.ends(metrics, "loss") == (pytest.approx(3.8), pytest.approx(2.3))
  assert "cost 3.80 nats at first and 2.30 at last" in telling.learnt("sft", metrics)
  assert "ordered 10% of the pairs as people did at first and 85% at last" in telling.learnt(
    "gold", [*metrics, {"step": 20, "eval/nll": 1.0}]
  )
  rows_of_ppo = [{"objective/scores": -1.0, "objective/kl": 0.0}]
  rows_of_ppo.append({"objective/scores": 1.5, "objective/kl": 7.25})
  assert "-1.00 at first and 1.50 at last, 7.2 nats" in telling.learnt("ptx", rows_of_ppo)


def test_the_terminal_says_what_was_learnt_and_what_to_try_next(model, finished, capsys):
  run(model, finished[0])
  told = capsys.readouterr().out
  assert told.startswith("The method of InstructGPT")
  assert told.index("SFT: a token") < told.index("PPO-ptx: the reward model scored")
  # After each of six runs: two answers of a policy, or two scores of a reward model.
  first = rows(finished[0] / "samples.jsonl")[0]
  assert told.count(f"  {first['prompt']} -> ") == 4 + 2 * 2
  assert told.count(f"  {first['prompt']} -> {first['responses']['people']} (score ") == 2
  # No run with these settings was ever timed.
  assert "minutes here" not in told
  assert f"--model={finished[0] / 'models' / 'ptx'}" in told


# --- the experiments of docs/quickstart.md ---


def experiment(name):
  path = Path(__file__).parent.parent.parent / "experiments" / "quickstart" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_runs_are_one_table(finished, capsys):
  pool = experiment("pool")
  pool.main([str(finished[0])] * 2)
  table = capsys.readouterr().out
  lines = [line for line in table.splitlines() if line.startswith("|")]
  assert len(lines) == len(pool.MEASURES) + 2
  assert all(line.count("|") == len(pool.AUTHORS) + 2 for line in lines[2:])
  # A number above 1 keeps its zeros.
  values = [{"value": 10.25, "low": 0.5, "high": 20.0, "n": 4}] * 2
  low, high = 10.25 - 9.75 / 2**0.5, 10.25 + 9.75 / 2**0.5
  assert pool.cell(values, is_share=False) == f"10.250 ({low:.3f} to {high:.3f})"
  apart = [0.1, 0.9]
  assert pool.cell(apart) == ".500 (.000 to 1.000)"
  assert pool.cell([0.5, 0.5]) == ".500 (.500 to .500)"
  assert pool.cell([None, None]) == "–"


def test_a_variant_of_ppo_leaves_the_quickstart_as_it_is(finished, capsys):
  workdir, _ = finished
  before = {path: path.stat().st_mtime_ns for path in (workdir / "models").rglob("*")}
  experiment("variant").main(str(workdir), "lambda", "ppo.lam=0.5", "iterations=1")
  assert "lambda: gold win rate against SFT" in capsys.readouterr().out
  config = json.loads((workdir / "variants" / "lambda" / "config.json").read_text())
  assert (config["ppo"]["lam"], config["iterations"]) == (0.5, 1)
  assert {path: path.stat().st_mtime_ns for path in (workdir / "models").rglob("*")} == before
