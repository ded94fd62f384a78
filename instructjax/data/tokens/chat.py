"""Chat templates: a tokenizer's own Jinja template turns messages into the text that its model was
trained on.

The text is rendered as `transformers` renders it and becomes ids once; special tokens in it are
parsed as ids.  A reply carries loss from its first token to the stop id that closes it, and what
stands before it is, id for id, the prompt from which a rollout starts:

  prompt of a reply     encode(render(messages before it, add_generation_prompt=True))
  its loss              the tokens of render(messages up to it) after that prompt, or those inside {% generation %}

A text that names a special token ("<|im_end|>") is an error: it would end or begin a turn.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.sandbox

from instructjax.data.records.records import Message, transcript
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError

OWN = "chat"  # the name of the tokenizer's own template
JINJA, CONFIG, NAMES = "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"
PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
BEGIN, END = "\ufdd0", "\ufdd1"  # around what stands inside {% generation %}; no text holds these
Span = tuple[int, int]  # of letters in a text: from, to


class Template(NamedTuple):
  """A compiled template.  `end` is the stop id that closes a reply, `tokens` the names that the
  text may use (bos_token).
  """

  name: str
  text: str
  tokens: Mapping[str, str]
  compiled: jinja2.Template
  end: int


class ChatError(ValueError):
  """What is wrong with one chat; the pipeline adds the line and the field."""


def about(template: Template) -> dict[str, str]:
  """What a run says about its template."""
  return {"text": template.text, "fingerprint": hashlib.sha256(template.text.encode()).hexdigest()}


# --- finding ---


def find(source: str | Path | Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
  """(template or None, names of special tokens) of GGUF metadata, or of the folder of a tokenizer."""
  if isinstance(source, Mapping):
    names = source.get("tokenizer.ggml.tokens") or []
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {key: source.get(f"tokenizer.ggml.{theirs}_token_id") for key, theirs in keys.items()}
    return source.get("tokenizer.chat_template"), {
      f"{k}_token": names[i] for k, i in ids.items() if i is not None
    }
  folder = Path(source) if Path(source).is_dir() else Path(source).parent
  config, named = _json(folder / CONFIG), _json(folder / NAMES)
  tokens = {
    key: value["content"] if isinstance(value, dict) else value
    for key, value in (named | {k: v for k, v in config.items() if v is not None}).items()
    if key.endswith("_token")
    and isinstance(value.get("content") if isinstance(value, dict) else value, str)
  }
  if (folder / JINJA).is_file():
    return _text(folder / JINJA), tokens
  found = config.get("chat_template")
  if isinstance(found, list):
    several = {one["name"]: one["template"] for one in found}
    if "default" not in several:
      raise UserError(
        f"{folder / CONFIG}: the chat templates {', '.join(several)} and none named 'default'; "
        "write the one you mean to a "
        ".jinja file and name it in config.data.template"
      )
    found = several["default"]
  return found, tokens


def load(name: str, text: str, tokens: Mapping[str, str], tokenizer: Tokenizer) -> Template:
  """The template of a text, tried on a chat of two messages.

  Raises UserError where it is no Jinja, drops a message, or does not close a reply with one of
  the tokenizer's stop ids.
  """
  try:
    compiled = _environment().from_string(text)
  except jinja2.TemplateSyntaxError as error:
    raise UserError(f"{name}:{error.lineno}: not a Jinja template ({error.message})") from None
  ids = {"bos_token": tokenizer.bos[:1], "eos_token": tokenizer.eos[:1]}
  usual = {
    key: piece
    for key, found in ids.items()
    for piece, i in tokenizer.specials.items()
    if i in found
  }
  template = Template(name, text, usual | dict(tokens), compiled, -1)
  try:
    rendered, prompts, spans = layout(template, PROBE)
  except ChatError as error:
    raise UserError(f"{name}: {error}") from None
  stops = {piece: i for piece, i in tokenizer.specials.items() if i in tokenizer.eos}
  reply = rendered[prompts[0] :]
  at, piece = min(
    ((reply.find(piece), piece) for piece in stops if piece in reply), default=(-1, "")
  )
  if at < 0:
    other = [piece for piece in tokenizer.specials if piece in reply]
    raise UserError(
      f"{name}: closes a reply with {other[0] if other else 'no special token'!r}, the stop ids "
      f"are {list(stops.values())} "
      f"({', '.join(stops)}): the model would not learn to stop there; add its id to eos_token_id "
      "in generation_config.json, "
      "or end the reply with {{ eos_token }}"
    )
  if spans[0][1] < prompts[0] + at + len(piece):
    raise UserError(
      f"{name}: {{% endgeneration %}} stands before {piece!r}: the model would not learn to stop; "
      "put it after"
    )
  return template._replace(end=stops[piece])


# --- rendering ---


def render(template: Template, messages: Sequence[Message], *, prompt: bool) -> str:
  """The text of a chat; `prompt` adds what comes before the next reply.  Raises ChatError where the
  template fails.
  """
  return _render(template, messages, prompt)[0]


def _render(
  template: Template, messages: Sequence[Message], prompt: bool
) -> tuple[str, list[Span]]:
  """(text, the letters that stand inside `{% generation %}`)."""
  try:
    marked = template.compiled.render(
      messages=[dict(m) for m in messages],
      tools=None,
      documents=None,
      add_generation_prompt=prompt,
      **template.tokens,
    )
  except (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
  ) as error:  # what an expression raises
    raise ChatError(f"the chat template cannot render it ({error})") from None
  text, spans = "", []
  for at, part in enumerate(re.split(f"[{BEGIN}{END}]", marked)):  # every second part stands inside
    spans += [(len(text), len(text) + len(part))] if at % 2 else []
    text += part
  return text, spans


def layout(template: Template, messages: Sequence[Message]) -> tuple[str, list[int], list[Span]]:
  """(text, where the prompt of each reply ends, the letters of each reply that are learnt).

  Raises ChatError where the text of a shorter chat is not the beginning of the longer one's.
  """
  text, marked = _render(template, messages, False)
  prompts, spans = [], []
  for i, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    before = render(template, messages[:i], prompt=True)
    upto = render(template, messages[: i + 1], prompt=False)
    if not (text.startswith(before) and text.startswith(upto)):
      raise ChatError(
        "the chat template rewrites what it wrote before "
        f"messages[{i + 1 if text.startswith(before) else i}] when more "
        "follows (it drops earlier reasoning, for one), so a rollout would start from other "
        "tokens; make each reply a record "
        "of its own, or name another template"
      )
    prompts.append(len(before))
    spans.append((len(before), len(upto)))
  if marked and (len(marked) != len(spans) or any(a < p for (a, _), p in zip(marked, prompts))):
    raise ChatError(
      "the chat template's {% generation %} blocks are not one for each reply, after its prompt"
    )
  return text, prompts, marked or spans


class _Generation(jinja2.ext.Extension):
  """`{% generation %}` puts marks around what the model writes."""

  def __init__(self, environment: jinja2.Environment):
    super().__init__(environment)
    self.tags = {"generation"}

  def parse(self, parser: Any) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

  def _marked(self, caller: Callable[[], str]) -> str:
    return BEGIN + caller() + END


def _environment() -> jinja2.Environment:
  """What `transformers` gives a template: no access to Python, and these filters and functions."""
  found = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
  )

  def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
      value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  def stop(message):
    raise jinja2.TemplateError(message)

  found.filters["tojson"] = tojson
  functions: dict[str, Any] = {
    "raise_exception": stop,
    "strftime_now": lambda form: datetime.datetime.now().strftime(form),
  }
  found.globals.update(functions)
  return found


# --- to ids ---


def head(
  template: Template, tokenizer: Tokenizer, prompt: str, turns: Sequence[Message] | None
) -> list[int]:
  """The ids of a prompt, from which a rollout starts.  Raises ChatError for a chat that cannot be
  one.
  """
  messages = _prompt(tokenizer, prompt, turns)
  _, starts, _ = layout(template, messages)
  return _ids(tokenizer, render(template, messages, prompt=True), starts)


def _ids(tokenizer: Tokenizer, text: str, starts: Sequence[int]) -> list[int]:
  """The ids of a text whose replies begin at `starts`; where one would share its first token with
  the prompt, it is cut.
  """
  ids = tokenizer.encode(text)
  parts = {at: tokenizer.encode(text[:at]) for at in starts}
  edges = [0, *(at for at, part in parts.items() if ids[: len(part)] != part), len(text)]
  return (
    ids
    if len(edges) == 2
    else [i for a, b in itertools.pairwise(edges) for i in tokenizer.encode(text[a:b])]
  )


def reply(
  template: Template,
  tokenizer: Tokenizer,
  prompt: str,
  turns: Sequence[Message] | None,
  completion: str,
) -> tuple[list[int], list[bool], int]:
  """(ids, which of them carry loss, tokens of the prompt) of a chat whose last message is
  `completion`.

  The row ends with the stop id.  Raises ChatError as `head` does, and where the ids of an
  earlier prompt are others than those from which its rollout would start.
  """
  before = _prompt(tokenizer, prompt, turns)
  _plain(tokenizer, completion, "")
  text, prompts, spans = layout(template, (*before, {"role": "assistant", "content": completion}))
  upto = lambda at: _ids(tokenizer, text[:at], [start for start in prompts if start < at])
  ids, start = _ids(tokenizer, text, prompts), upto(prompts[-1])
  mask, end = [False] * len(ids), 0
  for turn, (first, last) in enumerate(spans):
    opened, closed = len(start), len(ids)
    if turn < len(spans) - 1:
      part, whole = upto(first), upto(last)
      if ids[: len(part)] != part or ids[: len(whole)] != whole:
        raise ChatError(
          f"the tokens of reply {turn + 1} melt into those of the chat template around it, so its "
          "rollout would start from "
          "other tokens; take white space off its ends, or make each reply a record of its own"
        )
      opened, closed = len(part), len(whole)
    elif first > prompts[-1]:
      opened = len(upto(first))
    end = 1 + next((i for i in range(opened, closed) if ids[i] in tokenizer.eos), -1)
    if not end:
      raise ChatError(
        f"the chat template closes reply {turn + 1} with none of the stop ids {list(tokenizer.eos)}"
      )
    mask[opened:end] = [True] * (end - opened)
  return ids[:end], mask[:end], len(start)


def _prompt(
  tokenizer: Tokenizer, prompt: str, turns: Sequence[Message] | None
) -> Sequence[Message]:
  """The messages of a prompt; a text is one of the user's."""
  messages = turns or ({"role": "user", "content": prompt},)
  if turns and transcript(turns) != prompt:
    raise ChatError(
      "the text of the prompt and its messages differ: change both, or read the record again"
    )
  for at, message in enumerate(messages):
    _plain(tokenizer, message["content"], f"messages[{at}].content: " if turns else "")
  if messages[-1]["role"] == "assistant":
    raise ChatError("the last message is the assistant's; a prompt ends with another's")
  return messages


def _plain(tokenizer: Tokenizer, content: str, place: str) -> None:
  """Raises ChatError for a text that would write special tokens."""
  found = [name for name in tokenizer.specials if name in content]
  if found or BEGIN in content or END in content:
    names = ", ".join(repr(name) for name in found) or "U+FDD0 or U+FDD1"
    raise ChatError(f"{place}holds the special tokens {names}; take their names out of the text")


def _json(path: Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    found = json.loads(_text(path))
  except ValueError as error:
    raise UserError(f"{path}: malformed JSON ({error}); mend or delete it") from None
  if not isinstance(found, dict):
    raise UserError(f"{path}: holds no JSON object; mend or delete it")
  return found


def read(path: str | Path) -> str:
  """The text of a template file.  Raises UserError where there is none."""
  if not Path(path).is_file():
    raise UserError(
      f"config.data.template={path}: no such file; give a .jinja file, '{OWN}' or '' for plain text"
    )
  return _text(Path(path))


def _text(path: Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
