"""`instructjax export`: a run as a model folder, bit for bit, and the errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

from instructjax import models
from instructjax.commands import cli
from instructjax.data.tokens import tokenizers
from instructjax.errors import UserError
from instructjax.models import heads
from instructjax.runs import origin
from instructjax.runs.checkpoint import Checkpoints
from instructjax.stages import export, trainable

LM = models.build(origin.SHAPES["tiny"])
ABOUT = origin.describe(origin.SHAPES["tiny"], tokenizers.BYTES)


def weights(seed):
  return LM.init(jax.random.key(seed))


def left(workdir, params, kind="policy", about=ABOUT):
  origin.finish(workdir, 3, params, about, kind)
  return str(workdir)


def ppo(workdir, average, raw):
  """A PPO run whose last checkpoint holds an average and the weights themselves."""
  steps = Checkpoints(workdir / "checkpoints" / "ppo")
  steps.save(
    3,
    {
      "params": {"policy": raw, "value": {"w": np.zeros(2, np.float32)}},
      "ema": {"policy": average},
    },
  )
  steps.wait()
  return left(workdir, average)


def opened(folder):
  return models.load(folder).params


def test_a_policy_comes_back_bit_for_bit(tmp_path, capsys):
  params = weights(0)
  run = left(tmp_path / "run", params)
  assert cli.main(["export", f"--model={run}", f"--out={tmp_path / 'out'}"]) == 0
  assert capsys.readouterr().out.strip() == str(tmp_path / "out")
  tiny.assert_trees_equal(opened(tmp_path / "out"), params)
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
  assert config["eos_token_id"] == generation["eos_token_id"] == 256
  assert generation["temperature"] == 1.0 and generation["top_k"] == 0
  tokenizer = tokenizers.by_reference(str(tmp_path / "out"))
  assert tokenizer.encode("né") == list("né".encode()) and tokenizer.eos == (256,)


def test_half_the_bytes_on_request(tmp_path):
  run = left(tmp_path / "run", weights(0))
  sizes = [
    (export.export(run, tmp_path / t, dtype=t) / "model.safetensors").stat().st_size
    for t in ("float32", "bfloat16")
  ]
  assert sizes[1] < 0.6 * sizes[0]


def test_the_average_or_the_last_weights_of_ppo(tmp_path):
  average, raw = weights(1), weights(2)
  run = ppo(tmp_path / "run", average, raw)
  for name, wanted in (("", average), ("ema", average), ("raw", raw)):
    tiny.assert_trees_equal(
      opened(export.export(run, tmp_path / f"out{name}", weights=name)), wanted
    )


def test_the_last_weights_of_a_run_that_trained_the_top_block(tmp_path):
  average, raw = weights(1), weights(2)
  top = lambda params: {
    "blocks": jax.tree.map(lambda x: x[1:], params["blocks"]),
    "norm": params["norm"],
  }
  run = ppo(tmp_path / "run", average, top(raw))
  found = opened(export.export(run, tmp_path / "out", weights="raw"))
  tiny.assert_trees_equal(found, trainable.joined(average, top(raw)))


def test_a_reward_model_is_a_classifier(tmp_path):
  head = heads.init_head(jax.random.key(5), LM.width) | {"b": np.float32(0.25)}
  run = left(tmp_path / "run", {"lm": weights(0), "head": head}, "reward")
  folder = export.export(run, tmp_path / "out")
  assert json.loads((folder / "config.json").read_text())["architectures"] == [
    "GPT2ForSequenceClassification"
  ]
  _, params, found = models.load_reward(folder)
  tokens = jax.random.randint(jax.random.key(1), (3, 7), 0, 256)
  valid = jax.numpy.ones((3, 7), bool)
  score = lambda params, head: heads.score(head, LM.hidden(params, tokens, valid), valid)
  np.testing.assert_allclose(score(params, found), score(weights(0), head), atol=1e-5)


def test_errors(tmp_path):
  run = left(tmp_path / "run", weights(0))
  with pytest.raises(UserError, match="holds no average"):
    export.export(run, tmp_path / "out", weights="ema")
  with pytest.raises(UserError, match="name a folder of its own"):
    export.export(run, run)
  about = {"family": "python", "source": f"{__file__}:model", "tokenizer": "bytes"}
  python = left(tmp_path / "python", weights(0), about=about)
  with pytest.raises(UserError, match="this is a Python model"):
    export.export(python, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def model():
  return LM, weights(0), "bytes"


def test_what_ends_the_responses_of_a_run_is_carried(tmp_path):
  """The quickstart's models end a response at a new line, and say so in the run."""
  about = ABOUT | {"eos": [10, 256], "banned": [13]}
  run = left(tmp_path / "run", weights(0), about=about)
  own, other = (
    origin.open_model(run, dataclasses.replace(export.PLAIN, tokenizer=name), 0)
    for name in ("", tokenizers.BYTES)
  )
  assert (
    other.tokenizer.eos == (256,) and other.about == ABOUT
  )  # the ids are those of the tokenizer that it had
  tokenizer = own.tokenizer
  assert (tokenizer.eos, tokenizer.banned, tokenizer.decode([104, 105, 10])) == (
    (10, 256),
    (13,),
    "hi",
  )
  folder = export.export(run, tmp_path / "out")
  generation = json.loads((folder / "generation_config.json").read_text())
  assert (
    generation["eos_token_id"]
    == json.loads((folder / "config.json").read_text())["eos_token_id"]
    == [10, 256]
  )
  assert generation["suppress_tokens"] == [13]
  assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
  assert tokenizers.by_reference(str(folder)).eos == (10, 256)
