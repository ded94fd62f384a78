"""The models that a plan is about: named shapes, configurations, runs and the hub."""

import json
import math

import jax
import pytest

from instructjax import models, settings
from instructjax.errors import UserError
from instructjax.models import gpt
from instructjax.plan import planning, programs
from instructjax.plan.planning import Options
from instructjax.runs import origin

GPT2 = {
  "model_type": "gpt2",
  "vocab_size": 300,
  "n_positions": 512,
  "n_embd": 64,
  "n_layer": 3,
  "n_head": 4,
}
LLAMA = {
  "model_type": "llama",
  "vocab_size": 320,
  "max_position_embeddings": 512,
  "hidden_size": 64,
  "intermediate_size": 96,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
}
QWEN2 = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True}


def write(folder, raw):
  folder.mkdir()
  path = folder / "config.json"
  path.write_text(json.dumps(raw))
  return path


def numbers(config) -> int:
  """The parameters of a configuration, counted from its table."""
  lm = models.build(config)
  return sum(math.prod(x.shape) for x in jax.tree.leaves(programs.parameters(lm)))


# By hand, D = 64. Blocks of GPT-2: 12 D^2 of matrices, 13 D of biases and norms. Of Llama: q and o
# D^2, k and v half of it, three matrices of 64 x 96, two norms; Qwen2 has biases on q, k and v.
OF_GPT2 = 3 * (12 * 64**2 + 13 * 64) + (300 + 512 + 2) * 64
OF_A_LLAMA_BLOCK = 3 * 64**2 + 3 * 64 * 96 + 2 * 64
OF_LLAMA = 3 * OF_A_LLAMA_BLOCK + (2 * 320 + 1) * 64
OF_QWEN2 = 3 * (OF_A_LLAMA_BLOCK + 64 + 2 * 32) + (320 + 1) * 64


@pytest.mark.parametrize(
  ("raw", "count"),
  [(GPT2, OF_GPT2), (LLAMA, OF_LLAMA), (QWEN2, OF_QWEN2)],
  ids=["gpt2", "llama", "qwen2"],
)
def test_a_configuration_is_planned_without_weights(raw, count, tmp_path):
  """The path of config.json and its folder are the same model, in the report under its name."""
  path = write(tmp_path / "mine", raw)
  assert origin.configuration(str(path), "--model") == origin.configuration(
    str(path.parent), "--model"
  )
  changes = [("batch", "8"), ("data.prompt", "32"), ("data.response", "32")]
  config = settings.override(settings.load("sft:tiny"), changes)
  report = planning.plan(config, Options("h100:8", "fsdp=1,data=8", model=str(path)))
  assert report["model"] == "mine"
  assert report["programs"][0]["memory"]["params"] == 4 * count


def test_the_shapes_of_public_models_have_their_published_sizes():
  """Qwen2.5-7B has 7.61 billion parameters, 6.53 of them not of embeddings (its model card)."""
  name, config = origin.configuration("qwen2.5-7b", "--model")
  assert name == "Qwen2.5-7B"
  count = numbers(config)
  assert count / 1e9 == pytest.approx(7.61, abs=0.01)
  embeddings = 2 * config.vocab_size * config.width
  assert (count - embeddings) / 1e9 == pytest.approx(6.53, abs=0.01)


@pytest.mark.parametrize(
  ("model", "reward", "title"),
  [
    ("1.3B", None, "1.3B, reward and value 6B"),  # the paper's, with GPT-3's vocabulary
    ("tiny", None, "tiny, reward and value tiny"),
    ("llama-3-8b", None, "Llama-3-8B, reward and value Llama-3-8B"),
    ("6B", "1.3b", "6B, reward and value 1.3B"),
  ],
)
def test_the_reward_model_reads_the_ids_of_the_policy(model, reward, title):
  chosen = planning.models_of(
    settings.load("ppo:tiny"), Options("h100:8", model=model, reward=reward)
  )
  assert chosen.title == title


def test_a_reward_model_of_another_vocabulary_is_one_line():
  options = Options("h100:8", model="Llama-3-8B", reward="6B")
  with pytest.raises(UserError) as error:
    planning.models_of(settings.load("ppo:tiny"), options)
  text = str(error.value)
  assert text.startswith("--reward=6B: has 50257 ids, the policy Llama-3-8B has 128256")
  assert "Llama-3-8B" in text.rpartition("such as")[2] and "\n" not in text


def test_a_finished_run_is_planned(tmp_path, monkeypatch):
  config = gpt.GPTConfig(vocab_size=257, context=64, width=32, depth=1, heads=2)
  (tmp_path / "run" / "checkpoints").mkdir(parents=True)
  about = {"family": "gpt", "config": vars(config)}
  monkeypatch.setattr(origin, "finished", lambda workdir: about)
  assert origin.configuration(str(tmp_path / "run"), "--model") == ("run", config)


def test_the_hub_gives_the_configuration_alone(tmp_path, monkeypatch):
  import huggingface_hub

  asked = []
  write(tmp_path / "snapshot", LLAMA)

  def snapshot(name, allow_patterns, ignore_patterns):
    asked.append((name, allow_patterns))
    return str(tmp_path / "snapshot")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
  name, config = origin.configuration("owner/name", "--model")
  assert (name, config.kv_heads) == ("name", 2)
  assert asked == [("owner/name", ["config.json"])]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
  import huggingface_hub

  def offline(*args, **kwargs):
    raise OSError("no route to host\nand advice")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  with pytest.raises(UserError) as error:
    origin.configuration("owner/name", "--model")
  assert str(error.value).startswith("--model: owner/name: no such file or folder")
  assert "cannot be reached (no route to host)" in str(error.value)
  assert "\n" not in str(error.value)
