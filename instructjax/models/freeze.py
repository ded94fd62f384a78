"""Splits a model into a trunk that is not trained and the blocks above it that are."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from instructjax.errors import UserError
from instructjax.types import Params


def split(params: Params, top: int | None, *, dtype: str | None = None) -> tuple[Params, Params]:
  """(trunk, trained): the embeddings and the lower blocks, and the `top` blocks with the final norm and head.

  `trunk | trained` is a model again.  The trunk is cast to `dtype` (bfloat16 halves its memory and its time).  A tied
  embedding is both input and output, and is not trained.  top=None trains everything: ({}, params).

  Raises UserError when the model has fewer than `top` blocks.
  """
  if top is None:
    return {}, params
  depth = jax.tree.leaves(params["blocks"])[0].shape[0]
  if not 0 < top <= depth:
    raise UserError(
      f"cannot train the top {top} blocks of a model with {depth}: choose 1 to {depth}, or none to train all"
    )
  cast = lambda x: x if dtype is None else x.astype(jnp.dtype(dtype))
  below = jax.tree.map(lambda x: x[: depth - top], params["blocks"])
  if "lower" in params:
    below = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), params["lower"], below)
  trunk = jax.tree.map(cast, {"embed": params["embed"], "lower": below})
  trained = {name: leaf for name, leaf in params.items() if name not in ("embed", "lower", "blocks")}
  return trunk, trained | {"blocks": jax.tree.map(lambda x: x[depth - top :], params["blocks"])}
