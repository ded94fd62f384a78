"""How good a judge is: how far it agrees with people, and how far people agree with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructjax import intervals
from instructjax.data.records import agreement, preferences
from instructjax.data.records.records import Comparison
from instructjax.errors import UserError
from instructjax.evals.preference import judgements
from instructjax.evals.preference.judges import SCORES, Judge
from instructjax.evals.preference.judging import Orders, orders_of_verdicts, outcome
from instructjax.evals.preference.votes import Vote


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
    sign, compared = preferences.signs(record), preferences.compared(record)
    places = combinations(range(len(record.completions)), 2)
    for pair, place in zip(_pairs(record), places, strict=True):
      if compared[place]:
        sums += _compare(orders_by_pair[pair], float(sign[place]))
  rows = np.stack(list(sums_by_prompt.values()))
  return {
    "agreement": intervals.share(rows[:, 0:2]),
    "agreement_ties": intervals.share(rows[:, 2:4]),
    "tied": intervals.share(rows[:, 4:6]),
    "inconsistent": intervals.share(rows[:, 6:8]),
  }


def _compare(orders: Orders, labeler_sign: float) -> np.ndarray:
  """Returns what one pair adds to the sums, 8 numbers."""
  # +1 where `a` is preferred, -1 where `b` is, 0 for a tie.
  judge_sign = np.sign(sum(orders) - 0.5 * len(orders))
  # A judge that scores has one order, which counts neither as consistent nor as inconsistent.
  changed = orders[0] != orders[-1]
  other_orders = len(orders) - 1
  return np.array(
    [
      *_agree(float(judge_sign), labeler_sign),
      *(orders.count(0.5), len(orders)),
      *(changed, other_orders),
    ],
    dtype=float,
  )


def between_judges(votes_by_judge: Mapping[str, Sequence[Vote]]) -> dict[str, dict[str, Any]]:
  """Returns how often each two judges agree on the same pairs of answers, people among them.

  Each entry {"x / y": {agreement, agreement_ties}} has the figures of `with_people`, over the pairs
  that both have judged. Where a judge is several people, each of them counts, and "x / x" is their
  agreement with each other. Judges without a pair in common have no entry.
  """
  signs_by_judge = {judge: _signs(judged) for judge, judged in votes_by_judge.items()}
  table = {}
  for x, y in combinations_with_replacement(signs_by_judge, 2):
    sums_by_prompt: dict[str, np.ndarray] = {}
    for key, signs in signs_by_judge[x].items():
      if x == y:
        both = list(combinations(signs, 2))
      else:
        both = list(product(signs, signs_by_judge[y].get(key, ())))
      for sign, other_sign in both:
        sums = sums_by_prompt.setdefault(key[0], np.zeros(4))
        sums += _agree(sign, other_sign)
    if sums_by_prompt:
      rows = np.stack(list(sums_by_prompt.values()))
      table[f"{x} / {y}"] = {
        "agreement": intervals.share(rows[:, 0:2]),
        "agreement_ties": intervals.share(rows[:, 2:4]),
      }
  return table


def _signs(judged: Sequence[Vote]) -> dict[tuple[str, str, str], list[float]]:
  """Returns the verdicts on each pair of answers: 1 where the first won, -1, or 0 for a tie."""
  signs: dict[tuple[str, str, str], list[float]] = {}
  for vote in judged:
    # Judges may name the two models in another order.
    ordered = vote if vote.a < vote.b else vote.reversed()
    sign = float(np.sign(ordered.won - 0.5))
    signs.setdefault((ordered.prompt, ordered.a, ordered.b), []).append(sign)
  return signs


def _agree(sign: float, other_sign: float) -> tuple[float, float, float, float]:
  """Returns (the same order, both have one) and (the agreement with ties as half, 1)."""
  strict = sign != 0 and other_sign != 0
  same = strict and sign == other_sign
  return float(same), float(strict), 1 - abs(sign - other_sign) / 2, 1.0


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
