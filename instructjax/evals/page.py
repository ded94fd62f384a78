"""report.html of an evaluation: for each suite a table with the paper's numbers, figures, slices.

Models called METHOD@SIZE are the points of one line over the number of parameters. Where no method
has several sizes, a figure is a forest: one row a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

from instructjax import intervals
from instructjax.evals import numbers, paper
from instructjax.evals.tasks import Draw, Look
from instructjax.intervals import Estimate
from instructjax.runs.report import curves, figures
from instructjax.runs.report import page as html
from instructjax.runs.report.curves import Line

# The styles of the paper's methods, by the names that models of ours have.
LOOKS = {
  "base": "base",
  "gpt": "base",
  "sft": "sft",
  "ppo": "ppo",
  "ptx": "ptx",
  "ppo-ptx": "ptx",
}
# The styles of models with other names, in this order.
OTHERS = ("rm", "gold", "base", "sft", "ppo", "ptx")
ARROWS = {1: " ↑", -1: " ↓", 0: ""}  # by `better` of a metric
# Columns of a terminal: for task, metric and n together, and at least for each model.
NAMED, CELL = 36, 11
FINGERPRINT = 12  # characters of a fingerprint, which tell models apart
Curve = Sequence[tuple[float, float]]  # the paper's (parameters, value)
Json = Mapping[str, Any]  # a part of results.json, see `results`
LEAD = (
  "Intervals are 95 % intervals over clusters of items (the questions on one passage are one "
  "cluster; n 60 in 20 are 60 items in 20 clusters): they are about other items, not about other "
  "training runs. The paper's numbers are for 1.3B, 6B and 175B models."
)


def looks(models: Mapping[str, Json]) -> dict[str, Look]:
  """Returns the look of each model; all sizes of a method have the same style."""
  spare_kinds = cycle(OTHERS)
  kinds: dict[str, str] = {}
  model_looks = {}
  for name, about in models.items():
    method = paper.split(name)[0]
    if method not in kinds:
      kinds[method] = LOOKS.get(method) or next(spare_kinds)
    parameters = about.get("parameters", 0)
    model_looks[name] = Look(kinds[method], parameters)
  return model_looks


def estimate(plain: Json) -> Estimate:
  """Returns an estimate of results.json; null becomes NaN."""
  return Estimate(
    _number(plain["value"]),
    _number(plain["low"]),
    _number(plain["high"]),
    int(plain["n"]),
    # Results of an earlier version have no number of clusters.
    int(plain.get("clusters") or 0),
  )


def _number(value: float | None) -> float:
  return math.nan if value is None else float(value)


def counted_cell(plain: Json, share: bool = False, decimals: int = 2) -> str:
  """Returns an estimate of results.json over its interval and its numbers of items and clusters."""
  if plain["value"] is None:
    return "–"
  cell = html.cell(estimate(plain), share, decimals)
  return f"{cell}<small>n {numbers.counted(plain)}</small>"


# --- the page ---


def render(name: str, results: Json, draws: Mapping[str, Draw]) -> str:
  """Returns the page of results.json under a title `name`.

  `draws` are the functions that draw `together` of a suite, by its name.
  """
  model_looks = looks(results["models"])
  sections = [_models(results)]
  for suite, part in results["suites"].items():
    draw = draws.get(suite)
    sections.append(_suite(suite, part, model_looks, draw))
  links, body = "", ""
  for anchor, section_title, section in sections:
    links += f'<a href="#{anchor}">{escape(section_title)}</a>'
    body += section
  count = len(results["models"])
  title = f"Evaluations of {count} model{'' if count == 1 else 's'}"
  lead = f"{LEAD} {intervals.many(numbers.count_intervals(results))}".strip()
  head = f'<p class="run">{escape(name)}</p><h1>{title}</h1><p>{escape(lead)}</p>'
  header = f"<header>{head}<nav>{links}</nav></header>"
  return html.page(f"{name} · InstructJAX", header + body)


def _suite(
  suite: str,
  part: Json,
  model_looks: Mapping[str, Look],
  draw: Draw | None,
) -> tuple[str, str, str]:
  """Returns the section of a suite: its own drawing, the table, then figures and slices, folded."""
  look = {model: model_looks[model] for model in part["models"]}
  together = part["together"]
  # A part of an earlier version may have nothing here.
  own_drawing = draw(together, look) if draw and together else ""
  baseline = part["settings"]["baseline"]
  plots, slices = [], []
  for task, about in part["tasks"].items():
    if about["metrics"]:
      plots.append(_plot(task, about, look, baseline))
      slices.append(_slices(task, about, look))
  # A suite may have dozens of tasks: only its table is open at first.
  grid = html.grid(plots)
  if grid:
    grid = f"<details><summary>{escape(suite)}: figures</summary>{grid}</details>"
  contents = (_settings(part), own_drawing, _table(part), grid, *slices)
  return html.section(suite, suite, "", *contents)


def _note(text: str) -> str:
  """Returns a line in small print; the text is HTML already."""
  return f'<p class="note">{text}</p>'


def _models(results: Json) -> tuple[str, str, str]:
  """Returns the section that says which models these are."""
  rows = []
  for name, about in results["models"].items():
    source = str(about.get("source", ""))
    parameters = about.get("parameters", 0)
    weights = str(about.get("weights", ""))[:FINGERPRINT]
    # Models of an earlier version do not say how they were asked.
    cells = [name, source, f"{parameters:,}", weights, str(about.get("asked", ""))]
    rows.append([escape(cell) for cell in cells])
  head = ("name", "source", "parameters", "weights", "asked")
  table = html.table(head, rows)
  notes = "".join(_note(f"{escape(note)}.") for note in results["notes"])
  return html.section("models", "Models", "", table, notes)


def _settings(part: Json) -> str:
  """Returns a line with the settings of a suite: others on the page may have different ones."""
  settings = []
  for name, value in part["settings"].items():
    if value != "":  # an empty template or tokenizer is the model's own
      settings.append(f"{name} {value}")
  text = ", ".join(settings)
  return _note(f"Made with {escape(text)}.")


# --- tables ---


def _table(part: Json) -> str:
  """Returns a line for each task and metric, with the paper's numbers under ours, and notes."""
  rows, notes, cut_notes = [], [], []
  models = part["models"]
  for task, about in part["tasks"].items():
    estimates = about["models"]
    rows += [_metric_row(task, metric, estimates, models) for metric in about["metrics"]]
    if about["about"]:
      notes.append(_note(f"{escape(task)}: {escape(about['about'])}"))
    cut_notes += [_cut_note(task, about, model) for model in about["cut"]]
  head = ("task", "metric", "n", *map(escape, models))
  table = html.table(head, rows) if rows else ""
  return table + "".join(notes) + "".join(cut_notes)


