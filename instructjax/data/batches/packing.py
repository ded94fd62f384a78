"""Several rows in one: each is a segment that attends to itself alone and counts positions from 0.

Rows are packed once, before the first step, and by their sizes alone: the longest first, each into
the fullest packed row that still has room for it. This is best fit decreasing, which needs at most
11/9 of the fewest possible rows (Johnson 1973), and mostly within 1 % of them. The same rows
therefore stand together in every epoch. Because only the packed rows are shuffled, batch i stays a
function of i.

Dimensions: B packed rows, T tokens, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from instructjax.data.batches.mixture import Rows
from instructjax.data.batches.pipeline import Host, Row, size_of
from instructjax.errors import UserError
from instructjax.types import Demonstrations


@dataclass(frozen=True)
class Packed:
  """Rows of rows: number i holds `rows[number]` for each number in `bins[i]`."""

  rows: Rows
  bins: tuple[np.ndarray, ...]
  share: float  # of the positions that hold a token

  def __len__(self) -> int:
    return len(self.bins)

  def __getitem__(self, i: int) -> tuple[Row, ...]:
    return tuple(self.rows[int(number)] for number in self.bins[i])


def pack(
  rows: Rows,
  length: int,
  sizes: Int[np.ndarray, " N"] | None = None,
) -> Packed:
  """Packs rows into bins of `length` tokens.

  `sizes` are the tokens of each row. They are counted where they are None, but rows that are read
  from a file for that would cost too much.

  Raises:
    UserError: if a row is longer than `length`.
  """
  if sizes is None:
    sizes = np.asarray([size_of(rows[i]) for i in range(len(rows))], np.int64)
  bins = fit(sizes, length)
  positions = max(len(bins) * length, 1)  # 1 where there are no rows
  share = sizes.sum() / positions
  return Packed(rows, bins, float(share))


def fit(sizes: Int[np.ndarray, " N"], length: int) -> tuple[np.ndarray, ...]:
  """Returns the numbers of the rows in each bin, by best fit and the longest row first.

  The time for a row does not grow with the number of bins: the bins are kept by how many tokens
  they have left, and one integer holds a bit for each such number that a bin has.

  Raises:
    UserError: if a row is longer than a bin.
  """
  if len(sizes) and sizes.max() > length:
    raise UserError(
      f"a row of {sizes.max()} tokens does not fit in packed rows of {length}; raise the length"
    )
  bins: list[list[int]] = []
  bins_by_space: dict[int, list[int]] = {}  # free tokens -> bins
  spaces = 0  # bit n is set where bins_by_space[n] holds a bin
  for number in np.argsort(-sizes, kind="stable").tolist():
    size = int(sizes[number])
    wide_enough = spaces >> size
    if wide_enough:
      # The lowest bit that is set stands for the least space that is enough.
      lowest_bit = wide_enough & -wide_enough
      space = size + lowest_bit.bit_length() - 1
      chosen = bins_by_space[space].pop()
      if not bins_by_space[space]:
        spaces ^= 1 << space
    else:
      space = length
      chosen = len(bins)
      bins.append([])
    bins[chosen].append(number)
    # The bin moves to the others that have as much space left as it has now.
    left = space - size
    bins_by_space.setdefault(left, []).append(chosen)
    spaces |= 1 << left
  return tuple(np.asarray(numbers, np.int64) for numbers in bins)


class Places(NamedTuple):
  """Where each of N rows stands in a batch that is computed in parts [parts, rows, length]."""

  part: Int[np.ndarray, " N"]
  row: Int[np.ndarray, " N"]
  start: Int[np.ndarray, " N"]  # its first column
  count: int  # parts that hold anything


def into_parts(sizes: Int[np.ndarray, " N"], length: int, rows: int) -> Places:
  """Packs the rows of one batch into parts of `rows` packed rows each, of `length` tokens.

  A batch has the same rows as without packing, and a step computes only the first `count` parts
  (`steps.gradients_of_parts`). N rows need at most ceil(N / rows) parts.

  Raises:
    UserError: if a row is longer than `length`.
  """
  part, row, start = np.zeros((3, len(sizes)), np.int64)
  bins = fit(sizes, length)
  for index, numbers in enumerate(bins):
    ends = np.cumsum(sizes[numbers])
    part[numbers], row[numbers] = divmod(index, rows)
    start[numbers] = ends - sizes[numbers]
  return Places(part, row, start, count=-(-len(bins) // rows))


def pad_packed(bins: Sequence[Sequence[Row]], *, length: int) -> Demonstrations:
  """Pads packed rows on the right into a batch [B, T].

  `valid` is the number of the segment, counted from 1 in each packed row, and 0 where there is
  none. The first token of a segment carries no loss, because no token of its own precedes it.
  """
  shape = len(bins), length
  tokens: Host = np.zeros(shape, np.int32)
  valid: Host = np.zeros(shape, np.int32)
  mask: Host = np.zeros(shape, bool)
  for b, rows in enumerate(bins):
    start = 0
    for segment, row in enumerate(rows, 1):
      size = len(row.ids)
      end = start + size
      tokens[b, start:end] = row.ids
      valid[b, start:end] = segment
      if row.mask is None:
        learnt = np.arange(size) >= row.start
      else:
        learnt = row.mask
      mask[b, start + 1 : end] = learnt[1:]
      start = end
  return Demonstrations(tokens=tokens, valid=valid, mask=mask)
