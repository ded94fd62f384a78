"""From a score per response to rewards, advantages and targets per token (Ouyang et al. 2022,
section 3.5).

Pure functions of arrays, float32 throughout.  What stands where a mask is False may be anything,
even NaN.

Dimensions: B episodes, R response tokens, N samples.  `*B` is any number of batch dimensions.
Time t runs over response tokens; e is the last token of a response, the end of text when it was
drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Real

from instructjax.types import Array, Bool, Float

Mask = Bool[Array, "*B R"]
Place = Callable[[Mask], Mask]  # which position of each row is paid the score


# Masked statistics


def masked_mean(x: Float[Array, "*B"], mask: Bool[Array, "*B"]) -> Float[Array, ""]:
  """Σ_t m_t x_t / Σ_t m_t over the whole array; 0 where the mask is empty."""
  count = jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
  return jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0)) / count


def masked_var(
  x: Float[Array, "*B"], mask: Bool[Array, "*B"], *, unbiased: bool = False
) -> Float[Array, ""]:
  """Σ_t m_t (x_t - mean)² / n, with n = Σ_t m_t, or n - 1 when `unbiased`."""
  var = masked_mean(jnp.square(x.astype(jnp.float32) - masked_mean(x, mask)), mask)
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
  """(x - mean) / √(var + eps), and 0 outside the mask; the mean is put back when `shift_mean` is
  False.

  Ziegler et al. 2019 whiten advantages, and rewards with `shift_mean=False`, by the biased
  variance; other implementations take the unbiased one.
  """
  mean = masked_mean(x, mask)
  y = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(masked_var(x, mask, unbiased=unbiased) + eps)
  return jnp.where(mask, y if shift_mean else y + mean, 0)


# Estimates of KL(π‖ρ) from a token that was drawn from π; d = log π(y) - log ρ(y)


def kl_k1(logp: Float[Array, "*B"], ref_logp: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """d: unbiased, of either sign.  The penalty of the paper (section 3.5, Eq. 2)."""
  return logp.astype(jnp.float32) - ref_logp.astype(jnp.float32)


def kl_k2(logp: Float[Array, "*B"], ref_logp: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """d²/2: biased as a value, but its gradient is an unbiased gradient of KL(π‖ρ) (Schulman 2020)."""
  return 0.5 * jnp.square(kl_k1(logp, ref_logp))


def kl_k3(logp: Float[Array, "*B"], ref_logp: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """e^(-d) - 1 + d: unbiased and never negative (Schulman 2020)."""
  d = kl_k1(logp, ref_logp)
  return jnp.expm1(-d) + d


# The reward of each token


def at_last_token(mask: Mask) -> Mask:
  """The position e of the last True of each row (Ziegler et al. 2019); none in a row without any."""
  at = jnp.arange(mask.shape[-1])
  return at == jnp.max(jnp.where(mask, at, -1), axis=-1, keepdims=True)


def after_last_token(mask: Mask) -> Mask:
  """The position e + 1, or e where the row has no room for it (Huang et al. 2024).

  The value at e + 1 is that of the state after the end of text, so the value function is trained
  there too.
  """
  last = at_last_token(mask)
  room = ~last[..., -1:]
  after = jnp.concatenate([jnp.zeros_like(last[..., :1]), last[..., :-1]], axis=-1)
  return jnp.where(room, after, last)


def value_mask(mask: Mask, place: Place = at_last_token) -> Mask:
  """Where the value function is trained: the response and the position that is paid."""
  return mask | place(mask)


def token_rewards(
  score: Real[Array, "*B"],
  kl: Float[Array, "*B R"],
  mask: Mask,
  kl_coef: Float[Array, ""] | float,
  *,
  place: Place = at_last_token,
) -> Float[Array, "*B R"]:
  """The reward of each token: the KL penalty everywhere and the score once (section 3.5, Eq. 2).

      r_t = - β kl_t m_t + s 1[t = place],        kl_t = log π(y_t|x,y_<t) - log π_ref(y_t|x,y_<t)

  The sum over t is the paper's r_θ(x,y) - β log(π(y|x) / π_ref(y|x)).
  """
  penalty = jnp.where(mask, kl_coef * kl.astype(jnp.float32), 0)
  return jnp.where(place(mask), score.astype(jnp.float32)[..., None], 0) - penalty


def replace_missing_eos(
  score: Real[Array, "*B"], ended: Bool[Array, "*B"], *, value: float = -1.0
) -> Float[Array, "*B"]:
  """The score, or `value` for a response that did not end (Stiennon et al. 2020; Huang et al.
  2024).
  """
  return jnp.where(ended, score.astype(jnp.float32), value)


def penalise_missing_eos(
  score: Real[Array, "*B"], ended: Bool[Array, "*B"], *, penalty: float = 1.0
) -> Float[Array, "*B"]:
  """The score, less `penalty` for a response that did not end."""
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
  """(advantage, target) by generalised advantage estimation (Schulman et al. 2016, Eq. 16).

      δ_t = r_t + γ V_t' - V_t,        A_t = δ_t + γλ A_t',        target_t = A_t + V_t

  V_t is the value of the state before token t, and t' is the next position inside the mask: a
  gap (the words of somebody else in a dialogue) is stepped over, nothing in it is paid or
  discounted.  After the last one the episode is over, V = A = 0.  Both results are 0 outside the
  mask.  The paper has γ = 1 and prints no λ.
  """
  reward = jnp.where(mask, reward.astype(jnp.float32), 0)
  value = jnp.where(mask, value.astype(jnp.float32), 0)

  def backward(carry, step):
    next_value, next_advantage = carry
    r, v, m = step
    advantage = r + discount * next_value - v + discount * lam * next_advantage
    return (jnp.where(m, v, next_value), jnp.where(m, advantage, next_advantage)), jnp.where(
      m, advantage, 0
    )

  zero = jnp.zeros_like(value[..., 0])
  steps = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (reward, value, mask))
  _, advantage = jax.lax.scan(backward, (zero, zero), steps, reverse=True)
  advantage = jnp.moveaxis(advantage, 0, -1)
  return advantage, advantage + value


# The KL coefficient


def fixed_kl(coef: Float[Array, ""], kl: Float[Array, ""], n: int) -> Float[Array, ""]:
  """β stays as it is (Ouyang et al. 2022, App. C.4: 0.02)."""
  del kl, n
  return coef


def adaptive_kl(
  coef: Float[Array, ""], kl: Float[Array, ""], n: int, *, target: float, horizon: float
) -> Float[Array, ""]:
  """β ← β (1 + e n / horizon),  e = clip(KL / target - 1, -0.2, 0.2)   (Ziegler et al. 2019,
  section 2.2).

  `kl` is in nats an episode: the mean over episodes of the sum over tokens.  `n` is the number
  of episodes.
  """
  error = jnp.clip(kl / target - 1, -0.2, 0.2)
  return coef * (1 + error * n / horizon)


# Best of n


def bon_kl(n: int) -> float:
  """KL(best of n ‖ one sample) = log n - (n-1)/n nats (Stiennon et al. 2020, Table 10), less with
  ties.
  """
  return math.log(n) - (n - 1) / n


def bon_weights(N: int, n: int) -> np.ndarray:
  """[N] weights by ascending score: unbiased best-of-n mean from N samples (Nakano et al. 2021,
  App. I).

      mean f = Σ_i w_i f(x_(i)),        w_i = C(i-1, n-1) / C(N, n),   i = 1..N

  w_i is the chance that the i-th smallest is the largest of n that are drawn without
  replacement.  float64, from the largest down: w_N = n/N and w_i = w_{i+1} (i-n+1)/i, so no
  binomial coefficient is ever formed.

  Raises ValueError unless 1 <= n <= N.
  """
  if not 1 <= n <= N:
    raise ValueError(f"best of n needs 1 <= n <= N, got n={n} with N={N} samples")
  i = np.arange(n, N, dtype=np.float64)
  top = np.cumprod(np.concatenate([[n / N], ((i - n + 1) / i)[::-1]]))
  return np.concatenate([np.zeros(n - 1), top[::-1]])
