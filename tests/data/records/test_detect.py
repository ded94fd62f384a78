"""How files are read that nobody named a spelling for, and what is said about it."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructjax.data.records import detect, named, sources, spellings
from instructjax.data.records.detect import Notes
from instructjax.data.records.records import Comparison, Demonstration, Prompt
from instructjax.errors import UserError

ASK = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
CHAT = "\n\nHuman: q\n\nAssistant:"


@pytest.fixture
def load(tmp_path):
  """Returns a function from rows to (their records, what is said, without the folder)."""

  def call(*rows, kind=None, spelling="", fields="", **options):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = kind or sources.kind_of(path)
    notes = Notes()
    layout = spellings.choose(spelling, kind, fields, place="--")
    rows_read = sources.load(path, kind, layout, notes=notes, place="--", **options)
    lines = [line.removeprefix(f"{tmp_path}/") for line in detect.sentences(notes, path)]
    return rows_read, lines

  return call


PAIR = Comparison(CHAT, ("good", "bad"), (1, 2))
# A row of each layout, the spelling that it is read as, its columns, and the record.
LAYOUTS = {
  "hh": (
    {"chosen": f"{CHAT} good", "rejected": f"{CHAT} bad"},
    "hh (fields chosen, rejected)",
    PAIR,
  ),
  "TRL": (
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "preference (fields prompt, chosen, rejected)",
    Comparison("q", ("good", "bad"), (1, 2)),
  ),
  "TRL, chats without a prompt": (
    {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    "preference (fields chosen, rejected)",
    PAIR,
  ),
  "a prompt that the chats repeat": (
    {"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    "preference (fields prompt, chosen, rejected)",
    PAIR,
  ),
  "one reply each to a text": (
    {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]},
    "preference (fields prompt, chosen, rejected)",
    Comparison("q", ("good", "bad"), (1, 2)),
  ),
  "LLaMA-Factory's conversations": (
    {"conversations": [ASK], "chosen": GOOD, "rejected": BAD},
    "preference (fields conversations, chosen, rejected)",
    PAIR,
  ),
  "LLaMA-Factory's instructions": (
    {"instruction": "q", "input": "x", "chosen": "good", "rejected": "bad"},
    "preference (fields instruction, input, chosen, rejected)",
    Comparison("q\n\nx", ("good", "bad"), (1, 2)),
  ),
  "Alpaca": (
    {"instruction": "q", "input": "x", "output": "good"},
    "alpaca (fields instruction, input, output)",
    Demonstration("q\n\nx", "good"),
  ),
  "Alpaca with a history": (
    {"instruction": "q", "output": "good", "system": "s", "history": [["a", "b"]]},
    "alpaca (fields instruction, output, system, history)",
    Demonstration("s\n\nHuman: a\n\nAssistant: b\n\nHuman: q\n\nAssistant:", "good"),
  ),
  "Dolly": (
    {"instruction": "q", "context": "the passage", "response": "good"},
    "dolly (fields instruction, context, response)",
    Demonstration("q\n\nthe passage", "good"),
  ),
  "messages": (
    {"messages": [ASK, GOOD]},
    "messages (fields messages)",
    Demonstration(CHAT, "good"),
  ),
  "ShareGPT": (
    {
      "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
      "system": "s",
    },
    "conversations (fields conversations, system)",
    Demonstration(f"s{CHAT}", "good"),
  ),
  "prompt and completion as chats": (
    {"prompt": [ASK], "completion": [GOOD]},
    "prompt_completion (fields prompt, completion)",
    Demonstration(CHAT, "good"),
  ),
  "KTO": (
    {"prompt": "q", "completion": "good", "label": True},
    "prompt_completion (fields prompt, completion, label)",
    Demonstration("q", "good"),
  ),
  "UltraFeedback": (
    {
      "instruction": "q",
      "completions": [
        {"response": "good", "overall_score": 2},
        {"response": "bad", "overall_score": 1},
      ],
    },
    "ultrafeedback (fields instruction, completions)",
    Comparison("q", ("good", "bad"), (1, 2)),
  ),
  "SHP": (
    {"history": "q", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0},
    "shp (fields history, human_ref_A, human_ref_B, labels)",
    Comparison("q", ("bad", "good"), (2, 1)),
  ),
  "WebGPT": (
    {
      "question": {"full_text": "q", "id": "7"},
      "answer_0": "bad",
      "answer_1": "good",
      "score_0": -1,
      "score_1": 1,
    },
    "webgpt (fields question, answer_0, answer_1, score_0, score_1)",
    Comparison("q", ("bad", "good"), (2, 1)),
  ),
  "PandaLM": (
    {
      "instruction": "q",
      "input": "",
      "response1": "bad",
      "response2": "good",
      "annotator1": 2,
      "annotator2": 0,
      "annotator3": 1,
      "annotator4": 2,
    },
    "pandalm (fields instruction, input, response1, response2, annotator1, annotator2, annotator3, "
    "annotator4)",
    Comparison("q", ("bad", "good"), (2, 1)),
  ),
  "FineGrainedRLHF": (
    {
      "question": "q",
      "passages": [["title", "one.", "two."]],
      "prediction 1": "a",
      "prediction 2": "b",
      "prediction 3": "c",
      "preference": [1, 2, 1],
    },
    "fine_grained (fields question, passages, prediction 1, prediction 2, prediction 3, "
    "preference)",
    Comparison("title one. two.\n\nq", ("a", "b", "c"), (), pairs=((0, 1), (2, 0), (1, 2))),
  ),
  "Chatbot Arena": (
    {
      "conversation_a": [ASK, BAD],
      "conversation_b": [ASK, GOOD],
      "winner": "model_b",
      "model_a": "m",
      "model_b": "n",
      "judge": "arena_user_9",
    },
    "arena (fields conversation_a, conversation_b, winner, model_a, model_b, judge)",
    Comparison(
      CHAT,
      ("bad", "good"),
      (2, 1),
      labeler="arena_user_9",
      sources=({"model": "m"}, {"model": "n"}),
    ),
  ),
  "HelpSteer's preferences": (
    {"prompt": "q", "response_1": "good", "response_2": "bad", "preference_strength": -3},
    "helpsteer (fields prompt, response_1, response_2, preference_strength)",
    Comparison("q", ("good", "bad"), (1, 2)),
  ),
  "HelpSteer 3": (
    {"context": [ASK], "response1": "bad", "response2": "good", "overall_preference": 1},
    "helpsteer (fields context, response1, response2, overall_preference)",
    Comparison(CHAT, ("bad", "good"), (2, 1)),
  ),
  "summarize from feedback": (
    {
      "info": {"post": "q"},
      "summaries": [{"text": " good"}, {"text": " bad"}],
      "choice": 0,
      "worker": "w",
    },
    "summarize_feedback (fields info, summaries, choice, worker)",
    Comparison("q\n\nTL;DR:", ("good", "bad"), (1, 2), labeler="w"),
  ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_public_layout_is_read_and_said(load, layout):
  row, spelling, record = LAYOUTS[layout]
  assert load(row) == ([record], [f"x.jsonl: read as --spelling={spelling}"])
  name = spelling.split(" ")[0]
  # What is named is not said.
  assert load(row, spelling=name) == ([record], [])


def test_rows_of_one_prompt_are_one_comparison_of_helpsteer(load):
  def rated(prompt, response, helpfulness):
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": 1}

  rows = [rated("p", "a", 1), rated("p", "b", 3), rated("q", "c", 2)]
  assert load(*rows) == (
    [Comparison("p", ("a", "b"), (2, 1))],
    [
      "x.jsonl: read as --spelling=helpsteer (fields prompt, response, helpfulness)",
      "x.jsonl: left out: verbosity (3 of 3 rows)",
    ],
  )
  demonstrations, _ = load(*rows, kind="demonstration")
  assert demonstrations == [Demonstration("p", "b"), Demonstration("q", "c")]


def test_open_assistant_is_known_by_its_messages(load):
  rows = [
    {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q", "message_tree_id": "1"},
    {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a", "rank": 0},
    {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "b", "rank": 1},
  ]
  (record,), lines = load(*rows)
  assert (record.completions, record.ranks) == (("a", "b"), (1, 2))
  assert lines[0].startswith("x.jsonl: read as --spelling=oasst (fields message_id,")


@pytest.mark.parametrize(
  ("row", "record"),
  [
    ({"prompt": "p"}, Prompt("p")),
    ({"prompt": [ASK]}, Prompt(CHAT)),
    ({"prompt": "p", "completion": "c"}, Demonstration("p", "c")),
    (
      {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]},
      Comparison("p", ("a", "b"), (1, 2)),
    ),
  ],
)
def test_our_own_fields_are_read_without_a_word(load, row, record):
  assert load(row) == ([record], [])


def test_one_broken_row_does_not_change_what_a_file_is(load):
  row = {"instruction": "q", "output": "a"}
  with pytest.raises(UserError, match=r"x\.jsonl:1: output: missing; the row has instruction$"):
    load({"instruction": "q"}, row, row, kind="demonstration")


def test_our_own_columns_of_a_public_row_are_kept(load):
  row = {"instruction": "q", "output": "a", "id": 7, "user": "u", "consent": False, "source": {}}
  (record,), lines = load(row)
  assert record == Demonstration("q", "a", id="7", user="u", consent=False)
  assert lines == ["x.jsonl: read as --spelling=alpaca (fields instruction, output)"]


# --- hints ---


@pytest.mark.parametrize(
  ("row", "kind", "option"),
  [
    ({"question": "q", "answer": "a"}, "demonstration", "prompt=question,completion=answer"),
    ({"question": "q", "answer": "a"}, "prompt", "prompt=question"),
    ({"prompt": "q", "response": "a"}, "demonstration", "prompt=prompt,completion=response"),
    ({"prompt": "q", "answer": "a"}, "demonstration", "prompt=prompt,completion=answer"),
    (
      {"prompt": "q", "response_a": "a", "response_b": "b", "winner_a": 0, "winner_b": 1},
      "comparison",
      "prompt=prompt,completions=response_a|response_b,scores=winner_a|winner_b",
    ),
    (
      {"question": "q", "answers": {"text": ["a"]}, "answer": {"text": "b"}},
      "demonstration",
      "prompt=question,completion=answer.text",
    ),
    ({"title": "t", "content": "c"}, "text", "text=content"),
    (
      {"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
      "comparison",
      "prompt=system+question,chosen=chosen,rejected=rejected",
    ),
    (
      {"query": "q", "reply_a": "a", "reply_b": "b", "winner": "a"},
      "comparison",
      "prompt=query,completions=reply_a|reply_b,choice=winner",
    ),
    (
      {"query": "q", "reply_a": "a", "reply_b": "b", "winner": 1},
      "comparison",
      "prompt=query,completions=reply_a|reply_b,choice=winner,values=FIRST|SECOND|TIE",
    ),
    (
      {"query": "q", "reply1": "a", "reply2": "b", "rating1": 1, "rating2": 2},
      "comparison",
      "prompt=query,completions=reply1|reply2,scores=rating1|rating2",
    ),
    ({"a": "x", "b": 1}, "demonstration", "prompt=COLUMN,completion=COLUMN"),
  ],
)
def test_the_error_is_one_sentence_with_the_option(load, row, kind, option):
  with pytest.raises(UserError) as error:
    load(*[row] * 5, kind=kind)
  message = str(error.value)
  assert "\n" not in message
  assert f"its fields are {', '.join(row)}" in message
  # What a shell takes for a pipe is in quotes.
  assert message.endswith(f"--fields='{option}'" if "|" in option else f"--fields={option}")
  if "COLUMN" not in option and "FIRST" not in option:
    # What the sentence says does read the file.
    assert len(load(*[row] * 5, kind=kind, fields=option)[0]) == 5


@pytest.mark.parametrize(
  ("row", "kind", "message"),
  [
    (
      {"instruction": "q", "output": "a"},
      "comparison",
      "looks like --spelling=alpaca (fields instruction, output), which has demonstrations, "
      "prompts and no comparisons; give a file of comparisons",
    ),
    (
      {"prompt": "q", "completion": "a"},
      "comparison",
      "holds demonstrations (fields prompt, completion), no comparisons; give a file of "
      "comparisons",
    ),
    (
      {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2]},
      "demonstration",
      "holds comparisons (fields prompt, completions, ranks), no demonstrations",
    ),
  ],
)
def test_another_kind_of_record_is_said_once(load, row, kind, message):
  with pytest.raises(UserError) as error:
    load(*[row] * 5, kind=kind)
  assert f"x.jsonl: {message}" in str(error.value)
  assert "\n" not in str(error.value)


def test_a_slip_of_the_pen_is_said_of_its_row(load):
  with pytest.raises(UserError, match=r"x\.jsonl:1: usr: unknown field; did you mean 'user'"):
    load({"prompt": "q", "completion": "a", "usr": "x"}, kind="demonstration")
  with pytest.raises(
    UserError, match=r"x\.jsonl:1: compeltion: unknown field; did you mean 'compl"
  ):
    load({"prompt": "q", "compeltion": "a"}, kind="demonstration")


def test_further_columns_of_our_own_records_are_said_once(load):
  row = {"prompt": "q", "completion": "a", "user": "u", "url": "x", "score": 1}
  with pytest.raises(UserError) as error:
    load(*[row] * 5)
  fields = "prompt=prompt,completion=completion,user=user"
  assert str(error.value).endswith(
    "x.jsonl: url, score are no fields of a demonstration; leave out what you do not need with "
    f"--fields={fields}"
  )
  (record, *_), lines = load(*[row] * 5, kind="demonstration", fields=fields)
  assert record == Demonstration("q", "a", user="u")
  assert lines == ["x.jsonl: left out: url (5 of 5 rows), score (5)"]


def test_a_text_beside_a_chat_is_a_text(load):
  row = {"messages": [ASK, GOOD], "text": "t"}
  with pytest.raises(UserError, match=r"messages is no field of a text; leave out .*=text=text$"):
    load(row, kind="text")
  assert [record.text for record in load(row, kind="text", fields="text=text")[0]] == ["t"]


def test_a_pair_beside_a_prompt_is_no_prompt_alone(load):
  row = {"prompt": "q", "response_a": "a", "response_b": "b", "winner": "a"}
  assert detect.kind_of(row) is None
  assert detect.hint(row, None, "--").endswith(
    "--fields='prompt=prompt,completions=response_a|response_b,choice=winner'"
  )


# --- what turns labels round ---


def test_a_column_that_is_called_chosen_beside_the_choice_is_refused(load):
  row = {"question": "q", "answer_0": "a", "answer_1": "b", "score_0": 1.0, "score_1": 2.0}
  fields = "prompt=question,chosen=answer_0,rejected=answer_1"
  right = "prompt=question,completions=answer_0|answer_1,scores=score_0|score_1"
  with pytest.raises(UserError) as error:
    load(row, kind="comparison", fields=fields)
  assert str(error.value).endswith(
    "x.jsonl: answer_0 is not the better answer in every row, as score_0, score_1 say which one "
    f"is; read it with --fields='{right}'"
  )
  assert load(row, kind="comparison", fields=right)[0][0].ranks == (2, 1)


def test_a_column_that_says_that_it_is_the_better_one_is_taken(load):
  row = {"q": "p", "good_answer": "a", "bad_answer": "b", "score_a": 1, "score_b": 3, "label": "x"}
  fields = "prompt=q,chosen=good_answer,rejected=bad_answer"
  assert load(row, kind="comparison", fields=fields)[0] == [Comparison("p", ("a", "b"), (1, 2))]


@pytest.mark.parametrize(
  "row",
  [
    {"messages": [ASK, BAD]},
    {"prompt": "q", "completion": "bad"},
    {"instruction": "q", "output": "bad"},
    {"conversations": [ASK, BAD]},
  ],
)
@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_a_bad_answer_is_never_a_demonstration(load, row, column):
  good = row | {column: True}
  assert len(load(good, kind="demonstration")[0]) == 1
  with pytest.raises(UserError, match=rf"x\.jsonl:1: {column}: "):
    load(row | {column: False}, kind="demonstration")
  # Prompts are prompts, whatever became of them.
  if "completion" not in row:
    assert len(load(row | {column: False}, kind="prompt")[0]) == 1


def test_a_mapping_takes_no_bad_answer_either(load):
  fields = "prompt=q,completion=a"
  with pytest.raises(UserError, match="label: false, so the completion is a bad answer"):
    load({"q": "p", "a": "b", "label": False}, kind="demonstration", fields=fields)


def test_a_message_that_is_not_to_be_learned_is_no_target(load):
  chat = [ASK, BAD | {"weight": 0}, ASK, GOOD | {"weight": 1}]
  (record,), _ = load({"messages": chat}, kind="demonstration")
  assert record.completion == GOOD["content"]
  assert [turn.get("train", True) for turn in record.turns] == [True, False, True]
  (record,), _ = load({"messages": [*chat, ASK, BAD | {"train": False}]}, kind="demonstration")
  assert record.completion == GOOD["content"]
  with pytest.raises(UserError, match="no reply is to be learnt"):
    load({"messages": chat[:2]}, kind="demonstration")
  assert load({"messages": chat}, kind="prompt")[0]


# --- what is left out ---


def test_columns_are_counted_in_the_rows_that_have_a_value(load):
  row = {"instruction": "q", "output": "a", "topic": "t", "images": []}
  _, lines = load(row, row | {"images": ["i.png"]}, row | {"topic": ""})
  assert lines[1] == "x.jsonl: left out: topic (2 of 3 rows), images (1)"


def test_columns_that_a_mapping_leaves_out_are_named(load):
  row = {"q": {"text": "p", "id": 1}, "a": "b", "other": 0, "x\n": 1}
  _, lines = load(row, kind="demonstration", fields="prompt=q.text,completion=a")
  assert lines == [r"x.jsonl: left out: other (1 of 1 rows), x\n (1)"]


def test_several_files_are_said_in_one_line(tmp_path):
  for name in "abc":
    (tmp_path / f"{name}.jsonl").write_text('{"instruction": "q", "output": "a", "n": 1}\n')
  notes = Notes()
  source = f"{tmp_path}/*.jsonl"
  assert len(sources.load(source, "demonstration", notes=notes, place="--")) == 3
  assert detect.sentences(notes, source) == [
    f"{tmp_path}/a.jsonl and 2 more: read as --spelling=alpaca (fields instruction, output)",
    f"{source}: left out: n (3 of 3 rows)",
  ]


# --- empty completions, numbers as names ---


def test_an_empty_completion_is_ranked_where_it_is_asked_for(load):
  row = {"prompt": "q", "chosen": "a", "rejected": ""}
  with pytest.raises(UserError, match=r"completions\[1\]: empty"):
    load(row)
  records_read, _ = load(row, empty_completions=True)
  assert records_read == [Comparison("q", ("a", ""), (1, 2))]
  with pytest.raises(UserError, match="completion: empty"):
    load({"prompt": "q", "completion": ""}, kind="demonstration", empty_completions=True)
  with pytest.raises(UserError, match=r"completions\[1\]: text is expected"):
    load({"prompt": "q", "completions": ["a", False], "ranks": [1, 2]}, empty_completions=True)


def test_whole_numbers_name_what_texts_name(load):
  row = {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2], "id": 17, "user": 4}
  (record,), _ = load(row | {"labeler": 0})
  assert (record.id, record.user, record.labeler) == ("17", "4", "0")


# --- a spelling for each field ---


def test_a_spelling_for_each_field():
  text = "comparisons=hh,demonstrations=native"

  def choose(field, kind, fields=""):
    layout = spellings.choose(text, kind, fields, field=field)
    return layout.name if layout else None

  assert choose("comparisons", "comparison") == "hh"
  assert choose("demonstrations", "demonstration") == "native"
  assert choose("valid", "comparison") is None
  # A mapping is for the fields that have no spelling of their own.
  assert choose("comparisons", "comparison", "prompt=q,completion=a") == "hh"
  assert choose("prompts", "prompt", "prompt=q") == ""
  with pytest.raises(UserError, match="spelling='comparisons=xml': known are native, pref"):
    spellings.choose("comparisons=xml", "comparison", field="comparisons")
  with pytest.raises(UserError, match=r"give one name, or FIELD=NAME,\.\.\. such as"):
    spellings.choose("comparisons=hh,native", "comparison", field="comparisons")


# --- any records in any layout ---

FUZZ = settings(
  deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
  lambda text: text == text.strip()
)


def chat_of(texts):
  """Returns a chat of these texts by turns, the user first."""
  roles = ("user", "assistant")
  return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def said_by(message):
  """Returns a message as ShareGPT spells it."""
  names = {"user": "human", "assistant": "gpt"}
  return {"from": names[message["role"]], "value": message["content"]}


# How a prompt that is a chat, the better and the worse reply are written in layouts of comparisons,
# and a chat with its reply in those of demonstrations.
COMPARISONS = {
  "preference": lambda chat, good, bad: {"prompt": chat, "chosen": [good], "rejected": [bad]},
  "whole chats": lambda chat, good, bad: {"chosen": [*chat, good], "rejected": [*chat, bad]},
  "repeated": lambda chat, good, bad: {
    "prompt": chat,
    "chosen": [*chat, good],
    "rejected": [*chat, bad],
  },
  "conversations": lambda chat, good, bad: {
    "conversations": [said_by(turn) for turn in chat],
    "chosen": said_by(good),
    "rejected": said_by(bad),
  },
  "arena": lambda chat, good, bad: {
    "conversation_a": [*chat, good],
    "conversation_b": [*chat, bad],
    "winner": "model_a",
  },
}
DEMONSTRATIONS = {
  "messages": lambda chat, reply: {"messages": [*chat, reply]},
  "conversations": lambda chat, reply: {"conversations": [said_by(m) for m in [*chat, reply]]},
  "parts": lambda chat, reply: {
    "messages": [
      {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
      for m in [*chat, reply]
    ]
  },
  "prompt_completion": lambda chat, reply: {"prompt": chat, "completion": [reply]},
  "alpaca": lambda chat, reply: {
    "instruction": chat[-1]["content"],
    "output": reply["content"],
    "history": [[a["content"], b["content"]] for a, b in zip(chat[:-1:2], chat[1::2], strict=True)],
    "system": "",
  },
}
asked = st.lists(words, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2)


@FUZZ
@given(
  asked=asked,
  replies=st.lists(words, min_size=2, max_size=2, unique=True),
  layout=st.sampled_from([*COMPARISONS]),
)
def test_a_comparison_is_the_same_in_every_layout(load, asked, replies, layout):
  chat = chat_of(asked)
  good, bad = ({"role": "assistant", "content": text} for text in replies)
  (record,), _ = load(COMPARISONS[layout](chat, good, bad))
  assert (record.turns, record.completions, record.ranks) == (tuple(chat), tuple(replies), (1, 2))


@FUZZ
@given(asked=asked, reply=words, layout=st.sampled_from([*DEMONSTRATIONS]))
def test_a_demonstration_is_the_same_in_every_layout(load, asked, reply, layout):
  chat = chat_of(asked)
  row = DEMONSTRATIONS[layout](chat, {"role": "assistant", "content": reply})
  (record,), _ = load(row)
  assert record.completion == reply
  if layout == "alpaca" and len(chat) == 1:
    assert record.prompt == asked[0]
  else:
    assert record.turns == tuple(chat)


COLUMNS = {
  column for layout in named.LAYOUTS.values() if layout.columns for column in layout.columns
}


@FUZZ
@given(
  st.dictionaries(
    st.sampled_from(sorted(COLUMNS)),
    st.recursive(
      st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
      lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
      ),
      max_leaves=4,
    ),
    max_size=6,
  ),
  st.sampled_from(["demonstration", "comparison", "prompt", "text"]),
)
def test_any_columns_are_read_or_explained(load, row, kind):
  try:
    load(row, kind=kind)
  except UserError as error:
    assert str(error)
