"""Log-probabilities of text under a language model: the one place where logits become numbers.

Logits are computed only where a token is predicted.  Dimensions: B batch, T tokens, R predicted tokens, D width.
"""

from __future__ import annotations

import jax.numpy as jnp

from instructjax import losses, sharding
from instructjax.types import LM, Array, Bool, Demonstrations, Float, Int, Key, Params, Valid


def response_logp(
  lm: LM,
  params: Params,
  tokens: Int[Array, "B T"],
  valid: Valid,
  response: int,
  *,
  temperature: float = 1.0,
  banned: tuple[int, ...] = (),
  stem: Float[Array, "B T D"] | None = None,
  key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
  """log p(y_t | x, y_<t) and the entropy at each of the last `response` tokens of a row."""
  hidden = lm.hidden(params, tokens, valid, stem=stem, key=key)[:, -response - 1 : -1]
  logits = losses.temper(lm.logits(params, hidden), temperature, banned)
  return losses.token_logp(logits, tokens[:, -response:]), losses.entropy(logits)


def masked_logp(
  lm: LM, params: Params, batch: Demonstrations, window: int | None = None, *, key: Key[Array, ""] | None = None
) -> tuple[Float[Array, "B R"], Bool[Array, "B R"]]:
  """(logp, mask) of the tokens marked by `batch.mask`, R of them a row.

  With a `window`, the marked tokens of a row are taken to be contiguous and at most `window` long, and only their logits
  are computed; without one, R = T - 1.
  """
  hidden = lm.hidden(params, batch.tokens, batch.valid, stem=batch.stem, key=key)
  mask = batch.mask[:, 1:]
  targets = batch.tokens[:, 1:]
  hidden = hidden[:, :-1]
  if window is not None and window < mask.shape[1]:
    first = jnp.clip(jnp.argmax(mask, axis=1), 0, mask.shape[1] - window)
    at = first[:, None] + jnp.arange(window)
    rows = jnp.arange(mask.shape[0])[:, None]
    take = lambda x: x.at[rows, at].get(out_sharding=sharding.spec("batch", *[None] * (x.ndim - 1)))
    hidden, targets, mask = take(hidden), take(targets), take(mask)
  return losses.token_logp(lm.logits(params, hidden), targets), mask
