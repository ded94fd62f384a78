"""Scores of items into estimates with 95 % intervals: the percentile bootstrap over clusters of
items (`intervals`).

Items of one cluster hang together (questions on one passage), so clusters are drawn again, never
items. Dimensions: N items, G clusters, C columns of a metric, S draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from instructjax import intervals
from instructjax.evals.tasks import Item, Metric, Scores, Task
from instructjax.intervals import NOTHING, SAMPLES, Estimate

Table = dict[str, dict[str, Estimate]]  # model, metric


def estimate(
  metric: Metric, items: Sequence[Item], scores: Sequence[Scores], seed: int = 0
) -> Estimate:
  """One metric of one model; `n` counts the items that it applies to."""
  columns, count = _clustered(metric, items, scores)
  if columns is None:
    return NOTHING
  point = float(_statistic(metric, columns.sum(axis=0)))
  draws = _statistic(metric, intervals.resampled(columns, SAMPLES, seed))
  return intervals.with_ends(point, draws, count)


def difference(
  metric: Metric,
  items: Sequence[Item],
  ours: Sequence[Scores],
  theirs: Sequence[Scores],
  seed: int = 0,
) -> Estimate:
  """Ours less theirs on the items that have both scores; clusters are drawn again for both at once."""
  both = [
    i
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
    if None not in (a.get(metric.name), b.get(metric.name))
  ]
  kept = [items[i] for i in both]
  (a, count), (b, _) = (
    _clustered(metric, kept, [scores[i] for i in both]) for scores in (ours, theirs)
  )
  if a is None or b is None:
    return NOTHING
  width = a.shape[1]
  draws = intervals.resampled(np.concatenate([a, b], axis=1), SAMPLES, seed)
  of = lambda sums: _statistic(metric, sums[..., :width]) - _statistic(metric, sums[..., width:])
  point = float(of(np.concatenate([a.sum(axis=0), b.sum(axis=0)])))
  return intervals.with_ends(point, of(draws), count)


def table(task: Task, scores: Mapping[str, Sequence[Scores]], seed: int = 0) -> Table:
  """Every metric of every model."""
  return {
    model: {metric.name: estimate(metric, task.items, rows, seed) for metric in task.metrics}
    for model, rows in scores.items()
  }


def differences(
  task: Task, scores: Mapping[str, Sequence[Scores]], base: str, seed: int = 0
) -> Table:
  """Every metric of every other model less that of `base`."""
  return {
    model: {
      metric.name: difference(metric, task.items, rows, scores[base], seed)
      for metric in task.metrics
    }
    for model, rows in scores.items()
    if model != base
  }


def slices(
  task: Task, scores: Mapping[str, Sequence[Scores]], seed: int = 0
) -> dict[str, dict[str, Table]]:
  """{group: {value: table}} of the items that stand in each slice."""
  found: dict[str, dict[str, Table]] = {}
  for group in sorted({group for item in task.items for group in item.slices}):
    values = [item.slices.get(group) for item in task.items]
    for value in sorted({value for value in values if value is not None}):
      at = [i for i, one in enumerate(values) if one == value]
      part = task._replace(items=[task.items[i] for i in at])
      found.setdefault(group, {})[value] = table(
        part, {m: [rows[i] for i in at] for m, rows in scores.items()}, seed
      )
  return found


def plain(found: Estimate) -> dict[str, float | None]:
  """An estimate as JSON has it: null where there is no number."""
  return {name: None if value != value else value for name, value in found._asdict().items()}


def _clustered(
  metric: Metric, items: Sequence[Item], scores: Sequence[Scores]
) -> tuple[Float[np.ndarray, "G C"] | None, int]:
  """Sums over each cluster, and the number of items; a mean has the columns (value, 1)."""
  sums: dict[str, np.ndarray] = {}
  count = 0
  for item, row in zip(items, scores, strict=True):
    value = row.get(metric.name)
    if value is None:
      continue
    count += 1
    columns = np.asarray([value, 1.0] if metric.of is None else value, np.float64)
    key = item.cluster or item.id
    sums[key] = sums[key] + columns if key in sums else columns
  return (np.stack(list(sums.values())), count) if sums else (None, 0)


def _statistic(metric: Metric, sums: Float[np.ndarray, "*S C"]) -> np.ndarray:
  return np.asarray(sums[..., 0] / sums[..., 1] if metric.of is None else metric.of(sums))
