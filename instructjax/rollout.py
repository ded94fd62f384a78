"""Sampling: a jitted prefill and a decode loop with a key/value cache that stops when every row has
ended.

The sampled distribution is the one that is scored: `losses.temper` shapes the logits here and in
the trainer. Dimensions: B rows, P prompt tokens (left padded), R response tokens, T = P + R, V
vocabulary, N blocks of M ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from instructjax import losses, sharding
from instructjax.errors import UserError
from instructjax.types import LM, Array, Float, Int, Key, Params, Prompts, Rollout

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


def truncate(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
  """-inf outside the k likeliest tokens (Fan et al. 2018) and, of these, outside the smallest set
  of likeliest tokens that holds mass top_p (Holtzman et al. 2020).  Tokens as likely as the last
  one kept are kept too.

  top_k 0 and top_p 1 sort nothing.
  """
  if top_k:
    kth = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    logits = jnp.where(logits < kth, -jnp.inf, logits)
  if top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    mass = jax.nn.softmax(ordered)
    before = jnp.cumsum(mass, axis=-1) - mass
    last = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits < last, -jnp.inf, logits)
  return logits


def first_above(
  mass: Float[Array, "B N"], u: Float[Array, " B"]
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """The first index at which the cumulative mass exceeds u, and what is left of u before it.

  u is kept below the total, so that an index without mass is never returned.
  """
  total = jnp.cumsum(mass, axis=-1)
  u = jnp.minimum(u, jnp.nextafter(total[:, -1], jnp.zeros_like(u)))
  index = jnp.argmax(total > u[:, None], axis=-1)
  here = jnp.take_along_axis(total - mass, index[:, None], axis=-1)[:, 0]
  return index, jnp.maximum(u - here, 0.0)


def categorical(key: Key[Array, ""], logits: Float[Array, "B V"]) -> Int[Array, " B"]:
  """Draws from softmax(logits) by an inverse CDF in two levels: the block, then the id within it.

  One uniform number a row and one pass over the vocabulary, where Gumbel noise needs a random
  number for every id.
  """
  B, V = logits.shape
  mass = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  mass = jnp.pad(mass, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
  sums = mass.sum(-1)
  u = jax.random.uniform(key, (B,), out_sharding=sharding.spec("batch")) * sums.sum(-1)
  block, u = first_above(sums, u)
  within, _ = first_above(jnp.take_along_axis(mass, block[:, None, None], axis=1)[:, 0], u)
  return (block * BLOCK + within).astype(jnp.int32)


def draw(
  key: Key[Array, ""], logits: Float[Array, "B V"], cfg: Sampling
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """(token, its log-probability under the distribution it was drawn from); greedy reports
  temperature 1.
  """
  if cfg.temperature == 0:
    logits = losses.temper(logits, 1.0, cfg.banned)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  else:
    logits = truncate(losses.temper(logits, cfg.temperature, cfg.banned), cfg.top_k, cfg.top_p)
    token = categorical(key, logits)
  return token, losses.token_logp(logits, token)


def is_end(token: Int[Array, " B"], eos: tuple[int, ...]) -> Array:
  """True where the token is one of the end-of-text ids."""
  return jnp.isin(token, jnp.asarray(eos, jnp.int32)) if eos else jnp.zeros_like(token, bool)


def sample(lm: LM, params: Params, prompts: Prompts, key: Key[Array, ""], cfg: Sampling) -> Rollout:
  """Continues every prompt by up to `cfg.response` tokens, `cfg.n` times: the rows of a prompt
  follow each other.

  Step t draws with fold_in(key, t): a new key for each call gives new samples, the same key the
  same samples. Tokens after the end are 0 with `valid` and `mask` False.
  """
  B, P = prompts.tokens.shape
  layers = lm.unstack(params, whole=cfg.whole)
  empty = lambda rows: lm.init_cache(rows, P + cfg.response)
  hidden, cache = lm.decode(layers, prompts.tokens, prompts.valid, empty(B))
  cache = sharding.repeat_cache(cache, cfg.n, empty, B)
  prompts, hidden = sharding.repeat((prompts, hidden[:, -1:]), cfg.n)
  B *= cfg.n

  def choose(t, hidden, live):
    logits = sharding.reshard(lm.logits(layers, hidden), "batch", None)
    token, logp = draw(jax.random.fold_in(key, t), logits, cfg)
    return jnp.where(live, token, 0), jnp.where(live, logp, 0.0), live & ~is_end(token, cfg.eos)

  def write(buffer, t, column):
    return jax.lax.dynamic_update_slice(buffer, column[:, None], (0, t))

  def body(carry):
    t, cache, live, tokens, mask, logp = carry
    last = jax.lax.dynamic_slice(tokens, (0, t - 1), (B, 1))
    seen = jax.lax.dynamic_slice(mask, (0, t - 1), (B, 1))
    hidden, cache = lm.decode(layers, last, seen, cache)
    token, lp, still = choose(t, hidden[:, -1], live)
    return t + 1, cache, still, write(tokens, t, token), write(mask, t, live), write(logp, t, lp)

  live = jnp.ones_like(prompts.valid[:, 0])
  token, lp, still = choose(0, hidden[:, -1], live)
  zeros = lambda column: jnp.zeros_like(
    column, shape=(B, cfg.response), out_sharding=sharding.spec("batch", None)
  )
  buffers = (write(zeros(token), 0, token), write(zeros(live), 0, live), write(zeros(lp), 0, lp))
  carry = (jnp.int32(1), cache, still, *buffers)
  go_on = lambda c: (c[0] < cfg.response) & jnp.any(c[2])
  _, _, live, tokens, mask, logp = jax.lax.while_loop(go_on, body, carry)
  return Rollout(
    tokens=jnp.concatenate([prompts.tokens, tokens], axis=1),
    valid=jnp.concatenate([prompts.valid, mask], axis=1),
    mask=mask,
    logp=logp,
    ended=~live,
  )
