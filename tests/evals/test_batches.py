"""Rows and plans of evaluations: every row once, no row too wide, and the same plan for the same requests."""

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
  ((ask, draw),) = rows([[Likelihood("ab", " c")]])
  assert ask.row.ids.tolist() == [1, 97, 98, 32, 99] and ask.row.start == 3 and draw is None and ask.cut == 0


def test_a_long_context_loses_its_beginning_but_for_the_first_id():
  ((ask, _),) = rows([[Likelihood("abcdef", "gh")]], context=6)
  assert ask.row.ids.tolist() == [1, *CODES("defgh")] and ask.row.start == 4 and ask.cut == 3
  ((ask, _),) = rows([[Generate("abcdef", 2)]], context=6)
  assert ask.row.ids.tolist() == [1, *CODES("def")] and ask.cut == 3


def test_samples_that_are_cut_apart_are_drawn_apart():
  asked = rows([[Generate("a", 2, 1.0), Generate("a", 2, 1.0, top_p=0.9), Generate("a", 2, 1.0, top_k=5)]])
  plan = batches.plan(asked, 512, 1, 64)
  assert [(b.draw.top_p, b.draw.top_k) for b in plan] == [(1.0, 0), (0.9, 0), (1.0, 5)]


@pytest.mark.parametrize("request_", [Generate("a", 6), Likelihood("a", "x" * 6), Likelihood("a", "")])
def test_an_answer_that_cannot_fit_is_an_error(request_):
  with pytest.raises(UserError, match=r"context of 6|no tokens"):
    rows([[request_]], context=6)


@given(
  st.lists(st.tuples(st.integers(0, 50), st.sampled_from([None, 4, 8]), st.integers(1, 3)), min_size=1, max_size=40),
  st.sampled_from([1, 2, 8]),
  st.integers(32, 2000),
)
def test_a_plan_holds_every_row_once(lengths, parts, budget):
  ask = lambda n, tokens, k: Likelihood("x" * n, "yy") if tokens is None else Generate("x" * n, tokens, n=k)
  asked = rows([[ask(*one)] for one in lengths])
  plan = batches.plan(asked, budget, parts, 64)
  places = lambda asks: sorted((a.item, a.request, a.sample) for a in asks)
  assert places([a for b in plan for a in b.asks]) == places([a for a, _ in asked])
  for batch in plan:
    answer = batch.draw.tokens if batch.draw else 0
    assert max(len(a.row.ids) for a in batch.asks) <= batch.width <= 64 - answer
    assert len(batch.asks) <= batch.size and batch.size % parts == 0
    assert batch.size * (batch.width + answer) <= max(budget, parts * (batch.width + answer))
  assert str(plan) == str(batches.plan(rows([[ask(*one)] for one in lengths]), budget, parts, 64))


def test_the_last_batch_is_hardly_larger_than_what_is_left():
  sizes = lambda n, parts: [b.size for b in batches.plan(rows([[Generate("x" * 20, 8, n=n)]]), 40 * 40, parts, 64)]
  assert sizes(77, 1) == [40, 40]  # 37 are left: 40, and not 64
  assert sizes(41, 1) == [40, 1]
  assert sizes(77, 8) == [40, 40]
  assert sizes(41, 8) == [40, 8]


@given(st.integers(1, 5000))
def test_widths_are_few_and_tight(length):
  width = batches.wide(length, 10**6)
  assert length <= width and (width - length < batches.NARROW or width <= 1.125 * length)
  assert len({batches.wide(n, 10**6) for n in range(1, 2049)}) <= 48
  assert batches.wide(length, length) == length
