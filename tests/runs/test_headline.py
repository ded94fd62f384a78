"""The headline: every combination of measures that a reader could take for more than it is."""

import math

import pytest

from instructjax.intervals import Estimate
from instructjax.runs.report.headline import (
  Change,
  Measures,
  change_between,
  change_of_curve,
  direction,
  headline,
)

# Of 63 prompts, 67.5 % are won: Wilson's interval.
WON = Estimate(0.675, 0.552, 0.778, 63)
LOST = Estimate(0.3, 0.21, 0.41, 90)
EVEN = Estimate(0.52, 0.45, 0.59, 200)
EVEN_OF_FEW = Estimate(0.458, 0.339, 0.583, 60)
GOOD_JUDGE = Estimate(0.81, 0.79, 0.84, 1466)
WEAK_JUDGE = Estimate(0.658, 0.61, 0.70, 594)
ROSE, FELL, STILL = Change(0.0, 1.0, 0.5), Change(1.0, 0.0, 0.5), Change(0.5, 0.6, 0.5)
MOVED = Estimate(4.3, 3.9, 4.7, 216)


@pytest.mark.parametrize(
  ("measures", "verdict", "words"),
  [
    # The report that this was written for: two iterations, a win rate, and nothing else moved.
    (
      {"wins": WON, "judge": WEAK_JUDGE, "reward": STILL},
      "disagree",
      "The measures disagree on PPO: it wins 67.5 % of test prompts (95 % interval 55.2 to 77.8 %, "
      "n 63), but the score that it was trained on did not move beyond its noise",
    ),
    ({"wins": WON, "judge": GOOD_JUDGE, "reward": ROSE}, "better", "PPO beats SFT: it wins 67.5"),
    (
      {"wins": WON, "judge": WEAK_JUDGE, "reward": ROSE},
      "better",
      "PPO beats SFT by a weak judge, right on 65.8 % of held-out pairs: it wins",
    ),
    (
      {"wins": WON, "judge": Estimate(0.52, 0.48, 0.56, 594), "reward": ROSE},
      "undecided",
      "right on 52.0 % of held-out pairs, which may be chance",
    ),
    ({"wins": WON, "reward": FELL}, "disagree", "but the score that it was trained on fell"),
    ({"wins": LOST, "reward": FELL}, "worse", "PPO is worse than SFT"),
    ({"wins": LOST, "reward": STILL}, "worse", "PPO is worse than SFT"),
    # Over-optimisation: the reward model is pleased, the judge is not.
    ({"wins": LOST, "reward": ROSE}, "disagree", "but the score that it was trained on rose"),
    (
      {"wins": WON, "reward": ROSE, "lexicon": Change(0.7, 0.5, 0.1)},
      "disagree",
      "but the lexicon finds the tone that was asked for less often",
    ),
    (
      {"wins": WON, "reward": STILL, "kl": Estimate(0.03, 0.0, 0.06, 60)},
      "disagree",
      "noise and it has hardly moved from its start (0.03 nats)",
    ),
    ({"wins": EVEN, "reward": ROSE}, "undecided", "while the score that it was trained on rose"),
    ({"wins": EVEN}, "undecided", "PPO does not differ clearly from SFT"),
    (
      {"wins": EVEN_OF_FEW, "reward": STILL},
      "too few",
      "Too few prompts to tell whether PPO beats SFT: it wins 45.8 %",
    ),
    ({"wins": Estimate(0.6, math.nan, math.nan, 0)}, "undecided", "no interval is given"),
    (
      {
        "wins": WON,
        "reward": ROSE,
        "empty": Change(0.0, 0.3),
        "repeated": Change(0.05, 0.4),
        "distinct": Change(0.8, 0.5),
      },
      "better",
      "but 30.0 % of its answers are empty, 40.0 % of its answers repeat another one and its "
      "answers vary less",
    ),
    ({"reward": ROSE}, "unjudged", "No judge has compared answers: the score that PPO was trained"),
    ({"reward": Change(0.2, 0.4)}, "too few", "Too few iterations to tell whether PPO learns"),
    ({}, "unjudged", "PPO has no score yet"),
    ({"reward": ROSE, "gold": ROSE}, "better", "and that of its judge rose (from 0.00 to 1.00)"),
    ({"reward": ROSE, "gold": FELL}, "disagree", "but that of its judge fell"),
    ({"reward": ROSE, "gold": STILL}, "undecided", "Undecided: the score that PPO was trained on"),
    ({"reward": STILL, "gold": STILL}, "undecided", "did not move beyond its noise (from 0.50"),
  ],
)
def test_the_sentence_knows_all_measures(measures, verdict, words):
  made = headline(Measures("PPO", **measures))
  assert made.verdict == verdict
  assert words in made.sentence.replace("\u00a0", " ")


def test_what_is_measured_and_what_is_not_are_said_apart():
  made = headline(Measures("PPO", wins=WON, judge=WEAK_JUDGE, reward=STILL, kl=MOVED))
  text = " ".join(made.findings).replace("\u00a0", " ")
  assert "0.60, SFT's 0.50: no clear difference, where one of 0.50 would be seen" in text
  assert "The judge is right on 65.8 %" in text
  assert "The paper's reward models reach 69.6 to 72.4 %" in text
  assert "4.30 nats" in text
  assert made.unknown == []
  made = headline(Measures("PPO", reward=Change(0.1, 0.2)))
  unknown = " ".join(made.unknown)
  for words in ("Whether answers got better", "Whether its score rose", "no KL is measured"):
    assert words in unknown
  assert "How often the judge is right" in " ".join(headline(Measures("PPO", wins=WON)).unknown)


def test_a_change_between_means_adds_their_intervals_as_squares():
  change = change_between(Estimate(1.0, 0.7, 1.3, 9), Estimate(1.4, 1.0, 1.8, 9))
  assert change == pytest.approx((1.0, 1.4, 0.5))  # √(.3² + .4²)
  assert direction(change) == 0
  assert direction(change._replace(after=1.51)) == 1
  assert direction(change._replace(after=0.4)) == -1
  assert direction(Change(0.0, 9.0)) is None
  assert direction(None) is None


def test_the_noise_of_a_curve_is_that_between_neighbours():
  # Neighbours differ by 1: a noise of √.5, and of the means of two (a quarter of 8) √.25 each.
  change = change_of_curve([0, 1, 0, 1, 0, 1, 0, 1])
  t = 2.3646  # Student's t of 7 degrees of freedom
  assert change == pytest.approx((0.5, 0.5, t * math.sqrt(0.5)), rel=1e-3)
  assert direction(change) == 0
  assert direction(change_of_curve([0, 1, 0, 1, 5, 6, 5, 6])) == 1
  assert direction(change_of_curve([0.0] * 8)) == 0
  assert direction(change_of_curve([0, 1, 2, 3, 4, 5, 6])) is None  # too few
  assert change_of_curve([]) is None
