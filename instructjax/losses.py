"""The losses of InstructGPT (Ouyang et al. 2022) and of its relatives, as pure functions of arrays.

Every loss is a sum of weight × term. A weight is a mask scaled to the share of each term in a mean
over the whole batch: `token_mean`, `sequence_mean`, `sequence_sum` or `pair_weights`. The losses of
micro-batches therefore add up to the loss of the batch, and the kind of mean is a choice of
function.

An entry whose weight is 0 may hold anything, NaN included: it changes neither the loss nor a
gradient. Everything is float32 from the logits on.

Dimensions: B rows, K completions of one prompt, R response tokens, V vocabulary (which may be
sharded). `*B` is any number of batch dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from instructjax.returns import kl_k3, masked_mean, masked_var, require_mask
from instructjax.types import Array, Bool, Float, Int, Metrics, Scalar

# The logit of a banned token: e^BANNED is exactly 0, and unlike -inf it can be multiplied by 0.
BANNED = -1e9
# The log-ratio up to which a probability ratio is e^log-ratio; float32 overflows at 88.
LARGEST_LOG_RATIO = 40.0


# From logits to log-probabilities


def temper(
  logits: Float[Array, "*B V"],
  temperature: float = 1.0,
  banned: tuple[int, ...] = (),
) -> Float[Array, "*B V"]:
  """Returns logits / τ in float32, where banned ids have a probability of exactly 0.

  The policy that samples, the policy that learns and the reference all take their logits from this
  function, so the distribution that is scored is the one that was sampled (Ziegler et al. 2019).
  τ = 1 changes no bit.

  Raises:
    ValueError: unless τ > 0.
    IndexError: for a banned id outside the vocabulary.

  Example:
    >>> logits = jnp.array([2.0, 4.0, 6.0])
    >>> print(losses.temper(logits, 2.0))
    [1. 2. 3.]
    >>> print(jax.nn.softmax(losses.temper(logits, banned=(1, 2))))
    [1. 0. 0.]
  """
  if not temperature > 0:
    raise ValueError(f"temperature must be above 0, got {temperature}")
  logits = logits.astype(jnp.float32) / temperature
  if not banned:
    return logits
  # The ids are static, so their mask is a constant of the compiled program.
  is_banned = np.zeros(logits.shape[-1], bool)
  is_banned[list(banned)] = True
  return jnp.where(is_banned, BANNED, logits)


def token_logp(
  logits: Float[Array, "*B V"],
  tokens: Int[Array, "*B"],
) -> Float[Array, "*B"]:
  """Returns the log-probability of each token, in nats.

      log softmax(logits)[token] = logit[token] - log Σ_v e^logit[v]

  The log-softmax of the whole vocabulary is never formed.

  Example:
    >>> logits = jnp.zeros((2, 3, 8))  # eight ids, all alike
    >>> print(losses.token_logp(logits, jnp.array([[1, 2, 3], [4, 5, 6]])))
    [[-2.079 -2.079 -2.079]
     [-2.079 -2.079 -2.079]]
  """
  vocabulary_is_whole = jax.typeof(logits).sharding.spec[-1] is None
  if vocabulary_is_whole:
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)
    picked = picked[..., 0]
  else:
    # A gather would move the logits between devices. A sum over a comparison picks the logit on
    # the device that holds it.
    is_token = jnp.arange(logits.shape[-1]) == tokens[..., None]
    picked = jnp.sum(jnp.where(is_token, logits, 0), axis=-1)
  picked = picked.astype(jnp.float32)
  normaliser = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
  return picked - normaliser


def entropy(logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
  """Returns H = - Σ_v p_v log p_v in nats, where p = softmax(logits).

  Example:
    >>> print(losses.entropy(jnp.zeros((2, 3, 8))))  # log 8
    [[2.079 2.079 2.079]
     [2.079 2.079 2.079]]
  """
  # A logit of -inf is as banned as BANNED is, and with the finite number 0 log 0 comes out as 0.
  logits = jnp.maximum(logits.astype(jnp.float32), BANNED)
  # With z = logits - top, H = log Σ e^z - Σ z e^z / Σ e^z. No exponent is above 0.
  top = jnp.max(logits, axis=-1, keepdims=True)
  z = logits - top
  mass = jnp.exp(z)
  total = jnp.sum(mass, axis=-1)
  weighted = jnp.sum(mass * z, axis=-1)
  return jnp.log(total) - weighted / total


# Weights: what a loss is the mean of


def token_mean(mask: Bool[Array, "*B R"]) -> Float[Array, "*B R"]:
  """Returns w = m / Σ m, by which every marked token of the batch counts the same.

  Example:
    >>> print(losses.token_mean(mask))
    [[0.2 0.2 0.2]
     [0.2 0.2 0. ]]
  """
  require_mask(mask)
  count = jnp.maximum(jnp.sum(mask), 1)  # an empty mask has weights of 0, not NaN
  return jnp.where(mask, 1 / count.astype(jnp.float32), 0)


def sequence_mean(mask: Bool[Array, "B R"]) -> Float[Array, "B R"]:
  """Returns w = m / (tokens of the row × rows), by which every row counts the same.

  Example:
    >>> print(losses.sequence_mean(mask))
    [[0.167 0.167 0.167]
     [0.25  0.25  0.   ]]
  """
  require_mask(mask)
  length = jnp.sum(mask, axis=-1, keepdims=True)
  # Only rows with a marked token are counted.
  rows = jnp.sum(length > 0)
  count = jnp.maximum(length * rows, 1)
  return jnp.where(mask, 1 / count.astype(jnp.float32), 0)


def sequence_sum(mask: Bool[Array, "B R"]) -> Float[Array, "B R"]:
  """Returns w = m / rows, by which a row counts as much as it has tokens.

  The weighted sum is the mean over rows of what their tokens add up to, which is the expectation
  over episodes and over documents of Eq. 2 as it is printed.

  Example:
    >>> print(losses.sequence_sum(mask))
    [[0.5 0.5 0.5]
     [0.5 0.5 0. ]]
  """
  # Only rows with a marked token are counted.
  rows = jnp.sum(jnp.any(mask, axis=-1))
  count = jnp.maximum(rows, 1)
  return jnp.where(mask, 1 / count.astype(jnp.float32), 0)


# The weights by the names that settings have for them.
WEIGHTS = {
  "token_mean": token_mean,
  "sequence_mean": sequence_mean,
  "sequence_sum": sequence_sum,
}


def pair_weights(
  rank: Int[Array, "B K"],
  normaliser: str = "remaining",
  *,
  distinct: Bool[Array, "B K K"] | bool = True,
  labels: Float[Array, "B K K"] | None = None,
) -> Float[Array, "B K K"]:
  """Returns the weight of each pair (i beats j) in Eq. 1 of Ouyang et al. 2022.

  Ties and padded completions (rank 0) weigh nothing. Every prompt counts the same, whatever its K;
  a prompt without pairs does not count. The paper drops ties but leaves open whether the rest is
  divided by the "remaining" pairs of the prompt or by "all" C(K,2) of them.

  `distinct` is False for pairs whose completions are the same row (`reward.ranks_of`): they have
  one score whatever the model, so they weigh nothing, as ties do.

  `labels` says how much it counts that i beats j, where labels of pairs are no ranking; then the
  ranks only say which completions are there. The weights of a prompt are shares of its labels.

  Raises:
    ValueError: for another normaliser, and for ranks that count from 0, where their values can be
      seen: outside of a compiled function.

  Example:
    >>> print(losses.pair_weights(jnp.array([[1, 2, 2]])))  # a tie weighs nothing
    [[[0.  0.5 0.5]
      [0.  0.  0. ]
      [0.  0.  0. ]]]
  """
  _check_ranks(rank)
  winner, loser = _pairs(rank)
  real = (winner > 0) & (loser > 0)
  ordered = winner < loser if labels is None else labels > 0
  beats = real & ordered & distinct
  label = jnp.where(beats, 1 if labels is None else labels, 0)
  if normaliser == "remaining":
    pairs = jnp.sum(label, axis=(1, 2))
  elif normaliser == "all":
    completions = jnp.sum(rank > 0, axis=1)
    pairs = completions * (completions - 1) // 2
  else:
    raise ValueError(f'normaliser must be "remaining" or "all", got {normaliser!r}')
  prompts = jnp.sum(pairs > 0)
  count = pairs * prompts
  share = 1 / jnp.where(count > 0, count, 1).astype(jnp.float32)
  return label * share[:, None, None]


def _check_ranks(rank: Array) -> None:
  """Raises ValueError for ranks that count from 0, or are negative."""
  if isinstance(rank, jax.core.Tracer):
    return
  ranks = np.asarray(rank)
  # Padded completions come last, so that a rank after a 0 means that 0 was meant as the best.
  after_padding = (ranks[:, :-1] == 0) & (ranks[:, 1:] > 0)
  if (ranks < 0).any() or after_padding.any():
    raise ValueError(
      f"ranks begin with 1, and 0 marks padded completions at the end of a row: {ranks.tolist()}"
    )


def _pairs(x: Array) -> tuple[Array, Array]:
  """Returns x of i, the winner, and x of j, the loser, for all pairs: [B, K, 1] and [B, 1, K]."""
  return x[:, :, None], x[:, None, :]


def _zero_outside(mask: Array, *arrays: Array) -> list[Array]:
  """Returns the arrays in float32, with 0 wherever the mask is False.

  The losses do this before any arithmetic. A weight of 0 alone would not do: 0 × NaN is NaN, both
  in the value and in the gradient.

  Raises AssertionError where the shapes differ: a broadcast would give a number, and a wrong one.
  """
  chex.assert_equal_shape([mask, *arrays])
  return [jnp.where(mask, x.astype(jnp.float32), 0) for x in arrays]


def _weighed(weight: Array, *arrays: Array) -> list[Array]:
  """Returns the arrays in float32, with 0 wherever the weight is 0.

  Raises:
    TypeError: for a mask in the place of a weight. The loss would be a sum over tokens, thousands
      of times a mean, and the learning rate with it.
    AssertionError: where the shapes differ.
  """
  if not jnp.issubdtype(weight.dtype, jnp.floating):
    raise TypeError(
      f"a weight is a share of the batch, this is {weight.dtype}: make one of a mask or of ranks "
      "by token_mean, sequence_mean or pair_weights"
    )
  return _zero_outside(weight != 0, *arrays)


# Step 1: supervised fine-tuning


def nll(
  logp: Float[Array, "*B"],
  weight: Float[Array, "*B"],
) -> Scalar:
  """Negative log-likelihood of the weighted tokens (Ouyang et al. 2022, section 3.5).

      L = - Σ_t w_t log π(y_t | x, y_<t)

  It is also the pretraining term of PPO-ptx. Eq. 2 maximises + γ E log π(x), so γ × nll is added
  to the loss.

  Example:
    >>> logp = jnp.array([[-1.0, -2.0, -3.0], [-1.0, -2.0, jnp.nan]])
    >>> print(f"{losses.nll(logp, losses.token_mean(mask)):.3f}")
    1.800
  """
  (logp,) = _weighed(weight, logp)
  return -jnp.sum(weight * logp)


# Step 2: the reward model


def ranking(
  score: Float[Array, "B K"],
  weight: Float[Array, "B K K"],
  *,
  margin: Float[Array, "B K K"] | float = 0.0,
) -> Scalar:
  """Pairwise ranking loss, all pairs of a prompt in one batch element (Ouyang et al. 2022, Eq. 1).

      L = - Σ_{i beats j} w_ij log σ(r_i - r_j)

  `margin` is subtracted from r_i - r_j (Touvron et al. 2023, section 3.2.2).

  Example:
    >>> score = jnp.array([[2.0, 0.0, 0.0]])
    >>> weight = losses.pair_weights(jnp.array([[1, 2, 2]]))
    >>> print(f"{losses.ranking(score, weight):.3f}")  # - log σ(2)
    0.127
  """
  winner, loser = _pairs(score.astype(jnp.float32))
  difference = winner - loser - margin
  (difference,) = _weighed(weight, difference)
  return -jnp.sum(weight * jax.nn.log_sigmoid(difference))


def centering(
  score: Float[Array, "B K"],
  weight: Float[Array, "B K K"],
) -> Scalar:
  """Penalty that holds the scores near 0 (Eisenstein et al. 2023).

      L = Σ_{i beats j} w_ij (r_i + r_j)²

  Eq. 1 sees only differences of scores, so without it their level may drift.

  Example:
    >>> score = jnp.array([[2.0, 0.0, 0.0]])
    >>> print(losses.centering(score, losses.pair_weights(jnp.array([[1, 2, 2]]))))
    4.0
  """
  winner, loser = _pairs(score.astype(jnp.float32))
  total = winner + loser
  (total,) = _weighed(weight, total)
  return jnp.sum(weight * jnp.square(total))


def best_of_k(
  score: Float[Array, "B K"],
  rank: Int[Array, "B K"],
  weight: Float[Array, " B"],
) -> Scalar:
  """Cross-entropy of the scores with the completion of rank 1 (Ziegler et al. 2019, Eq. 1).

      L = - Σ_b w_b log softmax(r_b)[best]

  Completions that share rank 1 share the target equally. A row without a rank 1 does not count.

  Example:
    >>> score, rank = jnp.array([[2.0, 0.0, 0.0]]), jnp.array([[1, 2, 2]])
    >>> print(f"{losses.best_of_k(score, rank, weight=jnp.array([1.0])):.3f}")
    0.240
  """
  best = rank == 1
  # A row without a rank 1 has a target of 0 everywhere.
  ties = jnp.maximum(jnp.sum(best, axis=1, keepdims=True), 1)
  target = weight[:, None] / ties.astype(jnp.float32)
  real = (rank > 0) & (weight != 0)[:, None]
  logits = jnp.where(real, score.astype(jnp.float32), BANNED)
  logp = jax.nn.log_softmax(logits)
  return nll(logp, jnp.where(best, target, 0))


def ranking_accuracy(
  score: Float[Array, "B K"],
  rank: Int[Array, "B K"],
  *,
  distinct: Bool[Array, "B K K"] | bool = True,
  labels: Float[Array, "B K K"] | None = None,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
  """Returns (pairs that the scores order as the ranks do, pairs) of each prompt.

  Two equal scores are half right, as a coin would be. Pairs that are not `distinct` do not count.
  `labels` takes the place of the ranks, as in `pair_weights`; each pair counts once.

  Example:
    >>> score, rank = jnp.array([[2.0, 3.0, 0.0]]), jnp.array([[1, 2, 2]])
    >>> correct, pairs = losses.ranking_accuracy(score, rank)
    >>> print(correct, pairs)
    [1.] [2.]
  """
  beats = pair_weights(rank, distinct=distinct, labels=labels) > 0
  winner, loser = _pairs(score)
  difference = winner - loser
  # 1 where the winner scores higher, ½ where both score the same.
  right = jnp.where(difference == 0, jnp.float32(0.5), 0)
  right = jnp.where(difference > 0, 1, right)
  correct = jnp.sum(jnp.where(beats, right, 0), axis=(1, 2))
  pairs = jnp.sum(beats, axis=(1, 2))
  return correct, pairs.astype(jnp.float32)


# Step 3: PPO


def probability_ratio(
  logp: Float[Array, "*B"],
  old_logp: Float[Array, "*B"],
) -> Float[Array, "*B"]:
  """Returns ρ = π / π_old, finite for any finite log-probabilities, and with it every gradient.

  Beyond a log-ratio of 40 the exponential goes on as its tangent. An infinite ratio would make the
  loss NaN where the advantage is 0, and the gradient NaN where the clip leaves none.

  Example:
    >>> p, old_p = jnp.array([0.4, 0.1]), jnp.array([0.2, 0.2])
    >>> print(losses.probability_ratio(jnp.log(p), jnp.log(old_p)))
    [2.  0.5]
  """
  log_ratio = logp - old_logp
  bounded = jnp.minimum(log_ratio, LARGEST_LOG_RATIO)
  return jnp.exp(bounded) * (1 + (log_ratio - bounded))


def _policy_terms(
  logp: Array,
  old_logp: Array,
  advantage: Array,
  clip: float,
  clip_high: float | None = None,
) -> tuple[Array, Array, Array]:
  """Returns (probability ratio, unclipped loss, clipped loss) of each token."""
  ratio = probability_ratio(logp, old_logp)
  high = clip if clip_high is None else clip_high
  near = jnp.clip(ratio, 1 - clip, 1 + high)
  unclipped = -advantage * ratio
  clipped = -advantage * near
  return ratio, unclipped, clipped


def clipped_policy(
  logp: Float[Array, "*B R"],
  old_logp: Float[Array, "*B R"],
  advantage: Float[Array, "*B R"],
  weight: Float[Array, "*B R"],
  *,
  clip: float = 0.2,
  clip_high: float | None = None,
) -> Scalar:
  """Clipped surrogate loss of the policy (Schulman et al. 2017, Eq. 7).

      L = Σ_t w_t max(-A_t ρ_t, -A_t clip(ρ_t, 1-ε, 1+ε)),        ρ = π / π_old

  `old_logp` belongs to the policy that sampled, and stays the same over all minibatches of an
  iteration. `clip_high` is ε above 1, where it is another one (Yu et al. 2025, section 3.1): so
  unlikely tokens may become likely in fewer steps.

  Example:
    >>> old_logp = jnp.full((2, 3), -2.0)
    >>> advantage = jnp.array([[1.0, 1.0, 1.0], [-1.0, -1.0, 0.0]])
    >>> weight = losses.token_mean(mask)
    >>> print(f"{losses.clipped_policy(old_logp, old_logp, advantage, weight):.3f}")  # ratios of 1
    -0.200
    >>> print(f"{losses.clipped_policy(old_logp + 1, old_logp, advantage, weight):.3f}")
    0.367
  """
  logp, old_logp, advantage = _weighed(weight, logp, old_logp, advantage)
  _, unclipped, clipped = _policy_terms(logp, old_logp, advantage, clip, clip_high)
  return jnp.sum(weight * jnp.maximum(unclipped, clipped))


def dual_clipped_policy(
  logp: Float[Array, "*B R"],
  old_logp: Float[Array, "*B R"],
  advantage: Float[Array, "*B R"],
  weight: Float[Array, "*B R"],
  *,
  clip: float = 0.2,
  bound: float = 3.0,
) -> Scalar:
  """Clipped surrogate with a bound where the advantage is negative (Ye et al. 2020, Eq. 3).

      L = Σ_t w_t l_t                where A_t >= 0,        l_t that of `clipped_policy`
      L = Σ_t w_t min(l_t, -c A_t)   where A_t < 0

  Without the bound c > 1 a token that has become likely, and should not have, has an unbounded
  loss.

  Raises:
    ValueError: unless bound > 1.

  Example:
    >>> old_logp = jnp.full((2, 3), -2.0)
    >>> advantage = jnp.array([[1.0, 1.0, 1.0], [-1.0, -1.0, 0.0]])
    >>> weight = losses.token_mean(mask)
    >>> loss = losses.dual_clipped_policy(old_logp + 2, old_logp, advantage, weight)
    >>> print(f"{loss:.3f}")  # ratios of 7.4, bounded by 3 where the advantage is negative
    0.480
  """
  if not bound > 1:
    raise ValueError(f"the bound of a ratio is above 1, got {bound}")
  logp, old_logp, advantage = _weighed(weight, logp, old_logp, advantage)
  _, unclipped, clipped = _policy_terms(logp, old_logp, advantage, clip)
  term = jnp.maximum(unclipped, clipped)
  term = jnp.where(advantage < 0, jnp.minimum(term, -bound * advantage), term)
  return jnp.sum(weight * term)


def kl(
  logp: Float[Array, "*B R"],
  ref_logp: Float[Array, "*B R"],
  weight: Float[Array, "*B R"],
  *,
  estimate: Callable = kl_k3,
) -> Scalar:
  """KL of the policy from its reference, as a term of the loss (Shao et al. 2024, Eq. 4).

      L = Σ_t w_t k(log π(y_t), log π_ref(y_t)),        k = `returns.kl_k3` or another estimate

  It is in nats a token. Of these estimates k2 alone has the gradient of the KL; that of k3 is
  the gradient of KL(π_ref‖π) under the tokens of π, which is near where the two are.

  Example:
    >>> logp, ref_logp = jnp.full((2, 3), -1.0), jnp.full((2, 3), -2.0)
    >>> print(f"{losses.kl(logp, ref_logp, losses.token_mean(mask)):.3f}")
    0.368
  """
  logp, ref_logp = _weighed(weight, logp, ref_logp)
  return jnp.sum(weight * estimate(logp, ref_logp))


def entropy_bonus(
  entropy: Float[Array, "*B R"],
  weight: Float[Array, "*B R"],
  *,
  coef: float,
) -> Scalar:
  """Rewards a policy for its entropy (Mnih et al. 2016): L = - coef Σ_t w_t H_t, H in nats.

  Example:
    >>> entropy = jnp.full((2, 3), 2.0)
    >>> print(f"{losses.entropy_bonus(entropy, losses.token_mean(mask), coef=0.5):.3f}")
    -1.000
  """
  (entropy,) = _weighed(weight, entropy)
  return -coef * jnp.sum(weight * entropy)


def _value_terms(
  value: Array,
  old_value: Array,
  target: Array,
  clip: float | None,
) -> tuple[Array, Array]:
  """Returns the (unclipped, clipped) squared error of each token."""
  reach = jnp.inf if clip is None else clip
  near = jnp.clip(value, old_value - reach, old_value + reach)
  return jnp.square(value - target), jnp.square(near - target)


def clipped_value(
  value: Float[Array, "*B R"],
  old_value: Float[Array, "*B R"],
  target: Float[Array, "*B R"],
  weight: Float[Array, "*B R"],
  *,
  clip: float | None = 0.2,
) -> Scalar:
  """Clipped squared error of the value function (Ziegler et al. 2019).

      L = ½ Σ_t w_t max((V_t - G_t)², (clip(V_t, V_old ± ε) - G_t)²),        G the target

  Nothing is clipped when `clip` is None.

  Example:
    >>> value, target = jnp.ones((2, 3)), jnp.zeros((2, 3))
    >>> print(losses.clipped_value(value, value, target, losses.token_mean(mask)))
    0.5
  """
  value, old_value, target = _weighed(weight, value, old_value, target)
  unclipped, clipped = _value_terms(value, old_value, target, clip)
  return 0.5 * jnp.sum(weight * jnp.maximum(unclipped, clipped))


def policy_metrics(
  logp: Float[Array, "*B R"],
  old_logp: Float[Array, "*B R"],
  advantage: Float[Array, "*B R"],
  mask: Bool[Array, "*B R"],
  *,
  clip: float = 0.2,
) -> Metrics:
  """Returns what to watch in `clipped_policy`, as means over the marked tokens.

  `approxkl` is the mean of ½ (log ρ)², and `clipfrac` the share of tokens without a gradient. Of
  another loss `share_without_gradient` gives the latter.

  Example:
    >>> old_logp = jnp.full((2, 3), -2.0)
    >>> metrics = losses.policy_metrics(old_logp + 1, old_logp, jnp.ones((2, 3)), mask)
    >>> print(metrics["policy/clipfrac_avg"], metrics["policy/approxkl_avg"])
    1.0 0.5
  """
  logp, old_logp, advantage = _zero_outside(mask, logp, old_logp, advantage)
  ratio, unclipped, clipped = _policy_terms(logp, old_logp, advantage, clip)
  is_clipped = (clipped > unclipped).astype(jnp.float32)
  return {
    "loss/policy_avg": masked_mean(jnp.maximum(unclipped, clipped), mask),
    "policy/approxkl_avg": 0.5 * masked_mean(jnp.square(logp - old_logp), mask),
    "policy/clipfrac_avg": masked_mean(is_clipped, mask),
    # The largest ratio of a first minibatch is 1, unless sampler and trainer disagree.
    "policy/ratio_max": jnp.max(jnp.where(mask, ratio, -jnp.inf)),
    "policy/ratio_min": jnp.min(jnp.where(mask, ratio, jnp.inf)),
    "val/ratio": masked_mean(ratio, mask),
    "val/ratio_var": masked_var(ratio, mask),
  }


def share_without_gradient(
  loss: Callable[..., Scalar],
  arguments: tuple[Array, ...],
  has_error: Bool[Array, "*B R"],
  mask: Bool[Array, "*B R"],
) -> Scalar:
  """Returns the share of the marked tokens that a loss gives no gradient though they have an error.

  The gradient is that of the first argument, and an error is an advantage that is not 0, or a value
  that is not its target. Of `clipped_policy` and `clipped_value` this is `clipfrac`; of another
  loss it is the share of whatever that one clips.

  Example:
    >>> old_logp, advantage = jnp.full((2, 3), -2.0), jnp.ones((2, 3))
    >>> logp = old_logp + jnp.log(jnp.array([[1.4, 1.4, 1.4], [1.6, 1.6, 1.6]]))
    >>> arguments = (logp, old_logp, advantage, losses.token_mean(mask))
    >>> loss = partial(losses.clipped_policy, clip=0.2, clip_high=0.5)
    >>> print(losses.share_without_gradient(loss, arguments, advantage != 0, mask))
    0.4
  """
  gradient = jax.grad(loss)(*arguments)
  is_stopped = has_error & (gradient == 0)
  return masked_mean(is_stopped.astype(jnp.float32), mask)


def value_metrics(
  value: Float[Array, "*B R"],
  old_value: Float[Array, "*B R"],
  target: Float[Array, "*B R"],
  mask: Bool[Array, "*B R"],
  *,
  clip: float | None = 0.2,
) -> Metrics:
  """Returns what to watch in `clipped_value`, as means over the marked tokens.

  `explained_var` is 1 - Var[G - V] / Var[G]: 1 at best, and 0 for a constant.

  Example:
    >>> target = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]])
    >>> metrics = losses.value_metrics(target, target, target, mask)
    >>> print(metrics["val/explained_var"], metrics["val/clipfrac_avg"])
    1.0 0.0
  """
  value, old_value, target = _zero_outside(mask, value, old_value, target)
  unclipped, clipped = _value_terms(value, old_value, target, clip)
  is_clipped = (clipped > unclipped).astype(jnp.float32)
  unexplained = masked_var(target - value, mask)
  target_var = jnp.maximum(masked_var(target, mask), 1e-8)  # targets may all be equal
  return {
    "loss/value_avg": 0.5 * masked_mean(jnp.maximum(unclipped, clipped), mask),
    "val/clipfrac_avg": masked_mean(is_clipped, mask),
    "val/mean": masked_mean(value, mask),
    "val/target_mean": masked_mean(target, mask),
    "val/explained_var": 1 - unexplained / target_var,
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
) -> Scalar:
  """Direct preference optimisation (Rafailov et al. 2023, Eq. 7).

      L = - Σ_b w_b log σ(β [log π(y_w)/π_ref(y_w) - log π(y_l)/π_ref(y_l)])

  Each argument is the log-probability of a whole response, summed over its tokens.

  Raises:
    AssertionError: for log-probabilities of single tokens.

  Example:
    >>> chosen, rejected = jnp.array([-3.0]), jnp.array([-5.0])
    >>> reference = jnp.array([-4.0])
    >>> loss = losses.dpo(chosen, rejected, reference, reference, jnp.array([1.0]), beta=0.5)
    >>> print(f"{loss:.3f}")  # - log σ(0.5 · 2)
    0.313
  """
  chex.assert_rank([logp_chosen, logp_rejected, ref_chosen, ref_rejected, weight], 1)
  chosen = logp_chosen.astype(jnp.float32) - ref_chosen.astype(jnp.float32)
  rejected = logp_rejected.astype(jnp.float32) - ref_rejected.astype(jnp.float32)
  (logits,) = _weighed(weight, beta * (chosen - rejected))
  return -jnp.sum(weight * jax.nn.log_sigmoid(logits))
