"""Reads a run directory: whatever is there and can be read.

What cannot be read is left out and listed in `problems`, which the page shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.errors import UserError
from instructjax.intervals import Estimate
from instructjax.system import places
from instructjax.system.places import AnyPath

JsonObject = dict[str, Any]
Curve = dict[int, float]  # step -> value
Curves = dict[str, dict[str, Curve]]  # stage -> metric -> curve

NAMES = ("metrics.jsonl", "samples.jsonl", "results.json", "config.json", "manifest.json")
EXAMPLES = 5  # so many broken lines or numbers of a file are named


class Run(NamedTuple):
  """The files of a run directory; a missing one is empty."""

  name: str
  curves: Curves
  samples: list[JsonObject]
  results: JsonObject
  config: JsonObject
  manifest: JsonObject
  problems: list[str]
  left_model: bool = True  # whether a stage of training has left its model, which it does last


def read(workdir: AnyPath) -> Run:
  """Reads the five files.

  Raises:
    UserError: where none of them holds anything.
  """
  with places.reaching(workdir):
    is_directory = workdir.is_dir()
  if not is_directory:
    raise UserError(
      f"{workdir} is no directory; give the directory of a run, the one that was its --workdir"
    )
  problems: list[str] = []
  curves = gather(lines(workdir / "metrics.jsonl", problems), problems)
  samples = list(lines(workdir / "samples.jsonl", problems))
  results = whole(workdir / "results.json", problems)
  config = whole(workdir / "config.json", problems)
  manifest = whole(workdir / "manifest.json", problems)
  if not (curves or samples or results or config or manifest):
    causes = "; ".join(problems) or "none of these files is there"
    raise UserError(
      f"{workdir} holds nothing to report ({causes}); a run directory has {', '.join(NAMES)}"
    )
  name = workdir.resolve().name if isinstance(workdir, Path) else workdir.name
  final = left_model(workdir)
  return Run(name, curves, samples, results, config, manifest, problems, final)


def left_model(workdir: AnyPath) -> bool:
  """Returns whether a run has left a model for the next stage.

  The folder of a step gets its number as its name when all of it is written.
  """
  return any(step.name.isdigit() for step in (workdir / "checkpoints" / "final").glob("*"))


def lines(path: AnyPath, problems: list[str]) -> Iterator[JsonObject]:
  """Yields the objects of a JSONL file; the numbers of the other lines go to `problems`."""
  if not path.is_file():
    return
  bad_lines = []
  with path.open("rb") as file:
    for line_number, line in enumerate(file, start=1):
      if not line.strip():
        continue
      record = parse(line.decode("utf-8", "replace"))
      if isinstance(record, dict):
        yield record
      else:
        bad_lines.append(str(line_number))
  if bad_lines:
    examples = ", ".join(bad_lines[:EXAMPLES])
    rest = len(bad_lines) - EXAMPLES
    more = f" and {rest} more" if rest > 0 else ""
    problems.append(f"{path.name}: left out what is no JSON object, line {examples}{more}")


def whole(path: AnyPath, problems: list[str]) -> JsonObject:
  """Returns the object of a JSON file; empty where there is none."""
  if not path.is_file():
    return {}
  record = parse(path.read_bytes().decode("utf-8", "replace"))
  if isinstance(record, dict):
    return record
  problems.append(f"{path.name}: left out, it is no JSON object")
  return {}


def parse(text: str) -> Any:
  """Returns the value of a JSON text; None where it is malformed."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError):  # brackets that nest too deeply
    return None


def gather(rows: Iterator[JsonObject], problems: list[str]) -> Curves:
  """Returns the curves of all stages and metrics, in the order of steps.

  A run that was continued may hold a step twice; the later line counts. The first step at which a
  metric is not finite goes to `problems`.
  """
  curves: Curves = {}
  first_broken: dict[tuple[str, str], int] = {}  # (stage, metric) -> step
  for row in rows:
    step = number(row.get("step"))
    if step is None:
      continue
    stage = str(row.get("stage", "run"))
    stage_curves = curves.get(stage, {})
    for name, entry in row.items():
      if name in ("step", "stage"):
        continue
      value = number(entry)
      if value is not None:
        curve = stage_curves.setdefault(name, {})
        curve[int(step)] = value
      elif isinstance(entry, float):  # our own writer spells NaN as null, others may not
        first_broken.setdefault((stage, name), int(step))
    if stage_curves:  # a stage without any number is no stage
      curves[stage] = stage_curves

  for (stage, name), step in sorted(first_broken.items())[:EXAMPLES]:
    problems.append(f"{stage}: {name} is not finite at step {step}")
  return {stage: _by_step(stage_curves) for stage, stage_curves in curves.items()}


def _by_step(stage_curves: dict[str, Curve]) -> dict[str, Curve]:
  return {name: dict(sorted(curve.items())) for name, curve in stage_curves.items()}


def number(value: Any) -> float | None:
  """Returns a finite number, plain or the `value` of an estimate; None for anything else."""
  if isinstance(value, dict):
    value = value.get("value")
  # True is a whole number in Python, but not in a curve.
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  # A whole number of JSON may be too large for a float; NaN fails the comparison.
  if not is_number or not -1e300 < value < 1e300:
    return None
  return float(value)


def estimate(value: Any) -> Estimate | None:
  """Returns a number with its interval; None where there is no number.

  The ends of the interval are NaN where there is none.
  """
  point = number(value)
  if point is None:
    return None
  fields = value if isinstance(value, dict) else {}
  low = number(fields.get("low"))
  high = number(fields.get("high"))
  count = number(fields.get("n"))
  clusters = number(fields.get("clusters"))
  if low is None or high is None:
    low = high = math.nan
  return Estimate(point, low, high, int(count or 0), int(clusters or 0))


class Ordering(NamedTuple):
  """How well scores order held-out comparisons: those of a reward model, or of a DPO policy.

  name       what gives the scores, as a row of a figure has it
  measured   the measures; empty where a run has none
  """

  name: str
  measured: JsonObject


def ordering(run: Run) -> Ordering:
  """Returns the measures of a run's reward model, else those of its policy's implicit reward."""
  implicit = inside(run.results, "dpo")
  if implicit and "rm" not in run.results:
    return Ordering("implicit reward", implicit)
  return Ordering("reward model", inside(run.results, "rm"))


def inside(tree: Any, *path: str) -> JsonObject:
  """Returns the object at a path of keys; empty where the path ends early."""
  for name in path:
    tree = tree.get(name) if isinstance(tree, dict) else None
  return tree if isinstance(tree, dict) else {}
