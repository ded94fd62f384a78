"""The data behind the paper's Figures 1, 3, 4 and 5: rows for results.json, and CSV files.

Everything that stands beside our numbers as "paper" comes from `evals.paper`, under the names of
the methods there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from instructjax.evals import paper
from instructjax.evals.preference.votes import main_estimate
from instructjax.runs import writers

Row = dict[str, Any]
# (parameters, value): a curve of the paper over its model sizes.
Curve = list[tuple[float, float]]

# The name of a method in --models -> its name in the paper's tables.
METHODS = {
  "base": "GPT",
  "gpt": "GPT",
  "prompted": "GPT_prompted",
  "gpt-prompted": "GPT_prompted",
  "sft": "SFT",
  "ppo": "PPO",
  "ptx": "PPO_ptx",
  "ppo-ptx": "PPO_ptx",
  "flan": "FLAN",
  "t0": "T0",
}
# Our measure -> its name in Figure 4, where the paper pools all sizes.
POOLED = {
  "attempts_instruction": "attempts_correct",
  "satisfies_constraint": "explicit_constraints",
  "hallucination": "hallucinations",
  "appropriate": "appropriate",
}
# Hallucination by size, as (task, metric, prompt) of the paper's tables.
FIGURE_30 = ("Fig. 30", "hallucination", "-")
# The direct comparisons of section 4.1: PPO-ptx at 175B against each of these methods.
HEADLINES = {
  "GPT": "ptx175_vs_gpt",
  "GPT_prompted": "ptx175_vs_gpt_prompted",
  "FLAN": "ptx175_vs_flan",
  "T0": "ptx175_vs_t0",
}


# --- the paper's numbers ---


def paper_name(model: str) -> str:
  """Returns the paper's name of the method that a model of ours is named after, or ""."""
  method, _ = paper.split(model)
  return METHODS.get(method, "")


def _is_largest(model: str) -> bool:
  return "175B" in paper.sizes(model)


def headline(model: str, opponent: str) -> list[float] | None:
  """Returns the paper's [rate, half-width] of a direct comparison at 175B, or None."""
  comparison = HEADLINES.get(paper_name(opponent))
  if comparison is None or paper_name(model) != "PPO_ptx":
    return None
  if not (_is_largest(model) and _is_largest(opponent)):
    return None
  return paper.tables()["headline"][comparison]


def panel(prompts: str, judge: str) -> str:
  """Returns the panel of Figure 3 that the names of the prompts and of the judge stand for.

  Prompts called "gpt" are those that were submitted to GPT-3 models, and a judge called "heldout"
  is the held-out labelers. Every other name stands for the prompts that were submitted to
  InstructGPT models, or for the training labelers.
  """
  labelers = "heldout" if judge.lower() == "heldout" else "training"
  distribution = "gpt" if prompts.lower() == "gpt" else "instruct"
  return f"{labelers}, {distribution}"


def paper_win_rates(prompts: str, judge: str, model: str) -> list[float] | None:
  """Returns the paper's win rates of Figure 3, for the sizes that stand beside a model."""
  # The paper compares with SFT at 175B, whatever the baseline here is.
  rates_by_method = paper.tables()["fig3_winrate_vs_sft175"][panel(prompts, judge)]
  return paper.of_sizes(model, rates_by_method.get(paper_name(model)))


def _methods(models: Sequence[str]) -> list[str]:
  """Returns the methods of models, which have the form METHOD or METHOD@SIZE, each once."""
  return list(dict.fromkeys(paper.split(model)[0] for model in models))


def win_rate_curves(prompts: str, judge: str, models: Sequence[str]) -> dict[str, Curve]:
  """Returns {method: the paper's win rates over sizes} for the methods of these models."""
  curves = {}
  for method in _methods(models):
    rates = paper_win_rates(prompts, judge, method)
    if rates:
      curves[method] = paper.curve(rates)
  return curves


def rating_curves(measure: str, models: Sequence[str]) -> dict[str, Curve]:
  """Returns {method: the paper's values over sizes} where it prints a measure by size.

  These are the overall quality, which has a single point at 175B (Figure 5), and hallucination
  (Figure 30).
  """
  curves: dict[str, Curve] = {}
  for method in _methods(models):
    if measure == "overall":
      value = _rating_beside(measure, method)
      if value:
        curves[method] = [(paper.PARAMETERS[-1], value[0])]
    elif measure == "hallucination":
      values = paper.beside(method, FIGURE_30)
      if values:
        curves[method] = paper.curve(values)
  return curves


