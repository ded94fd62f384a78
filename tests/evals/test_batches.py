"""Rows and plans: every row once, none too wide, and the same plan for the same requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.errors import UserError
from instructjax.evals import batches
from instructjax.evals.tasks import Generate, Likelihood

CODES = lambda text: [ord(c) for c in text]
HEAD = lambda text: [1, *CODES(text)]


def rows(requests, context=64):
  return batches.rows([(i, several) for i, several in enumerate(requests)], HEAD, CODES, context)


def test_a_continuation_starts_after_its_context():
  (entry,) = rows([[Likelihood("ab", " c")]])
  assert entry.row.ids.tolist() == [1, 97, 98, 32, 99] and entry.row.start == 3
  assert entry.decoding is None and entry.cut == 0


def test_a_long_context_loses_its_beginning_but_for_the_first_id():
  (entry,) = rows([[Likelihood("abcdef", "gh")]], context=6)
  assert entry.row.ids.tolist() == [1, *CODES("defgh")]
  assert entry.row.start == 4 and entry.cut == 3
  (entry,) = rows([[Generate("abcdef", 2)]], context=6)
  assert entry.row.ids.tolist() == [1, *CODES("def")] and entry.cut == 3


def test_samples_that_are_cut_apart_are_drawn_apart():
  entries = rows(
    [[Generate("a", 2, 1.0), Generate("a", 2, 1.0, top_p=0.9), Generate("a", 2, 1.0, top_k=5)]]
  )
  plan = batches.plan(entries, 512, 1, 64)
  assert [(b.decoding.top_p, b.decoding.top_k) for b in plan] == [(1.0, 0), (0.9, 0), (1.0, 5)]


@pytest.mark.parametrize(
  "request_", [Generate("a", 6), Likelihood("a", "x" * 6), Likelihood("a", "")]
)
def test_an_answer_that_cannot_fit_is_an_error(request_):
  with pytest.raises(UserError, match=r"context of 6|no tokens"):
    rows([[request_]], context=6)


@given(
  st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from([None, 4, 8]), st.integers(1, 3)),
    min_size=1,
    max_size=40,
  ),
  st.sampled_from([1, 2, 8]),
  st.integers(32, 2000),
)
def test_a_plan_holds_every_row_once(lengths, parts, budget):
  ask = lambda n, tokens, k: (
    Likelihood("x" * n, "yy") if tokens is None else Generate("x" * n, tokens, n=k)
  )
  entries = rows([[ask(*length)] for length in lengths])
  plan = batches.plan(entries, budget, parts, 64)
  places = lambda entries: sorted((e.item, e.request, e.sample) for e in entries)
  assert places([e for b in plan for e in b.entries]) == places(entries)
  for batch in plan:
    assert (
      len(batch.groups) <= batch.size
      and batch.size % parts == 0
      and max(map(len, batch.groups)) <= batch.fan
    )
    assert batch.size * batch.fan * (batch.width + batch.end) <= max(
      budget, parts * (batch.width + batch.end)
    )
    assert batch.width + batch.end <= 64
    for group in batch.groups:
      assert len({tuple(a.row.ids[: a.row.start]) for a in group}) == 1
      long = max(len(a.row.ids) for a in group)
      assert long <= batch.width + batch.end and (
        not batch.end or group[0].row.start <= batch.width
      )
  assert str(plan) == str(
    batches.plan(rows([[ask(*length)] for length in lengths]), budget, parts, 64)
  )


def test_choices_of_a_question_share_it_where_that_pays():
  question = lambda n, ends: [Likelihood(f"{n}" + "x" * 38, end) for end in ends]
  plan = lambda requests: batches.plan(rows(requests), 10**4, 1, 64)
  (batch,) = plan([question(n, ["a", "bb", "ccc", "d"]) for n in range(3)])
  assert (batch.fan, batch.size, batch.end, batch.width) == (4, 3, batches.SHORT, 48)
  assert [[(a.item, a.request) for a in group] for group in batch.groups] == [
    [(n, i) for i in range(4)] for n in range(3)
  ]
  (two,) = plan(
    [question(n, ["a", "b"]) for n in range(2)] + [question(2, "abc")]
  )  # 3 choices: a group of 2 and one of 1
  assert two.fan in (2, 3) and sorted(map(len, two.groups)) in ([1, 2, 2, 2], [2, 2, 3])
  (alone,) = plan(
    [[Likelihood("a", "x" * 20), Likelihood("a", "y" * 20)]]
  )  # of 22 tokens 2 would be saved
  assert (alone.fan, alone.end) == (1, 0)
  (long,) = plan(
    [[Likelihood("x" * 60, "a"), Likelihood("x" * 60, "b")]]
  )  # 61 + SHORT tokens are more than the context
  assert (long.fan, long.end) == (1, 0)


def test_samples_share_their_prompt_in_groups_that_waste_little():
  (batch,) = batches.plan(
    rows([[Generate("x" * 20, 8, 1.0, n=25)], [Generate("y" * 20, 8, 1.0, n=25)]]), 10**4, 1, 64
  )
  assert (batch.fan, batch.size, [len(group) for group in batch.groups]) == (25, 2, [25, 25])
  (few,) = batches.plan(rows([[Generate("x" * 20, 8, 1.0, n=40)]]), 10**4, 1, 64)
  assert few.fan * few.size == 40  # two groups of 20, and not one of 32 and one of 8


def test_a_group_fits_the_budget_of_its_device():
  requests = [
    [Generate("x" * 50 + chr(at), 8, 1.0, n=25)] for at in range(100, 108)
  ]  # 52 tokens: 64 wide, and 8
  fans = lambda budget, parts: {
    (b.fan, b.size) for b in batches.plan(rows(requests, 128), budget, parts, 128)
  }
  assert fans(10**5, 8) == {(25, 8)}
  assert fans(8 * 10 * 72, 8) == {(9, 8)}  # 10 fit, of which the third one would be half empty
  assert max(fan for fan, _ in fans(8 * 72, 8)) == 1  # a row each, as if each sample stood alone


def test_the_last_batch_is_hardly_larger_than_what_is_left():
  entries = lambda n: rows([[Generate("x" * 18 + chr(at), 8)] for at in range(100, 100 + n)])
  sizes = lambda n, parts: [b.size for b in batches.plan(entries(n), 40 * 40, parts, 64)]
  assert sizes(77, 1) == [40, 40]  # 37 are left: 40, and not 64
  assert sizes(41, 1) == [40, 1]
  assert sizes(77, 8) == [40, 40]
  assert sizes(41, 8) == [40, 8]


@given(st.integers(1, 5000))
def test_widths_are_tight(length):
  width = batches.wide(length, 10**6)
  assert length <= width and (width - length < batches.NARROW or width <= 1.125 * length)
  assert batches.wide(length, length) == length


def test_there_are_few_widths():
  assert len({batches.wide(n, 10**6) for n in range(1, 2049)}) == 40
