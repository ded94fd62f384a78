import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data.batches import buckets, pipeline
from instructjax.data.batches.pipeline import Row
from instructjax.errors import UserError


def row(size, mark=1):
  return Row(np.full(size, mark, np.int32), 1)


def test_lengths_are_halves():
  assert buckets.lengths(1024, 4) == (128, 256, 512, 1024)
  assert buckets.lengths(1024, 1) == (1024,)
  assert buckets.lengths(100, 4) == (13, 25, 50, 100)
  assert buckets.lengths(12, 4) == (12,)
  with pytest.raises(UserError, match="0 lengths of rows"):
    buckets.lengths(12, 0)


def test_batches_by_hand():
  rows = [row(7, 10), row(2, 11), row(3, 12), row(4, 13), row(2, 14)]
  batches = list(buckets.once(rows, pipeline.pad_prompts, size=2, lengths=(2, 4, 8)))
  assert [numbers for _, numbers in batches] == [[1, 4], [2, 3], [0]]
  assert [batch.tokens.shape for batch, _ in batches] == [(2, 2), (2, 4), (2, 8)]
  assert batches[1][0].tokens.tolist() == [[0, 12, 12, 12], [13] * 4]  # on the left
  assert batches[2][0].tokens.tolist() == [[0] + [10] * 7] * 2  # filled up with its own row
  right = next(iter(buckets.once(rows[2:4], pipeline.pad_demonstrations, size=2, lengths=(4,))))[0]
  assert right.tokens.tolist() == [[12, 12, 12, 0], [13] * 4]


def test_a_row_that_fits_nowhere_is_an_error():
  with pytest.raises(UserError, match="a row of 9 tokens does not fit in batches of lengths 4, 8"):
    list(buckets.once([row(9)], pipeline.pad_prompts, size=1, lengths=(4, 8)))


@settings(deadline=None, max_examples=50)
@given(
  sizes=st.lists(st.integers(1, 64), min_size=1, max_size=20),
  size=st.integers(1, 7),
  count=st.integers(1, 4),
)
def test_every_row_comes_back_in_its_place(sizes, size, count):
  rows = [row(n, i) for i, n in enumerate(sizes)]
  parts, cost = [], 0
  for batch, numbers in buckets.once(
    rows, pipeline.pad_demonstrations, size=size, lengths=buckets.lengths(64, count)
  ):
    cost += batch.tokens.size
    parts.append(
      (numbers, [batch.tokens[at][batch.valid[at]].tolist() for at in range(len(numbers))])
    )
  assert list(buckets.in_order(parts)) == [[i] * n for i, n in enumerate(sizes)]
  assert len(parts) == -(-len(rows) // size)  # no more batches than without buckets
  assert cost <= len(parts) * size * 64


def test_values_come_as_soon_as_those_before_are_there():
  def parts():
    yield [2, 0], "ca"
    seen.append("first")
    yield [1], "b"
    seen.append("second")

  seen = []
  values = buckets.in_order(parts())
  assert next(values) == "a" and not seen
  assert list(values) == ["b", "c"]


def test_buckets_that_do_not_fill_a_batch_take_the_longest_of_the_next():
  rows = [row(n) for n in (2, 2, 2, 3, 3, 7, 2)]
  assert buckets.split(rows, 1, (2, 4, 8)) == [(2, [0, 1, 2, 6]), (4, [3, 4]), (8, [5])]
  assert buckets.split(rows, 2, (2, 4, 8)) == [(2, [1, 2, 6]), (4, [0, 4]), (8, [3, 5])]
  assert buckets.split(rows, 3, (2, 4, 8)) == [(2, [0, 1, 2, 6]), (8, [3, 4, 5])]
  assert buckets.split(rows, 5, (2, 4, 8)) == [(8, list(range(7)))]
  assert buckets.split(rows[:2], 5, (2, 4, 8)) == [(2, [0, 1])]


def test_a_stream_draws_every_prompt_once_an_epoch_from_one_bucket_a_batch():
  rows = [row(1 + i % 8, i) for i in range(48)]
  stream = buckets.stream(rows, pipeline.pad_prompts, size=4, seed=1, lengths=(2, 4, 8))
  batches = [stream(i) for i in range(36)]  # three epochs of 12 batches
  shapes = [batch.tokens.shape[1] for batch in batches]
  assert [shapes.count(n) for n in (2, 4, 8)] == [9, 9, 18]
  marks = [int(batch.tokens[at, -1]) for batch in batches for at in range(4)]
  assert sorted(marks) == sorted([*range(48)] * 3)
  again = buckets.stream(rows, pipeline.pad_prompts, size=4, seed=1, lengths=(2, 4, 8))
  np.testing.assert_array_equal(again(30).tokens, batches[30].tokens)
  with pytest.raises(UserError, match="no rows"):
    buckets.stream([], pipeline.pad_prompts, size=4, seed=1, lengths=(2,))


def test_each_process_makes_its_own_rows_of_the_batch():
  rows = [row(1 + i % 8, i) for i in range(48)]
  make = lambda mine: (
    buckets.stream(rows, pipeline.pad_prompts, size=4, seed=1, lengths=(2, 4, 8), mine=mine)(
      5
    ).tokens
  )
  np.testing.assert_array_equal(np.concatenate([make([0, 1]), make([2, 3])]), make(None))
