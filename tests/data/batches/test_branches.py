"""Groups of comparisons in packed rows: what is shared, where everything stands, and how many."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data.batches import branches
from instructjax.data.batches.pipeline import Group, Row
from instructjax.errors import UserError


def group(*texts, start=2, ranks=None, ratings=()):
  """A group of rows whose ids are the digits of texts."""
  rows = tuple(Row(np.asarray([int(c) for c in text], np.int32), start) for text in texts)
  return Group(rows, ranks or tuple(range(1, len(rows) + 1)), ratings)


def test_a_group_by_hand():
  run = branches.of_group(group("1234", "1256", "127", ranks=(2, 1, 1)))
  assert run.ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
  assert run.branch.tolist() == [0, 0, 1, 1, 2, 2, 3]
  assert run.last.tolist() == [3, 5, 6]
  assert run.same.tolist() == [1, 2, 3]
  assert run.ranks == (2, 1, 1) and run.learnt is None


def test_what_rows_begin_with_is_shared_whatever_it_belongs_to():
  """Beyond the prompt, short of it, a row that is the beginning of another, and equal rows."""
  assert branches.of_group(group("12345", "12346")).branch.tolist() == [0, 0, 0, 0, 1, 2]
  assert branches.of_group(group("123", "143")).branch.tolist() == [0, 1, 1, 2, 2]
  beginning = branches.of_group(group("123", "12345"))
  assert (beginning.ids.tolist(), beginning.last.tolist()) == ([1, 2, 3, 4, 5], [2, 4])
  equal = branches.of_group(group("123", "124", "123"))
  assert equal.same.tolist() == [1, 2, 1]
  alone = branches.of_row(group("123").rows[0])
  assert (alone.ids.tolist(), alone.last.tolist()) == ([1, 2, 3], [2])


def test_what_a_policy_learns_by_hand():
  """Every token from the start of a completion on, by the hidden state of the one before it."""
  run = branches.of_group(group("1234", "1235"), learnt=True)
  # The 3 is the first token of both completions, so it is not shared.
  assert run.ids.tolist() == [1, 2, 3, 4, 3, 5]
  assert run.learnt.token.tolist() == [3, 4, 3, 5]
  assert run.learnt.before.tolist() == [1, 2, 1, 4]
  assert run.learnt.completion.tolist() == [0, 0, 1, 1]
  # What differs before the start is in the branch, and is not learnt.
  run = branches.of_group(group("1345", "1645", start=3), learnt=True)
  assert run.branch.tolist() == [0, 1, 1, 1, 2, 2, 2]
  assert run.learnt.before.tolist() == [2, 5] and run.learnt.token.tolist() == [5, 5]
  # Nothing predicts the first token of a row.
  run = branches.of_group(group("12", "34", start=0), learnt=True)
  assert run.learnt.before.tolist() == [0, 2] and run.learnt.token.tolist() == [2, 4]


def test_a_batch_by_hand():
  """Rows of 8 tokens: the longest group first, the two short ones in one row of the second part."""
  runs = [
    branches.of_group(made, learnt=True)
    for made in (
      group("123", "124", ratings=(5.0, 2.0)),
      group("1233", "1244", "1255", ratings=(1.0, 2.0, 3.0)),
      group("567", "568", ratings=(7.0, 6.0)),
    )
  ]
  layout = branches.layout(runs, 3, 1, micro=3)
  assert layout == (1, 3, 8, 2, 3, 6, False)
  batch = branches.pack(runs, layout)
  assert batch.tokens[0].tolist() == [
    [1, 2, 3, 3, 4, 4, 5, 5],
    [1, 2, 3, 4, 5, 6, 7, 8],
    [0] * 8,
  ]
  assert batch.valid[0].tolist() == [[1] * 8, [1, 1, 1, 1, 2, 2, 2, 2], [0] * 8]
  assert batch.branch[0, 1].tolist() == [0, 0, 1, 2, 0, 0, 1, 2]
  assert batch.last[0, 1].tolist() == [[2, 3, 0], [6, 7, 0]]
  assert batch.rank[0].tolist() == [[[1, 2, 3], [0] * 3], [[1, 2, 0], [1, 2, 0]], [[0] * 3] * 2]
  assert batch.same[0, 1].tolist() == [[1, 2, 0], [1, 2, 0]]
  assert batch.rating[0, 1].tolist() == [[5, 2, 0], [7, 6, 0]]
  learnt = batch.predictions
  assert learnt.before[0, 1].tolist() == [1, 1, 5, 5, 0, 0]
  assert learnt.token[0, 1].tolist() == [3, 4, 7, 8, 0, 0]
  assert learnt.completion[0, 1].tolist() == [0, 1, 3, 4, 6, 6]  # 2 slots of 3; 6 is none
  assert batch.tokens.dtype == batch.valid.dtype == batch.rank.dtype == np.int32
  scores = np.arange(18.0).reshape(1, 3, 2, 3)
  by_group = branches.unpack(scores, branches.slots_of(runs, layout))
  assert by_group.tolist() == [[6, 7, 8], [0, 1, 2], [9, 10, 11]]


def test_the_parts_of_a_batch():
  """Rows at once are those of a micro-batch of longest groups, or as many as give 192 positions."""
  layout_for = lambda **sizes: branches.layout_for(
    **{"batch": 16, "shards": 1, "longest": 64, "shortest": 20, "completions": 4, **sizes}
  )
  assert layout_for() == (4, 4, 64, 3, 4, 0, False)
  assert layout_for(longest=57)[:3] == (4, 4, 64)
  assert layout_for(shards=4) == (16, 1, 64, 3, 4, 0, False)
  assert layout_for(longest=1000) == (1, 16, 1000, 16, 4, 0, False)
  assert layout_for(micro=2)[:2] == (8, 2)
  assert layout_for(batch=2)[:2] == (2, 1)
  assert layout_for(batch=9, micro=0)[:2] == (3, 3)
  assert layout_for(learnt=0.5).learnt == 32


def computed(groups, layouts):
  """(layout, positions that a step on a batch of these groups computes)"""
  layout = branches.fitting(groups, layouts)
  batch = branches.pack(groups, layout)
  parts = int((batch.valid > 0).any((0, 2)).sum())
  return layout, parts * layout.rows * layout.length


def of_completions(count, prompt=100, response=40):
  """A group of `count` completions of a prompt, which differ from their first token on."""
  rows = []
  for number in range(count):
    ids = np.concatenate([np.ones(prompt), np.full(response, 2 + number)]).astype(np.int32)
    rows.append(Row(ids, prompt))
  return branches.of_group(Group(tuple(rows), tuple(range(1, count + 1))))


@pytest.mark.parametrize(("prompt", "response", "size"), [(100, 40, 8), (100, 40, 32), (4, 3, 8)])
def test_one_record_of_nine_makes_no_step_of_pairs_dearer(prompt, response, size):
  """A batch of pairs computes the positions that it computes where no record has nine."""
  pair, nine = (of_completions(count, prompt, response) for count in (2, 9))
  alone = branches.layouts([pair] * 159, size, shards=1)
  beside = branches.layouts([pair] * 159 + [nine], size, shards=1)
  assert len(alone) == 1 and len(beside) == 2
  assert computed([pair] * size, beside) == computed([pair] * size, alone)
  layout, _ = computed([pair] * (size - 1) + [nine], beside)
  assert layout == beside[1].layout and layout.completions == 9
  # The layout of all comparisons alone would compute more.
  assert computed([pair] * size, beside[1:])[1] > computed([pair] * size, alone)[1]


def test_a_second_layout_is_for_few_and_much_longer_groups():
  short, long = of_completions(2), of_completions(9)
  # Of batches of 8, 43 % are without any of ten in a hundred, which is less than a half.
  assert len(branches.layouts([short] * 90 + [long] * 10, 8, 1)) == 1
  assert len(branches.layouts([short] * 92 + [long] * 8, 8, 1)) == 2
  # 180 of 220 tokens are more than three quarters.
  assert len(branches.layouts([short] * 99 + [of_completions(3)], 8, 1)) == 1
  assert len(branches.layouts([short], 8, 1)) == 1


def test_scores_are_computed_in_larger_parts_than_gradients():
  """Without gradients to add up after each part, a CPU is faster with more positions at once."""
  groups = [of_completions(2)] * 40
  learnt = branches.layout(groups, 40, 1)
  scored = branches.layout(groups, 40, 1, scored=True)
  assert scored.length == learnt.length
  assert scored.rows * scored.length >= 768 > learnt.rows * learnt.length >= 192


def test_a_process_with_rows_of_its_own_has_one_layout(monkeypatch):
  """It does not see which groups the other processes have in a batch."""
  monkeypatch.setattr(branches.sharding, "local_rows", lambda rows: range(rows // 2))
  groups = [of_completions(2)] * 159 + [of_completions(9)]
  assert branches.layouts(groups, 8, 1) == (branches.Fitting(460, branches.layout(groups, 8, 1)),)


def test_a_group_that_does_not_fit_is_an_error():
  runs = [branches.of_group(group("123456", "223456"))]
  with pytest.raises(UserError, match="a row of 12 tokens does not fit in packed rows of 8"):
    branches.pack(runs, branches.Layout(1, 1, 8, 1, 2))


digits = st.text("123", min_size=1, max_size=6)
made_groups = st.lists(
  st.tuples(digits, st.lists(digits, min_size=2, max_size=5)), min_size=1, max_size=9
)


@settings(deadline=None, max_examples=60)
@given(made_groups, st.integers(1, 3))
def test_every_row_can_be_read_back(parts, shards):
  """Each path through a batch is a row, and what holds something comes first."""
  made = [group(*[prompt + text for text in texts]) for prompt, texts in parts]
  runs = [branches.of_group(each, learnt=True) for each in made]
  layout = branches.layout(runs, len(runs), shards)
  batch = branches.pack(runs, layout)
  slots = branches.slots_of(runs, layout)
  assert (batch.valid > 0).sum() == sum(len(run.ids) for run in runs)
  used = (batch.valid > 0).any((0, 2))
  assert used[: used.sum()].all() and used[0]
  for i, each in enumerate(made):
    at = slots.row[i], slots.part[i]
    tokens, valid, branch = (x[at] for x in (batch.tokens, batch.valid, batch.branch))
    for k, row in enumerate(each.rows):
      end = batch.last[at][slots.slot[i], k]
      same_group = valid == valid[end]
      path = same_group & ((branch == 0) | (branch == k + 1))
      assert tokens[path].tolist() == row.ids.tolist()
      assert np.flatnonzero(path).max() == end
  leaves = jax.tree.leaves(batch)
  assert all(leaf.shape[:2] == (layout.rows, layout.parts) for leaf in leaves)


def test_labels_of_pairs_stand_beside_those_of_ranks():
  ranked = branches.of_group(group("123", "124"))
  labels = np.array([[0, 0, 0.5], [1, 0, 0], [0, 2, 0]])
  circle = branches.of_group(group("125", "126", "127")._replace(ranks=(1, 1, 1), labels=labels))
  layout = branches.layout([ranked, circle], 2, 1, micro=2)
  assert layout.labels
  assert not branches.layout([ranked], 2, 1).labels
  batch = branches.pack([ranked, circle], layout)
  by_slot = {int(part): batch.label[0, part, 0].tolist() for part in (0, 1)}
  assert sorted(by_slot.values()) == sorted([labels.tolist(), [[0, 1, 0], [0] * 3, [0] * 3]])
  assert branches.pack([ranked], branches.layout([ranked], 1, 1)).label is None