def _rating_beside(measure: str, model: str) -> list[float] | None:
  """Returns the paper's number that stands beside a rating of a model, as a list of one."""
  tables = paper.tables()
  method = paper_name(model)
  _, size = paper.split(model)
  if measure == "overall":
    value = tables["fig5_likert_175B"].get(method) if _is_largest(model) else None
  elif size:
    # Figure 4 pools all sizes; hallucination alone is printed by size too.
    return paper.beside(model, FIGURE_30) if measure == "hallucination" else None
  else:
    pooled = tables["fig4_pooled"]
    values = dict(zip(pooled["order"], pooled[POOLED[measure]], strict=True))
    value = values.get(method)
  return None if value is None else [value]


# --- our rows ---


def figure_rows(findings: Mapping[str, Any], baseline: str) -> dict[str, list[Row]]:
  """Returns {"1": rows, "3": ..., "4": ..., "5": ...} of the findings, in their order.

  The package docstring lists the fields.
  """
  figures: dict[str, list[Row]] = {"1": [], "3": [], "4": [], "5": []}
  for prompts, part in findings.items():
    for judge, judge_findings in part["judges"].items():
      # Win rates.
      figures["3"] += _win_rate_rows(prompts, judge, judge_findings, baseline)
    for rater, rater_findings in part["raters"].items():
      for measure, shares_by_model in rater_findings["measures"].items():
        # The measures of Figure 4, and the overall quality of Figure 5.
        rating_rows = _rating_rows(prompts, rater, measure, shares_by_model)
        if measure == "overall":
          figures["5"] += rating_rows
        elif measure in POOLED:
          figures["4"] += rating_rows
  # Figure 1 is the first panel of Figure 3.
  for row in figures["3"]:
    first = figures["3"][0]
    if (row["prompts"], row["judge"]) == (first["prompts"], first["judge"]):
      figures["1"].append(row)
  return figures


def _win_rate_rows(
  prompts: str,
  judge: str,
  judge_findings: Mapping[str, Any],
  baseline: str,
) -> list[Row]:
  """Returns a row for each model that was compared with the baseline, and one for the latter."""
  against_baseline = judge_findings["against_baseline"]
  if not against_baseline:
    return []
  estimates = {}
  for model, rates in against_baseline.items():
    estimates[model] = main_estimate(rates["rate"])._asdict()
  # By definition; a curve over sizes needs this point.
  estimates[baseline] = {"value": 0.5, "low": 0.5, "high": 0.5, "n": 0, "clusters": 0}
  rows = []
  for model, estimate in estimates.items():
    row = {
      "prompts": prompts,
      "judge": judge,
      "model": model,
      "against": baseline,
      **estimate,
      "paper": paper_win_rates(prompts, judge, model),
    }
    rows.append(row)
  return rows


def _rating_rows(
  prompts: str,
  rater: str,
  measure: str,
  shares_by_model: Mapping[str, Any],
) -> list[Row]:
  """Returns a row for each model, of a measure that the paper plots; of another one none."""
  if measure != "overall" and measure not in POOLED:
    return []
  rows = []
  for model, shares in shares_by_model.items():
    row = {
      "prompts": prompts,
      "judge": rater,
      "model": model,
      "measure": measure,
      **main_estimate(shares)._asdict(),
      "paper": _rating_beside(measure, model),
    }
    rows.append(row)
  return rows


def write(folder: Path, figures: Mapping[str, Sequence[Row]]) -> None:
  """Writes figure1.csv and the others, with a line for each bar.

  Several numbers of the paper are those of 1.3B, 6B and 175B, with spaces between them.
  """
  if jax.process_index() > 0:
    return
  folder.mkdir(parents=True, exist_ok=True)
  for name, rows in figures.items():
    if not rows:
      continue
    text = io.StringIO()
    # All rows of a figure have the same fields.
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    for row in rows:
      paper_numbers = " ".join(map(str, row["paper"] or []))
      table.writerow({**row, "paper": paper_numbers})
    writers.replace(folder / f"figure{name}.csv", text.getvalue())
