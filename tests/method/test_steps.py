"""One gradient step: accumulation, the rows of metrics, donation, averages, compilation."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from instructjax import sharding, steps

X = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(1).normal(size=12), jnp.float32)


def loss(params, batch, key):
  """Weighted squares, whose weights are shares of the whole batch; rows are the errors."""
  x, y, weight = batch
  error = x @ params["w"] + params["b"] - y
  return (weight * error**2).sum(), error


def start():
  return {"w": jnp.arange(3.0), "b": jnp.float32(0.5)}


@pytest.mark.parametrize("micro", [2, 3, 4, 12])
def test_accumulation_equals_one_batch(micro):
  weight = jnp.arange(12.0) / 66  # rows count unequally
  run = lambda micro: jax.jit(partial(steps.gradients, loss, micro=micro))(start(), (X, Y, weight))
  (grads, value, rows), (grads_m, value_m, rows_m) = run(1), run(micro)
  tiny.assert_trees_close(grads_m, grads, rtol=1e-5, atol=1e-6)
  assert float(value_m) == pytest.approx(float(value), rel=1e-5)
  np.testing.assert_allclose(rows_m, rows, rtol=1e-5)  # in the order of the batch
  error = np.asarray(X) @ np.arange(3) + 0.5 - np.asarray(Y)
  np.testing.assert_allclose(
    grads["w"], 2 * (np.asarray(weight) * error) @ np.asarray(X), rtol=1e-5
  )


def test_every_micro_batch_has_a_key_of_its_own():
  noise = lambda params, batch, key: (params["w"].sum() * 0, jax.random.normal(key, batch.shape))
  run = lambda key: steps.gradients(noise, start(), jnp.zeros(12), key, micro=3)[2]
  rows = np.asarray(run(jax.random.key(0)))
  assert len(np.unique(rows)) == 12
  np.testing.assert_array_equal(rows, run(jax.random.key(0)))


def test_split_takes_every_nth_row_and_merge_puts_them_back():
  tree = {"a": jnp.arange(12), "b": jnp.arange(24).reshape(12, 2)}
  parts = steps.split(tree, 3)
  np.testing.assert_array_equal(parts["a"], [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
  tiny.assert_trees_equal(steps.merge(parts), tree)


def test_no_row_leaves_its_device(mesh):
  x = sharding.place_batch(jnp.arange(32).reshape(16, 2))
  parts = jax.jit(partial(steps.split, n=2))(x)
  assert jax.typeof(parts).sharding.spec == jax.P(None, ("data", "fsdp"), None)
  here = lambda x, axis: {
    s.device: set(np.asarray(s.data).ravel().tolist()) for s in x.addressable_shards
  }
  assert here(x, 0) == here(parts, 1)
  np.testing.assert_array_equal(jax.jit(steps.merge)(parts), x)


def test_an_update_moves_counts_and_averages():
  tx = optax.sgd(0.1)
  params = start()
  state = steps.init_state(jax.random.key(0), params, tx, ema={"w": params["w"]}, kl_coef=0.2)
  grads = jax.tree.map(jnp.ones_like, params)
  new = steps.update(state, grads, tx, ema_decay=0.9)
  np.testing.assert_allclose(new.params["w"], np.arange(3) - 0.1, rtol=1e-6)
  np.testing.assert_allclose(new.ema["w"], np.arange(3) - 0.01, rtol=1e-6, atol=1e-8)
  assert new.step == 1
  assert new.iteration == 0
  assert float(new.kl_coef) == pytest.approx(0.2)
  tiny.assert_trees_equal(steps.update(state, grads, tx).ema, state.ema)


def test_the_average_does_not_share_its_memory_with_the_parameters():
  params = start()
  state = steps.init_state(jax.random.key(0), params, optax.sgd(0.1), ema=params)
  assert state.ema["w"].unsafe_buffer_pointer() != state.params["w"].unsafe_buffer_pointer()


def test_a_compiled_step_donates_its_state_and_compiles_once():
  tx = optax.adam(0.1)
  state = steps.init_state(jax.random.key(0), start(), tx)

  def one(state, batch):
    grads, value, _ = steps.gradients(loss, state.params, batch)
    return steps.update(state, grads, tx), {"loss": value}

  step = steps.compiled(one, state)
  batch = (X, Y, jnp.full(12, 1 / 12))
  first, history = state, []
  # Compilations and not traces: a state that is not committed compiles twice on one trace.
  with tiny.compilations("one") as compilations:
    for _ in range(5):
      state, metrics = step(state, batch)
      history.append(float(metrics["loss"]))
  assert first.params["w"].is_deleted()
  assert history == sorted(history, reverse=True)
  assert len(compilations) == 1


def test_an_update_keeps_the_state_of_its_optimizer_and_sees_the_weights():
  """Adam counts, and a decay of .5 halves each weight where nothing is learned."""
  params = start()
  tx = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.5), optax.sgd(1.0))
  state = steps.init_state(jax.random.key(0), params, tx)
  zeros = jax.tree.map(jnp.zeros_like, params)
  for count in (1, 2):
    state = steps.update(state, zeros, tx)
    assert state.opt_state[0].count == count
  tiny.assert_trees_close(state.params, jax.tree.map(lambda p: p / 4, params))


def test_a_gradient_of_a_part_is_refused():
  """Broadcast, it would move what it is no gradient of."""
  params = start()
  tx = optax.sgd(0.1)
  state = steps.init_state(jax.random.key(0), params, tx)
  with pytest.raises(AssertionError):
    steps.update(state, {"w": jnp.float32(1), "b": jnp.float32(1)}, tx)
  with pytest.raises(AssertionError):
    steps.update(state, {"w": jnp.ones(3)}, tx)


def test_a_compiled_step_keeps_the_shardings_of_its_state():
  """A weight in parts comes back in parts, although its gradient is whole on every device."""
  tx = optax.sgd(0.1)
  with jax.set_mesh(sharding.make_mesh(1, 2, 1)):
    params = sharding.place({"w": jnp.ones(4)}, {"w": jax.P("fsdp")})
    state = steps.init_state(jax.random.key(0), params, tx)

    def whole(state):
      w = sharding.reshard(state.params["w"], None)
      return dataclasses.replace(state, params={"w": w * 2}), {}

    new, _ = steps.compiled(whole, state)(state)
    assert new.params["w"].sharding.spec == jax.P("fsdp")


def test_a_state_on_a_mesh_of_one_device():
  sgd = optax.sgd(0.5)

  def step(state, batch):
    return steps.update(state, {"w": batch.sum()}, sgd), {}

  with jax.set_mesh(sharding.make_mesh(data=1)):
    state = steps.init_state(jax.random.key(0), {"w": jnp.float32(2.0)}, sgd)
    compiled = steps.compiled(step, state)
    with tiny.compilations("step") as compilations:
      for _ in range(2):
        state, _ = compiled(state, jnp.ones(2))
  assert float(state.params["w"]) == 0
  assert len(compilations) == 1


def test_an_average_is_of_entries_of_the_parameters():
  tx = optax.sgd(0.1)
  state = steps.init_state(jax.random.key(0), start(), tx, ema={"b": start()["b"]})
  assert sorted(state.ema) == ["b"]
  with pytest.raises(ValueError, match=r"ema has the entries \['policy'\].*\['b', 'w'\]"):
    steps.init_state(jax.random.key(0), start(), tx, ema={"policy": start()})
