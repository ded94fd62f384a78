"""Batches of rows of similar length, padded to one of a few lengths.

Without buckets every row is padded to the longest one, and the short rows pay for it. With them a
function is compiled once for each length that is used:

  sizes = buckets.lengths(1024, 4)                # 128, 256, 512, 1024
  for batch, numbers in buckets.once(rows, pipeline.pad_prompts, size=8, lengths=sizes):
    ...                                           # `numbers` says which rows the batch holds
  buckets.in_order(...)                           # puts the results into the order of the rows

The padding function takes `length`. It may be `pad_prompts` (which pads on the left) or
`pad_demonstrations` (on the right).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from instructjax.data.batches import pipeline
from instructjax.data.batches.mixture import Rows
from instructjax.errors import UserError
from instructjax.system import keys

ENDLESS = 1 << 40  # batches; more than any run takes


def lengths(longest: int, count: int, least: int = 8) -> tuple[int, ...]:
  """Returns at most `count` lengths, each half of the next: ..., longest / 4, longest / 2, longest.

  None of them is below `least`, unless `longest` is. A row is then padded to less than twice its
  size, or to the shortest length.

  Raises:
    UserError: if `count` is below 1.
  """
  if count < 1:
    raise UserError(
      f"{count} lengths of rows: choose 1, which pads every row to {longest}, or more"
    )
  halves = [longest]
  while len(halves) < count and halves[-1] // 2 >= least:
    halves.append(-(-halves[-1] // 2))  # rounded up, so that twice the shorter is enough
  return tuple(reversed(halves))


def fitting(size: int, lengths: Sequence[int]) -> int:
  """Returns the shortest of the lengths that holds `size` tokens.

  Raises:
    UserError: if `size` is above all of them.
  """
  enough = [length for length in lengths if length >= size]
  if not enough:
    choices = ", ".join(map(str, lengths))
    raise UserError(
      f"a row of {size} tokens does not fit in batches of lengths {choices}; add a longer one"
    )
  return min(enough)


def once(
  rows: Sequence[Any],
  pad: Callable[..., Any],
  *,
  size: int,
  lengths: Sequence[int],
) -> Iterator[tuple[Any, list[int]]]:
  """Yields every row once, the shortest first, as (batch of `size` rows, numbers of its real rows).

  There are as many batches as without buckets. The last one is filled up with its own rows. Rows
  of the same size keep their order.
  """
  sizes = [pipeline.size_of(row) for row in rows]
  order = np.argsort(sizes, kind="stable").tolist()
  for start in range(0, len(order), size):
    numbers = order[start : start + size]
    longest = sizes[numbers[-1]]  # the last one, because they are sorted
    filled = [rows[numbers[i % len(numbers)]] for i in range(size)]
    yield pad(filled, length=fitting(longest, lengths)), numbers


def stream(
  rows: Rows,
  pad: Callable[..., Any],
  *,
  size: int,
  seed: int,
  lengths: Sequence[int],
  mine: Sequence[int] | None = None,
) -> Callable[[int], Any]:
  """Returns what `pipeline.stream` returns, with rows of one bucket in each batch.

  Every bucket is shuffled and repeated by itself, and the buckets take turns as often as they
  have rows. A row therefore comes once in each epoch of its bucket, and the epochs of all buckets
  end together to within a batch. A bucket that does not fill a batch takes the longest rows of the
  next shorter one.

  Raises:
    UserError: if there are no rows.
  """
  import grain

  if not len(rows):
    raise UserError("no rows to draw from; give a file that holds records")
  buckets = split(rows, size, lengths)
  batches_of_bucket = []
  turns_of_bucket = []
  for bucket, (length, numbers) in enumerate(buckets):
    rows_of_bucket = [rows[number] for number in numbers]
    batches = pipeline.stream(
      rows_of_bucket,
      partial(pad, length=length),
      size=size,
      # Buckets of one size would otherwise be shuffled alike.
      seed=keys.seed_for(seed, "bucket", bucket),
      mine=mine,
    )
    batches_of_bucket.append(batches)
    # The turns of a bucket are (bucket, 0), (bucket, 1), ...: its number, and that of its batch.
    turns = grain.MapDataset.range(ENDLESS).map(partial(_turn, bucket))
    turns_of_bucket.append(turns)
  weights = [len(numbers) for _, numbers in buckets]
  turn_at: Any = grain.MapDataset.mix(turns_of_bucket, weights=weights)

  def batch(i: int) -> Any:
    bucket, number = turn_at[i]
    return batches_of_bucket[bucket](number)

  return batch


def _turn(bucket: int, number: int) -> tuple[int, int]:
  return bucket, number


def split(rows: Rows, size: int, lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
  """Returns (length, numbers of its rows) of every bucket, the shortest first.

  Each bucket has at least `size` rows, where there are so many rows in all.
  """
  sizes = np.asarray([pipeline.size_of(row) for row in rows])
  order = np.argsort(-sizes, kind="stable")  # the longest row first
  buckets: list[tuple[int, list[int]]] = []
  start = 0
  while start < len(order):
    longest = int(sizes[order[start]])
    length = fitting(longest, lengths)
    shorter = [candidate for candidate in lengths if candidate < length]
    next_length = max(shorter, default=0)
    # The bucket ends where the next shorter one would do, but not before it fills a batch.
    longer_rows = int((sizes > next_length).sum())
    end = max(longer_rows, start + size)
    # Rows that are left over and do not fill a batch of their own belong to this bucket too.
    if len(order) - end < size:
      end = len(order)
    numbers = sorted(order[start:end].tolist())
    buckets.append((length, numbers))
    start = end
  return buckets[::-1]


def in_order(parts: Iterable[tuple[Sequence[int], Iterable[Any]]]) -> Iterator[Any]:
  """Yields the values of (numbers, values) parts in the order of the numbers 0, 1, 2, ...

  Each value comes as soon as all values before it are there.
  """
  waiting: dict[int, Any] = {}
  due = 0  # the number of the value that comes next
  for numbers, values in parts:
    waiting.update(zip(numbers, values, strict=True))
    while due in waiting:
      yield waiting.pop(due)
      due += 1
