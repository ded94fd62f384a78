"""Win rates out of votes: with ties as half and strictly, by slice, with the length of the answers
held equal, and what the order of the answers does to a judge.

Dimensions: N votes, S draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from instructjax import intervals
from instructjax.evals.preference import votes
from instructjax.evals.preference.bradley_terry import RIDGE, sigmoid
from instructjax.evals.preference.votes import Draws, Vote
from instructjax.intervals import NOTHING, Estimate

Shares = Mapping[str, Estimate | None]
AT_ONCE = 4_000_000  # weights of votes in memory
STEPS = 50


def chosen(shares: Shares) -> Estimate:
  """The interval to show: over prompts and labelers where there are several labelers."""
  found = shares["by_both"] or shares["by_prompt"]
  assert found is not None
  return found


def against(
  model: str, baseline: str, judged: Sequence[Vote], draws: Draws
) -> dict[str, Any] | None:
  """All that is said of a model against another; None where nobody compared them.

  rate         win 1, tie 1/2, loss 0; both orders of a pair averaged: {by_prompt, by_both}
  wins ...     strictly: preferred in every order; a tie is everything else that is not lost in every order
  controlled   the rate at equal length, see `controlled`
  flagged      the raw and the controlled rate lie on different sides of 1/2, or only one of them surely on its side
  longer       the mean log ratio of the lengths: .69 says that ours are twice as long
  slices       {group: {value: estimate}} of the rate; `length_ratio` has its quartiles of the ratio of the lengths
  """
  found = votes.of(judged, model, baseline)
  if not found:
    return None
  rate = votes.shares(draws, found, [v.won for v in found])
  strictly = {"wins": 1.0, "ties": 0.5, "losses": 0.0}
  kinds = [
    1.0 if all(x == 1 for x in v.orders) else 0.0 if all(x == 0 for x in v.orders) else 0.5
    for v in found
  ]
  at_equal = controlled(draws, found)
  return {
    "rate": rate,
    **{
      name: votes.share(draws, found, [kind == value for kind in kinds])
      for name, value in strictly.items()
    },
    "controlled": at_equal,
    "flagged": side(chosen(rate)) != side(at_equal["rate"]),
    "longer": votes.share(draws, found, [v.ratio for v in found]),
    "slices": sliced(draws, found),
  }


def side(rate: Estimate) -> str:
  """On which side of 1/2 a rate surely lies."""
  return "above" if rate.low > 0.5 else "below" if rate.high < 0.5 else "undecided"


def order(judged: Sequence[Vote], draws: Draws) -> dict[str, Estimate] | None:
  """What the order did, over all pairs shown in both orders; None where there is none.

  first         how often the answer shown first was preferred, ties as half: 1/2 is no bias
  inconsistent  pairs whose verdict is another one in the other order
  flipped       of these, where each order prefers another model
  tied          verdicts that are ties
  """
  both = [v for v in judged if len(v.orders) == 2]
  if not both:
    return None
  first, second = np.array([v.orders for v in both]).T
  say = lambda values: votes.share(draws, both, values)
  return {
    "first": say((first + 1 - second) / 2),
    "inconsistent": say(first != second),
    "flipped": say(abs(first - second) == 1),
    "tied": say(((first == 0.5) + 0.0 + (second == 0.5)) / 2),
  }


def sliced(draws: Draws, found: Sequence[Vote]) -> dict[str, dict[str, Estimate]]:
  """The rate in each slice of the prompts, and in each quartile of the ratio of the lengths."""
  ratios = quartiles([v.ratio for v in found])
  rows = [
    dict(v.slices) | ({"length_ratio": at} if at else {})
    for v, at in zip(found, ratios, strict=True)
  ]
  slices: dict[str, dict[str, Estimate]] = {}
  for group, value in sorted({pair for row in rows for pair in row.items()}):
    inside = [v for v, row in zip(found, rows, strict=True) if row.get(group) == value]
    slices.setdefault(group, {})[value] = chosen(
      votes.shares(draws, inside, [v.won for v in inside])
    )
  return slices


def quartiles(values: Sequence[float]) -> list[str]:
  """The quartile of each value, "1 of 4" is the lowest; "" for all where they are all the same."""
  if len(set(values)) < 2:
    return [""] * len(values)
  ends = np.quantile(values, [0.25, 0.5, 0.75])
  return [f"{1 + int((value > ends).sum())} of 4" for value in values]


def controlled(draws: Draws, found: Sequence[Vote]) -> dict[str, Estimate]:
  """The rate at equal length, by the logistic regression of what was won on the log ratio z of the
  lengths.

      P(won) = sigmoid(b0 + b1 z / sd(z)),    rate = sigmoid(b0)

  `slope` is b1: odds by one standard deviation of the ratio, in nats.  z is scaled, not centred:
  at 0 both are equally long.
  """
  z, won = np.array([v.ratio for v in found]), np.array([v.won for v in found])
  spread = z.std()
  if not spread:
    return {"rate": NOTHING, "slope": NOTHING}
  features = np.stack([np.ones_like(z), z / spread], axis=1)
  both, size = draws.labelers is not None, max(1, AT_ONCE // len(found))
  point = logistic(features, won, np.ones((1, len(found))))[0]
  drawn = np.concatenate(
    [
      logistic(features, won, votes.weights(draws, found, slice(at, at + size), both=both))
      for at in range(0, len(draws.prompts), size)
    ]
  )
  estimate = lambda value, each: intervals.with_ends(float(value), each, len(found))
  return {
    "rate": estimate(sigmoid(point[0]), sigmoid(drawn[:, 0])),
    "slope": estimate(point[1], drawn[:, 1]),
  }


def logistic(
  features: Float[np.ndarray, "N 2"],
  won: Float[np.ndarray, " N"],
  weights: Float[np.ndarray, "S N"],
) -> Float[np.ndarray, "S 2"]:
  """Coefficients of a logistic regression under each row of weights, by Newton's method, no step
  longer than 1; what was won lies between 0 and 1.  Where wins and losses are set apart they end
  large, not infinite.
  """
  found = np.zeros((len(weights), 2))
  for _ in range(STEPS):
    p = sigmoid(found @ features.T)
    gradient = (weights * (won - p)) @ features - RIDGE * found
    curvature = np.einsum(
      "sn,ni,nj->sij", weights * p * (1 - p), features, features, optimize=True
    ) + RIDGE * np.eye(2)
    step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
    longest = np.abs(step).max(axis=1, keepdims=True)
    found = found + step / np.maximum(longest, 1.0)
    if longest.max() < 1e-9:
      break
  return found
