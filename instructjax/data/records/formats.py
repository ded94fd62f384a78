"""The public spellings of instruction data, as functions from their rows to ours.

Each takes a row and the kind of record that is wanted and returns the fields of that kind:
`records.read(path, "comparison", formats.preference)`.  A preference row can serve as a
comparison, as a demonstration (its chosen completion) or as a prompt.  Other columns of a public
data set are left out; a missing one is a `RecordError`.  The prompt of a chat stays a list of
messages; `records` has its text too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from instructjax.data.records import records
from instructjax.data.records.records import TURN, RecordError, Spelling, native

PAIR = ("chosen", "rejected")


def preference(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """prompt, chosen, rejected: texts, or lists of chat messages; the prompt may be what both share."""
  chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
  prompt = row.get("prompt")
  if isinstance(chosen, list) and isinstance(rejected, list):
    if prompt is None or isinstance(prompt, str):
      shared = _shared(chosen, rejected)
      prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    chosen, rejected = _reply("chosen", chosen), _reply("rejected", rejected)
  elif prompt is None:
    return hh(row, kind)
  return _pair(kind, prompt, chosen, rejected)


def hh(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """chosen, rejected: whole transcripts that differ in the last reply only."""
  parts = []
  for name in ("chosen", "rejected"):
    text = _field(row, name)
    if not isinstance(text, str) or TURN not in text:
      raise RecordError(f"{name}: a transcript with '\\n\\nAssistant:' is expected")
    head, _, reply = text.rpartition(TURN)
    parts.append((head + TURN, reply.strip()))
  if parts[0][0] != parts[1][0]:
    raise RecordError(
      "chosen, rejected: the transcripts differ before the last reply; drop the record"
    )
  return _pair(kind, _split(parts[0][0]), parts[0][1], parts[1][1])


def _split(text: str) -> list[dict[str, str]] | str:
  """The messages of a transcript, where they give exactly that transcript."""
  first, *parts = re.split(r"\n\n(Human|Assistant): ", text.removesuffix(TURN))
  names = {"Human": "user", "Assistant": "assistant"}
  found = [
    {"role": names[name], "content": said}
    for name, said in zip(parts[::2], parts[1::2], strict=True)
  ]
  whole = (
    not first
    and found
    and all(one["content"].strip() for one in found)
    and records.transcript(found) == text
  )
  return found if whole else text


def alpaca(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """instruction, input, output: the input follows the instruction after an empty line."""
  instruction, given = _field(row, "instruction"), row.get("input")
  if not isinstance(instruction, str) or not isinstance(given, str | None):
    raise RecordError("instruction, input: texts are expected")
  prompt = f"{instruction}\n\n{given}" if given else instruction
  return _demonstration(kind, prompt, _field(row, "output"))


def messages(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """messages: a chat whose last message is the completion; a prompt may also end with the user's."""
  chat = _field(row, "messages")
  if not isinstance(chat, list) or not chat:
    raise RecordError("messages: a list of {role, content} objects is expected")
  if kind == "prompt" and (asked := records.chat("messages", chat))[-1]["role"] != "assistant":
    return {"prompt": [dict(message) for message in asked]}
  reply = _reply("messages", chat[-1:])
  return _demonstration(
    kind, [dict(message) for message in records.chat("messages", chat[:-1])], reply
  )


def mapped(fields: Mapping[str, str]) -> Spelling:
  """Any row by a mapping from our fields to its own: {"prompt": "question", "completion":
  "answers.text.0"}.

  A dot goes into an object or, with a number, a list.  `chosen` and `rejected` stand for the
  completions and ranks of a comparison.
  """

  def spell(row: dict[str, Any], kind: str) -> dict[str, Any]:
    found = {ours: lookup(row, theirs) for ours, theirs in fields.items()}
    pair = [found.pop(name) for name in PAIR if name in found]
    return found | ({"completions": pair, "ranks": [1, 2]} if pair else {})

  return spell


def lookup(row: dict[str, Any], path: str) -> Any:
  """The value under a name or a path of names and numbers with dots.  Raises RecordError where
  there is none.
  """
  if path in row:
    return _field(row, path)
  value: Any = row
  for name in path.split("."):
    if isinstance(value, dict):
      value = value.get(name)
    elif isinstance(value, list | tuple) and name.isdecimal() and int(name) < len(value):
      value = value[int(name)]
    else:
      value = None
  if value is None:
    raise RecordError(f"{path}: missing; the row has {', '.join(sorted(row)) or 'no fields'}")
  return value


SPELLINGS: dict[str, Spelling] = {
  "native": native,
  "preference": preference,
  "alpaca": alpaca,
  "messages": messages,
  "hh": hh,
}


def _reply(place: str, chat: list[Any]) -> str:
  """The one assistant message of a list."""
  if len(chat) != 1:
    raise RecordError(f"{place}: {len(chat)} messages after the prompt, one is expected")
  (message,) = records.chat(place, chat)
  if message["role"] != "assistant":
    raise RecordError(f"{place}: the last message must be the assistant's, not {message['role']!r}")
  return message["content"]


def _shared(a: list[Any], b: list[Any]) -> int:
  """How many messages two chats share at the start, the last of the shorter one not counted."""
  most = min(len(a), len(b)) - 1
  return next((i for i in range(most) if a[i] != b[i]), max(most, 0))


def _pair(kind: str, prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
  if kind == "comparison":
    return {"prompt": prompt, "completions": [chosen, rejected], "ranks": [1, 2]}
  return _demonstration(kind, prompt, chosen)


def _demonstration(kind: str, prompt: Any, completion: Any) -> dict[str, Any]:
  if kind == "demonstration":
    return {"prompt": prompt, "completion": completion}
  if kind == "prompt":
    return {"prompt": prompt}
  raise RecordError(f"this format holds no {kind}s; choose another format or kind of record")


def _field(row: dict[str, Any], name: str) -> Any:
  if row.get(name) is None:
    raise RecordError(f"{name}: missing; the row has {', '.join(sorted(row)) or 'no fields'}")
  return row[name]
