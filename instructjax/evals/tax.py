"""The alignment tax: what models lose, against their base, on tasks that the base model is good at.

Section 4.2 and Table 14 of Ouyang et al. 2022. SFT has its own differences in every table: it loses
on some tasks too, and such a loss of PPO must not be ascribed to reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from instructjax.evals import page, paper, summary
from instructjax.evals.tasks import Look, Metric, Replies, Scores, Task
from instructjax.intervals import Estimate
from instructjax.runs.report import page as html

Estimates = Mapping[str, Mapping[str, Estimate]]  # by task and model
# The paper's methods, its base model first.
ORDER = tuple(dict.fromkeys(paper.MODELS.values()))
BASE = ORDER[0]


def ordered(models: Sequence[str]) -> list[str]:
  """Returns the models in the paper's order: base, SFT, PPO, PPO-ptx, then those of other names."""

  def rank(model: str) -> int:
    name = paper.theirs(model)
    return ORDER.index(name) if name else len(ORDER)

  return sorted(models, key=rank)


def bases(models: Sequence[str]) -> dict[str, str]:
  """Returns {model: its base, the model called base or gpt that stands for the paper's GPT-3}.

  The base of METHOD@SIZE is that of its size or, where there is none, one without a size. Bases
  themselves and models without one are left out.
  """
  base_by_size = {}
  for model in models:
    if paper.theirs(model) == BASE:
      size = paper.split(model)[1]
      base_by_size[size] = model
  base_by_model = {}
  for model in models:
    if paper.theirs(model) == BASE:
      continue
    size = paper.split(model)[1]
    # One base without a size stands for all sizes that have none of their own.
    base = base_by_size.get(size) or base_by_size.get("")
    if base:
      base_by_model[model] = base
  return base_by_model


def table(
  values: Estimates,
  differences: Estimates,
  metrics: Mapping[str, Metric],
  base: Mapping[str, str],
) -> list[dict[str, Any]]:
  """Returns a row for each task, with values and differences of ours and of the paper.

  Args:
    values: the estimates of every model.
    differences: the estimates of the differences to the base of each model that has one.
    metrics: the metric of each task, in whose unit everything is.
    base: the base of each model, see `bases`.
  """
  rows = []
  for task, metric in metrics.items():
    models = ordered(list(values[task]))
    paper_values = {}
    for model in models:
      numbers = paper.beside(model, metric.paper)
      if numbers:
        paper_values[model] = numbers
    estimates, model_differences = {}, {}
    for model in models:
      estimates[model] = summary.plain(values[task][model])
      if model in base:
        difference = differences[task][model]
        model_differences[model] = summary.plain(difference)
    rows.append(
      {
        "task": task,
        "metric": metric.name,
        "decimals": metric.decimals,
        "models": estimates,
        "differences": model_differences,
        "paper": paper_values,
        "paper_differences": _paper_differences(metric, paper_values, base),
      }
    )
  return rows


def _paper_differences(
  metric: Metric,
  paper_values: Mapping[str, Sequence[float]],
  base: Mapping[str, str],
) -> dict[str, list[float]]:
  """Returns the paper's values less those of its base model, for the models that have a base."""
  base_values = paper.beside("base", metric.paper)
  differences = {}
  for model in base:
    if model not in paper_values:
      continue
    base_of_sizes = paper.of_sizes(model, base_values) or ()
    pairs = zip(paper_values[model], base_of_sizes, strict=True)
    # The paper prints at most four decimals; more would be noise of the subtraction.
    differences[model] = [round(value - base_value, 4) for value, base_value in pairs]
  return differences


def together(
  tasks: Sequence[Task],
  folder: Path,
  replies: Mapping[str, Replies],
  scores: Mapping[str, Mapping[str, Sequence[Scores]]],
  seed: int,
) -> dict[str, Any]:
  """Returns {"bases", "tax"}, the table of the first metric of every task.

  This is the `together` of a suite; it is empty where no model is called base or gpt.
  """
  del folder, replies
  models = list(scores[tasks[0].name])  # the same in every task
  base = bases(models)
  if not base:
    return {}
  metrics: dict[str, Metric] = {}
  values: dict[str, dict[str, Estimate]] = {}
  differences: dict[str, dict[str, Estimate]] = {}
  for task in tasks:
    metric = task.metrics[0]  # the one of the paper's table
    rows = scores[task.name]
    metrics[task.name] = metric
    values[task.name] = {}
    for model, model_rows in rows.items():
      value = summary.estimate(metric, task.items, model_rows, seed)
      values[task.name][model] = value
    differences[task.name] = {}
    for model, base_model in base.items():
      # The difference is paired: it is of the items that both have answered.
      base_rows = rows[base_model]
      difference = summary.difference(metric, task.items, rows[model], base_rows, seed)
      differences[task.name][model] = difference
  return {"bases": base, "tax": table(values, differences, metrics, base)}


# --- the page ---


def draw(results: Mapping[str, Any], look: Mapping[str, Look]) -> str:
  """Returns the differences as a table, the paper's for 1.3B, 6B and 175B under them.

  `results` is what `together` returned. Without a model that has a base there is no table.
  """
  base_by_model = results["bases"]
  models = [model for model in ordered(list(look)) if model in base_by_model]
  if not models:
    return ""
  columns = [f"{escape(model)} − {escape(base_by_model[model])}" for model in models]
  rows = []
  for row in results["tax"]:
    task, metric = row["task"], row["metric"]
    cells = [_cell(row, model) for model in models]
    rows.append([escape(task), escape(metric), *cells])
  caption = "The alignment tax: differences to the base model, paired by item"
  html_table = html.table(("task", "metric", *columns), rows)
  return f"<figure><figcaption>{caption}</figcaption>{html_table}</figure>"


def _cell(row: Mapping[str, Any], model: str) -> str:
  """Returns the difference of a model, with the paper's in small print under it."""
  difference = row["differences"].get(model)
  if difference is None or difference["value"] is None:
    return "–"
  decimals = row["decimals"]
  cell = page.counted_cell(difference, False, decimals)
  paper_differences = row["paper_differences"].get(model)
  if not paper_differences:  # the paper has no such model or no such task
    return cell
  numbers = " / ".join(html.minus(value, decimals) for value in paper_differences)
  return f"{cell}<small>paper {numbers}</small>"
