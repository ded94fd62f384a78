"""Adapters in PEFT's layout without PEFT: the tensors of a fused matrix by hand, and what is
refused.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors import numpy as safetensors

from instructjax import models
from instructjax.errors import UserError
from instructjax.models import lora, peft
from instructjax.models.gpt import GPTConfig
from instructjax.models.lora import Adapter

CONFIG = GPTConfig(vocab_size=8, context=8, width=2, depth=1, heads=1)


def test_adapters_of_a_fused_matrix_by_hand(tmp_path):
  """q and v of rank 1 in c_attn [2, 6] are one of rank 2: a = [a_q; a_v], b = [[b_q, 0], [0, 0],
  [0, b_v]].
  """
  q = Adapter(jnp.array([[[1.0], [2.0]]]), jnp.array([[[[3.0, 4.0]]]]), 2.0)
  v = Adapter(jnp.array([[[5.0], [6.0]]]), jnp.array([[[[7.0, 8.0]]]]), 2.0)
  peft.save(tmp_path, CONFIG, {"q": q, "v": v}, "gpt2")
  tensors = safetensors.load_file(tmp_path / peft.WEIGHTS)
  name = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight".format
  assert set(tensors) == {name("A"), name("B")}
  np.testing.assert_array_equal(tensors[name("A")], [[1, 2], [5, 6]])
  np.testing.assert_array_equal(
    tensors[name("B")], [[3, 0], [4, 0], [0, 0], [0, 0], [0, 7], [0, 8]]
  )
  about = json.loads((tmp_path / peft.CONFIG).read_text())
  assert (about["r"], about["lora_alpha"], about["target_modules"]) == (2, 4.0, ["c_attn"])
  assert about["fan_in_fan_out"]
  tiny.assert_trees_equal(peft.load(tmp_path, CONFIG), {"q": q, "v": v})


def test_a_saved_model_holds_its_adapter_merged(tmp_path):
  lm = models.build(CONFIG)
  params = lm.init(jax.random.key(0))
  sizes = lora.sizes(lm.table, lora.Lora(rank=1))
  params |= {"adapter": tiny.perturb(lora.init(jax.random.key(1), lm.table, sizes), 0.1)}
  models.save(tmp_path, CONFIG, params)
  tiny.assert_trees_close(models.load(tmp_path).params, lora.merge(params), rtol=1e-6)


def test_other_variants_and_models_are_refused(tmp_path):
  lm = tiny.lm("gpt")
  config = GPTConfig(vocab_size=48, context=64, width=32, depth=2, heads=4)
  adapter = lora.init(
    jax.random.key(1), lm.table, lora.sizes(lm.table, lora.Lora(rank=3, targets=("o",)))
  )
  peft.save(tmp_path, config, adapter, "gpt2")
  with pytest.raises(
    UserError, match=r"the shapes \(3, 32\) and \(32, 3\), \[R, 64\] and \[64, R\] are expected"
  ):
    peft.load(tmp_path, dataclasses.replace(config, width=64))
  with pytest.raises(UserError, match="belongs to no product of this model"):
    peft.load(tmp_path, dataclasses.replace(config, depth=1))
  text = (tmp_path / peft.CONFIG).read_text()
  (tmp_path / peft.CONFIG).write_text(text.replace('"bias": "none"', '"bias": "all"'))
  with pytest.raises(
    UserError, match=r"'bias' is 'all'; this variant is not implemented \(only 'none' is\)"
  ):
    peft.load(tmp_path, config)
