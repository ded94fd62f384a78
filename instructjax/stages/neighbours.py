"""Batches of records whose neighbours in a file belong together (`config.data.together`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from instructjax import sharding
from instructjax.data.batches import pipeline
from instructjax.data.batches.mixture import Mixture, Rows
from instructjax.errors import UserError
from instructjax.stages.wiring import require_multiple


def stream(
  rows: Rows,
  pad: pipeline.Pad,
  *,
  size: int,
  together: int,
  seed: int,
  name: str,
) -> Callable[[int], Any]:
  """Returns the function from the number of a batch to its rows of this process.

  `together` neighbours are drawn as one: two comparisons of the same texts by opposite
  instructions, or two prompts that ask for opposite tones. In one batch, what makes a text good in
  itself cancels out of their gradients, and the instruction remains.

  Raises:
    UserError: where the rows do not divide into neighbours, or are a mixture.
  """
  if together == 1:
    mine = sharding.local_rows(size)
    return pipeline.stream(rows, pad, size=size, seed=seed, mine=mine)
  if isinstance(rows, Mixture):
    raise UserError(
      f"config.data.together={together}: a mixture draws from its sources in turn, so there are no "
      "neighbours; give one source, or files with commas between"
    )
  require_multiple(len(rows), together, f"the number of {name}", "config.data.together")
  groups = [rows[first : first + together] for first in range(0, len(rows), together)]

  def pad_groups(parts: Sequence[Sequence]) -> Any:
    return pad([row for part in parts for row in part])

  groups_a_batch = size // together
  mine = sharding.local_rows(groups_a_batch)
  return pipeline.stream(groups, pad_groups, size=groups_a_batch, seed=seed, mine=mine)
