"""Scores of items become estimates with 95 % intervals over clusters.

Items of one cluster depend on each other (questions on one passage), so that clusters are the rows
of `intervals`, which says how each interval is made. Dimensions: G clusters, C columns of a metric,
S resamplings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from instructjax import intervals
from instructjax.evals.tasks import Item, Metric, Scores, Task, ratio
from instructjax.intervals import NOTHING, Estimate

# The statistics that are shares: the mean, whose columns are (value, 1), and (part, whole).
SHARES = (None, ratio)
Table = dict[str, dict[str, Estimate]]  # by model and metric


def estimate(
  metric: Metric,
  items: Sequence[Item],
  scores: Sequence[Scores],
  seed: int = 0,
) -> Estimate:
  """Returns one metric of one model; its `n` counts the items that the metric applies to."""
  columns, count = _clustered(metric, items, scores)
  if columns is None:
    return NOTHING
  if metric.of in SHARES:
    return intervals.share(columns)._replace(n=count)
  assert metric.of is not None
  return intervals.of_sums(columns, metric.of, count, seed)


def difference(
  metric: Metric,
  items: Sequence[Item],
  ours: Sequence[Scores],
  theirs: Sequence[Scores],
  seed: int = 0,
) -> Estimate:
  """Returns our value less theirs on the items that have both scores.

  The difference is paired: each cluster has a value of both sides.
  """
  common_items, our_scores, their_scores = [], [], []
  for item, our_row, their_row in zip(items, ours, theirs, strict=True):
    our_value = our_row.get(metric.name)
    their_value = their_row.get(metric.name)
    # Of an item that only one of the two could be scored on, nothing is compared.
    if our_value is None or their_value is None:
      continue
    common_items.append(item)
    our_scores.append(our_row)
    their_scores.append(their_row)
  our_columns, count = _clustered(metric, common_items, our_scores)
  their_columns, _ = _clustered(metric, common_items, their_scores)
  if our_columns is None or their_columns is None:
    return NOTHING

  if metric.of is None:
    return intervals.difference(our_columns, their_columns)

  # The columns of both sides lie beside each other, so that one resampling covers both.
  columns = np.concatenate([our_columns, their_columns], axis=1)
  width = our_columns.shape[1]
  of = metric.of

  def gain(sums: Float[np.ndarray, "*S C"]) -> np.ndarray:
    return np.asarray(of(sums[..., :width]) - of(sums[..., width:]))

  return intervals.of_sums(columns, gain, count, seed)


def table(task: Task, scores: Mapping[str, Sequence[Scores]], seed: int = 0) -> Table:
  """Returns every metric of every model."""
  rows: Table = {}
  for model, model_scores in scores.items():
    rows[model] = {}
    for metric in task.metrics:
      value = estimate(metric, task.items, model_scores, seed)
      rows[model][metric.name] = value
  return rows


def differences(
  task: Task,
  scores: Mapping[str, Sequence[Scores]],
  base: str,
  seed: int = 0,
) -> Table:
  """Returns every metric of every model except `base`, less that of `base`."""
  base_scores = scores[base]
  rows: Table = {}
  for model, model_scores in scores.items():
    if model == base:
      continue
    rows[model] = {}
    for metric in task.metrics:
      value = difference(metric, task.items, model_scores, base_scores, seed)
      rows[model][metric.name] = value
  return rows


def slices(
  task: Task,
  scores: Mapping[str, Sequence[Scores]],
  seed: int = 0,
) -> dict[str, dict[str, Table]]:
  """Returns {group: {value: the table of the items that have this value}}."""
  numbers_by_slice: dict[str, dict[str, list[int]]] = {}  # of items, by group and value
  for number, item in enumerate(task.items):
    for group, value in item.slices.items():
      numbers_by_value = numbers_by_slice.setdefault(group, {})
      numbers_by_value.setdefault(value, []).append(number)

  tables: dict[str, dict[str, Table]] = {}
  for group, numbers_by_value in sorted(numbers_by_slice.items()):
    tables[group] = {}
    for value, numbers in sorted(numbers_by_value.items()):
      # A slice is a task of fewer items.
      items = [task.items[number] for number in numbers]
      part = task._replace(items=items)
      part_scores = {}
      for model, model_scores in scores.items():
        part_scores[model] = [model_scores[number] for number in numbers]
      tables[group][value] = table(part, part_scores, seed)
  return tables


def plain(value: Estimate) -> dict[str, float | None]:
  """Returns an estimate as JSON has it: null where there is no number."""
  fields = value._asdict()
  for name, number in fields.items():
    if math.isnan(number):  # JSON has no NaN
      fields[name] = None
  return fields


def _clustered(
  metric: Metric,
  items: Sequence[Item],
  scores: Sequence[Scores],
) -> tuple[Float[np.ndarray, "G C"] | None, int]:
  """Returns (the sums of the columns over each cluster, the number of items).

  The columns of a mean are (value, 1). There are no sums if the metric applies to no item.
  """
  sums: dict[str, np.ndarray] = {}
  count = 0
  for item, row in zip(items, scores, strict=True):
    value = row.get(metric.name)
    if value is None:
      continue
    count += 1
    if metric.of is None:
      value = [value, 1.0]  # the ratio of the sums is the mean
    columns = np.asarray(value, np.float64)
    cluster = item.cluster or item.id
    if cluster in sums:
      columns = sums[cluster] + columns
    sums[cluster] = columns
  if not sums:
    return None, 0
  return np.stack(list(sums.values())), count
