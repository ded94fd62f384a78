"""Several rows in one: each is a segment that attends to itself alone and counts its positions from
0.

Packed once, before the first step, by the sizes of the rows alone: the longest first, each into
the fullest row that still takes it (best fit, at most 11/9 of the fewest rows, and mostly within
1 %).  Which rows stand together is therefore the same in every epoch; the packed rows are what
is shuffled, so batch i stays a function of i.

Dimensions: B packed rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from instructjax.data.batches.mixture import Rows
from instructjax.data.batches.pipeline import Host, Row, size_of
from instructjax.errors import UserError
from instructjax.types import Demonstrations


@dataclass(frozen=True)
class Packed:
  """Rows of rows: number i holds `rows[at]` for the numbers `at` of `bins[i]`."""

  rows: Rows
  bins: tuple[np.ndarray, ...]
  share: float  # of the positions that hold a token

  def __len__(self) -> int:
    return len(self.bins)

  def __getitem__(self, i: int) -> tuple[Row, ...]:
    return tuple(self.rows[int(at)] for at in self.bins[i])


def pack(rows: Rows, length: int, sizes: Int[np.ndarray, " N"] | None = None) -> Packed:
  """Rows in bins of `length` tokens; `sizes` are theirs where reading them all would cost too much."""
  sizes = (
    np.asarray([size_of(rows[i]) for i in range(len(rows))], np.int64) if sizes is None else sizes
  )
  bins = fit(sizes, length)
  return Packed(rows, bins, float(sizes.sum() / max(len(bins) * length, 1)))


def fit(sizes: Int[np.ndarray, " N"], length: int) -> tuple[np.ndarray, ...]:
  """Best fit, the longest first: the numbers of the rows in each bin.

  Raises UserError for a row that is longer than a bin.
  """
  if len(sizes) and sizes.max() > length:
    raise UserError(
      f"a row of {sizes.max()} tokens does not fit in packed rows of {length}; raise the length"
    )
  bins: list[list[int]] = []
  space: dict[int, list[int]] = {}  # free tokens -> bins
  free = 0  # bit n is set where space[n] holds a bin
  for at in np.argsort(-sizes, kind="stable").tolist():
    size = int(sizes[at])
    enough = free >> size
    if enough:
      left = size + (enough & -enough).bit_length() - 1
      chosen = space[left].pop()
      free ^= 0 if space[left] else 1 << left
    else:
      left, chosen = length, len(bins)
      bins.append([])
    bins[chosen].append(at)
    space.setdefault(left - size, []).append(chosen)
    free |= 1 << (left - size)
  return tuple(np.asarray(one, np.int64) for one in bins)


def pad_packed(bins: Sequence[Sequence[Row]], *, length: int) -> Demonstrations:
  """[B, T] right padded; `valid` numbers the segments of a row from 1.  No segment's first token
  carries loss: nothing of its own stands before it.
  """
  shape = len(bins), length
  tokens: Host = np.zeros(shape, np.int32)
  valid: Host = np.zeros(shape, np.int32)
  mask: Host = np.zeros(shape, bool)
  for b, rows in enumerate(bins):
    at = 0
    for number, row in enumerate(rows, 1):
      size = len(row.ids)
      tokens[b, at : at + size], valid[b, at : at + size] = row.ids, number
      marked = np.arange(size) >= row.start if row.mask is None else row.mask
      mask[b, at + 1 : at + size] = marked[1:]
      at += size
  return Demonstrations(tokens=tokens, valid=valid, mask=mask)
