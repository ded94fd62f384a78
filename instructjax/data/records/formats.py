"""The public spellings of instruction data, as functions from their rows to the fields of records.

Each function takes a row and the kind of record that is wanted, and returns the fields of that
kind: `records.read(path, "comparison", formats.preference)`. A preference row can serve as a
comparison, as a demonstration (its chosen completion) or as a prompt. Columns that no record has
are left out. A column that is missing is a `RecordError`.

The prompt of a chat stays a list of messages. `records` makes the transcript of it.

What a column says to be a bad answer (`label: false` of KTO) is refused as a demonstration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from instructjax.data.records import labels, records, validation
from instructjax.data.records.records import TURN, RecordError, Spelling, native

# The columns of a preference: the better completion and the worse one.
PAIR = ("chosen", "rejected")
# What else a mapping can name on the left for comparisons: where the order of the completions is.
ORDER = ("scores", "choice", "choices")
# The columns that hold a chat, in the order in which they are looked at.
CHATS = ("messages", "conversations", "conversation")
# The columns in which false says that an answer is bad: KTO's, and LLaMA-Factory's for KTO.
VERDICTS = ("label", "kto_tag")


# --- preferences ---


def preference(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Reads the columns prompt, chosen and rejected, which are texts or lists of chat messages.

  Two chats without a prompt share the messages at their start, and these become the prompt. Two
  texts without a prompt are the transcripts of HH. The prompt may also be in messages,
  conversations, or instruction and input. One message may stand for a list of one.
  """
  chosen = _as_chat(_field(row, "chosen"))
  rejected = _as_chat(_field(row, "rejected"))
  prompt = _prompt_of_preference(row)
  if isinstance(chosen, list) and isinstance(rejected, list):
    prompt, chosen, rejected = split_chats(prompt, chosen, rejected)
  elif prompt is None:
    return hh(row, kind)
  return _preference_fields(kind, prompt, chosen, rejected)


def split_chats(
  prompt: Any, first: list[Any], second: list[Any], names: tuple[str, str] = PAIR
) -> tuple[Any, str, str]:
  """Returns the prompt of two chats and the reply of each, the one message that follows it.

  Without a prompt it is what the chats share at their start. A prompt that is a text only repeats
  a message that is in both chats: the binarized version of UltraFeedback has one.

  Raises:
    RecordError: names one of the columns `names` where it has not one reply of the assistant.
  """
  if isinstance(prompt, list):
    shared = len(prompt) if first[: len(prompt)] == second[: len(prompt)] == prompt else 0
  else:
    shared = _shared_length(first, second)
    if shared or prompt is None:
      prompt = first[:shared]
  return prompt, _reply(names[0], first[shared:]), _reply(names[1], second[shared:])


def _prompt_of_preference(row: dict[str, Any]) -> Any:
  """Returns the prompt of a preference from the column that has it, or None where none does."""
  if row.get("prompt") is not None:
    return row["prompt"]
  if row.get("instruction") is not None:
    return task_prompt(row, "input")
  chats = [row[name] for name in CHATS if row.get(name) is not None]
  if not chats:
    return None
  return _with_system(row, chats[0]) if isinstance(chats[0], list) else chats[0]


def _as_chat(value: Any) -> Any:
  """Returns one message as a list of one, and any other value as it is."""
  return [value] if isinstance(value, dict) else value


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
    if isinstance(chosen, str) and chosen == rejected:
      raise RecordError(
        "rejected: the same text as chosen, so neither is better; take the record out"
      )
    return {"prompt": prompt, "completions": [chosen, rejected], "ranks": [1, 2]}
  return _demonstration_fields({}, kind, prompt, chosen)


# --- demonstrations ---


