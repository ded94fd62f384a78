"""The section about the reward model: its accuracy on pairs of texts and its calibration."""

from __future__ import annotations

from typing import Any

from instructjax.intervals import wilson
from instructjax.runs.report import page
from instructjax.runs.report.figures import Mark, Row, Series, forest, plot
from instructjax.runs.report.files import Run, estimate, inside, number, ordering
from instructjax.runs.report.names import SLICES
from instructjax.runs.report.page import Section

REFERENCES = {
  "longer": "the longer one",
  "vader": "VADER lexicon",
  "raters": "rater and rater",
  "ceiling": "noise ceiling",
  "labelers": "two labelers",
  "bayes": "best possible",
}
LEAD = "On held-out comparisons. Bars are 95 % intervals over prompts."
LEAD_OF_DOMAINS = (
  "On comparisons of held-out texts, with templates that no training saw. Bars are 95 % intervals."
)
ACCURACY_NOTE = "Dashed: chance. Dotted: the references in grey."
# What the references are, as the note explains those that are there.
REFERENCE_NOTES = {
  "longer": "The longer one: how often people prefer the text with more characters.",
  "raters": "Rater and rater: two raters of the same texts.",
  "ceiling": "Noise ceiling: one half of the raters against the other.",
  "labelers": "Two labelers: of the same completions, pairs that neither ties.",
  "bayes": "Best possible: a perfect model on single labels of people who agree so much.",
}
# (key in results.json, the word before the name) of the parts that the accuracy is split into.
PARTS = (
  ("by_domain", ""),
  ("by_direction", ""),
  ("by_pool", ""),
  ("by_k", "K = "),
  ("by_labeler", ""),
)
MOST_ROWS = 16  # of one kind of parts; the others are in results.json


def ranking(run: Run) -> Section:
  """Returns the accuracy on pairs beside its references, and the calibration."""
  name, rm = ordering(run)
  figures = [accuracy(rm, name), calibration(rm), cross_validation(run)]
  body = page.grid([figure for figure in figures if figure])
  lead = LEAD_OF_DOMAINS if "by_domain" in rm else LEAD
  return page.section("ranking", name.capitalize(), lead, body)


def parts_of_accuracy(rm: dict[str, Any]) -> list[tuple[str, str, Any]]:
  """Returns (label, look, value) of the accuracy on parts of the pairs.

  A single part is the whole again and is left out. Of many parts, those with most pairs are shown.
  """
  entries: list[tuple[str, str, Any]] = []
  for key, prefix in PARTS:
    parts = inside(rm, key)
    if len(parts) < 2:
      continue
    by_size = sorted(parts, key=lambda name: -(number(inside(parts, name).get("n")) or 0))
    shown = {*by_size[:MOST_ROWS]}
    for name, value in parts.items():
      if name in shown:
        entries.append((prefix + SLICES.get(name, name), "rm", value))
  return entries


def accuracy(rm: dict[str, Any], name: str = "reward model") -> str:
  """Returns a forest plot of the share of pairs that are ordered as people order them.

  The rows are the reward model (or what else `name` is), its parts (domains, numbers of
  completions, labelers), the gold model, and the references in grey: a lexicon, and people
  themselves.
  """
  references = inside(rm, "references")
  chance = number(references.get("chance"))
  # Chance is the dashed line of the figure, the other references are rows of it.
  others = {name: value for name, value in references.items() if name != "chance"}

  entries = [(name, "rm", rm.get("pair_accuracy"))]
  entries += parts_of_accuracy(rm)
  entries.append(("gold model", "gold", rm.get("gold_pair_accuracy")))
  for reference, value in others.items():
    entries.append((REFERENCES.get(reference, reference), "base", value))

  rows = []
  shares = {}
  for label, look, value in entries:
    share = estimate(value)
    if share is not None:
      mark: Mark = (look, share.value, share.low, share.high)
      rows.append(Row(label, [mark]))
      shares[label] = share
  if not rows:
    return ""
  notes = [text for reference, text in REFERENCE_NOTES.items() if reference in others]
  counts = page.counts_note(shares)
  if counts:
    notes.append(counts)
  # The references also run through all rows as dotted lines, to be compared with each of them.
  levels = [number(value) for value in others.values()]
  return forest(
    "Pairs ordered as people do",
    rows,
    "share of pairs",
    reference=chance or 0.5,
    lines=[level for level in levels if level is not None],
    note=" ".join([ACCURACY_NOTE, *notes]),
  )


def cross_validation(run: Run) -> str:
  """Returns a forest plot of the accuracy on own and on held-out labelers, model by model.

  It is there where `instructjax rm_cv` left its results.
  """
  summary = inside(run.results, "rm_cv")
  rows = []
  shares = {}
  for name in ("training labelers", "held-out labelers"):
    share = estimate(summary.get(name))
    if share is not None:
      shares[name] = share
      rows.append(Row(name, [("rm", share.value, share.low, share.high)]))
  if not rows:
    return ""
  models = summary.get("models")
  count = len(models) if isinstance(models, list) else 0
  note = (
    f"Means over {count} models, each trained without one group of labelers. "
    f"{page.counts_note(shares)}"
  )
  gap = estimate(summary.get("gap"))
  if gap is not None:
    note += f" The difference is {page.with_ends(gap)}."
  return forest(
    "Labelers of the training data, and others",
    rows,
    "share of pairs",
    reference=0.5,
    note=note,
  )


def calibration(rm: dict[str, Any]) -> str:
  """Returns the share of pairs that are ordered rightly against the probability given to them.

  `calibration` is a list of objects: `p` is the mean probability that the model gives to the text
  that it prefers, `correct` the share of pairs in which people prefer that text too, `n` the number
  of pairs. The slope of the log-odds and the expected calibration error stand below the figure.
  """
  bins = rm.get("calibration")
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
    note=calibration_note(rm, pairs),
  )


def calibration_note(rm: dict[str, Any], pairs: float) -> str:
  """Returns the small print: the number of pairs, the slope of the log-odds, and the error."""
  parts = [f"{pairs:,.0f} pairs, taken as independent for the bars; on the dashed line p is right."]
  slope = estimate(rm.get("slope"))
  if slope is not None:
    parts.append(f"Slope of the log-odds {page.with_ends(slope, share=False)}; 1 is calibrated.")
  error = number(rm.get("ece"))
  if error is not None:
    parts.append(f"Expected calibration error {page.percent(error)}.")
  return " ".join(parts)
