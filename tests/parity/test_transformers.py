"""Logits against transformers on the same weights, both ways: it opens what we save, and we open what it saves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax import models
from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]

CONFIGS = {
  "gpt": GPTConfig(vocab_size=97, context=32, width=48, depth=3, heads=4),
  "llama": LlamaConfig(
    vocab_size=97, context=32, width=48, depth=3, heads=6, kv_heads=2, mlp=80, rope_base=5e4, norm_eps=1e-6
  ),
  "llama-untied": LlamaConfig(vocab_size=97, context=32, width=48, depth=2, heads=4, kv_heads=4, mlp=80, tied=False),
}
TOKENS = np.random.default_rng(0).integers(0, 97, (3, 20))
VALID = np.arange(20) >= np.array([[0], [6], [13]])  # left padded


def theirs(model):
  positions = np.maximum(np.cumsum(VALID, 1) - 1, 0)
  with torch.no_grad():
    out = model.eval()(
      torch.as_tensor(TOKENS),
      attention_mask=torch.as_tensor(VALID.astype(np.int64)),
      position_ids=torch.as_tensor(positions),
    )
  return out.logits.float().numpy()


def ours(loaded):
  hidden = loaded.lm.hidden(loaded.params, jnp.asarray(TOKENS), jnp.asarray(VALID))
  return np.asarray(loaded.lm.logits(loaded.params, hidden))


def assert_same_logits(a, b):
  assert np.abs(a[VALID]).max() > 1
  np.testing.assert_allclose(a[VALID], b[VALID], atol=1e-4)


@pytest.mark.parametrize("shard_bytes", [2**30, 40_000])
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_opens_what_we_save(tmp_path, name, shard_bytes):
  config = CONFIGS[name]
  lm = models.build(config)
  params = tiny.perturb(lm.init(jax.random.key(0)), 0.1)
  models.save(tmp_path, config, params, shard_bytes=shard_bytes)
  model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
  assert type(model).__name__ == ("GPT2LMHeadModel" if name == "gpt" else "LlamaForCausalLM")
  assert not info["missing_keys"]
  assert not info["unexpected_keys"]
  assert not info["mismatched_keys"]
  assert_same_logits(ours(models.Loaded(lm, params, config, tmp_path)), theirs(model))


@pytest.mark.parametrize("name", CONFIGS)
def test_we_open_what_transformers_saves(tmp_path, name):
  c = CONFIGS[name]
  torch.manual_seed(0)
  if name == "gpt":
    config = transformers.GPT2Config(
      vocab_size=c.vocab_size, n_positions=c.context, n_embd=c.width, n_layer=c.depth, n_head=c.heads
    )
    model = transformers.GPT2LMHeadModel(config)
  else:
    config = transformers.LlamaConfig(
      vocab_size=c.vocab_size, max_position_embeddings=c.context, hidden_size=c.width, num_hidden_layers=c.depth,
      num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, intermediate_size=c.mlp, rms_norm_eps=c.norm_eps,
      rope_parameters={"rope_type": "default", "rope_theta": c.rope_base}, tie_word_embeddings=c.tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
  with torch.no_grad():
    for p in model.parameters():
      p.add_(0.1 * torch.randn_like(p))
  model.save_pretrained(tmp_path)
  loaded = models.load(tmp_path)
  assert loaded.config == c
  assert_same_logits(ours(loaded), theirs(model))
