"""Rows of test data that every model reads: the trunk reads them once for all."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from instructjax.data.batches import pipeline
from instructjax.quickstart.models import Trained
from instructjax.stages import stems
from instructjax.types import PyTree


def with_stems(trained: Trained, rows: PyTree) -> PyTree:
  """Returns padded rows with what the trunk makes of them.

  They stay as they are where every block is trained, and no two models have one in common.
  """
  has_trunk = "lower" in trained.trunk
  if not has_trunk:
    return rows
  return stems.with_stems(trained.lm, trained.trunk, rows, trained.dtype)


def batches(rows: PyTree, count: int, size: int) -> Iterator[tuple[PyTree, int]]:
  """Yields (batch of `size` rows, number of real rows) for `count` padded rows, in their order."""
  row_numbers = range(count)
  # The last batch is filled up with the first rows, so that every batch has the same shape.
  for numbers, real in pipeline.once(row_numbers, np.asarray, size=size):
    yield take(rows, numbers), real


def take(rows: PyTree, numbers: np.ndarray) -> PyTree:
  """Returns the rows of these numbers."""

  # Rows stay on the host, and a batch goes to the device with the call that reads it.
  def take_of_leaf(leaf: np.ndarray) -> np.ndarray:
    on_host = np.asarray(leaf)
    return on_host[numbers]

  return jax.tree.map(take_of_leaf, rows)
