"""The preference part of report.html: the paper's Figures 1, 3, 4 and 5 in form, and the tables
behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from instructjax.evals.page import estimate, legend, lines
from instructjax.evals.preference import figures as data
from instructjax.evals.tasks import Look
from instructjax.intervals import Estimate
from instructjax.runs.report import page as html
from instructjax.runs.report.curves import curves
from instructjax.runs.report.figures import Row, forest

MEASURES = {
  "attempts_instruction": "Attempts the correct instruction",
  "satisfies_constraint": "Follows explicit constraints",
  "hallucination": "Hallucinates",
  "appropriate": "Appropriate for a customer assistant",
}
Looks = Mapping[str, Look]


def draw(found: Mapping[str, Any], look: Looks) -> str:
  """HTML of what the suite said of all models together."""
  rates = _grouped(found["figures"]["3"], ("prompts", "judge"))
  figures = [_rates(prompts, judge, rows, look) for (prompts, judge), rows in rates.items()]
  figures += [
    _shares(MEASURES[measure], f"{rater}, {prompts}", rows, look)
    for (measure, prompts, rater), rows in _grouped(
      found["figures"]["4"], ("measure", "prompts", "judge")
    ).items()
  ]
  tables = [
    _judge(prompts, judge, one)
    for prompts, part in found["prompts"].items()
    for judge, one in part["judges"].items()
    if one["against_baseline"] or one["head_to_head"]
  ]
  five = _grouped(found["figures"]["5"], ("prompts", "judge"))
  figures += [_likert(prompts, rater, rows, look) for (prompts, rater), rows in five.items()]
  return html.grid(figures) + "".join([*tables, _check(found["check"])])


def _grouped(
  rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
  found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
  for row in rows:
    found.setdefault(tuple(row[name] for name in names), []).append(row)
  return found


def _rates(prompts: str, judge: str, rows: Sequence[Mapping[str, Any]], look: Looks) -> str:
  """Figure 1, or a panel of Figure 3: over sizes where there are several."""
  baseline = rows[0]["against"]
  count = max(row["n"] for row in rows)
  note = f"{count:,} votes a model. Ties count half; 95 % intervals over prompts, and over labelers where there are several."
  title = f"Preferred to {baseline}: {judge}, {prompts}"
  if drawn := lines(_estimates(rows), look, data.curves(prompts, judge, list(look))):
    return curves(title, drawn, "win rate", level=0.5, note=note)
  marks = [_marked(row, look) for row in rows if row["model"] != baseline]
  return forest(title, marks, "win rate", reference=0.5, note=note)


def _shares(title: str, where: str, rows: Sequence[Mapping[str, Any]], look: Looks) -> str:
  """A panel of Figure 4."""
  title, note = f"{title}: {where}", f"{max(row['n'] for row in rows):,} ratings a model."
  if drawn := lines(_estimates(rows), look, data.rated(rows[0]["measure"], list(look))):
    return curves(title, drawn, "share of answers", note=note)
  return forest(
    title, [_marked(row, look) for row in rows], "share of answers", reference=0.0, note=note
  )


def _estimates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
  return {row["model"]: estimate(row) for row in rows if row["value"] is not None}


def _marked(row: Mapping[str, Any], look: Looks) -> Row:
  e = estimate(row)
  return Row(row["model"], [(look[row["model"]].kind, e.value, e.low, e.high)])


def _share(found: Mapping[str, Any] | None) -> str:
  """A share over its interval; a dash where there is none."""
  return html.cell(estimate(found), True) if found and found["value"] is not None else "–"


def _shown(shares: Mapping[str, Any]) -> str:
  return _share(shares["by_both"] or shares["by_prompt"])


def _judge(prompts: str, judge: str, one: Mapping[str, Any]) -> str:
  """Every model against the baseline, head to head, and what to know of the judge."""
  head = (
    "model",
    "win rate",
    "wins",
    "ties",
    "losses",
    "at equal length",
    "Bradley-Terry",
    "paper, %",
  )
  fitted = one["bradley_terry"]["rate"]
  theirs = lambda numbers: " / ".join(f"{100 * value:.1f}" for value in numbers or ()) or "–"
  rows = [
    [
      escape(model),
      _shown(row["rate"]),
      *(_share(row[name]) for name in ("wins", "ties", "losses")),
      _share(row["controlled"]["rate"]) + (" <b>!</b>" if row["flagged"] else ""),
      _share(fitted.get(model)),
      theirs(row["paper"]),
    ]
    for model, row in one["against_baseline"].items()
  ]
  parts = [
    f"<h3>{escape(judge)}, {escape(prompts)}</h3>",
    html.table(head, rows) if rows else "",
    _notes(one),
  ]
  if one["head_to_head"]:
    rows = [
      [
        escape(pair),
        _shown(row["rate"]),
        _implied(one["consistency"].get(pair)),
        _plus(row["paper"]),
      ]
      for pair, row in one["head_to_head"].items()
    ]
    parts.append(html.table(("pair", "direct win rate", "implied by the baseline", "paper"), rows))
  return "".join([*parts, _slices(one["against_baseline"])])


def _slices(models: Mapping[str, Any]) -> str:
  """Win rates by use case, length of the prompt and ratio of the lengths, folded."""
  groups: dict[str, set[str]] = {}
  for row in models.values():
    for group, values in row["slices"].items():
      groups.setdefault(group, set()).update(values)

  def cell(row: Mapping[str, Any], group: str, value: str) -> str:
    found = row["slices"].get(group, {}).get(value)
    return _share(found) + (f"<small>n {found['n']:,}</small>" if found else "")

  tables = [
    html.table(
      (escape(group.replace("_", " ")), *map(escape, models)),
      [
        [escape(value), *(cell(row, group, value) for row in models.values())]
        for value in sorted(values)
      ],
    )
    for group, values in groups.items()
  ]
  return f"<details><summary>slices</summary>{''.join(tables)}</details>" if tables else ""


def _plus(numbers: Sequence[float] | None) -> str:
  return f"{html.percent(numbers[0])} ± {100 * numbers[1]:.0f}" if numbers else "–"


def _implied(found: Mapping[str, Any] | None) -> str:
  """The implied rate, and whether the direct one agrees with it."""
  if found is None or found["agree"] is None:
    return "–"
  z = f"z {html.minus(found['z'], 1)}" if found["z"] is not None else ""
  return (
    f"{_share(found['implied'])}<small>{'agrees' if found['agree'] else 'DISAGREES'}, {z}</small>"
  )


def _notes(one: Mapping[str, Any]) -> str:
  who = f" by {one['labelers']:,} labelers" if one["labelers"] > 1 else ""
  said = [f"{one['votes']:,} votes on {one['prompts']:,} prompts{who}."]
  if one["order"]:
    order = {
      name: html.percent(e["value"]) for name, e in one["order"].items() if e["value"] is not None
    }
    said.append(
      f"The answer shown first was preferred in {order['first']} (50 % is no bias); "
      f"{order['inconsistent']} of pairs got "
      f"another verdict in the other order, {order['flipped']} the opposite one; {order['tied']} "
      "of verdicts are ties."
    )
  if one["same"]:
    said.append(f"{one['same']:,} pairs of the same text count as ties.")
  if any(row["flagged"] for row in one["against_baseline"].values()):
    said.append("! marks a conclusion that is another one when both answers are equally long.")
  if one["bradley_terry"]["why"]:
    said.append(f"Bradley-Terry: {one['bradley_terry']['why']}.")
  return f'<p class="note">{escape(" ".join(said))}</p>'


def _likert(prompts: str, rater: str, rows: Sequence[Mapping[str, Any]], look: Looks) -> str:
  """Figure 5; the paper's 175B models beside."""
  note = f"{max(row['n'] for row in rows):,} ratings a model."
  title, middle = f"Overall quality, 1 to 7: {rater}, {prompts}", 4.0
  if drawn := lines(_estimates(rows), look, data.rated("overall", list(look))):
    return curves(title, drawn, "mean rating", level=middle, note=note, percent=False)
  theirs = lambda row: [("gold", row["paper"][0], math.nan, math.nan)] if row["paper"] else []
  marks = [Row(row["model"], [*_marked(row, look).marks, *theirs(row)]) for row in rows]
  beside = legend([row["model"] for row in rows if row["paper"]])
  return forest(
    title, marks, "mean rating", reference=middle, legend=beside, note=note, percent=False
  )


def _check(check: Mapping[str, Any]) -> str:
  """Judges beside people."""
  if not check:
    return ""
  names = ("agreement", "agreement_ties", "tied", "inconsistent")
  rows = [
    [escape(judge), *(_share(row.get(name)) for name in names)]
    for judge, row in check.items()
    if row
  ]
  head = (
    "who",
    "agrees with people, ties left out",
    "ties half",
    "ties",
    "another verdict in the other order",
  )
  return "<h3>Judges beside people</h3>" + html.table(head, rows)
