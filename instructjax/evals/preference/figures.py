"""The data behind the paper's Figures 1, 3, 4 and 5: rows for results.json, and a CSV file each."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from instructjax.evals import paper
from instructjax.evals.preference.rates import chosen
from instructjax.runs import writers

Row = dict[str, Any]
MODELS = {  # ours -> the paper's
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
POOLED = {  # of Figure 4: our measure -> the paper's name
  "attempts_instruction": "attempts_correct",
  "satisfies_constraint": "explicit_constraints",
  "hallucination": "hallucinations",
  "appropriate": "appropriate",
}
FIGURE_30 = ("Fig. 30", "hallucination", "-")
HEADLINES = {  # printed in the text of section 4.1, PPO-ptx at 175B against each
  "GPT": "ptx175_vs_gpt",
  "GPT_prompted": "ptx175_vs_gpt_prompted",
  "FLAN": "ptx175_vs_flan",
  "T0": "ptx175_vs_t0",
}


def of(model: str) -> str:
  """The paper's name of the method that a model of ours is named after, or ""."""
  return MODELS.get(paper.split(model)[0], "")


def headline(model: str, against: str) -> list[float] | None:
  """The paper's [rate, half-width] of a direct comparison at 175B, or None."""
  largest = all("175B" in paper.sizes(one) for one in (model, against))
  name = HEADLINES.get(of(against), "") if of(model) == "PPO_ptx" and largest else ""
  return paper.tables()["headline"][name] if name else None


def condition(prompts: str, judge: str) -> str:
  """The part of Figure 3 that the names of the prompts ("gpt") and of the judge ("heldout") stand
  for.
  """
  return f"{'heldout' if judge.lower() == 'heldout' else 'training'}, {'gpt' if prompts.lower() == 'gpt' else 'instruct'}"


def rates(prompts: str, judge: str, model: str) -> list[float] | None:
  """The paper's win rates of Figure 3, for the sizes that stand beside a model."""
  return paper.of_sizes(
    model, paper.tables()["fig3_winrate_vs_sft175"][condition(prompts, judge)].get(of(model))
  )


def curves(prompts: str, judge: str, models: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
  """{method: the paper's (parameters, win rate)} of the methods of these models."""
  each = {
    method: rates(prompts, judge, method) for method in (paper.split(model)[0] for model in models)
  }
  return {method: paper.curve(found) for method, found in each.items() if found}


def rated(measure: str, models: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
  """{method: the paper's (parameters, value)} where it prints a measure by size: overall quality at
  175B, Figure 30.
  """
  methods = dict.fromkeys(paper.split(model)[0] for model in models)
  if measure == "overall":
    largest = {method: _pooled(measure, method) for method in methods}
    return {
      method: [(paper.PARAMETERS[-1], found[0])] for method, found in largest.items() if found
    }
  each = (
    {method: paper.beside(method, FIGURE_30) for method in methods}
    if measure == "hallucination"
    else {}
  )
  return {method: paper.curve(found) for method, found in each.items() if found}


def rows(found: Mapping[str, Any], baseline: str) -> dict[str, list[Row]]:
  """{"1": ..., "3": ..., "4": ..., "5": ...} of what the suite found, in its order; see the package
  for the fields.
  """
  figures: dict[str, list[Row]] = {name: [] for name in ("1", "3", "4", "5")}
  for prompts, part in found.items():
    for judge, one in part["judges"].items():
      each = {
        model: chosen(row["rate"])._asdict() for model, row in one["against_baseline"].items()
      }
      each[baseline] = {"value": 0.5, "low": 0.5, "high": 0.5, "n": 0}
      here = [
        {
          "prompts": prompts,
          "judge": judge,
          "model": model,
          "against": baseline,
          **e,
          "paper": rates(prompts, judge, model),
        }
        for model, e in each.items()
      ]
      figures["3"] += here if one["against_baseline"] else []
    for rater, one in part["raters"].items():
      for measure, models in one["measures"].items():
        name = "5" if measure == "overall" else "4"
        if name == "5" or measure in POOLED:
          figures[name] += [
            {
              "prompts": prompts,
              "judge": rater,
              "model": model,
              "measure": measure,
              **chosen(e)._asdict(),
              "paper": _pooled(measure, model),
            }
            for model, e in models.items()
          ]
  first = figures["3"][:1]
  figures["1"] = [
    row
    for row in figures["3"]
    if (row["prompts"], row["judge"]) == (first[0]["prompts"], first[0]["judge"])
  ]
  return figures


def _pooled(measure: str, model: str) -> list[float] | None:
  """[the paper's number], of Figure 5 at 175B or of Figure 4, pooled over sizes but for
  hallucination by size (Figure 30).
  """
  tables, size = paper.tables(), paper.split(model)[1]
  if measure == "overall":
    value = tables["fig5_likert_175B"].get(of(model)) if "175B" in paper.sizes(model) else None
  elif size:
    return paper.beside(model, FIGURE_30) if measure == "hallucination" else None
  else:
    pooled = tables["fig4_pooled"]
    value = dict(zip(pooled["order"], pooled[POOLED[measure]], strict=True)).get(of(model))
  return None if value is None else [value]


def write(folder: Path, figures: Mapping[str, Sequence[Row]]) -> None:
  """figure1.csv ...: a line for each bar; the paper's numbers are those of 1.3B, 6B and 175B where
  there are three.
  """
  if jax.process_index() > 0:
    return
  folder.mkdir(parents=True, exist_ok=True)
  for name, lines in figures.items():
    out = io.StringIO()
    if lines:
      table = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
      table.writeheader()
      table.writerows(line | {"paper": " ".join(map(str, line["paper"] or []))} for line in lines)
      writers.replace(folder / f"figure{name}.csv", out.getvalue())
