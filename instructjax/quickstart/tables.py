"""The tables that the quickstart prints at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instructjax.system.tables import Table
from instructjax.system.tables import show as show_tables

# Measures of the policies, and their decimals.
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
  show_tables([ranking_table(results["rm"]), policy_table(results["models"])])
  for note in results["notes"]:
    print(note)
  seconds = "  ".join(f"{name} {value:.0f}" for name, value in results["seconds"].items())
  print(f"Seconds: {seconds}. Peak memory {results['peak_rss_gb']:.1f} GB. Report: {page}")


def ranking_table(rm: dict[str, Any]) -> Table:
  """Returns the accuracy of the reward model and of what it is compared with."""
  estimates = {"reward model": rm["pair_accuracy"]}
  for domain, estimate in rm["by_domain"].items():
    estimates[f"  {domain}"] = estimate
  estimates["gold model"] = rm["gold_pair_accuracy"]
  estimates["VADER lexicon"] = rm["references"]["vader"]
  estimates["one rater against another"] = rm["references"]["raters"]
  estimates["half of the raters against the other"] = rm["references"]["ceiling"]
  rows = [(name, with_interval(estimate), estimate["n"]) for name, estimate in estimates.items()]
  title = "Reward model: pairs ordered as people did, held-out texts and templates"
  return Table(title, ("", "accuracy, 95 % interval", "pairs"), rows)


def policy_table(models: dict[str, Any]) -> Table:
  """Returns every measure of every policy."""
  rows: list[tuple[Any, ...]] = []
  for measure, digits in DIGITS.items():
    cells = [f"{row[measure]['value']:.{digits}f}" for row in models.values()]
    rows.append((measure, *cells))
  wins = [with_interval(row["win_rate_vs_sft"]) for row in models.values()]
  rows.append(("gold win rate against sft", *wins))
  prompts = models["sft"]["gold"]["n"]
  return Table(f"Policies on {prompts} prompts that no training saw", ("", *models), rows)


def with_interval(estimate: dict[str, Any]) -> str:
  """Returns a value with its interval, as a cell of a table."""
  return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
