"""Which parameters decay: the table says so, for every tree that a stage trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax import reward
from instructjax.models import freeze, lora
from instructjax.models.decay import decaying
from instructjax.settings.subjects import OptimizerSettings
from instructjax.stages.wiring import optimizer

# Norms, whatever the family calls them, and biases: the last name of their path.
VECTORS = {"scale", "bias", "b"}


def names_of(marks):
  """{path: whether it decays} of a tree of marks."""
  leaves = jax.tree_util.tree_leaves_with_path(marks)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): mark for path, mark in leaves}


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_no_bias_and_no_norm_of_the_blocks_decays(family):
  lm = tiny.lm(family)
  params = lm.init(jax.random.key(0))
  marks = names_of(decaying(lm, params))
  assert marks["blocks/q/w"] and marks["embed/tokens"]
  for name, mark in marks.items():
    assert mark == (name.split("/")[-1] not in VECTORS), name


def test_every_tree_that_a_stage_trains_is_understood():
  lm = tiny.lm("gpt")
  params = lm.init(jax.random.key(0))
  _, top = freeze.split(params, 1)
  adapter = lora.init(jax.random.key(1), lm.table, lora.sizes(lm.table, lora.Lora(2, 4.0, "all")))
  head = {"w": jnp.ones(lm.width), "b": jnp.float32(0)}
  policy = {"policy": top, "value": {"lm": {"adapter": adapter}, "head": head}}
  marks = names_of(decaying(lm, policy))
  assert marks["policy/blocks/up/w"] and not marks["policy/blocks/up/b"]
  assert not marks["policy/norm/scale"]
  assert marks["value/head/w"] and not marks["value/head/b"]
  assert all(mark for name, mark in marks.items() if "adapter" in name)


def test_the_optimizer_of_a_stage_leaves_norms_and_biases_alone():
  """On a gradient of zeros an update is the decay alone."""
  lm = tiny.lm("gpt")
  params = reward.init(jax.random.key(1), lm, lm.init(jax.random.key(0)))
  params = jax.tree.map(jnp.ones_like, params)
  tx = optimizer(OptimizerSettings(lr=1.0, weight_decay=0.5, schedule="constant"), lm, 1)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
  for name, update in names_of(updates).items():
    expected = 0.0 if name.split("/")[-1] in VECTORS else -0.5
    np.testing.assert_allclose(update, expected, err_msg=name)
