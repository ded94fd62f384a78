"""The use cases of two data sets: the paper's 57 % against 18 %, intervals that cover, users drawn
again.
"""

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
  found = mix.compare(paper, nlp)
  here, there, difference = found.shares["open-ended (generation, brainstorming)"]
  assert here == pytest.approx(0.568, abs=0.001) and there == pytest.approx(0.1)  # "about 57 %"
  assert difference.low < here - there < difference.high
  here, there, _ = found.shares["classification and QA"]
  assert here == pytest.approx(0.185, abs=0.001) and there == pytest.approx(0.8)  # "about 18 %"
  # by hand: .356+.112+.084+.066+.035+.026+.019 of A where A has more, .058 + ... where B has; half
  # the sum is one side
  assert found.distance == pytest.approx(
    (356.4 + 112.1 + 84.1 + 66.1 + 35 + 26 + 19) / 1000, abs=0.002
  )
  assert found.distance > found.chance


def test_two_by_hand():
  found = mix.compare(rows({"Chat": 3, "Extract": 1}), rows({"Chat": 1, "Extract": 3}))
  assert found.shares["Chat"][:2] == (0.75, 0.25)
  assert found.shares["Chat"][2].value == 0.5
  assert found.distance == 0.5
  assert found.sizes == (4, 4)


def test_the_interval_is_the_normal_one_and_the_same_twice():
  a, b = rows({"Chat": 300, "Other": 700}), rows({"Chat": 200, "Other": 300})
  found = mix.compare(a, b)
  half = 1.96 * np.sqrt(0.3 * 0.7 / 1000 + 0.4 * 0.6 / 500)
  _, _, difference = found.shares["Chat"]
  assert (difference.low, difference.high) == pytest.approx(
    (-0.1 - half, -0.1 + half), abs=0.1 * half
  )
  assert mix.compare(a, b) == found


def test_prompts_of_one_user_hang_together():
  alone = rows({"Chat": 50, "Other": 50})
  by_ten = rows({"Chat": 50, "Other": 50}, user=lambda i: f"u{i // 10}")
  width = lambda one: one.shares["Chat"][2].high - one.shares["Chat"][2].low
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
    found.distance > found.chance
    for found in (mix.compare(draw(), draw(), samples=200) for _ in range(50))
  )
  assert beyond <= 7  # 2.5 expected
