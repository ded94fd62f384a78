"""Which completion is better than which, by ranks and by pairs, worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructjax.data.records import preferences, records
from instructjax.data.records.records import Comparison
from instructjax.errors import UserError

# 1 beats 0; 0 and 2 tie; 2 beats 1, half as much: no ranks say that.
ROW = {"prompt": "p", "completions": ["a", "b", "c"], "pairs": [[1, 0], [0, 2, 0], [2, 1, 0.5]]}


def test_ranks_and_pairs_as_one_matrix():
  ranked = Comparison("p", ("a", "b", "c"), (2, 1, 2))
  assert preferences.weights(ranked).tolist() == [[0, 0, 0], [1, 0, 1], [0, 0, 0]]
  assert preferences.signs(ranked).tolist() == [[0, -1, 0], [1, 0, 1], [0, -1, 0]]
  assert preferences.compared(ranked).sum() == 6
  (paired,) = records.parse([ROW], "comparison")
  assert paired.ranks == ()
  assert preferences.weights(paired).tolist() == [[0, 0, 0], [1, 0, 0], [0, 0.5, 0]]
  assert preferences.signs(paired).tolist() == [[0, -1, 0], [1, 0, -1], [0, 1, 0]]
  assert preferences.compared(paired).sum() == 6


def test_pairs_that_were_not_compared_are_no_ties():
  (record,) = records.parse([ROW | {"pairs": [[0, 1]]}], "comparison")
  assert preferences.compared(record).tolist() == [
    [False, True, False],
    [True, False, False],
    [False] * 3,
  ]


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_pairs_of_ranks_are_these_ranks(numbers):
  levels = sorted(set(numbers))
  ranks = [levels.index(number) + 1 for number in numbers]
  pairs = []
  for i in range(len(ranks)):
    for j in range(i + 1, len(ranks)):
      if ranks[i] == ranks[j]:
        pairs.append([i, j, 0])
      else:
        pairs.append([i, j] if ranks[i] < ranks[j] else [j, i])
  assert preferences.ranks_of_pairs(len(ranks), pairs) == ranks


@pytest.mark.parametrize(
  "pairs",
  [
    [[0, 1], [1, 2], [2, 0]],  # a circle
    [[0, 1], [1, 2, 0], [0, 2, 0]],  # 2 ties with both, and they do not tie
    [[0, 1], [1, 2]],  # 0 and 2 were not compared
    [[0, 1], [1, 2], [0, 2, 0.5]],  # one counts half
  ],
)
def test_pairs_that_no_ranks_say(pairs):
  assert preferences.ranks_of_pairs(3, pairs) is None


def test_pairs_are_written_and_read_again(tmp_path):
  path = tmp_path / "c.jsonl"
  (record,) = records.parse([ROW], "comparison")
  records.write(path, [record])
  assert '"pairs": [[1, 0], [0, 2, 0], [2, 1, 0.5]]' in path.read_text()
  assert "ranks" not in path.read_text()
  assert records.read(path, "comparison") == [record]
  other = Comparison("p", ("a", "b", "c"), (), pairs=((1, 0),))
  assert records.fingerprint([record]) != records.fingerprint([other])


@pytest.mark.parametrize(
  ("pairs", "message"),
  [
    ([], "pairs: none; give [better, worse]"),
    (3, "completions, pairs: lists are expected, not a list and a number"),
    ([[0, 3]], "pairs[0]: [0, 3]; give [better, worse], two numbers from 0 to 2"),
    ([[0, 0]], "pairs[0]: [0, 0]; give [better, worse]"),
    ([[True, 0]], "pairs[0]: [True, 0]; give"),
    ([[0]], "pairs[0]: give [better, worse]"),
    ([[0, 1, -1]], "pairs[0]: [0, 1, -1]; the weight is a number, 0 (a tie) or more"),
    ([[0, 1, True]], "pairs[0]: [0, 1, True]; the weight is a number"),
    ([[0, 1], [1, 0]], "pairs[1]: 0 and 1 are compared in pairs[0] already"),
  ],
)
def test_bad_pairs_are_named(pairs, message):
  with pytest.raises(UserError) as error:
    records.parse([ROW | {"pairs": pairs}], "comparison")
  assert str(error.value).startswith(f"data:1: {message}")


def test_ranks_or_pairs_and_not_both():
  with pytest.raises(UserError, match="ranks, pairs: give one of them"):
    records.parse([ROW | {"ranks": [1, 2, 3]}], "comparison")
  with pytest.raises(UserError, match="ranks: missing"):
    records.parse([{"prompt": "p", "completions": ["a", "b"]}], "comparison")


def test_a_text_is_not_better_than_itself():
  row = {"prompt": "p", "completions": ["a", "a"], "pairs": [[0, 1]]}
  with pytest.raises(
    UserError, match=r"pairs\[0\]: completions\[0\] and completions\[1\] are the same"
  ):
    records.parse([row], "comparison")
  assert records.parse([row | {"pairs": [[0, 1, 0]]}], "comparison")


def test_statistics_and_agreement_count_pairs():
  from instructjax.data.curation import statistics
  from instructjax.data.records import agreement

  votes = []
  for labeler, pairs in (("ana", [[0, 1], [1, 2], [2, 0]]), ("ben", [[0, 1], [2, 1], [0, 2, 0]])):
    row = ROW | {"pairs": pairs, "labeler": labeler}
    votes += records.parse([row], "comparison")
  estimates = agreement.measure(votes)
  # Both order 01 and 12; they agree on 01. Ben's tie in 02 against a preference is a half.
  assert estimates["agreement"].value == pytest.approx(1 / 2)
  assert estimates["agreement_ties"].value == pytest.approx((1 + 0 + 1 / 2) / 3)
  table = statistics._ranking_table(votes)
  assert table.rows[-1] == ("all", 2, 5, 1)
  assert np.isfinite(estimates["tau_b"].value)
