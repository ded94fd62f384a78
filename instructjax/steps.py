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
from jax.sharding import NamedSharding

from instructjax import compiler, optim, sharding
from instructjax.types import Array, Int, Key, Params, PyTree, Scalar, TrainState

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

  `ema` holds the weights to average: some of the top-level entries of `params`, for PPO
  `{"policy": params["policy"]}`. They are copied. With None there is no average, whatever decay a
  step has. `kl_coef` is the first coefficient of PPO's KL penalty; the other stages have none.

  Raises:
    ValueError: `ema` has an entry that the parameters do not have.

  Example:
    >>> state = steps.new_state(jax.random.key(0), params, tx)
    >>> print(state.step, state.iteration)
    0 0
  """
  unknown = sorted((ema or {}).keys() - params.keys())
  if unknown:
    raise ValueError(
      f"ema has the entries {unknown}, and the parameters have {sorted(params)}: take top-level "
      'entries of them, for PPO ema={"policy": params["policy"]}'
    )
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

  Example:
    >>> state = steps.commit(steps.new_state(jax.random.key(0), params, tx))
    >>> print(state.step.committed)
    True
  """

  def commit_leaf(x):
    where = x.sharding
    # On a mesh of one device JAX says of a new key how its words lie, an axis more than a key has.
    if isinstance(where, NamedSharding) and len(where.spec) > x.ndim:
      where = where.update(spec=jax.P(*where.spec[: x.ndim]))
    return jax.device_put(x, where)

  return jax.tree.map(commit_leaf, state)


