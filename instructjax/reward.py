"""The reward model: a scalar head on a language model, trained on K-wise rankings (Ouyang et al.
2022, Eq. 1).

    L(theta) = - 1/C(K,2) E log sigmoid(r_theta(x, y_w) - r_theta(x, y_l))

All C(K,2) pairs of a prompt are one batch element: K forward passes, not K(K-1).  Parameters are
{"lm": ..., "head": ...}. Dimensions: B prompts, K completions, T tokens, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import optax

from instructjax import losses, sharding, steps
from instructjax.models import heads
from instructjax.types import (
  LM,
  Array,
  Comparisons,
  Float,
  Int,
  Key,
  Metrics,
  Params,
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
  """A reward model that starts from the trained part of a language model (the SFT model), its
  unembedding removed.
  """
  body = {name: leaf for name, leaf in trained.items() if name != "head"}
  return {"lm": jax.tree.map(jax.numpy.copy, body), "head": heads.init_head(key, lm.width)}


def join(trunk: Params, params: Params) -> Params:
  """The whole reward (or value) model from its untrained trunk and its trained part."""
  return {"lm": trunk | params["lm"], "head": params["head"]}


def score(
  lm: LM,
  params: Params,
  tokens: Int[Array, "B T"],
  valid: Valid,
  *,
  stem: Float[Array, "B T D"] | None = None,
  key: Key[Array, ""] | None = None,
) -> Float[Array, " B"]:
  """r(x, y), read at the last real token of each row."""
  hidden = lm.hidden(params["lm"], tokens, valid, stem=stem, key=key)
  return heads.score(params["head"], hidden, valid)


def flatten(batch: Comparisons) -> Comparisons:
  """[B, K, ...] -> [B*K, ...] for tokens, valid and stem; the rank keeps its shape."""

  def leaf(x: Array) -> Array:
    rows = sharding.spec("batch", *[None] * (x.ndim - 2))
    return jax.lax.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=rows)

  return Comparisons(
    tokens=leaf(batch.tokens),
    valid=leaf(batch.valid),
    rank=batch.rank,
    stem=None if batch.stem is None else leaf(batch.stem),
  )


def score_comparisons(
  lm: LM, params: Params, batch: Comparisons, *, key: Key[Array, ""] | None = None
) -> Float[Array, "B K"]:
  """r(x, y_k) of every completion, one forward pass each."""
  flat = flatten(batch)
  scores = score(lm, params, flat.tokens, flat.valid, stem=flat.stem, key=key)
  return jax.lax.reshape(scores, batch.rank.shape, out_sharding=sharding.spec("batch", None))


def reward_loss(
  params: Params,
  batch: tuple[Comparisons, Float[Array, "B K K"]],
  key,
  *,
  lm: LM,
  trunk: Params,
  cfg: RewardConfig,
) -> tuple[Float[Array, ""], Float[Array, "B K"]]:
  """Eq. 1 with the weight of each pair; rows are the scores."""
  comparisons, weight = batch
  scores = score_comparisons(lm, join(trunk, params), comparisons, key=key if cfg.dropout else None)
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
  """One update on a batch of ranked prompts; every prompt carries the same weight, whatever its K."""
  key = jax.random.fold_in(state.key, state.step)
  weight = losses.pair_weights(batch.rank, cfg.pairs)
  loss = partial(reward_loss, lm=lm, trunk=trunk, cfg=cfg)
  grads, value, scores = steps.gradients(loss, state.params, (batch, weight), key, micro=cfg.micro)
  correct, pairs = losses.ranking_accuracy(scores, batch.rank)
  real = batch.rank > 0
  metrics = {
    "loss": value,
    "accuracy": correct.sum() / jax.numpy.maximum(pairs.sum(), 1),
    "pairs": pairs.sum(),
    "score/mean": (scores * real).sum() / jax.numpy.maximum(real.sum(), 1),
    "grad/norm": optax.tree.norm(grads),
  }
  state = steps.update(state, grads, tx)
  return dataclasses.replace(state, iteration=state.iteration + 1), metrics


def fit_bias(params: Params, demonstration_score: Float[Array, ""]) -> Params:
  """Shifts the bias so that demonstrations score 0 on average (section 3.5).

  `demonstration_score` is the mean score of the labelers' demonstrations under `params`.  Eq. 1
  does not see the bias; PPO's value network inherits it.
  """
  head = params["head"]
  return params | {"head": head | {"b": head["b"] - demonstration_score}}
