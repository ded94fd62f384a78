"""The tables that the quickstart prints at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instructjax import intervals
from instructjax.intervals import Estimate
from instructjax.system import tables
from instructjax.system.tables import Table

# The measures that are printed, how they are called, and their decimals.
MEASURES = {
  "follows_praise": ("asked to praise: follows (VADER)", 3),
  "follows_criticise": ("asked to criticise: follows (VADER)", 3),
  "directed": ("asked both ways: praise is the nicer (gold)", 3),
  "gold": ("gold score", 2),
  "score": ("reward-model score", 2),
  "empty": ("empty answers", 3),
  "repeated": ("answers that another prompt got too", 3),
  "distinct": ("distinct 2-grams", 3),
  "length": ("length, tokens", 1),
  "kl": ("KL to rl_init, nats", 1),
  "pretrain_nll": ("held-out text, nats a token", 3),
}
# The win rates that are printed, and how they are called.
WINS = {
  "win_rate_vs_sft": "gold win rate against sft",
  "win_rate_vs_sft_answered": "of these, where both answered",
  "win_rate_vs_base": "gold win rate against base",
}
NOTHING = "–"


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
  """Returns a line for each measure, with a column for each author of answers."""
  rows: list[tuple[Any, ...]] = []
  for measure, (title, digits) in MEASURES.items():
    values = [number(row.get(measure)) for row in models.values()]
    cells = [NOTHING if value is None else f"{value:.{digits}f}" for value in values]
    rows.append((title, *cells))
  # Of the win rates the interval counts: does it contain a half?
  for measure, title in WINS.items():
    cells = []
    for row in models.values():
      # Nobody wins against themselves.
      cells.append(with_interval(row[measure]) if measure in row else NOTHING)
    rows.append((title, *cells))
  prompts = models["sft"]["gold"]["n"]
  title = f"Answers to {prompts} prompts that no training saw, half of each direction"
  return Table(title, ("", *models), rows)


def number(value: Any) -> float | None:
  """Returns a number, or that of an estimate."""
  return value["value"] if isinstance(value, dict) else value


def counted(estimate: dict[str, Any]) -> str:
  """Returns the number of items of an estimate and of the clusters that they are in."""
  return intervals.counted(Estimate(**estimate))


def with_interval(estimate: dict[str, Any]) -> str:
  """Returns a value with its interval, as a cell of a table."""
  value, low, high = estimate["value"], estimate["low"], estimate["high"]
  return f"{value:.3f} ({low:.3f} to {high:.3f})"
