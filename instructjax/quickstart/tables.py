"""The tables that the quickstart prints at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instructjax import intervals
from instructjax.intervals import Estimate
from instructjax.system import tables
from instructjax.system.tables import Table

# The measures of the policies that are printed, and their decimals.
DIGITS = {
  "score": 2,
  "gold": 2,
  "follows": 3,
  "kl": 2,
  "length": 1,
  "eos_rate": 3,
  "pretrain_nll": 3,
}


def show(results: dict[str, Any], page: Path) -> None:
  """Prints the tables, the notes, the seconds, and where the report is."""
  ranking = ranking_table(results["rm"])
  policies = policy_table(results["models"])
  tables.show([ranking, policies])
  for note in results["notes"]:
    print(note)
  # The seconds of all calls with this directory: an interrupted run counts too.
  parts = []
  for name, seconds in results["seconds"].items():
    parts.append(f"{name} {seconds:.0f}")
  print(f"Seconds: {'  '.join(parts)}.")
  print(f"Peak memory: {results['peak_rss_gb']:.1f} GB.")
  print(f"Report: {page}")


def ranking_table(rm: dict[str, Any]) -> Table:
  """Returns the accuracy of the reward model, and of what it compares with."""
  estimates = {"reward model": rm["pair_accuracy"]}
  # The domains are indented: the first line is the mean of those that the model was trained on.
  for domain, estimate in rm["by_domain"].items():
    estimates[f"  {domain}"] = estimate
  references = rm["references"]
  estimates["gold model"] = rm["gold_pair_accuracy"]
  estimates["VADER lexicon"] = references["vader"]
  estimates["one rater against another"] = references["raters"]
  estimates["half of the raters against the other"] = references["ceiling"]
  rows = []
  for name, estimate in estimates.items():
    rows.append((name, with_interval(estimate), counted(estimate)))
  title = "Reward model: pairs ordered as people did, held-out texts and templates"
  columns = ("", "accuracy, 95 % interval", "pairs in prompts")
  return Table(title, columns, rows)


def policy_table(models: dict[str, Any]) -> Table:
  """Returns a line for each measure, with a column for each policy."""
  rows: list[tuple[Any, ...]] = []
  for measure, digits in DIGITS.items():
    cells = []
    for row in models.values():
      value = row[measure]["value"]
      cells.append(f"{value:.{digits}f}")
    # All models have answered the same prompts and read the same texts.
    n = counted(models["sft"][measure])
    rows.append((measure, n, *cells))
  # Of the win rate the interval counts: does it contain a half?
  wins = []
  n = ""
  for row in models.values():
    if "win_rate_vs_sft" not in row:
      wins.append("–")  # nobody wins against themselves
      continue
    wins.append(with_interval(row["win_rate_vs_sft"]))
    n = counted(row["win_rate_vs_sft"])
  rows.append(("gold win rate against sft", n, *wins))
  prompts = models["sft"]["gold"]["n"]
  title = f"Policies on {prompts} prompts that no training saw"
  return Table(title, ("", "n", *models), rows)


def counted(estimate: dict[str, Any]) -> str:
  """Returns the number of items of an estimate and of the clusters that they are in."""
  return intervals.counted(Estimate(**estimate))


def with_interval(estimate: dict[str, Any]) -> str:
  """Returns a value with its interval, as a cell of a table."""
  value, low, high = estimate["value"], estimate["low"], estimate["high"]
  return f"{value:.3f} ({low:.3f} to {high:.3f})"
