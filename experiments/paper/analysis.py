"""The analysis that PROTOCOL.md fixes: estimates over seeds and clusters, verdicts, and fits.

Dimensions: N prompts, G clusters of prompts, P points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from instructjax import intervals
from instructjax.intervals import Estimate

Verdict = Literal["held", "failed", "undecided"]
Form = Literal["linear", "logarithmic"]


class Fit(NamedTuple):
  """A curve of Gao et al. 2023: d (alpha - beta d), or d (alpha - beta log d), with d = √KL."""

  form: Form
  alpha: float
  beta: float


# --- one seed ---


def outcomes(ours: Float[np.ndarray, " N"], theirs: Float[np.ndarray, " N"]) -> np.ndarray:
  """Returns 1 for each prompt that ours wins by its gold score, ½ for a tie, and 0."""
  return (np.sign(ours - theirs) + 1) / 2


def by_cluster(
  values: Float[np.ndarray, " N"],
  clusters: Int[np.ndarray, " N"],
) -> Float[np.ndarray, "G 2"]:
  """Returns the sum and the number of values of each cluster, as `intervals.share` reads them."""
  _, places = np.unique(clusters, return_inverse=True)
  sums = np.bincount(places, weights=values)
  counts = np.bincount(places).astype(np.float64)
  return np.stack([sums, counts], axis=1)


def win_rate(
  ours: Float[np.ndarray, " N"],
  theirs: Float[np.ndarray, " N"],
  clusters: Int[np.ndarray, " N"],
) -> Estimate:
  """Returns the share of prompts that ours wins, with an interval over clusters."""
  return intervals.share(by_cluster(outcomes(ours, theirs), clusters), paired=True)


def difference(
  ours: Float[np.ndarray, " N"],
  theirs: Float[np.ndarray, " N"],
  clusters: Int[np.ndarray, " N"],
) -> Estimate:
  """Returns the mean of ours less that of theirs on the same prompts, over clusters.

  The values are outcomes against a common rival, or scores, or losses.
  """
  return intervals.difference(by_cluster(ours, clusters), by_cluster(theirs, clusters))


# --- all seeds, and what they say of a bar ---


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
  """Returns the mean over seeds, whose interval holds how seeds and how clusters differ."""
  return intervals.over_runs(estimates)


def exceeds(estimate: Estimate, threshold: float) -> Verdict:
  """Returns what an interval says of the claim that its measure is above a threshold."""
  if estimate.low > threshold:
    return "held"
  return "failed" if estimate.high < threshold else "undecided"


def agrees(estimate: Estimate, within: float) -> Verdict:
  """Returns what an interval says of the claim that a difference is at most `within`."""
  if -within < estimate.low and estimate.high < within:
    return "held"
  apart = estimate.low > within or estimate.high < -within
  return "failed" if apart else "undecided"


def together(verdicts: Sequence[Verdict]) -> Verdict:
  """Returns the verdict of a bar of several conditions."""
  if "failed" in verdicts:
    return "failed"
  return "held" if all(verdict == "held" for verdict in verdicts) else "undecided"


# --- curves of gold over the distance from the start ---


def _columns(distance: Float[np.ndarray, " P"], form: Form) -> Float[np.ndarray, "P 2"]:
  """Returns what alpha and beta are multiplied by."""
  bend = distance if form == "linear" else np.log(distance)
  return np.stack([distance, -distance * bend], axis=1)


def fit(kl: Float[np.ndarray, " P"], gain: Float[np.ndarray, " P"], form: Form) -> Fit:
  """Returns the least-squares curve of gold's gain over √KL; KL is above 0."""
  columns = _columns(np.sqrt(kl), form)
  (alpha, beta), *_ = np.linalg.lstsq(columns, gain, rcond=None)
  return Fit(form, float(alpha), float(beta))


def predict(curve: Fit, kl: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
  """Returns the gain that a curve has at each KL."""
  return _columns(np.sqrt(kl), curve.form) @ np.asarray([curve.alpha, curve.beta])


def peak(curve: Fit) -> tuple[float, float]:
  """Returns the KL at which a curve is highest, and its height; infinite where it only rises."""
  if curve.beta <= 0:
    return np.inf, np.inf
  if curve.form == "linear":
    distance = curve.alpha / (2 * curve.beta)
  else:
    distance = np.exp(curve.alpha / curve.beta - 1)
  kl = float(distance) ** 2
  return kl, float(predict(curve, np.asarray([kl]))[0])


def extrapolation_error(
  kl: Float[np.ndarray, " P"],
  gain: Float[np.ndarray, " P"],
  form: Form,
  fitted: int,
) -> float:
  """Returns the largest error beyond the first `fitted` points, as a share of the largest gain.

  The largest gain is that of the points, because a curve that only rises has no peak.
  """
  curve = fit(kl[:fitted], gain[:fitted], form)
  errors = np.abs(predict(curve, kl[fitted:]) - gain[fitted:])
  return float(errors.max() / np.abs(gain).max())
