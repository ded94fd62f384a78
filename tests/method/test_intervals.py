"""The bootstrap: the normal interval, its coverage, the same twice, and what it says when there is
nothing.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax import intervals


def test_mean_has_the_normal_interval():
  values = np.random.default_rng(1).normal(3.0, 2.0, 400)
  estimate = intervals.mean(values)
  half = 1.96 * values.std(ddof=1) / math.sqrt(400)
  assert estimate.value == pytest.approx(values.mean())
  assert estimate.n == 400
  assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.08)
  assert (estimate.high + estimate.low) / 2 == pytest.approx(values.mean(), abs=0.1 * half)


@pytest.mark.parametrize("p", [0.5, 0.8])
def test_the_interval_of_a_win_rate_covers_the_truth_95_times_in_100(p):
  rng, runs, n = np.random.default_rng(2), 300, 100
  zeros = np.zeros(n)
  covered = 0
  for seed in range(runs):
    estimate = intervals.win_rate(
      np.where(rng.random(n) < p, 1.0, -1.0), zeros, samples=400, seed=seed
    )
    covered += estimate.low <= p <= estimate.high
  assert (
    0.91 <= covered / runs <= 0.98
  )  # 0.95 - 0.02 for the percentiles at n = 100, +- 0.025 for 300 runs


def test_rows_hang_together():
  """Ten equal pairs in each of 60 prompts tell no more than one: rows are drawn, not pairs."""
  right = (np.random.default_rng(3).random(60) < 0.7).astype(float)
  one = intervals.share(np.stack([right, np.ones(60)], 1))
  ten = intervals.share(np.stack([right * 10, np.full(60, 10.0)], 1))
  assert (one.value, one.low, one.high) == pytest.approx((ten.value, ten.low, ten.high))
  assert (one.n, ten.n) == (60, 600)


def test_share_weighs_rows_by_their_pairs():
  estimate = intervals.share(np.asarray([[1.0, 1.0], [0.0, 3.0]]))
  assert estimate.value == 0.25
  assert (estimate.low, estimate.high, estimate.n) == (0.0, 1.0, 4)


def test_win_rate_counts_ties_half():
  estimate = intervals.win_rate(np.asarray([1.0, 2.0, 3.0, 4.0]), np.asarray([0.0, 2.0, 4.0, 3.0]))
  assert estimate.value == pytest.approx((1 + 0.5 + 0 + 1) / 4)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_the_other_side_wins_the_rest(scores):
  our_scores, their_scores = np.asarray(scores, float).T
  ours = intervals.win_rate(our_scores, their_scores, samples=200)
  theirs = intervals.win_rate(their_scores, our_scores, samples=200)
  assert ours.value + theirs.value == pytest.approx(1)
  assert ours.low + theirs.high == pytest.approx(1)
  assert 0 <= ours.low <= ours.value + 1e-12
  assert ours.value - 1e-12 <= ours.high <= 1


def test_same_seed_same_interval_and_rows_by_the_million():
  values = np.random.default_rng(4).random(1000)
  assert intervals.mean(values) == intervals.mean(values)
  assert intervals.mean(values, seed=1) != intervals.mean(values)
  assert (
    intervals.resampled(np.ones((1_500_000, 1)), samples=3, seed=0).tolist() == [[1_500_000.0]] * 3
  )


def test_nothing_and_not_a_number():
  assert intervals.share(np.zeros((3, 2))) == intervals.NOTHING
  assert intervals.mean(np.zeros(0)).n == 0
  assert math.isnan(intervals.mean(np.zeros(0)).value)
  assert math.isnan(intervals.win_rate(np.asarray([1.0, np.nan]), np.zeros(2)).value)
  sparse = np.asarray([[1.0, 1.0], *[[0.0, 0.0]] * 5])  # most draws hold no pair at all
  assert intervals.share(sparse) == (1.0, 1.0, 1.0, 1)


def test_there_are_as_many_draws_as_were_asked_for(monkeypatch):
  """Five draws of four rows, two of them at once: two, two and one."""
  monkeypatch.setattr(intervals, "CHUNK", 8)
  sums = intervals.resampled(np.ones((4, 1)), samples=5, seed=0)
  assert sums.tolist() == [[4.0]] * 5
  one_draw = intervals.mean(np.arange(9.0), samples=1)
  assert one_draw.low == one_draw.high
  assert one_draw.value == 4.0


def test_counts_of_a_draw_add_up_to_its_rows():
  counts = intervals.draw_counts(6, samples=400, seed=0)
  assert counts.shape == (400, 6) and counts.dtype == np.float64
  assert (counts.sum(axis=1) == 6).all()
  # Each row is expected once a draw; four standard errors are 4 √(5/6 / 400) = 0.18.
  np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.18)
  assert (counts != intervals.draw_counts(6, samples=400, seed=1)).any()
  np.testing.assert_array_equal(counts, intervals.draw_counts(6, samples=400, seed=0))


def test_ends_are_those_of_the_finite_draws():
  draws = np.append(np.arange(41.0), [np.nan, np.inf])
  assert intervals.with_ends(7.0, draws, 3) == (7.0, 1.0, 39.0, 3)
  value, low, high, n = intervals.with_ends(7.0, np.array([np.nan]), 3)
  assert (value, n) == (7.0, 3)
  assert math.isnan(low) and math.isnan(high)
