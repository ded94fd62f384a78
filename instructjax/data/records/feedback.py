"""Public collections of feedback as comparisons: UltraFeedback, TL;DR and Open Assistant.

UltraFeedback (Cui et al. 2023) has scores by a model. summarize-from-feedback (Stiennon et al.
2020) has people's choices between two summaries, and Open Assistant (Köpf et al. 2023) has people's
ranks. All of them become ranks from 1 without gaps, and equal scores become ties.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from instructjax.data.records.formats import lookup
from instructjax.data.records.labels import number, ranks
from instructjax.data.records.records import RecordError

Row = dict[str, Any]
# The names that UltraFeedback's versions have for the completions, and for the score of one.
COMPLETIONS = ("completions", "generations", "responses")
SCORES = ("overall_score", "rating", "score")


# --- UltraFeedback ---


def ultrafeedback(row: Row, kind: str) -> Row:
  """Reads an instruction and its completions with their scores, where the highest is the best.

  The completions are objects of a response and an overall_score, or texts with a list of ratings
  beside them. A demonstration has the best completion, the first one where several are best.
  """
  prompt = lookup(row, "instruction" if "instruction" in row else "prompt")
  if kind == "prompt":
    return {"prompt": prompt}
  name = next((name for name in COMPLETIONS if row.get(name)), COMPLETIONS[0])
  completions = lookup(row, name)
  if not isinstance(completions, list):
    raise RecordError(f"{name}: a list is expected")
  if all(isinstance(completion, dict) for completion in completions):
    scores = [
      _completion_score(completion, f"{name}[{index}]")
      for index, completion in enumerate(completions)
    ]
    texts = [completion.get("response", completion.get("text")) for completion in completions]
  else:
    scores = _scores_beside(row, len(completions))
    texts = completions
  # All texts that are missing are named at once, as everywhere.
  problems = [
    f"{name}[{index}]: text is expected"
    for index, text in enumerate(texts)
    if not isinstance(text, str)
  ]
  if problems:
    raise RecordError(*problems)
  return ranked_fields(kind, prompt, texts, ranks(scores))


def _completion_score(completion: Row, place: str) -> float:
  """Returns the score of a completion that is an object, under the first name that has a value."""
  key = next((key for key in SCORES if completion.get(key) is not None), SCORES[0])
  return number(completion.get(key), f"{place}.{key}")


def _scores_beside(row: Row, count: int) -> list[float]:
  """Returns the scores of completions that are texts: a list of as many numbers in the row."""
  name = "ratings" if "ratings" in row else "scores"
  values = lookup(row, name)
  if not isinstance(values, list) or len(values) != count:
    raise RecordError(f"{name}: a list of {count} numbers is expected, one a completion")
  return [number(value, f"{name}[{index}]") for index, value in enumerate(values)]


# --- summarize-from-feedback ---


def summarize_feedback(row: Row, kind: str) -> Row:
  """Reads a post or an article, two summaries, the choice between them and who chose.

  The post or the article is in `info`, the choice is 0 or 1, and the worker becomes the labeler.
  """
  info = lookup(row, "info")
  if not isinstance(info, dict):
    raise RecordError("info: an object with the post is expected")
  # Rows of Reddit have a post, and those of CNN/DM an article.
  document = _text(info, "post" if info.get("post") else "article", "info.")
  prompt = f"{document.strip()}\n\nTL;DR:"
  if kind == "prompt":
    return {"prompt": prompt}
  summaries = lookup(row, "summaries")
  choice = row.get("choice")
  is_pair = isinstance(summaries, list) and len(summaries) == 2
  if not is_pair or not all(isinstance(summary, dict) for summary in summaries):
    raise RecordError("summaries: a list of two objects with text is expected")
  if type(choice) is not int or choice not in (0, 1):
    raise RecordError("choice: 0 or 1 is expected")
  # The summaries begin with a space, which is the one after "TL;DR:"; all else is their own.
  texts = [
    _text(summary, "text", f"summaries[{index}].").removeprefix(" ")
    for index, summary in enumerate(summaries)
  ]
  fields = ranked_fields(kind, prompt, texts, [1, 2] if choice == 0 else [2, 1])
  if kind == "comparison" and row.get("worker") is not None:
    fields["labeler"] = row["worker"]
  return fields


# --- Open Assistant ---


def oasst(rows: list[tuple[str, Row]], kind: str) -> Iterator[tuple[str, Row | RecordError]]:
  """Reads message trees, which give a record for each of many messages of a prompter.

  A row is one message (message_id, parent_id, role, text, rank) or a whole tree (prompt, an object
  that nests its replies). The prompt of a record is the chat down to a prompter's message. A
  comparison has the replies to it that have a rank, where there are at least two. A demonstration
  has the best of them, or the only reply. Deleted messages are left out. The tree (its
  message_tree_id, or the id of its first message) is the `group` of a record.

  `rows` are (place, row) pairs. Yields (place, fields of a record) and (place, problem) pairs.
  """
  placed_messages: list[tuple[str, Row]] = []
  for place, row in rows:
    try:
      placed_messages += [(place, message) for message in _messages(row)]
    except RecordError as error:
      yield place, error

  # Rows come in any order, so the trees are put together before any record is made.
  by_id: dict[str, Row] = {}
  children: dict[str, list[Row]] = defaultdict(list)
  unique_messages: list[tuple[str, Row]] = []
  for place, message in placed_messages:
    name = message["message_id"]
    if name in by_id:
      yield place, RecordError(f"message_id: {name!r} appears twice")
      continue
    by_id[name] = message
    unique_messages.append((place, message))
    if message["parent_id"] is not None:
      children[message["parent_id"]].append(message)

  for place, message in unique_messages:
    try:
      chat = _ancestry(message, by_id)
      # Nothing that follows a deleted message is used, because its prompt has a hole.
      if message["role"] != "prompter" or any(earlier["deleted"] for earlier in chat):
        continue
      replies = [reply for reply in children[message["message_id"]] if not reply["deleted"]]
      fields = _record_of_replies(kind, _as_chat(chat), replies)
      if fields:
        fields["id"] = message["message_id"]
        # The chats of one tree begin with one message, so they must not be parted by a split.
        fields["group"] = message["tree"] or chat[0]["message_id"]
        yield place, fields
    except RecordError as error:
      yield place, error


def _messages(row: Row) -> list[Row]:
  """Returns the messages of a row, which is a tree or one message, with the fields we need."""
  if isinstance(row.get("prompt"), dict):
    stack = [(row["prompt"], None)]
  else:
    stack = [(row, row.get("parent_id"))]
  messages = []
  while stack:
    node, parent = stack.pop()
    if not isinstance(node, dict):
      raise RecordError("replies: objects are expected")
    replies = node.get("replies") or []
    rank = node.get("rank")
    if not isinstance(replies, list):
      raise RecordError("replies: a list of objects is expected")
    if node.get("role") not in ("prompter", "assistant"):
      raise RecordError("role: 'prompter' or 'assistant' is expected")
    tree = node.get("message_tree_id")
    if not isinstance(parent, str | None) or not isinstance(tree, str | None):
      raise RecordError("parent_id, message_tree_id: texts are expected")
    rank = None if rank is None else number(rank, "rank")
    message = {
      "message_id": _text(node, "message_id"),
      "parent_id": parent,
      "tree": tree,
      "role": node["role"],
      "text": _text(node, "text"),
      "rank": rank,
      "deleted": node.get("deleted") is True,
    }
    messages.append(message)
    # The last reply goes on the stack first, so that the first one is read first.
    stack += [(reply, message["message_id"]) for reply in reversed(replies)]
  return messages


def _ancestry(message: Row, by_id: dict[str, Row]) -> list[Row]:
  """Returns the messages from the first one of the tree down to this one."""
  name = message["message_id"]
  chat = [message]
  seen = {name}
  parent = message["parent_id"]
  while parent is not None:
    # A circle in the data would otherwise keep this loop going for ever.
    if parent in seen:
      raise RecordError(f"parent_id: the ancestors of {name!r} go in a circle")
    if parent not in by_id:
      raise RecordError(f"parent_id: there is no message {parent!r}; give whole trees")
    seen.add(parent)
    chat.append(by_id[parent])
    parent = by_id[parent]["parent_id"]
  return chat[::-1]


def _as_chat(messages: list[Row]) -> list[Row]:
  """Returns Open Assistant's messages as {role, content} messages."""
  roles = {"prompter": "user", "assistant": "assistant"}
  return [{"role": roles[message["role"]], "content": message["text"]} for message in messages]


