"""The quickstart on a tiny random Llama: what it writes, that it resumes, and what it measures."""

import contextlib
import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from instructjax import quickstart
from instructjax.data.public import tone
from instructjax.data.records.records import Comparison, Text
from instructjax.models import llama, save
from instructjax.quickstart import data, ranking, recipe, tables
from instructjax.runs import loop, origin
from instructjax.runs.checkpoint import Checkpoints
from instructjax.settings.subjects import ModelSettings

TINY = dataclasses.replace(
  quickstart.FAST,
  top=1,
  dtype="float32",
  unroll=1,
  prompt=64,
  response=16,
  text=24,
  demonstrations=32,
  comparisons=8,
  gold=8,
  test_prompts=3,
  test_comparisons=4,
  text_rows=32,
  text_valid=4,
  iterations=2,
  episodes=8,
  minibatches=2,
  ptx_ratio=2,
  ptx_micro=1,
)
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
  (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
  return folder


def run(model, workdir, **changes):
  page = quickstart.main(dataclasses.replace(TINY, model=str(model), **changes), workdir)
  assert page == workdir / "report.html"
  return json.loads((workdir / "results.json").read_text())


def numbers(results):
  return {name: part for name, part in results.items() if name in ("rm", "models")}


def rows(path):
  """The objects of a file, without times, which differ from run to run."""
  objects = [json.loads(line) for line in path.read_text().splitlines()]
  return [{name: row[name] for name in row if not name.startswith("time/")} for row in objects]


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
  """(directory, results) of a whole run."""
  workdir = tmp_path_factory.mktemp("finished")
  return workdir, run(model, workdir)


def test_results_are_complete(finished):
  workdir, results = finished
  assert set(results["models"]) == {"base", "sft", "ppo", "ptx"}
  for name, row in results["models"].items():
    measures = {"score", "gold", "follows", "kl", "length", "eos_rate", "pretrain_nll"}
    assert row["pretrain_nll"]["n"] == 4
    if name == "sft":  # nobody wins against themselves
      assert set(row) == measures
      continue
    assert set(row) == {*measures, "win_rate_vs_sft", "win_rate_by_slice"}
    wins = row["win_rate_vs_sft"]
    assert wins["n"] == 9
    assert 0 <= wins["low"] <= wins["high"] <= 1
    assert set(row["win_rate_by_slice"]) == {*tone.TEST, *tone.DIRECTIONS}
  rates = tables.policy_table(results["models"]).rows[-1]
  assert rates[:2] == ("gold win rate against sft", "9")
  assert rates[3] == "–" and all(" to " in rate for rate in (rates[2], *rates[4:]))
  accuracies = tables.ranking_table(results["rm"]).rows
  pairs, prompts = (results["rm"]["pair_accuracy"][name] for name in ("n", "clusters"))
  assert pairs > prompts and accuracies[0][2] == f"{pairs} in {prompts}"
  assert list(results["rm"]["by_domain"]) == ["movies", "tweets", "amazon"]
  assert sum(row["n"] for row in results["rm"]["calibration"]) > 0
  assert results["seed"] == 0
  assert results["peak_rss_gb"] > 0
  assert set(results["seconds"]) == {"set-up", *NAMES, "evaluation", "total"}
  samples = rows(workdir / "samples.jsonl")
  assert len(samples) == 9
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


@pytest.mark.slow
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
  with_mix = dataclasses.replace(ppo.ppo, ptx_coef=1.0)
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
