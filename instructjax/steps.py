"""One gradient step: gradient, accumulation over micro-batches, update, moving average.

A loss is a function `(params, batch, key) -> (scalar, rows)`. The scalar is a sum of weighted terms
whose weights are already shares of the whole batch (`losses.token_mean`), so the sum over
micro-batches is exactly the loss of the batch. `rows` holds what the metrics need, one row an
example; metrics are computed from it outside the gradient.

Dimensions: N micro-batches, B examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from instructjax import optim, sharding
from instructjax.types import Array, Key, Params, PyTree, Scalar, TrainState

# Maps (params, batch, key) to (scalar, rows).
Loss = Callable[[Params, Any, Key[Array, ""] | None], tuple[Scalar, PyTree]]


def new_state(
  key: Key[Array, ""],
  params: Params,
  tx: optax.GradientTransformation,
  *,
  ema: Params | None = None,
  kl_coef: float | None = None,
) -> TrainState:
  """Returns a state at step 0, on arrays or, under `jax.eval_shape`, on shapes.

  `ema` holds the weights to average, or None for no average. `kl_coef` is the first coefficient of
  PPO's KL penalty; the other stages have none.
  """
  return TrainState(
    step=jnp.int32(0),
    iteration=jnp.int32(0),
    key=key,
    params=params,
    opt_state=tx.init(params),
    # A copy, because a state is donated and one buffer cannot be donated twice.
    ema=jax.tree.map(jnp.copy, ema),
    kl_coef=None if kl_coef is None else jnp.float32(kl_coef),
  )


def commit(state: TrainState) -> TrainState:
  """Returns the state committed to its devices, as the outputs of a step are.

  Otherwise the second step would not fit the compilation of the first, and would compile again.
  """

  def commit_leaf(x):
    return jax.device_put(x, x.sharding)

  return jax.tree.map(commit_leaf, state)


def init_state(
  key: Key[Array, ""],
  params: Params,
  tx: optax.GradientTransformation,
  *,
  ema: Params | None = None,
  kl_coef: float | None = None,
) -> TrainState:
  """Returns a state at step 0 that is committed to its devices (`new_state`, then `commit`)."""
  state = new_state(
    key,
    params,
    tx,
    ema=ema,
    kl_coef=kl_coef,
  )
  return commit(state)


def split(batch: PyTree, n: int) -> PyTree:
  """[B, ...] -> [N, B/N, ...], for the n micro-batches of a batch.

  Micro-batch i takes every N-th row from the i-th on, so that no row leaves its device.

  Raises:
    ValueError: when the rows do not divide.
  """

  def split_leaf(x: Array) -> Array:
    rows, *rest = x.shape
    if rows % n:
      raise ValueError(f"{rows} rows do not divide into {n} micro-batches")
    spec = sharding.spec("batch", *[None] * x.ndim)
    # The split rows stay on the outer axis, which is the one that lies on the devices.
    x = jax.lax.reshape(x, (rows // n, n, *rest), out_sharding=spec)
    return jnp.swapaxes(x, 0, 1)

  return jax.tree.map(split_leaf, batch)


def merge(rows: PyTree) -> PyTree:
  """[N, B/N, ...] -> [B, ...], the inverse of `split`."""

  def merge_leaf(x: Array) -> Array:
    x = jnp.swapaxes(x, 0, 1)
    size, n, *rest = x.shape
    spec = sharding.spec("batch", *[None] * len(rest))
    return jax.lax.reshape(x, (size * n, *rest), out_sharding=spec)

  return jax.tree.map(merge_leaf, rows)


def gradients(
  loss: Loss,
  params: Params,
  batch: PyTree,
  key: Key[Array, ""] | None = None,
  *,
  micro: int = 1,
) -> tuple[Params, Scalar, PyTree]:
  """Returns (gradient, loss, rows) of the whole batch.

  They are computed in `micro` parts, one after the other, whose gradients and losses are summed.
  """
  # `has_aux`: the rows come along and take no part in the gradient.
  value_and_grad = jax.value_and_grad(loss, has_aux=True)
  if micro == 1:
    (value, rows), grads = value_and_grad(params, batch, key)
    return grads, value, rows

  def accumulate(carry, part):
    i, micro_batch = part
    # Every micro-batch has a key of its own: two of them must not share a dropout mask.
    micro_key = None if key is None else jax.random.fold_in(key, i)
    (value, rows), grads = value_and_grad(params, micro_batch, micro_key)
    return jax.tree.map(jnp.add, carry, (grads, value)), rows

  zero_grads = jax.tree.map(jnp.zeros_like, params)
  carry = (zero_grads, jnp.float32(0))
  micro_batches = (jnp.arange(micro), split(batch, micro))
  (grads, value), rows = jax.lax.scan(accumulate, carry, micro_batches)
  return grads, value, merge(rows)


def update(
  state: TrainState,
  grads: Params,
  tx: optax.GradientTransformation,
  *,
  ema_decay: float | None = None,
) -> TrainState:
  """Applies one optimizer update, and averages into `state.ema` when a decay is given."""
  # A loss of a part of the parameters would leave the rest without a gradient, and silently fixed.
  chex.assert_trees_all_equal_shapes(grads, state.params)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params: Any = optax.apply_updates(state.params, updates)
  # The average may cover a part of the parameters: PPO averages the policy alone.
  average = state.ema
  if ema_decay is not None and average is not None:
    averaged_params = {name: params[name] for name in average}
    average = optim.ema(average, averaged_params, ema_decay)
  return dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    ema=average,
  )


def compiled(step: Callable, state: TrainState) -> Callable:
  """Returns `jax.jit` of a step with the state donated and its shardings pinned.

  The state that comes out then has the type of the one that went in, so no step compiles twice.
  """
  state_shardings = jax.tree.map(lambda x: x.sharding, state)
  metric_shardings = None  # the compiler's choice
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(state_shardings, metric_shardings),
  )
