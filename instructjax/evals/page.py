"""report.html of an evaluation: for each suite a table with the paper's numbers beside ours,
figures and slices.

Models called METHOD@SIZE are the points of one line over the number of parameters; without
several sizes a figure is a forest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from instructjax.evals import paper
from instructjax.evals.tasks import Draw, Look
from instructjax.intervals import Estimate
from instructjax.runs.report import curves, figures
from instructjax.runs.report import page as html
from instructjax.runs.report.curves import Line

LOOKS = {"base": "base", "gpt": "base", "sft": "sft", "ppo": "ppo", "ptx": "ptx", "ppo-ptx": "ptx"}
OTHERS = (
  "rm",
  "gold",
  "base",
  "sft",
  "ppo",
  "ptx",
)  # looks of models with other names, in this order
NAMED, CELL = 36, 11  # columns of a terminal for task, metric and n, and at least for a model
Curve = Sequence[tuple[float, float]]  # the paper's (parameters, value)
LEAD = (
  "Intervals are 95 % bootstrap intervals over clusters of items (the questions on one passage are "
  "one cluster): they are "
  "about other items, not about other training runs. The paper's numbers are for 1.3B, 6B and 175B "
  "models."
)


def looks(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Look]:
  """A look of the page for each model; all sizes of a method have the same."""
  free = (look for look in OTHERS * len(models))
  kinds: dict[str, str] = {}
  for method in (paper.split(name)[0] for name in models):
    kinds[method] = kinds.get(method) or LOOKS.get(method) or next(free)
  return {
    name: Look(kinds[paper.split(name)[0]], about.get("parameters", 0))
    for name, about in models.items()
  }


def lines(
  found: Mapping[str, Estimate], look: Mapping[str, Look], theirs: Mapping[str, Curve]
) -> list[Line]:
  """A line for each method, with the paper's by method; none where no method has models of several
  sizes.
  """
  methods: dict[str, list[str]] = {}
  for model in found:
    methods.setdefault(paper.split(model)[0], []).append(model)
  sizes = [{look[model].parameters for model in models} for models in methods.values()]
  if max(map(len, sizes), default=0) < 2 or 0 in set().union(*sizes):
    return []
  points = lambda models: [(look[model].parameters, found[model]) for model in models]
  first = lambda models: models[0].partition("@")[0]
  return [
    Line(first(m), look[m[0]].kind, points(m), theirs.get(method, ()))
    for method, m in methods.items()
  ]


def render(name: str, found: Mapping[str, Any], draws: Mapping[str, Draw]) -> str:
  """The page of results.json; `draws` are for what suites say of all models at once."""
  all_looks = looks(found["models"])
  sections = [_models(found)]
  for suite, part in found["suites"].items():
    draw, look = draws.get(suite), {model: all_looks[model] for model in part["models"]}
    drawn = draw(part["together"], look) if draw and part["together"] else ""
    shown = {task: about for task, about in part["tasks"].items() if about["metrics"]}
    body = "".join(_task(task, about, look) for task, about in shown.items())
    plots = html.grid(
      [_plot(task, about, look, part["settings"]["baseline"]) for task, about in shown.items()]
    )
    plots = (
      f"<details><summary>{escape(suite)}: figures</summary>{plots}</details>" if plots else ""
    )
    sections.append(
      html.section(suite, suite, "", _settings(part), drawn, _table(part), plots, body)
    )
  links = "".join(f'<a href="#{at}">{escape(title)}</a>' for at, title, _ in sections)
  count = len(found["models"])
  title = f"Evaluations of {count} model{'s' if count != 1 else ''}"
  head = f'<p class="run">{escape(name)}</p><h1>{title}</h1><p>{escape(LEAD)}</p>'
  body = "".join(part for *_, part in sections)
  return html.page(f"{name} · InstructJAX", f"<header>{head}<nav>{links}</nav></header>{body}")


def _models(found: Mapping[str, Any]) -> tuple[str, str, str]:
  said = lambda about, name: escape(str(about.get(name, "")))
  rows = [
    [
      escape(name),
      said(about, "source"),
      f"{about.get('parameters', 0):,}",
      said(about, "weights")[:12],
    ]
    for name, about in found["models"].items()
  ]
  notes = "".join(f'<p class="note">{escape(note)}.</p>' for note in found["notes"])
  return html.section(
    "models", "Models", "", html.table(("name", "source", "parameters", "weights"), rows), notes
  )


def _settings(part: Mapping[str, Any]) -> str:
  """What a suite was made with: another one on this page may have been made with other settings."""
  made = ", ".join(f"{name} {value}" for name, value in part["settings"].items() if value != "")
  return f'<p class="note">Made with {escape(made)}.</p>'


def _table(part: Mapping[str, Any]) -> str:
  """A line for each task and metric; the paper's three numbers stand under a value."""
  rows, models = [], part["models"]
  for task, about in part["tasks"].items():
    for metric in about["metrics"]:
      cells = [
        _cell(metric, about["models"][m][metric["name"]], metric["paper"].get(m)) for m in models
      ]
      n = max((about["models"][m][metric["name"]]["n"] for m in models), default=0)
      arrow = {1: " ↑", -1: " ↓", 0: ""}[metric["better"]]
      rows.append([escape(task), escape(metric["name"]) + arrow, f"{n:,}", *cells])
  notes = "".join(
    f'<p class="note">{escape(task)}: {escape(about["about"])}</p>'
    for task, about in part["tasks"].items()
    if about["about"]
  )
  cut = "".join(
    f'<p class="note">{escape(task)}: the prompts of {count} of {about["n"]} items did not fit the '
    "context of "
    f"{escape(model)} and lost their beginning.</p>"
    for task, about in part["tasks"].items()
    for model, count in about["cut"].items()
  )
  return (
    (html.table(("task", "metric", "n", *map(escape, models)), rows) if rows else "") + notes + cut
  )


