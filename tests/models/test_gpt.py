"""GPT-2 and GPT-3: exact parameter counts, initial values, the parts that set the family apart."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax.errors import UserError
from instructjax.models import gpt
from instructjax.types import Leaf

COUNTS = {
  "125M": 125_226_240,
  "350M": 355_871_744,
  "760M": 760_300_032,
  "1.3B": 1_315_723_264,
  "2.7B": 2_651_553_280,
  "6B": 6_658_404_352,
  "6.7B": 6_658_404_352,
  "13B": 12_853_386_240,
  "175B": 174_604_259_328,
}
GPT2_COUNTS = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1.5B": 1_557_611_200}


def count(config):
  params = jax.eval_shape(gpt.gpt(config).init, jax.random.key(0))
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", COUNTS)
def test_gpt3_has_exactly_the_parameters_of_the_table(name):
  assert count(gpt.GPT3[name]) == COUNTS[name]
  assert set(gpt.GPT3) == set(COUNTS)


@pytest.mark.parametrize("name", GPT2_COUNTS)
def test_gpt2_has_the_parameters_of_the_public_checkpoints(name):
  assert count(gpt.GPT2[name]) == GPT2_COUNTS[name]


def test_gpt_5m():
  c = gpt.GPT_5M
  assert (c.depth, c.width, c.heads, c.vocab_size, c.context) == (4, 256, 4, 8192, 1024)
  assert count(c) == 5_518_848  # 8192 * 256 + 1024 * 256 + 4 * 789,760 + 512


def test_every_leaf_names_each_of_its_axes():
  for leaf in jax.tree.leaves(gpt.table(gpt.GPT_5M), is_leaf=lambda x: isinstance(x, Leaf)):
    assert len(leaf.axes) == len(leaf.shape)


def test_initial_values_are_those_of_gpt2():
  config = gpt.GPTConfig(vocab_size=400, context=64, width=128, depth=8, heads=4)
  params = gpt.gpt(config).init(jax.random.key(0))
  for path, std in [
    ("q", 0.02),
    ("k", 0.02),
    ("v", 0.02),
    ("up", 0.02),
    ("o", 0.005),
    ("down", 0.005),
  ]:
    assert float(params["blocks"][path]["w"].std()) == pytest.approx(std, rel=0.02), (
      path
    )  # .02 / sqrt(2 * 8) = .005
    assert not params["blocks"][path]["b"].any()
  assert float(params["embed"]["tokens"].std()) == pytest.approx(0.02, rel=0.02)
  assert float(params["embed"]["positions"].std()) == pytest.approx(0.02, rel=0.05)
  assert (params["norm"]["scale"] == 1).all()
  q, k = params["blocks"]["q"]["w"], params["blocks"]["k"]["w"]
  assert abs(np.corrcoef(np.ravel(q), np.ravel(k))[0, 1]) < 0.02  # every leaf has a key of its own


def test_gelu_is_the_tanh_form():
  p = {"up": {"w": jnp.eye(1), "b": jnp.zeros(1)}, "down": {"w": jnp.eye(1), "b": jnp.zeros(1)}}
  x = np.linspace(-4, 4, 9)
  expected = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  got = gpt.mlp("float32", "gelu_tanh", p, jnp.asarray(x, jnp.float32)[None, :, None])[0, :, 0]
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_positions_are_learned():
  """The same token at two places differs by the rows of the position table, and by nothing when
  they are equal.
  """
  lm = tiny.lm("gpt", depth=1)
  params = lm.init(jax.random.key(0))
  tokens, valid = jnp.full((1, 5), 7), jnp.ones((1, 5), bool)
  stem = lm.stem(params, tokens, valid)
  rows = params["embed"]["positions"][:5]
  np.testing.assert_allclose(stem[0] - stem[0, :1], rows - rows[:1], atol=1e-6)
  flat = params | {
    "embed": params["embed"] | {"positions": jnp.zeros_like(params["embed"]["positions"])}
  }
  hidden = np.asarray(jax.jit(lm.hidden)(flat, tokens, valid))
  np.testing.assert_allclose(hidden[0], np.repeat(hidden[0, :1], 5, 0), atol=1e-5)


def test_the_unembedding_is_the_embedding_unless_untied():
  tied = tiny.lm("gpt")
  params = tied.init(jax.random.key(0))
  hidden = jax.random.normal(jax.random.key(1), (2, 3, tied.width))
  np.testing.assert_allclose(
    tied.logits(params, hidden),
    np.asarray(hidden) @ np.asarray(params["embed"]["tokens"]).T,
    atol=1e-5,
  )
  config = gpt.GPTConfig(vocab_size=48, context=64, width=32, depth=2, heads=4, tied=False)
  untied = gpt.gpt(config)
  params = untied.init(jax.random.key(0))
  np.testing.assert_allclose(
    untied.logits(params, hidden), np.asarray(hidden) @ np.asarray(params["head"]["w"]), atol=1e-5
  )


def test_a_parallel_block_adds_both_halves_of_the_same_input():
  """With attention of constant 1 and an MLP that copies its normed input, a serial block would see
  the 1.
  """
  config = gpt.GPTConfig(
    vocab_size=9,
    context=8,
    width=8,
    depth=1,
    heads=2,
    rotary=4,
    parallel=True,
    one_norm=True,
    mlp=8,
    activation="relu",
  )
  lm = gpt.gpt(config)
  params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), lm.table)
  block = params["blocks"]
  block["o"]["b"] += jnp.arange(8.0)
  block["attn_norm"]["scale"] += 1
  block["up"]["w"] += jnp.eye(8)
  block["down"]["w"] += jnp.eye(8)
  params["embed"]["tokens"] += jnp.arange(9.0)[:, None] * jnp.array([1.0, -1] * 4)
  params["norm"]["scale"] += 1
  assert "mlp_norm" not in block
  assert "positions" not in params["embed"]
  x = lm.stem(params, jnp.array([[3]]), jnp.ones((1, 1), bool))
  hidden = lm.hidden(params, jnp.array([[3]]), jnp.ones((1, 1), bool))[0, 0]
  normed = np.asarray(x[0, 0]) / np.sqrt(9 + 1e-5)
  expected = np.asarray(x[0, 0]) + np.arange(8) + np.maximum(normed, 0)
  expected = (expected - expected.mean()) / np.sqrt(expected.var() + 1e-5)
  np.testing.assert_allclose(hidden, expected, atol=1e-5)


def test_heads_must_divide_the_width():
  with pytest.raises(UserError, match=r"width 32, heads 5"):
    gpt.gpt(gpt.GPTConfig(vocab_size=48, context=64, width=32, depth=2, heads=5))
