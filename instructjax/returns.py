"""From one score per response to a reward, an advantage and a target per token.

This is the reinforcement learning of Ouyang et al. 2022, section 3.5, as pure functions of arrays
in float32. An entry where a mask is False may hold anything, even NaN.

Dimensions: B episodes, R response tokens, N samples. `*B` is any number of batch dimensions. Time t
runs over response tokens, and e is the last token of a response: the end of text, if one was
sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Real

from instructjax.types import Array, Bool, Float, Scalar

Mask = Bool[Array, "*B R"]
Place = Callable[[Mask], Mask]  # marks the position of each row that is paid the score


# Masked statistics


def require_mask(mask: Array) -> None:
  """Checks that a mask is boolean.

  Raises:
    TypeError: otherwise. `~` of integers flips their bits, and an index by them picks rows.

  Example:
    >>> returns.require_mask(mask)
    >>> returns.require_mask(jnp.array([1, 0]))
    Traceback (most recent call last):
      ...
    TypeError: a mask is boolean, this one is int32: mask > 0 makes it so
  """
  if mask.dtype != bool:
    raise TypeError(f"a mask is boolean, this one is {mask.dtype}: mask > 0 makes it so")


def masked_mean(
  x: Float[Array, "*B"],
  mask: Bool[Array, "*B"],
) -> Scalar:
  """Returns Σ_t m_t x_t / Σ_t m_t over the whole array, and 0 where the mask is empty.

  Example:
    >>> x = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, jnp.nan]])
    >>> print(f"{returns.masked_mean(x, mask):.3f}")
    1.800
  """
  require_mask(mask)
  count = jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
  total = jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0))
  return total / count


def masked_var(
  x: Float[Array, "*B"],
  mask: Bool[Array, "*B"],
  *,
  unbiased: bool = False,
) -> Scalar:
  """Returns Σ_t m_t (x_t - mean)² / n, with n = Σ_t m_t, or n - 1 when `unbiased`.

  Example:
    >>> x = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, jnp.nan]])
    >>> print(f"{returns.masked_var(x, mask):.3f}")
    0.560
    >>> print(f"{returns.masked_var(x, mask, unbiased=True):.3f}")
    0.700
  """
  deviation = x.astype(jnp.float32) - masked_mean(x, mask)
  var = masked_mean(jnp.square(deviation), mask)
  if not unbiased:
    return var
  n = jnp.sum(mask).astype(jnp.float32)
  return var * n / jnp.maximum(n - 1, 1)


def whiten(
  x: Float[Array, "*B"],
  mask: Bool[Array, "*B"],
  *,
  shift_mean: bool = True,
  unbiased: bool = False,
  eps: float = 1e-8,
) -> Float[Array, "*B"]:
  """Returns (x - mean) / √(var + eps), and 0 outside the mask.

  The mean is put back when `shift_mean` is False. Ziegler et al. 2019 whiten advantages, and
  rewards with `shift_mean=False`, by the biased variance; other implementations take the unbiased
  one.

  Example:
    >>> x = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, jnp.nan]])
    >>> print(returns.whiten(x, mask))
    [[-1.069  0.267  1.604]
     [-1.069  0.267  0.   ]]
  """
  mean = masked_mean(x, mask)
  var = masked_var(x, mask, unbiased=unbiased)
  whitened = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(var + eps)
  if not shift_mean:
    whitened = whitened + mean
  return jnp.where(mask, whitened, 0)


# Estimates of KL(π‖ρ) from a token y that was sampled from π, with d = log π(y) - log ρ(y)
# (Schulman 2020, "Approximating KL divergence")


def kl_k1(
  logp: Float[Array, "*B"],
  ref_logp: Float[Array, "*B"],
) -> Float[Array, "*B"]:
  """Returns d, which is unbiased and of either sign.

  This is the penalty of the paper (Ouyang et al. 2022, section 3.5, Eq. 2).

  Example:
    >>> logp, ref_logp = jnp.array([-1.0, -2.0]), jnp.array([-2.0, -1.0])
    >>> print(returns.kl_k1(logp, ref_logp))
    [ 1. -1.]
  """
  return logp.astype(jnp.float32) - ref_logp.astype(jnp.float32)


def kl_k2(
  logp: Float[Array, "*B"],
  ref_logp: Float[Array, "*B"],
) -> Float[Array, "*B"]:
  """Returns d²/2, biased as a value, whose gradient is an unbiased gradient of KL(π‖ρ).

  Example:
    >>> logp, ref_logp = jnp.array([-1.0, -2.0]), jnp.array([-2.0, -1.0])
    >>> print(returns.kl_k2(logp, ref_logp))
    [0.5 0.5]
  """
  d = kl_k1(logp, ref_logp)
  return 0.5 * jnp.square(d)


def kl_k3(
  logp: Float[Array, "*B"],
  ref_logp: Float[Array, "*B"],
) -> Float[Array, "*B"]:
  """Returns e^(-d) - 1 + d, which is unbiased and never negative.

  Example:
    >>> logp, ref_logp = jnp.array([-1.0, -2.0]), jnp.array([-2.0, -1.0])
    >>> print(returns.kl_k3(logp, ref_logp))
    [0.368 0.718]
  """
  d = kl_k1(logp, ref_logp)
  return jnp.expm1(-d) + d


# The reward of each token


def at_last_token(mask: Mask) -> Mask:
  """Marks the position e of the last True of each row (Ziegler et al. 2019).

  A row without a True gets no mark.

  Example:
    >>> print(returns.at_last_token(mask))
    [[False False  True]
     [False  True False]]
  """
  require_mask(mask)
  position = jnp.arange(mask.shape[-1])
  marked = jnp.where(mask, position, -1)
  return position == jnp.max(marked, axis=-1, keepdims=True)


def after_last_token(mask: Mask) -> Mask:
  """Marks the position e + 1, or e where the row has no room for it (Huang et al. 2024).

  The value at e + 1 is that of the state after the end of text, so the value function is trained
  there too (see `value_mask`).

  Example:
    >>> print(returns.after_last_token(mask))  # the first row has no room
    [[False False  True]
     [False False  True]]
  """
  last = at_last_token(mask)
  has_room = ~last[..., -1:]
  first_column = jnp.zeros_like(last[..., :1])
  after = jnp.concatenate([first_column, last[..., :-1]], axis=-1)
  return jnp.where(has_room, after, last)


def value_mask(mask: Mask, place: Place = at_last_token) -> Mask:
  """Marks where the value function is trained: the response and the position that is paid.

  Example:
    >>> print(returns.value_mask(mask, returns.after_last_token)[1])
    [ True  True  True]
  """
  return mask | place(mask)


def token_rewards(
  score: Real[Array, "*B"],
  kl: Float[Array, "*B R"],
  mask: Mask,
  kl_coef: Scalar | float,
  *,
  place: Place = at_last_token,
) -> Float[Array, "*B R"]:
  """Pays the KL penalty at every token and the score once (Ouyang et al. 2022, section 3.5, Eq. 2).

      r_t = s 1[t = place] - β kl_t m_t,        kl_t = log π(y_t|x,y_<t) - log π_ref(y_t|x,y_<t)

  The sum over t is the paper's r_θ(x,y) - β log(π(y|x) / π_ref(y|x)).

  Example:
    >>> kl = jnp.full((2, 3), 0.5)
    >>> print(returns.token_rewards(jnp.array([1.0, 2.0]), kl, mask, kl_coef=0.1))
    [[-0.05 -0.05  0.95]
     [-0.05  1.95  0.  ]]
  """
  chex.assert_equal_shape([kl, mask])
  # A score of [B, 1] would be spread over all pairs of rows.
  chex.assert_shape(score, mask.shape[:-1])
  score = score.astype(jnp.float32)[..., None]
  penalty = jnp.where(mask, kl_coef * kl.astype(jnp.float32), 0)
  return jnp.where(place(mask), score, 0) - penalty


def replace_missing_eos(
  score: Real[Array, "*B"],
  ended: Bool[Array, "*B"],
  *,
  value: float = -1.0,
) -> Float[Array, "*B"]:
  """Returns the score, or `value` for a response that did not end.

  Stiennon et al. 2020 and Huang et al. 2024 do this, so that a policy learns to stop.

  Example:
    >>> print(returns.replace_missing_eos(jnp.array([3.0, 2.0]), rows.ended))
    [-1.  2.]
  """
  return jnp.where(ended, score.astype(jnp.float32), value)


def penalise_missing_eos(
  score: Real[Array, "*B"],
  ended: Bool[Array, "*B"],
  *,
  penalty: float = 1.0,
) -> Float[Array, "*B"]:
  """Returns the score, less `penalty` for a response that did not end.

  Example:
    >>> print(returns.penalise_missing_eos(jnp.array([3.0, 2.0]), rows.ended))
    [2. 2.]
  """
  score = score.astype(jnp.float32)
  return jnp.where(ended, score, score - penalty)


# Advantages


def gae(
  reward: Float[Array, "*B R"],
  value: Float[Array, "*B R"],
  mask: Mask,
  *,
  discount: float = 1.0,
  lam: float = 0.95,
) -> tuple[Float[Array, "*B R"], Float[Array, "*B R"]]:
  """Generalised advantage estimation (Schulman et al. 2016, Eq. 16); returns (advantage, target).

      δ_t = r_t + γ V_t' - V_t,        A_t = δ_t + γλ A_t',        target_t = A_t + V_t

  V_t is the value of the state before token t, and t' is the next position inside the mask. A gap,
  such as somebody else's words in a dialogue, is stepped over: nothing in it is paid or discounted.
  After the last position the episode is over, so V = A = 0. Both results are 0 outside the mask.
  The paper has γ = 1 and prints no λ.

  Example:
    >>> reward = jnp.array([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    >>> advantage, target = returns.gae(reward, jnp.zeros((2, 3)), mask, lam=0.5)
    >>> print(advantage)
    [[0.25 0.5  1.  ]
     [1.   2.   0.  ]]
  """
  require_mask(mask)
  chex.assert_equal_shape([reward, value, mask])
  reward = jnp.where(mask, reward.astype(jnp.float32), 0)
  value = jnp.where(mask, value.astype(jnp.float32), 0)

  def backward(carry, step):
    next_value, next_advantage = carry
    r, v, inside = step
    advantage = r + discount * next_value - v + discount * lam * next_advantage
    # Outside the mask the carry passes through, so t' skips the gap.
    carry = (
      jnp.where(inside, v, next_value),
      jnp.where(inside, advantage, next_advantage),
    )
    return carry, jnp.where(inside, advantage, 0)

  def time_first(x):
    return jnp.moveaxis(x, -1, 0)

  zero = jnp.zeros_like(value[..., 0])
  steps = (time_first(reward), time_first(value), time_first(mask))
  _, advantage = jax.lax.scan(backward, (zero, zero), steps, reverse=True)
  advantage = jnp.moveaxis(advantage, 0, -1)
  return advantage, advantage + value


# Advantages without a value network: of an episode among the n responses to its prompt, which
# follow each other. They take what `gae` takes, and every token has the advantage of its episode.


def leave_one_out(
  reward: Float[Array, "B R"],
  value: Float[Array, "B R"] | None,
  mask: Bool[Array, "B R"],
  *,
  n: int,
) -> tuple[Float[Array, "B R"], None]:
  """Returns the return of an episode less the mean of the others (RLOO, Ahmadian et al. 2024).

      A_i = G_i - 1/(n-1) Σ_{j ≠ i} G_j,        G_i = Σ_t r_it

  The target of a value network is None. An episode without a mark has no score: it is none of the
  others. One that is alone has an advantage of 0. An advantage is in the units of the reward.

  Raises:
    ValueError: where the episodes do not divide into groups of n, and unless n > 1.

  Example:
    >>> reward = jnp.array([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    >>> advantage, _ = returns.leave_one_out(reward, None, mask, n=2)
    >>> print(advantage)
    [[-1. -1. -1.]
     [ 1.  1.  0.]]
  """
  del value
  total, scored = _episode_returns(reward, mask)
  by_prompt, is_scored = _groups(total, n), _groups(scored, n)
  others = jnp.sum(is_scored, axis=1, keepdims=True) - is_scored
  baseline = (jnp.sum(by_prompt, axis=1, keepdims=True) - by_prompt) / jnp.maximum(others, 1)
  advantage = jnp.where(is_scored & (others > 0), by_prompt - baseline, 0)
  return _to_tokens(advantage, mask), None


def group_normalised(
  reward: Float[Array, "B R"],
  value: Float[Array, "B R"] | None,
  mask: Bool[Array, "B R"],
  *,
  n: int,
  scale: str = "group",
  eps: float = 1e-4,
) -> tuple[Float[Array, "B R"], None]:
  """Returns the return of an episode, normalised within its group (GRPO, Shao et al. 2024).

      A_i = (G_i - mean_j G_j) / (std_j G_j + eps),        G_i = Σ_t r_it

  `scale` says what divides: the deviation within the "group"; that of the whole "batch"; or "none"
  (Liu et al. 2025, who show that the first favours prompts that are too easy or too hard). The
  deviation is the unbiased one. The target of a value network is None, and an episode without a
  mark has no score: it counts in no mean.

  Raises:
    ValueError: for another scale, where the episodes do not divide into groups of n, and unless
      n > 1.

  Example:
    >>> reward = jnp.array([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    >>> advantage, _ = returns.group_normalised(reward, None, mask, n=2, scale="none")
    >>> print(advantage)
    [[-0.5 -0.5 -0.5]
     [ 0.5  0.5  0. ]]
  """
  del value
  total, scored = _episode_returns(reward, mask)
  mean, std = group_statistics(total, scored, n)
  if scale == "batch":
    std = jnp.sqrt(masked_var(total, scored, unbiased=True))
  elif scale == "none":
    std, eps = jnp.float32(1), 0.0
  elif scale == "group":
    std = std[:, None]
  else:
    raise ValueError(f'scale is "group", "batch" or "none", got {scale!r}')
  advantage = (_groups(total, n) - mean[:, None]) / (std + eps)
  return _to_tokens(advantage, mask), None


def group_statistics(
  score: Float[Array, " B"],
  scored: Bool[Array, " B"],
  n: int,
) -> tuple[Float[Array, " G"], Float[Array, " G"]]:
  """Returns (mean, unbiased standard deviation) of the scored among every n episodes, B = G * n.

  Of a single scored episode the deviation is 0, and of none the mean is 0 too.

  Raises:
    ValueError: where the episodes do not divide into groups of n, and unless n > 1.

  Example:
    >>> score, scored = jnp.array([1.0, 2.0, 4.0, 4.0]), jnp.array([True, True, True, True])
    >>> mean, std = returns.group_statistics(score, scored, n=2)
    >>> print(mean, std)
    [1.5 4. ] [0.707 0.   ]
  """
  is_scored = _groups(scored, n)
  by_prompt = jnp.where(is_scored, _groups(score.astype(jnp.float32), n), 0)
  count = jnp.sum(is_scored, axis=1)
  mean = jnp.sum(by_prompt, axis=1) / jnp.maximum(count, 1)
  deviation = jnp.where(is_scored, by_prompt - mean[:, None], 0)
  var = jnp.sum(jnp.square(deviation), axis=1) / jnp.maximum(count - 1, 1)
  return mean, jnp.sqrt(var)


def _episode_returns(reward: Array, mask: Array) -> tuple[Array, Array]:
  """Returns the sum of the rewards of each episode, and whether it has a mark."""
  require_mask(mask)
  chex.assert_equal_shape([reward, mask])
  total = jnp.sum(jnp.where(mask, reward.astype(jnp.float32), 0), axis=-1)
  return total, jnp.any(mask, axis=-1)


def _groups(x: Array, n: int) -> Array:
  """[B] -> [B/n, n]; the episodes of a prompt stay on their device."""
  if n < 2 or x.shape[0] % n:
    raise ValueError(
      f"{x.shape[0]} episodes are no groups of {n}: several responses to each prompt are compared, "
      "as Sampling(n=...) draws them"
    )
  where = jax.typeof(x).sharding
  split = None if where.mesh.empty else jax.P(where.spec[0], None)
  return jax.lax.reshape(x, (x.shape[0] // n, n), out_sharding=split)


def _to_tokens(advantage: Array, mask: Array) -> Array:
  """[B/n, n] -> [B, R]: the advantage of an episode at each of its marks, else 0."""
  where = jax.typeof(mask).sharding
  split = None if where.mesh.empty else jax.P(where.spec[0])
  by_episode = jax.lax.reshape(advantage, (mask.shape[0],), out_sharding=split)
  return jnp.where(mask, by_episode[:, None], 0)


# The KL coefficient


def fixed_kl(coef: Scalar, kl: Scalar, n: int) -> Scalar:
  """Leaves β as it is (Ouyang et al. 2022, App. C.4: 0.02).

  Example:
    >>> print(returns.fixed_kl(jnp.float32(0.25), kl=jnp.float32(9.0), n=64))
    0.25
  """
  del kl, n
  return coef


def adaptive_kl(
  coef: Scalar,
  kl: Scalar,
  n: int,
  *,
  target: float,
  horizon: float,
) -> Scalar:
  """Moves β so that the KL approaches `target` (Ziegler et al. 2019, section 2.2).

      β ← β (1 + e min(n / horizon, 1)),        e = clip(KL / target - 1, -0.2, 0.2)

  `kl` is in nats an episode: the mean over episodes of the sum over tokens. `n` is the number of
  episodes. A call moves β by a fifth at most: without that bound β would be negative as soon as n
  is more than five horizons, and would reward the policy for leaving the reference.

  Example:
    >>> coef, kl = jnp.float32(0.02), jnp.float32(9.0)
    >>> print(f"{returns.adaptive_kl(coef, kl, 64, target=6.0, horizon=640):.4f}")
    0.0204
  """
  error = jnp.clip(kl / target - 1, -0.2, 0.2)
  return coef * (1 + error * min(n / horizon, 1.0))


# Best of n


def bon_kl(n: int) -> float:
  """Returns KL(best of n ‖ one sample) = log n - (n-1)/n in nats (Stiennon et al. 2020, Table 10).

  Ties make the real divergence smaller.

  Example:
    >>> print(round(returns.bon_kl(4), 3))
    0.636
  """
  return math.log(n) - (n - 1) / n


def bon_weights(N: int, n: int) -> np.ndarray:
  """Returns the weights [N] of an unbiased best-of-n mean (Nakano et al. 2021, App. I).

      mean f = Σ_i w_i f(x_(i)),        w_i = C(i-1, n-1) / C(N, n),        i = 1..N

  The N samples are in ascending order of score. w_i is the chance that the i-th smallest is the
  largest of n that are drawn without replacement.

  Raises:
    ValueError: unless 1 <= n <= N.

  Example:
    >>> print(returns.bon_weights(N=4, n=2))  # of the smallest sample first
    [0.    0.167 0.333 0.5  ]
  """
  if not 1 <= n <= N:
    raise ValueError(f"best of n needs 1 <= n <= N, got n={n} with N={N} samples")
  # In float64, from the largest down: w_N = n/N and w_i = w_{i+1} (i-n+1)/i. No binomial
  # coefficient is ever formed, so none overflows.
  i = np.arange(n, N, dtype=np.float64)
  ratios = (i - n + 1) / i
  factors = np.concatenate([[n / N], ratios[::-1]])
  descending = np.cumprod(factors)
  below = np.zeros(n - 1)  # the n - 1 smallest are never the largest of n
  return np.concatenate([below, descending[::-1]])
