"""The public spellings of instruction data, as functions from their rows to the fields of records.

Each function takes a row and the kind of record that is wanted, and returns the fields of that
kind: `records.read(path, "comparison", formats.preference)`. A preference row can serve as a
comparison, as a demonstration (its chosen completion) or as a prompt. Columns that no record has
are left out. A column that is missing is a `RecordError`.

The prompt of a chat stays a list of messages. `records` makes the transcript of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from instructjax.data.records import records, validation
from instructjax.data.records.records import TURN, RecordError, Spelling, native

# The columns of a preference: the better completion and the worse one.
PAIR = ("chosen", "rejected")


# --- preferences ---


def preference(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Reads the columns prompt, chosen and rejected, which are texts or lists of chat messages.

  Two chats without a prompt share the messages at their start, and these become the prompt. Two
  texts without a prompt are the transcripts of HH.
  """
  chosen = _field(row, "chosen")
  rejected = _field(row, "rejected")
  prompt = row.get("prompt")
  if isinstance(chosen, list) and isinstance(rejected, list):
    # A prompt that is a text only repeats a message that is in both chats. The binarized version of
    # UltraFeedback has one.
    if prompt is None or isinstance(prompt, str):
      shared = _shared_length(chosen, rejected)
      prompt = chosen[:shared]
      chosen = chosen[shared:]
      rejected = rejected[shared:]
    chosen = _reply("chosen", chosen)
    rejected = _reply("rejected", rejected)
  elif prompt is None:
    return hh(row, kind)
  return _preference_fields(kind, prompt, chosen, rejected)


