"""Chat templates against `transformers`: the same text, the same ids, the same marks of what the
assistant wrote.
"""

import json

import pytest

from instructjax.data.records import records
from instructjax.data.tokens import chat, tokenizers

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip("transformers")

CHATML = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
  "'<|im_end|>' + '\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = """{%- for message in messages %}
  {%- if message.role == 'assistant' %}
    {{- '<|im_start|>assistant\n' }}{% generation %}
    {{- message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
  {%- else %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = (
  "{% set loop_messages = messages %}{% for message in loop_messages %}"
  "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
  "message['content'] | trim"
  " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ "
  "content }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif "
  "%}"
)
GEMMA = (
  "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
  "supported') }}{% endif %}"
  "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('Roles must alternate') }}{% endif %}{% set role = 'model' if "
  "message['role'] == 'assistant' else"
  " message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
  "'<end_of_turn>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
  "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + "
  "message['content'] +"
  " ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token "
  "}}{% endif %}{% endfor %}"
)
CASES = {
  "chatml": (CHATML, "<|im_end|>"),
  "marked": (MARKED, "<|im_end|>"),
  "llama-3": (LLAMA3, "<|eot_id|>"),
  "gemma": (GEMMA, "<end_of_turn>"),
  "mistral": (MISTRAL, "</s>"),
}
NAMES = [
  "<s>",
  "</s>",
  "<|im_start|>",
  "<|im_end|>",
  "<|start_header_id|>",
  "<|end_header_id|>",
  "<|eot_id|>",
  "<start_of_turn>",
  "<end_of_turn>",
]
SAID = [
  ("user", "What is 2 + 2?"),
  ("assistant", "It is 4.\nAgain: 4"),
  ("user", "  Sure? é🎉"),
  ("assistant", "Yes, 4!"),
]
CHAT = [{"role": role, "content": content} for role, content in SAID]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
  """(template, our tokenizer, theirs) of one folder."""
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

  text, end = CASES[request.param]
  folder = tmp_path_factory.mktemp("chat")
  made = Tokenizer(models.BPE())
  made.pre_tokenizer, made.decoder = (
    pre_tokenizers.ByteLevel(add_prefix_space=False),
    decoders.ByteLevel(),
  )
  if (
    request.param == "llama-3"
  ):  # splits line ends as Llama 3 does; GPT-2's way, "\n\n" before a word is two tokens
    split = pre_tokenizers.Split(Regex(r"\s*[\r\n]+| ?[^\s]+|\s+(?!\S)|\s+"), "isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  trainer = trainers.BpeTrainer(
    vocab_size=320, special_tokens=NAMES, initial_alphabet=alphabet, show_progress=False
  )
  made.train_from_iterator(
    [content for _, content in SAID] * 5 + ["user\n\n assistant\n model"] * 5, trainer
  )
  made.save(str(folder / "tokenizer.json"))
  config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": end}
  in_config = request.param in ("llama-3", "mistral")
  several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": text}]
  config |= {"chat_template": several if request.param == "mistral" else text} if in_config else {}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  if not in_config:
    (folder / "chat_template.jinja").write_text(text)
  ours = tokenizers.load(folder)
  found, tokens = chat.find(folder)
  template = chat.load("t", found, tokens, ours)
  return template, ours, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("prompt", [False, True])
def test_text_and_ids(case, size, prompt):
  template, ours, theirs = case
  text = chat.render(template, CHAT[:size], prompt=prompt)
  assert text == theirs.apply_chat_template(
    CHAT[:size], tokenize=False, add_generation_prompt=prompt
  )
  assert (
    ours.encode(text)
    == theirs.apply_chat_template(CHAT[:size], add_generation_prompt=prompt)["input_ids"]
  )


def test_rows_are_the_ids_of_transformers_up_to_the_stop_id(case):
  template, ours, theirs = case
  ids, mask, start = chat.reply(
    template, ours, records.transcript(CHAT[:3]), tuple(CHAT[:3]), SAID[3][1]
  )
  assert ids == theirs.apply_chat_template(CHAT)["input_ids"][: len(ids)]
  assert (
    ids[:start] == theirs.apply_chat_template(CHAT[:3], add_generation_prompt=True)["input_ids"]
  )
  learnt = theirs.decode([i for i, marked in zip(ids, mask, strict=True) if marked])
  end = theirs.convert_ids_to_tokens(template.end)
  assert [part.strip() for part in learnt.split(end)] == [SAID[1][1], SAID[3][1], ""]
  if "endgeneration" in template.text:
    found = theirs.apply_chat_template(CHAT, return_assistant_tokens_mask=True)["assistant_masks"]
    assert mask == [bool(one) for one in found[: len(mask)]]
    assert not any(found[len(mask) :])
