"""What happens between the commands of laboratory W: labels, prefixed prompts, measures.

  python experiments/paper/steps.py label --prompts=P.jsonl --samples=S.jsonl --seed=10 \
    --out=comparisons.jsonl
  python experiments/paper/steps.py prefixed --prompts=test.jsonl --prefix=best.txt --out=P.jsonl
  python experiments/paper/steps.py measure --prompts=test.jsonl --samples=S.jsonl --out=gold.csv

`label` ranks the samples of models as simulated labelers do. `measure` writes a line for each
answer with the parts of its gold score; it reads what was sampled and changes nothing that is
trained.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from english import files, gold, labelers, tasks
from english.labelers import HELD_OUT, TRAINING, Labeler, Tastes
from english.tasks import Task

# The people of a laboratory, and the pairs that their strength is fitted on.
LABELERS = 40
PAIRS = 2000
# A prompted base model goes on with another example after this mark.
MARK = "#"
COLUMNS = (
  "id",
  "model",
  "use_case",
  "kind",
  "source",
  "cluster",
  "words",
  "empty",
  "courtesies",
  *gold.Parts._fields,
  "gold",
  "response",
)


def read_rows(path: Path) -> list[dict[str, Any]]:
  """Returns the rows of a JSONL file."""
  with path.open(encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def tasks_by_id(rows: Iterable[Mapping[str, Any]]) -> dict[str, Task]:
  """Returns the task of each prompt by the id of its record."""
  return {row["id"]: tasks.from_fields(row["task"]) for row in rows}


# --- labels ---


def label(
  by_id: Mapping[str, Task],
  samples: Sequence[Mapping[str, Any]],
  seed: int,
  tastes: Tastes = TRAINING,
) -> list[dict[str, Any]]:
  """Returns a comparison for each prompt: its different samples as one labeler ranks them.

  One labeler ranks all samples of a prompt, as in the paper. The strength of preferences is that at
  which two labelers of training agree on 73 of 100 pairs of these samples, whoever ranks.
  """
  rng = random.Random(f"labels {seed}")
  people = labelers.group(rng, tastes, LABELERS)
  strength = fitted_strength(by_id, samples, seed)
  rows = []
  for sample in samples:
    texts = list(dict.fromkeys(text for text in sample["responses"] if text.strip()))
    if len(texts) < 2:
      continue
    labeler = rng.choice(people)
    ranks = labelers.ranks(rng, labeler, by_id[sample["id"]], texts, strength)
    row = {"id": sample["id"], "prompt": sample["prompt"], "completions": texts, "ranks": ranks}
    rows.append(row | {"labeler": labeler.name, "use_case": sample["use_case"]})
  return rows


def fitted_strength(
  by_id: Mapping[str, Task], samples: Sequence[Mapping[str, Any]], seed: int
) -> float:
  """Returns the strength at which labelers of training agree as often as the paper's."""
  rng = random.Random(f"strength {seed}")
  people: list[Labeler] = labelers.group(rng, TRAINING, LABELERS)
  differences = []
  order = list(samples)
  rng.shuffle(order)
  for sample in order[:PAIRS]:
    texts = list(dict.fromkeys(text for text in sample["responses"] if text.strip()))
    if len(texts) >= 2:
      task = by_id[sample["id"]]
      first, second = (labelers.features(task, text) for text in rng.sample(texts, 2))
      differences.append(first - second)
  return labelers.fitted(people, np.stack(differences))


# --- prompts of the prompted base model ---


def prefixed(rows: Sequence[Mapping[str, Any]], prefix: str) -> list[dict[str, Any]]:
  """Returns the prompts with examples before them."""
  return [{**row, "prompt": prefix + row["prompt"]} for row in rows]


# --- measures ---


def measure(
  by_id: Mapping[str, Task], samples: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """Returns a line for each answer, with what gold says of it. An answer ends at a mark."""
  lines = []
  for sample in samples:
    task = by_id[sample["id"]]
    for source, response in zip(sample["sources"], sample["responses"], strict=True):
      text = response.partition(MARK)[0].strip()
      parts = gold.parts(task, text)
      line = {
        "id": sample["id"],
        "model": source["model"],
        "use_case": task.use_case,
        "kind": task.kind,
        "source": task.held_out or "plain",
        # Prompts of one kind about one subject hang together.
        "cluster": f"{task.kind} {task.subject}",
        "words": len(text.split()),
        "empty": int(not text),
        "courtesies": gold.read(task, text).courtesies,
      }
      line |= {name: round(value, 4) for name, value in parts._asdict().items()}
      lines.append(line | {"gold": round(parts.total, 4), "response": text})
  return lines


def read_table(path: Path) -> list[dict[str, str]]:
  """Returns the lines of a CSV file."""
  with path.open(encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


def write_table(path: Path, columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> None:
  """Writes lines as CSV."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(lines)


def main(words: list[str] | None = None) -> None:
  """Does what the arguments ask for."""
  parser = argparse.ArgumentParser(description=__doc__)
  actions = parser.add_subparsers(dest="action", required=True)
  for name in ("label", "prefixed", "measure"):
    action = actions.add_parser(name)
    action.add_argument("--prompts", type=Path, required=True, help="the prompts with their tasks")
    action.add_argument("--out", type=Path, required=True)
    if name == "prefixed":
      action.add_argument("--prefix", type=Path, required=True)
      continue
    action.add_argument("--samples", type=Path, required=True, help="samples.jsonl")
    if name == "label":
      action.add_argument("--seed", type=int, required=True)
      action.add_argument("--held-out", action="store_true", help="people of other tastes")
  args = parser.parse_args(words)

  rows = read_rows(args.prompts)
  if args.action == "prefixed":
    files.write_rows(args.out, prefixed(rows, args.prefix.read_text()))
    return
  by_id = tasks_by_id(rows)
  samples = read_rows(args.samples)
  if args.action == "label":
    tastes = HELD_OUT if args.held_out else TRAINING
    files.write_rows(args.out, label(by_id, samples, args.seed, tastes))
  else:
    write_table(args.out, COLUMNS, measure(by_id, samples))


if __name__ == "__main__":
  main()
