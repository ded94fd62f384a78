"""Logits, greedy texts and scores against transformers on the same weights, both ways: it opens
what we save, and we open what it saves.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES

from instructjax import models, rollout
from instructjax.models import heads, hf
from instructjax.types import Prompts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]

TOKENS = np.random.default_rng(0).integers(0, 97, (3, 20))
VALID = np.arange(20) >= np.array([[0], [6], [13]])  # left padded


def draw(config):
  """Weights of a size that makes attention far from uniform, and norms far from their initial
  values.
  """
  rng = np.random.default_rng(1)
  initial = models.build(config).init(jax.random.key(0))
  return jax.tree.map(
    lambda x: x + jnp.asarray(0.2 * rng.standard_normal(x.shape, np.float32)), initial
  )


def theirs(model):
  positions = np.maximum(np.cumsum(VALID, 1) - 1, 0)
  with torch.no_grad():
    out = model.eval()(
      torch.as_tensor(TOKENS),
      attention_mask=torch.as_tensor(VALID.astype(np.int64)),
      position_ids=torch.as_tensor(positions),
    )
  return out.logits.float().numpy()


def ours(lm, params):
  hidden = jax.jit(lm.hidden)(params, jnp.asarray(TOKENS), jnp.asarray(VALID))
  return np.asarray(lm.logits(params, hidden))


def assert_same_logits(a, b):
  assert np.abs(a[VALID]).max() > 1
  np.testing.assert_allclose(a[VALID], b[VALID], atol=1e-4)


def opened(folder, **kw):
  """The model of a folder in transformers, every tensor of it used and none missing."""
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32, **kw
  )
  assert not info["missing_keys"]
  assert not info["unexpected_keys"]
  assert not info["mismatched_keys"]
  return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_opens_what_we_save_and_we_what_it_saves(tmp_path, name):
  config = FAMILIES[name]
  lm, params = models.build(config), draw(config)
  models.save(tmp_path / "ours", config, params, shard_bytes=40_000 if name == "gpt2" else 2**30)
  model = opened(tmp_path / "ours")
  assert [type(model).__name__] == json.loads((tmp_path / "ours" / hf.CONFIG).read_text())[
    "architectures"
  ]
  logits = ours(lm, params)
  assert_same_logits(logits, theirs(model))

  model.save_pretrained(tmp_path / "theirs")
  loaded = models.load(tmp_path / "theirs")
  assert loaded.config == config
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_greedy_texts_are_those_of_transformers(tmp_path, name):
  """Longer than every window, from prompts padded on the left."""
  config = FAMILIES[name]
  lm, params = models.build(config), draw(config)
  models.save(tmp_path, config, params)
  tokens, valid = TOKENS[:, -9:], VALID[:, -9:]
  model = opened(tmp_path)
  settings = {
    "do_sample": False,
    "max_new_tokens": 16,
    "min_new_tokens": 16,
    "pad_token_id": 0,
    "eos_token_id": None,
  }
  found = model.generate(
    torch.as_tensor(tokens), attention_mask=torch.as_tensor(valid.astype(np.int64)), **settings
  ).numpy()
  cfg = rollout.Sampling(response=16, temperature=0.0)
  prompts = Prompts(jnp.asarray(tokens, jnp.int32), jnp.asarray(valid))
  got = jax.jit(lambda p: rollout.sample(lm, p, prompts, jax.random.key(0), cfg))(params)
  np.testing.assert_array_equal(got.tokens[:, 9:], found[:, 9:])


@pytest.mark.parametrize("top_k, top_p", [(0, 0.9), (0, 0.1), (5, 1.0), (500, 1.0), (20, 0.7)])
def test_a_cut_distribution_is_that_of_the_warpers_of_transformers(top_k, top_p):
  logits = 3 * np.random.default_rng(2).standard_normal((40, 300)).astype(
    np.float32
  )  # no two are equal
  found = torch.as_tensor(logits)
  if top_k:
    found = transformers.TopKLogitsWarper(top_k)(None, found)
  if top_p < 1:
    found = transformers.TopPLogitsWarper(top_p)(None, found)
  mine = np.asarray(rollout.truncate(jnp.asarray(logits), top_k, top_p))
  np.testing.assert_array_equal(mine, found.numpy())
  assert np.isfinite(mine).any(-1).all() and (np.isinf(mine).any() or top_k == 500)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2", "gpt2", "gpt_neox", "phi", "phi3"])
def test_a_reward_model_has_the_same_scores_in_transformers(tmp_path, name):
  """With the bias: in the last norm of the LayerNorm models, else by the folder's own code."""
  config = FAMILIES[name]
  lm = models.build(config)
  params = {part: leaf for part, leaf in draw(config).items() if part != "head"}
  head = {"w": jnp.linspace(-1.0, 1.0, config.width), "b": jnp.float32(0.7)}
  tokens = jnp.asarray(np.where(TOKENS == 96, 95, TOKENS)[:, ::-1].copy())
  valid = jnp.asarray(VALID[:, ::-1].copy())
  tokens = jnp.where(valid, tokens, 96)
  score = np.asarray(heads.score(head, jax.jit(lm.hidden)(params, tokens, valid), valid))
  models.save_reward(tmp_path / "ours", config, params, head, pad_token_id=96)

  def scores(folder, **kw):
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(
      folder, attn_implementation="eager", dtype=torch.float32, **kw
    ).eval()
    with torch.no_grad():
      mask = torch.as_tensor(np.array(valid, np.int64))
      return model, model(torch.as_tensor(np.array(tokens)), attention_mask=mask).logits[
        :, 0
      ].numpy()

  model, found = scores(tmp_path / "ours")
  folded = isinstance(config, models.GPTConfig)
  np.testing.assert_allclose(found + (0.0 if folded else 0.7), score, atol=1e-4)
  if not folded:
    np.testing.assert_allclose(
      scores(tmp_path / "ours", trust_remote_code=True)[1], score, atol=1e-4
    )
  model.save_pretrained(tmp_path / "theirs")
  config_again, params_again, head_again = models.load_reward(tmp_path / "theirs")
  assert config_again == config
  again = heads.score(head_again, jax.jit(lm.hidden)(params_again, tokens, valid), valid)
  np.testing.assert_allclose(np.asarray(again), score, atol=1e-4)


def test_a_checkpoint_in_bfloat16_is_read(tmp_path):
  """As most public ones are stored."""
  config = dataclasses.replace(FAMILIES["qwen2"], tied=False)
  models.save(tmp_path / "f", config, draw(config))
  opened(tmp_path / "f").to(torch.bfloat16).save_pretrained(tmp_path / "b")
  loaded = models.load(tmp_path / "b")
  assert_same_logits(ours(loaded.lm, loaded.params), theirs(opened(tmp_path / "b")))
