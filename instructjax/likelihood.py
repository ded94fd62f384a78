"""Log-probabilities of text under a language model: the one place where logits become numbers.

Logits are computed only where a token is predicted, and of a large vocabulary for a part of the
positions at a time: they are the largest array of a training step.  Dimensions: B batch, T
tokens, R predicted tokens, D width, V vocabulary, N parts of M positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from instructjax import losses, sharding
from instructjax.types import (
  LM,
  Array,
  Bool,
  Demonstrations,
  Float,
  Int,
  Key,
  Params,
  Prompts,
  Valid,
)

LOGITS = 1 << 26  # the most logits that a device holds at once: 256 MB in float32


def parts(tokens: Int[Array, "B R"], vocab_size: int) -> int:
  """N: into how many parts the positions of a row fall, so that a device holds at most LOGITS
  logits of one part.
  """
  rows, positions = tokens.shape
  if sharding.is_sharded():
    rows, _ = jax.typeof(tokens).sharding.shard_shape(tokens.shape)
    whole = sharding.fit((vocab_size,), ("vocab",)) == jax.P(None)
    vocab_size //= 1 if whole else jax.sharding.get_abstract_mesh().shape["model"]
  return min(math.ceil(rows * positions * vocab_size / LOGITS), positions)


Measure = Callable[
  [Array, Array], tuple[Array, Array]
]  # logits [B, M, V] and tokens [B, M] -> two arrays [B, M]


def logp_and_entropy(
  logits: Float[Array, "B M V"], tokens: Int[Array, "B M"]
) -> tuple[Float[Array, "B M"], Float[Array, "B M"]]:
  """log p(token), and the entropy of the distribution."""
  return losses.token_logp(logits, tokens), losses.entropy(logits)


def logp_and_likeliest(
  logits: Float[Array, "B M V"], tokens: Int[Array, "B M"]
) -> tuple[Float[Array, "B M"], Bool[Array, "B M"]]:
  """log p(token), and whether no other token is likelier: greedy decoding would draw it, or ties
  with it.
  """
  best = losses.token_logp(logits, jnp.argmax(logits, axis=-1).astype(tokens.dtype))
  logp = losses.token_logp(logits, tokens)
  return logp, logp >= best


def of_tokens(
  lm: LM,
  params: Params,
  hidden: Float[Array, "B R D"],
  tokens: Int[Array, "B R"],
  *,
  temperature: float = 1.0,
  banned: tuple[int, ...] = (),
  measure: Measure = logp_and_entropy,
) -> tuple[Array, Array]:
  """What `measure` makes of the logits before each token; by default log p(token | hidden state
  before it) and the entropy.

  Several parts are a scan whose gradient computes the logits of a part again, so those of the
  batch never exist at once.
  """
  N = parts(tokens, lm.vocab_size)

  def part(params, hidden, tokens):
    logits = losses.temper(lm.logits(params, hidden), temperature, banned)
    return measure(logits, tokens)

  if N == 1:
    return part(params, hidden, tokens)
  # Made whole along fsdp once, and not in every part.
  outside = {
    name: jax.tree.map(sharding.gather, p)
    for name, p in params.items()
    if name not in ("lower", "blocks", "layers")
  }
  body = jax.checkpoint(partial(part, outside), prevent_cse=False)
  _, found = jax.lax.scan(lambda _, x: (None, body(*x)), None, (_cut(hidden, N), _cut(tokens, N)))
  first, second = (_join(x, tokens.shape[1]) for x in found)
  return first, second


def _cut(x: Array, n: int) -> Array:
  """[B, R, ...] -> [N, B, M, ...], filled up with zeros at the end."""
  m = math.ceil(x.shape[1] / n)
  x = jnp.pad(x, ((0, 0), (0, n * m - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))
  x = jax.lax.reshape(x, (x.shape[0], n, m, *x.shape[2:]), out_sharding=_rows(x, x.ndim + 1))
  return jnp.swapaxes(x, 0, 1)


def _join(x: Array, length: int) -> Array:
  """[N, B, M] -> [B, R], the inverse of `_cut`."""
  x = jnp.swapaxes(x, 0, 1)
  return jax.lax.reshape(x, (x.shape[0], x.shape[1] * x.shape[2]), out_sharding=_rows(x, 2))[
    :, :length
  ]


def _rows(x: Array, ndim: int) -> jax.P | None:
  """The partition of `ndim` axes whose first lies as that of x, the others whole."""
  return (
    jax.P(jax.typeof(x).sharding.spec[0], *[None] * (ndim - 1)) if sharding.is_sharded() else None
  )


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
  return of_tokens(
    lm, params, hidden, tokens[:, -response:], temperature=temperature, banned=banned
  )


def masked_logp(
  lm: LM,
  params: Params,
  batch: Demonstrations,
  window: int | None = None,
  *,
  key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B R"], Bool[Array, "B R"]]:
  """(logp, mask) of the tokens marked by `batch.mask`, R of them a row.

  With a `window`, the marked tokens of a row are taken to be contiguous and at most `window`
  long, and only their logits are computed; without one, R = T - 1.
  """
  hidden, targets, mask = _marked(lm, params, batch, window, key)
  return of_tokens(lm, params, hidden, targets)[0], mask


def continuation(
  lm: LM, params: Params, batch: Demonstrations, window: int | None = None
) -> tuple[Float[Array, " B"], Int[Array, " B"], Bool[Array, " B"]]:
  """(sum of the log-probabilities of the marked tokens in nats, their number, whether each is the
  likeliest) of each row.
  """
  hidden, targets, mask = _marked(lm, params, batch, window)
  logp, likeliest = of_tokens(lm, params, hidden, targets, measure=logp_and_likeliest)
  return (logp * mask).sum(1), mask.sum(1, dtype=jnp.int32), jnp.all(likeliest | ~mask, axis=1)


def choices(
  lm: LM, params: Params, prompts: Prompts, ends: Int[Array, "Bn R"], mask: Bool[Array, "Bn R"]
) -> tuple[Float[Array, " Bn"], Int[Array, " Bn"], Bool[Array, " Bn"]]:
  """`continuation` of n ends of each prompt (right padded, those of a prompt in a row), which is
  read once for all of them.

  Weights become whole along fsdp a layer at a time, as there: all of them at once are for the
  many steps of a sampler.
  """
  (rows, width), (many, length) = prompts.tokens.shape, ends.shape
  layers = lm.unstack(params, whole=False)
  empty = lambda rows: lm.init_cache(rows, width + length - 1)
  hidden, cache = lm.decode(layers, prompts.tokens, prompts.valid, empty(rows))
  cache = sharding.repeat_cache(cache, many // rows, empty, rows)
  hidden = sharding.repeat(hidden[:, -1:], many // rows)
  if length > 1:
    rest, _ = lm.decode(layers, ends[:, :-1], mask[:, :-1], cache)
    hidden = jnp.concatenate([hidden, rest], axis=1)
  logp, likeliest = of_tokens(lm, params, hidden, ends, measure=logp_and_likeliest)
  return (logp * mask).sum(1), mask.sum(1, dtype=jnp.int32), jnp.all(likeliest | ~mask, axis=1)


def _marked(
  lm: LM,
  params: Params,
  batch: Demonstrations,
  window: int | None,
  key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B R D"], Int[Array, "B R"], Bool[Array, "B R"]]:
  """(hidden states, the tokens that follow them, which of these are marked)."""
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
  return hidden, targets, mask
