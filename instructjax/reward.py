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
  # "pairs" is Eq. 1, "best_of_k" the choice of the best completion (`losses.best_of_k`)
  loss: str = "pairs"
  # the weight of `losses.centering`; 0 leaves it out
  centering: float = 0.0
  # by how much the better of a pair has to score higher: a "pair", a "rank" or a "rating" apart
  margin: float = 0.0
  margin_by: str = "pair"


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
  """[B, K, ...] -> [B*K, ...] for tokens, valid, mask and stem; the rank keeps its shape."""

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
    mask=None if batch.mask is None else flatten_leaf(batch.mask),
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


def margins(
  batch: Comparisons,
  cfg: RewardConfig,
) -> Float[Array, "B K K"] | float:
  """Returns by how much each completion i has to score higher than each j that it beats.

  Touvron et al. 2023 (section 3.2.2) make the margin larger where labelers see a clearer
  difference. Here that is the number of ranks, or of points of the overall rating, between the two.

  Raises:
    ValueError: for another kind of margin.
  """
  if not cfg.margin or cfg.margin_by == "pair":
    return cfg.margin
  match cfg.margin_by:
    case "rank":
      level = -batch.rank.astype(jnp.float32)  # rank 1 is the best
    case "rating":
      assert batch.rating is not None, "the rows bring no ratings"
      level = batch.rating
    case _:
      raise ValueError(f'margin_by must be "pair", "rank" or "rating", got {cfg.margin_by!r}')
  gap = level[:, :, None] - level[:, None, :]
  # A rating may contradict the rank. It then asks for no margin, and the rank still counts.
  return cfg.margin * jnp.maximum(gap, 0)


def choice_weights(rank: Int[Array, "B K"]) -> Float[Array, " B"]:
  """Returns the weight of each prompt in `losses.best_of_k`: all prompts with a best one alike."""
  has_best = jnp.any(rank == 1, axis=1)
  count = jnp.maximum(jnp.sum(has_best), 1)
  return has_best / count.astype(jnp.float32)


def distinct(batch: Comparisons) -> Bool[Array, "B K K"]:
  """Returns which pairs of completions of a prompt differ in a token.

  Completions may be the same text, or become the same row when they are cut. No model can score
  them apart, so such a pair teaches and measures nothing.
  """
  real = jnp.where(batch.valid, batch.tokens, -1)  # what stands in padding does not count
  return jnp.any(real[:, :, None] != real[:, None, :], axis=-1)


def reward_loss(
  params: Params,
  batch: tuple[Comparisons, Float[Array, "B K K"], Float[Array, " B"]],
  key,
  *,
  lm: LM,
  trunk: Params,
  cfg: RewardConfig,
) -> tuple[Scalar, Float[Array, "B K"]]:
  """Returns the loss and the scores; `batch` holds the weights of each pair and of each prompt."""
  comparisons, pair_weight, choice_weight = batch
  scores = score_comparisons(
    lm,
    join(trunk, params),
    comparisons,
    key=key if cfg.dropout else None,
  )
  if cfg.loss == "best_of_k":
    loss = losses.best_of_k(scores, comparisons.rank, choice_weight)
  else:
    loss = losses.ranking(scores, pair_weight, margin=margins(comparisons, cfg))
  if cfg.centering:
    loss += cfg.centering * losses.centering(scores, pair_weight)
  return loss, scores


def pair_accuracy(
  score: Float[Array, "B K"],
  rank: Int[Array, "B K"],
  differ: Bool[Array, "B K K"] | bool = True,
) -> tuple[Scalar, Scalar]:
  """Returns (the share of pairs that the scores order as the ranks do, the number of pairs).

  Pairs that do not `differ` in a token do not count (`distinct`). Over no pairs the share is NaN:
  it is unknown, and 0 would say that all of them are wrong.
  """
  # Sums over prompts, so that the accuracy is that of pairs.
  correct, pairs = losses.ranking_accuracy(score, rank, distinct=differ)
  count = pairs.sum()
  share = correct.sum() / jnp.maximum(count, 1)
  return jnp.where(count > 0, share, jnp.nan), count


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
  choice_weight = choice_weights(batch.rank)
  grads, loss, scores = steps.gradients(
    partial(reward_loss, lm=lm, trunk=trunk, cfg=cfg),
    state.params,
    (batch, weight, choice_weight),
    key,
    micro=cfg.micro,
  )
  accuracy, pair_count = pair_accuracy(scores, batch.rank, differ)
  real = batch.rank > 0  # the other completions are padding
  metrics = {
    "loss": loss,
    "accuracy": accuracy,
    "pairs": pair_count,
    "tokens": (batch.valid > 0).sum(),
    "score/mean": (scores * real).sum() / jnp.maximum(real.sum(), 1),
    "grad/norm": optax.tree.norm(grads),
  }
  if cfg.centering:
    metrics["score/centering"] = losses.centering(scores, weight)
  state = steps.update(state, grads, tx)
  state = dataclasses.replace(state, iteration=state.iteration + 1)
  return state, metrics


def fit_bias(params: Params, demonstration_score: Scalar) -> Params:
  """Shifts the bias so that demonstrations score 0 on average (section 3.5).

  `demonstration_score` is the mean score of the labelers' demonstrations under `params`. Eq. 1 sees
  only differences and leaves the bias free. PPO's value network inherits it.
  """
  return rescale(params, 1.0, -demonstration_score)


def rescale(params: Params, gain: Scalar | float, shift: Scalar | float) -> Params:
  """Returns the reward model that scores gain * r + shift.

  Ziegler et al. 2019 (section 2.1) choose both so that responses of the reference policy have mean
  0 and variance 1, which gives the KL coefficient one meaning for all reward models.
  """
  head = params["head"]
  scaled_head = {
    "w": head["w"] * gain,
    "b": head["b"] * gain + shift,
  }
  return params | {"head": head | scaled_head}