def _record_of_replies(kind: str, prompt: list[Row], replies: list[Row]) -> Row | None:
  """Returns the fields of the record of a prompt and its replies, or None where they give none."""
  if kind == "prompt":
    return {"prompt": prompt}
  replies = [reply for reply in replies if reply["role"] == "assistant"]
  ranked = [reply for reply in replies if reply["rank"] is not None]
  if kind == "demonstration" and not ranked and len(replies) == 1:
    return {"prompt": prompt, "completion": replies[0]["text"]}
  needed = 1 if kind == "demonstration" else 2
  if len(ranked) < needed:
    return None
  texts = [reply["text"] for reply in ranked]
  # Open Assistant's best rank is 0, so the negated rank is a score.
  return ranked_fields(kind, prompt, texts, ranks([-reply["rank"] for reply in ranked]))


# --- fields and values ---


def ranked_fields(kind: str, prompt: Any, texts: list[Any], order: list[int]) -> Row:
  """Returns the fields of a comparison, or of the demonstration of the first best completion."""
  if kind == "comparison":
    return {"prompt": prompt, "completions": texts, "ranks": order}
  if kind == "prompt":
    return {"prompt": prompt}
  if kind == "demonstration":
    if not texts:
      # The check of the record says that the completion is missing.
      return {"prompt": prompt}
    return {"prompt": prompt, "completion": texts[order.index(1)]}
  raise RecordError(f"this format holds no {kind}s; choose another format or kind of record")


def _text(row: Row, field: str, place: str = "") -> str:
  if not isinstance(row.get(field), str):
    names = ", ".join(sorted(row)) or "no fields"
    raise RecordError(f"{place}{field}: text is expected; the row has {names}")
  return row[field]
