"""The scalar head: its initial value, and the position at which a score is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructjax.models import heads


@pytest.mark.parametrize("width", [4096, 20_000])
def test_initial_weights_have_standard_deviation_one_over_root_width_plus_one(width):
  head = heads.init_head(jax.random.key(0), width)
  assert float(head["w"].std()) == pytest.approx((width + 1) ** -0.5, rel=0.03)
  assert float(head["w"].mean()) == pytest.approx(0, abs=4 / width)
  assert head["b"] == 0


def test_values_are_affine_and_float32():
  head = {"w": jnp.arange(3.0), "b": jnp.float32(0.5)}
  hidden = jnp.ones((1, 2, 3), jnp.bfloat16)
  values = heads.values(head, hidden)
  np.testing.assert_array_equal(values, [[3.5, 3.5]])
  assert values.dtype == jnp.float32


def test_score_is_the_value_at_the_last_real_token():
  head = {"w": jnp.ones(1), "b": jnp.float32(0.25)}
  hidden = jnp.array([[1.0, 2, 3, 4]] * 5)[..., None]
  valid = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
  for mask in (valid, valid > 0, valid * 7):
    np.testing.assert_array_equal(heads.score(head, hidden, mask), [2.25, 4.25, 3.25, 3.25, 0.25])


def test_the_gradient_of_a_score_reaches_its_token_and_no_other():
  head = heads.init_head(jax.random.key(0), 4)
  hidden = jax.random.normal(jax.random.key(1), (2, 3, 4))
  valid = jnp.array([[True, True, False], [False, False, False]])
  grad = jax.grad(lambda h: heads.score(head, h, valid).sum())(hidden)
  expected = np.zeros((2, 3, 4))
  expected[0, 1] = head["w"]
  np.testing.assert_allclose(grad, expected, atol=1e-7)


def test_the_root_is_of_width_plus_one():
  """The draws are those of the normal distribution over √4, not over √3."""
  key = jax.random.key(3)
  head = heads.init_head(key, 3)
  np.testing.assert_allclose(2 * head["w"], jax.random.normal(key, (3,)), rtol=1e-6)


def test_products_are_not_rounded_to_the_precision_of_the_hidden_states():
  """1 + 2⁻¹⁰ is a float32 and no bfloat16."""
  weight = 1 + 2.0**-10
  head = {"w": jnp.full(2, weight, jnp.float32), "b": jnp.float32(0)}
  values = heads.values(head, jnp.ones((1, 1, 2), jnp.bfloat16))
  np.testing.assert_array_equal(values, [[2 * weight]])
