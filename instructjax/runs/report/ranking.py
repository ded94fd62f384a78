"""The section about the reward model: its accuracy on pairs of texts and its calibration."""

from __future__ import annotations

import math
from typing import Any

from instructjax.runs.report import page
from instructjax.runs.report.figures import Mark, Row, Series, forest, plot
from instructjax.runs.report.files import Run, estimate, inside, number
from instructjax.runs.report.names import SLICES
from instructjax.runs.report.page import Section

REFERENCES = {
  "vader": "VADER lexicon",
  "raters": "rater and rater",
  "ceiling": "noise ceiling",
}
LEAD = (
  "On comparisons of held-out texts, with templates that no training saw. Bars are 95 % intervals."
)
ACCURACY_NOTE = (
  "Dashed: chance. Dotted: the references in grey. "
  "Rater and rater: two raters of the same texts. "
  "Noise ceiling: one half of the raters against the other."
)
Z = 1.96  # standard deviations of a normal distribution that hold 95 % of it


def ranking(run: Run) -> Section:
  """Returns the accuracy on pairs beside its references, and the calibration."""
  rm = inside(run.results, "rm")
  figures = [accuracy(rm), calibration(rm.get("calibration"))]
  body = page.grid([figure for figure in figures if figure])
  return page.section("ranking", "Reward model", LEAD, body)


def accuracy(rm: dict[str, Any]) -> str:
  """Returns a forest plot of the share of pairs that are ordered as people order them.

  The rows are the reward model, its domains, the gold model, and the references in grey: a
  lexicon, and people themselves.
  """
  references = inside(rm, "references")
  chance = number(references.get("chance"))
  # Chance is the dashed line of the figure, the other references are rows of it.
  others = {name: value for name, value in references.items() if name != "chance"}

  entries = [("reward model", "rm", rm.get("pair_accuracy"))]
  for name, value in inside(rm, "by_domain").items():
    entries.append((SLICES.get(name, name), "rm", value))
  entries.append(("gold model", "gold", rm.get("gold_pair_accuracy")))
  for name, value in others.items():
    entries.append((REFERENCES.get(name, name), "base", value))

  rows = []
  for label, look, value in entries:
    share = estimate(value)
    if share is not None:
      mark: Mark = (look, share.value, share.low, share.high)
      rows.append(Row(label, [mark]))
  if not rows:
    return ""
  # The references also run through all rows as dotted lines, to be compared with each of them.
  levels = [number(value) for value in others.values()]
  return forest(
    "Pairs ordered as people do",
    rows,
    "share of pairs",
    reference=chance or 0.5,
    lines=[level for level in levels if level is not None],
    note=ACCURACY_NOTE,
  )


def calibration(bins: Any) -> str:
  """Returns the share of pairs that are ordered rightly against the probability given to them.

  `bins` is a list of objects: `p` is the mean probability that the model gives to the text that
  it prefers, `correct` the share of pairs in which people prefer that text too, `n` the number of
  pairs.
  """
  probabilities = []
  shares = []
  lows = []
  highs = []
  pairs = 0.0
  for part in bins if isinstance(bins, list) else []:
    fields = inside({"bin": part}, "bin")  # empty where the part is no object
    probability = number(fields.get("p"))
    share = number(fields.get("correct"))
    count = number(fields.get("n"))
    if probability is None or share is None or not count:
      continue  # a bin without pairs has no share
    low, high = wilson(share, count)
    probabilities.append(probability)
    shares.append(share)
    lows.append(low)
    highs.append(high)
    pairs += count
  if not shares:
    return ""
  return plot(
    "Calibration",
    [Series("pairs", "rm", probabilities, shares, low=lows, high=highs)],
    "probability given to the preferred text",
    "share right",
    percent=(True, True),
    also=((0.5, 1.0), (0.5, 1.0)),  # the preferred text of two has at least a half
    diagonal=True,
    note=(f"{pairs:,.0f} pairs, taken as independent for the bars; on the dashed line p is right."),
  )


def wilson(share: float, n: float, z: float = Z) -> tuple[float, float]:
  """Returns the ends of Wilson's score interval of a share of n.

    (p + z²/2n ± z √(p (1 - p)/n + z²/4n²)) / (1 + z²/n)    (Wilson 1927)

  Unlike p ± z √(p (1 - p)/n) it stays within 0 and 1, and has a width where p is 0 or 1.
  """
  z2 = z * z
  middle = share + z2 / (2 * n)
  variance = share * (1 - share) / n + z2 / (4 * n * n)
  half = z * math.sqrt(variance)
  scale = 1 + z2 / n
  return (middle - half) / scale, (middle + half) / scale
