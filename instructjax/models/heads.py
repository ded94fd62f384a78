"""Scalar heads: the reward of a text and the value of a prefix, read off hidden states.

Dimensions: B rows, T tokens, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from instructjax.types import Array, Float, Key, Params, Valid


def init_head(key: Key[Array, ""], width: int) -> Params:
  """Draws a head: w [D] ~ N(0, 1 / (D + 1)) and b = 0   (Stiennon et al. 2020).

  1 / (D + 1) is the variance, so the standard deviation is 1 / sqrt(D + 1).
  """
  w = jax.random.normal(key, (width,), jnp.float32)
  w = w / jnp.sqrt(jnp.float32(width + 1))
  return {"w": w, "b": jnp.float32(0)}


def values(head: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
  """Returns V_t = w . h_t + b, computed in float32."""
  products = hidden.astype(jnp.float32) * head["w"]
  return jnp.sum(products, axis=-1) + head["b"]


def score(
  head: Params,
  hidden: Float[Array, "B T D"],
  valid: Valid,
) -> Float[Array, " B"]:
  """Returns r = w . h_t + b at the last real token t of each row, wherever the padding is.

  A row without a real token scores b.
  """
  column = jnp.arange(valid.shape[1])
  real_columns = jnp.where(valid > 0, column, -1)
  last = jnp.max(real_columns, axis=1, keepdims=True)
  # The bias is added after the choice of the token, so that an empty row gets it too.
  without_bias = head | {"b": jnp.zeros_like(head["b"])}
  at_last = jnp.where(column == last, values(without_bias, hidden), 0)
  return jnp.sum(at_last, axis=1) + head["b"]