def init_state(
  key: Key[Array, ""],
  params: Params,
  tx: optax.GradientTransformation,
  *,
  ema: Params | None = None,
  kl_coef: float | None = None,
) -> TrainState:
  """Returns a state at step 0 that is committed to its devices (`new_state`, then `commit`).

  Example:
    >>> state = steps.init_state(jax.random.key(0), params, tx, kl_coef=0.02)
    >>> print(state.step, state.kl_coef)
    0 0.02
  """
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

  Example:
    >>> print(steps.split(jnp.arange(4), 2))
    [[0 2]
     [1 3]]
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
  """[N, B/N, ...] -> [B, ...], the inverse of `split`.

  Example:
    >>> print(steps.merge(steps.split(jnp.arange(4), 2)))
    [0 1 2 3]
  """

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

  Example:
    >>> def loss(params, batch, key):
    ...   return params["w"] * batch.sum() / 4, batch
    ...
    >>> w = {"w": jnp.float32(2.0)}
    >>> grads, value, batch = steps.gradients(loss, w, jnp.arange(4.0), micro=2)
    >>> print(grads["w"], value, batch)
    1.5 3.0 [0. 1. 2. 3.]
  """
  if micro > 1:
    grads, value, rows = gradients_of_parts(loss, params, split(batch, micro), key)
    return grads, value, merge(rows)
  # `has_aux`: the rows come along and take no part in the gradient.
  value_and_grad = jax.value_and_grad(loss, has_aux=True)
  (value, rows), grads = value_and_grad(params, batch, key)
  return grads, value, rows


def gradients_of_parts(
  loss: Loss,
  params: Params,
  parts: PyTree,
  key: Key[Array, ""] | None = None,
  *,
  count: Int[Array, ""] | None = None,
) -> tuple[Params, Scalar, PyTree]:
  """Returns (gradient, loss, rows) of a batch that is cut into parts: [N, B/N, ...].

  The parts are computed one after the other, and their gradients and losses are summed. With a
  `count`, which may be traced, only the first `count` of them are computed: what holds nothing
  costs nothing, and one compiled program does for every number. The rows of the others are 0.

  Example:
    >>> def loss(params, part, key):
    ...   return params["w"] * part.sum(), part
    ...
    >>> parts = steps.split(jnp.arange(4.0), 2)
    >>> w = {"w": jnp.float32(2.0)}
    >>> grads, value, rows = steps.gradients_of_parts(loss, w, parts, count=jnp.int32(1))
    >>> print(grads["w"], value)  # of rows 0 and 2 alone
    2.0 4.0
  """
  value_and_grad = jax.value_and_grad(loss, has_aux=True)

  def one_part(i, part):
    # Every part has a key of its own: two of them must not share a dropout mask.
    part_key = None if key is None else jax.random.fold_in(key, i)
    (value, rows), grads = value_and_grad(params, part, part_key)
    return (grads, value), rows

  zeros = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0))
  N = jax.tree.leaves(parts)[0].shape[0]
  if count is None:

    def accumulate(total, numbered_part):
      terms, rows = one_part(*numbered_part)
      return jax.tree.map(jnp.add, total, terms), rows

    (grads, value), rows = jax.lax.scan(accumulate, zeros, (jnp.arange(N), parts))
    return grads, value, rows

  def accumulate_part(i, total):
    terms, rows = one_part(i, _part(parts, i))
    return jax.tree.map(jnp.add, total, terms), rows

  (grads, value), rows = _over_parts(accumulate_part, zeros, N, count)
  return grads, value, rows


def rows_of_parts(
  function: Callable[[Any], PyTree],
  parts: PyTree,
  count: Int[Array, ""],
) -> PyTree:
  """Returns [N, B/N, ...], what a function makes of the first `count` parts; the rest is 0.

  Example:
    >>> parts = steps.split(jnp.arange(4.0), 2)
    >>> print(steps.rows_of_parts(jnp.square, parts, jnp.int32(2)))
    [[0. 4.]
     [1. 9.]]
  """

  def one_part(i, nothing):
    return nothing, function(_part(parts, i))

  N = jax.tree.leaves(parts)[0].shape[0]
  _, rows = _over_parts(one_part, (), N, count)
  return rows


def _part(parts: PyTree, i: Int[Array, ""] | int) -> PyTree:
  """Part i of [N, B/N, ...]."""

  def take(x):
    return jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)

  return jax.tree.map(take, parts)


def _over_parts(
  step: Callable[[Int[Array, ""], PyTree], tuple[PyTree, PyTree]],
  carry: PyTree,
  N: int,
  count: Int[Array, ""],
) -> tuple[PyTree, PyTree]:
  """Runs `(i, carry) -> (carry, rows)` for the first `count` of N parts.

  Returns the last carry, and the rows of all parts: [N, B/N, ...], with 0 where none was computed.
  """

  def empty(x):
    split_rows = sharding.spec(None, "batch", *[None] * (x.ndim - 1)) if x.ndim else None
    return jnp.zeros((N, *x.shape), x.dtype, out_sharding=split_rows)

  def step_and_write(i, state):
    carry, written = state
    carry, rows = step(i, carry)

    def write(buffer, x):
      return jax.lax.dynamic_update_index_in_dim(buffer, x, i, 0)

    return carry, jax.tree.map(write, written, rows)

  _, row_shapes = jax.eval_shape(step, jnp.int32(0), carry)
  written = jax.tree.map(empty, row_shapes)
  # The name is that of the loop where its trips are counted (`plan.counting`).
  with jax.named_scope("trips:parts"):
    return jax.lax.fori_loop(0, count, step_and_write, (carry, written))


def update(
  state: TrainState,
  grads: Params,
  tx: optax.GradientTransformation,
  *,
  ema_decay: float | None = None,
) -> TrainState:
  """Applies one optimizer update, and averages into `state.ema` when a decay is given.

  Example:
    >>> sgd = optax.sgd(0.5)
    >>> state = steps.init_state(jax.random.key(0), {"w": jnp.float32(2.0)}, sgd)
    >>> state = steps.update(state, {"w": jnp.float32(1.0)}, sgd)
    >>> print(state.step, state.params["w"])
    1 1.5
  """
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


def compiled(step: Callable, state: TrainState, options: str = "") -> Callable:
  """Returns `jax.jit` of a step with the state donated and its shardings pinned.

  The state that comes out then has the type of the one that went in, so no step compiles twice.
  The arrays of the state that goes in are gone afterwards, the parameters that it was made of among
  them: a reference that stays needs a copy of its own, `jax.tree.map(jnp.copy, params)`.
  `options` are the user's for the compiler, beside those of its platform (`compiler.OPTIONS`).

  Example:
    >>> sgd = optax.sgd(0.5)
    >>> def step(state, batch):
    ...   return steps.update(state, {"w": batch.sum()}, sgd), {"loss": state.params["w"]}
    ...
    >>> state = steps.init_state(jax.random.key(0), {"w": jnp.float32(2.0)}, sgd)
    >>> state, metrics = steps.compiled(step, state)(state, jnp.ones(2))
    >>> print(state.params["w"], metrics["loss"])
    1.0 2.0
  """
  state_shardings = jax.tree.map(lambda x: x.sharding, state)
  metric_shardings = None  # the compiler's choice
  return compiler.jit(
    step,
    options,
    donate_argnums=0,
    out_shardings=(state_shardings, metric_shardings),
  )


# What is promised; the other functions are the parts of these.
__all__ = [
  "Loss",
  "commit",
  "compiled",
  "gradients",
  "gradients_of_parts",
  "init_state",
  "merge",
  "new_state",
  "rows_of_parts",
  "split",
  "update",
]
