"""The losses of InstructGPT (Ouyang et al. 2022) and of its relatives, as pure functions of arrays.

Every loss is a sum of weight × term.  A weight is a mask scaled to the share of each term in a
mean: `token_mean`, `sequence_mean` or `pair_weights` of the whole batch.  So the losses of
micro-batches add up to the loss of the batch, and the kind of mean is a choice of function.
What stands where a weight is 0 may be anything, NaN included: it changes neither the loss nor a
gradient.  Everything is float32 from the logits on.

Dimensions: B rows, K completions of one prompt, R response tokens, V vocabulary (it may be
sharded). `*B` is any number of batch dimensions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.returns import masked_mean, masked_var
from instructjax.types import Array, Bool, Float, Int, Metrics

BANNED = (
  -1e9
)  # a banned logit: e^BANNED is exactly 0, and unlike -inf it can be multiplied by a mask


# From logits to log-probabilities


def temper(
  logits: Float[Array, "*B V"], temperature: float = 1.0, banned: tuple[int, ...] = ()
) -> Float[Array, "*B V"]:
  """logits / τ in float32, with banned ids at a probability of exactly 0.

  The policy that samples, the policy that learns and the reference all take their logits from
  here, so the distribution that is scored is the one that was sampled (Ziegler et al. 2019).  τ
  = 1 changes no bit.

  Raises ValueError unless τ > 0, and IndexError for a banned id outside the vocabulary.
  """
  if not temperature > 0:
    raise ValueError(f"temperature must be above 0, got {temperature}")
  logits = logits.astype(jnp.float32) / temperature
  if banned:
    hit = np.zeros(logits.shape[-1], bool)
    hit[list(banned)] = True
    logits = jnp.where(hit, BANNED, logits)
  return logits


def token_logp(logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> Float[Array, "*B"]:
  """log softmax(logits)[token] = logit[token] - log Σ_v e^logit[v].

  The log-softmax of the whole vocabulary is never formed.  Where the vocabulary is sharded, a
  gather would move the logits between devices; a sum over a comparison picks the token where it
  is.
  """
  if jax.typeof(logits).sharding.spec[-1] is None:
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  else:
    picked = jnp.sum(
      jnp.where(jnp.arange(logits.shape[-1]) == tokens[..., None], logits, 0), axis=-1
    )
  return picked.astype(jnp.float32) - jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)


def entropy(logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
  """H = - Σ_v p_v log p_v in nats, p = softmax(logits)."""
  logits = jnp.maximum(logits.astype(jnp.float32), BANNED)  # -inf is banned too: 0 log 0 = 0
  top = jnp.max(logits, axis=-1, keepdims=True)
  mass = jnp.exp(logits - top)
  total = jnp.sum(mass, axis=-1)
  return jnp.log(total) - jnp.sum(mass * (logits - top), axis=-1) / total


# Weights: what a loss is the mean of


def token_mean(mask: Bool[Array, "*B R"]) -> Float[Array, "*B R"]:
  """w = m / Σ m: every marked token of the batch counts the same."""
  return jnp.where(mask, 1 / jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32), 0)


def sequence_mean(mask: Bool[Array, "B R"]) -> Float[Array, "B R"]:
  """w = m / (tokens of its row × rows): every row with a marked token counts the same."""
  length = jnp.sum(mask, axis=-1, keepdims=True)
  rows = jnp.sum(length > 0)
  return jnp.where(mask, 1 / jnp.maximum(length * rows, 1).astype(jnp.float32), 0)


def pair_weights(rank: Int[Array, "B K"], normaliser: str = "remaining") -> Float[Array, "B K K"]:
  """The weight of each pair (i beats j) in Eq. 1; ties and padded completions (rank 0) get none.

  Every prompt counts the same, whatever its K; one without pairs does not count.  The paper
  drops ties but leaves open whether the rest is divided by the "remaining" pairs of the prompt
  or by "all" C(K,2) of them.

  Raises ValueError for another normaliser.
  """
  real = (rank[:, :, None] > 0) & (rank[:, None, :] > 0)
  beats = real & (rank[:, :, None] < rank[:, None, :])
  if normaliser == "remaining":
    pairs = jnp.sum(beats, axis=(1, 2))
  elif normaliser == "all":
    k = jnp.sum(rank > 0, axis=1)
    pairs = k * (k - 1) // 2
  else:
    raise ValueError(f'normaliser must be "remaining" or "all", got {normaliser!r}')
  share = 1 / jnp.maximum(pairs * jnp.sum(pairs > 0), 1).astype(jnp.float32)
  return jnp.where(beats, share[:, None, None], 0)


def _keep(live: Array, *arrays: Array) -> list[Array]:
  """The arrays in float32 with 0 where `live` is False: nothing else reaches a value or a gradient."""
  return [jnp.where(live, x.astype(jnp.float32), 0) for x in arrays]


# Step 1: supervised fine-tuning


def nll(logp: Float[Array, "*B"], weight: Float[Array, "*B"]) -> Float[Array, ""]:
  """L = - Σ_t w_t log π(y_t | x, y_<t)   (section 3.5).

  Also the pretraining term of PPO-ptx: Eq. 2 maximises + γ E log π(x), so γ nll is added to the
  loss.
  """
  (logp,) = _keep(weight != 0, logp)
  return -jnp.sum(weight * logp)


# Step 2: the reward model


def ranking(
  score: Float[Array, "B K"],
  weight: Float[Array, "B K K"],
  *,
  margin: Float[Array, "B K K"] | float = 0.0,
) -> Float[Array, ""]:
  """L = - Σ_{i beats j} w_ij log σ(r_i - r_j)   (Eq. 1, all pairs of a prompt in one batch
  element).

  `margin` is subtracted from r_i - r_j (Touvron et al. 2023, section 3.2.2).
  """
  score = score.astype(jnp.float32)
  (difference,) = _keep(weight != 0, score[:, :, None] - score[:, None, :] - margin)
  return -jnp.sum(weight * jax.nn.log_sigmoid(difference))


def centering(score: Float[Array, "B K"], weight: Float[Array, "B K K"]) -> Float[Array, ""]:
  """L = Σ_{i beats j} w_ij (r_i + r_j)²   (Eisenstein et al. 2023).

  Eq. 1 only sees differences; this holds the scores near 0.
  """
  score = score.astype(jnp.float32)
  (total,) = _keep(weight != 0, score[:, :, None] + score[:, None, :])
  return jnp.sum(weight * jnp.square(total))


def best_of_k(
  score: Float[Array, "B K"], rank: Int[Array, "B K"], weight: Float[Array, " B"]
) -> Float[Array, ""]:
  """L = - Σ_b w_b log softmax(r_b)[best], where the best has rank 1   (Ziegler et al. 2019, Eq. 1).

  Completions that share rank 1 share the target equally; a row without one does not count.
  """
  real = (rank > 0) & (weight != 0)[:, None]
  best = rank == 1
  target = weight[:, None] / jnp.maximum(jnp.sum(best, axis=1, keepdims=True), 1).astype(
    jnp.float32
  )
  logp = jax.nn.log_softmax(jnp.where(real, score.astype(jnp.float32), BANNED))
  return nll(logp, jnp.where(best, target, 0))


def ranking_accuracy(
  score: Float[Array, "B K"], rank: Int[Array, "B K"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
  """(pairs that the scores order as the ranks do, pairs) of each prompt; equal scores are half
  right.
  """
  beats = pair_weights(rank) > 0
  difference = score[:, :, None] - score[:, None, :]
  right = jnp.where(difference > 0, 1.0, jnp.where(difference == 0, 0.5, 0.0))
  return jnp.sum(jnp.where(beats, right, 0), axis=(1, 2)), jnp.sum(beats, axis=(1, 2)).astype(
    jnp.float32
  )


# Step 3: PPO


def _policy_terms(
  logp: Array, old_logp: Array, advantage: Array, clip: float
) -> tuple[Array, Array, Array]:
  """(probability ratio, unclipped loss, clipped loss) of each token."""
  ratio = jnp.exp(logp - old_logp)
  return ratio, -advantage * ratio, -advantage * jnp.clip(ratio, 1 - clip, 1 + clip)


def clipped_policy(
  logp: Float[Array, "*B R"],
  old_logp: Float[Array, "*B R"],
  advantage: Float[Array, "*B R"],
  weight: Float[Array, "*B R"],
  *,
  clip: float = 0.2,
) -> Float[Array, ""]:
  """L = Σ_t w_t max(-A_t ρ_t, -A_t clip(ρ_t, 1-ε, 1+ε)),  ρ = π/π_old   (Schulman et al. 2017, Eq.
  7).

  `old_logp` belongs to the policy that sampled and stays the same over all minibatches of an
  iteration.
  """
  logp, old_logp, advantage = _keep(weight != 0, logp, old_logp, advantage)
  _, free, clipped = _policy_terms(logp, old_logp, advantage, clip)
  return jnp.sum(weight * jnp.maximum(free, clipped))


def _value_terms(value: Array, old_value: Array, target: Array, clip: float) -> tuple[Array, Array]:
  """(unclipped, clipped) squared error of each token."""
  near = jnp.clip(value, old_value - clip, old_value + clip)
  return jnp.square(value - target), jnp.square(near - target)


def clipped_value(
  value: Float[Array, "*B R"],
  old_value: Float[Array, "*B R"],
  target: Float[Array, "*B R"],
  weight: Float[Array, "*B R"],
  *,
  clip: float | None = 0.2,
) -> Float[Array, ""]:
  """L = ½ Σ_t w_t max((V_t - G_t)², (clip(V_t, V_old ± ε) - G_t)²), G the target   (Ziegler et al.
  2019).

  No clipping when `clip` is None.
  """
  value, old_value, target = _keep(weight != 0, value, old_value, target)
  free, clipped = _value_terms(value, old_value, target, jnp.inf if clip is None else clip)
  return 0.5 * jnp.sum(weight * jnp.maximum(free, clipped))


def policy_metrics(
  logp: Float[Array, "*B R"],
  old_logp: Float[Array, "*B R"],
  advantage: Float[Array, "*B R"],
  mask: Bool[Array, "*B R"],
  *,
  clip: float = 0.2,
) -> Metrics:
  """What to watch in `clipped_policy`, as means over marked tokens; `approxkl` is the mean of ½
  (log ρ)².
  """
  logp, old_logp, advantage = _keep(mask, logp, old_logp, advantage)
  ratio, free, clipped = _policy_terms(logp, old_logp, advantage, clip)
  return {
    "loss/policy_avg": masked_mean(jnp.maximum(free, clipped), mask),
    "policy/approxkl_avg": 0.5 * masked_mean(jnp.square(logp - old_logp), mask),
    "policy/clipfrac_avg": masked_mean((clipped > free).astype(jnp.float32), mask),
    "policy/ratio_max": jnp.max(jnp.where(mask, ratio, -jnp.inf)),
    "policy/ratio_min": jnp.min(jnp.where(mask, ratio, jnp.inf)),
    "val/ratio": masked_mean(ratio, mask),
    "val/ratio_var": masked_var(ratio, mask),
  }


def value_metrics(
  value: Float[Array, "*B R"],
  old_value: Float[Array, "*B R"],
  target: Float[Array, "*B R"],
  mask: Bool[Array, "*B R"],
  *,
  clip: float | None = 0.2,
) -> Metrics:
  """What to watch in `clipped_value`; `explained_var` is 1 - Var[G - V] / Var[G], 1 at best."""
  value, old_value, target = _keep(mask, value, old_value, target)
  free, clipped = _value_terms(value, old_value, target, jnp.inf if clip is None else clip)
  return {
    "loss/value_avg": 0.5 * masked_mean(jnp.maximum(free, clipped), mask),
    "val/clipfrac_avg": masked_mean((clipped > free).astype(jnp.float32), mask),
    "val/mean": masked_mean(value, mask),
    "val/target_mean": masked_mean(target, mask),
    "val/explained_var": 1
    - masked_var(target - value, mask) / jnp.maximum(masked_var(target, mask), 1e-8),
  }


# Without reinforcement learning


def dpo(
  logp_chosen: Float[Array, " B"],
  logp_rejected: Float[Array, " B"],
  ref_chosen: Float[Array, " B"],
  ref_rejected: Float[Array, " B"],
  weight: Float[Array, " B"],
  *,
  beta: float,
) -> Float[Array, ""]:
  """L = - Σ_b w_b log σ(β [log π(y_w)/π_ref(y_w) - log π(y_l)/π_ref(y_l)])   (Rafailov et al. 2023,
  Eq. 7).

  Each argument is the log-probability of a whole response, summed over its tokens.
  """
  chosen = logp_chosen.astype(jnp.float32) - ref_chosen.astype(jnp.float32)
  rejected = logp_rejected.astype(jnp.float32) - ref_rejected.astype(jnp.float32)
  (logits,) = _keep(weight != 0, beta * (chosen - rejected))
  return -jnp.sum(weight * jax.nn.log_sigmoid(logits))
