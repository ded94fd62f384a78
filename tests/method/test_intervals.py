"""Intervals: by hand, their coverage of shares alone and in clusters, the level of differences, the
bootstrap, and what they say when there is nothing.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from instructjax import intervals


def test_mean_has_the_normal_interval():
  values = np.random.default_rng(1).normal(3.0, 2.0, 400)
  estimate = intervals.mean(values)
  half = 1.96 * values.std(ddof=1) / math.sqrt(400)
  assert estimate.value == pytest.approx(values.mean())
  assert estimate.n == 400
  assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.08)
  assert (estimate.high + estimate.low) / 2 == pytest.approx(values.mean(), abs=0.1 * half)


def test_none_of_24_is_up_to_138_in_a_thousand():
  """Wilson's interval of 0 of 24 ends at z²/(n + z²) = 3.8415/27.8415."""
  nothing = intervals.mean(np.zeros(24))
  assert nothing[:2] == (0.0, 0.0)
  assert nothing.high == pytest.approx(0.13798, abs=1e-5)
  everything = intervals.mean(np.ones(24))
  assert everything[:3] == pytest.approx((1.0, 1 - 0.13798, 1.0), abs=1e-5)
  assert intervals.mean(np.full(24, 0.5)).high > 0.55  # all ties is not certainty either
  # A difference that no item showed may still be there.
  same = intervals.mean_difference(np.zeros(24), np.zeros(24))
  assert 0.1 < same.high < 0.2 and same.low == pytest.approx(-same.high)


def test_wilson_by_hand():
  assert intervals.wilson(0.5, 100.0) == pytest.approx((0.4038, 0.5962), abs=1e-4)
  assert intervals.wilson(1.0, 10.0) == pytest.approx((0.7225, 1.0), abs=1e-4)
  # 2 of 24: Wilson's lower end is 0.0231, that of a Poisson count of 2 is 0.3554/24.
  assert intervals.wilson(2 / 24, 24.0)[0] == pytest.approx(0.3554 / 24, abs=1e-5)


def test_rows_hang_together():
  """Ten equal pairs in each of 60 prompts tell no more than one: rows are sampled, not pairs."""
  right = (np.random.default_rng(3).random(60) < 0.7).astype(float)
  one = intervals.share(np.stack([right, np.ones(60)], 1))
  ten = intervals.share(np.stack([right * 10, np.full(60, 10.0)], 1))
  assert one[:3] == pytest.approx(ten[:3], abs=0.01)
  assert (one.n, one.clusters) == (60, 60) and (ten.n, ten.clusters) == (600, 60)
  assert intervals.counted(one) == "60" and intervals.counted(ten) == "600 in 60"
  independent = intervals.share(np.stack([np.full(60, 7.0), np.full(60, 10.0)], 1))
  assert independent.high - independent.low < 0.6 * (ten.high - ten.low)


def test_share_weighs_rows_by_their_pairs():
  estimate = intervals.share(np.asarray([[1.0, 1.0], [0.0, 3.0]]))
  assert estimate.value == 0.25 and (estimate.n, estimate.clusters) == (4, 2)
  assert estimate.low < 0.05 and estimate.high > 0.7
  # One prompt with many pairs says nothing about other prompts.
  assert intervals.share(np.asarray([[3.0, 4.0]]))[1:3] == (0.0, 1.0)


def student(values):
  return values.mean(), 2.262157 * values.std(ddof=1) / math.sqrt(10)  # t of 9 degrees of freedom


def test_a_mean_of_ten_has_the_interval_of_t():
  values = np.random.default_rng(5).normal(2.0, 3.0, 10)
  middle, half = student(values)
  expected = (middle, middle - half, middle + half)
  assert intervals.mean(values)[:3] == pytest.approx(expected, rel=1e-5)
  gained = intervals.mean_difference(values + 7, np.full(10, 7.0))
  assert gained[:3] == pytest.approx(expected, rel=1e-5)
  assert math.isnan(intervals.mean(np.array([5.0])).low)


def test_measures_between_0_and_1_have_their_own_variance():
  """Five accuracies that lie close together do not get the interval of five coins."""
  values = np.array([0.70, 0.72, 0.69, 0.71, 0.70])
  estimate = intervals.mean(values)
  half = 2.776 * values.std(ddof=1) / math.sqrt(5)  # t of 4 degrees of freedom
  assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.05)


