"""The reward model: a scalar head on a language model, trained on K-wise rankings.

    L(θ) = - 1/C(K,2) E log σ(r_θ(x, y_w) - r_θ(x, y_l))        (Ouyang et al. 2022, Eq. 1)

All C(K,2) pairs of a prompt are one batch element, so an update reads K completions of it and not
K(K-1). The prompt is read once for all of them: they are branches of it in one packed row
(`types.Comparisons`). Parameters are {"lm": ..., "head": ...}.

Dimensions: B prompts, K completions, T tokens, D width; G packed rows of a part, N parts, L tokens
of a packed row, S prompts that it may hold, B = G * S of a part.
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

  Example:
    >>> model = reward.init(jax.random.key(1), lm, params)
    >>> print(sorted(model), model["head"]["w"].shape)
    ['head', 'lm'] (8,)
  """
  # A tied model has no "head": its embedding stays, because it embeds the tokens.
  body = {name: leaf for name, leaf in trained.items() if name != "head"}
  return {
    "lm": jax.tree.map(jnp.copy, body),
    "head": heads.init_head(key, lm.width),
  }


def join(trunk: Params, params: Params) -> Params:
  """Returns the whole reward (or value) model from its untrained trunk and its trained part.

  Example:
    >>> print(sorted(reward.join({}, model)))  # all of it is trained
    ['head', 'lm']
  """
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
  """Returns r(x, y), read at the last real token of each row.

  Example:
    >>> print(reward.score(lm, model, rows.tokens, rows.valid).shape)
    (2,)
  """
  hidden = lm.hidden(params["lm"], tokens, valid, stem=stem, key=key)
  return heads.score(params["head"], hidden, valid)


def closed(rows: Rollout, eos: tuple[int, ...]) -> Int[Array, "B T"]:
  """Returns the tokens of sampled responses as a reward model reads them: ended by an end of text.

  A reward model is trained on texts that end, and its score is read at the end. A response that was
  cut is scored as if it had ended there: the first id of `eos`, which closes completions in
  training, takes the place of its last token. Whoever scores a response does this, and the rows of
  comparisons and of the demonstrations that fit the bias are made in the same way.

  Example:
    >>> print(reward.closed(rows, eos=(7,)))  # the first response was cut
    [[1 2 3 4 7]
     [0 1 6 7 0]]
  """
  if not eos:
    return rows.tokens
  last = returns.at_last_token(rows.valid)
  was_cut = ~rows.ended[:, None]
  return jnp.where(last & was_cut, jnp.int32(eos[0]), rows.tokens)


