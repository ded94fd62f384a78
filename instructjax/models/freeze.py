"""What is not trained: a trunk below the blocks that are, and whole models that are only read."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from instructjax.errors import UserError
from instructjax.types import Params


def split(params: Params, top: int | None, *, dtype: str | None = None) -> tuple[Params, Params]:
  """(trunk, trained): the embeddings and the lower blocks, and the `top` blocks with the final norm
  and head.

  `trunk | trained` is a model again.  The trunk is cast to `dtype` (bfloat16 halves its memory
  and its time).  A tied embedding is both input and output, and is not trained.  top=None trains
  everything: ({}, params).

  Raises UserError when the model has fewer than `top` blocks, or none that are stacked (a Flax
  model).
  """
  if top is None:
    return {}, params
  if "blocks" not in params:
    raise UserError(
      f"cannot train the top {top} blocks: this model's parameters ({', '.join(params)}) hold no "
      "stacked `blocks`, as those of "
      "the gpt and llama families do; leave `top` empty, or put jax.lax.stop_gradient into your "
      "own module"
    )
  depth = jax.tree.leaves(params["blocks"])[0].shape[0]
  if not 0 < top <= depth:
    raise UserError(
      f"cannot train the top {top} blocks of a model with {depth}: choose 1 to {depth}, or none to "
      "train all"
    )
  cast = lambda x: x if dtype is None else x.astype(jnp.dtype(dtype))
  below = jax.tree.map(lambda x: x[: depth - top], params["blocks"])
  if "lower" in params:
    below = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), params["lower"], below)
  trunk = jax.tree.map(cast, {"embed": params["embed"], "lower": below})
  trained = {
    name: leaf for name, leaf in params.items() if name not in ("embed", "lower", "blocks")
  }
  return trunk, trained | {"blocks": jax.tree.map(lambda x: x[depth - top :], params["blocks"])}


def whole(trunk: Params, trained: Params) -> Params:
  """The model of both parts in float32, its blocks in one stack: the inverse of `split` but for
  what `dtype` rounded.
  """
  found = jax.tree.map(
    lambda x: x.astype(jnp.float32), {name: leaf for name, leaf in trunk.items() if name != "lower"}
  )
  if "lower" not in trunk:
    return found | trained
  join = lambda a, b: jnp.concatenate([a.astype(jnp.float32), b])
  return found | trained | {"blocks": jax.tree.map(join, trunk["lower"], trained["blocks"])}


def cast(params: Params, dtype: str) -> Params:
  """Matrices ("w" of two axes and more) in `dtype`, as a product would round them anyway; biases
  and norms stay float32.

  A frozen reference or reward model in bfloat16 takes half the memory.
  """
  named = lambda path: jax.tree_util.keystr(path[-1:], simple=True)
  leaf = lambda path, w: (
    w.astype(dtype) if named(path) == "w" and w.ndim > 1 and w.dtype == jnp.float32 else w
  )
  return jax.tree_util.tree_map_with_path(leaf, params)


def base(params: Params, dtype: str | None) -> Params:
  """A whole model below an adapter: its matrices and embeddings in `dtype` (None: as they are),
  biases and norms in float32.
  """
  if dtype is None:
    return params
  return cast(params, dtype) | {"embed": jax.tree.map(lambda w: w.astype(dtype), params["embed"])}
