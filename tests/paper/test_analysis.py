"""The analysis of experiments/paper: verdicts and fits by hand, and the coverage that the protocol
promises for its own numbers of seeds and clusters.
"""

import numpy as np
import pytest
from analysis import (
  agrees,
  by_cluster,
  difference,
  exceeds,
  extrapolation_error,
  fit,
  outcomes,
  over_seeds,
  peak,
  predict,
  together,
  win_rate,
)

from instructjax.intervals import Estimate


def interval(low, high):
  return Estimate((low + high) / 2, low, high, 100)


def test_verdicts_by_hand():
  assert exceeds(interval(0.51, 0.6), 0.5) == "held"
  assert exceeds(interval(0.4, 0.49), 0.5) == "failed"
  assert exceeds(interval(0.49, 0.6), 0.5) == "undecided"
  assert agrees(interval(-0.04, 0.09), 0.1) == "held"
  assert agrees(interval(-0.04, 0.11), 0.1) == "undecided"
  assert agrees(interval(0.11, 0.2), 0.1) == "failed"
  assert agrees(interval(-0.2, -0.11), 0.1) == "failed"
  assert together(["held", "held"]) == "held"
  assert together(["held", "undecided"]) == "undecided"
  assert together(["undecided", "failed"]) == "failed"


def test_a_win_rate_by_hand():
  """Two clusters: a win and a tie, a loss alone. 1.5 of 3."""
  ours, theirs = np.asarray([2.0, 1.0, 0.0]), np.asarray([1.0, 1.0, 1.0])
  clusters = np.asarray([7, 7, 9])
  assert outcomes(ours, theirs).tolist() == [1.0, 0.5, 0.0]
  assert by_cluster(outcomes(ours, theirs), clusters).tolist() == [[1.5, 2.0], [0.0, 1.0]]
  rate = win_rate(ours, theirs, clusters)
  assert rate.value == 0.5 and (rate.n, rate.clusters) == (3, 2)


@pytest.mark.parametrize("form", ["linear", "logarithmic"])
def test_a_fit_finds_its_own_curve(form):
  kl = np.asarray([0.2, 0.5, 1.0, 2.0, 4.0, 9.0])
  distance = np.sqrt(kl)
  bend = distance if form == "linear" else np.log(distance)
  gain = distance * (1.2 - 0.3 * bend)
  curve = fit(kl, gain, form)
  assert (curve.alpha, curve.beta) == pytest.approx((1.2, 0.3))
  assert predict(curve, kl) == pytest.approx(gain)
  assert extrapolation_error(kl, gain, form, fitted=4) == pytest.approx(0.0, abs=1e-9)
  # Linear: d* = 1.2 / .6 = 2, and the height is 1.2² / (4 · .3). Logarithmic: d* = e³.
  where, height = peak(curve)
  if form == "linear":
    assert (where, height) == pytest.approx((4.0, 1.2))
  else:
    assert where == pytest.approx(np.exp(6.0))


def test_a_wrong_form_extrapolates_badly():
  kl = np.asarray([0.2, 0.5, 1.0, 2.0, 9.0])
  distance = np.sqrt(kl)
  gain = distance * (1.2 - 0.3 * distance)
  # 1.2 · 3 - .3 · 9 = .9 is the last gain, and 1.2 · √2 - .6 = 1.097 the largest.
  assert extrapolation_error(kl, gain, "logarithmic", fitted=4) > 0.1
  assert peak(fit(kl, distance * (1.2 + 0.3 * distance), "linear")) == (np.inf, np.inf)


@pytest.mark.parametrize(("seeds", "clusters"), [(3, 64), (3, 108), (5, 108)])
@pytest.mark.parametrize("between", [0.0, 0.05])
def test_differences_over_seeds_cover_93_in_100(seeds, clusters, between):
  """Two arms against the same rival on two prompts a cluster, which share half of their luck."""
  rng = np.random.default_rng(1000 * seeds + clusters + int(100 * between))
  numbers = np.repeat(np.arange(clusters), 2)
  rounds, covered, held = 200, 0, 0
  for _ in range(rounds):
    estimates = []
    for _ in range(seeds):
      # The arms win with .55 on average, whatever the seed adds to either of them.
      rates = 0.55 + rng.normal(0, between / np.sqrt(2), 2)
      luck = np.where(rng.random(clusters) < 0.5, rng.random(clusters), np.nan)[numbers]
      arms = []
      for rate in rates:
        own = np.where(np.isnan(luck), rng.random(2 * clusters), luck)
        arms.append((own < rate).astype(np.float64))
      estimates.append(difference(arms[0], arms[1], numbers))
    pooled = over_seeds(estimates)
    covered += pooled.low <= 0 <= pooled.high
    held += exceeds(pooled, 0.0) == "held"
  assert covered >= 0.93 * rounds
  assert held <= 0.05 * rounds
