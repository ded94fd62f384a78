from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import EOS, letters

from instructjax.data.batches import pipeline
from instructjax.data.batches.pipeline import Row
from instructjax.data.records.records import Comparison, Demonstration, Prompt, Text
from instructjax.errors import UserError

TOK = letters()
ids = lambda text: [ord(letter) for letter in text]


def test_a_demonstration_row_is_prompt_separator_completion_end():
  (row,) = pipeline.demonstrations([Demonstration("ab", "cd")], TOK, prompt=2, response=4)
  assert row.ids.tolist() == [*ids("ab cd"), EOS] and row.start == 2
  (row,) = pipeline.demonstrations([Demonstration("ab", "  cd")], TOK, prompt=2, response=6)
  assert row.ids.tolist() == [*ids("ab   cd"), EOS]
  (row,) = pipeline.demonstrations(
    [Demonstration("ab", " cd")], TOK, prompt=2, response=4, separator=""
  )
  assert row.ids.tolist() == [*ids("ab cd"), EOS]
  (row,) = pipeline.demonstrations(
    [Demonstration("ab", "cd")], letters(bos=(7,)), prompt=3, response=4
  )
  assert row.ids.tolist() == [7, *ids("ab cd"), EOS] and row.start == 3


@pytest.mark.parametrize(("end_cut", "tail"), [(False, [*ids(" cde")]), (True, [*ids(" cd"), EOS])])
def test_a_long_response_is_cut_with_or_without_its_end(end_cut, tail):
  (row,) = pipeline.demonstrations(
    [Demonstration("ab", "cdef")], TOK, prompt=9, response=4, end_cut=end_cut
  )
  assert row.ids.tolist() == [*ids("ab"), *tail]
  (group,) = pipeline.comparisons(
    [Comparison("ab", ("cdef", "x"), (1, 2))], TOK, prompt=9, response=4, end_cut=end_cut
  )
  assert [row.ids.tolist()[2:] for row in group.rows] == [tail, [*ids(" x"), EOS]]


def test_the_response_that_just_fits_keeps_its_end():
  (row,) = pipeline.demonstrations([Demonstration("ab", "cde")], TOK, prompt=2, response=5)
  assert row.ids.tolist() == [*ids("ab cde"), EOS]


def test_prompts_that_are_too_long_are_all_named():
  rows = [Demonstration("ok", "x"), Demonstration("abcd", "x"), Demonstration("abc", "x")]
  with pytest.raises(UserError) as error:
    pipeline.demonstrations(rows, TOK, prompt=2, response=4, name="d.jsonl")
  first, second = str(error.value).split("\n")
  assert first.startswith("d.jsonl:2: prompt: 4 tokens, the limit is 2") and second.startswith(
    "d.jsonl:3: prompt: 3"
  )
  with pytest.raises(UserError, match="p:1: prompt: 3 tokens"):
    pipeline.prompts([Prompt("abc")], TOK, prompt=2, name="p")
  with pytest.raises(UserError, match="c:1: prompt: 3 tokens"):
    pipeline.comparisons(
      [Comparison("abc", ("a", "b"), (1, 2))], TOK, prompt=2, response=4, name="c"
    )


@pytest.mark.parametrize("letter", ["#", "~"])
def test_special_tokens_are_errors_in_every_text_of_a_user(letter):
  """One rule for prompts, completions and documents: no text of a user writes a control token."""
  bad = f"b{letter}c"
  limits = {"prompt": 9, "response": 9}
  made = {
    "d:1: prompt": lambda: pipeline.demonstrations(
      [Demonstration(bad, "a")], TOK, name="d", **limits
    ),
    "d:1: completion": lambda: pipeline.demonstrations(
      [Demonstration("a", bad)], TOK, name="d", **limits
    ),
    "c:1: prompt": lambda: pipeline.comparisons(
      [Comparison(bad, ("a", "b"), (1, 2))], TOK, name="c", **limits
    ),
    "c:1: completions[1]": lambda: pipeline.comparisons(
      [Comparison("a", ("b", bad), (1, 2))], TOK, name="c", **limits
    ),
    "p:2: prompt": lambda: pipeline.prompts([Prompt("a"), Prompt(bad)], TOK, prompt=9, name="p"),
    "t:2: text": lambda: pipeline.text([Text("abc"), Text(bad)], TOK, length=3, name="t"),
    "k:1: text": lambda: pipeline.documents([Text(bad)], TOK, length=3, name="k"),
  }
  for place, make in made.items():
    with pytest.raises(UserError) as error:
      make()
    problem = f"{place}: holds the special tokens {letter!r}; take their names out of the text"
    assert str(error.value) == problem  # said once


