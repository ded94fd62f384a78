"""Argilla: our tasks and answers as its records, and its records as ours.

The format is the one that `dataset.records.to_json` writes and `dataset.records.from_json` reads
in version 2. A record has `fields` with texts, `metadata`, and `responses`: for each question the
values that users gave.
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from instructjax.data.records.records import RecordError
from instructjax.label.answers import FLAGS, Answer, LabelerValue, Value, close_gaps
from instructjax.label.tasks import FACTS, Row, Task, facts, from_fields
from instructjax.system import jsons, plain_json

PROMPTS = ("prompt", "instruction", "input")  # the fields that may hold a prompt, in this order
OUTPUT = re.compile(r"(response|completion|output)[-_]?\d+")  # the fields that hold outputs

# --- from us to Argilla ---


def to_rows(tasks: Sequence[Task], answers: Sequence[Answer]) -> list[Row]:
  """Returns all tasks as records, with the answers to each as responses; skips are left out."""
  answers_by_task: dict[Task, list[Answer]] = defaultdict(list)
  for answer in answers:
    if answer.value is not None:
      answers_by_task[answer.task].append(answer)
  rows = []
  for number, task in enumerate(tasks, start=1):
    task_answers = answers_by_task[task]
    fields = {"prompt": task.prompt}
    for i, text in enumerate(task.completions, start=1):
      fields[f"response_{i}"] = text
    row = {
      # `from_row` knows this pattern as no id of ours.
      "id": task.id or f"task-{number}",
      "fields": fields,
      "metadata": _metadata(task, task_answers),
      "suggestions": {},
      "responses": _responses(task_answers),
      "vectors": {},
      "status": "completed" if task_answers else "pending",
    }
    rows.append(row)
  return rows


def _metadata(task: Task, answers: Sequence[Answer]) -> Row:
  """Returns the facts about a prompt, and the labelers by the names that they have with us."""
  metadata: Row = {}
  for name, value in facts(task).items():
    if value is not None and name != "id":
      # Metadata of Argilla are texts or numbers; `consent` and `annotations` are neither.
      metadata[name] = value if isinstance(value, str) else jsons.text(value, ascii_only=True)
  if answers:
    metadata["labelers"] = [answer.labeler for answer in answers]
  return metadata


def _responses(answers: Sequence[Answer]) -> dict[str, list[Row]]:
  """Returns for each question the values of all labelers."""
  responses = defaultdict(list)
  for answer in answers:
    user = user_id(answer.labeler)
    for question, value in _values_by_question(answer.value or {}).items():
      responses[question].append({"value": value, "user_id": user})
  return dict(responses)


def user_id(labeler: str) -> str:
  """Returns the UUID of a labeler, which Argilla requires: the id itself, or a digest of it."""
  try:
    return str(uuid.UUID(labeler))
  except ValueError:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"labeler:{labeler}"))


def _values_by_question(value: Value) -> dict[str, Any]:
  """Returns the value of an answer as values of Argilla's questions."""
  if "completion" in value:
    return {"demonstration": value["completion"]}
  values: dict[str, Any] = {"ranking": []}
  for i, rank in enumerate(value["ranks"], start=1):
    values["ranking"].append({"value": f"response_{i}", "rank": rank})
    rating = value["ratings"][i - 1]
    note = value["notes"][i - 1]
    if rating:
      values[f"overall_{i}"] = rating["overall"]
      values[f"flags_{i}"] = [flag for flag in FLAGS if rating[flag]]
    if note:
      values[f"notes_{i}"] = note
  return values


# --- from Argilla to us ---


