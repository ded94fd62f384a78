"""The numbers of an evaluation: results.json with those of earlier commands, results.csv, the page.

results.json holds {"models": {model: about}, "suites": {suite: part}, "notes": lines}. A part has

  models     the names, the same in every task
  settings   what it was made with: baseline, limit, seed, template, dtype, tokenizer
  tasks      {task: about, n, metrics, models, differences, slices, cut}
    metrics      name, better, percent, decimals, and the paper's numbers {model: [1.3B, 6B, 175B]};
                 a model METHOD@SIZE has the one of its size, and METHOD all three
    models       {model: {metric: estimate}}
    differences  {model: {metric: estimate}} to the baseline
    slices       {group: {value: models}}
    cut          {model: items whose prompt did not fit}
  together   what the suite computes from all models at once

An estimate is {value, low, high, n, clusters}: a 95 % interval over clusters of items, n items.
results.csv, the terminal and the card print the list of `numbers`, which has all estimates of the
tasks and of `together`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from instructjax.evals import numbers, page, paper, summary
from instructjax.evals.tasks import Draw, Metric, Reply, Scores, Suite, Task
from instructjax.runs import provenance, writers
from instructjax.runs.report import files
from instructjax.settings import EvalSettings
from instructjax.system import jsons

ESTIMATE = ("value", "low", "high", "n", "clusters")
COLUMNS = ("suite", "task", "metric", "model", *ESTIMATE)  # of results.csv, before the paper's


def of_suite(
  config: EvalSettings,
  workdir: Path,
  suite: Suite,
  replies: Mapping[str, Mapping[str, Sequence[Reply]]],
  scores: Mapping[str, Mapping[str, Sequence[Scores]]],
) -> dict[str, Any]:
  """Returns the part of a suite in results.json.

  `replies` and `scores` are by task and model and may hold those of other suites too.
  """
  # A suite sees its own tasks alone.
  suite_replies = {task.name: replies[task.name] for task in suite.tasks}
  suite_scores = {task.name: scores[task.name] for task in suite.tasks}
  tasks = {}
  for task in suite.tasks:
    name = task.name
    tasks[name] = _task(config, task, suite_replies[name], suite_scores[name])
  together: dict[str, Any] = {}
  if suite.together is not None:
    folder = workdir / suite.name
    together = suite.together(folder, suite_replies, suite_scores)
  # A model is in all tasks of a suite or in none, so that any task names them.
  first_task = suite.tasks[0].name
  return {
    "models": list(suite_replies[first_task]),
    "settings": {
      "baseline": config.baseline,
      "limit": config.limit,
      "seed": config.seed,
      "template": config.template,
      "dtype": config.model.dtype,
      "tokenizer": config.model.tokenizer,
    },
    "tasks": tasks,
    "together": together,
  }


def _task(
  config: EvalSettings,
  task: Task,
  replies: Mapping[str, Sequence[Reply]],
  scores: Mapping[str, Sequence[Scores]],
) -> dict[str, Any]:
  """Returns what results.json holds of a task; replies and scores are by model."""
  baseline, seed = config.baseline, config.seed
  models = summary.table(task, scores, seed)
  differences: summary.Table = {}
  if baseline in scores:
    differences = summary.differences(task, scores, baseline, seed)
  slices: dict[str, dict[str, Any]] = {}
  for group, tables in summary.slices(task, scores, seed).items():
    slices[group] = {}
    for value, table in tables.items():
      slices[group][value] = _plain(table)
  cut = {}
  for model, replies_of_model in replies.items():
    count = sum(reply.cut > 0 for reply in replies_of_model)
    if count:  # a model that lost nothing is not listed
      cut[model] = count
  return {
    "about": task.about,
    "n": len(task.items),
    "metrics": [_metric(metric, list(scores)) for metric in task.metrics],
    "models": _plain(models),
    "differences": _plain(differences),
    "slices": slices,
    "cut": cut,
  }


def _metric(metric: Metric, models: Sequence[str]) -> dict[str, Any]:
  """Returns what results.json holds of a metric, with the paper's numbers for these models."""
  # The paper's numbers of a method are drawn as a curve beside its models METHOD@SIZE.
  methods = [paper.split(model)[0] for model in models]
  paper_numbers = {}
  for name in dict.fromkeys([*models, *methods]):
    values = paper.beside(name, metric.paper)
    if values:
      paper_numbers[name] = values
  return {
    "name": metric.name,
    "better": metric.better,
    "percent": metric.percent,
    "decimals": metric.decimals,
    "paper": paper_numbers,
  }


