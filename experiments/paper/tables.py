"""The tables of an experiment as CSV, and the verdicts of its bars.

  python experiments/paper/tables.py T1 10 11 12 13 14

It reads what the runs left in runs/paper and writes experiments/paper/results/T1.csv: a line for
each measure of each arm and seed, and lines with the seed `all`, whose intervals are over seeds and
prompts. A line with a verdict has the bar of PROTOCOL.md that it decides.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import analysis
import numpy as np
import steps

from instructjax.intervals import Estimate

RUNS = Path("runs/paper")
RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = (
  "experiment",
  "arm",
  "rival",
  "measure",
  "seed",
  "value",
  "low",
  "high",
  "n",
  "clusters",
  "bar",
  "verdict",
)
# The coefficients of the KL penalty of T2; .2 is the quickstart's own.
KL = ("0", "0.05", "0.2", "0.8", "4", "20")
FIXED = "0.2"
HELD_OUT_TEXT = "held-out text, nats a token above rl_init"


class Line(NamedTuple):
  """A measure of an arm over seeds: its estimates by seed, and the bar that it decides, if any."""

  arm: str
  rival: str
  measure: str
  by_seed: dict[int, Estimate]
  bar: str = ""
  verdict: str = ""

  @property
  def pooled(self) -> Estimate:
    """The estimate over all seeds."""
    return analysis.over_seeds(list(self.by_seed.values()))


def decided(line: Line, bar: str, verdict: analysis.Verdict) -> Line:
  """Returns a line with the verdict of its bar."""
  return line._replace(bar=bar, verdict=verdict)


# --- T1: the quickstart, five times ---


def gold_of_quickstart(seed: int) -> dict[str, np.ndarray]:
  """Returns the gold score of each author's answer to each test prompt."""
  rows = steps.read_rows(RUNS / f"tone{seed}" / "samples.jsonl")
  authors = rows[0]["gold"]
  return {author: np.asarray([row["gold"][author] for row in rows]) for author in authors}


def t1(seeds: Sequence[int]) -> list[Line]:
  """Returns the lines of T1, with the verdicts of B11a and B11b."""
  gold = {seed: gold_of_quickstart(seed) for seed in seeds}
  authors = list(gold[seeds[0]])
  lines = []
  for rival in ("sft", "base"):
    for arm in authors:
      if arm == rival:
        continue
      by_seed = {}
      for seed, scores in gold.items():
        clusters = np.arange(len(scores[arm])) // 2
        by_seed[seed] = analysis.win_rate(scores[arm], scores[rival], clusters)
      line = Line(arm, rival, "gold win rate", by_seed)
      if (arm, rival) == ("ptx", "sft"):
        line = decided(line, "B11a", analysis.exceeds(line.pooled, 0.5))
      lines.append(line)
  by_seed = {}
  for seed, scores in gold.items():
    clusters = np.arange(len(scores["ptx"])) // 2
    ptx, ppo = (analysis.outcomes(scores[arm], scores["sft"]) for arm in ("ptx", "ppo"))
    by_seed[seed] = analysis.difference(ptx, ppo, clusters)
  line = Line("ptx", "ppo", "difference of gold win rates against sft", by_seed)
  lines.append(decided(line, "B11b", analysis.agrees(line.pooled, 0.1)))
  for bar, verdict, by_seed in _accuracies(seeds):
    lines.append(Line("reward", "", bar, by_seed, verdict=verdict))
  return lines


def _accuracies(seeds: Sequence[int]) -> list[tuple[str, str, dict[int, Estimate]]]:
  """Returns how often the reward model and gold order people's pairs as people did."""
  results = {}
  for seed in seeds:
    results[seed] = json.loads((RUNS / f"tone{seed}" / "results.json").read_text())
  rows = []
  for name in ("pair_accuracy", "gold_pair_accuracy"):
    by_seed = {seed: Estimate(**result["rm"][name]) for seed, result in results.items()}
    rows.append((name, "", by_seed))
  return rows


# --- T2: the KL coefficient ---


def arm_of(kl: str) -> str:
  """Returns the name of the arm of a KL coefficient."""
  return "ppo" if kl == FIXED else f"kl{kl}"


def columns(seed: int, arm: str) -> dict[str, np.ndarray]:
  """Returns the columns of the numbers of an arm, those of the text without its empty places."""
  rows = steps.read_rows(RUNS / f"tone{seed}" / "arms" / f"{arm}.jsonl")
  names = [name for name, value in rows[0].items() if isinstance(value, int | float)]
  return {name: np.asarray([row[name] for row in rows if name in row]) for name in names}


