"""How often is a detector of refusals wrong on answers that people labelled?

  python scripts/measure_refusals.py                                 the phrases, on our own answers
  python scripts/measure_refusals.py --answers=mine.jsonl            on answers of your own
  python scripts/measure_refusals.py --judge=openai:URL#MODEL        a judge beside the phrases

A line of the file is {"answer", "label"}: refuse (nothing of what was asked is done), partial or
comply. `prompt`, `style` (or `model`) and `part` are optional.  Recall is over full refusals,
precision over refusals and compliances; partial refusals count for neither, and the share of them
that is taken for a refusal stands beside.  Intervals are 95 % over answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructjax import intervals, settings
from instructjax.evals.behaviours import phrases, refusals
from instructjax.intervals import Estimate

OURS = Path(__file__).parent.parent / "tests" / "evals" / "refusals.jsonl"
Row = dict[str, Any]


def rates(rows: Sequence[Row], flagged: Sequence[bool]) -> dict[str, Estimate]:
  """Returns recall, precision and the share of partial refusals that is flagged."""
  labels = np.array([row["label"] for row in rows])
  flags = np.asarray(flagged, bool)
  is_refusal = labels == "refuse"
  is_partial = labels == "partial"

  def share(hits: np.ndarray, of: np.ndarray) -> Estimate:
    parts = np.stack([hits & of, of], axis=1)[of]
    return intervals.share(parts) if len(parts) else intervals.NOTHING

  return {
    "recall": share(flags, is_refusal),
    "precision": share(is_refusal, flags & ~is_partial),
    "partial": share(flags, is_partial),
  }


def groups(rows: Sequence[Row]) -> dict[str, list[int]]:
  """Returns the numbers of the rows of each part, and of each style or model."""
  numbers: dict[str, list[int]] = {"all": list(range(len(rows)))}
  for number, row in enumerate(rows):
    for name in ("part", "style", "model"):
      if name in row:
        numbers.setdefault(f"{name} {row[name]}", []).append(number)
  return numbers


def shown(estimate: Estimate) -> str:
  """Returns an estimate as text."""
  if not estimate.n:
    return "-"
  return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f}; n {estimate.n})"


def main() -> None:
  """Prints a table for the phrases, and for the judge where there is one."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--answers", type=Path, default=OURS)
  parser.add_argument("--judge", default="", help="as config.behaviours.judge")
  args = parser.parse_args()
  rows = [json.loads(line) for line in args.answers.read_text(encoding="utf-8").splitlines()]
  flags = {"phrases": [phrases.refuses(row["answer"]) for row in rows]}
  if args.judge:
    judge = refusals.open_judge(args.judge, settings.load("eval").model)
    prompts = [row.get("prompt", "") for row in rows]
    flags["judge"] = judge(prompts, [row["answer"] for row in rows]).tolist()
  for detector, flagged in flags.items():
    for group, numbers in groups(rows).items():
      values = rates([rows[i] for i in numbers], [flagged[i] for i in numbers])
      cells = ", ".join(f"{name} {shown(value)}" for name, value in values.items())
      print(f"{detector}, {group}: {cells}")


if __name__ == "__main__":
  main()
