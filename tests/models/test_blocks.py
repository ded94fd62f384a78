"""The parts of a transformer against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.models import blocks


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def wide(x):
  return np.asarray(x, np.float64)


def test_linear_is_the_product_over_the_contracted_axes_plus_the_bias():
  x, w, b = draw(0, 2, 3, 4, 5), draw(1, 4, 5, 6), draw(2, 6)
  y = blocks.linear({"w": w, "b": b}, x, "float32", contract=2)
  np.testing.assert_allclose(y, np.einsum("btij,ijo->bto", wide(x), wide(w)) + wide(b), atol=1e-5)
  split = blocks.linear({"w": w}, draw(3, 2, 3, 4), "float32")  # outputs of two axes
  np.testing.assert_allclose(
    split, np.einsum("bti,ijo->btjo", wide(draw(3, 2, 3, 4)), wide(w)), atol=1e-5
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_and_their_gradients_round_the_operands_and_accumulate_in_float32(dtype):
  x, w, g = draw(0, 7, 300), draw(1, 300, 5), draw(2, 7, 5)
  y, backward = jax.vjp(lambda x, w: blocks.matmul(x, w, dtype, None), x, w)
  dx, dw = backward(g)
  x, w, g = (wide(a.astype(dtype)) for a in (x, w, g))
  for got, expected in ((y, x @ w), (dx, g @ w.T), (dw, x.T @ g)):
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradients_of_a_product_with_a_transpose(dtype):
  x, w, g = draw(0, 7, 300), draw(1, 5, 300), draw(2, 7, 5)
  _, backward = jax.vjp(lambda x, w: blocks.matmul(x, w, dtype, None, 1), x, w)
  dx, dw = backward(g)
  x, w, g = (wide(a.astype(dtype)) for a in (x, w, g))
  for got, expected in ((dx, g @ w), (dw, g.T @ x)):
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_bfloat16_weight_is_multiplied_in_bfloat16_whatever_the_dtype():
  x, w = draw(0, 1, 2, 16), draw(1, 16, 3).astype(jnp.bfloat16)
  y = blocks.linear({"w": w}, x, "float32")
  np.testing.assert_allclose(y, wide(x.astype(jnp.bfloat16)) @ wide(w), atol=1e-5)
  assert y.dtype == jnp.float32


def test_norms():
  x, scale, bias = 3 + 2 * draw(0, 2, 3, 8), draw(1, 8), draw(2, 8)
  a = wide(x)
  rms = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5) * wide(scale)
  np.testing.assert_allclose(blocks.rms_norm({"scale": scale}, x, 1e-5), rms, atol=1e-5)
  layer = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5) * wide(
    scale
  ) + wide(bias)
  np.testing.assert_allclose(
    blocks.layer_norm({"scale": scale, "bias": bias}, x, 1e-5), layer, atol=1e-5
  )


def test_an_offset_is_added_to_the_scale_of_a_norm():
  x, scale = draw(0, 2, 3, 4, 8), draw(1, 8)
  plain = blocks.rms_norm({"scale": 1 + scale}, x, 1e-5)
  np.testing.assert_allclose(blocks.rms_norm({"scale": scale}, x, 1e-5, 1.0), plain, atol=1e-6)


def test_a_soft_cap_bends_towards_the_cap():
  x = jnp.array([-1e4, -3.0, 0.0, 0.01, 3.0, 1e4])
  np.testing.assert_allclose(
    blocks.softcapped(x, 3.0), [-3, -3 * np.tanh(1), 0, 0.01, 3 * np.tanh(1), 3], atol=1e-6
  )
  assert blocks.softcapped(x, 0.0) is x


def test_features_beyond_the_rotated_ones_and_those_of_frequency_0_stay():
  x, at = draw(0, 1, 4, 2, 8), jnp.array([[0, 1, 2, 90]])
  y = blocks.rotate(x, blocks.turns(at, np.array([0.5, 0.0], np.float32)))
  np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
  np.testing.assert_array_equal(y[..., [1, 3]], x[..., [1, 3]])
  turned = np.cos(45.0) * wide(x)[0, 3, :, 0] - np.sin(45.0) * wide(x)[0, 3, :, 2]
  np.testing.assert_allclose(y[0, 3, :, 0], turned, atol=1e-5)
  assert blocks.rotate(x, blocks.turns(at, np.zeros(0, np.float32))) is x


def test_a_window_holds_the_query_and_those_before_it():
  mask = blocks.causal_mask(jnp.array([[True, True, True, False, True]]), 2)[0]
  expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
  np.testing.assert_array_equal(mask, expected)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
  x = jnp.ones((8, 50, 100))
  y = np.asarray(blocks.dropout(jax.random.key(0), x, 0.2))
  assert set(np.unique(y)) == {0.0, np.float32(1.25)}
  assert (y == 0).mean() == pytest.approx(0.2, abs=0.01)
  assert blocks.dropout(None, x, 0.2) is x
  assert blocks.dropout(jax.random.key(0), x, 0.0) is x


def test_lookup_reads_rows_in_float32_and_clips_ids():
  w = draw(0, 5, 4).astype(jnp.bfloat16)
  rows = blocks.lookup(w, jnp.array([[0, 4, 9]]))
  assert rows.dtype == jnp.float32
  np.testing.assert_array_equal(rows[0], np.asarray(w, np.float32)[[0, 4, 4]])


def test_positions_count_real_tokens_within_their_segment():
  bools = jnp.array(
    [[False, False, True, True], [True, True, False, False], [True, False, True, True]]
  )
  np.testing.assert_array_equal(blocks.positions(bools), [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2]])
  packed = jnp.array([[1, 1, 1, 2, 2, 0], [0, 3, 3, 4, 0, 0]])
  at = np.asarray(blocks.positions(packed))
  real = np.asarray(packed) > 0
  np.testing.assert_array_equal(at[real], [0, 1, 2, 0, 1, 0, 1, 0])


def test_the_mask_is_causal_real_and_within_the_segment():
  mask = blocks.causal_mask(jnp.array([[False, True, True]]))[0]
  np.testing.assert_array_equal(mask, [[0, 0, 0], [0, 1, 0], [0, 1, 1]])
  packed = blocks.causal_mask(jnp.array([[1, 1, 2, 2, 0]]))[0]
  expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
  np.testing.assert_array_equal(packed, expected)


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_attention_with_grouped_heads_by_loops(dtype, atol):
  B, T, S, H, K, C = 2, 3, 4, 6, 2, 5
  q, k, v = draw(0, B, T, H, C), draw(1, B, K, S, C), draw(2, B, K, S, C)
  mask = np.array(jax.random.bernoulli(jax.random.key(3), 0.6, (B, T, S)))
  mask[..., 0] = True
  got = blocks.attention(q, k, v, jnp.asarray(mask), dtype)
  for b, t, h in np.ndindex(B, T, H):
    scores = wide(k)[b, h // (H // K)] @ wide(q)[b, t, h] / np.sqrt(C)
    weights = np.where(mask[b, t], np.exp(scores), 0)
    np.testing.assert_allclose(
      got[b, t, h], weights / weights.sum() @ wide(v)[b, h // (H // K)], atol=atol
    )


def test_a_query_without_keys_has_no_nan():
  out = blocks.attention(
    draw(0, 1, 2, 2, 4),
    draw(1, 1, 2, 3, 4),
    draw(2, 1, 2, 3, 4),
    jnp.zeros((1, 2, 3), bool),
    "float32",
  )
  assert np.isfinite(np.asarray(out)).all()
