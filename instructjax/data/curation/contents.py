"""What a labelled record holds: its prompt, its texts, their lengths, and whose it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructjax.data.curation import few_shot
from instructjax.data.records import records
from instructjax.data.records.records import (
  TURN,
  Comparison,
  Demonstration,
  FewShot,
  Labelled,
  Prompt,
)
from instructjax.data.tokens.tokenizers import Tokenizer


def prompt_text(record: Labelled) -> str:
  """Returns what is compared, counted and hashed as the prompt of a record.

  Of a few_shot record this is the instruction and all of its pairs.
  """
  if isinstance(record, FewShot):
    text = few_shot.prompt(record.instruction, record.pairs, "")
    return text.removesuffix("\n\nInput: \nOutput:")
  return record.prompt


def first_message(record: Labelled) -> str:
  """Returns the message with which the user begins the chat of a record.

  A text in which "Human:" and "Assistant:" take turns, as in the transcripts of HH, is such a chat
  too. Any other prompt is one message. Empty messages do not count: many chats begin with one.
  """
  if isinstance(record, FewShot):
    return prompt_text(record)
  if record.turns is not None:
    messages = [message["content"] for message in record.turns if message["role"] == "user"]
  else:
    # What stands before the first name is for every chat of a product, and no message of a user.
    turns = record.prompt.split("\n\nHuman:")[1:]
    messages = [turn.split(TURN)[0] for turn in turns if TURN in turn]
  return next((message for message in messages if message.strip()), record.prompt)


def rewritten(record: Labelled, change: Callable[[str], str]) -> Labelled:
  """Returns the record with every text of it changed."""
  if isinstance(record, FewShot):
    return dataclasses.replace(
      record,
      instruction=change(record.instruction),
      pairs=tuple(_changed_pair(pair, change) for pair in record.pairs),
    )
  changes = _changed_prompt(record, change)
  if isinstance(record, Comparison):
    changes["completions"] = tuple(change(text) for text in record.completions)
  elif isinstance(record, Demonstration):
    changes["completion"] = change(record.completion)
  return dataclasses.replace(record, **changes)


def _changed_pair(
  pair: Mapping[str, str],
  change: Callable[[str], str],
) -> dict[str, str]:
  return {name: change(text) for name, text in pair.items()}


def _changed_prompt(
  record: Demonstration | Comparison | Prompt,
  change: Callable[[str], str],
) -> dict[str, Any]:
  """Returns the fields of the changed prompt.

  A chat is changed message by message, and its text is made anew from the messages.
  """
  if record.turns is None:
    return {"prompt": change(record.prompt)}
  turns = tuple(
    {**message, "content": change(message["content"])}  # the role stays
    for message in record.turns
  )
  return {"prompt": records.transcript(turns), "turns": turns}


def group_of(record: Labelled, group: str = "user") -> str | None:
  """Returns the user of a record, or the organisation if `group` says so and the record names one.

  It is None if the record does not say.
  """
  if group == "organisation" and record.organisation is not None:
    return f"organisation:{record.organisation}"
  if record.user is not None:
    return f"user:{record.user}"
  return None


def lengths(record: Labelled, tokenizer: Tokenizer) -> tuple[int, int]:
  """Returns the tokens of the prompt, and those of the longest response or 0 if there is none.

  The prompt counts with the beginning of text, and the response with its end.
  """
  if isinstance(record, FewShot):
    # What the stages get are the demonstrations that it becomes.
    sizes = [lengths(demonstration, tokenizer) for demonstration in few_shot.expand(record)]
    longest_prompt = max(prompt for prompt, _ in sizes)
    longest_response = max(response for _, response in sizes)
    return longest_prompt, longest_response
  completions: Sequence[str] = ()
  if isinstance(record, Comparison):
    completions = record.completions
  elif isinstance(record, Demonstration):
    completions = (record.completion,)
  prompt = len(tokenizer.bos) + len(tokenizer.encode(record.prompt))
  responses = [len(tokenizer.encode(text)) + 1 for text in completions]
  return prompt, max(responses, default=0)
