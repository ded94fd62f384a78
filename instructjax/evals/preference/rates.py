"""Win rates out of votes: with ties as half, strictly, by slice and at equal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructjax.evals.preference import length, votes
from instructjax.evals.preference.votes import Draws, Vote
from instructjax.intervals import Estimate


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
  controlled   the rate at equal length, see `length.rate_at_equal_length`; `difficulty_from` is
               the number of other models whose votes say how hard the prompts are
  flagged      the raw and the controlled rate lie on different sides of 1/2, or only one of them
               lies surely on its side; False where there is no controlled rate
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

  at_equal_length = controlled(model, baseline, judged, draws)
  equal = at_equal_length["rate"]
  return {
    "rate": rate,
    "wins": share_of(1.0),
    "ties": share_of(0.5),
    "losses": share_of(0.0),
    "controlled": at_equal_length,
    "flagged": equal.n > 0 and _side(votes.main_estimate(rate)) != _side(equal),
    "longer": votes.share(pair_votes, [vote.ratio for vote in pair_votes]),
    "slices": rates_by_slice(pair_votes),
  }


def controlled(
  model: str,
  baseline: str,
  judged: Sequence[Vote],
  draws: Draws,
) -> dict[str, Any]:
  """Returns the rate of a model at equal length, with difficulties from the votes on the others."""
  pair_votes = votes.between(judged, model, baseline)
  easiness, models = length.difficulties(model, baseline, judged)
  difficulty = None
  if models:
    # A prompt on which nobody else was judged is as hard as the mean.
    difficulty = np.array([easiness.get(vote.prompt, 0.0) for vote in pair_votes])
  rate = length.rate_at_equal_length(draws, pair_votes, difficulty)
  return rate | {"difficulty_from": models}


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