def test_what_ends_a_response_is_an_error_in_a_completion_alone():
  """Where a new line ends responses, prompts and documents hold it all the same."""
  lines = TOK._replace(eos=(ord("\n"), EOS))
  with pytest.raises(UserError, match=r"d:1: completion: holds the ids \[10\], which end"):
    pipeline.demonstrations([Demonstration("a", "b\nc")], lines, prompt=9, response=9, name="d")
  assert len(pipeline.prompts([Prompt("a\nb")], lines, prompt=9)) == 1
  assert len(pipeline.text([Text("a\nb")], lines, length=3)) == 1


def test_text_windows_join_documents_with_ends():
  documents = [Text("abc"), Text("de"), Text("fgh")]
  rows = pipeline.text(documents, TOK, length=4)
  assert [row.ids.tolist() for row in rows] == [[*ids("abc"), EOS], [*ids("de"), EOS, *ids("f")]]
  assert [row.start for row in rows] == [1, 1]
  rows = pipeline.text(documents, TOK, length=4, tail=True)
  assert rows[-1].ids.tolist() == [*ids("gh"), EOS]
  rows = pipeline.text(documents, letters(bos=(7,)), length=5)
  assert [row.ids.tolist()[:2] for row in rows] == [[7, 97], [7, 100]]
  assert all(len(row.ids) == 5 for row in rows)
  with pytest.raises(UserError, match="t: 4 tokens do not fill a window of 8"):
    pipeline.text([Text("abc")], TOK, length=8, name="t")


def test_documents_are_joined_by_their_own_end_and_completions_closed_by_that_of_a_turn():
  turn, document = 3, 4
  chatty = TOK._replace(eos=(turn,), specials={"<|im_end|>": turn, "<|endoftext|>": document})
  (window,) = pipeline.text([Text("ab"), Text("c")], chatty, length=5)
  assert window.ids.tolist() == [*ids("ab"), document, *ids("c"), document]
  (piece,) = pipeline.documents([Text("ab")], chatty, length=5)
  assert piece.ids.tolist() == [*ids("ab"), document]
  (demonstration,) = pipeline.demonstrations(
    [Demonstration("a", "b")], chatty, prompt=9, response=9
  )
  assert demonstration.ids.tolist() == [*ids("a b"), turn]


def row(text, start=0):
  return Row(np.asarray(ids(text), np.int32), start)


def test_padding_by_hand():
  batch = pipeline.pad_demonstrations([row("abc", 1), row("d")], length=4)
  assert batch.tokens.tolist() == [[97, 98, 99, 0], [100, 0, 0, 0]]
  assert batch.valid.tolist() == [[True, True, True, False], [True, False, False, False]]
  assert batch.mask.tolist() == [[False, True, True, False], [True, False, False, False]]
  batch = pipeline.pad_prompts([row("abc"), row("d")], length=4)
  assert batch.tokens.tolist() == [[0, 97, 98, 99], [0, 0, 0, 100]]
  assert batch.valid.tolist() == [[False, True, True, True], [False, False, False, True]]
  assert pipeline.longest([row("ab")]) == 8 and pipeline.longest([row("abc")], multiple=1) == 3


def test_what_does_not_fit_is_an_error():
  with pytest.raises(UserError, match="a row of 3 tokens does not fit in batches of length 2"):
    pipeline.pad_demonstrations([row("abc")], length=2)


