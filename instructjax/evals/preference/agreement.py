"""How good a judge is: how far it agrees with people, and how far people agree with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructjax import intervals
from instructjax.data.records import agreement
from instructjax.data.records.records import Comparison
from instructjax.errors import UserError
from instructjax.evals.preference import judgements
from instructjax.evals.preference.judges import SCORES, Judge
from instructjax.evals.preference.judging import Orders, orders_of_verdicts, outcome


class Pair(NamedTuple):
  """Two outputs for one prompt."""

  prompt: str
  a: str
  b: str


def with_people(
  judge: Judge,
  records: Sequence[Comparison],
  folder: Path,
  margin: float,
) -> dict[str, Any]:
  """Returns how often a judge orders two outputs as a labeler did, with intervals over prompts.

  agreement        of the pairs that neither of them ties
  agreement_ties   of all pairs: the same answer counts 1, a tie against a preference 1/2 and
                   opposite preferences 0 (as in data/records/agreement.py)
  tied             the share of the judge's verdicts that are ties
  inconsistent     the share of its pairs whose verdict is another one in the other order; it is no
                   number where the judge scores
  """
  # Several labelers may have ranked the same pair; the judge is asked about it once.
  pairs = list(dict.fromkeys(pair for record in records for pair in _pairs(record)))
  orders_by_pair = dict(zip(pairs, _judge_pairs(judge, pairs, folder, margin), strict=True))
  # Two columns for each figure: a sum, and the number that it is divided by.
  sums_by_prompt: dict[str, np.ndarray] = {}
  for record in records:
    sums = sums_by_prompt.setdefault(record.prompt, np.zeros(8))
    for pair, (rank_a, rank_b) in zip(_pairs(record), combinations(record.ranks, 2), strict=True):
      sums += _compare(orders_by_pair[pair], rank_a, rank_b)
  rows = np.stack(list(sums_by_prompt.values()))
  return {
    "agreement": intervals.share(rows[:, 0:2]),
    "agreement_ties": intervals.share(rows[:, 2:4]),
    "tied": intervals.share(rows[:, 4:6]),
    "inconsistent": intervals.share(rows[:, 6:8]),
  }


def _compare(orders: Orders, rank_a: int, rank_b: int) -> np.ndarray:
  """Returns what one pair adds to the sums, 8 numbers."""
  # +1 where `a` is preferred, -1 where `b` is, 0 for a tie; rank 1 is the best.
  judge_sign = np.sign(sum(orders) - 0.5 * len(orders))
  labeler_sign = np.sign(rank_b - rank_a)
  strict = judge_sign != 0 and labeler_sign != 0
  same_strictly = strict and judge_sign == labeler_sign
  agreement_with_ties = 1 - abs(judge_sign - labeler_sign) / 2
  # A judge that scores has one order, which counts neither as consistent nor as inconsistent.
  changed = orders[0] != orders[-1]
  other_orders = len(orders) - 1
  return np.array(
    [
      *(same_strictly, strict),
      *(agreement_with_ties, 1),
      *(orders.count(0.5), len(orders)),
      *(changed, other_orders),
    ],
    dtype=float,
  )


def of_people(records: Sequence[Comparison]) -> Mapping[str, Any] | None:
  """Returns the labelers' own agreement; None where no prompt has two of them."""
  # `agreement.measure` needs two labelers of a prompt.
  try:
    estimates = agreement.measure(records)
  except UserError:
    return None
  return {name: estimates[name] for name in ("agreement", "agreement_ties", "tied")}


def _pairs(record: Comparison) -> list[Pair]:
  pairs = []
  for a, b in combinations(record.completions, 2):
    pairs.append(Pair(record.prompt, a.strip(), b.strip()))
  return pairs


def _judge_pairs(
  judge: Judge,
  pairs: Sequence[Pair],
  folder: Path,
  margin: float,
) -> list[Orders]:
  """Returns the outcomes for `a` of each pair (`Vote.orders`)."""
  path = folder / f"check-{judge.name}.jsonl"
  if judge.kind == SCORES:
    return _score_pairs(judge, pairs, path, margin)
  questions = []
  for prompt, a, b in pairs:
    # In both orders, as in the evaluation itself.
    questions += [(prompt, a, b), (prompt, b, a)]
  no_notes = [{}] * len(questions)
  return orders_of_verdicts(judgements.ask_all(judge, questions, no_notes, path))


def _score_pairs(
  judge: Judge,
  pairs: Sequence[Pair],
  path: Path,
  margin: float,
) -> list[Orders]:
  """Scores each output once, however many pairs it is in."""
  outputs: dict[tuple[str, str], None] = {}
  for prompt, a, b in pairs:
    outputs[prompt, a] = None
    outputs[prompt, b] = None
  questions = []
  for prompt, text in outputs:
    # Rewards read the whole text, so a space stands where a model would have sampled one.
    separator = "" if prompt[-1:].isspace() else " "
    questions.append((prompt, separator + text))
  no_notes = [{}] * len(questions)
  scores = dict(zip(outputs, judgements.ask_all(judge, questions, no_notes, path), strict=True))
  orders: list[Orders] = []
  for prompt, a, b in pairs:
    orders.append((outcome(scores[prompt, a] - scores[prompt, b], margin),))
  return orders