def test_a_difference_of_two_samples_by_hand():
  """Newcombe 1998, table II, (a): 56 of 70 and 48 of 80 differ by 0.0524 to 0.3339."""
  ours = intervals.mean(np.repeat([1.0, 0.0], [56, 14]))
  theirs = intervals.mean(np.repeat([1.0, 0.0], [48, 32]))
  difference = intervals.unpaired(ours, theirs)
  assert difference[:3] == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
  assert (difference.n, difference.clusters) == (150, 150)


# --- coverage ---

SHARES = (0.02, 0.05, 0.1, 0.3, 0.5)
SIZES = (24, 50, 100, 200)


def coverage(estimate_of, truth, runs):
  """How often the interval of `estimate_of(run)` holds the truth."""
  held = 0
  for run in range(runs):
    estimate = estimate_of(run)
    held += estimate.low <= truth <= estimate.high
  return held / runs


@pytest.mark.parametrize("n", SIZES)
def test_the_interval_of_a_share_covers_93_in_100(n):
  """Exact: over all counts of n, with their binomial probabilities."""
  ends = []
  for count in range(n + 1):
    estimate = intervals.mean(np.repeat([1.0, 0.0], [count, n - count]))
    ends.append((estimate.low, estimate.high))
  low, high = np.asarray(ends).T
  counts = np.arange(n + 1)
  for p in SHARES:
    probabilities = stats.binom.pmf(counts, n, p)
    assert probabilities[(low <= p) & (p <= high)].sum() >= 0.93, p


def clustered(rng, n, p, correlation):
  """(right, questions) of 8 passages of unlike sizes, whose share follows a beta distribution."""
  sizes = np.maximum(np.round(n * np.array([1, 2, 2, 3, 3, 4, 4, 5]) / 24), 1)
  scale = (1 - correlation) / correlation
  shares = rng.beta(p * scale, (1 - p) * scale, size=len(sizes))
  return np.stack([rng.binomial(sizes.astype(int), shares), sizes], axis=1).astype(float)


@pytest.mark.parametrize(
  ("n", "p", "correlation", "runs"),
  [
    (24, 0.05, 0.1, 250),
    (200, 0.05, 0.2, 250),
    *[
      pytest.param(n, p, correlation, 1001, marks=pytest.mark.slow)
      for n in SIZES
      for p in SHARES
      for correlation in (0.05, 0.2)
    ],
  ],
)
def test_the_interval_of_8_clusters_covers_93_in_100(n, p, correlation, runs):
  rng = np.random.default_rng(n)

  def estimate(run):
    return intervals.share(clustered(rng, n, p, correlation))

  # Of 250 runs with a coverage of 0.95, fewer than 0.92 hold it in 1 of 50.
  assert coverage(estimate, p, runs) >= (0.93 if runs > 1000 else 0.92)


@pytest.mark.parametrize(
  ("n", "p", "runs"),
  [
    (24, 0.05, 250),
    *[pytest.param(n, p, 600, marks=pytest.mark.slow) for n in SIZES for p in SHARES],
  ],
)
def test_the_interval_of_a_partial_score_covers_93_in_100(n, p, runs):
  """F1: most answers get nothing, the others anything."""
  rng = np.random.default_rng(n)

  def estimate(run):
    return intervals.mean(np.where(rng.random(n) < 1.5 * p, rng.beta(2, 1, n), 0.0))

  assert coverage(estimate, p, runs) >= (0.93 if runs > 500 else 0.92)


def ratio_of_means(sums):
  return np.log(sums[..., 0] / sums[..., 1])


@pytest.mark.parametrize(
  ("rows", "runs"),
  [(8, 300), (24, 300), *[pytest.param(r, 1001, marks=pytest.mark.slow) for r in (8, 24)]],
)
def test_a_statistic_of_few_rows_covers_93_in_100(rows, runs):
  """The log of a ratio of sums: the percentile bootstrap of 8 rows covers 86 in 100."""
  rng = np.random.default_rng(rows)

  def estimate(run):
    wholes = rng.integers(1, 8, rows).astype(float)
    parts = wholes * np.exp(0.4 * rng.normal(size=rows))
    return intervals.of_sums(np.stack([parts, wholes], axis=1), ratio_of_means, rows, run)

  # E[exp(0.4 z)] = exp(0.08)
  assert coverage(estimate, 0.08, runs) >= (0.93 if runs > 1000 else 0.91)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [50, 100])
