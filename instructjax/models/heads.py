"""Scalar heads: the reward of a text and the value of a prefix, read off the hidden states of a
language model.

Dimensions: B rows, T tokens, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from instructjax.types import Array, Float, Key, Params, Valid


def init_head(key: Key[Array, ""], width: int) -> Params:
  """w ~ N(0, 1 / (D + 1)), that is, a standard deviation of 1 / sqrt(D + 1); b = 0   (Stiennon et
  al. 2020).
  """
  w = jax.random.normal(key, (width,), jnp.float32) / jnp.sqrt(jnp.float32(width + 1))
  return {"w": w, "b": jnp.float32(0)}


def values(head: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
  """V_t = w . h_t + b in float32."""
  return jnp.sum(hidden.astype(jnp.float32) * head["w"], axis=-1) + head["b"]


def score(head: Params, hidden: Float[Array, "B T D"], valid: Valid) -> Float[Array, " B"]:
  """r = w . h_t + b at t = the last real token of the row, wherever the padding stands.

  A row without a real token scores b.
  """
  at = jnp.arange(valid.shape[1])
  last = jnp.max(jnp.where(valid > 0, at, -1), axis=1, keepdims=True)
  picked = jnp.where(at == last, values(head | {"b": jnp.zeros_like(head["b"])}, hidden), 0)
  return jnp.sum(picked, axis=1) + head["b"]