def score_comparisons(
  lm: LM,
  params: Params,
  part: Comparisons,
  *,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B K"]:
  """Returns r(x, y_k) of every completion of a part [G, ...], read at its last token.

  What it returns for completions that are not there says nothing.

  Example:
    >>> import numpy as np
    >>> from instructjax.data.batches import branches, pipeline
    >>> completions = tuple(pipeline.Row(np.array([1, 2, n, 7]), start=2) for n in (3, 4, 5))
    >>> group = branches.of_group(pipeline.Group(completions, ranks=(1, 2, 2)))
    >>> prompts_in_a_batch = 1
    >>> layout = branches.layout([group], prompts_in_a_batch, shards=1, micro=1)
    >>> batch = branches.pack([group], layout)
    >>> parts, count = reward.into_parts(jax.tree.map(jnp.asarray, batch))
    >>> part = jax.tree.map(lambda x: x[0], parts)
    >>> print(reward.score_comparisons(lm, model, part).shape)
    (1, 3)
  """
  hidden = lm.hidden(
    params["lm"],
    part.tokens,
    part.valid,
    branch=part.branch,
    stem=part.stem,
    key=key,
  )
  values = heads.values(params["head"], hidden)
  return by_prompt(at_columns(values, part.last))


def at_columns(x: Float[Array, "G L *D"], column: Int[Array, "G ..."]) -> Float[Array, "G ..."]:
  """Returns what stands in some columns of each row: [G, *M, *D]. Nothing leaves its device."""

  def of_row(row: Array, column: Array) -> Array:
    return row[column]

  return jax.vmap(of_row)(x, column)


def by_prompt(x: Array) -> Array:
  """[..., G, S, K] -> [..., B, K]: the prompts of all packed rows, each on its device."""
  *lead, G, S, K = x.shape
  partition = sharding.spec(*[None] * len(lead), "batch", None)
  return jax.lax.reshape(x, (*lead, G * S, K), out_sharding=partition)


def margins(
  part: Comparisons,
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
      level = -by_prompt(part.rank).astype(jnp.float32)  # rank 1 is the best
    case "rating":
      assert part.rating is not None, "the rows bring no ratings"
      level = by_prompt(part.rating)
    case _:
      raise ValueError(f'margin_by must be "pair", "rank" or "rating", got {cfg.margin_by!r}')
  gap = level[:, :, None] - level[:, None, :]
  # A rating may contradict the rank. It then asks for no margin, and the rank still counts.
  return cfg.margin * jnp.maximum(gap, 0)


def choice_weights(rank: Int[Array, "B K"]) -> Float[Array, " B"]:
  """Returns the weight of each prompt in `losses.best_of_k`: all prompts with a best one alike.

  Example:
    >>> print(reward.choice_weights(jnp.array([[1, 2, 2], [1, 1, 2]])))
    [0.5 0.5]
  """
  has_best = jnp.any(rank == 1, axis=1)
  count = jnp.maximum(jnp.sum(has_best), 1)
  return has_best / count.astype(jnp.float32)


def reward_loss(
  params: Params,
  batch: tuple[Comparisons, Float[Array, "B K K"], Float[Array, " B"]],
  key,
  *,
  lm: LM,
  trunk: Params,
  cfg: RewardConfig,
) -> tuple[Scalar, Float[Array, "B K"]]:
  """Returns the loss and the scores of a part.

  `batch` holds the part, and the weights of each of its pairs and of each of its prompts.
  """
  part, pair_weight, choice_weight = batch
  scores = score_comparisons(
    lm,
    join(trunk, params),
    part,
    key=key if cfg.dropout else None,
  )
  if cfg.loss == "best_of_k":
    loss = losses.best_of_k(scores, by_prompt(part.rank), choice_weight)
  else:
    loss = losses.ranking(scores, pair_weight, margin=margins(part, cfg))
  if cfg.centering:
    loss += cfg.centering * losses.centering(scores, pair_weight)
  return loss, scores


def pair_accuracy(
  score: Float[Array, "B K"],
  rank: Int[Array, "B K"],
  differ: Bool[Array, "B K K"] | bool = True,
  labels: Float[Array, "B K K"] | None = None,
) -> tuple[Scalar, Scalar]:
  """Returns (the share of pairs that the scores order as the ranks do, the number of pairs).

  Pairs that do not `differ` in a token do not count (`ranks_of`). Over no pairs the share is NaN:
  it is unknown, and 0 would say that all of them are wrong.

  Example:
    >>> score, rank = jnp.array([[2.0, 3.0, 0.0]]), jnp.array([[1, 2, 2]])
    >>> print(*reward.pair_accuracy(score, rank))
    0.5 2.0
  """
  # Sums over prompts, so that the accuracy is that of pairs.
  correct, pairs = losses.ranking_accuracy(score, rank, distinct=differ, labels=labels)
  count = pairs.sum()
  share = correct.sum() / jnp.maximum(count, 1)
  return jnp.where(count > 0, share, jnp.nan), count


def into_parts(batch: Comparisons) -> tuple[Comparisons, Int[Array, ""]]:
  """Returns a batch [G, N, ...] as parts [N, G, ...], and how many of them hold something."""
  parts = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch)
  holds_something = jnp.any(parts.valid > 0, axis=(1, 2))
  return parts, jnp.sum(holds_something, dtype=jnp.int32)


def work(parts: Comparisons, count: Int[Array, ""]) -> dict[str, Array]:
  """Returns how many tokens there are, and the share of the computed positions that hold one."""
  _, G, L = parts.tokens.shape
  tokens = jnp.sum(parts.valid > 0)
  positions = jnp.maximum(count * G * L, 1)
  return {"tokens": tokens, "update/useful": tokens / positions.astype(jnp.float32)}


def ranks_of(parts: Comparisons) -> tuple[Int[Array, "B K"], Bool[Array, "B K K"]]:
  """Returns the ranks of all parts [N, G, ...], and which pairs of completions differ in a token.

  Completions may be the same text, or become the same row when they are cut. No model can score
  them apart, so such a pair teaches and measures nothing.
  """
  rank = steps.merge(by_prompt(parts.rank))
  same = steps.merge(by_prompt(parts.same))
  return rank, same[:, :, None] != same[:, None, :]


def labels_of(parts: Comparisons) -> Float[Array, "B K K"] | None:
  """Returns the labels of the pairs of all parts [N, G, ...], or None where ranks say it all."""
  if parts.label is None:
    return None
  *_, S, K, _ = parts.label.shape
  N, G = parts.tokens.shape[:2]
  partition = sharding.spec(None, "batch", None, None)
  by_prompt = jax.lax.reshape(parts.label, (N, G * S, K, K), out_sharding=partition)
  return steps.merge(by_prompt)


def reward_step(
  state: TrainState,
  trunk: Params,
  batch: Comparisons,
  *,
  lm: LM,
  tx: optax.GradientTransformation,
  cfg: RewardConfig = RewardConfig(),
) -> tuple[TrainState, Metrics]:
  """Makes one update on ranked prompts, each of which carries the same weight whatever its K.

  The batch is [G, N, ...]. Its parts are computed one after the other, and parts that hold nothing
  are not computed.

  Example:
    >>> import numpy as np
    >>> from instructjax.data.batches import branches, pipeline
    >>> completions = tuple(pipeline.Row(np.array([1, 2, n, 7]), start=2) for n in (3, 4, 5))
    >>> group = branches.of_group(pipeline.Group(completions, ranks=(1, 2, 2)))
    >>> batch = branches.pack([group], branches.layout([group], 1, shards=1, micro=1))
    >>> state = steps.init_state(jax.random.key(2), model, tx)
    >>> batch = jax.tree.map(jnp.asarray, batch)
    >>> step = jax.jit(partial(reward.reward_step, lm=lm, tx=tx))
    >>> state, metrics = step(state, {}, batch)
    >>> print(state.step, metrics["pairs"])
    1 2.0
  """
  key = keys.key_for(state.key, "dropout", state.step)
  parts, count = into_parts(batch)
  N = parts.tokens.shape[0]
  rank, differ = ranks_of(parts)
  labels = labels_of(parts)
  # The weights are shares of the whole batch, so they are made before it is split.
  weight = losses.pair_weights(rank, cfg.pairs, distinct=differ, labels=labels)
  choice_weight = choice_weights(rank)
  grads, loss, scores = steps.gradients_of_parts(
    partial(reward_loss, lm=lm, trunk=trunk, cfg=cfg),
    state.params,
    (parts, *steps.split((weight, choice_weight), N)),
    key,
    count=count,
  )
  scores = steps.merge(scores)
  accuracy, pair_count = pair_accuracy(scores, rank, differ, labels)
  real = rank > 0  # the other completions are not there
  metrics = {
    "loss": loss,
    "accuracy": accuracy,
    "pairs": pair_count,
    **work(parts, count),
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

  Example:
    >>> mean = reward.score(lm, model, tokens, valid).mean()
    >>> fitted = reward.fit_bias(model, mean)
    >>> print(abs(reward.score(lm, fitted, tokens, valid).mean()) < 1e-6)
    True
  """
  return rescale(params, 1.0, -demonstration_score)


def rescale(params: Params, gain: Scalar | float, shift: Scalar | float) -> Params:
  """Returns the reward model that scores gain * r + shift.

  Ziegler et al. 2019 (section 2.1) choose both so that responses of the reference policy have mean
  0 and variance 1, which gives the KL coefficient one meaning for all reward models.

  Example:
    >>> model = {"head": {"w": jnp.array([1.0, 2.0]), "b": jnp.float32(0.5)}}
    >>> print(reward.rescale(model, gain=2.0, shift=1.0)["head"])
    {'w': Array([2., 4.], dtype=float32), 'b': Array(2., dtype=float32)}
  """
  head = params["head"]
  scaled_head = {
    "w": head["w"] * gain,
    "b": head["b"] * gain + shift,
  }
  return params | {"head": head | scaled_head}


# What is promised; the other functions are the parts of these.
__all__ = [
  "RewardConfig",
  "choice_weights",
  "closed",
  "fit_bias",
  "init",
  "join",
  "pair_accuracy",
  "rescale",
  "reward_step",
  "score",
  "score_comparisons",
]
