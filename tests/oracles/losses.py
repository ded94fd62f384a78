"""The losses as loops over rows, tokens and pairs, with means formed at the end."""

import math
from itertools import combinations

import numpy as np


def log_softmax(row):
  top = max(row)
  total = sum(math.exp(x - top) for x in row)
  return [x - top - math.log(total) for x in row]


def token_logp(logits, tokens):
  return np.array(
    [[log_softmax(row)[i] for row, i in zip(rows, ids)] for rows, ids in zip(logits, tokens)]
  )


def entropy(logits):
  return np.array(
    [[-sum(math.exp(lp) * lp for lp in log_softmax(row)) for row in rows] for rows in logits]
  )


def log_sigmoid(x):
  return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def marked(mask):
  return [(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[b, t]]


def mean_over_tokens(term, mask):
  terms = [term(b, t) for b, t in marked(mask)]
  return sum(terms) / len(terms)


def mean_over_sequences(term, mask):
  rows = [[term(b, t) for t in range(mask.shape[1]) if mask[b, t]] for b in range(mask.shape[0])]
  means = [sum(row) / len(row) for row in rows if row]
  return sum(means) / len(means)


def pairs(rank):
  """(winner, loser) of every pair that is neither tied nor padded."""
  order = []
  for i, j in combinations(range(len(rank)), 2):
    if rank[i] > 0 and rank[j] > 0 and rank[i] != rank[j]:
      order.append((i, j) if rank[i] < rank[j] else (j, i))
  return order


def ranking(score, rank, normaliser="remaining", margin=0.0):
  per_prompt = []
  for r, k in zip(score, rank):
    won = pairs(k)
    count = len(won) if normaliser == "remaining" else math.comb(sum(x > 0 for x in k), 2)
    if count:
      per_prompt.append(-sum(log_sigmoid(r[i] - r[j] - margin) for i, j in won) / count)
  return sum(per_prompt) / len(per_prompt)


def centering(score, rank):
  per_prompt = [
    sum((r[i] + r[j]) ** 2 for i, j in pairs(k)) / len(pairs(k))
    for r, k in zip(score, rank)
    if pairs(k)
  ]
  return sum(per_prompt) / len(per_prompt)


def best_of_k(score, rank):
  terms = []
  for r, k in zip(score, rank):
    real = [i for i in range(len(k)) if k[i] > 0]
    best = [i for i in real if k[i] == 1]
    if best:
      logp = dict(zip(real, log_softmax([r[i] for i in real])))
      terms.append(-sum(logp[i] for i in best) / len(best))
  return sum(terms) / len(terms)


def ranking_accuracy(score, rank):
  right, count = [], []
  for r, k in zip(score, rank):
    won = pairs(k)
    right.append(sum(1.0 if r[i] > r[j] else 0.5 if r[i] == r[j] else 0.0 for i, j in won))
    count.append(float(len(won)))
  return np.array(right), np.array(count)


def policy_term(logp, old_logp, advantage, clip):
  def term(b, t):
    ratio = math.exp(logp[b, t] - old_logp[b, t])
    kept = min(max(ratio, 1 - clip), 1 + clip)
    return max(-advantage[b, t] * ratio, -advantage[b, t] * kept)

  return term


def value_term(value, old_value, target, clip):
  def term(b, t):
    v, old, goal = value[b, t], old_value[b, t], target[b, t]
    error = (v - goal) ** 2
    if clip is not None:
      error = max(error, (min(max(v, old - clip), old + clip) - goal) ** 2)
    return 0.5 * error

  return term


def policy_metrics(logp, old_logp, advantage, mask, clip):
  at = marked(mask)
  ratios = [math.exp(logp[i] - old_logp[i]) for i in at]
  mean = sum(ratios) / len(at)
  bound = 0
  for i, ratio in zip(at, ratios):
    bound += (ratio > 1 + clip and advantage[i] > 0) or (ratio < 1 - clip and advantage[i] < 0)
  return {
    "loss/policy_avg": mean_over_tokens(policy_term(logp, old_logp, advantage, clip), mask),
    "policy/approxkl_avg": sum((logp[i] - old_logp[i]) ** 2 for i in at) / len(at) / 2,
    "policy/clipfrac_avg": bound / len(at),
    "policy/ratio_max": max(ratios),
    "policy/ratio_min": min(ratios),
    "val/ratio": mean,
    "val/ratio_var": sum((x - mean) ** 2 for x in ratios) / len(at),
  }


def value_metrics(value, old_value, target, mask, clip):
  at = marked(mask)
  v, g = np.array([value[i] for i in at]), np.array([target[i] for i in at])
  bound = 0
  for i in at:
    kept = min(max(value[i], old_value[i] - clip), old_value[i] + clip)
    bound += abs(kept - target[i]) > abs(value[i] - target[i])
  return {
    "loss/value_avg": mean_over_tokens(value_term(value, old_value, target, clip), mask),
    "val/clipfrac_avg": bound / len(at),
    "val/mean": v.mean(),
    "val/target_mean": g.mean(),
    "val/explained_var": 1 - np.var(g - v) / np.var(g),
  }


def dpo(logp_chosen, logp_rejected, ref_chosen, ref_rejected, beta):
  rows = zip(logp_chosen, logp_rejected, ref_chosen, ref_rejected)
  terms = [-log_sigmoid(beta * ((w - rw) - (x - rx))) for w, x, rw, rx in rows]
  return sum(terms) / len(terms)
