"""How good is a judge?  How far it agrees with people's rankings, beside how far people agree with
each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from instructjax import intervals
from instructjax.data.records.records import Comparison
from instructjax.errors import UserError
from instructjax.evals.preference import kept
from instructjax.evals.preference.judges import SCORES, Judge
from instructjax.evals.preference.judging import compared, paired
from instructjax.label import agreement


def with_people(
  judge: Judge, records: Sequence[Comparison], folder: Path, margin: float
) -> dict[str, Any]:
  """How often a judge orders two outputs as a labeler did, with intervals over prompts.

  agreement        pairs that neither ties
  agreement_ties   all pairs: the same answer 1, a tie against a preference 1/2, opposite ones 0 (as label/agreement.py)
  tied, inconsistent   of the judge's verdicts, and of its pairs in the other order (None where it scores)
  """
  pairs = list(dict.fromkeys(pair for record in records for pair in _pairs(record)))
  verdict = dict(zip(pairs, _verdicts(judge, pairs, folder, margin), strict=True))
  sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(8))
  for record in records:
    for pair, (i, j) in zip(_pairs(record), combinations(range(len(record.ranks)), 2), strict=True):
      orders = verdict[pair]
      ours, theirs = (
        np.sign(sum(orders) - 0.5 * len(orders)),
        np.sign(record.ranks[j] - record.ranks[i]),
      )
      strict = ours != 0 and theirs != 0
      sums[record.prompt] += [
        strict and ours == theirs,
        strict,
        1 - abs(ours - theirs) / 2,
        1,
        orders.count(0.5),
        len(orders),
        orders[0] != orders[-1],
        len(orders) - 1,
      ]
  rows = np.stack(list(sums.values()))
  names = ("agreement", "agreement_ties", "tied", "inconsistent")
  return {name: intervals.share(rows[:, 2 * at : 2 * at + 2]) for at, name in enumerate(names)}


def of_people(records: Sequence[Comparison]) -> dict[str, Any] | None:
  """The labelers' own agreement; None where no prompt has two of them."""
  try:
    found = agreement.measure(records)
  except UserError:
    return None
  return {name: found[name] for name in ("agreement", "agreement_ties", "tied")}


def _pairs(record: Comparison) -> list[tuple[str, str, str]]:
  return [(record.prompt, a.strip(), b.strip()) for a, b in combinations(record.completions, 2)]


def _verdicts(
  judge: Judge, pairs: Sequence[tuple[str, str, str]], folder: Path, margin: float
) -> list[tuple[float, ...]]:
  """`Vote.orders` of each pair."""
  path = folder / f"check-{judge.name}.jsonl"
  if judge.kind != SCORES:
    questions = [one for prompt, a, b in pairs for one in ((prompt, a, b), (prompt, b, a))]
    return paired(kept.asked(judge, questions, [{}] * len(questions), path))
  texts = list(dict.fromkeys((prompt, text) for prompt, *two in pairs for text in two))
  spaced = [(prompt, text if prompt[-1:].isspace() else f" {text}") for prompt, text in texts]
  scores = dict(zip(texts, kept.asked(judge, spaced, [{}] * len(texts), path), strict=True))
  return [(compared(scores[prompt, a] - scores[prompt, b], margin),) for prompt, a, b in pairs]