def _cut_note(task: str, about: Json, model: str) -> str:
  count, n = about["cut"][model], about["n"]
  return _note(
    f"{escape(task)}: the prompts of {count} of {n} items did not fit the context of "
    f"{escape(model)} and lost their beginning."
  )


def _metric_row(
  task: str,
  metric: Json,
  estimates: Mapping[str, Json],
  models: Sequence[str],
) -> list[str]:
  """Returns the line of one metric."""
  n = _counts([estimates[model][metric["name"]] for model in models])
  cells = []
  for model in models:
    value = estimates[model][metric["name"]]
    paper_values = metric["paper"].get(model)
    cells.append(_cell(metric, value, n, paper_values))
  arrow = ARROWS[metric["better"]]  # the direction in which the metric improves
  name = escape(metric["name"]) + arrow
  return [escape(task), name, n, *cells]


def _counts(estimates: Sequence[Json]) -> str:
  """Returns the items and clusters of a line.

  A metric may apply to fewer answers of one model than of another. The most are shown, and the cell
  of another model has its own.
  """
  return numbers.counted(max(estimates, key=lambda estimate: estimate["n"]))


def _cell(
  metric: Json,
  plain: Json,
  n_of_line: str,
  paper_values: Sequence[float] | None = None,
) -> str:
  """Returns an estimate, with its n where the line has another one, and the paper's values."""
  value = estimate(plain)
  if math.isnan(value.value):
    return "–"
  cell = html.cell(value, metric["percent"], metric["decimals"])
  n = numbers.counted(plain)
  if n != n_of_line:
    cell += f"<small>n {n}</small>"
  if paper_values:
    paper_numbers = " / ".join(_formatted(metric, number) for number in paper_values)
    cell += f"<small>paper {paper_numbers}</small>"
  return cell


