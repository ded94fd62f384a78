"""Public feedback as K-wise comparisons with results worked by hand, and mappings of fields."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data.records import records, sources, spellings
from instructjax.data.records.labels import ranks
from instructjax.data.records.named import LAYOUTS
from instructjax.data.records.records import Comparison, Demonstration, Prompt
from instructjax.errors import UserError

SPELL = {name: layout.spell for name, layout in LAYOUTS.items()}


def test_ranks_have_no_gaps_and_equal_scores_tie():
  assert ranks([3, 5, 3, 1]) == [2, 1, 2, 3]


def test_ultrafeedback_in_its_two_forms():
  objects = {
    "instruction": "q",
    "source": "s",
    "completions": [
      {"response": "a", "overall_score": 7.5},
      {"response": "b", "overall_score": "8"},
      {"response": "c", "overall_score": 7.5},
    ],
  }
  lists = {"instruction": "q", "generations": ["a", "b", "c"], "ratings": [3.0, 4.0, 3.0]}
  for row in (objects, lists):
    # The source of a row is ours too.
    source = row.get("source")
    assert records.parse([row], "comparison", SPELL["ultrafeedback"]) == [
      Comparison("q", ("a", "b", "c"), (2, 1, 2), source=source)
    ]
    assert records.parse([row], "demonstration", SPELL["ultrafeedback"]) == [
      Demonstration("q", "b", source=source)
    ]
    assert records.parse([row], "prompt", SPELL["ultrafeedback"]) == [Prompt("q", source=source)]


def test_summarize_from_feedback_keeps_the_labeler():
  row = {
    "info": {"id": "t3", "post": "A post. ", "article": None},
    "choice": 1,
    "worker": "w7",
    "summaries": [{"text": " one", "policy": "ref"}, {"text": " two"}],
  }
  assert records.parse([row], "comparison", SPELL["summarize_feedback"]) == [
    Comparison("A post.\n\nTL;DR:", ("one", "two"), (2, 1), labeler="w7")
  ]
  assert records.parse([row], "demonstration", SPELL["summarize_feedback"]) == [
    Demonstration("A post.\n\nTL;DR:", "two")
  ]


def message(name, parent, role, text, rank=None, **more):
  return {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": rank, **more}


FLAT = [  # out of order on purpose
  message("a2", "q", "assistant", "bad", 2.0),
  message("q", None, "prompter", "hello"),
  message("a0", "q", "assistant", "good", 0.0),
  message("a1", "q", "assistant", "fair", 1.0),
  message("a3", "q", "assistant", "gone", 3.0, deleted=True),
  message("more", "a0", "prompter", "and now?"),
  message("b", "more", "assistant", "only one"),
]
HELLO = "\n\nHuman: hello\n\nAssistant:"
MORE = f"{HELLO} good\n\nHuman: and now?\n\nAssistant:"


def tree(name="q"):
  """Returns a message of FLAT with its replies inside."""
  message = next(row for row in FLAT if row["message_id"] == name)
  fields = {key: value for key, value in message.items() if key != "parent_id"}
  replies = [row["message_id"] for row in FLAT if row["parent_id"] == name]
  return {**fields, "replies": [tree(reply) for reply in replies]}


@pytest.mark.parametrize(
  "rows", [FLAT, [{"message_tree_id": "q", "prompt": tree()}]], ids=["flat", "nested"]
)
def test_open_assistant_siblings_become_comparisons(rows):
  first = [{"role": "user", "content": "hello"}]
  second = [
    *first,
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "and now?"},
  ]
  # Both chats are of the tree that begins with q.
  first_fields = {"id": "q", "group": "q", "turns": tuple(first)}
  second_fields = {"id": "more", "group": "q", "turns": tuple(second)}
  assert records.parse(rows, "comparison", SPELL["oasst"]) == [
    Comparison(HELLO, ("bad", "good", "fair"), (3, 1, 2), **first_fields)
  ]
  assert records.parse(rows, "demonstration", SPELL["oasst"]) == [
    Demonstration(HELLO, "good", **first_fields),
    Demonstration(MORE, "only one", **second_fields),
  ]
  assert records.parse(rows, "prompt", SPELL["oasst"]) == [
    Prompt(HELLO, **first_fields),
    Prompt(MORE, **second_fields),
  ]


def test_trees_with_holes_are_named_with_their_lines():
  rows = [
    *FLAT,
    message("x", "nobody", "assistant", "t"),
    message("q", None, "prompter", "again"),
    {"role": "prompter"},
    message("c1", "c2", "prompter", "t"),
    message("c2", "c1", "assistant", "t"),
    "no object",
  ]
  _, problems = records.scan(rows, "comparison", SPELL["oasst"], name="f")
  expected = {
    8: "there is no message 'nobody'",
    9: "'q' appears twice",
    10: "message_id: text",
    11: "circle",
    12: "circle",
    13: "object",
  }
  lines = [int(problem.split(":")[1]) for problem in problems]
  assert sorted(lines) == sorted(expected)
  for line, problem in zip(lines, problems, strict=True):
    assert expected[line] in problem


@pytest.mark.parametrize(
  ("name", "row", "message"),
  [
    (
      "ultrafeedback",
      {"instruction": "q", "completions": [{"response": "a"}] * 2},
      "completions[0].overall_score",
    ),
    (
      "ultrafeedback",
      {"instruction": "q", "generations": ["a", "b"], "ratings": [1]},
      "ratings: a list of 2 numbers",
    ),
    (
      "ultrafeedback",
      {"instruction": "q", "generations": ["a", "b"], "ratings": [1, "nan"]},
      "ratings[1]: a number",
    ),
    (
      "summarize_feedback",
      {"info": {"post": "p"}, "summaries": [], "choice": 0},
      "summaries: a list of two",
    ),
    (
      "summarize_feedback",
      {"info": {"post": "p"}, "summaries": [{"text": "a"}] * 2, "choice": 2},
      "choice: 0 or 1",
    ),
  ],
)
def test_what_is_wrong_is_named(name, row, message):
  with pytest.raises(UserError) as caught:
    records.parse([row], "comparison", SPELL[name], name="f")
  assert str(caught.value).startswith("f:1: ") and message in str(caught.value)


VALUES = st.recursive(
  st.none()
  | st.integers(-1, 3)
  | st.floats()
  | st.sampled_from(["q", "prompter", "assistant", "7"])
  | st.booleans(),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(
      st.sampled_from(
        ["text", "response", "post", "message_id", "role", "overall_score", "replies"]
      ),
      inner,
    )
  ),
  max_leaves=8,
)
NAMES = st.sampled_from(
  [
    "instruction",
    "completions",
    "generations",
    "ratings",
    "info",
    "summaries",
    "choice",
    "worker",
    "prompt",
    "message_id",
    "parent_id",
    "role",
    "text",
    "rank",
    "replies",
  ]
)


@settings(deadline=None, max_examples=200)
@given(
  rows=st.lists(st.dictionaries(NAMES, VALUES), max_size=4),
  kind=st.sampled_from(sorted(records.KINDS)),
  name=st.sampled_from(["ultrafeedback", "summarize_feedback", "oasst"]),
)
def test_any_rows_give_records_or_problems(rows, kind, name):
  good, problems = records.scan(rows, kind, SPELL[name], name="x")
  assert all(problem.startswith("x:") for problem in problems if rows)
  if name != "oasst" and rows:
    assert len(good) + len({problem.split(":")[1] for problem in problems}) == len(rows)


# --- fields ---


def test_fields_map_any_source(tmp_path):
  path = tmp_path / "x.jsonl"
  path.write_text(
    '{"q": "Q", "answers": [{"t": "A"}], "body": "B", "good": "g", "bad": "b", "prompt": "own"}\n'
  )

  def load(kind, fields):
    return sources.load(path, kind, spellings.choose("native", kind, fields))

  both = "prompt=q, completion=answers.0.t, text=body"
  assert load("demonstration", both) == [Demonstration("Q", "A")]
  # What a prompt file has besides may be what a reward needs, such as the right answer.
  others = {"answers": [{"t": "A"}], "body": "B", "good": "g", "bad": "b"}
  assert load("prompt", both) == [Prompt("Q", fields=others)]
  assert load("text", dict(pair.strip().split("=") for pair in both.split(",")))[0].text == "B"
  assert load("comparison", "chosen=good,rejected=bad") == [Comparison("own", ("g", "b"), (1, 2))]
  assert spellings.choose("", "text", "prompt=q") is None  # the mapping is for another kind
  with pytest.raises(UserError, match=r"x.jsonl:1: answers.3.t: missing; the row has answers"):
    load("demonstration", "prompt=q,completion=answers.3.t")


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("native", "prompt", "give OURS=THEIRS"),
    ("native", "promt=q", "did you mean 'prompt'"),
    ("native", "prompt=a,prompt=b", "is named twice"),
    ("alpaca", "prompt=q", "give one of them"),
    ("native", "prompt=q,chosen=a", "give chosen and rejected"),
    ("xml", "", "config.data.spelling='xml': known are native"),
  ],
)
def test_fields_that_cannot_be_meant(name, fields, message):
  with pytest.raises(UserError, match=message):
    spellings.choose(name, "comparison", fields)
