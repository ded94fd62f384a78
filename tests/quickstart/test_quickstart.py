"""The quickstart on a tiny random Llama: every file it writes, the same numbers twice, and resuming
a finished stage.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from instructjax import quickstart
from instructjax.data.public import tone
from instructjax.models import llama, save
from instructjax.quickstart import evaluation
from instructjax.runs import origin

TINY = dataclasses.replace(
  quickstart.FAST,
  top=1,
  dtype="float32",
  prompt=64,
  response=24,
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


@pytest.mark.slow
def test_results_are_complete_and_repeat(model, tmp_path):
  first = run(model, tmp_path / "a")
  assert {"base", "sft", "ppo", "ptx"} == set(first["models"])
  for name, row in first["models"].items():
    assert set(row) >= {
      "score",
      "gold",
      "follows",
      "win_rate_vs_sft",
      "kl",
      "length",
      "eos_rate",
      "pretrain_nll",
    }
    assert row["win_rate_vs_sft"]["n"] == 9
    assert 0 <= row["win_rate_vs_sft"]["low"] <= row["win_rate_vs_sft"]["high"] <= 1, name
  assert first["models"]["sft"]["win_rate_vs_sft"]["value"] == 0.5
  assert set(first["rm"]["by_domain"]) == {"movies", "tweets", "amazon"}
  assert first["seed"] == 0 and first["peak_rss_gb"] > 0 and first["seconds"]["total"] > 0
  samples = [
    json.loads(line) for line in (tmp_path / "a" / "samples.jsonl").read_text().splitlines()
  ]
  assert len(samples) == 9 and all(set(s["responses"]) == set(first["models"]) for s in samples)
  stages = {
    json.loads(line)["stage"]
    for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
  }
  assert stages == {"sft", "rl_init", "reward", "gold", "ppo", "ptx"}
  second = run(model, tmp_path / "b")
  assert numbers(second) == numbers(first)
  lines = (tmp_path / "a" / "metrics.jsonl").read_text()
  assert (tmp_path / "b" / "metrics.jsonl").read_text() == lines
  # The models are left whole, as finished runs.
  settings = {
    "dtype": "float32",
    "remat": "none",
    "unroll": 1,
    "sequence": False,
    "attention": "auto",
    "dropout": 0.0,
  }
  policy = origin.open_model(
    str(tmp_path / "a" / "models" / "ptx"), settings | {"tokenizer": ""}, 0
  )
  judge = origin.open_reward_model(str(tmp_path / "a" / "models" / "reward"), settings)
  assert (
    policy.tokenizer.eos[0] == policy.tokenizer.encode("\n")[0]
    and policy.tokenizer.eos == judge.tokenizer.eos
  )
  base = origin.open_model(str(model), settings | {"tokenizer": ""}, 0)
  pairs = [
    *zip(
      jax.tree.leaves(policy.params["blocks"]), jax.tree.leaves(base.params["blocks"]), strict=True
    )
  ]
  assert all(
    np.allclose(ours[0], theirs[0], rtol=1e-2, atol=1e-3) for ours, theirs in pairs
  )  # frozen, in bfloat16
  assert not all(np.array_equal(ours[1], theirs[1]) for ours, theirs in pairs)
  # Run again in the same directory, everything is read from the checkpoints.
  assert numbers(run(model, tmp_path / "a")) == numbers(first)
  assert (tmp_path / "a" / "metrics.jsonl").read_text() == lines


def test_one_line_ends_responses_with_a_new_line():
  spell = {0: "a", 1: "\n", 2: "b\n", 3: "<end>", 4: "\n\n"}
  from instructjax.data.tokens.tokenizers import Tokenizer as Ours

  plain = Ours(
    lambda text: [1], lambda ids: spell[ids[0]] if ids[0] != 3 else "", 5, (3,), (0,), (), "x"
  )
  changed = quickstart.one_line(plain)
  assert changed.eos == (1, 3)
  assert changed.banned == (0, 2, 4)


def test_calibration_counts_pairs_by_their_probability():
  from instructjax.data.records.records import Comparison

  comparison = Comparison("p", ("a", "b", "c"), (1, 2, 2))
  table = evaluation.calibration([[2.0, 0.0, 3.0]], [comparison], bins=2)
  assert [row["n"] for row in table] == [1, 1]  # a over b with p = .88, a over c with p = .73
  assert [row["correct"] for row in table] == [0.0, 1.0]
  np.testing.assert_allclose(
    [row["p"] for row in table], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2))]
  )