def hh(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Reads chosen and rejected as the transcripts of HH, which differ in the last reply only."""
  prompts, replies = [], []
  for name in PAIR:
    # Everything up to the last "Assistant:" is the prompt.
    text = _field(row, name)
    if not isinstance(text, str) or TURN not in text:
      raise RecordError(f"{name}: a transcript with '\\n\\nAssistant:' is expected")
    prompt, _, reply = text.rpartition(TURN)
    prompts.append(prompt + TURN)
    # One space follows the name of the speaker; all else is the reply's own.
    replies.append(reply.removeprefix(" "))
  if prompts[0] != prompts[1]:
    raise RecordError(
      "chosen, rejected: the transcripts differ before the last reply; drop the record"
    )
  return _preference_fields(kind, _chat_or_text(prompts[0]), replies[0], replies[1])


def _chat_or_text(text: str) -> list[dict[str, str]] | str:
  """Returns the messages of a transcript, or the text itself where it cannot be taken apart.

  Some transcripts have empty messages, or a text before the first name. The messages are therefore
  used only where they give back exactly this transcript.
  """
  before, *parts = re.split(r"\n\n(Human|Assistant): ", text.removesuffix(TURN))
  roles = {"Human": "user", "Assistant": "assistant"}
  # The parts are a name and a text in turn.
  turns = [
    {"role": roles[name], "content": content}
    for name, content in zip(parts[::2], parts[1::2], strict=True)
  ]
  if before or not turns:
    return text
  has_empty_turn = any(not turn["content"].strip() for turn in turns)
  return text if has_empty_turn or records.transcript(turns) != text else turns


def _shared_length(a: list[Any], b: list[Any]) -> int:
  """Returns how many messages two chats share at their start.

  The last message of the shorter chat never counts, so that each of them has a reply left.
  """
  longest = min(len(a), len(b)) - 1
  for index in range(longest):
    if a[index] != b[index]:
      return index
  return max(longest, 0)


def _preference_fields(kind: str, prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
  if kind == "comparison":
    return {"prompt": prompt, "completions": [chosen, rejected], "ranks": [1, 2]}
  return _demonstration_fields(kind, prompt, chosen)


# --- demonstrations ---


def alpaca(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Reads instruction, input and output; the input follows the instruction after an empty line."""
  instruction = _field(row, "instruction")
  task_input = row.get("input")
  if not isinstance(instruction, str) or not isinstance(task_input, str | None):
    raise RecordError("instruction, input: texts are expected")
  # Most rows have no input, or an empty one.
  prompt = f"{instruction}\n\n{task_input}" if task_input else instruction
  return _demonstration_fields(kind, prompt, _field(row, "output"))


def messages(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Reads messages, a chat whose last message is the completion.

  Where prompts are wanted, the chat may also end with a message of the user. A demonstration ends
  with the last reply that is to be learnt: what follows teaches nothing.
  """
  chat = _field(row, "messages")
  if not isinstance(chat, list) or not chat:
    raise RecordError("messages: a list of {role, content} objects is expected")
  if kind == "prompt":
    turns = records.chat("messages", chat)
    if turns[-1]["role"] != "assistant":
      return {"prompt": [dict(turn) for turn in turns]}
  if kind == "demonstration":
    chat = _until_learnt(chat)
  reply = _reply("messages", chat[-1:])
  prompt = [dict(turn) for turn in records.chat("messages", chat[:-1])]
  return _demonstration_fields(kind, prompt, reply)


def _until_learnt(chat: list[Any]) -> list[Any]:
  """Returns a chat without what comes after its last reply that is to be learnt.

  A chat that marks no reply is whole.
  """
  turns = records.chat("messages", chat)
  if all(turn.get("train", True) for turn in turns):
    return chat
  learnt = [
    index
    for index, turn in enumerate(turns)
    if turn["role"] == "assistant" and turn.get("train", True)
  ]
  if not learnt:
    raise RecordError(
      "messages: no reply is to be learnt (each has weight 0 or train false); take the record out"
    )
  return chat[: learnt[-1] + 1]


def _demonstration_fields(kind: str, prompt: Any, completion: Any) -> dict[str, Any]:
  if kind == "demonstration":
    return {"prompt": prompt, "completion": completion}
  if kind == "prompt":
    return {"prompt": prompt}
  raise RecordError(f"this format holds no {kind}s; choose another format or kind of record")


def _reply(place: str, chat: list[Any]) -> str:
  """Returns the text of a chat that is one message of the assistant, and refuses any other chat."""
  if len(chat) != 1:
    raise RecordError(f"{place}: {len(chat)} messages after the prompt, one is expected")
  (message,) = records.chat(place, chat)
  if message["role"] != "assistant":
    raise RecordError(f"{place}: the last message must be the assistant's, not {message['role']!r}")
  return message["content"]


# --- any other columns ---


def mapped(fields: Mapping[str, str]) -> Spelling:
  """Returns the spelling of rows whose columns are named in `fields`: {our name: their name}.

  Their name may be a path, such as "answers.text.0" for the completion of SQuAD: a dot goes into an
  object or, before a number, into a list. `chosen` and `rejected` can stand on the left in place of
  the completions and ranks of a comparison. The other columns of a prompt are its further fields.
  """

  def spell(row: dict[str, Any], kind: str) -> dict[str, Any]:
    values = {ours: lookup(row, theirs) for ours, theirs in fields.items()}
    completions = [values.pop(name) for name in PAIR if name in values]
    if completions:
      values["completions"] = completions
      values["ranks"] = [1, 2]
    if kind == "prompt":
      others = {name: value for name, value in row.items() if name not in fields.values()}
      values = validation.further_fields(others) | values
    return values

  return spell


def lookup(row: dict[str, Any], path: str) -> Any:
  """Returns the value under a name, or under a path of names and numbers with dots between them.

  Raises:
    RecordError: if there is no such value.
  """
  # A column whose own name has a dot goes before a path.
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
    raise _missing(row, path)
  return value


def _field(row: dict[str, Any], name: str) -> Any:
  if row.get(name) is None:
    raise _missing(row, name)
  return row[name]


def _missing(row: dict[str, Any], name: str) -> RecordError:
  names = ", ".join(sorted(row)) or "no fields"
  return RecordError(f"{name}: missing; the row has {names}")


SPELLINGS: dict[str, Spelling] = {
  "native": native,
  "preference": preference,
  "alpaca": alpaca,
  "messages": messages,
  "hh": hh,
}
