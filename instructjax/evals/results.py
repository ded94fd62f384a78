"""The numbers of an evaluation: results.json, which holds the parts of earlier commands too,
results.csv and the page.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from instructjax.evals import page, paper, summary
from instructjax.evals.tasks import Draw, Metric, Said, Scores, Suite
from instructjax.runs import provenance, writers
from instructjax.runs.report import files
from instructjax.settings.fields import to_dict

Config = Any  # ml_collections.ConfigDict: its fields are those of configs/eval.py
SETTINGS = (
  "baseline",
  "limit",
  "seed",
  "template",
)  # that a part was made with, beside dtype and tokenizer


def of_suite(
  config: Config,
  workdir: Path,
  suite: Suite,
  heard: Mapping[str, Mapping[str, Sequence[Said]]],
  worth: Mapping[str, Mapping[str, Sequence[Scores]]],
) -> dict[str, Any]:
  """The part of a suite in results.json, which holds {"models": {model: about}, "suites": {suite:
  part}, "notes": lines}.

  models     their names, the same in every task
  settings   what it was made with: baseline, limit, seed, template, dtype, tokenizer
  tasks      {task: about, n, metrics (name, better, percent, decimals, paper {model: [1.3B, 6B, 175B], or of METHOD@SIZE that
             one, and METHOD: all}), models {model: {metric: estimate}}, differences {model:
             {metric: estimate}} to the baseline, slices {group: {value: models}}, cut {model:
             items whose prompt did not fit}}
  together   what the suite says of all models at once
  An estimate is {value, low, high, n}: a 95 % interval over clusters of items, n items.
  """
  baseline, seed = config.baseline, config.seed
  tasks = {}
  for task in suite.tasks:
    scores = worth[task.name]
    parts = summary.slices(task, scores, seed)
    cut = {model: sum(one.cut > 0 for one in said) for model, said in heard[task.name].items()}
    tasks[task.name] = {
      "about": task.about,
      "n": len(task.items),
      "metrics": [_described(metric, scores) for metric in task.metrics],
      "models": _plain(summary.table(task, scores, seed)),
      "differences": _plain(summary.differences(task, scores, baseline, seed))
      if baseline in scores
      else {},
      "slices": {
        group: {value: _plain(table) for value, table in values.items()}
        for group, values in parts.items()
      },
      "cut": {model: count for model, count in cut.items() if count},
    }
  together = {}
  if suite.together is not None:
    own = {task.name: heard[task.name] for task in suite.tasks}
    together = suite.together(
      workdir / suite.name, own, {task.name: worth[task.name] for task in suite.tasks}
    )
  made = {name: to_dict(config)[name] for name in SETTINGS} | {
    name: config.model[name] for name in ("dtype", "tokenizer")
  }
  return {
    "models": list(heard[suite.tasks[0].name]),
    "settings": made,
    "tasks": tasks,
    "together": together,
  }


def _described(metric: Metric, models: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
  names = dict.fromkeys(
    [*models, *(paper.split(model)[0] for model in models)]
  )  # a method's are a curve beside its sizes
  beside = {name: found for name in names if (found := paper.beside(name, metric.paper))}
  shown = {
    "name": metric.name,
    "better": metric.better,
    "percent": metric.percent,
    "decimals": metric.decimals,
  }
  return shown | {"paper": beside}


def _plain(table: summary.Table) -> dict[str, dict[str, dict[str, Any]]]:
  return {
    model: {metric: summary.plain(found) for metric, found in row.items()}
    for model, row in table.items()
  }


# --- all suites ---


def leave(
  workdir: Path,
  parts: Mapping[str, Any],
  models: Mapping[str, str],
  notes: Sequence[str],
  draws: Mapping[str, Draw],
) -> None:
  """Writes results.json, results.csv and report.html, and prints the tables of `parts`, in the
  first process.
  """
  if jax.process_index() > 0:
    return
  found = merged(workdir, parts, models, notes)
  writers.replace(workdir / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
  writers.replace(workdir / "results.csv", table_csv(found))
  writers.replace(workdir / "report.html", page.render(workdir.resolve().name, found, draws))
  page.show(found, list(parts), workdir / "report.html")


def merged(
  workdir: Path, parts: Mapping[str, Any], models: Mapping[str, str], notes: Sequence[str]
) -> dict[str, Any]:
  """What results.json is now: the parts of this command, and those of other suites as they were
  made.

  A part stays as long as each of its models is the one that answers in this directory now.
  """
  notes = list(notes)
  before, noted = files.whole(workdir / "results.json", notes), provenance.noted(workdir)
  weights = lambda known: {name: about.get("weights") for name, about in known.items()}
  theirs, mine = weights(files.inside(before, "models")), weights(noted)
  suites: dict[str, Any] = {}
  for suite, part in files.inside(before, "suites").items():
    if suite in parts:
      suites[suite] = parts[suite]
    elif part.get("models") and all(
      name in mine and theirs.get(name) == mine[name] for name in part["models"]
    ):
      suites[suite] = part
    else:
      notes.append(
        f"{suite} is left out: it was made with other models or by an earlier version; evaluate it "
        "again"
      )
  suites |= {suite: part for suite, part in parts.items() if suite not in suites}
  shown = {name for part in suites.values() for name in part["models"]}
  order = [*(name for name in files.inside(before, "models") if name not in models), *models]
  about = {
    name: noted.get(name, {"source": models.get(name, "")}) for name in order if name in shown
  }
  return {"models": about, "suites": suites, "notes": notes}


def table_csv(found: Mapping[str, Any]) -> str:
  """A line for each task, metric and model."""
  out = io.StringIO()
  rows = csv.writer(out, lineterminator="\n")
  rows.writerow(
    [
      "suite",
      "task",
      "metric",
      "model",
      "value",
      "low",
      "high",
      "n",
      *(f"paper {size}" for size in paper.SIZES),
    ]
  )
  for suite, part in found["suites"].items():
    for task, about in part["tasks"].items():
      for metric in about["metrics"]:
        for model, row in about["models"].items():
          e = row[metric["name"]]
          theirs = dict(zip(paper.sizes(model), metric["paper"].get(model, ()), strict=False))
          beside = [theirs.get(size, "") for size in paper.SIZES]
          rows.writerow(
            [suite, task, metric["name"], model, e["value"], e["low"], e["high"], e["n"], *beside]
          )
  return out.getvalue()
