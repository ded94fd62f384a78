"""What is not trained: the lower blocks of a model, and whole models that are only read.

A model may be held in two parts. The trunk has the embeddings and the lower blocks, under `embed`
and `lower`; the trained part has everything else, with the upper blocks under `blocks`. Both are
dicts without a common key, so `trunk | trained` is a model that every function of `LM` takes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from instructjax.errors import UserError
from instructjax.types import Array, Params


def split(
  params: Params,
  top: int | None,
  *,
  dtype: str | None = None,
) -> tuple[Params, Params]:
  """Splits a model into (trunk, trained), where `top` blocks with the final norm are trained.

  The unembedding is trained too where it is a parameter of its own; a tied embedding is both input
  and output, and is not trained. The trunk is cast to `dtype`: bfloat16 halves its memory and its
  time. With top=None everything is trained: ({}, params).

  Raises:
    UserError: when the model has fewer than `top` blocks, or none that are stacked (a Flax model).
  """
  if top is None:
    return {}, params
  if "blocks" not in params:
    raise UserError(
      f"cannot train the top {top} blocks: this model's parameters ({', '.join(params)}) hold no "
      "stacked `blocks`, as those of the gpt and llama families do; leave `top` empty, or put "
      "jax.lax.stop_gradient into your own module"
    )
  depth = jax.tree.leaves(params["blocks"])[0].shape[0]
  if not 0 < top <= depth:
    raise UserError(
      f"cannot train the top {top} blocks of a model with {depth}: choose 1 to {depth}, or none to "
      "train all"
    )
  bottom = depth - top
  below = jax.tree.map(lambda x: x[:bottom], params["blocks"])
  above = jax.tree.map(lambda x: x[bottom:], params["blocks"])
  # Of a model that is split already, the frozen blocks stay frozen, below the new ones.
  if "lower" in params:
    below = jax.tree.map(
      lambda lowest, next_ones: jnp.concatenate([lowest, next_ones]),
      params["lower"],
      below,
    )
  trunk = {"embed": params["embed"], "lower": below}
  if dtype is not None:
    trunk = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), trunk)
  # What is left is the final norm and, in an untied model, the head.
  trained = dict(params)
  for name in ("embed", "lower"):
    trained.pop(name, None)
  trained["blocks"] = above
  return trunk, trained


def whole(trunk: Params, trained: Params) -> Params:
  """Joins both parts to a model in float32, with its blocks in one stack.

  This is the inverse of `split`, except for what `dtype` has rounded.
  """
  # A trunk without blocks is {}: then the trained part is the whole model.
  frozen = dict(trunk)
  lower = frozen.pop("lower", None)
  frozen = jax.tree.map(lambda x: x.astype(jnp.float32), frozen)
  joined = frozen | trained
  if lower is not None:
    # Each leaf is cast when it is joined, so that only one cast copy is in memory at a time.
    joined["blocks"] = jax.tree.map(
      lambda below, above: jnp.concatenate([below.astype(jnp.float32), above]),
      lower,
      trained["blocks"],
    )
  return joined


def cast(params: Params, dtype: str) -> Params:
  """Casts the float32 matrices ("w" of two axes and more) to `dtype`.

  A product would round them anyway. Biases and norms, which are small and are added or multiplied
  in float32, stay as they are. A frozen reference or reward model in bfloat16 takes half the
  memory.
  """

  def cast_leaf(path: tuple[Any, ...], w: Array) -> Array:
    name = jax.tree_util.keystr(path[-1:], simple=True)
    is_matrix = name == "w" and w.ndim > 1
    return w.astype(dtype) if is_matrix and w.dtype == jnp.float32 else w

  return jax.tree_util.tree_map_with_path(cast_leaf, params)


def base(params: Params, dtype: str | None) -> Params:
  """Prepares a whole model that is frozen below an adapter.

  Its matrices and embeddings are cast to `dtype` (None leaves them as they are); its biases and
  norms stay float32.
  """
  if dtype is None:
    return params
  frozen = cast(params, dtype)
  frozen["embed"] = jax.tree.map(lambda w: w.astype(dtype), params["embed"])
  return frozen
