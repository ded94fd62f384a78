"""Pair accuracy, agreement of raters, the lexicon: numbers worked by hand and by brute force."""

import itertools

import numpy as np
import pytest

from instructjax.data.public import tone
from instructjax.data.public import tone_measures as measures
from instructjax.data.records.records import Comparison, Prompt


def test_pair_accuracy_leaves_ties_of_people_out_and_counts_equal_scores_half():
  comparisons = [Comparison("p", ("a", "b", "c"), (1, 2, 2)), Comparison("p", ("a", "b"), (2, 1))]
  estimate = measures.pair_accuracy([[1.0, 0.0, 1.0], [5.0, 6.0]], comparisons)
  assert (estimate.value, estimate.n) == (pytest.approx((1 + 0.5 + 1) / 3), 3)
  assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_padding_of_the_scores_is_ignored():
  assert (
    measures.pair_accuracy([[1.0, 0.0, 99.0]], [Comparison("p", ("a", "b"), (1, 2))]).value == 1
  )


def by_hand(first: list[int], second: list[int]) -> tuple[float, float]:
  """Returns how many pairs of raters agree on two texts, and how many see a difference."""
  agree = seen = 0
  for a, b in itertools.permutations(range(len(first)), 2):
    for c, d in itertools.permutations(range(len(second)), 2):
      sign = np.sign(first[a] - second[c])
      other_sign = np.sign(first[b] - second[d])
      seen += bool(sign and other_sign)
      agree += bool(sign == other_sign and sign)
  return agree, seen


def test_rater_agreement_is_the_mean_over_all_pairs_of_raters(monkeypatch):
  rows = [
    tone.Rated("movies", str(i), f"text {i}", r)
    for i, r in enumerate([(1, 2, -1), (0, 1, 3), (-2, -2, 1)])
  ]
  monkeypatch.setattr(measures, "rated", lambda comparison: rows)
  estimate = measures.rater_agreement([Comparison("p", ("a", "b", "c"), (1, 2, 3))])
  counts = np.sum(
    [by_hand(rows[i].ratings, rows[j].ratings) for i in range(3) for j in range(i)], axis=0
  )
  assert estimate.value == pytest.approx(counts[0] / counts[1])


def test_the_halves_agree_on_clear_texts_and_not_on_opposite_ones(monkeypatch):
  clear = [tone.Rated("movies", str(i), f"t{i}", (v,) * 4) for i, v in enumerate((4, 0, -4))]
  monkeypatch.setattr(measures, "rated", lambda comparison: clear)
  comparison = Comparison("p", ("a", "b", "c"), (1, 2, 3))
  assert measures.half_agreement([comparison]).value == 1
  keys = [str(i) for i in range(20)]
  same = [key for key in keys if tone.mean(tone.Rated("movies", key, "", (1, 0)), "a") == 1][:2]
  split = [tone.Rated("movies", same[0], "x", (4, -4)), tone.Rated("movies", same[1], "y", (-4, 4))]
  monkeypatch.setattr(measures, "rated", lambda comparison: split)
  assert measures.half_agreement([Comparison("p", ("a", "b"), (1, 2))]).value == 0


def test_people_agree_more_than_chance_and_halves_more_than_single_raters():
  sizes = tone.Sizes(
    demonstrations=10, comparisons=10, gold=10, prompts=4, test_prompts=4, test_comparisons=30
  )
  comparisons = tone.tasks(0, sizes).test_comparisons["movies"]
  raters, halves = measures.rater_agreement(comparisons), measures.half_agreement(comparisons)
  assert 0.6 < raters.low < raters.value < halves.value <= 1


@pytest.mark.parametrize(
  ("direction", "completion", "expected"),
  [
    ("praise", "a wonderful film", True),
    ("criticise", "a wonderful film", False),
    ("criticise", "awful", True),
    ("praise", "a film", False),
    ("criticise", "a film", False),
  ],
)
def test_follows_asks_the_lexicon_for_the_tone_of_the_instruction(direction, completion, expected):
  assert measures.follows(Prompt("Say it.\nHere:", use_case=direction), completion) is expected


def test_the_lexicon_is_scored_in_the_direction_of_the_prompt():
  texts = ("a wonderful film", "an awful film")
  both = [
    Comparison("x\nA:", texts, (1, 2), use_case="praise"),
    Comparison("x\nB:", texts, (1, 2), use_case="criticise"),
  ]
  assert measures.vader_accuracy(both[:1]).value == 1
  assert measures.vader_accuracy(both[1:]).value == 0
