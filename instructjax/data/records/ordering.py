"""How well scores order comparisons as their labelers did: accuracy, its parts, and calibration.

A pair of completions counts where its ranks differ. Under the model of the loss the difference of
two scores is the log-odds with which a labeler prefers the first (Ouyang et al. 2022, Eq. 1), and
that is what the calibration checks.

Intervals are 95 % intervals over prompts, because the pairs of one prompt are not independent.
What rests on no pairs is unknown: its value is NaN, and null in JSON.

Dimensions: N pairs, B comparisons, K completions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from instructjax import intervals
from instructjax.data.records import agreement, preferences
from instructjax.data.records.records import Comparison
from instructjax.intervals import NOTHING, Estimate

# The scores of the completions of each comparison. Scores after the last completion are padding.
Scores = Sequence[Sequence[float]] | Float[np.ndarray, "B K"]

BINS = 10  # of the calibration
STEPS = 50  # of Newton's method at most
STEEPEST = 1e3  # a steeper slope is that of pairs that are all ordered rightly: it has no end


class Pairs(NamedTuple):
  """The pairs of completions that their labelers did not tie.

  difference   the score of the preferred completion less that of the other
  prompt       the number of the prompt, the same in all comparisons of that prompt
  comparison   the number of the comparison
  """

  difference: Float[np.ndarray, " N"]
  prompt: Int[np.ndarray, " N"]
  comparison: Int[np.ndarray, " N"]


def pairs_of(
  scores: Scores,
  records: Sequence[Comparison],
  distinct: Sequence[Bool[np.ndarray, "_ _"]] | None = None,
) -> Pairs:
  """Returns the pairs of all comparisons.

  `distinct` marks, for each comparison, the pairs [K, K] whose rows differ, and K may be another
  in each. Completions that became the same row when they were cut have one score, which says
  nothing of the model.
  """
  numbers: dict[str, int] = {}
  differences = [np.zeros(0)]
  prompts = [np.zeros(0, np.int64)]
  comparisons = [np.zeros(0, np.int64)]
  for number, (padded_scores, record) in enumerate(zip(scores, records, strict=True)):
    score = np.asarray(padded_scores, np.float64)[: len(record.completions)]
    beats = preferences.weights(record) > 0
    if distinct is not None:
      beats = beats & distinct[number]
    better, worse = np.nonzero(beats)
    prompt = numbers.setdefault(record.prompt, len(numbers))
    differences.append(score[better] - score[worse])
    prompts.append(np.full(len(better), prompt))
    comparisons.append(np.full(len(better), number))
  return Pairs(
    np.concatenate(differences),
    np.concatenate(prompts),
    np.concatenate(comparisons),
  )


def measure(
  scores: Scores,
  records: Sequence[Comparison],
  *,
  distinct: Sequence[Bool[np.ndarray, "_ _"]] | None = None,
  training_labelers: Sequence[str] = (),
) -> dict[str, Any]:
  """Returns everything, as results.json holds it under "rm".

  pair_accuracy   the share of pairs that the scores order as their labelers did
  log_loss        the mean of -log sigmoid(difference), nats a pair
  by_k            the accuracy by the number of completions
  by_labeler      the accuracy on the pairs of each labeler, where labelers have names
  by_pool         the accuracy on labelers who also labeled training data, and on the others
  references      chance, what it is right to prefer the longer text (in characters) for, the
                  agreement of labelers, and what that agreement leaves to a model
  calibration     the bins of `reliability`
  slope, ece      the slope of the log-odds, and the expected calibration error

  Args:
    scores: The scores of each comparison.
    records: The comparisons.
    distinct: The pairs of each comparison that count (`pairs_of`); None counts all.
    training_labelers: The labelers of the training data.
  """
  pairs = pairs_of(scores, records, distinct)
  references: dict[str, Any] = {"chance": 0.5}
  if len(pairs.difference):
    lengths = [[len(text) for text in record.completions] for record in records]
    references["longer"] = as_json(accuracy(pairs_of(lengths, records, distinct)))
  agreed = agreement.on_pairs(records)
  if agreed.n:
    references["labelers"] = as_json(agreed)
    references["bayes"] = as_json(best_accuracy(agreed))
  bins = reliability(pairs.difference)
  return {
    "pair_accuracy": as_json(accuracy(pairs)),
    "log_loss": as_json(log_loss(pairs)),
    "by_k": by(pairs, records, lambda record: str(len(record.completions))),
    "by_labeler": by(pairs, records, lambda record: record.labeler),
    "by_pool": by(pairs, records, lambda record: _pool(record, training_labelers)),
    "references": references,
    "calibration": bins,
    "slope": as_json(slope(pairs)),
    "ece": calibration_error(bins),
  }


def as_json(estimate: Estimate) -> dict[str, Any]:
  """Returns an estimate as an object of JSON, which has no NaN."""
  fields = estimate._asdict()
  return {name: value if math.isfinite(value) else None for name, value in fields.items()}


def _pool(record: Comparison, training_labelers: Sequence[str]) -> str | None:
  """Returns the pool of a labeler; none without a name, or where training data have no names."""
  if not record.labeler or not training_labelers:
    return None
  return "training labelers" if record.labeler in training_labelers else "held-out labelers"


# --- accuracy ---


def is_right(difference: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
  """Returns 1 for pairs in the labeler's order and 0 for others; equal scores are half right."""
  return (np.sign(difference) + 1) / 2


