"""The reward model: a scalar head on a language model, trained on K-wise rankings.

    L(θ) = - 1/C(K,2) E log σ(r_θ(x, y_w) - r_θ(x, y_l))        (Ouyang et al. 2022, Eq. 1)

All C(K,2) pairs of a prompt are one batch element, so an update takes K forward passes a prompt and
not K(K-1). Parameters are {"lm": ..., "head": ...}.

Dimensions: B prompts, K completions, T tokens, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from instructjax import losses, returns, sharding, steps
from instructjax.models import heads
from instructjax.system import keys
from instructjax.types import (
  LM,
  Array,
  Bool,
  Comparisons,
  Float,
  Int,
  Key,
  Metrics,
  Params,
  Rollout,
  Scalar,
  TrainState,
  Valid,
)


@dataclass(frozen=True)
class RewardConfig:
  """Settings of one reward-model step."""

  micro: int = 1
  dropout: bool = False
  # Eq. 1 divides by the pairs that are left when ties are dropped, or by "all" C(K,2)
  pairs: str = "remaining"


def init(key: Key[Array, ""], lm: LM, trained: Params) -> Params:
  """Returns a reward model that starts from the SFT model, with its unembedding removed.

  `trained` is the trained part of that language model.
  """
  # A tied model has no "head": its embedding stays, because it embeds the tokens.
  body = {name: leaf for name, leaf in trained.items() if name != "head"}
  return {
    "lm": jax.tree.map(jnp.copy, body),
    "head": heads.init_head(key, lm.width),
  }


def join(trunk: Params, params: Params) -> Params:
  """Returns the whole reward (or value) model from its untrained trunk and its trained part."""
  return {
    "lm": trunk | params["lm"],
    "head": params["head"],
  }


def score(
  lm: LM,
  params: Params,
  tokens: Int[Array, "B T"],
  valid: Valid,
  *,
  stem: Float[Array, "B T D"] | None = None,
  key: Key[Array, ""] | None = None,
) -> Float[Array, " B"]:
  """Returns r(x, y), read at the last real token of each row."""
  hidden = lm.hidden(params["lm"], tokens, valid, stem=stem, key=key)
  return heads.score(params["head"], hidden, valid)


def closed(rows: Rollout, eos: tuple[int, ...]) -> Int[Array, "B T"]:
  """Returns the tokens of sampled responses as a reward model reads them: ended by an end of text.

  A reward model is trained on texts that end, and its score is read at the end. A response that was
  cut is scored as if it had ended there: the first id of `eos`, which closes completions in
  training, takes the place of its last token. Whoever scores a response does this, and the rows of
  comparisons and of the demonstrations that fit the bias are made in the same way.
  """
  if not eos:
    return rows.tokens
  last = returns.at_last_token(rows.valid)
  was_cut = ~rows.ended[:, None]
  return jnp.where(last & was_cut, jnp.int32(eos[0]), rows.tokens)


def flatten(batch: Comparisons) -> Comparisons:
  """[B, K, ...] -> [B*K, ...] for tokens, valid and stem; the rank keeps its shape."""

  # The completions of a prompt stay on its device, so nothing moves.
  def flatten_leaf(x: Array) -> Array:
    prompts, completions, *rest = x.shape
    rows = sharding.spec("batch", *[None] * len(rest))
    return jax.lax.reshape(x, (prompts * completions, *rest), out_sharding=rows)

  return Comparisons(
    tokens=flatten_leaf(batch.tokens),
    valid=flatten_leaf(batch.valid),
    rank=batch.rank,
    stem=None if batch.stem is None else flatten_leaf(batch.stem),
  )


def score_comparisons(
  lm: LM,
  params: Params,
  batch: Comparisons,
  *,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B K"]:
  """Returns r(x, y_k) of every completion, by one forward pass each."""
  flat = flatten(batch)
  scores = score(
    lm,
    params,
    flat.tokens,
    flat.valid,
    stem=flat.stem,
    key=key,
  )
  # The K completions of a prompt lie on one device.
  by_prompt = sharding.spec("batch", None)
  return jax.lax.reshape(scores, batch.rank.shape, out_sharding=by_prompt)


def distinct(batch: Comparisons) -> Bool[Array, "B K K"]:
  """Returns which pairs of completions of a prompt differ in a token.

  Completions may be the same text, or become the same row when they are cut. No model can score
  them apart, so such a pair teaches and measures nothing.
  """
  real = jnp.where(batch.valid, batch.tokens, -1)  # what stands in padding does not count
  return jnp.any(real[:, :, None] != real[:, None, :], axis=-1)


def reward_loss(
  params: Params,
  batch: tuple[Comparisons, Float[Array, "B K K"]],
  key,
  *,
  lm: LM,
  trunk: Params,
  cfg: RewardConfig,
) -> tuple[Scalar, Float[Array, "B K"]]:
  """Returns the loss of Eq. 1 and the scores; `batch` holds the weight of each pair."""
  comparisons, weight = batch
  scores = score_comparisons(
    lm,
    join(trunk, params),
    comparisons,
    key=key if cfg.dropout else None,
  )
  return losses.ranking(scores, weight), scores


def reward_step(
  state: TrainState,
  trunk: Params,
  batch: Comparisons,
  *,
  lm: LM,
  tx: optax.GradientTransformation,
  cfg: RewardConfig = RewardConfig(),
) -> tuple[TrainState, Metrics]:
  """Makes one update on ranked prompts, each of which carries the same weight whatever its K."""
  key = keys.key_for(state.key, "dropout", state.step)
  # The weights are shares of the whole batch, so they are made before it is split.
  differ = distinct(batch)
  weight = losses.pair_weights(batch.rank, cfg.pairs, distinct=differ)
  grads, loss, scores = steps.gradients(
    partial(reward_loss, lm=lm, trunk=trunk, cfg=cfg),
    state.params,
    (batch, weight),
    key,
    micro=cfg.micro,
  )
  # Sums over prompts, so that the accuracy is that of pairs.
  correct, pairs = losses.ranking_accuracy(scores, batch.rank, distinct=differ)
  pair_count = pairs.sum()
  real = batch.rank > 0  # the other completions are padding
  metrics = {
    "loss": loss,
    "accuracy": correct.sum() / jnp.maximum(pair_count, 1),
    "pairs": pair_count,
    "tokens": (batch.valid > 0).sum(),
    "score/mean": (scores * real).sum() / jnp.maximum(real.sum(), 1),
    "grad/norm": optax.tree.norm(grads),
  }
  state = steps.update(state, grads, tx)
  state = dataclasses.replace(state, iteration=state.iteration + 1)
  return state, metrics


def fit_bias(params: Params, demonstration_score: Scalar) -> Params:
  """Shifts the bias so that demonstrations score 0 on average (section 3.5).

  `demonstration_score` is the mean score of the labelers' demonstrations under `params`. Eq. 1 sees
  only differences and leaves the bias free. PPO's value network inherits it.
  """
  head = params["head"]
  fitted_head = head | {"b": head["b"] - demonstration_score}
  return params | {"head": fitted_head}