def test_the_bootstrap_of_many_rows_covers_93_in_100(rows, monkeypatch):
  monkeypatch.setattr(intervals, "SAMPLES", 500)
  rng = np.random.default_rng(rows)

  def estimate(run):
    parts = np.exp(0.4 * rng.normal(size=rows))
    return intervals.of_sums(np.stack([parts, np.ones(rows)], 1), ratio_of_means, rows, run)

  assert coverage(estimate, 0.08, 1500) >= 0.93


def outcomes(rng, n, kind):
  if kind == "scores":
    return rng.beta(0.4, 0.4, n)
  # Right or wrong; the two models are of different minds on a part of the prompts.
  return (rng.random(n) < 0.5).astype(float)


@pytest.mark.parametrize("kind", ["scores", "right"])
@pytest.mark.parametrize(
  ("n", "runs"), [(11, 400), *[pytest.param(n, 3000, marks=pytest.mark.slow) for n in (11, 50)]]
)
def test_two_equal_models_are_called_different_in_5_of_100(kind, n, runs):
  rng = np.random.default_rng(n)

  def difference(run):
    return intervals.mean_difference(outcomes(rng, n, kind), outcomes(rng, n, kind))

  # One standard error of 400 runs is 0.011, of 3,000 it is 0.004.
  assert 1 - coverage(difference, 0.0, runs) <= (0.058 if runs > 1000 else 0.075)


def test_the_win_rate_of_equal_models_keeps_its_level():
  """Exact: 2 of 11 wins or fewer, and 9 or more, come in 6.5 of 100 cases; 1 and 10 in 1.2."""
  level = 0.0
  for wins in range(12):
    estimate = intervals.win_rate(np.repeat([1.0, -1.0], [wins, 11 - wins]), np.zeros(11))
    if not estimate.low <= 0.5 <= estimate.high:
      level += stats.binom.pmf(wins, 11, 0.5)
  assert level == pytest.approx(2 * 12 / 2048)


def test_few_rows_have_the_jackknife_and_t():
  """Of the mean of 10 rows it is the interval of t itself."""
  values = np.random.default_rng(5).normal(2.0, 3.0, 10)
  middle, half = student(values)
  rows = np.stack([values, np.ones(10)], axis=1)
  # Rows that hold as much as each other; their sums are taken as sizes.
  rows = np.concatenate([rows, 100 - np.abs(rows).sum(axis=1, keepdims=True)], axis=1)
  estimate = intervals.of_sums(rows, lambda sums: sums[..., 0] / sums[..., 1], 10)
  assert estimate[:3] == pytest.approx((middle, middle - half, middle + half), rel=1e-5)


def test_a_difference_of_outcomes_has_t():
  """9 of 11 prompts for us and 2 against: two equal models come to that in 6.5 of 100 cases."""
  ours = np.repeat([1.0, 0.0], [9, 2])
  difference = intervals.mean_difference(ours, 1 - ours)
  assert difference.low < 0 < difference.value == pytest.approx(7 / 11)


def test_many_intervals_are_said_to_miss():
  assert intervals.many(3) == ""
  assert intervals.many(60).startswith("These are 60 intervals of 95 % each: about 3 of them")


# --- win rates and the bootstrap ---


def test_win_rate_counts_ties_half():
  estimate = intervals.win_rate(np.asarray([1.0, 2.0, 3.0, 4.0]), np.asarray([0.0, 2.0, 4.0, 3.0]))
  assert estimate.value == pytest.approx((1 + 0.5 + 0 + 1) / 4)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_the_other_side_wins_the_rest(scores):
  our_scores, their_scores = np.asarray(scores, float).T
  ours = intervals.win_rate(our_scores, their_scores)
  theirs = intervals.win_rate(their_scores, our_scores)
  assert ours.value + theirs.value == pytest.approx(1)
  assert ours.low + theirs.high == pytest.approx(1)
  assert 0 <= ours.low <= ours.value + 1e-12
  assert ours.value - 1e-12 <= ours.high <= 1