def alpaca(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Reads instruction, input and output; the input follows the instruction after an empty line.

  LLaMA-Factory's system and history, where they are there, make a chat of it.
  """
  return _demonstration_fields(row, kind, task_prompt(row, "input"), _answer(row, "output"))


def dolly(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Reads instruction, context and response; the passage follows the instruction, as in Alpaca."""
  return _demonstration_fields(row, kind, task_prompt(row, "context"), _answer(row, "response"))


def _answer(row: dict[str, Any], name: str) -> str:
  """Returns the answer in a column; a problem names the column, and not the field it becomes."""
  answer = _field(row, name)
  if not isinstance(answer, str):
    raise RecordError(f"{name}: text is expected; correct it or take the record out")
  return answer


def task_prompt(row: dict[str, Any], material: str) -> Any:
  """Returns the prompt of an instruction and of what it is about, which may be empty.

  It is a chat where a system message or earlier turns come before it.
  """
  instruction = _field(row, "instruction")
  task_input = row.get(material)
  if not isinstance(instruction, str) or not isinstance(task_input, str | None):
    raise RecordError(f"instruction, {material}: texts are expected")
  # Most rows have no input, or an empty one.
  prompt = f"{instruction}\n\n{task_input}" if task_input else instruction
  earlier = _history(row)
  if not earlier and not row.get("system"):
    return prompt
  return _with_system(row, [*earlier, {"role": "user", "content": prompt}])


def _history(row: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the earlier turns of a row: a list of pairs, what was asked and what was answered."""
  pairs = row.get("history") or []
  if not isinstance(pairs, list) or not all(
    isinstance(pair, list) and len(pair) == 2 for pair in pairs
  ):
    raise RecordError("history: a list of [question, answer] pairs is expected")
  turns = []
  for question, answer in pairs:
    turns.append({"role": "user", "content": question})
    turns.append({"role": "assistant", "content": answer})
  return turns


def _with_system(row: dict[str, Any], chat: list[Any]) -> list[Any]:
  """Returns a chat with the text of the column system, if there is one, as its first message."""
  return [{"role": "system", "content": row["system"]}, *chat] if row.get("system") else chat


def messages(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Reads messages, a chat whose last message is the completion.

  Where prompts are wanted, the chat may also end with a message of the user. A demonstration ends
  with the last reply that is to be learnt: what follows teaches nothing.
  """
  return _whole_chat(row, kind, "messages")


def conversations(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Reads conversations, or conversation, as `messages` does; the column system may precede it."""
  name = "conversations" if row.get("conversations") is not None else "conversation"
  return _whole_chat(row, kind, name if name in row else "conversations")


def _whole_chat(row: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
  """Returns the fields of a row whose column `name` is a chat with its reply."""
  chat = _field(row, name)
  if not isinstance(chat, list) or not chat:
    raise RecordError(f"{name}: a list of {{role, content}} objects is expected")
  if kind == "demonstration":
    chat = _until_learnt(name, chat)
  # The numbers of messages in errors are those of the column, so the system message comes later.
  turns = records.chat(name, chat)
  prompt = _with_system(row, [dict(turn) for turn in turns])
  if kind == "prompt" and turns[-1]["role"] != "assistant":
    return {"prompt": prompt}
  reply = _reply(name, [dict(turns[-1])])
  if len(prompt) == 1:
    raise RecordError(f"{name}: one message; a question and its reply are expected")
  return _demonstration_fields(row, kind, prompt[:-1], reply)


def _until_learnt(name: str, chat: list[Any]) -> list[Any]:
  """Returns a chat without what comes after its last reply that is to be learnt.

  A chat that marks no reply is whole.
  """
  turns = records.chat(name, chat)
  if all(turn.get("train", True) for turn in turns):
    return chat
  learnt = [
    index
    for index, turn in enumerate(turns)
    if turn["role"] == "assistant" and turn.get("train", True)
  ]
  if not learnt:
    raise RecordError(
      f"{name}: no reply is to be learnt (each has weight 0 or train false); take the record out"
    )
  return chat[: learnt[-1] + 1]


def prompt_completion(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Reads the columns prompt and completion, each a text or a list of chat messages."""
  completion = _as_chat(_field(row, "completion"))
  if isinstance(completion, list):
    completion = _reply("completion", completion)
  return _demonstration_fields(row, kind, _field(row, "prompt"), completion)


def _demonstration_fields(
  row: dict[str, Any], kind: str, prompt: Any, completion: Any
) -> dict[str, Any]:
  if kind == "demonstration":
    refuse_bad(row)
    return {"prompt": prompt, "completion": completion}
  if kind == "prompt":
    return {"prompt": prompt}
  raise RecordError(f"this format holds no {kind}s; choose another format or kind of record")


def refuse_bad(row: dict[str, Any], columns: Sequence[str] = ()) -> None:
  """Raises RecordError where a column, other than `columns`, says that the answer is a bad one."""
  for name in VERDICTS:
    if row.get(name) is False and name not in columns:
      raise RecordError(
        f"{name}: false, so the completion is a bad answer and no demonstration; take the record "
        "out (instructjax data convert --leave-out leaves such records out)"
      )


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
  object or, before a number, into a list. "instruction+input" joins the texts of several columns
  with empty lines, and "answer_0|answer_1" is the list of several columns.

  On the left there are also, for comparisons,

    chosen, rejected   in place of completions and ranks
    scores             numbers, the highest the best, in place of ranks
    choice             the better completion or a tie, in place of ranks
    choices            the choices of several people; the ranks are those of their votes
    values             what the values of choices and pairs mean: "1|2|0" (`labels`)
    pairs              with values, labels of the pairs 1 and 2, 1 and 3, ..., 2 and 3, ...

  The other columns of a prompt are its further fields.
  """

  def spell(row: dict[str, Any], kind: str) -> dict[str, Any]:
    read = {ours: _of_columns(row, theirs) for ours, theirs in fields.items() if ours != "values"}
    values = fields.get("values", "")
    completions = [_completion(name, read.pop(name)) for name in PAIR if name in read]
    if completions:
      return {**read, **_preference_fields("comparison", read.get("prompt"), *completions)}
    if isinstance(read.get("completions"), list):
      read["completions"] = [_completion("completions", text) for text in read["completions"]]
    if kind == "demonstration":
      refuse_bad(row, tuple(fields.values()))
      if "completion" in read:
        read["completion"] = _completion("completion", read["completion"])
    if kind == "prompt":
      others = {name: value for name, value in row.items() if name not in fields.values()}
      return validation.further_fields(others) | read
    return _ordered(read, fields, values.split("|") if values else [])

  return spell


def _ordered(
  read: dict[str, Any], fields: Mapping[str, str], values: Sequence[str]
) -> dict[str, Any]:
  """Returns the fields of a row with ranks in the place of scores and choices."""
  completions = read.get("completions")
  order = [name for name in (*ORDER, "pairs") if name in read]
  if not order or not isinstance(completions, list) or (order == ["pairs"] and not values):
    return read
  (name,) = order
  column, label, k = fields[name], read.pop(name), len(completions)
  # Completions of one list have no columns of their own, but numbers.
  names = fields["completions"].split("|")
  if len(names) != k:
    names = [str(index) for index in range(1, k + 1)]
  if name == "pairs":
    return {**read, **labels.of_pair_labels(label, k, values, column)}
  if name == "choice":
    return {**read, "ranks": labels.of_votes([labels.preferred(label, names, values, column)], k)}
  columns = column.split("|")
  if not isinstance(label, list) or (name == "scores" and len(label) != k):
    raise RecordError(f"{column}: a list of {k} is expected, one a completion")
  places = columns if len(columns) == len(label) else [f"{column}[{i}]" for i in range(len(label))]
  if name == "scores":
    return {**read, "ranks": labels.ranks([labels.number(*pair) for pair in zip(label, places)])}
  choices = [labels.preferred(vote, names, values, place) for vote, place in zip(label, places)]
  return {**read, "ranks": labels.of_votes(choices, k)}


def _completion(name: str, value: Any) -> Any:
  """Returns a completion, which may be a chat of one reply."""
  chat = _as_chat(value)
  return _reply(name, chat) if isinstance(chat, list) else chat


def _of_columns(row: dict[str, Any], columns: str) -> Any:
  """Returns the value of a column, the list of several (a|b), or their texts joined (a+b)."""
  if columns not in row and "|" in columns:
    return [lookup(row, column) for column in columns.split("|")]
  if columns not in row and "+" in columns:
    return _joined(row, columns.split("+"))
  return lookup(row, columns)


def _joined(row: dict[str, Any], columns: Sequence[str]) -> str:
  """Returns the texts of several columns with empty lines between; the first must be there."""
  texts: list[str] = []
  for column in columns:
    # A row may have no text in a column, but a name that no column has is a mistake.
    if texts and row.get(column, column) in (None, ""):
      continue
    text = lookup(row, column)
    if not isinstance(text, str):
      raise RecordError(f"{column}: text is expected")
    texts.append(text)
  return "\n\n".join(texts)


def columns_of(fields: Mapping[str, str]) -> frozenset[str]:
  """Returns the columns that a mapping of fields reads."""
  columns: set[str] = set()
  for ours, theirs in fields.items():
    if ours == "values":
      continue
    for path in theirs.replace("+", "|").split("|"):
      # Of a path, the column is what stands before the first dot.
      columns |= {theirs, path, path.split(".")[0]}
  return frozenset(columns)


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
  "dolly": dolly,
  "messages": messages,
  "conversations": conversations,
  "prompt_completion": prompt_completion,
  "hh": hh,
}