some = st.text("abc de", min_size=1, max_size=8).filter(str.strip)


@settings(deadline=None, max_examples=60)
@given(pairs=st.lists(st.tuples(some, some), min_size=1, max_size=5))
def test_the_same_parts_give_the_same_ids_everywhere(pairs):
  """A demonstration, a comparison and a prompt of one text agree token by token."""
  limits = {"prompt": 8, "response": 12}
  demos = pipeline.demonstrations([Demonstration(*pair) for pair in pairs], TOK, **limits)
  groups = pipeline.comparisons([Comparison(p, (c, c), (1, 1)) for p, c in pairs], TOK, **limits)
  prompts = pipeline.prompts([Prompt(p) for p, _ in pairs], TOK, prompt=8)
  length = pipeline.longest(demos)
  left = pipeline.pad_prompts(prompts, length=8)
  right = pipeline.pad_demonstrations(demos, length=length)
  left, right = jax.tree.map(np.asarray, (left, right))  # no slice of theirs is compiled
  for i, (prompt, completion) in enumerate(pairs):
    expected = [*TOK.encode(prompt), *TOK.encode(" " + completion), EOS]
    assert right.tokens[i][right.valid[i]].tolist() == expected
    assert groups[i].rows[1].ids.tolist() == expected
    start = left.tokens[i][left.valid[i]].tolist()
    assert start == expected[: len(start)] and int(right.mask[i].sum()) == len(expected) - len(
      start
    )


def numbers(rows):
  return np.asarray(rows)


def test_an_epoch_holds_every_row_once_and_the_next_in_another_order():
  batches = pipeline.stream(list(range(10)), numbers, size=5, seed=3)
  epochs = [
    np.concatenate([batches(2 * epoch), batches(2 * epoch + 1)]).tolist() for epoch in range(3)
  ]
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_to_resume_is_to_remember_an_integer():
  straight = pipeline.stream(list(range(7)), numbers, size=3, seed=0)
  expected = [straight(i).tolist() for i in range(20)]
  again = pipeline.stream(list(range(7)), numbers, size=3, seed=0)
  assert [again(i).tolist() for i in reversed(range(20))] == expected[::-1]
  other_seed = pipeline.stream(list(range(7)), numbers, size=3, seed=1)
  assert [other_seed(i).tolist() for i in range(20)] != expected


def test_a_batch_may_be_larger_than_the_data():
  batches = pipeline.stream([0, 1, 2], numbers, size=8, seed=0)
  assert batches(0).shape == (8,) and np.bincount(batches(0)).min() >= 2
  with pytest.raises(UserError, match="no rows"):
    pipeline.stream([], numbers, size=8, seed=0)


def test_once_goes_through_every_row_in_batches_of_one_size():
  batches = list(pipeline.once([0, 1, 2, 3, 4], numbers, size=2))
  assert [(batch.tolist(), real) for batch, real in batches] == [
    ([0, 1], 2),
    ([2, 3], 2),
    ([4, 0], 1),
  ]
  assert [real for _, real in pipeline.once([0], numbers, size=3)] == [1]


def test_batches_have_one_shape_so_that_nothing_compiles_twice():
  rows = [row("abcdefg"[: 1 + i % 7]) for i in range(9)]
  batches = pipeline.stream(rows, partial(pipeline.pad_demonstrations, length=8), size=4, seed=0)
  count = jax.jit(lambda batch: batch.mask.sum())
  for i in range(4):
    count(batches(i))
  assert count._cache_size() == 1


def test_each_process_makes_its_own_rows_of_a_batch():
  whole = pipeline.stream(list(range(10)), numbers, size=4, seed=2)
  parts = [
    pipeline.stream(list(range(10)), numbers, size=4, seed=2, mine=mine)
    for mine in ([0, 3], [1, 2])
  ]
  for i in range(9):
    assert whole(i)[[0, 3, 1, 2]].tolist() == [*parts[0](i).tolist(), *parts[1](i).tolist()]
