"""Direct preference optimisation (Rafailov et al. 2023): a policy from rankings, without sampling.

    L(θ) = - E log σ(β [log π_θ(y_w|x)/π_ref(y_w|x) - log π_θ(y_l|x)/π_ref(y_l|x)])        (Eq. 7)

It is the reward model's loss (Ouyang et al. 2022, Eq. 1) on the implicit reward
β log π_θ(y|x) / π_ref(y|x): the reward under which π_θ is the optimum of Eq. 2 without its last
term. All pairs of a prompt are one batch element, and every completion is read once. The reference
is the model that training started from; its untrained trunk is the policy's.

Dimensions: B prompts, K completions, T tokens.
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
  Demonstrations,
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
  micro: int = 1
  dropout: bool = False
  window: int | None = None  # the longest completion in tokens: only their logits are computed
  # the loss of a prompt is divided by the pairs that are left without ties, or by "all" C(K,2)
  pairs: str = "remaining"


def completion_logp(
  lm: LM,
  params: Params,
  batch: Comparisons,
  window: int | None = None,
  *,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B K"]:
  """Returns log π(y_k | x) of every completion: the sum over its marked tokens, in nats."""
  flat = reward.flatten(batch)
  assert flat.mask is not None, "the rows bring no mask of their completions"
  rows = Demonstrations(flat.tokens, flat.valid, flat.mask, flat.stem)
  logp, mask = likelihood.masked_logp(lm, params, rows, window, key=key)
  total = jnp.sum(jnp.where(mask, logp, 0), axis=1)
  # The K completions of a prompt lie on one device.
  return jax.lax.reshape(total, batch.rank.shape, out_sharding=sharding.spec("batch", None))


def implicit_reward(
  lm: LM,
  params: Params,
  frozen: Frozen,
  batch: Comparisons,
  cfg: DPOConfig,
) -> Float[Array, "B K"]:
  """Returns β log π(y_k | x) / π_ref(y_k | x), by which a policy orders completions."""
  logp = completion_logp(lm, frozen.trunk | params, batch, cfg.window)
  ref_logp = completion_logp(lm, frozen.trunk | frozen.ref, batch, cfg.window)
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
  """Returns the loss, and (log π, log π_ref) of the completions as the rows of `steps.gradients`.

  `batch` holds the weight of each pair.
  """
  comparisons, weight = batch
  logp = completion_logp(
    lm,
    frozen.trunk | params,
    comparisons,
    cfg.window,
    key=key if cfg.dropout else None,
  )
  # The reference is read without dropout, and has no gradient.
  ref_logp = completion_logp(lm, frozen.trunk | frozen.ref, comparisons, cfg.window)
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
  """Makes one update on ranked prompts, each of which carries the same weight whatever its K."""
  key = keys.key_for(state.key, "dropout", state.step)
  # The weights are shares of the whole batch, so they are made before it is split.
  differ = reward.distinct(batch)
  weight = losses.pair_weights(batch.rank, cfg.pairs, distinct=differ)
  grads, loss, (logp, ref_logp) = steps.gradients(
    partial(dpo_loss, lm=lm, frozen=frozen, cfg=cfg),
    state.params,
    (batch, weight),
    key,
    micro=cfg.micro,
  )
  rewards = cfg.beta * (logp - ref_logp)
  accuracy, pair_count = reward.pair_accuracy(rewards, batch.rank, differ)
  # Means over pairs, whatever the loss is divided by.
  share = losses.pair_weights(batch.rank, distinct=differ)
  metrics = {
    "loss": loss,
    "accuracy": accuracy,
    "pairs": pair_count,
    "tokens": (batch.valid > 0).sum(),
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
