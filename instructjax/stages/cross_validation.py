"""Cross-validation of reward models over labelers (Ouyang et al. 2022, section 4.1 and App. E.2).

Labelers are split into groups with about as many comparisons each. For every group and seed one
reward model is trained on the comparisons of the other groups, and measured on held-out
comparisons: on those of the labelers that it was trained on, and on those of the group that was
left out. The paper has 5 groups and 3 seeds, and finds 72.4 % against 69.6 %.

WORKDIR gets data/GROUP/ with the files of each group, runs/GROUP-SEED/ with the metrics and results
of each run, and results.json. The models themselves are not kept.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from instructjax import intervals
from instructjax.data.batches import corpora
from instructjax.data.records import ordering, places, records
from instructjax.data.records.records import Comparison
from instructjax.errors import UserError
from instructjax.intervals import Estimate
from instructjax.runs import writers
from instructjax.settings.fields import replaced, to_dict
from instructjax.settings.reward import RewardSettings
from instructjax.stages import reward, running
from instructjax.system import memory
from instructjax.system.places import require_local

POOLS = ("training labelers", "held-out labelers")  # the names that `ordering` gives them


def run(
  settings: RewardSettings, workdir: Path, groups: int, seeds: int, sinks: tuple[str, ...] = ()
) -> None:
  """Trains and measures all models, goes on where it stopped, and prints the two accuracies.

  Raises UserError for data without labelers, and for whatever is wrong with the reward stage.
  """
  require_local(workdir, "--workdir")
  training, held_out = read(settings)
  members = split_labelers(training, groups)
  numbers = {labeler: number for number, group in enumerate(members) for labeler in group}
  measurable = [record for record in held_out if record.labeler in numbers]
  if not measurable:
    raise UserError(
      f"config.data.valid={settings.data.valid}: none of the {len(held_out)} comparisons is by a "
      "labeler of config.data.comparisons; give held-out comparisons by the same labelers"
    )
  prints = running.fingerprints(comparisons=training, valid=measurable)
  about = {"rm_cv": {"groups": groups, "seeds": seeds}, **to_dict(settings), "fingerprints": prints}
  with writers.open_run(workdir, about, seed=settings.seed):
    measured = []
    for number in range(groups):
      files = write_group(
        workdir / "data" / f"group-{number}", training, measurable, members[number]
      )
      for seed in range(settings.seed, settings.seed + seeds):
        folder = workdir / "runs" / f"group-{number}-seed-{seed}"
        changes = files | {"seed": seed}
        results = run_of(replaced(settings, changes), folder, sinks)
        measured.append({"group": members[number], "seed": seed, **accuracies(results, folder)})
    summary = summarise(measured)
    summary["left_out"] = len(held_out) - len(measurable)
    writers.keep_results(workdir, {"rm_cv": summary})
    running.show(describe(summary, groups, seeds))


# --- data ---


def read(settings: RewardSettings) -> tuple[list[Comparison], list[Comparison]]:
  """The comparisons to train on and the held-out ones, all of them with labelers.

  Raises UserError for a mixture, for missing files and for comparisons without a labeler.
  """
  data = settings.data
  if not data.valid:
    raise UserError(
      "config.data.valid is empty; give held-out comparisons, on which both groups of labelers are "
      "measured"
    )
  training = corpora.read_one(data, "comparisons", "comparison")
  held_out = corpora.read_one(data, "valid", "comparison")
  problems = []
  for name, part in ((data.comparisons, training), (data.valid, held_out)):
    for number, record in enumerate(part):
      if not record.labeler:
        place = places.field(places.of(record, name, number), "labeler")
        problems.append(f"{place}: none; cross-validation is over labelers")
  records.report(problems)
  return training, held_out


def split_labelers(training: Sequence[Comparison], groups: int) -> list[list[str]]:
  """The labelers in groups with about as many comparisons each.

  Raises UserError for fewer labelers than groups.
  """
  counts = Counter(record.labeler or "" for record in training)
  if len(counts) < groups:
    raise UserError(
      f"--groups={groups}: config.data.comparisons has {len(counts)} labelers; ask for at most as "
      "many groups"
    )
  members: list[list[str]] = [[] for _ in range(groups)]
  sizes = [0] * groups
  # The busiest labelers first, each to the group that has least so far.
  for labeler, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
    smallest = sizes.index(min(sizes))
    members[smallest].append(labeler)
    sizes[smallest] += count
  return [sorted(group) for group in members]


def write_group(
  folder: Path,
  training: Sequence[Comparison],
  held_out: Sequence[Comparison],
  group: Sequence[str],
) -> dict[str, Any]:
  """Writes the data of the models that never saw a group; gives the fields that name them."""
  others = [record for record in training if record.labeler not in group]
  files = {"comparisons": others, "valid": held_out}
  for name, part in files.items():
    records.write(folder / f"{name}.jsonl", part)
  fields: dict[str, Any] = {f"data.{name}": str(folder / f"{name}.jsonl") for name in files}
  # They are written in our own spelling, whatever they were read from.
  return fields | {"data.spelling": "native", "data.fields": ""}


# --- one model ---


def run_of(settings: RewardSettings, folder: Path, sinks: tuple[str, ...]) -> dict[str, Any]:
  """The results of a reward model, which is trained unless it was before; it is not kept."""
  path = folder / "results.json"
  if not path.is_file():
    reward.run(settings, folder, sinks)
    memory.release()
    wait_for_all(str(folder))
  if jax.process_index() == 0:
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
  return json.loads(path.read_text())["rm"]


def wait_for_all(name: str) -> None:
  """Waits until every process is here: the first one has written its files then."""
  if jax.process_count() == 1:
    return
  from jax.experimental import multihost_utils

  multihost_utils.sync_global_devices(name)


def accuracies(results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
  """The accuracy of a model on both pools of labelers.

  Raises UserError where one of them has no pairs.
  """
  pools = results["by_pool"]
  for pool in POOLS:
    if pool not in pools or not pools[pool]["n"]:
      raise UserError(
        f"{folder}: there are no held-out pairs of the {pool}; give more in config.data.valid, or "
        "ask for fewer --groups"
      )
  return {pool: pools[pool] for pool in POOLS}


# --- all models ---


def summarise(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Both accuracies and their difference, as means over models.

  Intervals are over the groups of labelers: the models of a group differ by their seeds alone.
  """
  inside, outside = (_sums_of_groups(measured, pool) for pool in POOLS)
  return {
    POOLS[0]: ordering.as_json(intervals.share(inside)),
    POOLS[1]: ordering.as_json(intervals.share(outside)),
    "gap": ordering.as_json(intervals.difference(inside, outside)),
    "models": list(measured),
  }


def _sums_of_groups(
  measured: Sequence[Mapping[str, Any]], pool: str
) -> Float[np.ndarray, "groups 2"]:
  """Returns the sum of the accuracies of each group's models, and the number of its models."""
  sums: dict[tuple[str, ...], np.ndarray] = {}
  for model in measured:
    group = tuple(model["group"])
    value_and_count = np.array([model[pool]["value"], 1.0])
    sums[group] = sums.get(group, np.zeros(2)) + value_and_count
  return np.stack(list(sums.values()))


def describe(summary: Mapping[str, Any], groups: int, seeds: int) -> str:
  """Three lines: the two accuracies and their difference."""
  lines = [
    f"{groups} groups of labelers, {seeds} seeds; 95 % intervals over the groups (n: models in "
    "groups)"
  ]
  for name in (*POOLS, "gap"):
    part = summary[name]
    counts = intervals.counted(Estimate(**part))
    interval = f"({part['low']:.3f} to {part['high']:.3f})"
    lines.append(f"{name:18} {part['value']:.3f} {interval}  n {counts}")
  if summary["left_out"]:
    lines.append(
      f"{summary['left_out']} held-out comparisons are by other labelers and were not counted"
    )
  return "\n".join(lines)
