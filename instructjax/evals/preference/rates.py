"""Win rates out of votes: with ties as half, strictly, by slice and at equal length of the answers.

Dimensions: N votes, S draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from instructjax import intervals
from instructjax.evals.preference import votes
from instructjax.evals.preference.bradley_terry import RIDGE, sigmoid
from instructjax.evals.preference.votes import Draws, Vote
from instructjax.intervals import NOTHING, Estimate

# The weights of votes that are in memory at a time; at 8 bytes each they take 32 MB.
WEIGHTS_AT_ONCE = 4_000_000
STEPS = 50  # Newton steps at most
TOLERANCE = 1e-9  # a longest step below this ends the fit


def rates_against(
  model: str,
  baseline: str,
  judged: Sequence[Vote],
  draws: Draws,
) -> dict[str, Any] | None:
  """Returns all numbers about a model against another one; None where nobody compared them.

  rate         win 1, tie 1/2, loss 0, with both orders of a pair averaged: {by_prompt, by_both}
  wins ...     strict shares: a win is preferred in every order, a loss is preferred in none, and
               everything else is a tie
  controlled   the rate at equal length, see `rate_at_equal_length`
  flagged      the raw and the controlled rate lie on different sides of 1/2, or only one of them
               lies surely on its side
  longer       the mean log ratio of the lengths: 0.69 says that ours are twice as long
  slices       {group: {value: estimate}} of the rate; `length_ratio` has its quartiles of the
               ratio of the lengths
  """
  pair_votes = votes.between(judged, model, baseline)
  if not pair_votes:
    return None
  rate = votes.shares(pair_votes, [vote.won for vote in pair_votes], paired=True)
  outcomes = [_strict_outcome(vote) for vote in pair_votes]

  def share_of(outcome: float) -> Estimate:
    return votes.share(pair_votes, [each == outcome for each in outcomes])

  controlled = rate_at_equal_length(draws, pair_votes)
  return {
    "rate": rate,
    "wins": share_of(1.0),
    "ties": share_of(0.5),
    "losses": share_of(0.0),
    "controlled": controlled,
    "flagged": _side(votes.main_estimate(rate)) != _side(controlled["rate"]),
    "longer": votes.share(pair_votes, [vote.ratio for vote in pair_votes]),
    "slices": rates_by_slice(pair_votes),
  }


def _strict_outcome(vote: Vote) -> float:
  """Returns 1 or 0 where all orders say so, and 0.5 otherwise."""
  if all(outcome == 1 for outcome in vote.orders):
    return 1.0
  if all(outcome == 0 for outcome in vote.orders):
    return 0.0
  return 0.5


def _side(rate: Estimate) -> str:
  """Returns the side of 1/2 on which the whole interval of a rate lies."""
  if rate.low > 0.5:
    return "above"
  if rate.high < 0.5:
    return "below"
  return "undecided"


def order_effect(judged: Sequence[Vote]) -> dict[str, Estimate] | None:
  """Returns what the order of the answers did, over all pairs that were shown in both orders.

  first         how often the answer shown first was preferred, ties as half: 1/2 is no bias
  inconsistent  pairs whose verdict is another one in the other order
  flipped       of all pairs, those where each order prefers another model
  tied          verdicts that are ties

  There is None where no pair was shown in both orders (scores, people).
  """
  both = [vote for vote in judged if len(vote.orders) == 2]
  if not both:
    return None
  # Outcomes of model `a`, with its answer shown first and shown second.
  first, second = np.array([vote.orders for vote in both]).T

  def share(values: np.ndarray) -> Estimate:
    return votes.share(both, values)

  return {
    "first": share((first + 1 - second) / 2),
    "inconsistent": share(first != second),
    "flipped": share(abs(first - second) == 1),
    "tied": share(((first == 0.5).astype(float) + (second == 0.5)) / 2),
  }


def rates_by_slice(pair_votes: Sequence[Vote]) -> dict[str, dict[str, Estimate]]:
  """Returns the rate in each slice of the prompts, and in each quartile of the length ratio."""
  # {group: {value: the votes in this slice}}
  members: dict[str, dict[str, list[Vote]]] = {}
  # A judge that likes long answers shows in the quartiles of the ratio.
  ratio_quartiles = quartiles([vote.ratio for vote in pair_votes])
  for vote, quartile in zip(pair_votes, ratio_quartiles, strict=True):
    slices = dict(vote.slices)
    if quartile:
      slices["length_ratio"] = quartile
    for group, value in slices.items():
      members.setdefault(group, {}).setdefault(value, []).append(vote)
  rates: dict[str, dict[str, Estimate]] = {}
  for group in sorted(members):
    rates[group] = {}
    for value in sorted(members[group]):
      inside = members[group][value]
      shares = votes.shares(inside, [vote.won for vote in inside], paired=True)
      rates[group][value] = votes.main_estimate(shares)
  return rates


def quartiles(values: Sequence[float]) -> list[str]:
  """Returns the quartile of each value, "1 of 4" for the lowest; "" for all if all are equal."""
  if len(set(values)) < 2:
    return [""] * len(values)
  # Three ends between four quarters.
  ends = np.quantile(values, [0.25, 0.5, 0.75])
  names = []
  for value in values:
    ends_below = int((value > ends).sum())
    names.append(f"{1 + ends_below} of 4")
  return names


def rate_at_equal_length(draws: Draws, pair_votes: Sequence[Vote]) -> dict[str, Estimate]:
  """Returns the rate at equal length of the answers, by a logistic regression.

      P(won) = sigmoid(b0 + b1 z / sd(z)),    rate = sigmoid(b0)

  z is the log ratio of the lengths. It is scaled but not centred, because both answers are
  equally long at z = 0. `slope` is b1, in nats of odds for one standard deviation of z.
  """
  z = np.array([vote.ratio for vote in pair_votes])
  won = np.array([vote.won for vote in pair_votes])
  deviation = z.std()
  if not deviation:
    return {"rate": NOTHING, "slope": NOTHING}
  features = np.stack([np.ones_like(z), z / deviation], axis=1)
  point = logistic_coefficients(features, won, np.ones((1, len(won))))[0]
  # The draws are fitted in parts, so that their weights fit in memory.
  both = draws.labelers is not None
  part_size = max(1, WEIGHTS_AT_ONCE // len(won))
  parts = []
  for start in range(0, len(draws.prompts), part_size):
    part = slice(start, start + part_size)
    weights = votes.weights(draws, pair_votes, part, both=both)
    parts.append(logistic_coefficients(features, won, weights))
  drawn_coefficients = np.concatenate(parts)
  rate = float(sigmoid(point[0]))
  return {
    "rate": intervals.with_ends(rate, sigmoid(drawn_coefficients[:, 0]), len(won), len(won)),
    "slope": intervals.with_ends(float(point[1]), drawn_coefficients[:, 1], len(won), len(won)),
  }


def logistic_coefficients(
  features: Float[np.ndarray, "N 2"],
  won: Float[np.ndarray, " N"],
  weights: Float[np.ndarray, "S N"],
) -> Float[np.ndarray, "S 2"]:
  """Returns the coefficients of a logistic regression under each row of weights.

  The outcomes `won` lie between 0 and 1. Newton's method finds the maximum, with no step longer
  than 1. Where a length separates wins from losses the coefficients get large, but not infinite.
  """
  coefficients = np.zeros((len(weights), 2))
  for _ in range(STEPS):
    # [S, N]: each draw has coefficients of its own.
    p = sigmoid(coefficients @ features.T)
    gradient = (weights * (won - p)) @ features - RIDGE * coefficients
    variance = weights * p * (1 - p)
    curvature = np.einsum("sn,ni,nj->sij", variance, features, features, optimize=True)
    curvature = curvature + RIDGE * np.eye(2)
    step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
    longest = np.abs(step).max(axis=1, keepdims=True)
    coefficients = coefficients + step / np.maximum(longest, 1.0)
    if longest.max() < TOLERANCE:
      break
  return coefficients
