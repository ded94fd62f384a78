"""Agreement between labelers, against figures worked out by hand."""

import math

import numpy as np
import pytest
from scipy.stats import kendalltau

from instructjax.data.records import agreement
from instructjax.data.records.records import Comparison
from instructjax.errors import UserError


def vote(labeler, *ranks, prompt="p", overall=None):
  ratings = tuple({"overall": value} for value in overall) if overall else None
  return Comparison(prompt, tuple("abcde"[: len(ranks)]), ranks, labeler=labeler, ratings=ratings)


def test_by_hand():
  # Pairs ab, ac, bc.  Ana: a>b, a>c, b>c.  Ben: a>b, a>c, b=c.  Cem: b>a, a>c, b>c.
  estimates = agreement.measure([vote("ana", 1, 2, 3), vote("ben", 1, 2, 2), vote("cem", 2, 1, 3)])
  # Ana-Ben: 2 of 2 strict, 2.5 of 3.  Ana-Cem: 2 of 3, 2 of 3.  Ben-Cem: 1 of 2, 1.5 of 3.
  assert estimates["agreement"].value == pytest.approx(5 / 7)
  assert estimates["agreement"].n == 7
  assert estimates["agreement_ties"].value == pytest.approx(6 / 9)
  assert estimates["agreement_ties"].n == 9
  # Ben's tie, against two others, of 9 x 2 judgments.
  assert estimates["tied"].value == pytest.approx(2 / 18)
  assert estimates["with/ana"].value == pytest.approx(4 / 5)
  assert estimates["with/cem"].value == pytest.approx(3 / 5)
  assert estimates["tau_b"].value == pytest.approx((2 / math.sqrt(6) + 1 / 3 + 0.0) / 3)


def test_tau_b_is_scipys():
  rng = np.random.default_rng(0)
  for _ in range(50):
    a, b = (tuple(int(rank) for rank in rng.integers(1, 4, 5)) for _ in range(2))
    signs = agreement._signs(vote("ana", *a), vote("ben", *b))
    value, weight = agreement._tau_b(*signs)
    expected = kendalltau(a, b).statistic if len(set(a)) > 1 and len(set(b)) > 1 else math.nan
    assert (math.isnan(expected) and not weight) or value == pytest.approx(expected, abs=1e-12)


def test_alpha_by_hand():
  # Units {1, 2}, {3, 3}, {5, 4}: n = 6, D_o = (1 + 0 + 1) * 2 / 6; D_e = mean squared difference of
  # all 15 pairs.
  values = [1, 2, 3, 3, 5, 4]
  expected = np.mean([(x - y) ** 2 for i, x in enumerate(values) for y in values[:i]])
  estimate = agreement.alpha([[[1.0, 2.0]], [[3.0, 3.0]], [[5.0, 4.0]]])
  assert estimate.value == pytest.approx(1 - (4 / 6) / expected)
  assert estimate.low <= estimate.value <= estimate.high and estimate.n == 6
  assert agreement.alpha([[[1.0, 1.0]], [[5.0, 5.0, 5.0]]]).value == 1
  assert math.isnan(agreement.alpha([[[1.0, 1.0]], [[1.0, 1.0]]]).value)


def test_krippendorffs_own_example():
  """Interval data of Krippendorff (2011): four observers, twelve units with gaps, alpha = .849."""
  table = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
  ]
  units = [
    [float(value) for value in column if value is not None] for column in zip(*table, strict=True)
  ]
  assert agreement.alpha([[unit] for unit in units if len(unit) > 1]).value == pytest.approx(
    0.849, abs=5e-4
  )


def test_intervals_are_over_prompts_and_ratings_count():
  rng = np.random.default_rng(1)
  votes = []
  for i in range(60):
    truth = rng.permutation(4)
    for name in ("ana", "ben"):
      ranks = np.argsort(np.argsort(truth + rng.normal(0, 1.0, 4))) + 1
      votes.append(
        vote(name, *map(int, ranks), prompt=f"p{i}", overall=[int(8 - rank) for rank in ranks])
      )
  estimates = agreement.measure(votes)
  agreed = estimates["agreement"]
  assert agreed.n == 360
  assert 0.02 < agreed.high - agreed.low < 0.2
  assert agreed.low < agreed.value < agreed.high
  assert estimates["with/ana"].value == agreed.value  # two labelers: each against the other
  assert 0.3 < estimates["alpha/overall"].value < 1
  assert "pairs ordered alike" in agreement.as_text(estimates)


def test_one_labeler_has_nobody_to_agree_with():
  with pytest.raises(UserError, match="--per-prompt=2"):
    agreement.measure([vote("ana", 1, 2), vote("ana", 1, 2, prompt="q")])
