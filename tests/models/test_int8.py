"""Weights and caches as integers: the quantiser by hand, products, decoding, adapters, a mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax import models, rollout, sharding
from instructjax.models import blocks, cache, int8, lora
from instructjax.rollout import Sampling

TOKENS = jax.random.randint(jax.random.key(1), (2, 6), 0, tiny.VOCAB)
VALID = jnp.asarray(np.array([[1] * 6, [0, 0, 1, 1, 1, 1]], bool))


def test_a_matrix_by_hand():
  """The largest of each output stands at 127: 2.54 makes steps of .02, and 1.27 of .01."""
  w = jnp.array([[2.54, -0.5], [-1.0, 1.27], [0.011, 0.004]])
  p = int8.matrix(w, 1)
  np.testing.assert_array_equal(p["w"], [[127, -50], [-50, 127], [1, 0]])
  np.testing.assert_allclose(p["scale"], [0.02, 0.01], rtol=1e-6)
  assert p["w"].dtype == jnp.int8
  # (1, 2, 3) w = (127 - 100 + 3) * .02, (-50 + 254 + 0) * .01, and the bias.
  y = blocks.linear(p | {"b": jnp.array([1.0, 0.0])}, jnp.array([[1.0, 2.0, 3.0]]), "float32")
  np.testing.assert_allclose(y, [[1.6, 2.04]], rtol=1e-6)


def test_an_output_that_is_zero_and_one_that_is_negative():
  p = int8.matrix(jnp.array([[0.0, -254.0], [0.0, 1.0]]), 1)
  np.testing.assert_array_equal(p["w"], [[0, -127], [0, 0]])  # .5 is rounded to the even 0
  np.testing.assert_allclose(p["scale"], [1, 2])


def test_a_tied_embedding_has_a_scale_for_each_id():
  """Rows of ids as far apart as 2.54 and .0127 keep two digits each; x (1, 1) sums a row."""
  tokens = jnp.array([[2.54, -0.5], [0.0127, 0.005]])
  p = int8.unembedding({"embed": {"tokens": tokens}})["unembed"]
  np.testing.assert_array_equal(p["w"], [[127, -25], [127, 50]])
  np.testing.assert_allclose(p["scale"], [0.02, 0.0001], rtol=1e-6)
  y = blocks.unembed(p, jnp.array([[1.0, 1.0]]), "float32")
  np.testing.assert_allclose(y, [[2.04, 0.0177]], rtol=1e-6)


def test_a_matrix_of_two_input_axes_has_a_scale_for_each_output():
  """As `o`, which sums over heads and their features."""
  w = jax.random.normal(jax.random.key(0), (4, 8, 5))
  p = int8.matrix(w, 2)
  np.testing.assert_allclose(p["scale"], jnp.abs(w).max((0, 1)) / 127, rtol=1e-6)
  x = jax.random.normal(jax.random.key(1), (3, 4, 8))
  got = blocks.linear(p, x, "float32", contract=2)
  np.testing.assert_allclose(got, jnp.einsum("bhc,hcd->bd", x, p["w"] * p["scale"]), rtol=1e-5)


@given(st.integers(0, 2**31), st.integers(-30, 30))
@settings(max_examples=20, deadline=None)
def test_no_number_is_off_by_more_than_half_a_step(seed, exponent):
  x = np.random.default_rng(seed).standard_normal((6, 9)).astype(np.float32) * np.float32(
    2.0**exponent
  )
  q, scale = int8.quantise(jnp.asarray(x), (1,))
  assert scale.shape == (6, 1)
  error = np.abs(np.asarray(q, np.float32) * scale - x)
  assert (error <= 0.5001 * np.asarray(scale)).all()
  assert (np.abs(q).max(axis=1) == 127).all()


def test_keys_are_scaled_by_head_and_column():
  """Written into two columns of a cache, they come back at most half a step off."""
  empty = cache.empty_keys(2, 8, 3, 4, "int8", 4)
  new = jax.random.normal(jax.random.key(0), (2, 3, 2, 4)) * jnp.array([1.0, 100.0])[:, None]
  filled = cache.write_keys(empty, new, jnp.int32(3), "float32")  # columns 3 and 4, in two blocks
  assert filled.q.dtype == jnp.int8
  assert filled.scale.shape == (2, 2, 3, 4, 1)
  values = np.moveaxis(np.asarray(filled.q * filled.scale), 0, 2).reshape(2, 3, 8, 4)
  step = np.abs(new).max(-1, keepdims=True) / 127
  assert (np.abs(values[:, :, 3:5] - new) <= 0.5001 * step).all()
  assert not values[:, :, [0, 1, 2, 5, 6, 7]].any()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi", "llama-biases", "gemma2", "mistral"])
def test_decoding_in_integers_is_near_and_not_equal(name):
  """Weights and cache apart: each has an error of its own, and of a percent or so."""
  lm = models.build(FAMILIES[name])
  params = tiny.perturb(lm.init(jax.random.key(0)), 0.1)

  @partial(jax.jit, static_argnums=(1, 2))
  def logits(params, weights, keys):
    layers = lm.unstack(params, int8_weights=weights)
    hidden, _ = lm.decode(layers, TOKENS, VALID, lm.init_cache(2, 6, None, keys))
    return lm.logits(layers, hidden)[VALID.nonzero(size=10)]

  expected = logits(params, False, False)
  spread = float(jnp.std(expected))
  for stored in [(True, False), (False, True)]:
    error = float(jnp.sqrt(jnp.mean((logits(params, *stored) - expected) ** 2)))
    assert 1e-4 * spread < error < 0.1 * spread


def test_every_matrix_of_a_product_is_integers_and_nothing_else():
  lm = models.build(FAMILIES["phi"])
  layers = lm.unstack(lm.init(jax.random.key(0)), int8_weights=True)
  of_layers = {name for name, p in layers["layers"][0].items() if "w" in p}
  assert of_layers == {"q", "k", "v", "o", "up", "down"}
  integers = [path for path, x in jax.tree.leaves_with_path(layers) if x.dtype == jnp.int8]
  assert len(integers) == 3 * len(of_layers) + 1  # and the head
  assert layers["head"]["w"].dtype == jnp.int8
  assert layers["embed"]["tokens"].dtype == jnp.float32


def test_an_adapter_stays_in_float_beside_integers():
  """One that is far below a step of its matrix still changes what is decoded."""
  lm = tiny.lm("llama")
  base = lm.init(jax.random.key(0))
  sizes = {"q": {"rank": 2, "scale": 1.0}, "o": {"rank": 1, "scale": 1.0}}
  adapter = tiny.perturb(lora.init(jax.random.key(1), lm.table, sizes), 1e-3)
  layers = lm.unstack(base | {"adapter": adapter}, int8_weights=True)
  of_base = lm.unstack(base, int8_weights=True)
  for name in sizes:
    np.testing.assert_array_equal(layers["layers"][0][name]["w"], of_base["layers"][0][name]["w"])
    assert layers["layers"][0][name]["lora"].a.dtype == jnp.float32
  x = jax.random.normal(jax.random.key(2), (5, lm.width))
  p, without = layers["layers"][0]["q"], of_base["layers"][0]["q"]
  low_rank = jnp.einsum("bd,dr,rhc->bhc", x, p["lora"].a, p["lora"].b)
  got = blocks.linear(p, x, "float32") - blocks.linear(without, x, "float32")
  np.testing.assert_allclose(got, low_rank, atol=1e-6)
  assert float(jnp.abs(low_rank).max()) > 1e-5


@pytest.mark.parametrize("mesh", [(2, 2, 2)], indirect=True, ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_integers_on_a_mesh_are_those_of_a_device(mesh, whole):
  lm = tiny.lm("llama")
  cfg = Sampling(response=5, eos=(3,), weights="int8", cache="int8", whole=whole)
  run = jax.jit(partial(rollout.sample, lm, cfg=cfg))
  inputs = lambda: (lm.init(jax.random.key(0)), tiny.prompts(lm, rows=8))
  expected = tiny.unsharded(lambda: run(*inputs(), jax.random.key(1)))
  params, prompts = inputs()
  placed = sharding.place(params, sharding.shardings(lm.table))
  rows = run(placed, sharding.place_batch(prompts), jax.random.key(1))
  np.testing.assert_array_equal(rows.tokens, expected.tokens)
  np.testing.assert_allclose(rows.logp, expected.logp, atol=1e-4)


def test_the_loop_carries_integers():
  """The compiled loop over steps reads each matrix as integers, not a copy that was cast before."""
  lm = tiny.lm("llama")
  params, prompts = lm.init(jax.random.key(0)), tiny.prompts(lm, rows=4)
  run = jax.jit(partial(rollout.sample, lm, cfg=Sampling(response=4, weights="int8")))
  program = run.lower(params, prompts, jax.random.key(0)).compile().as_text()
  loops = [line for line in program.splitlines() if " while(" in line]
  # 7 matrices in each of 2 layers, and the unembedding.
  assert max(line.count("s8[") for line in loops) == 15
