"""Reading a run directory: whatever is there and can be read; what cannot be is listed in
`problems`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.errors import UserError
from instructjax.intervals import Estimate

Curve = dict[int, float]  # step -> value
NAMES = ("metrics.jsonl", "samples.jsonl", "results.json", "config.json", "manifest.json")


class Run(NamedTuple):
  """The files of a run directory; a missing one is empty."""

  name: str
  curves: dict[str, dict[str, Curve]]  # stage, metric
  samples: list[dict[str, Any]]
  results: dict[str, Any]
  config: dict[str, Any]
  manifest: dict[str, Any]
  problems: list[str]


def read(workdir: Path) -> Run:
  """Reads the five files.  Raises UserError where none of them holds anything."""
  if not workdir.is_dir():
    raise UserError(
      f"{workdir} is no directory; give the directory of a run, the one that was its --workdir"
    )
  problems: list[str] = []
  curves = gather(lines(workdir / "metrics.jsonl", problems), problems)
  samples = list(lines(workdir / "samples.jsonl", problems))
  results, config, manifest = (whole(workdir / name, problems) for name in NAMES[2:])
  if not (curves or samples or results or config or manifest):
    found = "; ".join(problems) or "none of these files is there"
    raise UserError(
      f"{workdir} holds nothing to report ({found}); a run directory has {', '.join(NAMES)}"
    )
  return Run(workdir.resolve().name, curves, samples, results, config, manifest, problems)


def lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
  """The objects of a JSONL file."""
  if not path.is_file():
    return
  bad = []
  with path.open(encoding="utf-8", errors="replace") as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      found = parse(line)
      if isinstance(found, dict):
        yield found
      else:
        bad.append(str(number))
  if bad:
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    problems.append(
      f"{path.name}: left out what is no JSON object, line {', '.join(bad[:5])}{more}"
    )


def whole(path: Path, problems: list[str]) -> dict[str, Any]:
  """The object of a JSON file."""
  if not path.is_file():
    return {}
  found = parse(path.read_text(encoding="utf-8", errors="replace"))
  if isinstance(found, dict):
    return found
  problems.append(f"{path.name}: left out, it is no JSON object")
  return {}


def parse(text: str) -> Any:
  """The value of a JSON text; None where it is malformed."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return None


def gather(rows: Iterator[dict[str, Any]], problems: list[str]) -> dict[str, dict[str, Curve]]:
  """Curves by stage and metric, in the order of steps; of a step that was run twice the later line
  counts.
  """
  curves: dict[str, dict[str, Curve]] = {}
  broken: dict[tuple[str, str], int] = {}
  for row in rows:
    step, stage = number(row.get("step")), str(row.get("stage", "run"))
    if step is None:
      continue
    for name in (name for name in row if name not in ("step", "stage")):
      value = number(row[name])
      if value is not None:
        curves.setdefault(stage, {}).setdefault(name, {})[int(step)] = value
      elif isinstance(row[name], float):
        broken.setdefault((stage, name), int(step))
  problems.extend(
    f"{stage}: {name} is not finite at step {at}"
    for (stage, name), at in sorted(broken.items())[:5]
  )
  return {
    stage: {name: dict(sorted(curve.items())) for name, curve in metrics.items()}
    for stage, metrics in curves.items()
  }


def number(value: Any) -> float | None:
  """A finite number, plain or the `value` of an estimate; None for anything else."""
  if isinstance(value, dict):
    value = value.get("value")
  if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
    return None
  return float(value)


def estimate(value: Any) -> Estimate | None:
  """A number with its interval, which is NaN where there is none; None where there is no number."""
  at = number(value)
  if at is None:
    return None
  parts = value if isinstance(value, dict) else {}
  low, high, n = (number(parts.get(name)) for name in ("low", "high", "n"))
  if low is None or high is None:
    low = high = math.nan
  return Estimate(at, low, high, int(n or 0))


def inside(tree: Any, *path: str) -> dict[str, Any]:
  """The object at a path of keys; empty where the path ends early."""
  for name in path:
    tree = tree.get(name) if isinstance(tree, dict) else None
  return tree if isinstance(tree, dict) else {}
