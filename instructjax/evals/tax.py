"""The alignment tax: what tasks of the base model's own are worth after SFT, PPO and PPO-ptx (section 4.2, Table 14).

SFT stands in every table: it loses on some tasks itself, so that a loss of PPO's is not one to RL alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from instructjax.evals import page, paper, summary
from instructjax.evals.tasks import Heard, Metric, Scores, Task
from instructjax.intervals import Estimate
from instructjax.report import page as html

Column = Mapping[str, Mapping[str, Estimate]]  # task, model
ORDER = tuple(dict.fromkeys(paper.MODELS.values()))


def ordered(models: Sequence[str]) -> list[str]:
  """The models in the paper's order: base, SFT, PPO, PPO-ptx, and then the others."""
  place = lambda model: ORDER.index(paper.MODELS[model.lower()]) if model.lower() in paper.MODELS else len(ORDER)
  return sorted(models, key=place)


def base_of(models: Sequence[str]) -> str | None:
  """The model that stands for the paper's GPT-3: it is called base or gpt."""
  return next((model for model in models if paper.MODELS.get(model.lower()) == ORDER[0]), None)


def table(values: Column, differences: Column, metrics: Mapping[str, Metric], base: str) -> list[dict[str, Any]]:
  """A row for each task, in the unit of its metric: the models, what they are better or worse than `base`, the paper's three
  sizes of both.

  values, differences   estimates by task and model; of the differences `base` is left out
  metrics               the metric of each task
  """
  rows = []
  for task, metric in metrics.items():
    models = ordered(list(values[task]))
    theirs = {model: found for model in models if (found := paper.beside(model, metric.paper))}
    behind = {
      model: [round(a - b, 4) for a, b in zip(found, theirs[base], strict=True)]
      for model, found in theirs.items()
      if model != base and base in theirs
    }
    rows.append({
      "task": task, "metric": metric.name, "decimals": metric.decimals,
      "models": {model: summary.plain(values[task][model]) for model in models},
      "differences": {model: summary.plain(differences[task][model]) for model in models if model != base},
      "paper": theirs, "paper_differences": behind,
    })  # fmt: skip
  return rows


def together(
  tasks: Sequence[Task], folder: Path, said: Mapping[str, Heard], scores: Mapping[str, Mapping[str, Sequence[Scores]]],
  seed: int,
) -> dict[str, Any]:  # fmt: skip
  """{"base", "tax": the table of the first metric of every task}; nothing where no model is called base or gpt."""
  del folder, said
  base = base_of(list(scores[tasks[0].name]))
  if base is None:
    return {}
  first = {task.name: task._replace(metrics=task.metrics[:1]) for task in tasks}
  only = lambda found: {model: next(iter(row.values())) for model, row in found.items()}
  values = {name: only(summary.table(task, scores[name], seed)) for name, task in first.items()}
  behind = {name: only(summary.differences(task, scores[name], base, seed)) for name, task in first.items()}
  metrics = {name: task.metrics[0] for name, task in first.items()}
  return {"base": base, "tax": table(values, behind, metrics, base)}


def draw(found: Mapping[str, Any], look: Mapping[str, str]) -> str:
  """The differences as a table; the paper's for 1.3B, 6B and 175B stand under them."""
  models = [model for model in ordered(list(look)) if model != found["base"]]
  rows = [[escape(row["task"]), escape(row["metric"]), *(_cell(row, model) for model in models)] for row in found["tax"]]
  head = ("task", "metric", *(f"{escape(model)} − {escape(found['base'])}" for model in models))
  caption = "The alignment tax: differences to the base model, paired by item"
  return f"<figure><figcaption>{caption}</figcaption>{html.table(head, rows)}</figure>" if models else ""


def _cell(row: Mapping[str, Any], model: str) -> str:
  found = row["differences"].get(model)
  if found is None or found["value"] is None:
    return "–"
  cell = html.cell(page.estimate(found), False, row["decimals"])
  theirs = row["paper_differences"].get(model)
  shown = " / ".join(html.minus(value, row["decimals"]) for value in theirs or ())
  return cell + (f"<small>paper {shown}</small>" if theirs else "")
