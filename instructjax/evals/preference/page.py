"""The preference part of report.html: the paper's Figures 1, 3, 4 and 5, and their tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from instructjax.evals.page import counted_cell, estimate, legend, lines
from instructjax.evals.preference import figures
from instructjax.evals.tasks import Look
from instructjax.intervals import Estimate
from instructjax.runs.report import page as html
from instructjax.runs.report.curves import curves
from instructjax.runs.report.figures import Row, forest

Looks = Mapping[str, Look]
# A row of a figure, or an estimate, as results.json holds them.
Entry = Mapping[str, Any]
DASH = "–"  # where there is no number

# The titles of Figure 4's panels.
MEASURES = {
  "attempts_instruction": "Attempts the correct instruction",
  "satisfies_constraint": "Follows explicit constraints",
  "hallucination": "Hallucinates",
  "appropriate": "Appropriate for a customer assistant",
}
MIDDLE = 4.0  # of the scale from 1 to 7


def draw(results: Mapping[str, Any], looks: Looks) -> str:
  """Returns the HTML of the findings about all models together."""
  panels = []
  # Figures 1 and 3: a panel for each set of prompts and judge.
  win_rates = _grouped(results["figures"]["3"], ("prompts", "judge"))
  for (prompts, judge), rows in win_rates.items():
    panels.append(_win_rate_panel(prompts, judge, rows, looks))
  # Figure 4: a panel for each measure.
  shares = _grouped(results["figures"]["4"], ("measure", "prompts", "judge"))
  for (measure, prompts, rater), rows in shares.items():
    title = f"{MEASURES[measure]}: {rater}, {prompts}"
    panels.append(_share_panel(title, rows, looks))
  # Figure 5.
  qualities = _grouped(results["figures"]["5"], ("prompts", "judge"))
  for (prompts, rater), rows in qualities.items():
    panels.append(_quality_panel(prompts, rater, rows, looks))
  sections = []
  for prompts, part in results["prompts"].items():
    for judge, findings in part["judges"].items():
      # A judge may have no votes: labels of other models.
      if findings["against_baseline"] or findings["head_to_head"]:
        sections.append(_judge_section(prompts, judge, findings))
    sections.append(_agreement_section(prompts, part.get("agreement", {})))
  sections.append(_check_section(results["check"]))
  return html.grid(panels) + "".join(sections)


def _grouped(rows: Sequence[Entry], names: Sequence[str]) -> dict[tuple[str, ...], list[Entry]]:
  """Returns rows by the values of some of their fields."""
  groups: dict[tuple[str, ...], list[Entry]] = {}
  for row in rows:
    key = tuple(row[name] for name in names)
    groups.setdefault(key, []).append(row)
  return groups


# --- figures: curves over sizes where a method has several, a forest plot otherwise ---


def _win_rate_panel(prompts: str, judge: str, rows: Sequence[Entry], looks: Looks) -> str:
  """Returns Figure 1, or a panel of Figure 3."""
  baseline = rows[0]["against"]
  title = f"Preferred to {baseline}: {judge}, {prompts}"
  count = max(row["n"] for row in rows)
  note = (
    f"{count:,} votes a model. Ties count half; 95 % intervals over prompts, and over labelers "
    "where there are several."
  )
  paper_curves = figures.win_rate_curves(prompts, judge, list(looks))
  curve_lines = lines(_estimates(rows), looks, paper_curves)
  if curve_lines:
    return curves(title, curve_lines, "win rate", level=0.5, note=note)
  # The baseline is the line at 1/2.
  marks = [_forest_row(row, looks) for row in rows if row["model"] != baseline]
  return forest(title, marks, "win rate", reference=0.5, note=note)


def _share_panel(title: str, rows: Sequence[Entry], looks: Looks) -> str:
  """Returns a panel of Figure 4."""
  note = _ratings_note(rows)
  paper_curves = figures.rating_curves(rows[0]["measure"], list(looks))
  curve_lines = lines(_estimates(rows), looks, paper_curves)
  if curve_lines:
    return curves(title, curve_lines, "share of answers", note=note)
  marks = [_forest_row(row, looks) for row in rows]
  return forest(title, marks, "share of answers", reference=0.0, note=note)


def _quality_panel(prompts: str, rater: str, rows: Sequence[Entry], looks: Looks) -> str:
  """Returns Figure 5, with the paper's 175B models beside ours."""
  title = f"Overall quality, 1 to 7: {rater}, {prompts}"
  note = _ratings_note(rows)
  paper_curves = figures.rating_curves("overall", list(looks))
  curve_lines = lines(_estimates(rows), looks, paper_curves)
  if curve_lines:
    return curves(title, curve_lines, "mean rating", level=MIDDLE, note=note, percent=False)
  marks = []
  for row in rows:
    forest_row = _forest_row(row, looks)
    model_marks = list(forest_row.marks)
    if row["paper"]:
      # The paper prints no interval here.
      model_marks.append(("gold", row["paper"][0], math.nan, math.nan))
    marks.append(forest_row._replace(marks=model_marks))
  models_in_paper = [row["model"] for row in rows if row["paper"]]
  return forest(
    title,
    marks,
    "mean rating",
    reference=MIDDLE,
    legend=legend(models_in_paper),
    note=note,
    percent=False,
  )