def outcomes(arm: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns what each prompt counts against SFT."""
  return analysis.outcomes(arm["gold"], arm["gold_sft"])


def t2(seeds: Sequence[int]) -> list[Line]:
  """Returns the lines of T2, with the verdict of B7 from both of its differences."""
  arms = {kl: {seed: columns(seed, arm_of(kl)) for seed in seeds} for kl in KL}
  lines = []
  for kl, of_seeds in arms.items():
    rates, distances, taxes = {}, {}, {}
    for seed, arm in of_seeds.items():
      rates[seed] = analysis.win_rate(arm["gold"], arm["gold_sft"], arm["cluster"])
      zeros = np.zeros_like(arm["kl"])
      distances[seed] = analysis.difference(arm["kl"], zeros, arm["cluster"])
      rows = np.arange(len(arm["nll"]))
      taxes[seed] = analysis.difference(arm["nll"], arm["nll_rl_init"], rows)
    lines.append(Line(arm_of(kl), "sft", "gold win rate", rates))
    lines.append(Line(arm_of(kl), "", "KL, nats", distances))
    lines.append(Line(arm_of(kl), "", HELD_OUT_TEXT, taxes))
  differences = []
  for end in (KL[0], KL[-1]):
    by_seed = {}
    for seed in seeds:
      inside, outside = arms[FIXED][seed], arms[end][seed]
      by_seed[seed] = analysis.difference(outcomes(inside), outcomes(outside), inside["cluster"])
    measure = "difference of gold win rates against sft"
    differences.append(Line(arm_of(FIXED), arm_of(end), measure, by_seed))
  verdict = analysis.together([analysis.exceeds(line.pooled, 0.0) for line in differences])
  return lines + [decided(line, "B7", verdict) for line in differences]


# --- W1: sizes ---


def w1(seeds: Sequence[int]) -> list[Line]:
  """Returns the lines of W1, with the verdicts of B10 and of B11a by size."""
  answers = {seed: gold_by_model(RUNS / f"world{seed}" / "gold.csv") for seed in seeds}
  pairs = [("ptx-S", "base-L"), ("ptx-S", "prompted-L"), ("ptx-S", "sft-L")]
  models = list(answers[seeds[0]])
  pairs += [(model, "sft-L") for model in models if model not in ("ptx-S", "sft-L")]
  pairs += [(f"ptx-{size}", f"sft-{size}") for size in "SM"]
  lines = []
  for arm, rival in pairs:
    by_seed = {}
    for seed, of_models in answers.items():
      ours, theirs = of_models[arm], of_models[rival]
      by_seed[seed] = analysis.win_rate(ours.gold, theirs.gold, ours.clusters)
    lines.append(Line(arm, rival, "gold win rate", by_seed))
  verdict = analysis.together([analysis.exceeds(line.pooled, 0.5) for line in lines[:2]])
  first = [decided(line, "B10", verdict) for line in lines[:2]]
  rest = []
  for line in lines[2:]:
    if line.arm.startswith("ptx") and line.rival == f"sft{line.arm[3:]}":
      line = decided(line, f"B11a {line.arm[-1]}", analysis.exceeds(line.pooled, 0.5))
    rest.append(line)
  return first + rest


class Scored(NamedTuple):
  """The answers of a model, in the order of the prompts."""

  gold: np.ndarray
  clusters: np.ndarray


def gold_by_model(path: Path) -> dict[str, Scored]:
  """Returns gold's scores of each model from the lines of `steps.py measure`."""
  lines_by_model: dict[str, list[dict[str, str]]] = {}
  for line in steps.read_table(path):
    lines_by_model.setdefault(line["model"], []).append(line)
  scored = {}
  for model, lines in lines_by_model.items():
    # The prompted model answers prompts of the same ids from another file.
    lines.sort(key=lambda line: int(line["id"]))
    names = np.asarray([line["cluster"] for line in lines])
    gold = np.asarray([float(line["gold"]) for line in lines])
    scored[model] = Scored(gold, np.unique(names, return_inverse=True)[1])
  return scored


TABLES = {"T1": t1, "T2": t2, "W1": w1}


def rows_of(experiment: str, line: Line) -> list[dict[str, Any]]:
  """Returns the rows of a line: one for each seed, and one for all."""
  estimates: list[tuple[int | str, Estimate]] = list(line.by_seed.items())
  if len(line.by_seed) > 1:
    estimates.append(("all", line.pooled))
  rows = []
  for seed, estimate in estimates:
    row: dict[str, Any] = {
      "experiment": experiment,
      "arm": line.arm,
      "rival": line.rival,
      "measure": line.measure,
      "seed": seed,
      "bar": line.bar if seed == "all" else "",
      "verdict": line.verdict if seed == "all" else "",
    }
    for name, value in estimate._asdict().items():
      row[name] = round(value, 5)
    rows.append(row)
  return rows


def main(experiment: str, *seeds: str) -> None:
  """Writes the table of an experiment and prints its verdicts."""
  lines = TABLES[experiment]([int(seed) for seed in seeds])
  rows = [row for line in lines for row in rows_of(experiment, line)]
  steps.write_table(RESULTS / f"{experiment}.csv", COLUMNS, rows)
  for row in rows:
    if row["verdict"]:
      interval = f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
      print(f"{row['bar']}: {row['arm']} against {row['rival']} {interval}, {row['verdict']}")


if __name__ == "__main__":
  main(*sys.argv[1:])
