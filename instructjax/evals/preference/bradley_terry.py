"""Bradley and Terry's model of who is preferred to whom, fitted to all judged pairs; ties count
half for either side.

    P(i over j) = sigmoid(s_i - s_j)        (strengths in nats of odds, 0 on average)

Hunter (2004), "MM algorithms for generalized Bradley-Terry models", has the condition under
which strengths are finite: a model that never lost or never won has none.  Dimensions: M models,
MM pairs of them, S draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from instructjax import intervals
from instructjax.evals.preference import votes
from instructjax.evals.preference.votes import Draws, Vote
from instructjax.intervals import NOTHING

# Of a win: keeps the strengths of draws in which a model won or lost everything from growing
# without end
RIDGE = 1e-6
STEPS = 200
Real = float | np.floating | np.ndarray


def sigmoid(x: Real) -> np.ndarray:
  """1 / (1 + exp(-x)), without overflow."""
  return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(x))))


def logit(p: Real) -> np.ndarray:
  """The inverse of `sigmoid`; infinite at 0 and 1."""
  with np.errstate(divide="ignore"):
    return np.asarray(np.log(p) - np.log1p(-np.asarray(p)))


def fit(wins: Float[np.ndarray, "*S M M"]) -> Float[np.ndarray, "*S M"]:
  """The likeliest strengths; wins[i, j] counts how often i was preferred to j.

  By Newton's method on the concave log-likelihood, no step longer than 1.
  """
  size = wins.shape[-1]
  games, strengths, eye = wins + np.swapaxes(wins, -1, -2), np.zeros(wins.shape[:-1]), np.eye(size)
  for _ in range(STEPS):
    p = sigmoid(strengths[..., :, None] - strengths[..., None, :])
    gradient = (wins - games * p).sum(-1) - RIDGE * strengths
    spread = games * p * (1 - p)
    curvature = eye * spread.sum(-1)[..., None] - spread * (1 - eye) + RIDGE * eye
    step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
    longest = np.abs(step).max(axis=-1, keepdims=True)
    strengths = strengths + step / np.maximum(longest, 1.0)
    if longest.max() < 1e-10:
      break
  return strengths - strengths.mean(axis=-1, keepdims=True)


def connected(wins: Float[np.ndarray, "M M"]) -> bool:
  """Whether every model beats every other one directly or through others: only then are all
  strengths finite.
  """
  reached: Bool[np.ndarray, "M M"] = (wins > 0) | np.eye(len(wins), dtype=bool)
  for _ in range(len(wins).bit_length()):
    reached = (reached.astype(int) @ reached.astype(int)) > 0
  return bool(reached.all())


def counts(models: Sequence[str], judged: Sequence[Vote]) -> Float[np.ndarray, "N MM"]:
  """The wins of each vote as a row."""
  place = {name: at for at, name in enumerate(models)}
  found = np.zeros((len(judged), len(models), len(models)))
  for row, vote in zip(found, judged, strict=True):
    row[place[vote.a], place[vote.b]] = vote.won
    row[place[vote.b], place[vote.a]] = 1 - vote.won
  return found.reshape(len(judged), -1)


def fitted(
  models: Sequence[str], judged: Sequence[Vote], draws: Draws, against: str
) -> dict[str, Any]:
  """Strengths, and the implied rate of each model against one of them, with intervals; empty where
  they are not finite.

  {"why": "" or why there are none, "n": votes, "strength": {model: estimate}, "rate": {model:
  estimate}, "by": what was drawn}
  """
  size, rows, both = len(models), counts(models, judged), draws.labelers is not None
  total = rows.sum(axis=0).reshape(size, size)
  if not connected(total):
    lone = [name for at, name in enumerate(models) if not total[at].any() or not total[:, at].any()]
    why = f"{', '.join(lone) or 'one group of models'} won or lost every comparison: no finite strength fits"
    return {"why": why, "n": len(judged), "strength": {}, "rate": {}, "by": ""}
  strengths = fit(total)
  drawn = fit(votes.sums(draws, judged, rows, both=both).reshape(-1, size, size))
  base = list(models).index(against) if against in models else 0
  estimate = lambda point, each: intervals.with_ends(float(point), each, len(judged))
  rate = lambda s, at: sigmoid(s[..., at] - s[..., base])
  return {
    "why": "",
    "n": len(judged),
    "by": "prompt, labeler" if both else "prompt",
    "strength": {name: estimate(strengths[i], drawn[:, i]) for i, name in enumerate(models)},
    "rate": {
      name: estimate(rate(strengths, i), rate(drawn, i))
      for i, name in enumerate(models)
      if i != base
    },
  }


def consistency(
  a: str, b: str, baseline: str, judged: Sequence[Vote], draws: Draws
) -> dict[str, Any] | None:
  """Does a's direct rate against b agree with what their rates against the baseline imply?  None
  where either is not judged.

    implied = sigmoid(logit(rate of a) - logit(rate of b))

  {"direct", "implied", "difference": estimates, "z": the difference over its standard error,
  "agree": 0 lies in its interval}
  """
  groups = [votes.of(judged, *pair) for pair in ((a, b), (a, baseline), (b, baseline))]
  if not all(groups):
    return None
  points, drawn = [], []
  for group in groups:
    parts = np.array([[vote.won, 1.0] for vote in group])
    totals = votes.sums(draws, group, parts, both=draws.labelers is not None)
    points.append(parts[:, 0].sum() / len(group))
    with np.errstate(invalid="ignore", divide="ignore"):
      drawn.append(totals[:, 0] / totals[:, 1])
  with np.errstate(invalid="ignore"):
    implied = [sigmoid(logit(two[1]) - logit(two[2])) for two in (points, drawn)]
  apart = [two[0] - one for two, one in zip((points, drawn), implied, strict=True)]
  if not np.isfinite(implied[0]):
    return {
      "direct": votes.share(draws, groups[0], [v.won for v in groups[0]]),
      "implied": NOTHING,
      "difference": NOTHING,
      "z": float("nan"),
      "agree": None,
    }
  spread = float(np.nanstd(apart[1]))
  difference = intervals.with_ends(float(apart[0]), apart[1], len(groups[0]))
  return {
    "direct": intervals.with_ends(float(points[0]), drawn[0], len(groups[0])),
    "implied": intervals.with_ends(float(implied[0]), implied[1], len(groups[1]) + len(groups[2])),
    "difference": difference,
    "z": difference.value / spread if spread else float("nan"),
    "agree": difference.low <= 0 <= difference.high,
  }