def _ratings_note(rows: Sequence[Entry]) -> str:
  count = max(row["n"] for row in rows)
  return f"{count:,} ratings a model."


def _estimates(rows: Sequence[Entry]) -> dict[str, Estimate]:
  return {row["model"]: estimate(row) for row in rows if row["value"] is not None}


def _forest_row(row: Entry, looks: Looks) -> Row:
  value, low, high, _, _ = estimate(row)
  model = row["model"]
  return Row(model, [(looks[model].kind, value, low, high)])


# --- tables ---


def _share_cell(share: Entry | None) -> str:
  """Returns a share over its interval; a dash where there is none."""
  if not share or share["value"] is None:
    return DASH
  return counted_cell(share, True)


def _main_cell(shares: Mapping[str, Any]) -> str:
  """Returns the estimate over prompts and labelers where there is one."""
  return _share_cell(shares["by_both"] or shares["by_prompt"])


def _judge_section(prompts: str, judge: str, findings: Mapping[str, Any]) -> str:
  """Returns the tables of one judge, with notes on what a reader should know of it."""
  against_baseline = findings["against_baseline"]
  parts = [f"<h3>{escape(judge)}, {escape(prompts)}</h3>"]
  if against_baseline:
    parts.append(_baseline_table(against_baseline, findings["bradley_terry"]["rate"]))
  parts.append(_notes(findings))
  if findings["head_to_head"]:
    parts.append(_head_to_head_table(findings["head_to_head"], findings["consistency"]))
  parts.append(_slices_section(against_baseline))
  return "".join(parts)


def _baseline_table(
  against_baseline: Mapping[str, Any],
  fitted_rates: Mapping[str, Entry],
) -> str:
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
  rows = []
  for model, rates in against_baseline.items():
    # `_notes` explains the sign.
    warning = " <b>!</b>" if rates["flagged"] else ""
    paper_rates = [f"{100 * rate:.1f}" for rate in rates["paper"] or ()]
    row = [
      escape(model),
      _main_cell(rates["rate"]),
      _share_cell(rates["wins"]),
      _share_cell(rates["ties"]),
      _share_cell(rates["losses"]),
      _share_cell(rates["controlled"]["rate"]) + warning,
      _share_cell(fitted_rates.get(model)),
      " / ".join(paper_rates) or DASH,
    ]
    rows.append(row)
  return html.table(head, rows)


def _head_to_head_table(
  head_to_head: Mapping[str, Any],
  consistency: Mapping[str, Any],
) -> str:
  rows = []
  for pair, comparison in head_to_head.items():
    row = [
      escape(pair),
      _main_cell(comparison["rate"]),
      _implied_cell(consistency.get(pair)),
      _paper_cell(comparison["paper"]),
    ]
    rows.append(row)
  return html.table(("pair", "direct win rate", "implied by the baseline", "paper"), rows)


def _implied_cell(consistency: Entry | None) -> str:
  """Returns the implied rate, and whether the direct one agrees with it."""
  if consistency is None or consistency["agree"] is None:
    return DASH
  verdict = "agrees" if consistency["agree"] else "DISAGREES"
  z = ""
  if consistency["z"] is not None:
    z = f"z {html.minus(consistency['z'], 1)}"
  return f"{_share_cell(consistency['implied'])}<small>{verdict}, {z}</small>"


def _paper_cell(numbers: Sequence[float] | None) -> str:
  """Returns the paper's rate and the half-width of its interval."""
  if not numbers:
    return DASH
  rate, half_width = numbers
  return f"{html.percent(rate)} ± {100 * half_width:.0f}"


