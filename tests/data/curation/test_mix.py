"""The mix of use cases of two data sets: the paper's shares, intervals, and draws of users."""

import numpy as np
import pytest

from instructjax.data.curation import mix
from instructjax.data.curation.statistics import USE_CASES
from instructjax.data.records.records import Prompt


def rows(counts, user=lambda i: None):
  names = [name for name, count in counts.items() for _ in range(count)]
  return [Prompt(f"{i}", use_case=name, user=user(i)) for i, name in enumerate(names)]


def test_the_papers_mix_against_an_nlp_collection():
  paper = rows({name: round(10 * share) for name, share in USE_CASES.items()})
  nlp = rows({"Classification": 500, "Open QA": 300, "Summarization": 100, "Generation": 100})
  comparison = mix.compare(paper, nlp)
  paper_share, nlp_share, difference = comparison.shares["open-ended (generation, brainstorming)"]
  assert paper_share == pytest.approx(0.568, abs=0.001) and nlp_share == pytest.approx(
    0.1
  )  # "about 57 %"
  assert difference.low < paper_share - nlp_share < difference.high
  paper_share, nlp_share, _ = comparison.shares["classification and QA"]
  assert paper_share == pytest.approx(0.185, abs=0.001) and nlp_share == pytest.approx(
    0.8
  )  # "about 18 %"
  # by hand: .356+.112+.084+.066+.035+.026+.019 of A where A has more, .058 + ... where B has; half
  # the sum is one side
  assert comparison.distance == pytest.approx(
    (356.4 + 112.1 + 84.1 + 66.1 + 35 + 26 + 19) / 1000, abs=0.002
  )
  assert comparison.distance > comparison.chance


def test_two_by_hand():
  comparison = mix.compare(rows({"Chat": 3, "Extract": 1}), rows({"Chat": 1, "Extract": 3}))
  assert comparison.shares["Chat"][:2] == (0.75, 0.25)
  assert comparison.shares["Chat"][2].value == 0.5
  assert comparison.distance == 0.5
  assert comparison.sizes == (4, 4)


def test_the_interval_is_the_normal_one_and_the_same_twice():
  a, b = rows({"Chat": 300, "Other": 700}), rows({"Chat": 200, "Other": 300})
  comparison = mix.compare(a, b)
  half = 1.96 * np.sqrt(0.3 * 0.7 / 1000 + 0.4 * 0.6 / 500)
  _, _, difference = comparison.shares["Chat"]
  assert (difference.low, difference.high) == pytest.approx(
    (-0.1 - half, -0.1 + half), abs=0.1 * half
  )
  assert mix.compare(a, b) == comparison


def test_prompts_of_one_user_hang_together():
  alone = rows({"Chat": 50, "Other": 50})
  by_ten = rows({"Chat": 50, "Other": 50}, user=lambda i: f"u{i // 10}")
  width = lambda comparison: comparison.shares["Chat"][2].high - comparison.shares["Chat"][2].low
  wide, narrow = (width(mix.compare(a, alone)) for a in (by_ten, alone))
  # variance: .25/10 + .25/100 against .25/100 twice
  assert wide / narrow == pytest.approx(np.sqrt((0.025 + 0.0025) / 0.005), rel=0.1)


def test_the_same_mix_is_within_chance():
  rng = np.random.default_rng(0)
  draw = lambda: rows(
    dict(
      zip(USE_CASES, rng.multinomial(200, np.asarray(list(USE_CASES.values())) / 99.9), strict=True)
    )
  )
  beyond = sum(
    comparison.distance > comparison.chance
    for comparison in (mix.compare(draw(), draw(), samples=200) for _ in range(50))
  )
  assert beyond <= 7  # 2.5 expected
