"""Several rows in one: each is a segment that attends to itself alone and counts positions from 0.

Rows are packed by their sizes alone: the longest first, each into the fullest packed row that still
has room for it. This is best fit decreasing, which needs at most 11/9 of the fewest possible rows
(Johnson 1973), and mostly within 1 % of them.

Documents of text are packed once, before the first step (`pack`). The same documents therefore
stand together in every epoch. Because only the packed rows are shuffled, batch i stays a function
of i.

Demonstrations are packed within their batch (`pack_batch`), which holds the same ones as it does
unpacked. How many packed rows they fill differs from batch to batch, and the step computes no more
than these.

Dimensions: B packed rows, T tokens, N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
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


def into_parts(
  sizes: Int[np.ndarray, " N"],
  length: int,
  rows: int,
  *,
  marked: Int[np.ndarray, " N"] | None = None,
  most: int | None = None,
  taken: int = 0,
) -> Places:
  """Packs the rows of one batch into parts of `rows` packed rows each, of `length` tokens.

  A batch has the same rows as without packing, and a step computes only the first `count` parts
  (`steps.gradients_of_parts`). N rows need at most ceil((taken + N) / rows) parts. The first
  `taken` packed rows are left to others. With `most`, a packed row holds at most that many of the
  tokens that carry loss, which `marked` counts.

  Raises:
    UserError: if a row is longer than `length`, or has more marked tokens than `most`.
  """
  part, row, start = np.zeros((3, len(sizes)), np.int64)
  if marked is None or most is None:
    bins = fit(sizes, length)
  else:
    bins = fit_marked(sizes, length, marked, most)
  for index, numbers in enumerate(bins, taken):
    ends = np.cumsum(sizes[numbers])
    part[numbers], row[numbers] = divmod(index, rows)
    start[numbers] = ends - sizes[numbers]
  return Places(part, row, start, count=-(-(taken + len(bins)) // rows))


def fit_marked(
  sizes: Int[np.ndarray, " N"],
  length: int,
  marked: Int[np.ndarray, " N"],
  most: int,
) -> tuple[np.ndarray, ...]:
  """Returns what `fit` does, where a bin also holds at most `most` marked tokens.

  The time grows with the rows times the bins, and so this is for the rows of one batch.

  Raises:
    UserError: if a row is longer than a bin, or has more marked tokens than `most`.
  """
  if len(marked) and marked.max() > most:
    raise UserError(
      f"a row of {marked.max()} tokens that carry loss does not fit in packed rows of {most}"
    )
  if len(sizes) and sizes.max() > length:
    raise UserError(
      f"a row of {sizes.max()} tokens does not fit in packed rows of {length}; raise the length"
    )
  bins: list[list[int]] = []
  space = np.full(len(sizes), length)  # of each bin; there are at most as many as rows
  space_marked = np.full(len(sizes), most)
  for number in np.argsort(-sizes, kind="stable").tolist():
    has_room = (space >= sizes[number]) & (space_marked >= marked[number])
    # The first bin that was not begun has room for every row.
    begun = np.flatnonzero(has_room[: len(bins)])
    if len(begun):
      chosen = int(begun[np.argmin(space[begun])])
    else:
      chosen = len(bins)
      bins.append([])
    bins[chosen].append(number)
    space[chosen] -= sizes[number]
    space_marked[chosen] -= marked[number]
  return tuple(np.asarray(numbers, np.int64) for numbers in bins)


def marked_tokens(row: Row) -> int:
  """Returns how many tokens of a row carry loss; its first one never does."""
  if row.mask is None:
    return len(row.ids) - max(row.start, 1)
  return int(row.mask[1:].sum())


def marked_limit(
  sizes: Int[np.ndarray, " N"],
  marked: Int[np.ndarray, " N"],
  length: int,
) -> int:
  """Returns how many tokens that carry loss a packed row should have room for.

  The logits of a packed row are computed for that many positions. It is 1.5 times their mean in a
  full row, at which the limit hardly ever keeps a row out, and no less than the longest row needs.
  """
  mean = length * marked.sum() / max(sizes.sum(), 1)
  enough = -(-int(1.5 * mean) // 8) * 8
  return min(max(enough, int(marked.max(initial=1))), length)


def pack_batch(
  batch: Demonstrations,
  *,
  rows: int,
  parts: int,
  most: int | None = None,
  first: Demonstrations | None = None,
) -> Demonstrations:
  """Packs the rows of a batch, padded on the right, into [parts * rows, T] packed rows.

  Number i of the parts is every `parts`-th row from row i on, as in `steps.split`. The packed rows
  are numbered through the parts, and those that hold nothing come last. The rows of `first`, which
  are packed already, come before all others. `valid` numbers the segments of a row from 1.

  Raises:
    UserError: if a row has more marked tokens than `most`.
    ValueError: if the rows may need more parts.
  """
  length = batch.tokens.shape[1]
  # The first token of a segment carries no loss, because no token of its own precedes it.
  learnt: Host = np.asarray(batch.mask).copy()
  learnt[:, 0] = False
  in_use: Host = np.asarray(batch.valid).astype(np.int32)
  source = Demonstrations(tokens=batch.tokens, valid=in_use, mask=learnt, stem=batch.stem)
  sizes = in_use.sum(axis=1)
  taken = 0 if first is None else first.tokens.shape[0]
  if taken + len(sizes) > parts * rows:
    raise ValueError(f"{taken + len(sizes)} rows may need more than {parts} parts of {rows}")
  places = into_parts(sizes, length, rows, marked=learnt.sum(axis=1), most=most, taken=taken)

  packed = jax.tree.map(
    lambda array: np.zeros((parts * rows, *array.shape[1:]), array.dtype), source
  )
  if first is not None:
    for number in range(taken):
      at = number % rows * parts + number // rows
      _copy(first, number, packed, at, slice(0, length))
  # From left to right, so that the segments of a row are numbered in their order.
  for i in np.argsort(places.start, kind="stable").tolist():
    at = int(places.row[i] * parts + places.part[i])
    columns = slice(int(places.start[i]), int(places.start[i] + sizes[i]))
    segment = packed.valid[at].max() + 1
    _copy(source, i, packed, at, columns)
    packed.valid[at, columns] = segment
  return packed


def _copy(source: Demonstrations, i: int, target: Demonstrations, at: int, columns: slice) -> None:
  """Copies the first columns of row i of a batch to these columns of row `at` of another."""
  size = columns.stop - columns.start

  def copy_leaf(from_array: Host, to_array: Host) -> None:
    to_array[at, columns] = from_array[i, :size]

  jax.tree.map(copy_leaf, source, target)


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