def _over_prompts(values: Float[np.ndarray, " N"], pairs: Pairs) -> Estimate:
  """Returns the mean over pairs, with the interval of other prompts."""
  if not len(values):
    return NOTHING
  # The numbers of the prompts of a part of the pairs may have gaps.
  _, row = np.unique(pairs.prompt, return_inverse=True)
  sums = np.stack([np.bincount(row, values), np.bincount(row)], axis=1)
  return intervals.share(sums)


def accuracy(pairs: Pairs) -> Estimate:
  """Returns the share of pairs that the scores order as their labelers did."""
  return _over_prompts(is_right(pairs.difference), pairs)


def log_loss(pairs: Pairs) -> Estimate:
  """Returns the mean of -log sigmoid(difference) over pairs, in nats."""
  return _over_prompts(np.logaddexp(0, -pairs.difference), pairs)


def by(
  pairs: Pairs,
  records: Sequence[Comparison],
  name_of: Callable[[Comparison], str | None],
) -> dict[str, Any]:
  """Returns the accuracy on the comparisons of each name; those without a name are left out."""
  numbers: Mapping[str, list[int]] = defaultdict(list)
  for number, record in enumerate(records):
    name = name_of(record)
    if name:
      numbers[name].append(number)
  estimates = {}
  for name in sorted(numbers):
    members = np.isin(pairs.comparison, numbers[name])
    estimates[name] = as_json(accuracy(select(pairs, members)))
  return estimates


def select(pairs: Pairs, members: Bool[np.ndarray, " N"]) -> Pairs:
  """Returns a part of the pairs."""
  return Pairs(*(array[members] for array in pairs))


def best_accuracy(agreed: Estimate) -> Estimate:
  """Returns the accuracy of a perfect model on the labels of people who agree so much.

  Labelers are alike and follow Bradley-Terry with gold scores from N(0, s²): of a difference d
  they prefer the first text with p = sigmoid(d), two of them agree with p² + (1 - p)², and the
  best guess of one label is right with max(p, 1 - p). The agreement gives s, and s the accuracy.
  At 72.6 %, the agreement of the paper's labelers, it is 80.1 %.
  """
  return Estimate(
    _best_of_agreement(agreed.value),
    _best_of_agreement(agreed.low),
    _best_of_agreement(agreed.high),
    agreed.n,
    agreed.clusters,
  )


