"""What is cut, equal, empty, left out or changed is counted by whatever makes rows."""

import pytest
from letters import EOS, letters

from instructjax.data.batches import counts, pipeline
from instructjax.data.batches.counts import Counts
from instructjax.data.records.records import Comparison, Demonstration, Prompt
from instructjax.errors import UserError

TOK = letters()
LIMITS = {"prompt": 3, "response": 4}


def counted(make, records, tokenizer=TOK, **options):
  """(rows, counts) of records."""
  numbers = Counts()
  rows = make(records, tokenizer, **(LIMITS | options), counts=numbers)
  return rows, numbers


def test_a_cut_demonstration_has_no_end_and_is_counted():
  # " bcd" fills the four tokens of a response, so that its end is cut off.
  records = [Demonstration("a", "b"), Demonstration("a", "bc"), Demonstration("a", "bcd")]
  rows, numbers = counted(pipeline.demonstrations, records)
  assert [EOS in row.ids for row in rows] == [True, True, False]
  assert counts.facts(numbers) == {
    "prompts": 3,
    "left_out": 0,
    "completions": 3,
    "cut": 1,
    "endless": 1,
    "equal": 0,
    "empty": 0,
    "unlearnt": 0,
    "changed": 0,
  }
  assert counts.sentence(numbers) == (
    "3 completions, 1 cut (no end of text); 0 pairs equal, 0 empty; 3 prompts, 0 too long and left "
    "out"
  )


def test_it_is_said_where_no_completion_ends():
  _, numbers = counted(pipeline.demonstrations, [Demonstration("a", "bcdefg")] * 2)
  assert "2 cut (none ends, so the model never learns to stop: raise config.data.response)" in (
    counts.sentence(numbers)
  )


def test_completions_that_become_equal_by_the_cut_are_counted_as_pairs():
  records = [
    Comparison("a", ("bcdX", "bcdY", "z"), (1, 2, 3)),  # the first two are " bc" and an end
    Comparison("a", ("x", "x", "x"), (1, 1, 1)),
  ]
  groups, numbers = counted(pipeline.comparisons, records)
  assert groups[0].rows[0].ids.tolist() == groups[0].rows[1].ids.tolist()
  assert (numbers.cut, numbers.endless, numbers.equal, numbers.completions) == (2, 0, 1 + 3, 6)
  assert groups[0].ranks == (1, 2, 3)  # the ranks stay what the labeler said


@pytest.mark.parametrize(
  ("make", "record"),
  [
    (pipeline.demonstrations, lambda prompt: Demonstration(prompt, "b")),
    (pipeline.comparisons, lambda prompt: Comparison(prompt, ("b", "c"), (1, 2))),
  ],
)
def test_a_prompt_that_is_too_long_is_an_error_or_is_left_out(make, record):
  records = [record("a"), record("abcd"), record("abc")]
  with pytest.raises(UserError, match=r":2: prompt: 4 tokens, the limit is 3; .*data.long=drop"):
    counted(make, records)
  rows, numbers = counted(make, records, long="drop")
  assert len(rows) == 2
  assert numbers.left_out == [1]
  assert numbers.kept(records) == [records[0], records[2]]
  assert "3 prompts, 1 too long and left out" in counts.sentence(numbers)


def test_prompts_that_are_left_out_leave_their_records_too():
  records = [Prompt("abcd"), Prompt("ab")]
  numbers = Counts()
  (row,) = pipeline.prompts(records, TOK, prompt=3, long="drop", counts=numbers)
  assert row.ids.tolist() == [97, 98]
  assert numbers.kept(records) == [Prompt("ab")]


def test_texts_that_the_tokenizer_changes_are_counted():
  """A normalizer that lowers letters, and one that takes the whole text away."""
  lower = TOK._replace(encode=lambda text: TOK.encode(text.lower()))
  _, numbers = counted(
    pipeline.demonstrations, [Demonstration("A", "b"), Demonstration("a", "B")], lower
  )
  assert numbers.changed == 2
  assert "2 texts come back changed (instructjax tokenizer check)" in counts.sentence(numbers)
  nothing = TOK._replace(encode=lambda text: TOK.encode(text.replace("?", "")))
  _, numbers = counted(pipeline.demonstrations, [Demonstration("a", "??")], nothing)
  assert (numbers.changed, numbers.empty) == (1, 1)


def test_line_breaks_of_a_prompt_are_no_change_where_they_end_responses():
  """Decoding leaves the ends of responses out: all 400 prompts of the quickstart seemed changed."""

  def decode_without_ends(ids):
    return TOK.decode([token for token in ids if token != ord("b")])

  ends_in_b = TOK._replace(eos=(ord("b"), EOS), decode=decode_without_ends)
  numbers = Counts()
  pipeline.prompts([Prompt("abc")], ends_in_b, prompt=3, counts=numbers)
  assert numbers.changed == 0
