"""Chat templates by hand: which tokens are prompt, which carry loss, and what is refused."""

import json

import numpy as np
import pytest

from instructjax.data.batches import packing, pipeline
from instructjax.data.batches.counts import Counts, sentence
from instructjax.data.records import formats, records
from instructjax.data.records.records import Comparison, Demonstration, Prompt
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer, named
from instructjax.errors import UserError

BOS, EOS, PAD = 1, 2, 3
NAMES = {"<s>": BOS, "</s>": EOS, "<pad>": PAD}
letters = named(lambda text: [ord(letter) for letter in text], NAMES)
TOK = Tokenizer(
  letters, lambda ids: "".join(map(chr, ids)), 128, (EOS,), (PAD,), (BOS,), "letters", NAMES
)
PLAIN = (
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ 'A' + m.content + "
  "eos_token + '\n' }}"
  "{% else %}{{ m.role[0] + m.content + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt "
  "%}A{% endif %}"
)
MARKED = PLAIN.replace(
  "{{ 'A' + m.content + eos_token + '\n' }}",
  "A{% generation %}{{ m.content + eos_token }}{% endgeneration %}{{ '\n' }}",
)
SAY = lambda role, content: {"role": role, "content": content}
CHAT = [
  SAY("system", "k"),
  SAY("user", "q"),
  SAY("assistant", "ab"),
  SAY("user", "r"),
  SAY("assistant", "cd"),
]
ids = lambda text: letters(text)


def template(text=PLAIN, tokenizer=TOK):
  return chat.load("t.jinja", text, {}, tokenizer)


@pytest.fixture
def demo():
  return records.parse([{"messages": CHAT}], "demonstration", formats.messages, name="d")


@pytest.mark.parametrize("text", [PLAIN, MARKED])
def test_every_reply_and_its_stop_id_carry_loss_and_nothing_else(demo, text):
  (row,) = pipeline.demonstrations(demo, TOK, prompt=20, response=9, template=template(text))
  assert row.ids.tolist() == ids("<s>sk\nuq\nAab</s>\nur\nAcd</s>")
  assert row.ids[row.mask].tolist() == ids("ab</s>cd</s>")
  assert row.start == len(ids("<s>sk\nuq\nAab</s>\nur\nA"))
  batch = pipeline.pad_demonstrations([row, pipeline.Row(np.asarray([9, 9]), 1)], length=20)
  assert np.asarray(batch.tokens[0])[np.asarray(batch.mask[0])].tolist() == ids("ab</s>cd</s>")
  assert batch.mask[1].tolist() == [False, True] + [False] * 18


def test_the_prompt_of_a_rollout_is_the_prompt_of_training(demo):
  (row,) = pipeline.demonstrations(demo, TOK, prompt=20, response=9, template=template())
  prompts = records.parse([{"prompt": CHAT[:-1]}], "prompt")
  (start,) = pipeline.prompts(prompts, TOK, prompt=20, template=template())
  (group,) = pipeline.comparisons(
    records.parse(
      [{"prompt": CHAT[:-1], "completions": ["cd", "x"], "ranks": [1, 2]}], "comparison"
    ),
    TOK,
    prompt=20,
    response=9,
    template=template(),
  )
  assert start.ids.tolist() == row.ids[: row.start].tolist()
  assert group.rows[0].ids.tolist() == row.ids.tolist()
  assert group.rows[1].ids.tolist() == [*start.ids.tolist(), *ids("x</s>")]
  (single,) = pipeline.prompts([Prompt("q")], TOK, prompt=20, template=template())
  assert single.ids.tolist() == ids("<s>uq\nA")


def test_a_long_reply_is_cut_with_or_without_its_end():
  rows = pipeline.demonstrations(
    [Demonstration("q", "abcd")], TOK, prompt=9, response=3, template=template()
  )
  assert rows[0].ids.tolist() == ids("<s>uq\nAabc") and rows[0].mask.sum() == 3
  (group,) = pipeline.comparisons(
    [Comparison("q", ("abcd", "a"), (1, 2))], TOK, prompt=9, response=3, template=template()
  )
  assert [row.ids.tolist()[5:] for row in group.rows] == [ids("ab</s>"), ids("a</s>")]


def test_without_a_template_a_chat_is_a_transcript(demo):
  assert demo[0].prompt == "k\n\nHuman: q\n\nAssistant: ab\n\nHuman: r\n\nAssistant:"
  (row,) = pipeline.demonstrations(demo, TOK, prompt=99, response=9)
  assert row.ids.tolist() == [BOS, *ids(demo[0].prompt + " cd</s>")]


