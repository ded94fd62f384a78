"""Rollouts of the recipes' world, written as text."""

import jax.numpy as jnp
import numpy as np
import world

from instructjax.types import Rollout

SIGNS = " .=0123456789"


def rows_of(*texts):
  """The rollout of texts such as "3141=1134."; "." is the end."""
  tokens = np.zeros((len(texts), world.PROMPT + world.RESPONSE), np.int32)
  for row, text in zip(tokens, texts, strict=True):
    row[: len(text)] = [SIGNS.index(sign) for sign in text]
  tokens = jnp.asarray(tokens)
  mask = tokens[:, world.PROMPT :] > 0
  ended = jnp.any(tokens == world.EOS, axis=1)
  return Rollout(tokens, tokens > 0, mask, jnp.zeros(mask.shape), ended)
