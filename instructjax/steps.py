"""One gradient step: gradient, accumulation over micro-batches, update, moving average.

A loss is a function `(params, batch, key) -> (scalar, rows)`.  The scalar is a sum of weighted
terms whose weights are already shares of the whole batch (`losses.token_mean`), so the sum over
micro-batches is exactly the loss of the batch. `rows` holds what metrics need, one row an
example; metrics are computed from it outside the gradient. Dimensions: N micro-batches, B
examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from instructjax import optim, sharding
from instructjax.types import Array, Float, Key, Params, PyTree, TrainState

Loss = Callable[[Params, Any, Key[Array, ""] | None], tuple[Float[Array, ""], PyTree]]


def new_state(
  key: Key[Array, ""],
  params: Params,
  tx: optax.GradientTransformation,
  *,
  ema: Params | None = None,
  kl_coef: float | None = None,
) -> TrainState:
  """A state at step 0, on arrays or on shapes. `ema` holds the weights to average, if any."""
  return TrainState(
    step=jnp.int32(0),
    iteration=jnp.int32(0),
    key=key,
    params=params,
    opt_state=tx.init(params),
    ema=jax.tree.map(jnp.copy, ema),
    kl_coef=None if kl_coef is None else jnp.float32(kl_coef),
  )


def commit(state: TrainState) -> TrainState:
  """The same state committed to its devices, as the outputs of a step are.

  The second step then finds the compilation of the first.
  """
  return jax.tree.map(lambda x: jax.device_put(x, x.sharding), state)


def init_state(
  key: Key[Array, ""],
  params: Params,
  tx: optax.GradientTransformation,
  *,
  ema: Params | None = None,
  kl_coef: float | None = None,
) -> TrainState:
  """A state at step 0, committed to its devices: `commit` of `new_state`."""
  return commit(new_state(key, params, tx, ema=ema, kl_coef=kl_coef))


def split(batch: PyTree, n: int) -> PyTree:
  """[B, ...] -> [N, B/N, ...]; micro-batch i takes every N-th row, so no row leaves its device."""

  def leaf(x: Array) -> Array:
    rows = sharding.spec("batch", *[None] * x.ndim)
    x = jax.lax.reshape(x, (x.shape[0] // n, n, *x.shape[1:]), out_sharding=rows)
    return jnp.swapaxes(x, 0, 1)

  return jax.tree.map(leaf, batch)


def merge(rows: PyTree) -> PyTree:
  """The inverse of `split`."""

  def leaf(x: Array) -> Array:
    x = jnp.swapaxes(x, 0, 1)
    return jax.lax.reshape(
      x,
      (x.shape[0] * x.shape[1], *x.shape[2:]),
      out_sharding=sharding.spec("batch", *[None] * (x.ndim - 2)),
    )

  return jax.tree.map(leaf, rows)


def gradients(
  loss: Loss, params: Params, batch: PyTree, key: Key[Array, ""] | None = None, *, micro: int = 1
) -> tuple[Params, Float[Array, ""], PyTree]:
  """(gradient, loss, rows) of the whole batch, computed in `micro` parts whose gradients are
  summed.
  """
  value_and_grad = jax.value_and_grad(loss, has_aux=True)
  if micro == 1:
    (value, rows), grads = value_and_grad(params, batch, key)
    return grads, value, rows

  def body(carry, part):
    i, batch = part
    (value, rows), grads = value_and_grad(
      params, batch, None if key is None else jax.random.fold_in(key, i)
    )
    return jax.tree.map(jnp.add, carry, (grads, value)), rows

  zero = jax.tree.map(jnp.zeros_like, params), jnp.float32(0)
  (grads, value), rows = jax.lax.scan(body, zero, (jnp.arange(micro), split(batch, micro)))
  return grads, value, merge(rows)


def update(
  state: TrainState,
  grads: Params,
  tx: optax.GradientTransformation,
  *,
  ema_decay: float | None = None,
) -> TrainState:
  """Applies one optimizer update; averages `state.ema` (a subtree of the parameters by name) when a
  decay is given.
  """
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params: Any = optax.apply_updates(state.params, updates)
  average = state.ema
  if ema_decay is not None and average is not None:
    average = optim.ema(average, {name: params[name] for name in average}, ema_decay)
  return dataclasses.replace(
    state, step=state.step + 1, params=params, opt_state=opt_state, ema=average
  )


def compiled(step: Callable, state: TrainState) -> Callable:
  """`jax.jit` with the state donated and its shardings pinned, so that no step compiles twice."""
  return jax.jit(
    step, donate_argnums=0, out_shardings=(jax.tree.map(lambda x: x.sharding, state), None)
  )
