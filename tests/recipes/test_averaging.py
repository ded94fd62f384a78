"""Averages of two models, and the line between them."""

import averaging
import jax.numpy as jnp
import numpy as np
import world


def test_an_average_has_the_share_of_each_model():
  start, policy = {"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([10.0, 4.0])}
  np.testing.assert_allclose(averaging.average(start, policy, 0.2)["w"], [2, 4])
  np.testing.assert_array_equal(averaging.average(start, policy, 0.0)["w"], start["w"])
  np.testing.assert_array_equal(averaging.average(start, policy, 1.0)["w"], policy["w"])


def test_what_is_above_the_line():
  values = np.array([[0, 1], [0.2, 1], [0.8, 1], [0.6, 1], [0.8, 1], [1, 1.0]])
  expected = [[0, 0], [0, 0], [0.4, 0], [0, 0], [0, 0], [0, 0]]
  np.testing.assert_allclose(averaging.above_line(values), expected, atol=1e-12)


def test_the_ends_of_the_front_are_both_models(monkeypatch):
  models = []
  monkeypatch.setattr(world, "evaluate", lambda model, seed: models.append(model) or np.zeros(3))
  monkeypatch.setattr(world, "text_loss", lambda model: np.asarray(model["w"]))
  start, policy = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([2.0, 1.0])}
  reward, text = averaging.front(start, policy, seed=0)
  assert reward.shape == (6, 3)
  np.testing.assert_allclose(text[:, 0], [1, 1.2, 1.4, 1.6, 1.8, 2], rtol=1e-6)
  np.testing.assert_array_equal(models[-1]["w"], policy["w"])
