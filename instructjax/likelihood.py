"""Log-probabilities of text under a language model: the one place where logits become numbers.

Logits are the largest array of a training step. They are computed only where a token is predicted,
and where the vocabulary is large, for a part of the positions at a time.

Dimensions: B batch, T tokens, R predicted tokens, D width, V vocabulary. The R positions of a row
are cut into N parts of M positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from instructjax import losses, sharding
from instructjax.models import cache
from instructjax.types import (
  LM,
  Array,
  Bool,
  Branch,
  Demonstrations,
  Float,
  Int,
  Key,
  Params,
  Prompts,
  Valid,
)

# The most logits that a device holds at once: 256 MB in float32.
LOGITS = 1 << 26

# Maps logits [B, M, V] and tokens [B, M] to two arrays [B, M].
Measure = Callable[[Array, Array], tuple[Array, Array]]

# Of each row: the sum of the log-probabilities of its marked tokens in nats, their number, and
# whether each of them is the likeliest token at its place.
RowScores = tuple[Float[Array, " B"], Int[Array, " B"], Bool[Array, " B"]]


def parts(tokens: Int[Array, "B R"], vocab_size: int) -> int:
  """Returns N, the number of parts by which a device holds at most LOGITS logits at once."""
  rows, positions = tokens.shape
  if sharding.is_sharded():
    # Only the rows and the ids of one device count. A vocabulary that the mesh does not divide is
    # whole on every device.
    rows, _ = jax.typeof(tokens).sharding.shard_shape(tokens.shape)
    vocabulary_is_whole = sharding.fit((vocab_size,), ("vocab",)) == jax.P(None)
    if not vocabulary_is_whole:
      vocab_size //= jax.sharding.get_abstract_mesh().shape["model"]
  # A part has at least one position of every row.
  needed = math.ceil(rows * positions * vocab_size / LOGITS)
  return min(needed, positions)


def logp_and_entropy(
  logits: Float[Array, "B M V"],
  tokens: Int[Array, "B M"],
) -> tuple[Float[Array, "B M"], Float[Array, "B M"]]:
  """Returns log p(token) and the entropy of the distribution, both in nats.

  Example:
    >>> logp, entropy = likelihood.logp_and_entropy(jnp.zeros((2, 3, 8)), rows.tokens[:, 2:])
    >>> print(logp[0], entropy[0])
    [-2.079 -2.079 -2.079] [2.079 2.079 2.079]
  """
  return losses.token_logp(logits, tokens), losses.entropy(logits)


def logp_and_likeliest(
  logits: Float[Array, "B M V"],
  tokens: Int[Array, "B M"],
) -> tuple[Float[Array, "B M"], Bool[Array, "B M"]]:
  """Returns log p(token), and whether no other token is likelier.

  That is whether greedy decoding would choose the token, or one that ties with it.

  Example:
    >>> logits = jnp.zeros((2, 3, 8)).at[0, :, 4].set(1.0)
    >>> logp, likeliest = likelihood.logp_and_likeliest(logits, rows.tokens[:, 2:])
    >>> print(likeliest)
    [[False  True False]
     [ True  True  True]]
  """
  # Both numbers come from the same function, so a tie is an exact equality.
  likeliest = jnp.argmax(logits, axis=-1).astype(tokens.dtype)
  best = losses.token_logp(logits, likeliest)
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
  """Returns what `measure` makes of the logits before each token.

  The default gives log p(token | the hidden state before it) and the entropy. Several parts are a
  scan whose gradient computes the logits of a part again, so the logits of the whole batch never
  exist at once.

  Example:
    >>> hidden = lm.hidden(params, rows.tokens, rows.valid)
    >>> logp, entropy = likelihood.of_tokens(lm, params, hidden[:, 1:-1], rows.tokens[:, 2:])
    >>> print(logp.shape, entropy.shape)
    (2, 3) (2, 3)
  """

  def measure_part(params, hidden, tokens):
    logits = lm.logits(params, hidden)
    logits = losses.temper(logits, temperature, banned)
    return measure(logits, tokens)

  N = parts(tokens, lm.vocab_size)
  if N == 1:
    return measure_part(params, hidden, tokens)

  # The unembedding is made whole along fsdp once, before the scan, and not in every part of it.
  outside_blocks = {
    name: jax.tree.map(sharding.gather, subtree)
    for name, subtree in params.items()
    if name not in ("lower", "blocks", "layers")
  }
  remeasure_part = jax.checkpoint(
    partial(measure_part, outside_blocks),
    prevent_cse=False,  # a scan needs no guard against common subexpressions
  )

  def body(_, part):
    return None, remeasure_part(*part)

  hidden_parts = _cut(hidden, N)
  token_parts = _cut(tokens, N)
  _, (first, second) = jax.lax.scan(body, None, (hidden_parts, token_parts))
  length = tokens.shape[1]
  return _join(first, length), _join(second, length)


def _cut(x: Array, n: int) -> Array:
  """[B, R, ...] -> [N, B, M, ...], filled up with zeros at the end."""
  rows, length, *rest = x.shape
  m = math.ceil(length / n)
  padding = [(0, 0)] * x.ndim
  padding[1] = (0, n * m - length)
  x = jnp.pad(x, padding)
  spec = _rows(x, x.ndim + 1)
  x = jax.lax.reshape(x, (rows, n, m, *rest), out_sharding=spec)
  return jnp.swapaxes(x, 0, 1)


def _join(x: Array, length: int) -> Array:
  """[N, B, M] -> [B, R], the inverse of `_cut`."""
  x = jnp.swapaxes(x, 0, 1)
  rows, n, m = x.shape
  spec = _rows(x, 2)
  x = jax.lax.reshape(x, (rows, n * m), out_sharding=spec)
  return x[:, :length]


def _rows(x: Array, ndim: int) -> jax.P | None:
  """The partition of an array of `ndim` axes that splits its rows as those of x, and only them."""
  if not sharding.is_sharded():
    return None
  first = jax.typeof(x).sharding.spec[0]
  return jax.P(first, *[None] * (ndim - 1))


def response_logp(
  lm: LM,
  params: Params,
  tokens: Int[Array, "B T"],
  valid: Valid,
  response: int,
  *,
  temperature: float = 1.0,
  banned: tuple[int, ...] = (),
  before: Int[Array, "B A"] | None = None,
  targets: Int[Array, "B A"] | None = None,
  branch: Branch | None = None,
  stem: Float[Array, "B T D"] | None = None,
  key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B A"], Float[Array, "B A"]]:
  """Returns log p(y_t | x, y_<t) and the entropy at each of the last `response` tokens of a row.

  In packed rows the response tokens are `targets`, each after what stands up to its column
  `before`, and `branch` says where responses share a prompt.

  Example:
    >>> logp, entropy = likelihood.response_logp(lm, params, rows.tokens, rows.valid, response=3)
    >>> print((logp * mask).sum(axis=1).shape)  # of whole responses
    (2,)
  """
  hidden = lm.hidden(params, tokens, valid, branch=branch, stem=stem, key=key)
  if targets is None:
    targets = tokens[:, -response:]
  return of_tokens(
    lm,
    params,
    states_before(hidden, response, before),
    targets,
    temperature=temperature,
    banned=banned,
  )


def states_before(
  hidden: Float[Array, "B T D"],
  response: int,
  before: Int[Array, "B R"] | None = None,
) -> Float[Array, "B R D"]:
  """Returns the hidden state before each response token, which predicts it.

  The response tokens are the last `response` of a row, or those after the columns `before`.

  Example:
    >>> hidden = jnp.arange(10.0).reshape(2, 5, 1)
    >>> print(likelihood.states_before(hidden, response=3)[0, :, 0])
    [1. 2. 3.]
  """
  if before is None:
    return hidden[:, -response - 1 : -1]
  return at_columns(hidden, before)


def at_columns(x: Array, columns: Int[Array, "B R"]) -> Array:
  """[B, T, ...] -> [B, R, ...]: the values at these columns of each row."""

  def take(x: Array, columns: Array) -> Array:
    rows = jnp.arange(x.shape[0])[:, None]
    return x[rows, columns]

  # Nothing leaves its row, and so nothing leaves its device.
  return sharding.on_each_device(take, _rows(x, columns.ndim), x, columns)


def masked_logp(
  lm: LM,
  params: Params,
  batch: Demonstrations,
  window: int | None = None,
  *,
  key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B R"], Bool[Array, "B R"]]:
  """Returns (logp, mask) of the tokens marked by `batch.mask`, R of them a row.

  With a `window`, a row is taken to have at most so many marked tokens, wherever they stand. Only
  their logits are computed, and R = window: they come first and in their order. Without one,
  R = T - 1.

  Example:
    >>> logp, marked = likelihood.masked_logp(lm, params, text)
    >>> print(logp.shape, marked.sum(axis=1))
    (2, 4) [3 2]
    >>> logp, marked = likelihood.masked_logp(lm, params, text, window=3)
    >>> print(logp.shape, marked.sum(axis=1))
    (2, 3) [3 2]
  """
  hidden, targets, mask = _marked(lm, params, batch, window, key)
  logp, _ = of_tokens(lm, params, hidden, targets)
  return logp, mask


def continuation(
  lm: LM,
  params: Params,
  batch: Demonstrations,
  window: int | None = None,
) -> RowScores:
  """Scores the marked tokens of each row, as multiple-choice evaluations do.

  Example:
    >>> total, count, likeliest = likelihood.continuation(lm, params, text)
    >>> print(total.shape, count)
    (2,) [3 2]
  """
  hidden, targets, mask = _marked(lm, params, batch, window)
  return _score_ends(lm, params, hidden, targets, mask)


def choices(
  lm: LM,
  params: Params,
  prompts: Prompts,
  ends: Int[Array, "Bn R"],
  mask: Bool[Array, "Bn R"],
) -> RowScores:
  """Returns what `continuation` does, for n ends of each prompt, which is read once for all.

  The ends are right padded, and those of one prompt follow each other.

  Example:
    >>> ends = jnp.array([[3, 7], [4, 0], [5, 7], [6, 0]])  # two of each prompt
    >>> score = jax.jit(partial(likelihood.choices, lm))
    >>> total, count, likeliest = score(params, prompts, ends, ends > 0)
    >>> print(total.shape, count)
    (4,) [2 1 2 1]
  """
  rows, width = prompts.tokens.shape
  end_count, length = ends.shape
  n = end_count // rows
  cache.check_context(lm.context, width + length - 1)
  # The weights become whole along fsdp a layer at a time. To gather all of them at once pays only
  # for the many steps of a sampler.
  layers = lm.unstack(params, whole=False)

  def empty_cache(rows: int):
    return lm.init_cache(rows, width + length - 1)

  hidden, cached = lm.decode(layers, prompts.tokens, prompts.valid, empty_cache(rows))
  cached = sharding.repeat_rows(cached, sharding.row_axes(empty_cache, rows), n)
  # Prompts are left padded: their last position predicts the first token of every end.
  hidden = sharding.repeat(hidden[:, -1:], n)
  if length > 1:
    # The last token of an end predicts nothing, so it is not read.
    rest, _ = lm.decode(layers, ends[:, :-1], mask[:, :-1], cached)
    hidden = jnp.concatenate([hidden, rest], axis=1)
  return _score_ends(lm, params, hidden, ends, mask)


def _score_ends(
  lm: LM,
  params: Params,
  hidden: Float[Array, "B R D"],
  targets: Int[Array, "B R"],
  mask: Bool[Array, "B R"],
) -> RowScores:
  """Scores tokens from the hidden states before them."""
  logp, likeliest = of_tokens(lm, params, hidden, targets, measure=logp_and_likeliest)
  total = (logp * mask).sum(1)
  count = mask.sum(1, dtype=jnp.int32)
  # What stands outside the mask has no say.
  all_likeliest = jnp.all(likeliest | ~mask, axis=1)
  return total, count, all_likeliest


def _marked(
  lm: LM,
  params: Params,
  batch: Demonstrations,
  window: int | None,
  key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B R D"], Int[Array, "B R"], Bool[Array, "B R"]]:
  """Returns (hidden states, the tokens that follow them, which of these tokens are marked)."""
  hidden = lm.hidden(params, batch.tokens, batch.valid, stem=batch.stem, key=key)
  # The hidden state at a token predicts the next one, and nothing predicts the first.
  hidden = hidden[:, :-1]
  targets = batch.tokens[:, 1:]
  mask = batch.mask[:, 1:]
  rows, length = mask.shape
  if window is None or window >= length:
    return hidden, targets, mask

  # The columns of the marked tokens, filled up with others where a row has fewer.
  columns = jnp.argsort(~mask, axis=1, stable=True)[:, :window]
  row_indices = jnp.arange(rows)[:, None]

  def take_window(x):
    spec = sharding.spec("batch", *[None] * (x.ndim - 1))
    return x.at[row_indices, columns].get(out_sharding=spec)

  return take_window(hidden), take_window(targets), take_window(mask)


# What is promised; the other functions are the parts of these.
__all__ = [
  "LOGITS",
  "Measure",
  "RowScores",
  "choices",
  "continuation",
  "logp_and_entropy",
  "logp_and_likeliest",
  "masked_logp",
  "of_tokens",
  "response_logp",
  "states_before",
]
