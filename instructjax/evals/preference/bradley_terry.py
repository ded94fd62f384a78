"""Bradley and Terry's model of preferences, fitted to all judged pairs; ties count half.

    P(i over j) = sigmoid(s_i - s_j)

The strengths s are in nats of odds and 0 on average. They are finite only if every model was
preferred to every other one directly or through a chain of others (Hunter 2004, "MM algorithms
for generalized Bradley-Terry models"): a model that never lost or never won has none.

Dimensions: N votes, M models, MM ordered pairs of models, S draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from instructjax import intervals
from instructjax.evals.preference import votes
from instructjax.evals.preference.votes import Draws, Vote
from instructjax.intervals import NOTHING, Estimate

# The weight of a small quadratic penalty, in wins. In some draws a model wins or loses every
# comparison; the penalty keeps its strength from growing without end.
RIDGE = 1e-6
# Newton steps at most; a few are enough unless a strength runs away.
STEPS = 200
TOLERANCE = 1e-10  # nats; a longest step below this ends the fit
Real = float | np.floating | np.ndarray


def sigmoid(x: Real) -> np.ndarray:
  """Returns 1 / (1 + exp(-x)), without overflow."""
  return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(x))))


def logit(p: Real) -> np.ndarray:
  """Returns the inverse of `sigmoid`, which is infinite at 0 and 1."""
  with np.errstate(divide="ignore"):
    return np.asarray(np.log(p) - np.log1p(-np.asarray(p)))


def fit(wins: Float[np.ndarray, "*S M M"]) -> Float[np.ndarray, "*S M"]:
  """Returns the likeliest strengths; wins[i, j] counts how often i was preferred to j.

  The log-likelihood is concave. Newton's method maximises it, with no step longer than 1.
  """
  # games[i, j] counts the comparisons of i and j.
  games = wins + np.swapaxes(wins, -1, -2)
  strengths = np.zeros(wins.shape[:-1])
  identity = np.eye(wins.shape[-1])
  for _ in range(STEPS):
    p = sigmoid(strengths[..., :, None] - strengths[..., None, :])
    gradient = (wins - games * p).sum(-1) - RIDGE * strengths
    # The negative Hessian: each game adds p (1 - p) to the diagonal entries of its two models and
    # takes it from the entries between them.
    variance = games * p * (1 - p)
    curvature = identity * variance.sum(-1)[..., None]
    curvature = curvature - variance * (1 - identity)
    curvature = curvature + RIDGE * identity
    step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
    longest = np.abs(step).max(axis=-1, keepdims=True)
    strengths = strengths + step / np.maximum(longest, 1.0)
    if longest.max() < TOLERANCE:
      break
  # Only differences matter; the mean is set to 0.
  return strengths - strengths.mean(axis=-1, keepdims=True)


def is_connected(wins: Float[np.ndarray, "M M"]) -> bool:
  """Returns whether every model beats every other one, directly or through a chain of others."""
  reached: Bool[np.ndarray, "M M"] = (wins > 0) | np.eye(len(wins), dtype=bool)
  # Each product doubles the length of the chains that are followed.
  for _ in range(len(wins).bit_length()):
    steps = reached.astype(int)
    reached = (steps @ steps) > 0
  return bool(reached.all())


def win_rows(models: Sequence[str], judged: Sequence[Vote]) -> Float[np.ndarray, "N MM"]:
  """Returns the wins of each vote as a flat matrix of models."""
  index = {name: i for i, name in enumerate(models)}
  wins = np.zeros((len(judged), len(models), len(models)))
  for matrix, vote in zip(wins, judged, strict=True):
    matrix[index[vote.a], index[vote.b]] = vote.won
    matrix[index[vote.b], index[vote.a]] = 1 - vote.won
  return wins.reshape(len(judged), -1)


def strengths_and_rates(
  models: Sequence[str],
  judged: Sequence[Vote],
  draws: Draws,
  baseline: str,
) -> dict[str, Any]:
  """Returns the strengths, and the rate that they imply against the baseline, with intervals.

  The fields are:
    why        "", or why no finite strengths exist; the estimates are then left out
    n          the number of votes
    strength   {model: estimate}
    rate       {model: estimate}; without the baseline, against the first model
    by         the names of what the intervals are over
  """
  size = len(models)
  rows = win_rows(models, judged)
  # total[i, j] is how often i was preferred to j.
  total = rows.sum(axis=0).reshape(size, size)
  if not is_connected(total):
    why = _why_infinite(models, total)
    return {"why": why, "n": len(judged), "strength": {}, "rate": {}, "by": ""}
  both = draws.labelers is not None
  drawn_wins = votes.sums(draws, judged, rows, both=both).reshape(-1, size, size)
  strengths = fit(total)
  drawn_strengths = fit(drawn_wins)
  # Rates are against this model.
  base = list(models).index(baseline) if baseline in models else 0

  def estimate(point: Real, drawn_points: np.ndarray) -> Estimate:
    return intervals.with_ends(float(point), drawn_points, len(judged), len(draws.prompt))

  strength_estimates: dict[str, Estimate] = {}
  rate_estimates: dict[str, Estimate] = {}
  for i, name in enumerate(models):
    strength_estimates[name] = estimate(strengths[i], drawn_strengths[:, i])
    if i != base:
      rate = sigmoid(strengths[i] - strengths[base])
      drawn_rates = sigmoid(drawn_strengths[:, i] - drawn_strengths[:, base])
      rate_estimates[name] = estimate(rate, drawn_rates)
  return {
    "why": "",
    "n": len(judged),
    "by": "prompt, labeler" if both else "prompt",
    "strength": strength_estimates,
    "rate": rate_estimates,
  }


def _why_infinite(models: Sequence[str], total: Float[np.ndarray, "M M"]) -> str:
  """Names the models that won or lost everything; a whole group may have done so together."""
  extremes = []
  for i, name in enumerate(models):
    never_won = not total[i].any()
    never_lost = not total[:, i].any()
    if never_won or never_lost:
      extremes.append(name)
  subject = ", ".join(extremes) or "one group of models"
  return f"{subject} won or lost every comparison: no finite strength fits"


def consistency(
  a: str,
  b: str,
  baseline: str,
  judged: Sequence[Vote],
  draws: Draws,
) -> dict[str, Any] | None:
  """Compares the direct rate of a against b with the one that their rates against a baseline imply.

    implied = sigmoid(logit(rate of a) - logit(rate of b))

  Returns None where one of the three pairs was not judged, and otherwise:
    direct, implied, difference   estimates
    z                             the difference over its standard error
    agree                         whether 0 lies in the interval of the difference; None where the
                                  implied rate is no number
  """
  direct_votes = votes.between(judged, a, b)
  a_votes = votes.between(judged, a, baseline)
  b_votes = votes.between(judged, b, baseline)
  if not (direct_votes and a_votes and b_votes):
    return None
  direct, drawn_direct = _rate(direct_votes, draws)
  prompts = len({vote.prompt for vote in direct_votes})
  a_rate, drawn_a = _rate(a_votes, draws)
  b_rate, drawn_b = _rate(b_votes, draws)
  # Two models that both won everything have infinite logits, whose difference is no number.
  with np.errstate(invalid="ignore"):
    implied = sigmoid(logit(a_rate) - logit(b_rate))
    drawn_implied = sigmoid(logit(drawn_a) - logit(drawn_b))
  direct_estimate = votes.main_estimate(
    votes.shares(direct_votes, [vote.won for vote in direct_votes], paired=True)
  )
  if not np.isfinite(implied):
    return {
      "direct": direct_estimate,
      "implied": NOTHING,
      "difference": NOTHING,
      "z": float("nan"),
      "agree": None,
    }
  drawn_difference = drawn_direct - drawn_implied
  difference = intervals.with_ends(
    float(direct - implied),
    drawn_difference,
    len(direct_votes),
    prompts,
  )
  standard_error = float(np.nanstd(drawn_difference))
  return {
    "direct": direct_estimate,
    "implied": intervals.with_ends(
      float(implied),
      drawn_implied,
      len(a_votes) + len(b_votes),
      prompts,
    ),
    "difference": difference,
    "z": difference.value / standard_error if standard_error else float("nan"),
    "agree": difference.low <= 0 <= difference.high,
  }


def _rate(group: Sequence[Vote], draws: Draws) -> tuple[float, Float[np.ndarray, " S"]]:
  """Returns the mean outcome of some votes, and its draws (NaN where none of them was drawn)."""
  parts = np.array([[vote.won, 1.0] for vote in group])
  totals = votes.sums(draws, group, parts, both=draws.labelers is not None)
  with np.errstate(invalid="ignore", divide="ignore"):
    drawn_rates = totals[:, 0] / totals[:, 1]
  return float(parts[:, 0].sum() / len(group)), drawn_rates
