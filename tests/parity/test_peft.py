"""Adapters in the layout of PEFT, against PEFT itself: its logits with our file, and ours with its file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax import models
from instructjax.errors import UserError
from instructjax.models import lora, peft
from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]  # torch and peft warn of their own
CONFIGS = {
  "gpt": GPTConfig(vocab_size=48, context=64, width=32, depth=2, heads=4),
  "llama": LlamaConfig(vocab_size=48, context=64, width=32, depth=2, heads=4, kv_heads=2, mlp=64),
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 48)


@pytest.fixture(params=CONFIGS)
def base(request, tmp_path):
  """(configuration, model, parameters, the folder that transformers opens)."""
  config = CONFIGS[request.param]
  lm = models.build(config)
  params = tiny.perturb(lm.init(jax.random.key(0)), 0.05)
  models.save(tmp_path / "base", config, params)
  return config, lm, params, tmp_path / "base"


def ours(lm, params):
  valid = jnp.ones_like(TOKENS, bool)
  return np.asarray(lm.logits(params, lm.hidden(params, TOKENS, valid)))


def theirs(model):
  import torch

  with torch.no_grad():
    return model(torch.tensor(np.asarray(TOKENS))).logits.numpy()


def opened(folder):
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("targets", ["all", ("q", "v"), ("k", "o", "down")])
def test_peft_computes_what_we_do(base, tmp_path, targets):
  from peft import PeftModel

  config, lm, params, folder = base
  sizes = lora.sizes(lm.table, lora.Lora(rank=3, alpha=6.0, targets=targets))
  adapter = tiny.perturb(lora.init(jax.random.key(1), lm.table, sizes), 0.1)
  peft.save(tmp_path / "adapter", config, adapter, str(folder))
  expected = ours(lm, params | {"adapter": adapter})
  assert np.abs(expected - ours(lm, params)).max() > 0.05
  np.testing.assert_allclose(theirs(PeftModel.from_pretrained(opened(folder), tmp_path / "adapter")), expected, atol=1e-4)
  assert peft.base(tmp_path / "adapter") == str(folder)
  tiny.assert_trees_equal(peft.load(tmp_path / "adapter", config), adapter)


@pytest.mark.parametrize("rslora", [False, True])
def test_we_compute_what_peft_does(base, tmp_path, rslora):
  import torch
  from peft import LoraConfig, get_peft_model

  config, lm, params, folder = base
  gpt = isinstance(config, GPTConfig)
  targets = ["c_attn", "mlp.c_proj"] if gpt else ["q_proj", "v_proj", "down_proj"]
  pattern = {} if rslora else {targets[0]: 32}
  settings = LoraConfig(
    r=4, lora_alpha=8, target_modules=targets, use_rslora=rslora, alpha_pattern=pattern, fan_in_fan_out=gpt,
    task_type="CAUSAL_LM",
  )  # fmt: skip
  model = get_peft_model(opened(folder), settings)
  torch.manual_seed(0)
  for name, weight in model.named_parameters():
    if "lora_B" in name:
      torch.nn.init.normal_(weight, std=0.1)
  model.save_pretrained(tmp_path / "adapter")
  adapter = peft.load(tmp_path / "adapter", config)
  assert set(adapter) == ({"q", "k", "v", "down"} if gpt else {"q", "v", "down"})
  expected = theirs(model.eval())
  assert np.abs(expected - ours(lm, params)).max() > 0.05
  np.testing.assert_allclose(ours(lm, params | {"adapter": adapter}), expected, atol=1e-4)


def test_other_variants_and_models_are_refused(base, tmp_path):
  config, lm, _, folder = base
  adapter = lora.init(jax.random.key(1), lm.table, lora.sizes(lm.table, lora.Lora(rank=3, targets=("o",))))
  peft.save(tmp_path, config, adapter, str(folder))
  with pytest.raises(UserError, match=r"the shapes \(3, 32\) and \(32, 3\), \[R, 64\] and \[64, R\] are expected"):
    peft.load(tmp_path, dataclasses.replace(config, width=64))
  with pytest.raises(UserError, match="belongs to no product of this model"):
    peft.load(tmp_path, dataclasses.replace(config, depth=1))
  text = (tmp_path / peft.CONFIG).read_text()
  (tmp_path / peft.CONFIG).write_text(text.replace('"bias": "none"', '"bias": "all"'))
  with pytest.raises(UserError, match=r"'bias' is 'all'; this variant is not implemented \(only 'none' is\)"):
    peft.load(tmp_path, config)
