"""The win rate at equal length of the answers, after AlpacaEval 2 (Dubois et al. 2024).

Each model is fitted alone against the baseline:

    P(won) = sigmoid(θ + φ tanh(Δ / sd(Δ)) + ψ difficulty)

Δ is the length of our answer less that of the baseline's, in characters; the tanh keeps a few very
long answers from ruling the fit. The rate at equal length is the mean of sigmoid(θ + ψ difficulty)
over the prompts (Dubois et al. 2024, "Length-controlled AlpacaEval", section 3). The coefficients
have an L1 penalty, whose strength is chosen among ten by cross-validation in five parts. Three
things differ from AlpacaEval 2:

  difficulty   AlpacaEval fits a number for each of its 805 instructions from all models of its
               leaderboard. Here it is fitted from the other models that were judged against the
               same baseline (`difficulties`); the model itself has no part in it. Without other
               models the term is left out, and the rate is less right: where a model writes least
               on the hard prompts, the slope takes the blame for them.
  prior        AlpacaEval adds, with a small weight, verdicts on answers of its baseline that were
               made longer and shorter, which other prompts have not either. Without them nothing
               ties φ where both answers hardly ever have a like length, so that there is no rate
               without support, see `SUPPORT`.
  penalty      θ has none. With few prompts the strongest penalty would be chosen and give 50 %;
               here it gives the raw rate.

Dimensions: N votes, P prompts, K features, S draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from instructjax import intervals
from instructjax.evals.preference import votes
from instructjax.evals.preference.bradley_terry import RIDGE, sigmoid
from instructjax.evals.preference.votes import Draws, Vote
from instructjax.intervals import NOTHING, Estimate

LIKE = 1.5  # the factor within which two lengths are alike
SUPPORT = 0.15  # the least share of pairs of like length that supports a rate at equal length
# The standard deviation of the difficulties in nats of odds, as that of AlpacaEval's instructions.
SPREAD = 1.7
# The coefficients of the other models are held by a little of this, should one win or lose always.
HOLD = 0.05
ROUNDS = 25  # of the fit of the difficulties
# The strengths of the likelihood beside the penalty: from 50 % to a fit without a penalty.
STRENGTHS = np.logspace(-4, 4, 10)
PARTS = 5  # of the cross-validation
STEPS = 50  # Newton steps at most
SWEEPS = 20  # over the coefficients, in each of them
TOLERANCE = 1e-8  # a longest step below this ends the fit
# The weights of votes that are in memory at a time; at 8 bytes each they take 32 MB.
WEIGHTS_AT_ONCE = 4_000_000


def rate_at_equal_length(
  draws: Draws,
  pair_votes: Sequence[Vote],
  difficulty: Float[np.ndarray, " N"] | None = None,
) -> dict[str, Any]:
  """Returns the rate at equal length; `difficulty` has a number for the prompt of each vote.

  The fields are:
    rate      the estimate; NaN where there is none
    slope     φ, in nats of odds for a tanh of 1
    support   the share of pairs whose lengths are within a factor of `LIKE`
    why       "", or why there is no rate
  """
  won = np.array([vote.won for vote in pair_votes])
  characters = np.array([float(vote.longer_by) for vote in pair_votes])
  alike = np.array([abs(vote.ratio) <= math.log(LIKE) for vote in pair_votes])
  support = float(alike.mean())
  raw = votes.main_estimate(votes.shares(pair_votes, won, paired=True))
  if not characters.any():
    # All answers are equally long as it is.
    return {"rate": raw, "slope": NOTHING, "support": support, "why": ""}
  why = ""
  deviation = float(characters.std(ddof=1)) if len(characters) > 1 else 0.0
  if support < SUPPORT:
    why = (
      f"{100 * support:.0f} % of the pairs have answers whose lengths are within a factor of "
      f"{LIKE}; at least {100 * SUPPORT:.0f} % are needed"
    )
  elif len({vote.prompt for vote in pair_votes}) < PARTS:
    why = f"there are fewer than {PARTS} prompts"
  elif not deviation:
    why = "all answers are longer, or shorter, than the others by the same length"
  if why:
    return {"rate": NOTHING, "slope": NOTHING, "support": support, "why": why}

  columns = [np.ones_like(won), np.tanh(characters / deviation)]
  equal = [np.ones_like(won), np.zeros_like(won)]
  if difficulty is not None:
    columns.append(difficulty)
    equal.append(difficulty)
  features = np.stack(columns, axis=1)
  at_equal_length = np.stack(equal, axis=1)
  strength = _chosen_strength(features, won, [vote.prompt for vote in pair_votes])
  everything = np.ones((1, len(won)))
  point = fit(features, won, everything, np.array([strength]))[0]
  rate = float(sigmoid(at_equal_length @ point).mean())
  # The draws have next to no penalty: a slope that was shrunk is uncertain all the same.
  resampled = _drawn_coefficients(draws, pair_votes, features, won)
  drawn_rates = sigmoid(resampled @ at_equal_length.T).mean(axis=1)
  prompts = raw.clusters
  return {
    "rate": _with_ends(rate, drawn_rates, draws, pair_votes, raw),
    "slope": intervals.with_ends(float(point[1]), resampled[:, 1], len(won), prompts),
    "support": support,
    "why": "",
  }


def difficulties(
  model: str,
  baseline: str,
  judged: Sequence[Vote],
) -> tuple[dict[str, float], int]:
  """Returns how easy each prompt is to win against the baseline, and how many models say so.

  It is the d of a fit to the votes on all other models j against the baseline,

      P(j won on prompt i) = sigmoid(θ_j + φ_j tanh(Δ_ij / sd(Δ_j)) + d_i),  d ~ N(0, SPREAD²),

  by turns of Newton steps for the models and for the prompts. Prompts without a vote on another
  model are left out.
  """
  opponents = dict.fromkeys(vote.b if vote.a == baseline else vote.a for vote in judged)
  fitted = []
  for other in opponents:
    votes_of_other = votes.between(judged, other, baseline)
    if other not in (model, baseline) and votes_of_other:
      fitted.append(votes_of_other)
  numbers: dict[str, int] = {}
  rows = []
  for votes_of_other in fitted:
    longer = np.array([float(vote.longer_by) for vote in votes_of_other])
    features = np.stack([np.ones_like(longer), np.tanh(longer / (longer.std() or 1.0))], axis=1)
    won = np.array([vote.won for vote in votes_of_other])
    prompts = [numbers.setdefault(vote.prompt, len(numbers)) for vote in votes_of_other]
    rows.append((features, won, np.array(prompts)))
  difficulty = np.zeros(len(numbers))
  coefficients = np.zeros((len(rows), 2))
  for _ in range(ROUNDS):
    gradient = -difficulty / SPREAD**2
    curvature = np.full(len(numbers), 1 / SPREAD**2)
    for row, (features, won, prompts) in enumerate(rows):
      p = sigmoid(features @ coefficients[row] + difficulty[prompts])
      bend = (features * (p * (1 - p))[:, None]).T @ features + HOLD * np.eye(2)
      slope = features.T @ (won - p) - HOLD * coefficients[row]
      coefficients[row] += np.clip(np.linalg.solve(bend, slope), -1, 1)
      p = sigmoid(features @ coefficients[row] + difficulty[prompts])
      np.add.at(gradient, prompts, won - p)
      np.add.at(curvature, prompts, p * (1 - p))
    difficulty += np.clip(gradient / curvature, -1, 1)
    # The level belongs to the models.
    difficulty -= difficulty.mean() if len(numbers) else 0.0
  return dict(zip(numbers, difficulty.tolist(), strict=True)), len(rows)


def _with_ends(
  rate: float,
  drawn_rates: Float[np.ndarray, " S"],
  draws: Draws,
  pair_votes: Sequence[Vote],
  raw: Estimate,
) -> Estimate:
  """Returns the rate with a score interval, whose width is that of the draws beside the raw rate's.

  The percentiles of the draws themselves would have no width where one model always wins.
  """
  both = draws.labelers is not None
  parts = np.array([[vote.won, 1.0] for vote in pair_votes])
  sums = votes.sums(draws, pair_votes, parts, both=both)
  drawn_raw = sums[sums[:, 1] > 0]
  drawn_raw = drawn_raw[:, 0] / drawn_raw[:, 1]
  effective = intervals.effective_items(raw)
  finite = drawn_rates[np.isfinite(drawn_rates)]
  # Each variance is taken beside that of one item with the same rate.
  loss = _relative_variance(finite, rate) / max(_relative_variance(drawn_raw, raw.value), 1e-12)
  low, high = intervals.wilson(rate, effective / max(loss, 1.0))
  return Estimate(rate, low, high, raw.n, raw.clusters)


def _relative_variance(draws: Float[np.ndarray, " S"], rate: float) -> float:
  return float(draws.var()) / max(rate * (1 - rate), 1e-3)


def _chosen_strength(
  features: Float[np.ndarray, "N K"],
  won: Float[np.ndarray, " N"],
  prompts: Sequence[str],
) -> float:
  """Returns the strength with the least loss on the parts that were left out of the fit.

  The votes on one prompt are in the same part.
  """
  numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
  part_of_vote = np.array([numbers[prompt] % PARTS for prompt in prompts])
  kept = part_of_vote != np.arange(PARTS)[:, None]
  # A row for each strength and part.
  weights = np.tile(kept.astype(float), (len(STRENGTHS), 1))
  strengths = np.repeat(STRENGTHS, PARTS)
  p = np.clip(sigmoid(fit(features, won, weights, strengths) @ features.T), 1e-15, 1 - 1e-15)
  losses = -(won * np.log(p) + (1 - won) * np.log1p(-p))
  left_out = 1 - weights
  mean_losses = (losses * left_out).sum(axis=1) / left_out.sum(axis=1)
  by_strength = mean_losses.reshape(len(STRENGTHS), PARTS).mean(axis=1)
  return float(STRENGTHS[by_strength.argmin()])


def _drawn_coefficients(
  draws: Draws,
  pair_votes: Sequence[Vote],
  features: Float[np.ndarray, "N K"],
  won: Float[np.ndarray, " N"],
) -> Float[np.ndarray, "S K"]:
  """Returns the coefficients of each draw, in parts, so that their weights fit in memory."""
  both = draws.labelers is not None
  part_size = max(1, WEIGHTS_AT_ONCE // len(won))
  parts = []
  for start in range(0, len(draws.prompts), part_size):
    part = slice(start, start + part_size)
    weights = votes.weights(draws, pair_votes, part, both=both)
    parts.append(fit(features, won, weights, np.full(len(weights), STRENGTHS[-1])))
  return np.concatenate(parts)


def fit(
  features: Float[np.ndarray, "N K"],
  won: Float[np.ndarray, " N"],
  weights: Float[np.ndarray, "S N"],
  strengths: Float[np.ndarray, " S"],
) -> Float[np.ndarray, "S K"]:
  """Returns the coefficients of penalised logistic regressions, one for each row of weights.

      max over β of  C sum_n w_n log-likelihood_n - |β_2| - ... - |β_K|

  C is the strength, and the first coefficient has no penalty. The outcomes `won` lie between 0 and
  1. Each Newton step minimises its quadratic model and the penalty, coefficient by coefficient
  (Friedman, Hastie and Tibshirani 2010, "Regularization paths for generalized linear models via
  coordinate descent"); no coefficient goes by more than 1.
  """
  size = features.shape[1]
  coefficients = np.zeros((len(weights), size))
  penalty = np.ones((len(weights), size)) / strengths[:, None]
  penalty[:, 0] = 0.0
  for _ in range(STEPS):
    # [S, N]: each row of weights has coefficients of its own.
    p = sigmoid(coefficients @ features.T)
    gradient = (weights * (won - p)) @ features - RIDGE * coefficients
    variance = weights * p * (1 - p)
    curvature = np.einsum("sn,ni,nj->sij", variance, features, features, optimize=True)
    curvature = curvature + RIDGE * np.eye(size)
    step = np.zeros_like(coefficients)
    for _ in range(SWEEPS):
      for k in range(size):
        # Where the quadratic model has its maximum in this coefficient, the others held.
        slope = gradient[:, k] - (curvature[:, k] * step).sum(axis=1)
        bend = curvature[:, k, k]
        target = bend * (coefficients[:, k] + step[:, k]) + slope
        shrunk = np.sign(target) * np.maximum(np.abs(target) - penalty[:, k], 0.0)
        step[:, k] = shrunk / bend - coefficients[:, k]
    longest = np.abs(step).max(axis=1, keepdims=True)
    coefficients = coefficients + step / np.maximum(longest, 1.0)
    if longest.max() < TOLERANCE:
      break
  return coefficients
