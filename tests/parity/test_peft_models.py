"""Adapters in the layout of PEFT, against PEFT itself: its logits with our file, and ours with its
file.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from families import FAMILIES

from instructjax import models
from instructjax.models import lora, peft

pytestmark = [
  pytest.mark.oracle,
  pytest.mark.filterwarnings("default"),
]  # torch and peft warn of their own
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 97)


@pytest.fixture(params=["gpt2", "gpt_neox", "llama", "gemma2", "phi3"])
def base(request, tmp_path):
  """(configuration, model, parameters, the folder that transformers opens)."""
  config = FAMILIES[request.param]
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

  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, attn_implementation="eager"
  ).eval()


@pytest.mark.parametrize("targets", ["all", ("q", "v"), ("k", "o", "down")])
def test_peft_computes_what_we_do(base, tmp_path, targets):
  from peft import PeftModel

  config, lm, params, folder = base
  sizes = lora.sizes(lm.table, lora.Lora(rank=3, alpha=6.0, targets=targets))
  adapter = tiny.perturb(lora.init(jax.random.key(1), lm.table, sizes), 0.1)
  peft.save(tmp_path / "adapter", config, adapter, str(folder))
  expected = ours(lm, params | {"adapter": adapter})
  assert np.abs(expected - ours(lm, params)).max() > 0.05
  np.testing.assert_allclose(
    theirs(PeftModel.from_pretrained(opened(folder), tmp_path / "adapter")), expected, atol=1e-4
  )
  assert peft.base(tmp_path / "adapter") == str(folder)
  tiny.assert_trees_equal(peft.load(tmp_path / "adapter", config), adapter)


@pytest.mark.parametrize("rslora", [False, True])
def test_we_compute_what_peft_does(base, tmp_path, rslora):
  import torch
  from peft import LoraConfig, get_peft_model

  config, lm, params, folder = base
  gpt = config.model_type == "gpt2"
  targets, products = {
    "gpt2": (["c_attn", "mlp.c_proj"], "q k v down"),
    "gpt_neox": (["query_key_value", "dense"], "q k v o"),
    "phi3": (["o_proj", "gate_up_proj"], "gate up o"),
  }.get(config.model_type, (["q_proj", "v_proj", "down_proj"], "q v down"))
  pattern = {} if rslora else {targets[0]: 32}
  settings = LoraConfig(
    r=4,
    lora_alpha=8,
    target_modules=targets,
    use_rslora=rslora,
    alpha_pattern=pattern,
    fan_in_fan_out=gpt,
    task_type="CAUSAL_LM",
  )
  model = get_peft_model(opened(folder), settings)
  torch.manual_seed(0)
  for name, weight in model.named_parameters():
    if "lora_B" in name:
      torch.nn.init.normal_(weight, std=0.1)
  model.save_pretrained(tmp_path / "adapter")
  adapter = peft.load(tmp_path / "adapter", config)
  assert set(adapter) == set(products.split())
  expected = theirs(model.eval())
  assert np.abs(expected - ours(lm, params)).max() > 0.05
  np.testing.assert_allclose(ours(lm, params | {"adapter": adapter}), expected, atol=1e-4)