def _plain(table: summary.Table) -> dict[str, dict[str, dict[str, Any]]]:
  """Returns a table as JSON has it."""
  models: dict[str, dict[str, dict[str, Any]]] = {}
  for model, row in table.items():
    models[model] = {}
    for metric, estimate in row.items():
      models[model][metric] = summary.plain(estimate)
  return models


# --- all suites ---


def write(
  workdir: Path,
  parts: Mapping[str, Any],
  models: Mapping[str, str],
  notes: Sequence[str],
  draws: Mapping[str, Draw],
) -> None:
  """Writes results.json, results.csv and report.html, and prints the tables, in the first process.

  Args:
    workdir: the directory of the evaluation.
    parts: the parts of the suites that this command has evaluated; their tables are printed.
    models: {name: source} of this command.
    notes: lines for the page and the terminal.
    draws: the functions that draw `together` of a suite, by its name.
  """
  if jax.process_index() > 0:
    return
  results = merged(workdir, parts, models, notes)
  text = jsons.text_with_nulls(results, indent=1)
  writers.replace(workdir / "results.json", f"{text}\n")
  writers.replace(workdir / "results.csv", table_csv(results))
  title = workdir.resolve().name  # a workdir of "." has a name too
  report = workdir / "report.html"
  writers.replace(report, page.render(title, results, draws))
  page.show(results, list(parts), report)


def merged(
  workdir: Path,
  parts: Mapping[str, Any],
  models: Mapping[str, str],
  notes: Sequence[str],
) -> dict[str, Any]:
  """Returns what results.json holds from now on: the parts of this command and of earlier ones.

  The part of another suite stays, as it was made, if each of its models is the one that answers in
  this directory now. Otherwise a note says that it is left out.
  """
  notes = list(notes)  # `files.whole` adds a note if results.json is broken
  before = files.whole(workdir / "results.json", notes)
  models_before = files.inside(before, "models")
  noted = provenance.noted(workdir)
  weights_then, weights_now = _weights(models_before), _weights(noted)

  suites: dict[str, Any] = {}
  for suite, part in files.inside(before, "suites").items():
    # A suite that is evaluated again keeps its place on the page.
    if suite in parts:
      suites[suite] = parts[suite]
    elif _is_current(part, weights_then, weights_now):
      suites[suite] = part
    else:
      notes.append(
        f"{suite} is left out: it was made with other models or by an earlier version; evaluate it "
        "again"
      )
  # New suites come last.
  for suite, part in parts.items():
    suites.setdefault(suite, part)

  # The models of this command come last, in the order of its --models.
  earlier_names = [name for name in models_before if name not in models]
  names_in_tables: set[str] = set()
  for part in suites.values():
    names_in_tables.update(part["models"])
  about = {}
  for name in [*earlier_names, *models]:
    if name in names_in_tables:
      unnoted = {"source": models.get(name, "")}
      about[name] = noted.get(name, unnoted)
  return {"models": about, "suites": suites, "notes": notes}


def _weights(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the fingerprint of the weights of each model."""
  return {name: about.get("weights") for name, about in models.items()}


def _is_current(
  part: Mapping[str, Any],
  weights_then: Mapping[str, Any],
  weights_now: Mapping[str, Any],
) -> bool:
  """Returns whether the names in the part of a suite stand for the same models now."""
  names = part.get("models")
  if not names:  # a part from before parts named their models
    return False
  for name in names:
    if name not in weights_now:
      return False
    if weights_then.get(name) != weights_now[name]:
      return False
  return True


def table_csv(results: Mapping[str, Any]) -> str:
  """Returns results.csv: a line for each number of `numbers`, the paper's at its end."""
  out = io.StringIO()
  rows = csv.writer(out, lineterminator="\n")
  sizes = [f"paper {size}" for size in paper.SIZES]
  rows.writerow([*COLUMNS, *sizes])
  for suite, part in results["suites"].items():
    for number in numbers.of_suite(suite, part):
      estimate = [number.estimate.get(name) for name in ESTIMATE]
      names = [suite, number.task, number.metric, number.model]
      rows.writerow([*names, *estimate, *numbers.paper_columns(number)])
  return out.getvalue()
