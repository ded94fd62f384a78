"""The tables of the experiments, from files as the runs leave them, with verdicts by hand."""

import csv
import json

import numpy as np
import pytest
import tables

SEEDS = ("10", "11", "12")
# Of 40 instructions, which of two prompts each, an arm wins so many of every ten.
PROMPTS = 80


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, "RUNS", tmp_path / "runs")
  monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")


def gold_that_wins(tenths):
  """Scores against 0, of which so many of every ten instructions are above it."""
  instruction = np.arange(PROMPTS) // 2
  return np.where(instruction % 10 < tenths, 1.0, -1.0)


def put(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(experiment):
  """The lines that a table is written with."""
  tables.main(experiment, *SEEDS)
  with (tables.RESULTS / f"{experiment}.csv").open(newline="") as file:
    return list(csv.DictReader(file))


def verdicts(lines):
  return {(line["arm"], line["rival"]): line["verdict"] for line in lines if line["bar"]}


def test_t1_judges_ptx_against_sft_and_against_ppo():
  gold = {"base": -1, "sft": 0, "ppo": 8, "ptx": 8}
  for seed in SEEDS:
    scores = {author: gold_that_wins(tenths) for author, tenths in gold.items()}
    scores["sft"] = np.zeros(PROMPTS)
    columns = [{author: of[i] for author, of in scores.items()} for i in range(PROMPTS)]
    folder = tables.RUNS / f"tone{seed}"
    put(folder / "samples.jsonl", [{"gold": column} for column in columns])
    accuracy = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 100, "clusters": 20}
    rm = {"pair_accuracy": accuracy, "gold_pair_accuracy": accuracy}
    put(folder / "results.json", [{"rm": rm}])
  lines = table("T1")
  assert verdicts(lines) == {("ptx", "sft"): "held", ("ptx", "ppo"): "held"}
  (rate,) = [line for line in lines if line["bar"] == "B11a"]
  assert float(rate["value"]) == 0.8 and rate["seed"] == "all"
  assert [line["seed"] for line in lines if line["measure"] == "pair_accuracy"] == [*SEEDS, "all"]


@pytest.mark.parametrize(("at_no_penalty", "verdict"), [(4, "held"), (9, "undecided")])
def test_t2_asks_for_an_optimum_inside(at_no_penalty, verdict):
  tenths = {"0": at_no_penalty, "0.05": 8, "0.2": 9, "0.8": 8, "4": 6, "20": 5}
  for seed in SEEDS:
    for kl, wins in tenths.items():
      gold = gold_that_wins(wins)
      rows = [
        {"cluster": i // 2, "gold": gold[i], "gold_sft": 0.0, "kl": 3.0, "response": "a"}
        for i in range(PROMPTS)
      ]
      for row in rows[:10]:  # the text has fewer rows than there are prompts
        row |= {"nll": 3.5, "nll_rl_init": 3.25}
      put(tables.RUNS / f"tone{seed}" / "arms" / f"{tables.arm_of(kl)}.jsonl", rows)
  lines = table("T2")
  assert verdicts(lines) == {("ppo", "kl0"): verdict, ("ppo", "kl20"): verdict}
  taxes = [line["value"] for line in lines if line["measure"] == tables.HELD_OUT_TEXT]
  assert set(taxes) == {"0.25"}


def test_w1_compares_the_small_aligned_model_with_the_large_ones():
  # The small aligned model beats the large base model, and not the prompted one.
  base = {"ptx-S": 1.0, "base-L": 0.0, "prompted-L": 2.0, "sft-L": 0.5, "sft-S": 0.2}
  gold = base | {"ptx-M": 1.2, "sft-M": 0.4, "ptx-L": 1.5}
  for seed in SEEDS:
    lines = ["id,model,cluster,gold"]
    # Ids are in another order in the file of each model.
    for model, score in gold.items():
      ids = np.roll(np.arange(30), len(lines))
      lines += [f"{i},{model},{i % 10},{score + i}" for i in ids]
    path = tables.RUNS / f"world{seed}" / "gold.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
  by_pair = verdicts(table("W1"))
  assert by_pair == {
    ("ptx-S", "base-L"): "failed",
    ("ptx-S", "prompted-L"): "failed",
    ("ptx-L", "sft-L"): "held",
    ("ptx-S", "sft-S"): "held",
    ("ptx-M", "sft-M"): "held",
  }