def estimate(found: Mapping[str, Any]) -> Estimate:
  """An estimate of results.json; null is NaN."""
  number = lambda name: math.nan if found[name] is None else float(found[name])
  return Estimate(number("value"), number("low"), number("high"), int(found["n"]))


def _cell(
  metric: Mapping[str, Any], found: Mapping[str, Any], theirs: Sequence[float] | None
) -> str:
  e = estimate(found)
  if math.isnan(e.value):
    return "–"
  show = lambda value: (
    html.percent(value) if metric["percent"] else html.minus(value, metric["decimals"])
  )
  beside = f"<small>paper {' / '.join(show(v) for v in theirs)}</small>" if theirs else ""
  return html.cell(e, metric["percent"], metric["decimals"]) + beside


def _plot(name: str, about: Mapping[str, Any], look: Mapping[str, Look], baseline: str) -> str:
  """The first metric of a task: over sizes, or for every model as the paper's Figure 7 has it, with
  the paper's largest models beside and a line at the baseline.
  """
  first = about["metrics"][0]
  each = {model: estimate(about["models"][model][first["name"]]) for model in look}
  each = {model: e for model, e in each.items() if math.isfinite(e.value)}
  how = {"percent": first["percent"], "decimals": first["decimals"]}
  theirs = {
    who: paper.curve(values)
    for who, values in first["paper"].items()
    if len(values) == len(paper.SIZES)
  }
  if drawn := lines(each, look, theirs):
    return curves.curves(name, drawn, first["name"], **how)
  beside = {
    model: [("gold", first["paper"][model][-1], math.nan, math.nan)]
    for model in each
    if model in first["paper"]
  }
  rows = [
    figures.Row(model, [(look[model].kind, *e[:3]), *beside.get(model, [])])
    for model, e in each.items()
  ]
  if not rows:
    return ""
  level = next((row for row in rows if row.label == baseline), rows[0]).marks[0][1]
  return figures.forest(
    name, rows, first["name"], reference=level, legend=legend(list(beside)), **how
  )


def legend(models: Sequence[str]) -> list[tuple[str, str]]:
  """What the paper's marks beside these models are."""
  if not models:
    return []
  sized = [bool(paper.split(model)[1]) for model in models]
  some = "the paper's: of the size in the name, else 175B" if any(sized) else "the paper's, 175B"
  return [("gold", "the paper's of that size" if all(sized) else some)]


def _task(name: str, about: Mapping[str, Any], look: Mapping[str, Look]) -> str:
  """The first metric of each slice, folded."""
  first = about["metrics"][0]
  found = "".join(
    _slices(name, first, group, values, look) for group, values in about["slices"].items()
  )
  return f"<details><summary>{escape(name)}: slices</summary>{found}</details>" if found else ""


def _slices(
  name: str,
  metric: Mapping[str, Any],
  group: str,
  values: Mapping[str, Any],
  look: Mapping[str, Look],
) -> str:
  models = [model for model in look if any(model in row for row in values.values())]
  head = (escape(group), *map(escape, models))
  rows = [
    [escape(value), *(_cell(metric, row[m][metric["name"]], None) for m in models)]
    for value, row in values.items()
  ]
  title = escape(f"{name}, {metric['name']} by {group}")
  return f"<figure><figcaption>{title}</figcaption>{html.table(head, rows)}</figure>"


def show(found: Mapping[str, Any], suites: Sequence[str], path: Path) -> None:
  """Prints the tables of these suites."""
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text

  console = Console()
  most = max((console.width - NAMED) // CELL, 1)  # models beside each other
  for suite in suites:
    part = found["suites"][suite]
    for models in (part["models"][at : at + most] for at in range(0, len(part["models"]), most)):
      table = Table(title=suite)
      for name in ("task", "metric", "n", *models):
        table.add_column(Text(name))  # a name may hold what rich would take for a style
      for task, about in part["tasks"].items():
        for metric in about["metrics"]:
          each = [estimate(about["models"][m][metric["name"]]) for m in models]
          table.add_row(
            task, metric["name"], str(max(e.n for e in each)), *(_said(metric, e) for e in each)
          )
      if table.row_count:
        console.print(table)
  for line in (*(f"note: {note}" for note in found["notes"]), f"Report: {path}"):
    console.print(line, highlight=False, markup=False)


def _said(metric: Mapping[str, Any], e: Estimate) -> str:
  if math.isnan(e.value):
    return "-"
  scale, places = (100, 1) if metric["percent"] else (1, metric["decimals"])
  return f"{scale * e.value:.{places}f}\n{scale * e.low:.{places}f} to {scale * e.high:.{places}f}"