def test_same_seed_same_interval_and_rows_by_the_million():
  values = np.random.default_rng(4).random(1000)
  rows = np.stack([values, np.ones(1000)], axis=1)
  estimates = [intervals.of_sums(rows, ratio_of_means, 1000, seed) for seed in (0, 0, 1)]
  assert estimates[0] == estimates[1] != estimates[2]
  assert (
    intervals.resampled(np.ones((1_500_000, 1)), samples=3, seed=0).tolist() == [[1_500_000.0]] * 3
  )


def test_nothing_and_not_a_number():
  assert intervals.share(np.zeros((3, 2))) == intervals.NOTHING
  assert intervals.mean(np.zeros(0)).n == 0
  assert math.isnan(intervals.mean(np.zeros(0)).value)
  assert math.isnan(intervals.win_rate(np.asarray([1.0, np.nan]), np.zeros(2)).value)
  sparse = np.asarray([[1.0, 1.0], *[[0.0, 0.0]] * 5])  # rows without a pair are no rows
  assert intervals.share(sparse) == intervals.mean(np.ones(1))
  assert intervals.difference(np.zeros((3, 2)), np.zeros((3, 2))) == intervals.NOTHING


def test_there_are_as_many_draws_as_were_asked_for(monkeypatch):
  """Five draws of four rows, two of them at once: two, two and one."""
  monkeypatch.setattr(intervals, "CHUNK", 8)
  sums = intervals.resampled(np.ones((4, 1)), samples=5, seed=0)
  assert sums.tolist() == [[4.0]] * 5


def test_counts_of_a_draw_add_up_to_its_rows():
  counts = intervals.draw_counts(6, samples=400, seed=0)
  assert counts.shape == (400, 6) and counts.dtype == np.float64
  assert (counts.sum(axis=1) == 6).all()
  # Each row is expected once a draw; four standard errors are 4 √(5/6 / 400) = 0.18.
  np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.18)
  assert (counts != intervals.draw_counts(6, samples=400, seed=1)).any()
  np.testing.assert_array_equal(counts, intervals.draw_counts(6, samples=400, seed=0))


def test_ends_are_those_of_the_finite_draws():
  """Of many rows they are the percentiles; of few rows they lie farther out."""
  draws = np.append(np.arange(41.0), [np.nan, np.inf])
  estimate = intervals.with_ends(7.0, draws, 3, 10**6)
  assert estimate == pytest.approx((7.0, 1.0, 39.0, 3, 10**6), abs=1e-3)
  few = intervals.with_ends(7.0, draws, 3, 8)
  # t of 7 degrees of freedom is 2.3646; Φ(-√(8/7) 2.3646) = 0.00574.
  assert few.low == pytest.approx(40 * 0.00574, abs=1e-3)
  value, low, high, n, clusters = intervals.with_ends(7.0, np.array([np.nan]), 3, 2)
  assert (value, n, clusters) == (7.0, 3, 2)
  assert math.isnan(low) and math.isnan(high)


# --- several runs ---


def test_runs_have_t_over_their_values_and_no_less_than_the_rows_of_all():
  apart = [intervals.Estimate(value, value - 0.01, value + 0.01, 10) for value in (0.5, 0.6, 0.7)]
  estimate = intervals.over_runs(apart)
  half = 4.3027 * 0.1 / math.sqrt(3)
  assert estimate == pytest.approx((0.6, 0.6 - half, 0.6 + half, 30, 3), abs=1e-4)
  agreeing = [intervals.Estimate(0.6, 0.5, 0.66, 10)] * 4
  assert intervals.over_runs(agreeing) == pytest.approx((0.6, 0.55, 0.63, 40, 4))
  with pytest.raises(ValueError, match="1 runs do not tell how runs differ: give two or more"):
    intervals.over_runs(agreeing[:1])


@pytest.mark.parametrize("between", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("p", [0.6, 0.9])
def test_the_interval_over_3_runs_covers_93_in_100(p, between):
  """Wins on 216 prompts a run, at rates that differ from run to run."""
  rng = np.random.default_rng(int(1000 * p + 100 * between))

  def estimate(run):
    rates = np.clip(rng.normal(p, between, 3), 0, 1)
    wins = rng.random((3, 216)) < rates[:, None]
    return intervals.over_runs([intervals.mean(row.astype(float)) for row in wins])

  assert coverage(estimate, p, 400) >= 0.93