def _formatted(metric: Json, number: float) -> str:
  if metric["percent"]:
    return html.percent(number)
  return html.minus(number, metric["decimals"])


def _slices(task: str, about: Json, look: Mapping[str, Look]) -> str:
  """Returns a table of the first metric for each group of slices, folded; "" without slices."""
  metric = about["metrics"][0]
  tables = ""
  for group, values in about["slices"].items():
    tables += _slice_table(task, metric, group, values, look)
  if not tables:
    return ""
  return f"<details><summary>{escape(task)}: slices</summary>{tables}</details>"


def _slice_table(
  task: str,
  metric: Json,
  group: str,
  values: Mapping[str, Json],
  look: Mapping[str, Look],
) -> str:
  """Returns a line for each value of a group, a column for each model."""
  name = metric["name"]
  models_in_table: set[str] = set().union(*values.values())
  models = [model for model in look if model in models_in_table]
  rows = []
  for value, row in values.items():
    n = _counts([row[model][name] for model in models])
    # The paper has no slices, so that its numbers do not stand here.
    cells = [_cell(metric, row[model][name], n) for model in models]
    rows.append([escape(value), n, *cells])
  caption = escape(f"{task}, {name} by {group}")
  head = [escape(text) for text in (group, "n", *models)]
  table = html.table(head, rows)
  return f"<figure><figcaption>{caption}</figcaption>{table}</figure>"


# --- figures ---


def lines(
  estimates: Mapping[str, Estimate],
  look: Mapping[str, Look],
  paper_curves: Mapping[str, Curve],
) -> list[Line]:
  """Returns a line over the number of parameters for each method, the paper's curve beside it.

  There are none unless some method has models of several sizes, and the size of every model is
  recorded.
  """
  models_by_method: dict[str, list[str]] = {}
  for model in estimates:
    method, _ = paper.split(model)
    models_by_method.setdefault(method, []).append(model)
  most_sizes = 0
  for models in models_by_method.values():
    sizes = {look[model].parameters for model in models}
    if 0 in sizes:
      return []
    most_sizes = max(most_sizes, len(sizes))
  if most_sizes < 2:
    return []

  method_lines = []
  for method, models in models_by_method.items():
    name = models[0].partition("@")[0]  # as it is written, while `method` is in small letters
    points = []
    for model in models:
      parameters = look[model].parameters
      points.append((parameters, estimates[model]))
    kind = look[models[0]].kind
    paper_curve = paper_curves.get(method, ())
    method_lines.append(Line(name, kind, points, paper_curve))
  return method_lines


def _plot(
  task: str,
  about: Json,
  look: Mapping[str, Look],
  baseline: str,
) -> str:
  """Returns a figure of the first metric: lines over sizes, or a forest as in Figure 7."""
  metric = about["metrics"][0]
  name = metric["name"]
  number_format = {"percent": metric["percent"], "decimals": metric["decimals"]}
  estimates = {}
  for model in look:
    value = estimate(about["models"][model][name])
    if math.isfinite(value.value):  # a metric that applies to no item has no value to draw
      estimates[model] = value

  paper_curves = {}
  for model, values in metric["paper"].items():
    if len(values) == len(paper.SIZES):  # METHOD@SIZE has one value, which makes no curve
      paper_curves[model] = paper.curve(values)
  method_lines = lines(estimates, look, paper_curves)
  if method_lines:
    return curves.curves(task, method_lines, name, **number_format)
  if not estimates:
    return ""

  rows, models_of_paper = [], []
  for model, value in estimates.items():
    kind = look[model].kind
    marks: list[Any] = [(kind, value.value, value.low, value.high)]
    if model in metric["paper"]:
      # The paper's largest model; its figures have no intervals that could be read off.
      largest = metric["paper"][model][-1]
      marks.append(("gold", largest, math.nan, math.nan))
      models_of_paper.append(model)
    rows.append(figures.Row(model, marks))
  # A line marks the value of the baseline, or of the first model where there is none.
  first = next(iter(estimates))
  reference = estimates.get(baseline, estimates[first])
  return figures.forest(
    task,
    rows,
    name,
    reference=reference.value,
    legend=legend(models_of_paper),
    **number_format,
  )