def test_a_chat_is_written_and_read_again(tmp_path, demo):
  records.write(tmp_path / "d.jsonl", demo)
  assert json.loads((tmp_path / "d.jsonl").read_text())["prompt"] == CHAT[:-1]
  (again,) = records.read(tmp_path / "d.jsonl", "demonstration")
  assert (again.turns, again) == (demo[0].turns, demo[0])
  assert records.fingerprint([again]) == records.fingerprint(demo)


@pytest.mark.parametrize("text", [PLAIN, MARKED])
def test_the_loss_may_be_on_the_last_reply_alone(demo, text):
  numbers = Counts()
  (row,) = pipeline.demonstrations(
    demo, TOK, prompt=20, response=9, template=template(text), loss="last", counts=numbers
  )
  assert row.ids.tolist() == ids("<s>sk\nuq\nAab</s>\nur\nAcd</s>")
  assert row.ids[row.mask].tolist() == ids("cd</s>")
  assert numbers.unlearnt == 1 and "; 1 earlier replies are not learnt" in sentence(numbers)


def marked(**marks):
  """CHAT with a third question and answer, where the reply of a number has a mark."""
  messages = [dict(message) for message in (*CHAT, SAY("user", "t"), SAY("assistant", "ef"))]
  for number, mark in marks.items():
    messages[{"first": 2, "second": 4, "third": 6}[number]] |= mark
  return messages


@pytest.mark.parametrize("text", [PLAIN, MARKED])
@pytest.mark.parametrize(
  ("marks", "row_text", "learnt"),
  [
    ({"first": {"weight": 0}}, "Aab</s>\nur\nAcd</s>\nut\nAef</s>", "cd</s>ef</s>"),
    ({"second": {"train": False}}, "Aab</s>\nur\nAcd</s>\nut\nAef</s>", "ab</s>ef</s>"),
    ({"first": {"weight": 1}, "second": {"train": True}}, None, "ab</s>cd</s>ef</s>"),
    # What follows the last reply that is learnt teaches nothing.
    ({"third": {"weight": 0}}, "Aab</s>\nur\nAcd</s>", "ab</s>cd</s>"),
    ({"second": {"weight": 0}, "third": {"train": False}}, "Aab</s>", "ab</s>"),
  ],
)
def test_a_reply_may_be_left_out_of_the_loss(text, marks, row_text, learnt):
  records_of_chat = records.parse(
    [{"messages": marked(**marks)}], "demonstration", formats.messages
  )
  (row,) = pipeline.demonstrations(
    records_of_chat, TOK, prompt=40, response=9, template=template(text)
  )
  row_text = row_text or "Aab</s>\nur\nAcd</s>\nut\nAef</s>"
  assert row.ids.tolist() == ids("<s>sk\nuq\n" + row_text)
  assert row.ids[row.mask].tolist() == ids(learnt)


def test_marks_are_written_and_read_again(tmp_path):
  (record,) = records.parse(
    [{"messages": marked(first={"weight": 0})}], "demonstration", formats.messages
  )
  records.write(tmp_path / "d.jsonl", [record])
  row = json.loads((tmp_path / "d.jsonl").read_text())
  assert row["prompt"][2] == SAY("assistant", "ab") | {"train": False}
  (again,) = records.read(tmp_path / "d.jsonl", "demonstration")
  assert again.turns == record.turns


@pytest.mark.parametrize(
  ("marks", "problem"),
  [
    ({"first": {"weight": 0.5}}, "messages[2].weight: 0.5; give 1, or 0 for a reply to leave out"),
    ({"first": {"weight": True}}, "messages[2].weight: True; give 1"),
    ({"first": {"train": 0}}, "messages[2].train: 0; give true or false"),
    (
      {"first": {"weight": 0}, "second": {"weight": 0}, "third": {"train": False}},
      "messages: no reply is to be",
    ),
  ],
)
def test_marks_that_say_nothing_are_named(marks, problem):
  _, problems = records.scan([{"messages": marked(**marks)}], "demonstration", formats.messages)
  assert len(problems) == 1 and problems[0].startswith(f"data:1: {problem}")


