"""Schedules at the ends the paper prints, Adam's two epsilon forms by hand, per-subtree optimizers,
the average.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructjax import optim


def test_cosine_starts_at_the_peak_and_ends_at_a_tenth():
  schedule = optim.cosine(9.65e-6, 795)
  assert schedule(0) == pytest.approx(9.65e-6, rel=1e-6)
  assert schedule(794) == pytest.approx(9.65e-7, rel=1e-5)
  assert schedule(397) == pytest.approx(9.65e-6 * 0.55, rel=1e-5)
  assert schedule(10_000) == pytest.approx(9.65e-7, rel=1e-5)


def test_warmup_rises_over_ten_iterations_from_a_tenth():
  schedule = optim.held(optim.warmup_constant(5e-6), updates=8)
  assert schedule(0) == pytest.approx(5e-7)
  assert schedule(7) == pytest.approx(5e-7)  # the eight updates of an iteration share its rate
  assert schedule(8 * 5) == pytest.approx(5e-6 * 0.55)
  assert schedule(8 * 10) == schedule(8 * 400) == pytest.approx(5e-6)


def test_linear_falls_to_zero():
  schedule = optim.linear(1e-5, 4)
  np.testing.assert_allclose(
    [schedule(i) for i in range(6)], [1e-5, 7.5e-6, 5e-6, 2.5e-6, 0, 0], rtol=1e-6
  )


def numpy_adam(grads, lr, b1, b2, eps, tf):
  """The two textbook recursions, in float64."""
  p = m = v = 0.0
  for t, g in enumerate(grads, 1):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    if tf:
      p -= lr * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
    else:
      p -= lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
  return p


@pytest.mark.parametrize("mode", ["optax", "tf"])
def test_adam_matches_the_recursion_of_its_form(mode):
  grads = [3e-5, -1e-5, 2e-5, 4e-5, -2e-5]
  tx = optim.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-5, eps_mode=mode)
  params = {"w": jnp.float32(0)}
  state = tx.init(params)
  for g in grads:
    updates, state = tx.update({"w": jnp.float32(g)}, state, params)
    params = optax.apply_updates(params, updates)
  assert params["w"] == pytest.approx(
    numpy_adam(grads, 1e-3, 0.9, 0.999, 1e-5, mode == "tf"), rel=1e-4
  )
  assert params["w"] != pytest.approx(
    numpy_adam(grads, 1e-3, 0.9, 0.999, 1e-5, mode != "tf"), rel=1e-2
  )


def test_weight_decay_asks_what_decays():
  """The arrays do not tell: a bias of the blocks is stacked over layers, and has two axes."""
  with pytest.raises(ValueError, match="what decays"):
    optim.adamw(1.0, weight_decay=0.1)


def test_weight_decay_spares_vectors_and_clipping_bounds_the_global_norm():
  params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  tx = optim.adamw(1.0, weight_decay=0.1, decays=lambda params: {"w": True, "b": False})
  updates, _ = tx.update(zeros, tx.init(params), params)
  np.testing.assert_allclose(updates["w"], -0.1 * np.ones((2, 2)), rtol=1e-6)
  np.testing.assert_array_equal(updates["b"], np.zeros(2))
  # With eps far above the gradient Adam is linear in it, so the clip shows in the update.
  big = jax.tree.map(lambda p: 100 * jnp.ones_like(p), params)
  norm = float(optax.tree.norm(big))
  clipped = optim.adamw(1.0, eps=1e6, clip=1.0)
  plain = optim.adamw(1.0, eps=1e6)
  a, _ = clipped.update(big, clipped.init(params), params)
  b, _ = plain.update(big, plain.init(params), params)
  np.testing.assert_allclose(a["b"] * norm, b["b"], rtol=1e-3)


def test_each_subtree_has_its_own_rate():
  tx = optim.by_subtree(policy=optax.sgd(0.1), value=optax.sgd(1.0))
  params = {"policy": {"a": jnp.ones(2)}, "value": {"b": jnp.ones(3)}}
  updates, _ = tx.update(params, tx.init(params), params)
  np.testing.assert_allclose(updates["policy"]["a"], -0.1 * np.ones(2))
  np.testing.assert_allclose(updates["value"]["b"], -np.ones(3))


@pytest.mark.parametrize("names", [["policy"], ["policy", "value", "head"]])
def test_a_subtree_without_an_optimizer_is_named(names):
  tx = optim.by_subtree(**dict.fromkeys(names, optax.sgd(0.1)))
  params = {"policy": {"a": jnp.ones(2)}, "value": {"b": jnp.ones(3)}}
  with pytest.raises(ValueError, match=r"parameters are \['policy', 'value'\]: name one for each"):
    tx.init(params)


def test_average_has_its_closed_form():
  decay, n = 0.992, 86
  average = {"w": jnp.float32(0)}
  for _ in range(n):
    average = optim.ema(average, {"w": jnp.float32(1)}, decay)
  assert average["w"] == pytest.approx(1 - decay**n, rel=1e-5)
  assert average["w"] == pytest.approx(0.5, abs=2e-3)  # the half-life of .992 is 86 updates


def test_linear_falls_to_its_end():
  schedule = optim.linear(1.0, 4, final=0.2)
  np.testing.assert_allclose([schedule(i) for i in range(6)], [1, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_a_schedule_waits_for_its_warmup():
  """Two updates from .1 to the peak, then the fall of `linear` from its own beginning."""
  schedule = optim.warmed_up(optim.linear(4.0, 4), 4.0, 2)
  rates = [schedule(i) for i in range(7)]
  np.testing.assert_allclose(rates, [0.4, 2.2, 4, 3, 2, 1, 0], atol=1e-6)


def test_the_betas_are_those_of_the_paper():
  """One gradient of 1, then none: m = .9 × .1 and v = .95 × .05 are corrected by .19 and .0975."""
  params = {"w": jnp.float32(0)}
  tx = optim.adamw(1.0)
  state = tx.init(params)
  _, state = tx.update({"w": jnp.float32(1)}, state, params)
  updates, _ = tx.update({"w": jnp.float32(0)}, state, params)
  expected = -(0.09 / 0.19) / np.sqrt(0.0475 / 0.0975)
  np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def test_an_average_keeps_its_precision():
  """That of the first weights: the trained ones may be cast to another, in either direction."""
  for average, weight in [("float32", "bfloat16"), ("bfloat16", "float32")]:
    out = optim.ema({"w": jnp.ones(2, average)}, {"w": jnp.zeros(2, weight)}, 0.5)
    assert out["w"].dtype == average
  # 1 + 2⁻¹⁰ stays what it is where the weights are in bfloat16.
  fine = {"w": jnp.full(1, 1 + 2.0**-10)}
  out = optim.ema(fine, {"w": jnp.ones(1, jnp.bfloat16)}, 0.5)
  np.testing.assert_array_equal(out["w"], [1 + 2.0**-11])