def legend(models: Sequence[str]) -> list[tuple[str, str]]:
  """Returns what the paper's marks beside these models are, as (style, text)."""
  if not models:
    return []
  sizes = [paper.split(model)[1] for model in models]
  with_size = [bool(size) for size in sizes]
  if all(with_size):
    return [("gold", "the paper's of that size")]
  if any(with_size):
    return [("gold", "the paper's: of the size in the name, else 175B")]
  return [("gold", "the paper's, 175B")]


# --- the terminal ---


def show(results: Json, suites: Sequence[str], path: Path) -> None:
  """Prints the tables of these suites, the notes and the path of the page."""
  from rich.console import Console

  console = Console()
  # A table with more models than fit is printed in several parts, one below the other.
  models_a_table = max((console.width - NAMED) // CELL, 1)
  for suite in suites:
    part = results["suites"][suite]
    models_of_suite = part["models"]
    for start in range(0, len(models_of_suite), models_a_table):
      models = models_of_suite[start : start + models_a_table]
      table = _terminal_table(suite, part, models)
      if table.row_count:
        console.print(table)
    for line in _lines_of_all_models(suite, part):
      console.print(line, highlight=False, markup=False)
  many = intervals.many(numbers.count_intervals(results))
  if many:
    console.print(many, highlight=False, markup=False)
  notes = [f"note: {note}" for note in results["notes"]]
  for line in (*notes, f"Report: {path}"):
    console.print(line, highlight=False, markup=False)


def _lines_of_all_models(suite: str, part: Json) -> list[str]:
  """Returns a line for each number that a suite has of all models together.

  What the page folds (slices) is in results.csv.
  """
  lines = []
  for number in numbers.of_all_models(suite, part):
    if number.folded:
      continue
    name = f"{number.task}: {number.metric}"
    count = numbers.counted(number.estimate)
    lines.append(f"{name:60} {number.model:16} {numbers.text(number)}  n {count}")
  return lines


def _terminal_table(suite: str, part: Json, models: Sequence[str]) -> Any:
  """Returns the rich table of a suite for some of its models."""
  from rich.table import Table
  from rich.text import Text

  table = Table(title=suite)
  for name in ("task", "metric", "n", *models):
    table.add_column(Text(name))  # a plain string could hold what rich takes for a style
  for task, about in part["tasks"].items():
    for metric in about["metrics"]:
      name = metric["name"]
      estimates = [about["models"][model][name] for model in models]
      n = _counts(estimates)
      cells = [_terminal_cell(metric, plain, n) for plain in estimates]
      table.add_row(task, name, n, *cells)
  return table


def _terminal_cell(metric: Json, plain: Json, n_of_line: str) -> str:
  """Returns the value, its interval and, where the line has another one, its n, a line each."""
  value = estimate(plain)
  if math.isnan(value.value):
    return "-"
  scale, places = 1, metric["decimals"]
  if metric["percent"]:
    scale, places = 100, 1
  middle = f"{scale * value.value:.{places}f}"
  low = f"{scale * value.low:.{places}f}"
  high = f"{scale * value.high:.{places}f}"
  cell = f"{middle}\n{low} to {high}"
  n = numbers.counted(plain)
  return cell if n == n_of_line else f"{cell}\nn {n}"