def _best_of_agreement(agreement_share: float) -> float:
  if not 0.5 < agreement_share < 1:
    # Labelers who agree always leave a model nothing to err on; below chance they follow no gold.
    return agreement_share if agreement_share == 1 else math.nan
  # Quantiles of the normal distribution, as equal parts of it.
  z = np.linspace(-8, 8, 4001)
  density = np.exp(-np.square(z) / 2)
  density /= density.sum()
  low, high = 0.0, 1e3  # of the standard deviation of d
  for _ in range(60):
    spread = (low + high) / 2
    p = _sigmoid(spread * z)
    if np.sum(density * (np.square(p) + np.square(1 - p))) < agreement_share:
      low = spread
    else:
      high = spread
  p = _sigmoid(low * z)
  return float(np.sum(density * np.maximum(p, 1 - p)))


def _sigmoid(x: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
  return np.exp(-np.logaddexp(0, -x))


# --- calibration ---


def reliability(difference: Float[np.ndarray, " N"], bins: int = BINS) -> list[dict[str, Any]]:
  """Returns how often the model is right, by how sure it is of the order that it prefers.

  It thinks p = sigmoid(|difference of the scores|) of that order. A bin has the mean `p` of its
  pairs, the share of them that people ordered so, `correct`, and their number `n`. Bins are of one
  width from 0.5 to 1; those without pairs are left out.
  """
  p = certainty(difference)
  right = is_right(difference)
  table = []
  for members in bins_of_pairs(difference, bins):
    row = {
      "p": float(p[members].mean()),
      "correct": float(right[members].mean()),
      "n": int(members.sum()),
    }
    table.append(row)
  return table


def certainty(difference: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
  """Returns the probability that the model gives to the order that it prefers, from 0.5 to 1."""
  return _sigmoid(np.abs(difference))


def bins_of_pairs(
  difference: Float[np.ndarray, " N"], bins: int = BINS
) -> list[Bool[np.ndarray, " N"]]:
  """Returns which pairs are in each bin of `reliability` that has pairs."""
  # The last bin has 1 itself too.
  bin_of_pair = np.minimum(((certainty(difference) - 0.5) * 2 * bins).astype(int), bins - 1)
  members = [bin_of_pair == number for number in range(bins)]
  return [pairs for pairs in members if pairs.any()]


def calibration_error(bins: Sequence[Mapping[str, Any]]) -> float | None:
  """Returns the expected calibration error: the mean of |p - correct| over pairs, bin by bin."""
  pairs = sum(row["n"] for row in bins)
  if not pairs:
    return None
  return sum(row["n"] * abs(row["p"] - row["correct"]) for row in bins) / pairs


def slope(pairs: Pairs) -> Estimate:
  """Returns the b that makes sigmoid(b × difference of scores) fit the labels best.

  It is 1 where the scores are calibrated log-odds, and below 1 where the model is too sure. It
  maximises sum log sigmoid(b d), with d the difference of each pair; the interval is that
  of Student's t with the sandwich formula over G prompts, sqrt(G / (G - 1) × sum of squared
  gradients of the prompts) / curvature. Where every pair is ordered rightly, or none is, there is
  no such b, and it is unknown.
  """
  d = pairs.difference
  if not (np.any(d < 0) and np.any(d > 0)):
    return NOTHING._replace(n=len(d))
  b, curvature = 0.0, math.nan
  for _ in range(STEPS):
    p_wrong = _sigmoid(-b * d)
    gradient = float(np.sum(d * p_wrong))
    curvature = float(np.sum(np.square(d) * p_wrong * (1 - p_wrong)))
    step = gradient / curvature
    # The function is concave; a bounded step cannot leave the region where it is curved.
    limit = max(1.0, abs(b))
    b += min(max(step, -limit), limit)
    if abs(step) < 1e-9:
      break
  if abs(b) > STEEPEST:
    return NOTHING._replace(n=len(d))
  _, row = np.unique(pairs.prompt, return_inverse=True)
  by_prompt = np.bincount(row, d * _sigmoid(-b * d))
  prompts = len(by_prompt)
  if prompts < 2:
    return Estimate(b, math.nan, math.nan, len(d), prompts)
  variance = prompts / (prompts - 1) * float(np.sum(np.square(by_prompt)))
  half = intervals.t_quantile(prompts - 1) * math.sqrt(variance) / curvature
  return Estimate(b, b - half, b + half, len(d), prompts)
