"""Public collections of human and model feedback as comparisons: UltraFeedback,
summarize-from-feedback, Open Assistant.

Scores and ranks become ranks from 1 without gaps; equal ones are ties.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from instructjax.data.records.formats import lookup
from instructjax.data.records.records import RecordError

Row = dict[str, Any]
SCORES = ("overall_score", "rating", "score")  # of one completion, the first that is there


def ranks(scores: Sequence[float]) -> list[int]:
  """1 for the highest score, 2 for the next one below it, and so on: [3, 5, 3] gives [2, 1, 2]."""
  order = sorted(set(scores), reverse=True)
  return [order.index(score) + 1 for score in scores]


def ultrafeedback(row: Row, kind: str) -> Row:
  """instruction and rated completions: `completions` of {response, overall_score}, or `generations`
  beside `ratings`.

  Higher is better.  As a demonstration the best one, the first of them where several are.
  """
  prompt = lookup(row, "instruction" if "instruction" in row else "prompt")
  if kind == "prompt":
    return {"prompt": prompt}
  name = next(
    (name for name in ("completions", "generations", "responses") if row.get(name)), "completions"
  )
  given = lookup(row, name)
  if not isinstance(given, list):
    raise RecordError(f"{name}: a list is expected")
  if all(isinstance(one, dict) for one in given):
    keys = [next((key for key in SCORES if one.get(key) is not None), SCORES[0]) for one in given]
    scores = [
      _score(one.get(key), f"{name}[{i}].{key}") for i, (one, key) in enumerate(zip(given, keys))
    ]
    texts = [one.get("response", one.get("text")) for one in given]
  else:
    beside = "ratings" if "ratings" in row else "scores"
    rated, texts = lookup(row, beside), given
    if not isinstance(rated, list) or len(rated) != len(given):
      raise RecordError(f"{beside}: a list of {len(given)} numbers is expected, one a completion")
    scores = [_score(value, f"{beside}[{i}]") for i, value in enumerate(rated)]
  missing = [
    f"{name}[{i}]: text is expected" for i, text in enumerate(texts) if not isinstance(text, str)
  ]
  if missing:
    raise RecordError(*missing)
  return _ranked(kind, prompt, texts, ranks(scores))


def summarize_feedback(row: Row, kind: str) -> Row:
  """info with the post (or the article), two summaries, the choice between them (0 or 1) and the
  worker who chose.
  """
  info = lookup(row, "info")
  if not isinstance(info, dict):
    raise RecordError("info: an object with the post is expected")
  prompt = f"{_string(info, 'post' if info.get('post') else 'article', 'info.').strip()}\n\nTL;DR:"
  if kind == "prompt":
    return {"prompt": prompt}
  summaries, choice = lookup(row, "summaries"), row.get("choice")
  if (
    not isinstance(summaries, list)
    or len(summaries) != 2
    or not all(isinstance(one, dict) for one in summaries)
  ):
    raise RecordError("summaries: a list of two objects with text is expected")
  if type(choice) is not int or choice not in (0, 1):
    raise RecordError("choice: 0 or 1 is expected")
  texts = [_string(one, "text", f"summaries[{i}].").strip() for i, one in enumerate(summaries)]
  from_whom = (
    {"labeler": row["worker"]} if kind == "comparison" and row.get("worker") is not None else {}
  )
  return _ranked(kind, prompt, texts, [1 + (i != choice) for i in (0, 1)]) | from_whom


def oasst(rows: list[tuple[int, Row]], kind: str) -> Iterator[tuple[int, Row | RecordError]]:
  """Message trees, a message a row (message_id, parent_id, role, text, rank) or a tree a row
  (prompt with replies).

  The prompt is the chat down to a prompter's message.  Comparison: its replies that have a rank
  (0 is best), where there are at least two.  Demonstration: the best of them, or the only reply.
  Deleted messages are left out.
  """
  messages: list[tuple[int, Row]] = []
  for line, row in rows:
    try:
      messages += [(line, one) for one in _messages(row)]
    except RecordError as problem:
      yield line, problem
  known: dict[str, tuple[Row, str | None]] = {}
  children: dict[str, list[Row]] = defaultdict(list)
  places: list[tuple[int, Row]] = []
  for line, one in messages:
    try:
      if one["message_id"] in known:
        raise RecordError(f"message_id: {one['message_id']!r} stands twice")
      known[one["message_id"]] = one, one["parent_id"]
      places.append((line, one))
      if one["parent_id"] is not None:
        children[one["parent_id"]].append(one)
    except RecordError as problem:
      yield line, problem
  for line, one in places:
    try:
      chat = _ancestry(one, known)
      if one["role"] == "prompter" and not any(past["deleted"] for past in chat):
        found = _replies(
          kind,
          _chat(chat),
          [reply for reply in children[one["message_id"]] if not reply["deleted"]],
        )
        if found:
          yield line, found | {"id": one["message_id"]}
    except RecordError as problem:
      yield line, problem


def _messages(row: Row) -> list[Row]:
  """The messages of a row, a tree or one message, with the fields that are needed and their types."""
  nested = isinstance(row.get("prompt"), dict)
  waiting, found = (
    [(row["prompt"] if nested else row, None if nested else row.get("parent_id"))],
    [],
  )
  while waiting:
    one, parent = waiting.pop()
    if not isinstance(one, dict):
      raise RecordError("replies: objects are expected")
    replies, rank = one.get("replies") or [], one.get("rank")
    if not isinstance(replies, list):
      raise RecordError("replies: a list of objects is expected")
    if one.get("role") not in ("prompter", "assistant"):
      raise RecordError("role: 'prompter' or 'assistant' is expected")
    if not isinstance(parent, str | None):
      raise RecordError("parent_id: text is expected")
    rank = None if rank is None else _score(rank, "rank")
    name, text, deleted = (
      _string(one, "message_id"),
      _string(one, "text"),
      one.get("deleted") is True,
    )
    found.append(
      {
        "message_id": name,
        "parent_id": parent,
        "role": one["role"],
        "text": text,
        "rank": rank,
        "deleted": deleted,
      }
    )
    waiting += [(reply, name) for reply in reversed(replies)]
  return found


def _ancestry(one: Row, known: dict[str, tuple[Row, str | None]]) -> list[Row]:
  """The messages from the first one down to this one."""
  chat, seen, parent = [one], {one["message_id"]}, one["parent_id"]
  while parent is not None:
    if parent in seen:
      raise RecordError(f"parent_id: the ancestors of {one['message_id']!r} go in a circle")
    if parent not in known:
      raise RecordError(f"parent_id: there is no message {parent!r}; give whole trees")
    seen.add(parent)
    message, above = known[parent]
    chat.append(message)
    parent = above
  return chat[::-1]


def _chat(messages: list[Row]) -> list[Row]:
  return [
    {"role": "user" if one["role"] == "prompter" else "assistant", "content": one["text"]}
    for one in messages
  ]


def _replies(kind: str, prompt: list[Row], replies: list[Row]) -> Row | None:
  """What a prompt and its replies give; None where they give nothing of this kind."""
  if kind == "prompt":
    return {"prompt": prompt}
  replies = [one for one in replies if one["role"] == "assistant"]
  ranked = [one for one in replies if one["rank"] is not None]
  if kind == "demonstration" and not ranked and len(replies) == 1:
    return {"prompt": prompt, "completion": replies[0]["text"]}
  if len(ranked) < (1 if kind == "demonstration" else 2):
    return None
  return _ranked(
    kind, prompt, [one["text"] for one in ranked], ranks([-one["rank"] for one in ranked])
  )


def _ranked(kind: str, prompt: Any, texts: list[str], order: list[int]) -> Row:
  if kind == "comparison":
    return {"prompt": prompt, "completions": texts, "ranks": order}
  if kind == "demonstration":
    return {"prompt": prompt, "completion": texts[order.index(1)]} if texts else {"prompt": prompt}
  raise RecordError(f"this format holds no {kind}s; choose another format or kind of record")


def _score(value: Any, place: str) -> float:
  """A finite number, also where it stands in a text."""
  try:
    found = (
      float(value)
      if isinstance(value, str | int | float) and not isinstance(value, bool)
      else math.nan
    )
  except (ValueError, OverflowError):
    found = math.nan
  if not math.isfinite(found):
    raise RecordError(f"{place}: a number is expected; mend it or take the record out")
  return found


def _string(row: Row, field: str, place: str = "") -> str:
  if not isinstance(row.get(field), str):
    raise RecordError(
      f"{place}{field}: text is expected; the row has {', '.join(sorted(row)) or 'no fields'}"
    )
  return row[field]