def from_row(row: Any, kind: str) -> tuple[Task, list[LabelerValue], list[str]]:
  """Reads a record with a prompt, responses and a question `ranking` or `demonstration`.

  In the place of a ranking there may be a question of any name whose answer is the name of a field
  with an output: that output is preferred to all others, which tie.

  Returns:
    The task, the answers of its labelers, and what was left out: a line for each labeler who has
    not finished or has answered other questions.

  Raises:
    RecordError: the row is not a record.
    UserError: the task is not one of ours.
  """
  fields = row.get("fields") if isinstance(row, dict) else None
  if not isinstance(fields, dict):
    raise RecordError("a record with fields is expected")
  prompts = [fields[name] for name in PROMPTS if fields.get(name)]
  # A record with fewer outputs than the data set has fields leaves the last ones empty.
  names = [name for name, text in fields.items() if OUTPUT.fullmatch(name) and text]
  texts = [fields[name] for name in names] if kind == "comparison" else []
  metadata = row.get("metadata") or {}
  task_facts = _facts(row.get("id"), metadata)
  labelers = {user_id(name): name for name in metadata.get("labelers", [])}
  values: list[LabelerValue] = []
  left_out: list[str] = []
  questions_by_user = _questions_by_user(row.get("responses") or {})
  for user, questions in questions_by_user.items():
    labeler = labelers.get(user, user)
    try:
      values.append((labeler, _value(questions, kind, names)))
    except RecordError as error:
      left_out.append(f"{error} ({labeler})")
  prompt = prompts[0] if prompts else ""
  return from_fields(kind, prompt, texts, task_facts), values, left_out


def _facts(record_id: Any, metadata: Row) -> Row:
  """Returns the facts about a prompt, as `to_rows` wrote them."""
  task_facts = {name: metadata.get(name) for name in FACTS}
  for name in ("consent", "annotations"):
    text = task_facts[name]
    if isinstance(text, str):
      task_facts[name] = plain_json.decode(text)
  # A record of a task without an id has a number instead.
  is_number = re.fullmatch(r"task-\d+", str(record_id))
  task_facts["id"] = None if is_number else record_id or None
  return task_facts


def _questions_by_user(responses: Row) -> dict[str, Row]:
  """Returns the values by user id and question, from the responses by question."""
  by_user: dict[str, Row] = defaultdict(dict)
  for question, question_responses in responses.items():
    for response in question_responses:
      user = str(response["user_id"])
      by_user[user][question] = response["value"]
  return by_user


def _value(
  questions: Row,
  kind: str,
  names: list[str],
) -> Value:
  """Returns the value of an answer from a user's answers; `names` are the fields of the outputs.

  Raises:
    RecordError: there is no answer to the main question, or no rank of an output.
  """
  if kind == "demonstration":
    if "demonstration" not in questions:
      raise RecordError(f"{_named(questions)}: no answer to a question 'demonstration'")
    return {"completion": questions["demonstration"]}
  rank_by_name: dict[str, Any] = {}
  ranking = questions["ranking"] if "ranking" in questions else _choice(questions, names)
  for position, item in enumerate(ranking, start=1):
    # Argilla's own library gives an ordered list of names, which has lost the ties.
    if isinstance(item, dict):
      rank_by_name[item["value"]] = item.get("rank", position)
    else:
      rank_by_name[item] = position
  missing = [name for name in names if name not in rank_by_name]
  if missing:
    raise RecordError(f"responses.ranking: {missing[0]} has no rank")
  ratings, notes = [], []
  for i in range(1, len(names) + 1):
    overall = questions.get(f"overall_{i}")
    rating = {}
    if overall:
      rating["overall"] = overall
      flags = questions.get(f"flags_{i}", [])
      rating |= dict.fromkeys(flags, True)
    ratings.append(rating)
    notes.append(questions.get(f"notes_{i}", ""))
  ranks = close_gaps([rank_by_name[name] for name in names])
  return {"ranks": ranks, "ratings": ratings, "notes": notes}


def _choice(questions: Row, names: list[str]) -> list[Row]:
  """Returns the ranking of a user who has named one of the outputs.

  Raises:
    RecordError: no question, or more than one, has the name of an output as its answer.
  """
  # A list is the answer to another kind of question, and cannot be looked up.
  choices = [
    question for question, value in questions.items() if isinstance(value, str) and value in names
  ]
  if len(choices) != 1:
    problem = f"no ranking, and no answer is one of {', '.join(names) or 'the outputs'}"
    if choices:
      questions = {question: questions[question] for question in choices}
      problem = "more than one answer is an output; keep one of these questions"
    raise RecordError(f"{_named(questions)}: {problem}")
  chosen = questions[choices[0]]
  return [{"value": name, "rank": 1 if name == chosen else 2} for name in names]


def _named(questions: Row) -> str:
  """Returns the questions that a user has answered, as a place in a record."""
  return ", ".join(f"responses.{question}" for question in questions)
