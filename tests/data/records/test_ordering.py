"""How well scores order comparisons: hand-worked pairs, known log-odds, and what nobody knows."""

import json
import math

import numpy as np
import pytest

from instructjax.data.records import ordering
from instructjax.data.records.records import Comparison
from instructjax.intervals import Estimate


def ranked(*ranks, prompt="p", labeler=None):
  return Comparison(prompt, tuple("abcdefghi"[: len(ranks)]), ranks, labeler=labeler)


def test_by_hand():
  records = [
    ranked(1, 2, 2, prompt="x", labeler="ana"),  # pairs ab and ac; bc ties
    ranked(2, 1, prompt="y", labeler="ben"),
    ranked(1, 2, prompt="x", labeler="ben"),
  ]
  scores = [[1.0, 0.0, 2.0, 99.0], [0.5, 0.5], [3.0, 1.0]]  # 99 is padding
  measured = ordering.measure(scores, records, training_labelers=["ana"])
  # Right: ab, not ac; half right: ba of the second; right: ab of the third.
  assert measured["pair_accuracy"]["value"] == pytest.approx(2.5 / 4)
  assert measured["pair_accuracy"]["n"] == 4
  assert {name: part["value"] for name, part in measured["by_k"].items()} == {"2": 0.75, "3": 0.5}
  by_labeler = {name: part["value"] for name, part in measured["by_labeler"].items()}
  assert by_labeler == {"ana": 0.5, "ben": 0.75}
  pools = {name: part["value"] for name, part in measured["by_pool"].items()}
  assert pools == {"training labelers": 0.5, "held-out labelers": 0.75}
  differences = np.array([1.0, -1.0, 0.0, 2.0])
  log_loss = np.log1p(np.exp(-differences)).mean()
  assert measured["log_loss"]["value"] == pytest.approx(log_loss)
  # p is sigmoid(0), twice sigmoid(1), sigmoid(2), in bins of .05 from .5 on; the two of sigmoid(1)
  # are right once.
  p = 1 / (1 + np.exp(-np.array([0.0, 1.0, 2.0])))
  assert measured["calibration"] == [
    {"p": pytest.approx(p[0]), "correct": 0.5, "n": 1},
    {"p": pytest.approx(p[1]), "correct": 0.5, "n": 2},
    {"p": pytest.approx(p[2]), "correct": 1.0, "n": 1},
  ]
  assert measured["ece"] == pytest.approx((2 * (p[1] - 0.5) + 1 - p[2]) / 4)
  json.dumps(measured, allow_nan=False)


def test_what_rests_on_no_pairs_is_unknown():
  measured = ordering.measure([[1.0, 2.0]], [ranked(1, 1)])
  nothing = {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
  assert measured["pair_accuracy"] == measured["log_loss"] == measured["slope"] == nothing
  assert measured["ece"] is None
  assert measured["calibration"] == []
  assert measured["by_k"]["2"] == nothing
  json.dumps(measured, allow_nan=False)


def test_the_interval_is_over_prompts_and_not_over_pairs():
  """Pairs of one prompt that are right or wrong together widen it; a prompt twice is one prompt."""
  rng = np.random.default_rng(0)
  right = rng.random(100) < 0.7
  together = [[1.0, 0.0] if value else [0.0, 1.0] for value in right for _ in range(4)]
  same = [ranked(1, 2, prompt=f"p{number // 4}") for number in range(400)]
  apart = [ranked(1, 2, prompt=f"p{number}") for number in range(400)]
  wide = ordering.accuracy(ordering.pairs_of(together, same))
  narrow = ordering.accuracy(ordering.pairs_of(together, apart))
  assert wide.value == narrow.value
  assert wide.high - wide.low == pytest.approx(2 * (narrow.high - narrow.low), rel=0.15)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_slope_of_scaled_log_odds(scale):
  """Scores that are the log-odds times a scale have the slope 1 / scale, within the interval."""
  rng = np.random.default_rng(1)
  records, scores = [], []
  for number in range(2000):
    odds = rng.normal(0, 1.5)
    first_wins = rng.random() < 1 / (1 + math.exp(-odds))
    records.append(ranked(*((1, 2) if first_wins else (2, 1)), prompt=str(number)))
    scores.append([scale * odds, 0.0])
  slope = ordering.slope(ordering.pairs_of(scores, records))
  assert slope.low < 1 / scale < slope.high
  assert (slope.high - slope.low) * scale == pytest.approx(0.25, abs=0.06)


def test_a_slope_without_an_end_is_unknown():
  pairs = ordering.pairs_of([[2.0, 1.0], [5.0, 1.0]], [ranked(1, 2), ranked(1, 2)])
  assert math.isnan(ordering.slope(pairs).value)
  equal = ordering.pairs_of([[1.0, 1.0]], [ranked(1, 2)])
  assert math.isnan(ordering.slope(equal).value)


@pytest.mark.parametrize(("agreement", "best"), [(0.726, 0.801), (0.773, 0.838), (0.63, 0.719)])
def test_what_agreement_leaves_to_a_model(agreement, best):
  """A labeler's choice is noisy: the best accuracy is above the agreement (found by sampling)."""
  ceiling = ordering.best_accuracy(Estimate(agreement, agreement, agreement, 100))
  assert ceiling.value == pytest.approx(best, abs=2e-3)


def test_the_agreement_of_labelers_is_a_reference():
  records = [
    ranked(1, 2, prompt=f"p{number % 10}", labeler=name) for number in range(10) for name in "ab"
  ]
  records += [ranked(1, 2, prompt="q", labeler="a"), ranked(2, 1, prompt="q", labeler="b")]
  references = ordering.measure([[1.0, 0.0]] * len(records), records)["references"]
  assert references["labelers"]["value"] == pytest.approx(10 / 11)
  assert references["bayes"]["value"] > 10 / 11
  alone = ordering.measure([[1.0, 0.0]], [ranked(1, 2, labeler="a")])["references"]
  assert set(alone) == {"chance", "longer"}


def test_the_longer_text_is_a_reference():
  """Of four pairs the longer text is preferred in two, and in one both are as long: 2.5 of 4."""
  texts = [("long", "s"), ("s", "long"), ("aa", "bb"), ("longer", "s")]
  records = [Comparison(f"p{i}", pair, (1, 2)) for i, pair in enumerate(texts)]
  measured = ordering.measure([[1.0, 0.0]] * 4, records)
  assert measured["pair_accuracy"]["value"] == 1
  longer = measured["references"]["longer"]
  assert (longer["value"], longer["n"]) == (2.5 / 4, 4)
  tied = ordering.measure([[1.0, 0.0]], [ranked(1, 1)])
  assert tied["references"] == {"chance": 0.5}


def test_pairs_of_the_same_row_do_not_count():
  """Two completions that were cut to the same row have one score, which says nothing."""
  same = np.array([[False, False, True], [False, False, True], [True, True, False]])
  pairs = ordering.pairs_of([[1.0, 1.0, 0.0]], [ranked(1, 2, 3)], [same])
  np.testing.assert_array_equal(pairs.difference, [1.0, 1.0])
  assert ordering.accuracy(pairs).value == 1
