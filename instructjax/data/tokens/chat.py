"""Chat templates: a tokenizer's own Jinja template turns messages into text as its model knows it.

The text is rendered as `transformers` renders it and becomes ids once; special tokens in it are
parsed as ids. A reply carries loss from its first token to the stop id that closes it, and what
stands before it is, id for id, the prompt from which a rollout starts:

  prompt of a reply   encode(render(messages before it, add_generation_prompt=True))
  its loss            the tokens of render(messages up to it) after that prompt, or those inside
                      {% generation %} where the template has such blocks; none for a reply that
                      its record, or config.data.loss, leaves out

A message that names a special token ("<|im_end|>") is an error: it would end or begin a turn.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from instructjax.data.records.records import Message, transcript
from instructjax.data.tokens import jinja
from instructjax.data.tokens.jinja import BEGIN, END
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.data.tokens.vocabulary import refusal
from instructjax.errors import UserError
from instructjax.settings.subjects import Loss
from instructjax.system import plain_json
from instructjax.system.plain_json import shown

OWN = "chat"  # the name of the tokenizer's own template
# The name of the one that a model was trained with, if any (`origin.natural_template`).
AUTO = "auto"
# The files of a model folder that hold templates and the names of special tokens.
JINJA = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
NAMES = "special_tokens_map.json"
# A template is tried on this chat before it is used.
PROBE = (
  {"role": "user", "content": "a"},
  {"role": "assistant", "content": "b"},
)
LONGEST_REASON = 300  # characters; a template may raise any text
Span = tuple[int, int]  # characters of a text: from, to


class Template(NamedTuple):
  """A compiled template.

  `end` is the stop id that closes a reply. `tokens` maps the variables that the text may use for
  special tokens, such as bos_token, to their names.
  """

  name: str
  text: str
  tokens: Mapping[str, str]
  compiled: jinja2.Template
  end: int


class ChatError(ValueError):
  """An error in one chat; the pipeline adds the line and the field."""


def about(template: Template) -> dict[str, str]:
  """Returns what a run keeps of its template."""
  return {"text": template.text, "fingerprint": hashlib.sha256(template.text.encode()).hexdigest()}


def ends(tokenizer: Tokenizer, template: Template | None) -> tuple[int, ...]:
  """Returns the ids that end a response.

  The first of them closes a response that was cut, for the reward model: in a chat it is the one
  that its template writes.
  """
  if template is None:
    return tokenizer.eos
  return (template.end, *(token for token in tokenizer.eos if token != template.end))


# --- finding ---


def find(source: str | Path | Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
  """Returns (template or None, names of special tokens) of GGUF metadata or of a model folder.

  Raises:
    UserError: if a file of the folder cannot be read, or has several templates and no default.
  """
  if isinstance(source, Mapping):
    return _find_in_gguf(source)
  folder = Path(source) if Path(source).is_dir() else Path(source).parent
  config = _read_json(folder / CONFIG)
  tokens = _token_names(_read_json(folder / NAMES), config)
  if (folder / JINJA).is_file():
    return _read_text(folder / JINJA), tokens
  return _template_text(config.get("chat_template"), folder / CONFIG), tokens


def _template_text(value: Any, path: Path) -> str | None:
  """Returns the template in a field: a text, none, or the default of several with names."""
  if value is None or isinstance(value, str):
    return value
  # Some models name several templates, such as one for tools.
  templates = {}
  for entry in value if isinstance(value, list) else [value]:
    texts = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None,)
    if not all(isinstance(text, str) for text in texts):
      raise UserError(
        f"{path}: 'chat_template' is {shown(value)}; a text, or a list of objects with the texts "
        "'name' and 'template', is expected"
      )
    templates[entry["name"]] = entry["template"]
  if "default" not in templates:
    raise UserError(
      f"{path}: the chat templates {', '.join(templates)} and none named 'default'; "
      "write the one you mean to a .jinja file and name it in config.data.template"
    )
  return templates["default"]


def _find_in_gguf(metadata: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
  """Returns what `find` returns, from the metadata of a GGUF file."""
  names = metadata.get("tokenizer.ggml.tokens") or []
  gguf_keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
  tokens = {}
  for key, gguf_key in gguf_keys.items():
    field = f"tokenizer.ggml.{gguf_key}_token_id"
    token_id = metadata.get(field)
    if token_id is None:
      continue
    is_name = isinstance(names, list) and isinstance(token_id, int) and 0 <= token_id < len(names)
    if not is_name or not isinstance(names[token_id], str):
      raise UserError(
        f"{field} is {shown(token_id)}: tokenizer.ggml.tokens has no such name; the file is damaged"
      )
    tokens[f"{key}_token"] = names[token_id]
  template = metadata.get("tokenizer.chat_template")
  if template is not None and not isinstance(template, str):
    raise UserError(f"tokenizer.chat_template is {shown(template)}; a text is expected")
  return template, tokens


def _token_names(names: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
  """Returns the special tokens of two files as a template names them.

  The configuration of the tokenizer comes first, unless it leaves a token out or says null.
  """
  configured = {key: value for key, value in config.items() if value is not None}
  fields = {**names, **configured}
  tokens = {}
  for key, value in fields.items():
    # A token is a text, or an object that also says how white space around it is treated.
    name = value.get("content") if isinstance(value, dict) else value
    if key.endswith("_token") and isinstance(name, str):
      tokens[key] = name
  return tokens


def load(name: str, text: str, tokens: Mapping[str, str], tokenizer: Tokenizer) -> Template:
  """Compiles the text of a template, and tries it on a chat of two messages.

  Raises:
    UserError: if the text is not Jinja, drops a message, or does not close a reply with one of the
      tokenizer's stop ids.
  """
  try:
    compiled = jinja.compiled(text)
  except jinja2.TemplateSyntaxError as error:
    raise UserError(f"{name}:{error.lineno}: not a Jinja template ({error.message})") from None
  except jinja.ERRORS as error:
    raise UserError(f"{name}: not a Jinja template ({_reason(error)})") from None
  # Where the files name no bos_token or eos_token, it is the tokenizer's first.
  variables = {}
  for piece, token_id in tokenizer.specials.items():
    if token_id in tokenizer.bos[:1]:
      variables["bos_token"] = piece
    if token_id in tokenizer.eos[:1]:
      variables["eos_token"] = piece
  variables.update(tokens)
  # The stop id is only known after the template has closed a reply.
  template = Template(name, text, variables, compiled, end=-1)
  try:
    rendered, prompts, spans = layout(template, PROBE)
  except ChatError as error:
    raise UserError(f"{name}: {error}") from None
  reply_start = prompts[0]
  at, stop = _first_stop(rendered[reply_start:], name, tokenizer)
  learnt_end = spans[0][1]
  if learnt_end < reply_start + at + len(stop):
    raise UserError(
      f"{name}: {{% endgeneration %}} stands before {stop!r}: the model would not learn to stop; "
      "put it after"
    )
  return template._replace(end=tokenizer.specials[stop])


def _first_stop(reply: str, name: str, tokenizer: Tokenizer) -> tuple[int, str]:
  """Returns where the first stop token of a rendered reply stands, and its name.

  Raises:
    UserError: if there is none.
  """
  stops = {piece: i for piece, i in tokenizer.specials.items() if i in tokenizer.eos}
  places = [(reply.find(piece), piece) for piece in stops if piece in reply]
  if places:
    return min(places)
  specials = [piece for piece in tokenizer.specials if piece in reply]
  closing = specials[0] if specials else "no special token"
  raise UserError(
    f"{name}: closes a reply with {closing!r}, the stop ids are {list(stops.values())} "
    f"({', '.join(stops)}): the model would not learn to stop there; add its id to eos_token_id in "
    "generation_config.json, or end the reply with {{ eos_token }}"
  )


# --- rendering ---


def render(template: Template, messages: Sequence[Message], *, prompt: bool) -> str:
  """Returns the text of a chat; `prompt` adds what comes before the next reply.

  Raises:
    ChatError: if the template fails.
  """
  text, _ = _render(template, messages, prompt)
  return text


def _reason(error: BaseException) -> str:
  """Returns what an error says, on one line and not at any length."""
  text = " ".join(str(error).split()) or type(error).__name__
  return text[:LONGEST_REASON]


def _render(
  template: Template, messages: Sequence[Message], prompt: bool
) -> tuple[str, list[Span]]:
  """Returns (the text of a chat, the spans that stand inside `{% generation %}`)."""
  try:
    variables = {
      "messages": [
        {"role": message["role"], "content": message["content"]} for message in messages
      ],
      "tools": None,  # templates ask for these two names
      "documents": None,
      "add_generation_prompt": prompt,
      **template.tokens,
    }
    marked = jinja.rendered(template.compiled, variables)
  except jinja.ERRORS as error:
    raise ChatError(f"the chat template cannot render it ({_reason(error)})") from None
  text = ""
  spans = []
  # BEGIN and END alternate, so every second part stands between them.
  for number, part in enumerate(re.split(f"[{BEGIN}{END}]", marked)):
    start = len(text)
    text += part
    if number % 2:
      spans.append((start, len(text)))
  return text, spans


def layout(template: Template, messages: Sequence[Message]) -> tuple[str, list[int], list[Span]]:
  """Returns (text, where the prompt of each reply ends, the span of each reply that is learnt).

  Raises:
    ChatError: if the text of the chat does not begin with that of each shorter one.
  """
  text, generation_spans = _render(template, messages, False)
  prompts = []
  spans = []
  for i, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    # A rollout renders these two shorter chats, and training only the whole one.
    prompt = render(template, messages[:i], prompt=True)
    with_reply = render(template, messages[: i + 1], prompt=False)
    if not (text.startswith(prompt) and text.startswith(with_reply)):
      changed = i + 1 if text.startswith(prompt) else i
      raise ChatError(
        f"the chat template rewrites what it wrote before messages[{changed}] when more follows "
        "(it drops earlier reasoning, for one), so a rollout would start from other tokens; make "
        "each reply a record of its own, or name another template"
      )
    prompts.append(len(prompt))
    spans.append((len(prompt), len(with_reply)))
  if not generation_spans:
    return text, prompts, spans
  starts = [start for start, _ in generation_spans]
  in_prompt = any(start < prompt for start, prompt in zip(starts, prompts))
  if len(generation_spans) != len(spans) or in_prompt:
    raise ChatError(
      "the chat template's {% generation %} blocks are not one for each reply, after its prompt"
    )
  return text, prompts, generation_spans


# --- to ids ---


def head(
  template: Template,
  tokenizer: Tokenizer,
  prompt: str,
  turns: Sequence[Message] | None,
) -> list[int]:
  """Returns the ids of a prompt, from which a rollout starts.

  Raises:
    ChatError: if the chat cannot be a prompt.
  """
  messages = _prompt_messages(tokenizer, prompt, turns)
  _, starts, _ = layout(template, messages)
  text = render(template, messages, prompt=True)
  return _encode(tokenizer, text, starts)


def _encode(tokenizer: Tokenizer, text: str, starts: Sequence[int]) -> list[int]:
  """Returns the ids of a text whose replies begin at `starts`.

  Where a reply would share its first token with the prompt, the text is cut between the two and the
  parts are encoded one by one. The ids of the prompt are then those from which a rollout starts.
  """
  ids = tokenizer.encode(text)
  edges = [0]
  for start in dict.fromkeys(starts):
    prompt_ids = tokenizer.encode(text[:start])
    if ids[: len(prompt_ids)] != prompt_ids:
      edges.append(start)
  edges.append(len(text))
  if len(edges) == 2:  # nothing has to be cut
    return ids
  ids = tokenizer.encode(text[: edges[1]])
  for start, stop in itertools.pairwise(edges[1:]):
    ids += tokenizer.encode_next(text[start:stop])
  return ids


def reply(
  template: Template,
  tokenizer: Tokenizer,
  prompt: str,
  turns: Sequence[Message] | None,
  completion: str,
  loss: Loss = "all",
) -> tuple[list[int], list[bool], int]:
  """Returns (ids, which of them carry loss, tokens of the prompt) of a chat.

  Its last message is `completion`, and the row ends with the stop id that closes it. Of the replies
  before it those carry loss that `learnt_replies` says.

  Raises:
    ChatError: as `head` does, and if the ids of an earlier prompt differ from those from which its
      rollout would start.
  """
  messages = _prompt_messages(tokenizer, prompt, turns)
  _check_plain(tokenizer, completion, "")
  last_message = {"role": "assistant", "content": completion}
  text, prompts, spans = layout(template, (*messages, last_message))
  ids = _encode(tokenizer, text, prompts)

  def encode_until(stop: int) -> list[int]:
    """Returns the ids of the text up to a character, as if the chat ended there."""
    return _encode(tokenizer, text[:stop], [start for start in prompts if start < stop])

  is_learnt = [*learnt_replies(messages, loss), True]
  last_prompt = encode_until(prompts[-1])
  mask = [False] * len(ids)
  end = 0
  for turn, (first, last) in enumerate(spans):
    if not is_learnt[turn]:
      continue
    # The tokens between `opened` and `closed` hold the reply and the stop id after it.
    opened = len(last_prompt)
    closed = len(ids)
    if turn < len(spans) - 1:
      # The ids of an earlier reply must be those that a chat has that ends with it.
      before = encode_until(first)
      through = encode_until(last)
      opened = len(before)
      closed = len(through)
      if ids[:opened] != before or ids[:closed] != through:
        raise ChatError(
          f"the tokens of reply {turn + 1} merge with those of the chat template around it, so its "
          "rollout would start from other tokens; take white space off its ends, or make each "
          "reply a record of its own"
        )
    elif first > prompts[-1]:
      # The template writes something between the last prompt and its {% generation %} block.
      opened = len(encode_until(first))
    stops = [i for i in range(opened, closed) if ids[i] in tokenizer.eos]
    if not stops:
      raise ChatError(
        f"the chat template closes reply {turn + 1} with none of the stop ids {list(tokenizer.eos)}"
      )
    end = stops[0] + 1
    for i in range(opened, end):
      mask[i] = True
  return ids[:end], mask[:end], len(last_prompt)


def learnt_replies(turns: Sequence[Message] | None, loss: Loss) -> list[bool]:
  """Returns whether each reply in a prompt carries loss: none with "last", or those not marked."""
  replies = [message for message in turns or () if message["role"] == "assistant"]
  return [loss == "all" and reply.get("train", True) for reply in replies]


def _prompt_messages(
  tokenizer: Tokenizer,
  prompt: str,
  turns: Sequence[Message] | None,
) -> Sequence[Message]:
  """Returns the messages of a prompt; a plain text is one message of the user."""
  messages = turns or ({"role": "user", "content": prompt},)
  # A record holds its chat as text too, which a change of only one of the two would contradict.
  if turns and transcript(turns) != prompt:
    raise ChatError(
      "the text of the prompt and its messages differ: change both, or read the record again"
    )
  for i, message in enumerate(messages):
    place = f"messages[{i}].content: " if turns else ""
    _check_plain(tokenizer, message["content"], place)
  if messages[-1]["role"] == "assistant":
    raise ChatError("the last message is the assistant's; a prompt ends with another's")
  return messages


def _check_plain(tokenizer: Tokenizer, content: str, place: str) -> None:
  """Raises ChatError for a message that would write special tokens."""
  specials = [name for name in tokenizer.specials if name in content]
  if specials:
    raise ChatError(f"{place}{refusal(specials)}")
  if BEGIN in content or END in content:
    raise ChatError(f"{place}holds U+FDD0 or U+FDD1, which are no characters; take them out")


# --- files ---


def read(path: str | Path) -> str:
  """Returns the text of a template file.

  Raises:
    UserError: if there is no such file.
  """
  if not Path(path).is_file():
    raise UserError(
      f"config.data.template={path}: no such file; give a .jinja file, '{OWN}' or '' for plain text"
    )
  return _read_text(Path(path))


def _read_json(path: Path) -> dict[str, Any]:
  """Returns the object in a JSON file, empty if there is no such file."""
  if not path.is_file():
    return {}
  return plain_json.read_object(path, "make it readable", "fix or delete it")


def _read_text(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
