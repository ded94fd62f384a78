"""The public spellings of instruction data, and any row at all in each of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data.records import formats, records
from instructjax.data.records.records import Comparison, Demonstration, Prompt
from instructjax.errors import UserError

ASK = {"role": "user", "content": "q"}


def say(text):
  """Returns a message of the assistant."""
  return {"role": "assistant", "content": text}


PAIR = Comparison("\n\nHuman: q\n\nAssistant:", ("good", "bad"), (1, 2))

CASES = {
  "texts": (
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    Comparison("q", ("good", "bad"), (1, 2)),
  ),
  "messages": (
    {"prompt": [ASK], "chosen": [say("good")], "rejected": [say("bad")], "score": 1},
    PAIR,
  ),
  "shared": ({"chosen": [ASK, say("good")], "rejected": [ASK, say("bad")]}, PAIR),
  "shared and a text": (
    {"prompt": "q", "chosen": [ASK, say("good")], "rejected": [ASK, say("bad")]},
    PAIR,
  ),
  "transcripts": (
    {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
    PAIR,
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_preferences(case):
  row, pair = CASES[case]
  assert records.parse([row], "comparison", formats.preference) == [pair]
  assert records.parse([row], "demonstration", formats.preference) == [
    Demonstration(pair.prompt, "good")
  ]
  assert records.parse([row], "prompt", formats.preference) == [Prompt(pair.prompt)]


def test_identical_chats_still_leave_a_reply():
  row = {"chosen": [ASK, say("same")], "rejected": [ASK, say("same")]}
  (record,) = records.parse([row], "prompt", formats.preference)
  assert record.turns == (ASK,)
  with pytest.raises(UserError, match="data:1: rejected: the same text as chosen"):
    records.parse([row], "comparison", formats.preference)


def test_alpaca():
  with_input = {"instruction": "Add.", "input": "1 2", "output": "3"}
  without = {"instruction": "Greet.", "input": "", "output": "Hi"}
  rows = records.parse([with_input, without], "demonstration", formats.alpaca)
  assert rows == [Demonstration("Add.\n\n1 2", "3"), Demonstration("Greet.", "Hi")]


def test_messages_in_both_spellings():
  chat = [
    {"role": "system", "content": "Be kind."},
    ASK,
    say("a"),
    {"from": "human", "value": "more"},
  ]
  row = {"messages": [*chat, {"from": "gpt", "value": "b"}]}
  (demo,) = records.parse([row], "demonstration", formats.messages)
  assert demo == Demonstration(
    "Be kind.\n\nHuman: q\n\nAssistant: a\n\nHuman: more\n\nAssistant:", "b"
  )


def test_any_columns_by_a_mapping():
  spelling = formats.mapped({"prompt": "question", "completion": "answer"})
  row = {"question": "q", "answer": "a", "other": 1}
  assert records.parse([row], "demonstration", spelling) == [Demonstration("q", "a")]


@pytest.mark.parametrize(
  ("spelling", "kind", "row", "message"),
  [
    (
      "preference",
      "comparison",
      {"prompt": "q", "chosen": "a"},
      "rejected: missing; the row has chosen, prompt",
    ),
    (
      "preference",
      "comparison",
      {"chosen": [ASK], "rejected": [ASK]},
      "the last message must be the assistant's",
    ),
    (
      "preference",
      "comparison",
      {"prompt": "q", "chosen": "a", "rejected": ""},
      "completions[1]: empty",
    ),
    ("hh", "comparison", {"chosen": "a", "rejected": "b"}, "chosen: a transcript with"),
    (
      "hh",
      "comparison",
      {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"},
      "the transcripts differ before the last reply",
    ),
    (
      "alpaca",
      "comparison",
      {"instruction": "q", "output": "a"},
      "this format holds no comparisons",
    ),
    (
      "alpaca",
      "demonstration",
      {"instruction": ["q"], "input": "x", "output": "a"},
      "instruction, input: texts are expected",
    ),
    (
      "alpaca",
      "demonstration",
      {"instruction": "q", "input": 0, "output": "a"},
      "instruction, input: texts are expected",
    ),
    ("messages", "demonstration", {"messages": []}, "messages: a list of {role, content} objects"),
    (
      "messages",
      "demonstration",
      {"messages": [{"role": "tool", "content": "x"}, say("a")]},
      "messages[0].role: 'tool'",
    ),
    (
      "messages",
      "demonstration",
      {"messages": [{"role": "user"}, say("a")]},
      "role and content must be texts",
    ),
    ("messages", "demonstration", {"messages": [ASK]}, "the last message must be the assistant's"),
  ],
)
def test_what_is_wrong_is_named_with_its_line(spelling, kind, row, message):
  with pytest.raises(UserError) as error:
    records.parse([row], kind, formats.SPELLINGS[spelling], name="f.jsonl")
  assert str(error.value).startswith("f.jsonl:1: ") and message in str(error.value)


values = st.recursive(
  st.none() | st.integers() | st.text(max_size=5) | st.just(ASK) | st.just(say("x")),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner)
  ),
  max_leaves=6,
)
names = st.sampled_from(
  ["prompt", "chosen", "rejected", "messages", "instruction", "input", "output"]
)


@settings(deadline=None, max_examples=200)
@given(
  row=st.dictionaries(names, values),
  spelling=st.sampled_from(list(formats.SPELLINGS)),
  kind=st.sampled_from(["comparison", "demonstration", "prompt", "text"]),
)
def test_any_row_gives_records_or_a_user_error(row, spelling, kind):
  try:
    records.parse([row], kind, formats.SPELLINGS[spelling])
  except UserError as error:
    assert str(error)
