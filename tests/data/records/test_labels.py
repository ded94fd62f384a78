"""Choices, votes and scores as ranks, and the mappings that name their columns."""

import pytest

from instructjax.data.records import labels, records, spellings
from instructjax.data.records.records import Comparison, RecordError
from instructjax.errors import UserError

ANSWERS = {"q": "p", "answer_a": "x", "answer_b": "y"}


def read(row, fields):
  """Returns the only comparison of a row that a mapping reads."""
  layout = spellings.choose("", "comparison", fields, place="--")
  (record,) = records.parse([row], "comparison", layout.spell)
  return record


@pytest.mark.parametrize(
  ("choice", "ranks"),
  [
    ("a", (1, 2)),
    ("B", (2, 1)),
    ("answer_a", (1, 2)),
    ("model_b", (2, 1)),
    ("tie", (1, 1)),
    ("tie (bothbad)", (1, 1)),
    ("Neither", (1, 1)),
  ],
)
def test_a_choice_that_names_a_column(choice, ranks):
  record = read(ANSWERS | {"best": choice}, "prompt=q,completions=answer_a|answer_b,choice=best")
  assert record == Comparison("p", ("x", "y"), ranks)


@pytest.mark.parametrize(
  ("choice", "ranks"), [(1, (1, 2)), (2.0, (2, 1)), (0, (1, 1)), ("-1", (1, 1))]
)
def test_a_number_means_what_values_say(choice, ranks):
  fields = "prompt=q,completions=answer_a|answer_b,choice=best,values=1|2|0|-1"
  assert read(ANSWERS | {"best": choice}, fields).ranks == ranks


def test_true_may_mean_the_first():
  fields = "prompt=q,completions=answer_a|answer_b,choice=first_is_better,values=true|false"
  assert read(ANSWERS | {"first_is_better": False}, fields).ranks == (2, 1)


@pytest.mark.parametrize(
  ("choice", "more", "message"),
  [
    (
      1,
      "",
      "best: '1' names none of answer_a, answer_b; say what the values mean, such as values=",
    ),
    (True, "", "best: 'true' names none"),
    ("c", "", "best: 'c' names none"),
    (3, ",values=1|2|0", "best: '3', and values has 1, 2, 0; add it there"),
  ],
)
def test_a_choice_that_means_nothing_is_an_error(choice, more, message):
  fields = "prompt=q,completions=answer_a|answer_b,choice=best" + more
  with pytest.raises(UserError) as error:
    read(ANSWERS | {"best": choice}, fields)
  assert str(error.value).startswith(f"data:1: {message}")


def test_numbers_are_never_guessed_from_the_names_of_columns():
  # 0 and 1 might be the first and the second, or a tie and the first.
  with pytest.raises(RecordError, match="values="):
    labels.preferred(1, ("response1", "response2"), (), "best")


def test_votes_of_several_people():
  fields = "prompt=q,completions=answer_a|answer_b,choices=ana|ben|cem"
  assert read(ANSWERS | {"ana": "a", "ben": "tie", "cem": "a"}, fields).ranks == (1, 2)
  assert read(ANSWERS | {"ana": "a", "ben": "b", "cem": "tie"}, fields).ranks == (1, 1)
  in_a_list = "prompt=q,completions=answer_a|answer_b,choices=votes,values=1|2"
  assert read(ANSWERS | {"votes": [2, 2, 1]}, in_a_list).ranks == (2, 1)


def test_scores_of_columns_and_of_a_list():
  fields = "prompt=q,completions=answer_a|answer_b,scores=s.0|s.1"
  assert read(ANSWERS | {"s": [0.5, 0.5]}, fields).ranks == (1, 1)
  fields = "prompt=q,completions=texts,scores=points"
  row = {"q": "p", "texts": ["x", "y", "z"], "points": [3, "5", 3]}
  assert read(row, fields) == Comparison("p", ("x", "y", "z"), (2, 1, 2))
  with pytest.raises(UserError, match=r"points\[1\]: a number is expected"):
    read(row | {"points": [3, None, 3]}, fields)
  with pytest.raises(UserError, match="points: a list of 3 is expected"):
    read(row | {"points": [3]}, fields)


def test_labels_of_pairs_are_ranks_where_they_are_a_ranking():
  fields = "prompt=q,completions=texts,pairs=labels,values=1|2|0"
  row = {"q": "p", "texts": ["x", "y", "z"], "labels": [1, 1, 0]}
  assert read(row, fields) == Comparison("p", ("x", "y", "z"), (1, 2, 2))
  circle = read(row | {"labels": [1, 2, 1]}, fields)
  assert circle == Comparison("p", ("x", "y", "z"), (), pairs=((0, 1), (2, 0), (1, 2)))
  with pytest.raises(UserError, match="labels: a list of 3 labels is expected, one a pair"):
    read(row | {"labels": [1]}, fields)
  with pytest.raises(UserError, match=r"labels\[2\]: '7', and values has"):
    read(row | {"labels": [1, 1, 7]}, fields)


def test_false_is_no_answer():
  with pytest.raises(UserError, match=r"completions\[0\]: text is expected, this is true or false"):
    read(
      ANSWERS | {"answer_a": False, "best": "b"},
      "prompt=q,completions=answer_a|answer_b,choice=best",
    )


def test_columns_are_joined_with_empty_lines():
  fields = "prompt=task+passage,completions=answer_a|answer_b,choice=best"
  row = ANSWERS | {"task": "t", "passage": "s", "best": "a"}
  assert read(row, fields).prompt == "t\n\ns"
  assert read(row | {"passage": None}, fields).prompt == "t"
  del row["passage"]
  with pytest.raises(UserError, match="passage: missing; the row has"):
    read(row, fields)


def test_answers_may_be_chats_of_one_reply():
  reply = [{"role": "assistant", "content": "x"}]
  row = {"q": "p", "answer_a": reply, "answer_b": reply[0] | {"content": "y"}, "best": "b"}
  record = read(row, "prompt=q,completions=answer_a|answer_b,choice=best")
  assert record == Comparison("p", ("x", "y"), (2, 1))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      "prompt=q,completions=a|b,choice=c,scores=d|e",
      "scores, choice all say which is better; give one",
    ),
    ("prompt=q,chosen=a,rejected=b,choice=c", "chosen, rejected, choice all say"),
    ("prompt=q,completions=a|b,scores=d|e,values=1|2", "values are those of choice"),
  ],
)
def test_two_answers_to_one_question_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    spellings.choose("", "comparison", fields, place="--")
