from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax import ppo, sft, steps
from instructjax.data.batches import packing, pipeline
from instructjax.data.batches.pipeline import Row
from instructjax.data.records.records import Text
from instructjax.errors import UserError
from instructjax.rollout import Sampling
from instructjax.types import Frozen


def test_best_fit_by_hand():
  bins = packing.fit(np.asarray([3, 6, 2, 5, 4]), 8)
  assert [numbers.tolist() for numbers in bins] == [[1, 2], [3, 0], [4]]
  rows = [Row(np.zeros(size, np.int32), 1) for size in (3, 6)]
  packed = packing.pack(rows, 8)
  assert (len(packed), packed.share) == (2, 9 / 16)
  assert packed[0][0] is rows[1] and packed[1][0] is rows[0]
  with pytest.raises(UserError, match="a row of 9 tokens does not fit in packed rows of 8"):
    packing.fit(np.asarray([1, 9]), 8)


@settings(deadline=None, max_examples=100)
@given(sizes=st.lists(st.integers(1, 32), max_size=60))
def test_every_row_is_in_one_bin_and_no_bin_overflows(sizes):
  bins = packing.fit(np.asarray(sizes, np.int64), 32)
  assert sorted(at for numbers in bins for at in numbers) == list(range(len(sizes)))
  assert all(sum(sizes[at] for at in numbers) <= 32 for numbers in bins)
  assert len(bins) <= 11 / 9 * -(-sum(sizes) // 32) + 6 / 9 or any(2 * size > 32 for size in sizes)
  assert all(
    sum(sizes[at] for at in (*a, *b)) > 32 for i, a in enumerate(bins) for b in bins[:i]
  )  # no two fit in one


def test_padding_by_hand():
  rows = [
    Row(np.asarray([7, 8, 9]), 1),
    Row(np.asarray([5, 6]), 0),
    Row(np.asarray([1, 2, 3]), 1, np.asarray([0, 0, 1], bool)),
  ]
  batch = packing.pad_packed([rows[:2], rows[2:]], length=6)
  assert batch.tokens.tolist() == [[7, 8, 9, 5, 6, 0], [1, 2, 3, 0, 0, 0]]
  assert batch.valid.tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 0, 0, 0]]
  assert batch.mask.tolist() == [
    [False, True, True, False, True, False],
    [False, False, True, False, False, False],
  ]


def test_documents_are_cut_one_by_one():
  from test_pipeline import EOS, ids, letters

  pieces = pipeline.documents([Text("abcde"), Text("f"), Text("ghi")], letters(), length=4)
  assert [row.ids.tolist() for row in pieces] == [
    ids("abcd"),
    [*ids("e"), EOS],
    [*ids("f"), EOS],
    [*ids("ghi"), EOS],
  ]
  pieces = pipeline.documents([Text("abc")], letters(bos=(7,)), length=3)
  assert [row.ids.tolist() for row in pieces] == [[7, *ids("ab")], [7, *ids("c"), EOS]]
  assert not pipeline.documents([Text("abcd"), Text("")], letters(), length=4)[
    1:
  ]  # an end alone predicts nothing


def rows_of(count, longest, seed=0):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(3, longest + 1, count)
  return [
    Row(rng.integers(0, tiny.VOCAB, size).astype(np.int32), int(rng.integers(1, size)))
    for size in sizes
  ]


def batches_of(rows, length):
  """Returns the same rows packed, and each by itself.

  The number of rows in both is a multiple of four, for four devices or micro-batches.
  """
  packed = list(packing.pack(rows, length))
  packed += [()] * (-len(packed) % 4)
  apart = [*rows, *[Row(np.zeros(0, np.int32), 0)] * (-len(rows) % 4)]
  return packing.pad_packed(packed, length=length), pipeline.pad_demonstrations(
    apart, length=length
  )


