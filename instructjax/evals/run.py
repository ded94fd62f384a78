"""`instructjax eval`: asks every model, scores every answer, and leaves the tables, the items and a page.

The directory of an evaluation holds `answers/` (what models said), `scores/` (what that is worth, item by item), `results.json`
(the layout is that of `results`), `results.csv` (a line for each number, the paper's beside it), `config.json`, `manifest.json`
and `report.html`.  Models and suites can be added later: only what is missing runs.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instructjax import rewards, stages, writers
from instructjax.errors import UserError
from instructjax.evals import answers, page, paper, scorers, subject, summary
from instructjax.evals.tasks import Item, Logp, Metric, Said, Scores, Suite, Task, fingerprint
from instructjax.loop import open_progress

Config = Any  # ml_collections.ConfigDict: its fields are those of configs/eval.py
Open = Callable[[Config], Suite]


def main(config: Config, workdir: Path, models: Mapping[str, str], suites: Mapping[str, Open]) -> None:
  """Evaluates the models, by name and source, on the suites, by name."""
  c = config
  with contextlib.ExitStack() as stack:
    parts = stack.enter_context(stages.devices(c.mesh))
    opened = [suite(c) for suite in suites.values()]  # a judge of ours lies on the devices of the mesh
    tasks = [task for suite in opened for task in suite.tasks]
    _checked(tasks)
    stack.enter_context(writers.open_run(workdir, c.to_dict(), seed=c.seed))
    heard: dict[str, dict[str, list[Said]]] = {task.name: {} for task in tasks}
    for name, source in models.items():
      for task, said in ask(c, workdir, name, source, tasks, parts).items():
        heard[task][name] = said
    worth = {
      task.name: {model: score(workdir, task, model, said) for model, said in heard[task.name].items()} for task in tasks
    }
    found = {"models": _known(workdir, models), "baseline": c.baseline, "suites": {}}
    for suite in opened:
      found["suites"][suite.name] = results(workdir, suite, heard, worth, c.baseline, c.seed)
    leave(workdir, found, opened)


def _checked(tasks: Sequence[Task]) -> None:
  """Raises UserError where a name or an id stands twice: answers are kept by them."""
  for what, names in [("task", [task.name for task in tasks]), *((task.name, [i.id for i in task.items]) for task in tasks)]:
    seen: set[str] = set()
    for name in names:
      if name in seen:
        raise UserError(f"{what}: the id {name!r} stands twice; ids of items must be unique within a task")
      seen.add(name)


def ask(
  config: Config, workdir: Path, name: str, source: str, tasks: Sequence[Task], parts: int
) -> dict[str, list[Said]]:
  """What a model says in each task; it is opened only if anything is missing, or if it is not surely the one that answered."""
  settings, place = subject.settings(source, config), scorers.digest(subject.split(source)[0])
  files = {task.name: answers.file(workdir / "answers", task.name, name) for task in tasks}
  there = {task.name: answers.missing(task, files[task.name], settings) for task in tasks}
  open_tasks = [task for task in tasks if there[task.name][2]]
  before = _noted(workdir).get(name)
  if open_tasks or (before is not None and (before["source"], before.get("files")) != (source, place)):
    model = subject.open_subject(source, config, parts)
    _note(workdir, name, {**model.about, "files": place})
    plans = {task.name: answers.plan(task, model) for task in open_tasks}
    progress, done = open_progress(name, 0, sum(map(len, plans.values()))), 0
    for task in open_tasks:
      known, prints, _ = there[task.name]
      done = answers.fill(task, model, plans[task.name], files[task.name], known, prints, progress, done)
    progress.close()
  return {task.name: answers.said(task, there[task.name][0]) for task in tasks}


def _note(workdir: Path, name: str, about: Mapping[str, Any]) -> None:
  """Raises UserError where another model has answered under this name."""
  before = _noted(workdir)
  if name in before and before[name]["weights"] != about["weights"]:
    raise UserError(
      f"--models: {name}={about['source']} has other weights than the {name}={before[name]['source']} that answered in "
      f"{workdir} before; give it another name, or name another --workdir"
    )
  writers.note(workdir, models=before | {name: dict(about)})


def _noted(workdir: Path) -> dict[str, Any]:
  """What the manifest says of the models that answered."""
  path = workdir / "manifest.json"
  return json.loads(path.read_text()).get("models", {}) if path.is_file() else {}


def _known(workdir: Path, models: Mapping[str, str]) -> dict[str, Any]:
  noted = _noted(workdir)
  return {name: noted.get(name, {"source": source}) for name, source in models.items()}


def score(workdir: Path, task: Task, model: str, said: Sequence[Said]) -> list[Scores]:
  """The scores of every item; those that are kept are taken as they are."""
  path = answers.file(workdir / "scores", task.name, model)
  rules = [task.about, [metric.name for metric in task.metrics], *filter(None, [task.judge])]
  prints = [fingerprint(rules, dict(item.data), one.answers) for item, one in zip(task.items, said, strict=True)]
  read = lambda: {(row["id"], row["of"]): row["scores"] for row in answers.lines(path)}
  known = read()
  todo = [at for at, item in enumerate(task.items) if (item.id, prints[at]) not in known]

  def work() -> np.ndarray:
    progress = open_progress(f"{model} {task.name}", 0, len(todo))
    for start in range(0, len(todo), task.batch):
      at = todo[start : start + task.batch]
      found = task.score([task.items[i] for i in at], [said[i] for i in at])
      rows = [_scored(task.items[i], prints[i], said[i], one) for i, one in zip(at, found, strict=True)]
      answers.append(path, rows)
      known.update({(row["id"], row["of"]): row["scores"] for row in rows})
      progress.show(start + len(at), {})
    progress.close()
    return np.zeros(1, np.float32)

  if task.everywhere or jax.process_count() == 1:
    work()
  else:
    rewards.in_first(work, (1,))
    known = read()
  return [known[item.id, of] for item, of in zip(task.items, prints, strict=True)]


def _scored(item: Item, of: str, said: Said, found: Scores) -> dict[str, Any]:
  """A line that can be read by itself: the item, what the model said and what that is worth."""
  plain = {name: value if value is None or isinstance(value, float | int) else list(value) for name, value in found.items()}
  texts = [one._asdict() if isinstance(one, Logp) else [completion.text for completion in one] for one in said.answers]
  return {"id": item.id, "of": of, "data": dict(item.data), "said": texts, "scores": plain}


# --- results ---


def results(
  workdir: Path, suite: Suite, heard: Mapping[str, Mapping[str, Sequence[Said]]],
  worth: Mapping[str, Mapping[str, Sequence[Scores]]], baseline: str, seed: int,
) -> dict[str, Any]:  # fmt: skip
  """The part of a suite in results.json.

  tasks      {task: about, n, metrics (name, better, percent, decimals, paper {model: [1.3B, 6B, 175B], or of METHOD@SIZE that
             one, and METHOD: all}), models {model: {metric: estimate}}, differences {model: {metric: estimate}} to the
             baseline, slices {group: {value: models}}, cut {model: items whose prompt did not fit}}
  together   what the suite says of all models at once
  An estimate is {value, low, high, n}: a 95 % interval over clusters of items, n items.
  """
  tasks = {}
  for task in suite.tasks:
    scores = worth[task.name]
    parts = summary.slices(task, scores, seed)
    cut = {model: sum(one.cut > 0 for one in said) for model, said in heard[task.name].items()}
    tasks[task.name] = {
      "about": task.about, "n": len(task.items), "metrics": [_described(metric, scores) for metric in task.metrics],
      "models": _plain(summary.table(task, scores, seed)),
      "differences": _plain(summary.differences(task, scores, baseline, seed)) if baseline in scores else {},
      "slices": {group: {value: _plain(table) for value, table in values.items()} for group, values in parts.items()},
      "cut": {model: count for model, count in cut.items() if count},
    }  # fmt: skip
  together = {}
  if suite.together is not None:
    own = {task.name: heard[task.name] for task in suite.tasks}
    together = suite.together(workdir / suite.name, own, {task.name: worth[task.name] for task in suite.tasks})
  return {"tasks": tasks, "together": together}


def _described(metric: Metric, models: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
  names = dict.fromkeys([*models, *(paper.split(model)[0] for model in models)])  # a method's are a curve beside its sizes
  beside = {name: found for name in names if (found := paper.beside(name, metric.paper))}
  shown = {"name": metric.name, "better": metric.better, "percent": metric.percent, "decimals": metric.decimals}
  return shown | {"paper": beside}


def _plain(table: summary.Table) -> dict[str, dict[str, dict[str, Any]]]:
  return {model: {metric: summary.plain(found) for metric, found in row.items()} for model, row in table.items()}


def leave(workdir: Path, found: Mapping[str, Any], suites: Sequence[Suite]) -> None:
  """Writes results.json, results.csv and report.html, and prints the table, in the first process."""
  if jax.process_index() > 0:
    return
  writers.replace(workdir / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
  writers.replace(workdir / "results.csv", table_csv(found))
  drawings = {suite.name: suite.draw for suite in suites}
  writers.replace(workdir / "report.html", page.render(workdir.resolve().name, found, drawings))
  page.show(found, workdir / "report.html")


def table_csv(found: Mapping[str, Any]) -> str:
  """A line for each task, metric and model."""
  out = io.StringIO()
  rows = csv.writer(out, lineterminator="\n")
  rows.writerow(["suite", "task", "metric", "model", "value", "low", "high", "n", *(f"paper {size}" for size in paper.SIZES)])
  for suite, part in found["suites"].items():
    for task, about in part["tasks"].items():
      for metric in about["metrics"]:
        for model, row in about["models"].items():
          e = row[metric["name"]]
          theirs = dict(zip(paper.sizes(model), metric["paper"].get(model, ()), strict=False))
          beside = [theirs.get(size, "") for size in paper.SIZES]
          rows.writerow([suite, task, metric["name"], model, e["value"], e["low"], e["high"], e["n"], *beside])
  return out.getvalue()
