"""The alignment tax: what tasks of the base model's own are worth after SFT, PPO and PPO-ptx
(section 4.2, Table 14).

SFT stands in every table: it loses on some tasks itself, so that a loss of PPO's is not one to
RL alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from instructjax.evals import page, paper, summary
from instructjax.evals.tasks import Heard, Look, Metric, Scores, Task
from instructjax.intervals import Estimate
from instructjax.runs.report import page as html

Column = Mapping[str, Mapping[str, Estimate]]  # task, model
ORDER = tuple(dict.fromkeys(paper.MODELS.values()))


def ordered(models: Sequence[str]) -> list[str]:
  """The models in the paper's order: base, SFT, PPO, PPO-ptx, and then the others."""
  place = lambda model: ORDER.index(name) if (name := paper.theirs(model)) else len(ORDER)
  return sorted(models, key=place)


def bases(models: Sequence[str]) -> dict[str, str]:
  """{model: the one that stands for the paper's GPT-3, called base or gpt}: of its size, or of no
  size.

  Models without one are left out, as are these themselves.
  """
  known = {paper.split(model)[1]: model for model in models if paper.theirs(model) == ORDER[0]}
  mine = lambda model: known.get(paper.split(model)[1], known.get(""))
  return {
    model: base for model in models if paper.theirs(model) != ORDER[0] and (base := mine(model))
  }


def table(
  values: Column, differences: Column, metrics: Mapping[str, Metric], base: Mapping[str, str]
) -> list[dict[str, Any]]:
  """A row for each task, in the unit of its metric: the models, what they are better or worse than
  their bases, the paper's sizes of both.

  values, differences   estimates by task and model; the differences are to `base`, of which each model has one
  metrics               the metric of each task
  """
  rows = []
  for task, metric in metrics.items():
    models = ordered(list(values[task]))
    theirs = {model: found for model in models if (found := paper.beside(model, metric.paper))}
    whole = paper.beside("base", metric.paper)
    behind = {
      model: [
        round(a - b, 4)
        for a, b in zip(theirs[model], paper.of_sizes(model, whole) or (), strict=True)
      ]
      for model in base
      if model in theirs
    }
    rows.append(
      {
        "task": task,
        "metric": metric.name,
        "decimals": metric.decimals,
        "models": {model: summary.plain(values[task][model]) for model in models},
        "differences": {
          model: summary.plain(differences[task][model]) for model in models if model in base
        },
        "paper": theirs,
        "paper_differences": behind,
      }
    )
  return rows


def together(
  tasks: Sequence[Task],
  folder: Path,
  said: Mapping[str, Heard],
  scores: Mapping[str, Mapping[str, Sequence[Scores]]],
  seed: int,
) -> dict[str, Any]:
  """{"bases", "tax": the table of the first metric of every task}; nothing where no model is called
  base or gpt.
  """
  del folder, said
  base = bases(list(scores[tasks[0].name]))
  if not base:
    return {}
  first = {task.name: task._replace(metrics=task.metrics[:1]) for task in tasks}
  only = lambda found: {model: next(iter(row.values())) for model, row in found.items()}
  values = {name: only(summary.table(task, scores[name], seed)) for name, task in first.items()}
  behind = {
    name: {
      model: summary.difference(
        task.metrics[0], task.items, scores[name][model], scores[name][below], seed
      )
      for model, below in base.items()
    }
    for name, task in first.items()
  }
  metrics = {name: task.metrics[0] for name, task in first.items()}
  return {"bases": base, "tax": table(values, behind, metrics, base)}


def draw(found: Mapping[str, Any], look: Mapping[str, Look]) -> str:
  """The differences as a table; the paper's for 1.3B, 6B and 175B stand under them."""
  models = [model for model in ordered(list(look)) if model in found["bases"]]
  rows = [
    [escape(row["task"]), escape(row["metric"]), *(_cell(row, model) for model in models)]
    for row in found["tax"]
  ]
  head = (
    "task",
    "metric",
    *(f"{escape(model)} − {escape(found['bases'][model])}" for model in models),
  )
  caption = "The alignment tax: differences to the base model, paired by item"
  return (
    f"<figure><figcaption>{caption}</figcaption>{html.table(head, rows)}</figure>" if models else ""
  )


def _cell(row: Mapping[str, Any], model: str) -> str:
  found = row["differences"].get(model)
  if found is None or found["value"] is None:
    return "–"
  cell = html.cell(page.estimate(found), False, row["decimals"])
  theirs = row["paper_differences"].get(model)
  shown = " / ".join(html.minus(value, row["decimals"]) for value in theirs or ())
  return cell + (f"<small>paper {shown}</small>" if theirs else "")
