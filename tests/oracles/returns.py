"""Rewards, advantages and best-of-n as loops; advantages by the double sum of their definition."""

import math
from itertools import combinations

import numpy as np


def mean(x, mask):
  kept = [v for v, m in zip(x.ravel(), mask.ravel()) if m]
  return sum(kept) / len(kept)


def var(x, mask, unbiased=False):
  kept = [v for v, m in zip(x.ravel(), mask.ravel()) if m]
  centre = sum(kept) / len(kept)
  return sum((v - centre) ** 2 for v in kept) / (len(kept) - (1 if unbiased else 0))


def whiten(x, mask, shift_mean=True, unbiased=False, eps=1e-8):
  out = np.zeros_like(x)
  centre, scale = mean(x, mask), math.sqrt(var(x, mask, unbiased) + eps)
  for i in np.ndindex(x.shape):
    if mask[i]:
      out[i] = (x[i] - centre) / scale + (0 if shift_mean else centre)
  return out


def paid_position(row, after):
  """The index of the last True of a row; one further when `after` and there is room."""
  last = max(t for t in range(len(row)) if row[t])
  return min(last + 1, len(row) - 1) if after else last


def value_mask(mask, after):
  out = mask.copy()
  for b, row in enumerate(mask):
    out[b, paid_position(row, after)] = True
  return out


def token_rewards(score, kl, mask, kl_coef, after):
  out = np.zeros(mask.shape)
  for b, row in enumerate(mask):
    for t in range(len(row)):
      if row[t]:
        out[b, t] = -kl_coef * kl[b, t]
    out[b, paid_position(row, after)] += score[b]
  return out


def gae(reward, value, mask, discount, lam):
  """A_t = Σ_l (γλ)^l δ_{t+l} over the marked positions of a row (Schulman et al. 2016, Eq. 16)."""
  advantage, target = np.zeros(mask.shape), np.zeros(mask.shape)
  for b, row in enumerate(mask):
    at = [t for t in range(len(row)) if row[t]]
    r = [reward[b, t] for t in at]
    v = [value[b, t] for t in at] + [0.0]
    delta = [r[i] + discount * v[i + 1] - v[i] for i in range(len(at))]
    for i, t in enumerate(at):
      advantage[b, t] = sum((discount * lam) ** (j - i) * delta[j] for j in range(i, len(at)))
      target[b, t] = advantage[b, t] + value[b, t]
  return advantage, target


def best_of_n(score, payoff, n):
  """The mean payoff of the highest-scoring member over every subset of size n."""
  best = [max(group, key=lambda i: score[i]) for group in combinations(range(len(score)), n)]
  return sum(payoff[i] for i in best) / len(best)