@pytest.mark.parametrize(("family", "micro"), [("gpt", 4), ("llama", 1)])
def test_packed_rows_have_the_loss_and_the_gradient_of_separate_ones(family, micro):
  lm = tiny.lm(family)
  params = tiny.perturb(lm.init(jax.random.key(0)), 0.1)
  packed, apart = batches_of(rows_of(19, 20), 32)
  assert packed.tokens.shape[0] < apart.tokens.shape[0] / 2
  assert packed.mask[:, 1:].sum() == apart.mask[:, 1:].sum()
  gradients = tiny.jitted(loss_and_gradient, lm=lm, micro=micro)
  (loss, grads), (expected, wanted) = gradients(params, packed), gradients(params, apart)
  assert abs(float(loss) - float(expected)) < 1e-5
  tiny.assert_trees_close(grads, wanted, rtol=1e-4, atol=1e-6)


def loss_and_gradient(params, batch, *, lm, micro):
  share = jnp.full(batch.tokens.shape[0], 1.0 / batch.mask[:, 1:].sum(), jnp.float32)
  loss = partial(sft.sft_loss, lm=lm, trunk={}, cfg=sft.SFTConfig(dropout=False))
  grads, value, _ = steps.gradients(loss, params, (batch, share), micro=micro)
  return value, grads


def test_what_is_in_one_segment_does_not_reach_another():
  lm = tiny.lm("gpt")
  params = tiny.perturb(lm.init(jax.random.key(0)), 0.1)
  packed, _ = batches_of(rows_of(9, 14), 32)
  changed = packed.replace(
    tokens=np.where(packed.valid == 1, (packed.tokens + 1) % tiny.VOCAB, packed.tokens)
  )
  second = packed.valid == 2
  assert second.any()
  before, after = (
    np.asarray(lm.hidden(params, batch.tokens, batch.valid)) for batch in (packed, changed)
  )
  np.testing.assert_array_equal(before[second], after[second])
  assert (before[packed.valid == 1] != after[packed.valid == 1]).any()


def test_the_pretraining_term_of_ppo_is_the_same_packed():
  lm = tiny.lm("llama")
  params = tiny.perturb(lm.init(jax.random.key(0)), 0.1)
  rows = [row._replace(start=1) for row in rows_of(19, 20)]
  settings = ppo.PPO(lm=lm, tx=optax.sgd(1.0), sampling=Sampling(response=1))
  losses = []
  for batch in batches_of(rows, 32):
    share = jnp.full(batch.tokens.shape[0], 1.0 / batch.mask[:, 1:].sum(), jnp.float32)
    loss = jax.jit(partial(ppo.ptx_loss, frozen=Frozen({}, {}, {}), ppo=settings))
    losses.append(float(loss(params, (batch, share), None)[0]))
  assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# --- the demonstrations of a batch ---