def _slices_section(against_baseline: Mapping[str, Any]) -> str:
  """Returns folded tables: win rates by use case, prompt length and ratio of the lengths."""
  # Models may have been judged on different prompts.
  values_by_group: dict[str, set[str]] = {}
  for rates in against_baseline.values():
    for group, estimates in rates["slices"].items():
      values_by_group.setdefault(group, set()).update(estimates)
  if not values_by_group:
    return ""
  tables = []
  for group, values in values_by_group.items():
    head = [escape(group.replace("_", " ")), *map(escape, against_baseline)]
    rows = []
    for value in sorted(values):
      cells = [_slice_cell(rates, group, value) for rates in against_baseline.values()]
      rows.append([escape(value), *cells])
    tables.append(html.table(head, rows))
  return f"<details><summary>slices</summary>{''.join(tables)}</details>"


def _slice_cell(rates: Mapping[str, Any], group: str, value: str) -> str:
  """Returns the rate of a model in one slice, which may hold none of its prompts."""
  share = rates["slices"].get(group, {}).get(value)
  return _share_cell(share)


def _notes(findings: Mapping[str, Any]) -> str:
  """Returns what a reader should know of a judge: its votes, its bias, and what does not fit."""
  voters = f" by {findings['labelers']:,} labelers" if findings["labelers"] > 1 else ""
  notes = [f"{findings['votes']:,} votes on {findings['prompts']:,} prompts{voters}."]
  if findings["order"]:
    # Null is no number: nothing was drawn.
    order = {}
    for name, share in findings["order"].items():
      if share["value"] is not None:
        order[name] = html.percent(share["value"])
    notes.append(
      f"The answer shown first was preferred in {order['first']} (50 % is no bias); "
      f"{order['inconsistent']} of pairs got another verdict in the other order, "
      f"{order['flipped']} the opposite one; {order['tied']} of verdicts are ties."
    )
  if findings["same"]:
    notes.append(f"{findings['same']:,} pairs of the same text count as ties.")
  if any(rates["flagged"] for rates in findings["against_baseline"].values()):
    notes.append("! marks a conclusion that is another one when both answers are equally long.")
  for model, rates in findings["against_baseline"].items():
    if rates["controlled"]["why"]:
      notes.append(f"{model} has no rate at equal length: {rates['controlled']['why']}.")
  others = [
    rates["controlled"].get("difficulty_from", 0) for rates in findings["against_baseline"].values()
  ]
  if others:
    notes.append(_difficulty_note(min(others)))
  if findings["bradley_terry"]["why"]:
    notes.append(f"Bradley-Terry: {findings['bradley_terry']['why']}.")
  return f'<p class="note">{escape(" ".join(notes))}</p>'


def _difficulty_note(others: int) -> str:
  """Returns what a rate at equal length rests on: the more other models, the better."""
  if not others:
    return (
      "Rates at equal length are after AlpacaEval 2 without difficulties of the prompts, for which "
      "other models have to be judged too: on its models such rates are as far from the published "
      "ones as the raw rates."
    )
  models = "1 other model" if others == 1 else f"{others} other models"
  return (
    "Rates at equal length are after AlpacaEval 2; the difficulties of the prompts are from the "
    f"verdicts on {models}."
  )


def _agreement_section(prompts: str, table: Mapping[str, Any]) -> str:
  """Returns how far judges agree with each other: people, reward models and language models."""
  rows = []
  for pair, estimates in table.items():
    agreement = _share_cell(estimates["agreement"])
    rows.append([escape(pair), agreement, _share_cell(estimates["agreement_ties"])])
  if not rows:
    return ""
  head = ("judges", "the same order, ties left out", "ties half")
  return f"<h3>Agreement of judges, {escape(prompts)}</h3>" + html.table(head, rows)


def _check_section(check: Mapping[str, Any]) -> str:
  """Returns the table of judges beside people."""
  if not check:
    return ""
  head = (
    "who",
    "agrees with people, ties left out",
    "ties half",
    "ties",
    "another verdict in the other order",
  )
  rows = []
  for judge, estimates in check.items():
    # People have no row where no prompt has two labelers.
    if estimates:
      row = [
        escape(judge),
        _share_cell(estimates["agreement"]),
        _share_cell(estimates["agreement_ties"]),
        _share_cell(estimates["tied"]),
        _share_cell(estimates.get("inconsistent")),
      ]
      rows.append(row)
  return "<h3>Judges beside people</h3>" + html.table(head, rows)
