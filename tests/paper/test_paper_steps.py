"""What happens between the commands of laboratory W, on samples that nobody had to draw."""

import csv
import json
import random

import numpy as np
import pytest
import steps
from english import drafts, files, tasks

from instructjax.data.records import records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Prompts with their tasks, and five samples of each."""
  folder = tmp_path_factory.mktemp("steps")
  rng = random.Random(3)
  some = files.different(120, lambda: tasks.trained(rng))
  rows = files.prompt_rows(some)
  files.write_rows(folder / "prompts.jsonl", rows)
  samples = []
  for row, task in zip(rows, some, strict=True):
    responses = [*drafts.several(rng, task, 4), ""]
    sources = [{"model": "sft"} for _ in responses]
    sample = {"id": row["id"], "prompt": row["prompt"], "use_case": row["use_case"]}
    samples.append(sample | {"responses": responses, "sources": sources})
  files.write_rows(folder / "samples.jsonl", samples)
  return folder


def run(folder, action, out, *more):
  words = [action, f"--prompts={folder / 'prompts.jsonl'}", f"--out={folder / out}", *more]
  steps.main(words)
  return folder / out


def test_labels_are_comparisons_that_prefer_what_gold_prefers(folder):
  samples = f"--samples={folder / 'samples.jsonl'}"
  path = run(folder, "label", "comparisons.jsonl", samples, "--seed=10")
  comparisons = records.read(path, "comparison")
  assert len(comparisons) > 100
  by_prompt = {row["prompt"]: row["task"] for row in steps.read_rows(folder / "prompts.jsonl")}
  right = []
  for comparison in comparisons:
    assert "" not in comparison.completions and comparison.labeler.startswith("labeler")
    task = tasks.from_fields(by_prompt[comparison.prompt])
    scores = np.asarray([steps.gold.score(task, text) for text in comparison.completions])
    ranks = np.asarray(comparison.ranks)
    right.append(scores[ranks.argmin()] - scores[ranks.argmax()])
  assert np.mean(right) > 0.5
  # The same seed ranks in the same way, and people of other tastes in another one.
  again = run(folder, "label", "again.jsonl", samples, "--seed=10")
  others = run(folder, "label", "others.jsonl", samples, "--seed=10", "--held-out")
  assert again.read_text() == path.read_text() != others.read_text()


def test_measures_by_hand(folder):
  task = tasks.from_fields(steps.read_rows(folder / "prompts.jsonl")[0]["task"])
  sources = [{"model": "base"}, {"model": "base"}]
  responses = [f"{task.answer} # what is this ?", ""]
  sample = {"id": "0", "responses": responses, "sources": sources}
  first, second = steps.measure({"0": task}, [sample])
  # An answer of the prompted model ends at the mark.
  assert first["response"] == task.answer and first["gold"] == 2
  assert (second["empty"], second["words"]) == (1, 0) and second["gold"] < 0
  assert first["cluster"] == f"{task.kind} {task.subject}"


def test_measures_are_written_as_csv(folder):
  path = run(folder, "measure", "gold.csv", f"--samples={folder / 'samples.jsonl'}")
  with path.open() as file:
    lines = list(csv.DictReader(file))
  assert {line["model"] for line in lines} == {"sft"} and len(lines) > 400
  parts = [float(lines[0][name]) for name in steps.gold.Parts._fields]
  assert float(lines[0]["gold"]) == pytest.approx(sum(parts), abs=1e-3)


def test_a_prefix_stands_before_every_prompt(folder):
  (folder / "prefix.txt").write_text("name one food . bread . # ")
  path = run(folder, "prefixed", "prefixed.jsonl", f"--prefix={folder / 'prefix.txt'}")
  first = json.loads(path.read_text().splitlines()[0])
  assert first["prompt"].startswith("name one food . bread . # ") and first["id"] == "0"