@settings(deadline=None, max_examples=60)
@given(
  rows=st.lists(st.tuples(st.integers(1, 16), st.floats(0, 1)), min_size=1, max_size=20),
  taken=st.integers(0, 3),
  at_once=st.integers(1, 4),
)
def test_rows_in_parts_overlap_nowhere_and_keep_both_limits(rows, taken, at_once):
  sizes = np.asarray([size for size, _ in rows])
  marked = np.asarray([int(size * share) for size, share in rows])
  most = max(int(marked.max()), 8)
  places = packing.into_parts(sizes, 16, at_once, marked=marked, most=most, taken=taken)
  counts, marks = np.zeros((places.count, at_once, 16)), np.zeros((places.count, at_once))
  for i in range(len(sizes)):
    where = places.part[i], places.row[i]
    counts[(*where, slice(places.start[i], places.start[i] + sizes[i]))] += 1
    marks[where] += marked[i]
  assert counts.sum() == sizes.sum() and counts.max() == 1 and marks.max() <= most
  filled = counts.any(-1).reshape(-1)
  assert not filled[:taken].any()
  begun = -(-(taken + len(sizes)) // at_once)
  assert filled[-at_once:].any() and places.count <= begun
  assert not np.diff(filled[taken:].astype(int)).max(initial=0) > 0  # no empty row between others


def test_a_limit_of_marked_tokens_by_hand():
  sizes, marked = np.asarray([5, 4, 3]), np.asarray([3, 2, 1])
  assert [b.tolist() for b in packing.fit_marked(sizes, 9, marked, 9)] == [[0, 1], [2]]
  assert [b.tolist() for b in packing.fit_marked(sizes, 9, marked, 4)] == [[0, 2], [1]]
  with pytest.raises(UserError, match="a row of 3 tokens that carry loss"):
    packing.fit_marked(sizes, 9, marked, 2)
  with pytest.raises(UserError, match="a row of 5 tokens does not fit in packed rows of 4"):
    packing.fit_marked(sizes, 4, marked, 9)
  # A full row of 40 tokens has 40 * 6 / 12 = 20 of them, and half as many again are 30: below 32.
  assert packing.marked_limit(sizes, marked, 40) == 32
  assert packing.marked_limit(sizes, np.asarray([3, 2, 30]), 40) == 40
  assert packing.marked_limit(np.asarray([99, 9]), np.asarray([0, 9]), 40) == 9
  masked = Row(np.arange(4), 3, np.asarray([1, 0, 1, 1], bool))
  assert [packing.marked_tokens(row) for row in (Row(np.arange(4), 0), masked)] == [3, 2]


def test_a_batch_in_parts_by_hand():
  """Two parts of two rows: the text, then 4 + 2 tokens; then 3 tokens, and nothing."""
  rows = [Row(np.asarray(ids), start) for ids, start in (([1, 2], 0), ([3, 4, 5], 2))]
  rows.append(Row(np.asarray([6, 7, 8, 9]), 1))
  text = pipeline.pad_demonstrations([Row(np.asarray([21, 22, 23, 24, 25, 26]), 1)], length=6)
  batch = pipeline.pad_demonstrations(rows, length=6)
  packed = packing.pack_batch(batch, rows=2, parts=2, first=text)
  parts = steps.split(jax.tree.map(jnp.asarray, packed), 2)
  assert parts.tokens.tolist() == [
    [[21, 22, 23, 24, 25, 26], [6, 7, 8, 9, 1, 2]],
    [[3, 4, 5, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
  ]
  assert parts.valid.tolist() == [
    [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2]],
    [[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
  ]
  assert parts.mask.astype(int).tolist() == [
    [[0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 1]],
    [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
  ]
  with pytest.raises(ValueError, match="4 rows may need more than 1 parts of 2"):
    packing.pack_batch(batch, rows=2, parts=1, first=text)


def paper_lengths(rng, median, mean, count, limit=1024, scaled=128):
  """Lognormal lengths up to a limit, which is then scaled."""
  sigma = np.sqrt(2 * np.log(mean / median))
  lengths = rng.lognormal(np.log(median), sigma, count).clip(1, limit)
  return np.ceil(lengths * scaled / limit).astype(np.int64)


def test_packed_batches_of_the_papers_lengths_are_useful():
  """32 demonstrations a batch, in rows of 128 + 128 tokens, of which 12 % would be used."""
  rng = np.random.default_rng(0)
  prompts = paper_lengths(rng, 62, 166, 32 * 50)
  responses = paper_lengths(rng, 50, 100, 32 * 50)
  sizes = prompts + responses
  most = packing.marked_limit(sizes, responses, 256)
  assert sizes.mean() < 0.13 * 256 and most < 0.65 * 256
  places = [
    packing.into_parts(sizes[i : i + 32], 256, 1, marked=responses[i : i + 32], most=most)
    for i in range(0, len(sizes), 32)
  ]
  assert sizes.sum() / sum(256 * batch.count for batch in places) > 0.85
