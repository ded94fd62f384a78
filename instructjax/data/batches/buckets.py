"""Rows of similar length in one batch, padded to one of a few lengths: short rows do not pay for
the longest.

  sizes = buckets.lengths(1024, 4)                                        # 128, 256, 512, 1024
  for batch, numbers in buckets.once(rows, pipeline.pad_prompts, size=8, lengths=sizes):
    ...                                                                   # numbers: which rows these are
  buckets.in_order(...)                                                   # the results in the order of the rows

A function is compiled once for each length that is used.  The padding function takes `length`:
`pad_prompts` (on the left), `pad_demonstrations` (on the right), or `pad_comparisons` with its k
bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from instructjax.data.batches import pipeline
from instructjax.data.batches.mixture import Rows
from instructjax.errors import UserError

ENDLESS = 1 << 40  # batches


def lengths(longest: int, count: int, least: int = 8) -> tuple[int, ...]:
  """At most `count` lengths, each half of the next: ..., longest / 4, longest / 2, longest, none
  below `least`.

  A row is then padded to less than twice its size, or to the shortest length.  Raises UserError
  for a count below 1.
  """
  if count < 1:
    raise UserError(
      f"{count} lengths of rows: choose 1, which pads every row to {longest}, or more"
    )
  found = [longest]
  while len(found) < count and found[-1] // 2 >= least:
    found.append(-(-found[-1] // 2))
  return tuple(reversed(found))


def fitting(size: int, lengths: Sequence[int]) -> int:
  """The shortest of the lengths that holds `size` tokens.  Raises UserError where none does."""
  found = min((length for length in lengths if length >= size), default=0)
  if not found:
    raise UserError(
      f"a row of {size} tokens does not fit in batches of lengths {', '.join(map(str, lengths))}; "
      "add a longer"
    )
  return found


def once(
  rows: Sequence[Any], pad: Callable[..., Any], *, size: int, lengths: Sequence[int]
) -> Iterator[tuple[Any, list[int]]]:
  """Every row once, the shortest first, in batches of `size`: (batch, numbers of its real rows).

  As many batches as without buckets; the last one is filled up with its own rows.  Equal sizes
  keep their order.
  """
  order = np.argsort([pipeline.size_of(row) for row in rows], kind="stable").tolist()
  for at in range(0, len(order), size):
    numbers = order[at : at + size]
    length = fitting(pipeline.size_of(rows[numbers[-1]]), lengths)
    yield pad([rows[numbers[i % len(numbers)]] for i in range(size)], length=length), numbers


def stream(
  rows: Rows,
  pad: Callable[..., Any],
  *,
  size: int,
  seed: int,
  lengths: Sequence[int],
  mine: Sequence[int] | None = None,
) -> Callable[[int], Any]:
  """`pipeline.stream` whose batches hold rows of one length each.

  Every bucket is shuffled and repeated by itself, and the buckets take turns as often as they
  have rows: a row is drawn once in each epoch of its bucket, and the epochs of all buckets go
  together to a batch.  A bucket that does not fill a batch takes the longest rows of the next
  shorter one.  Raises UserError where there are no rows.
  """
  import grain

  if not len(rows):
    raise UserError("no rows to draw from; give a file that holds records")
  found = split(rows, size, lengths)
  draws = [
    pipeline.stream(
      [rows[at] for at in numbers], partial(pad, length=length), size=size, seed=seed, mine=mine
    )
    for length, numbers in found
  ]
  turns = [
    grain.MapDataset.range(ENDLESS).map(lambda i, bucket=bucket: (bucket, i))
    for bucket in range(len(found))
  ]
  turn: Callable[[int], Any] = grain.MapDataset.mix(
    turns, weights=[len(numbers) for _, numbers in found]
  ).__getitem__

  def batch(i: int) -> Any:
    bucket, at = turn(i)
    return draws[bucket](at)

  return batch


def split(rows: Rows, size: int, lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
  """(length, numbers of its rows) of every bucket, the shortest first, each of at least `size` rows
  where there are so many.
  """
  sizes = np.asarray([pipeline.size_of(row) for row in rows])
  order = np.argsort(-sizes, kind="stable")
  found: list[tuple[int, list[int]]] = []
  at = 0
  while at < len(order):
    length = fitting(int(sizes[order[at]]), lengths)
    shorter = max((other for other in lengths if other < length), default=0)
    end = max(int((sizes > shorter).sum()), at + size)
    end = end if len(order) - end >= size else len(order)
    found.append((length, sorted(order[at:end].tolist())))
    at = end
  return found[::-1]


def in_order(parts: Iterable[tuple[Sequence[int], Iterable[Any]]]) -> Iterator[Any]:
  """The values of (numbers, values) parts in the order of the numbers 0, 1, ..., each as soon as
  those before it are there.
  """
  waiting: dict[int, Any] = {}
  due = 0
  for numbers, values in parts:
    waiting |= dict(zip(numbers, values, strict=True))
    while due in waiting:
      yield waiting.pop(due)
      due += 1
