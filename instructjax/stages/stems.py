"""Rows that bring the activations of the blocks that are not trained, computed once a row.

With `config.top` most of a step would go to blocks that never change. Their output for a row of
data is the same in every epoch: here it is computed before the first step and kept on the host,
in the type of the matrix products.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import sharding
from instructjax.data.batches import branches
from instructjax.errors import UserError
from instructjax.stages.running import rows_for
from instructjax.types import LM, Params, PyTree

ROWS = 64  # that are computed together


def stem_type(lm: LM, dtype: str) -> tuple[int, Any]:
  """(width, dtype) of the activations that a row brings."""
  return lm.width, jnp.dtype(dtype)


def with_stems(lm: LM, trunk: Params, batch: PyTree, dtype: str) -> PyTree:
  """A batch on the host with the stem of each of its rows; padded completions get zeros."""
  tokens, valid = (
    np.asarray(array).reshape(-1, array.shape[-1]) for array in (batch.tokens, batch.valid)
  )
  size = rows_for(ROWS, sharding.batch_shards())
  compute = jax.jit(partial(_stem, lm, dtype=jnp.dtype(dtype)))
  # Rows without a real token are padded completions; they stay zero and cost nothing.
  stems = np.zeros((*tokens.shape, lm.width), jnp.dtype(dtype))
  real = np.flatnonzero(valid.any(1))
  for begin in range(0, len(real), size):
    # The last part is filled up with its own rows, so that all parts have one shape.
    rows = np.resize(real[begin : begin + size], size)
    on_devices = sharding.place_batch((tokens[rows], valid[rows]))
    stems[rows] = sharding.fetch(compute(trunk, *on_devices))
  return dataclasses.replace(batch, stem=stems.reshape(*batch.tokens.shape, lm.width))


def _stem(lm: LM, trunk: Params, tokens: Any, valid: Any, *branch: Any, dtype: Any) -> Any:
  return lm.stem(trunk, tokens, valid, *branch).astype(dtype)


def kept_branches(lm: LM, trunk: Params, groups: Any, dtype: str) -> list[branches.Branches]:
  """The groups of comparisons with the stems of their tokens.

  Raises UserError for groups that are no list, as `kept_rows` does.
  """
  check_kept(groups, trunk)
  shards = sharding.batch_shards()
  layout = branches.layout(groups, rows_for(len(groups), shards), shards, scored=True)
  slots = branches.slots_of(groups, layout)
  batch = branches.pack(groups, layout)
  compute = jax.jit(partial(_stem, lm, dtype=jnp.dtype(dtype)))
  with_stems: list[branches.Branches] = list(groups)
  for number in range(int(slots.part.max()) + 1):
    rows = [x[:, number] for x in (batch.tokens, batch.valid, batch.branch)]
    activations = sharding.fetch(compute(trunk, *sharding.place_batch(rows)))
    for index in np.flatnonzero(slots.part == number):
      start = slots.start[index]
      end = start + len(groups[index].ids)
      # A copy, because the padding of the part need not be kept.
      stem = np.array(activations[slots.row[index], start:end])
      with_stems[index] = groups[index]._replace(stem=stem)
  return with_stems


def check_kept(rows: Any, trunk: Params) -> None:
  """Raises UserError where the stems of rows cannot be kept: the rows are no list, or have none."""
  # Only a list can be gone through before the first step without another pass over the source.
  if not isinstance(rows, list):
    raise UserError(
      "config.data.stems=true: the stems of all rows are kept, which takes rows that are all in "
      "memory; leave config.data.lazy and the packing of text off, and give one source, no mixture"
    )
  if "lower" not in trunk:
    raise UserError(
      "config.data.stems=true: every block is trained, so there is nothing to keep; set config.top"
    )


def kept_rows(
  lm: LM, trunk: Params, rows: Any, pad: Callable[[Sequence], PyTree], dtype: str
) -> tuple[range, Callable[[Sequence[int]], PyTree]]:
  """Row numbers and a padding function of numbers, in the place of rows and one of rows.

  Raises UserError for rows that are no list: a mixture, or text that is read when it is needed.
  """
  check_kept(rows, trunk)
  data = with_stems(lm, trunk, pad(rows), dtype)

  def take(numbers: Sequence[int]) -> PyTree:
    return jax.tree.map(lambda array: np.asarray(array)[np.asarray(numbers)], data)

  return range(len(rows)), take
