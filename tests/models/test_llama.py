"""Llama: parameter count, rotary positions, the gated MLP, tied and untied heads."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax.errors import UserError
from instructjax.models import blocks, llama, rope
from instructjax.types import Leaf


@pytest.mark.parametrize(
  "config, count", [(llama.SMOLLM2_135M, 134_515_008), (llama.LLAMA3_8B, 8_030_261_248)]
)
def test_public_shapes_have_the_parameters_of_their_checkpoints(config, count):
  params = jax.eval_shape(llama.llama(config).init, jax.random.key(0))
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == count


def test_every_leaf_names_each_of_its_axes():
  for leaf in jax.tree.leaves(
    llama.table(llama.SMOLLM2_135M), is_leaf=lambda x: isinstance(x, Leaf)
  ):
    assert len(leaf.axes) == len(leaf.shape)


def test_rotation_by_complex_numbers():
  x = np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 2, 6)))
  at = np.array([[0, 1, 7, 1000]])
  turn = np.exp(1j * at[..., None] * 100.0 ** (-np.arange(3) / 3))[:, :, None]
  z = (x[..., :3] + 1j * x[..., 3:]) * turn
  got = blocks.rotate(jnp.asarray(x), blocks.turns(jnp.asarray(at), rope.frequencies(6, 100.0)))
  np.testing.assert_allclose(got, np.concatenate([z.real, z.imag], -1), atol=2e-4)
  np.testing.assert_array_equal(got[:, 0], x[:, 0])


def test_scores_depend_on_the_distance_alone():
  q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 1, 8))

  def rotated(x, position):
    turns = blocks.turns(jnp.array([[position]]), rope.frequencies(8, 10_000.0))
    return blocks.rotate(x, turns)

  score = lambda t, s: float((rotated(q, t) * rotated(k, s)).sum())
  assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
  assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


def test_mlp_is_gated_by_silu():
  w = {
    name: np.asarray(jax.random.normal(jax.random.key(i), s))
    for i, (name, s) in enumerate([("gate", (3, 5)), ("up", (3, 5)), ("down", (5, 3))])
  }
  x = np.asarray(jax.random.normal(jax.random.key(9), (1, 2, 3)), np.float64)
  gate = x @ w["gate"]
  expected = (gate / (1 + np.exp(-gate)) * (x @ w["up"])) @ w["down"]
  got = llama.mlp(
    "float32",
    "silu",
    {name: {"w": jnp.asarray(v)} for name, v in w.items()},
    jnp.asarray(x, jnp.float32),
  )
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_head_is_the_embedding_unless_untied():
  hidden = jax.random.normal(jax.random.key(1), (3, 32))
  for tied in (True, False):
    lm = tiny.lm("llama", tied=tied)
    params = lm.init(jax.random.key(0))
    assert ("head" in params) != tied
    w = params["embed"]["tokens"].T if tied else params["head"]["w"]
    np.testing.assert_allclose(
      lm.logits(params, hidden), np.asarray(hidden) @ np.asarray(w), atol=1e-5
    )


def test_letters_say_what_each_layer_sees():
  config = llama.LlamaConfig(
    8,
    8,
    width=32,
    depth=5,
    heads=4,
    kv_heads=4,
    mlp=8,
    pattern="LNG",
    window=3,
    rope_scaling="linear",
    rope_factor=2.0,
    local_rope_base=100.0,
  )
  kinds, pattern = llama.kinds(config)
  layers = [kinds[i] for i in pattern]
  assert [kind.window for kind in layers] == [3, 0, 0, 3, 0]
  np.testing.assert_allclose(layers[0].frequency, rope.frequencies(8, 100.0))
  np.testing.assert_array_equal(layers[1].frequency, np.zeros(4))
  np.testing.assert_allclose(layers[2].frequency, rope.frequencies(8, 10_000.0) / 2)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"pattern": "GX"}, "pattern is 'GX' with window 0: give the letters G, L and N"),
    ({"pattern": "L"}, "pattern is 'L' with window 0"),
    ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn': choose one of none, linear, llama3"),
    ({"activation": "swish"}, "activation is 'swish': choose one of silu"),
  ],
)
def test_unknown_variants_are_refused(change, message):
  with pytest.raises(UserError, match=message):
    llama.llama(llama.LlamaConfig(8, 8, width=32, depth=1, heads=4, kv_heads=4, mlp=8, **change))


def test_embeddings_are_scaled_by_the_root_of_the_width():
  tokens, at = jnp.array([[1, 2]]), jnp.zeros((1, 2), jnp.int32)
  p = {"tokens": jnp.ones((4, 9))}
  np.testing.assert_allclose(llama.embed(3.0, p, tokens, at), 3.0)
  np.testing.assert_allclose(llama.embed(1.0, p, tokens, at), 1.0)


def test_key_heads_must_divide_the_heads():
  with pytest.raises(UserError, match=r"heads 4, kv_heads 3"):
    llama.llama(
      llama.LlamaConfig(vocab_size=8, context=8, width=32, depth=1, heads=4, kv_heads=3, mlp=8)
    )
