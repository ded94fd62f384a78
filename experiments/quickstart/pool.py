"""One table of several runs of the quickstart, with intervals over runs and prompts.

  python experiments/quickstart/pool.py runs/seed0 runs/seed1 runs/seed2

Every number is the mean of what the runs measured. Its interval holds how the runs differ, in their
seed and their prompts, and is never narrower than that of the prompts of all runs
(`intervals.over_runs`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructjax.intervals import Estimate, over_runs

AUTHORS = ("base", "sft", "best_of_n", "ppo", "ptx", "people")
# A measure of an author, of its row of results.json.
Measure = Callable[[dict[str, Any]], Any]


def win_rate(rival: str, part: str = "") -> Measure:
  """Returns the measure of gold win rates against a rival, on all prompts or on a slice of them."""
  if part:
    return lambda row: row.get(f"win_rate_vs_{rival}_by_slice", {}).get(part)
  return lambda row: row.get(f"win_rate_vs_{rival}")


def named(name: str) -> Measure:
  """Returns the measure of that name."""
  return lambda row: row.get(name)


# The rows of the table in their order; two rivals have rows of the same title.
MEASURES: tuple[tuple[str, Measure], ...] = (
  ("gold win rate against SFT", win_rate("sft")),
  ("of these, asked to praise", win_rate("sft", "praise")),
  ("of these, asked to criticise", win_rate("sft", "criticise")),
  ("gold win rate against base", win_rate("base")),
  ("of these, asked to praise", win_rate("base", "praise")),
  ("of these, asked to criticise", win_rate("base", "criticise")),
  ("asked both ways, the praise is the nicer (gold)", named("directed")),
  ("praises when asked (VADER)", named("follows_praise")),
  ("criticises when asked (VADER)", named("follows_criticise")),
  ("empty", named("empty")),
  ("the same answer as to another prompt", named("repeated")),
  ("distinct 2-grams", named("distinct")),
  ("tokens", named("length")),
  ("KL to `rl_init`, nats", named("kl")),
  ("held-out text, nats a token", named("pretrain_nll")),
)
NO_SHARES = ("tokens", "KL to `rl_init`, nats", "held-out text, nats a token")
RANKING = ("pair_accuracy", "gold_pair_accuracy")


def cell(values: list[Any], is_share: bool = True) -> str:
  """Returns a measure over runs as the table shows it; "–" where an author has none.

  The interval of a share ends at 0 and 1.
  """
  if any(value is None for value in values):
    return "–"
  # Distinct 2-grams are of all answers together, and have no interval of their own.
  parts = [
    Estimate(**value) if isinstance(value, dict) else Estimate(value, value, value, 1)
    for value in values
  ]
  pooled = over_runs(parts)
  low, high = pooled.low, pooled.high
  if is_share:
    low, high = max(low, 0.0), min(high, 1.0)
  text = f"{pooled.value:.3f} ({low:.3f} to {high:.3f})"
  return re.sub(r"\b0\.", ".", text)


def main(folders: list[str]) -> None:
  results = [json.loads((Path(folder) / "results.json").read_text()) for folder in folders]
  print("| | " + " | ".join(AUTHORS) + " |")
  print("|---" * (len(AUTHORS) + 1) + "|")
  for title, measure in MEASURES:
    rows = {author: [result["models"][author] for result in results] for author in AUTHORS}
    is_share = title not in NO_SHARES
    cells = [cell([measure(row) for row in rows[author]], is_share) for author in AUTHORS]
    print(f"| {title} | " + " | ".join(cells) + " |")
  print()
  for name in RANKING:
    print(f"{name}: {cell([result['rm'][name] for result in results])}")
  for direction in ("praise", "criticise"):
    of_runs = [result["rm"]["by_direction"][direction] for result in results]
    print(f"pair_accuracy, asked to {direction}: {cell(of_runs)}")
  for folder, result in zip(folders, results, strict=True):
    print(f"{folder}: {result['seconds']['total']:.0f} s, {result['peak_rss_gb']} GB")
    rate = result["models"]["ptx"]["win_rate_vs_sft"]["value"]
    print(f"  PPO-ptx against SFT {rate:.3f}")


if __name__ == "__main__":
  main(sys.argv[1:])
