"""Sampling: a prefill, then a decode loop that stops when every row has ended.

The sampled distribution is the one that is scored: `losses.temper` shapes the logits in this file
as it does in the trainer.

Dimensions: B rows, P prompt tokens (left padded), R response tokens, T = P + R, V vocabulary. The
vocabulary is cut into N blocks of BLOCK ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import losses, sharding
from instructjax.errors import UserError
from instructjax.types import (
  LM,
  Array,
  Bool,
  Cache,
  Float,
  Int,
  Key,
  Params,
  Prompts,
  Rollout,
)

# Ids in a block of the two-level search of `categorical`; about the root of a vocabulary.
BLOCK = 256


@dataclass(frozen=True)
class Sampling:
  """How to sample.  `eos` are all the ids that end a response, `banned` the ids that are never
  drawn (PAD among them).

  temperature 0 is greedy.  top_k 0 and top_p 1 leave the distribution whole, as PPO needs: its
  ratios and its KL are of whole distributions, and what is cut away is never tried, so that
  nothing can teach the policy to say it.

  Raises UserError unless top_k >= 0 and 0 < top_p <= 1.
  """

  response: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  eos: tuple[int, ...] = ()
  banned: tuple[int, ...] = ()
  n: int = 1  # responses of each prompt, which is read once for all of them; PPO draws one
  # False where the weights do not fit whole along fsdp: gathered a layer at a time, in every step
  whole: bool = True

  def __post_init__(self):
    if self.top_k < 0 or not 0 < self.top_p <= 1:
      raise UserError(
        f"top_k={self.top_k}, top_p={self.top_p}: top_k is a number of tokens (0 keeps all), top_p "
        "a share above 0 and up to 1 "
        "(1 keeps all)"
      )


def truncate(
  logits: Float[Array, "B V"],
  top_k: int,
  top_p: float,
) -> Float[Array, "B V"]:
  """Sets all but the likeliest tokens to -inf.

  The `top_k` likeliest tokens stay (Fan et al. 2018), and of these the smallest set that holds mass
  `top_p` (Holtzman et al. 2020). Tokens that are as likely as the last one to stay, stay too. With
  top_k 0 and top_p 1 nothing is sorted.
  """
  if top_k:
    k = min(top_k, logits.shape[-1])
    largest, _ = jax.lax.top_k(logits, k)
    kth = largest[:, -1:]  # [B, 1]: the smallest logit that stays
    logits = jnp.where(logits < kth, -jnp.inf, logits)
  if top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    mass = jax.nn.softmax(ordered)
    # A token belongs to the set when the mass before it is not enough yet.
    before = jnp.cumsum(mass, axis=-1) - mass
    in_set = jnp.where(before < top_p, ordered, jnp.inf)
    last = jnp.min(in_set, axis=-1, keepdims=True)
    logits = jnp.where(logits < last, -jnp.inf, logits)
  return logits


def first_above(
  mass: Float[Array, "B N"],
  u: Float[Array, " B"],
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """Returns the first index at which the cumulative mass exceeds u, and the rest of u there.

  The rest is u less the mass before the index. u is held below the total, so that an index without
  mass is never returned.
  """
  total = jnp.cumsum(mass, axis=-1)
  just_below_total = jnp.nextafter(total[:, -1], jnp.zeros_like(u))
  u = jnp.minimum(u, just_below_total)
  index = jnp.argmax(total > u[:, None], axis=-1)
  before = jnp.take_along_axis(total - mass, index[:, None], axis=-1)
  return index, jnp.maximum(u - before[:, 0], 0.0)


def categorical(
  key: Key[Array, ""],
  logits: Float[Array, "B V"],
) -> Int[Array, " B"]:
  """Samples from softmax(logits) by an inverse CDF in two levels: the block, then the id within.

  This takes one uniform number a row and one pass over the vocabulary. Gumbel noise would take a
  random number for every id.
  """
  rows, vocab_size = logits.shape
  top = jnp.max(logits, axis=-1, keepdims=True)
  mass = jnp.exp(logits - top)
  # The padding of the last block has no mass, so it is never chosen.
  padding = -vocab_size % BLOCK
  mass = jnp.pad(mass, ((0, 0), (0, padding)))
  mass = mass.reshape(rows, -1, BLOCK)
  block_mass = mass.sum(-1)
  # The mass is not normalised, so u runs up to its total.
  u = jax.random.uniform(key, (rows,), jnp.float32, out_sharding=sharding.spec("batch"))
  u = u * block_mass.sum(-1)
  block, u = first_above(block_mass, u)
  # The rest of u searches within the block.
  mass_within = jnp.take_along_axis(mass, block[:, None, None], axis=1)
  within, _ = first_above(mass_within[:, 0], u)
  return (block * BLOCK + within).astype(jnp.int32)


def draw(
  key: Key[Array, ""],
  logits: Float[Array, "B V"],
  cfg: Sampling,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """Returns a token and its log-probability under the distribution that it was sampled from.

  Greedy decoding (temperature 0) has no such distribution and reports that of temperature 1.
  """
  if cfg.temperature == 0:
    logits = losses.temper(logits, 1.0, cfg.banned)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  else:
    logits = losses.temper(logits, cfg.temperature, cfg.banned)
    logits = truncate(logits, cfg.top_k, cfg.top_p)
    token = categorical(key, logits)
  return token, losses.token_logp(logits, token)


def is_end(token: Int[Array, " B"], eos: tuple[int, ...]) -> Array:
  """Whether each token is one of the end-of-text ids."""
  if not eos:
    return jnp.zeros_like(token, bool)
  return jnp.isin(token, jnp.asarray(eos, jnp.int32))


def _check_prompts(prompts: Prompts) -> None:
  """Checks that prompts are padded on the left; raises as `sample` says."""
  valid = prompts.valid
  if valid.dtype != bool:
    raise TypeError(f"valid is boolean, this is {valid.dtype}: valid > 0 makes it so")
  if isinstance(valid, jax.core.Tracer):
    return
  # Within a trace, indexing an array that is no part of it would trace all the same.
  rows = np.flatnonzero(~np.asarray(valid)[:, -1])
  if len(rows):
    raise ValueError(
      f"{len(rows)} of {len(valid)} prompts end in padding, the first is row {rows[0]}: prompts "
      "are padded on the left (pipeline.pad_prompts)"
    )


class Decoding(NamedTuple):
  """The state of the decode loop after t response tokens."""

  t: Int[Array, ""]
  cache: Cache
  live: Bool[Array, " B"]  # rows that have not ended
  # What the loop has written so far; positions from t on are 0.
  tokens: Int[Array, "B R"]
  mask: Bool[Array, "B R"]
  logp: Float[Array, "B R"]


def sample(
  lm: LM,
  params: Params,
  prompts: Prompts,
  key: Key[Array, ""],
  cfg: Sampling,
) -> Rollout:
  """Continues every prompt by up to `cfg.response` tokens, `cfg.n` times.

  The n rows of a prompt follow each other. Tokens after the end are 0, with `valid` and `mask`
  False. Step t samples with fold_in(key, t): a new key for each call gives new samples, and the
  same key gives the same samples. Where `prompts.ends` has a schedule, a row ends after so many
  tokens, whatever they are: the last of them counts as its end of text.

  Raises:
    TypeError: unless `prompts.valid` is boolean.
    ValueError: for prompts that are padded on the right, where their values can be seen: outside of
      a compiled function. The response would follow the padding.
  """
  _check_prompts(prompts)
  B, P = prompts.tokens.shape
  layers = lm.unstack(params, whole=cfg.whole)

  def empty_cache(rows: int):
    return lm.init_cache(rows, P + cfg.response)

  # A prompt is read once. Its cache and last hidden state are then repeated for its n rows.
  hidden, cache = lm.decode(layers, prompts.tokens, prompts.valid, empty_cache(B))
  cache = sharding.repeat_cache(cache, cfg.n, empty_cache, B)
  prompts, hidden = sharding.repeat((prompts, hidden[:, -1:]), cfg.n)
  B *= cfg.n

  def choose(t, hidden, live):
    # The sampler sees the whole vocabulary of its rows.
    logits = sharding.reshard(lm.logits(layers, hidden), "batch", None)
    token, logp = draw(jax.random.fold_in(key, t), logits, cfg)
    token = jnp.where(live, token, 0)
    logp = jnp.where(live, logp, 0.0)
    live = live & ~is_end(token, cfg.eos)
    if prompts.ends is not None:
      live = live & (t + 1 < prompts.ends)
    return token, logp, live

  def write(buffer, t, column):
    return jax.lax.dynamic_update_slice_in_dim(buffer, column[:, None], t, axis=1)

  def empty_like(column):
    spec = sharding.spec("batch", None)
    return jnp.zeros_like(column, shape=(B, cfg.response), out_sharding=spec)

  def step(state: Decoding) -> Decoding:
    t = state.t
    last = jax.lax.dynamic_slice_in_dim(state.tokens, t - 1, 1, axis=1)
    valid = jax.lax.dynamic_slice_in_dim(state.mask, t - 1, 1, axis=1)
    hidden, cache = lm.decode(layers, last, valid, state.cache)
    token, logp, live = choose(t, hidden[:, -1], state.live)
    return Decoding(
      t=t + 1,
      cache=cache,
      live=live,
      tokens=write(state.tokens, t, token),
      # The end-of-text token itself belongs to the response: the mask is that of before it.
      mask=write(state.mask, t, state.live),
      logp=write(state.logp, t, logp),
    )

  def any_live(state: Decoding):
    return (state.t < cfg.response) & jnp.any(state.live)

  # The first token comes from the prefill.
  all_live = jnp.ones_like(prompts.valid[:, 0])
  token, logp, live = choose(0, hidden[:, -1], all_live)
  first = Decoding(
    t=jnp.int32(1),
    cache=cache,
    live=live,
    tokens=write(empty_like(token), 0, token),
    mask=write(empty_like(all_live), 0, all_live),
    logp=write(empty_like(logp), 0, logp),
  )
  # The name is that of the loop where its trips are counted (`plan.counting`).
  with jax.named_scope("trips:steps"):
    last = jax.lax.while_loop(any_live, step, first)
  return Rollout(
    tokens=jnp.concatenate([prompts.tokens, last.tokens], axis=1),
    valid=jnp.concatenate([prompts.valid, last.mask], axis=1),
    mask=last.mask,
    logp=last.logp,
    ended=~last.live,
  )