def test_masks_stay_where_rows_are_packed():
  """Two chats in one row: of the first the last reply is learnt, of the second the first one."""
  chats = [
    {"messages": marked(**marks)}
    for marks in ({"first": {"weight": 0}}, {"second": {"train": False}, "third": {"train": False}})
  ]
  demonstrations = records.parse(chats, "demonstration", formats.messages)
  rows = pipeline.demonstrations(demonstrations, TOK, prompt=40, response=9, template=template())
  batch = pipeline.pad_demonstrations(rows, length=sum(len(row.ids) for row in rows))
  packed = packing.pack_batch(batch, rows=1, parts=2)
  tokens, mask = np.asarray(packed.tokens), np.asarray(packed.mask)
  assert tokens[0][mask[0]].tolist() == ids("cd</s>ef</s>ab</s>")
  assert not mask[1].any() and np.asarray(packed.valid)[0].max() == 2


def test_hh_transcripts_become_turns():
  row = {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: b", "rejected": None}
  row["rejected"] = row["chosen"][:-1] + "c"
  (pair,) = records.parse([row], "comparison", formats.hh)
  assert pair.turns == (SAY("user", "q"), SAY("assistant", "a"), SAY("user", "r"))
  assert pair.prompt == "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"


@pytest.mark.parametrize(
  ("row", "problem"),
  [
    ({"prompt": "a</s>b", "completion": "c"}, "d:1: prompt: holds the special tokens '</s>'"),
    ({"prompt": "a", "completion": "<pad>"}, "d:1: completion: holds the special tokens '<pad>'"),
    (
      {"prompt": [SAY("user", "x<s>")], "completion": "c"},
      "d:1: prompt: messages[0].content: holds the special tokens '<s>'",
    ),
    ({"prompt": CHAT[:3], "completion": "c"}, "the last message is the assistant's"),
    ({"prompt": "abcdefgh", "completion": "c"}, "d:1: prompt: 12 tokens, the limit is 9"),
  ],
)
def test_what_is_wrong_is_named(row, problem):
  demonstrations = records.parse([row], "demonstration", name="d")
  with pytest.raises(UserError) as error:
    pipeline.demonstrations(
      demonstrations, TOK, prompt=9, response=9, name="d", template=template()
    )
  assert problem in str(error.value)


@pytest.mark.parametrize(
  ("prompt", "problem"),
  [
    ("abcdefgh", "c:1: prompt: 12 tokens, the limit is 9"),
    ("a</s>", "c:1: prompt: holds the special tokens '</s>'"),
  ],
)
def test_what_is_wrong_with_the_prompt_of_a_comparison_is_named_once(prompt, problem):
  comparison = Comparison(prompt, ("a", "b", "c"), (1, 2, 3))
  with pytest.raises(UserError) as error:
    pipeline.comparisons([comparison], TOK, prompt=9, response=9, name="c", template=template())
  assert str(error.value).startswith(problem)
  assert "\n" not in str(error.value)


DROPS = PLAIN.replace(
  "m.content + eos", "('' if not loop.last and m.role == 'assistant' else m.content) + eos"
)


@pytest.mark.parametrize(
  ("text", "problem"),
  [
    ("{% if %}", r"t.jinja:1: not a Jinja template"),
    ("{{ raise_exception('no') }}", "cannot render it .no."),
    (PLAIN.replace("eos_token", "'<pad>'"), r"closes a reply with '<pad>', the stop ids are \[2\]"),
    (PLAIN.replace(" + eos_token", ""), "closes a reply with 'no special token'"),
    (
      MARKED.replace(" + eos_token }}{% endgeneration %}", " }}{% endgeneration %}{{ eos_token }}"),
      "stands before '</s>'",
    ),
    (
      PLAIN.replace(
        "{% if add_generation_prompt %}A{% endif %}", "{% if add_generation_prompt %}B{% endif %}"
      ),
      "rewrites",
    ),
  ],
)
def test_templates_that_cannot_be_used(text, problem):
  with pytest.raises(UserError, match=problem):
    template(text)


def test_a_template_that_drops_earlier_replies_is_named_with_the_line(demo):
  with pytest.raises(UserError, match=r"d:1: prompt: the chat template rewrites .* messages\[3\]"):
    pipeline.demonstrations(demo, TOK, prompt=20, response=9, name="d", template=template(DROPS))


def test_a_template_cannot_reach_python():
  with pytest.raises(UserError, match="cannot render"):
    template("{{ ''.__class__.__mro__[1].__subclasses__() }}")


def test_where_templates_are_found(tmp_path):
  config = {"chat_template": "a", "bos_token": {"content": "<b>"}, "eos_token": None}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</b>"}')
  assert chat.find(tmp_path) == ("a", {"bos_token": "<b>", "eos_token": "</b>"})
  (tmp_path / "chat_template.jinja").write_text("b")
  assert chat.find(tmp_path / "tokenizer.json")[0] == "b"
  (tmp_path / "chat_template.jinja").unlink()
  (tmp_path / "tokenizer_config.json").write_text(
    '{"chat_template": [{"name": "tools", "template": "x"}]}'
  )
  with pytest.raises(UserError, match="the chat templates tools and none named 'default'"):
    chat.find(tmp_path)
  gguf = {
    "tokenizer.chat_template": "c",
    "tokenizer.ggml.tokens": ["x", "<e>"],
    "tokenizer.ggml.eos_token_id": 1,
  }
  assert chat.find(gguf) == ("c", {"eos_token": "<e>"})


def test_messages_as_prompts_may_end_with_the_user():
  chats = [CHAT[:-1], CHAT]
  prompts = records.parse(
    [{"messages": messages} for messages in chats], "prompt", formats.messages
  )
  assert [record.turns for record in prompts] == [tuple(CHAT[:-1])] * 2


def test_replies_that_share_a_token_with_the_prompt_are_cut_there():
  """The ids of a prompt need not be the first ids of the whole text.

  In this tokenizer two line ends are one token, unless a letter follows the second.
  """
  pair = 5

  def encode(text):
    ids, at = [], 0
    while at < len(text):
      double = text.startswith("\n\n", at) and not text[at + 2 : at + 3].isalpha()
      ids.append(pair if double else ord(text[at]))
      at += 2 if double else 1
    return ids

  tokenizer = TOK._replace(encode=named(encode, NAMES))
  text = PLAIN.replace("'A' + m.content", "'A\n\n' + m.content").replace("%}A{%", "%}A\n\n{%")
  compiled = chat.load("t.jinja", text, {}, tokenizer)
  turns = tuple(CHAT[:-1])
  ids, mask, start = chat.reply(compiled, tokenizer, records.transcript(turns), turns, "cd")
  assert ids.count(pair) == 2
  assert ids[:start] == chat.head(compiled, tokenizer, records.transcript(turns), turns)
  first = chat.head(compiled, tokenizer, records.transcript(turns[:2]), turns[:2])
  assert ids[: len(first)] == first and first[-1] == pair
  assert [i for i, marked in zip(ids, mask) if marked] == [
    ord("a"),
    ord("b"),
    EOS,
    ord("c"),
    ord("d"),
    EOS,
  ]


@pytest.mark.parametrize(
  ("name", "text", "problem"),
  [
    ("tokenizer_config.json", "[]", "holds no JSON object"),
    ("tokenizer_config.json", '{"chat_template": 3}', "'chat_template' is 3; a text, or a list"),
    ("tokenizer_config.json", '{"chat_template": [3]}', "'chat_template' is "),
    ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}', "'chat_template' is "),
    ("special_tokens_map.json", "{", "malformed JSON"),
    ("special_tokens_map.json", '{"bos_token": "\\ud800"}', "surrogates not allowed"),
  ],
)
def test_files_of_a_folder_that_say_nonsense(tmp_path, name, text, problem):
  (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=problem) as error:
    chat.find(tmp_path)
  assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
  "change", [{"bos_token_id": 9}, {"bos_token_id": "1"}, {"tokens": 3}, {"tokens": [4]}]
)
def test_gguf_metadata_that_say_nonsense(change):
  metadata = {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.bos_token_id": 0}
  assert chat.find(metadata)[1] == {"bos_token": "a"}
  changed = {f"tokenizer.ggml.{key}": value for key, value in change.items()}
  with pytest.raises(UserError, match=r"tokenizer\.ggml\.bos_token_id is "):
    chat.find(metadata | changed)
  with pytest.raises(UserError, match=r"tokenizer\.chat_template is 3"):
    chat.find({"tokenizer.chat_template": 3})


def test_a_template_that_never_ends_is_one_line(monkeypatch):
  text = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
  monkeypatch.setattr(chat.jinja, "STEPS", 1000)
  with pytest.raises(UserError, match=r"^t\.jinja: the chat template cannot render it \(it takes"):
    chat.load("t.jinja", text, {}, TOK)
