"""Direct preference optimisation (Rafailov et al. 2023): a policy from rankings, without sampling.

    L(θ) = - E log σ(β [log π_θ(y_w|x)/π_ref(y_w|x) - log π_θ(y_l|x)/π_ref(y_l|x)])        (Eq. 7)

It is the reward model's loss (Ouyang et al. 2022, Eq. 1) on the implicit reward
β log π_θ(y|x) / π_ref(y|x): the reward under which π_θ is the optimum of Eq. 2 without its last
term. All pairs of a prompt are one batch element, the prompt is read once for its completions, and
each of them once (`types.Comparisons`). The reference is the model that training started from; its
untrained trunk is the policy's.

Dimensions: B prompts, K completions; G packed rows of a part, N parts, L tokens of a packed row, M
of them in completions, S prompts that a row may hold, B = G * S of a part.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from instructjax import likelihood, losses, reward, sharding, steps
from instructjax.system import keys
from instructjax.types import (
  LM,
  Array,
  Comparisons,
  Float,
  Frozen,
  Key,
  Metrics,
  Params,
  Scalar,
  TrainState,
)


@dataclass(frozen=True)
class DPOConfig:
  """Settings of one step."""

  beta: float = 0.1  # of the KL penalty whose optimum the policy is
  dropout: bool = False
  # the loss of a prompt is divided by the pairs that are left without ties, or by "all" C(K,2)
  pairs: str = "remaining"


def completion_logp(
  lm: LM,
  params: Params,
  part: Comparisons,
  *,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B K"]:
  """Returns log π(y_k | x) of every completion of a part [G, ...], in nats.

  Logits are computed where a token of a completion is predicted, and nowhere else.
  """
  predictions = part.predictions
  assert predictions is not None, "the rows do not say which tokens a policy learns"
  hidden = lm.hidden(
    params,
    part.tokens,
    part.valid,
    branch=part.branch,
    stem=part.stem,
    key=key,
  )
  before = reward.at_columns(hidden, predictions.before)
  logp, _ = likelihood.of_tokens(lm, params, before, predictions.token)
  G, S, K = part.rank.shape
  is_of = predictions.completion[:, :, None] == jnp.arange(S * K)
  total = jnp.sum(jnp.where(is_of, logp[:, :, None], 0), axis=1)
  by_row = jax.lax.reshape(total, (G, S, K), out_sharding=sharding.spec("batch", None, None))
  return reward.by_prompt(by_row)


def implicit_reward(
  lm: LM,
  params: Params,
  frozen: Frozen,
  part: Comparisons,
  cfg: DPOConfig,
) -> Float[Array, "B K"]:
  """Returns β log π(y_k | x) / π_ref(y_k | x), by which a policy orders completions."""
  logp = completion_logp(lm, frozen.trunk | params, part)
  ref_logp = completion_logp(lm, frozen.trunk | frozen.ref, part)
  return cfg.beta * (logp - ref_logp)


def _pair_arrays(x: Float[Array, "B K"]) -> tuple[Array, Array]:
  """Returns x of the winner and x of the loser of all pairs, each [B*K*K]."""
  prompts, completions = x.shape
  shape = (prompts, completions, completions)
  winner = jnp.broadcast_to(x[:, :, None], shape)
  loser = jnp.broadcast_to(x[:, None, :], shape)
  return _flat(winner), _flat(loser)


def _flat(x: Float[Array, "B K L"]) -> Float[Array, " P"]:
  """[B, K, K] -> [B*K*K]; the pairs of a prompt stay on its device."""
  return jax.lax.reshape(x, (x.size,), out_sharding=sharding.spec("batch"))


def dpo_loss(
  params: Params,
  batch: tuple[Comparisons, Float[Array, "B K K"]],
  key,
  *,
  lm: LM,
  frozen: Frozen,
  cfg: DPOConfig,
) -> tuple[Scalar, tuple[Array, Array]]:
  """Returns the loss of a part, and (log π, log π_ref) of its completions.

  `batch` holds the part and the weight of each of its pairs.
  """
  part, weight = batch
  logp = completion_logp(
    lm,
    frozen.trunk | params,
    part,
    key=key if cfg.dropout else None,
  )
  # The reference is read without dropout, and has no gradient.
  ref_logp = completion_logp(lm, frozen.trunk | frozen.ref, part)
  ref_logp = jax.lax.stop_gradient(ref_logp)
  chosen, rejected = _pair_arrays(logp)
  ref_chosen, ref_rejected = _pair_arrays(ref_logp)
  loss = losses.dpo(chosen, rejected, ref_chosen, ref_rejected, _flat(weight), beta=cfg.beta)
  return loss, (logp, ref_logp)


def dpo_step(
  state: TrainState,
  frozen: Frozen,
  batch: Comparisons,
  *,
  lm: LM,
  tx: optax.GradientTransformation,
  cfg: DPOConfig = DPOConfig(),
) -> tuple[TrainState, Metrics]:
  """Makes one update on ranked prompts, each of which carries the same weight whatever its K.

  The batch is [G, N, ...], as that of `reward.reward_step` is.
  """
  key = keys.key_for(state.key, "dropout", state.step)
  parts, count = reward.into_parts(batch)
  rank, differ = reward.ranks_of(parts)
  labels = reward.labels_of(parts)
  # The weights are shares of the whole batch, so they are made before it is split.
  weight = losses.pair_weights(rank, cfg.pairs, distinct=differ, labels=labels)
  grads, loss, rows = steps.gradients_of_parts(
    partial(dpo_loss, lm=lm, frozen=frozen, cfg=cfg),
    state.params,
    (parts, steps.split(weight, parts.tokens.shape[0])),
    key,
    count=count,
  )
  logp, ref_logp = steps.merge(rows)
  rewards = cfg.beta * (logp - ref_logp)
  accuracy, pair_count = reward.pair_accuracy(rewards, rank, differ, labels)
  # Means over pairs, whatever the loss is divided by.
  share = losses.pair_weights(rank, distinct=differ, labels=labels)
  metrics = {
    "loss": loss,
    "accuracy": accuracy,
    "pairs": pair_count,
    **reward.work(parts, count),
    # Implicit rewards are in nats times beta, log-probabilities in nats.
    "reward/chosen": jnp.sum(share * rewards[:, :, None]),
    "reward/rejected": jnp.sum(share * rewards[:, None, :]),
    "logp/chosen": jnp.sum(share * logp[:, :, None]),
    "logp/rejected": jnp.sum(share * logp[:, None, :]),
    "grad/norm": optax.tree.norm(grads),
  }
  metrics["reward/margin"] = metrics["reward/chosen"] - metrics["reward/rejected"]
  state = steps.update(state, grads, tx)
  state = dataclasses.replace(state, iteration=state.iteration + 1)
  return state, metrics
