"""Tasks and answers as files: our records, complete answers, and the JSON of other tools.

labelstudio.py and argilla.py each hold a pair of functions for one other tool: `to_rows` gives
rows for JSON, and `from_row` turns one of them back into a task and its answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.data.records import places, records, validation
from instructjax.data.records.records import Comparison, Demonstration, RecordError
from instructjax.errors import UserError
from instructjax.label import argilla, labelstudio
from instructjax.label.answers import Answer, LabelerValue, check
from instructjax.label.tasks import Row, Task, as_fields, facts, unanswered
from instructjax.system import plain_json

UNNAMED = "unnamed"  # the labeler of a record that names none


class Loaded(NamedTuple):
  """What a file holds: tasks, answers, and a line for each answer that was left out."""

  tasks: list[Task]
  answers: list[Answer]
  left_out: list[str]


def comparisons(answers: Iterable[Answer]) -> list[Comparison]:
  """Returns a record for each ranking; skips and notes have no place in one."""
  rankings = []
  for answer in answers:
    if answer.value is None:
      continue
    task = answer.task
    ratings = tuple(answer.value["ratings"])
    # A ranking from another tool may have no rating at all; its record lacks the field then.
    ranking = Comparison(
      task.prompt,
      task.completions,
      tuple(answer.value["ranks"]),
      labeler=answer.labeler,
      ratings=ratings if any(ratings) else None,
      sources=task.sources or None,
      turns=task.turns,
      **facts(task),
    )
    rankings.append(ranking)
  return rankings


def demonstrations(answers: Iterable[Answer]) -> list[Demonstration]:
  """Returns a record for each demonstration; skips have no place in one."""
  written = []
  for answer in answers:
    if answer.value is not None:
      task = answer.task
      demonstration = Demonstration(
        task.prompt,
        answer.value["completion"],
        turns=task.turns,
        **facts(task),
      )
      written.append(demonstration)
  return written


def to_answers(answers: Iterable[Answer]) -> list[Row]:
  """Returns all that is stored: skips and reasons, notes, orders shown, seconds and sources."""
  rows = []
  for answer in answers:
    row = as_fields(answer.task)
    row["labeler"] = answer.labeler
    row["shown"] = answer.order
    row["seconds"] = round(answer.seconds, 1)
    if answer.value is None:
      row["skipped"] = answer.reason
    else:
      row |= answer.value
    rows.append(row)
  return rows


def from_records(path: Path, kind: str) -> Loaded:
  """Reads labeled records: comparisons with their labeler, or demonstrations.

  Raises:
    UserError: the file is invalid; the text has a line for every problem.
  """
  tasks, answers, problems = [], [], []
  # Continuations are stored as comparisons with other ratings, which `check` tells from ours.
  record_kind = "demonstration" if kind == "demonstration" else "comparison"
  for number, record in enumerate(records.read(path, record_kind)):
    if isinstance(record, Comparison) and record.pairs:
      place = places.of(record, str(path), number)
      problems.append(f"{place}: pairs: an answer has ranks; take the record out")
      continue
    task = unanswered(record)
    answer = _answer_of(record, task)
    tasks.append(task)
    answers.append(answer)
    try:
      check(kind, answer.value, len(task.completions))
    except UserError as error:
      problems.append(places.problem(places.of(record, str(path), number), str(error)))
  records.report(problems)
  return Loaded(tasks, answers, [])


def _answer_of(record: Comparison | Demonstration, task: Task) -> Answer:
  """Returns the answer in a record to its task."""
  if isinstance(record, Demonstration):
    return Answer(task, UNNAMED, {"completion": record.completion})
  k = len(record.completions)
  # A comparison may have ranks alone.
  ratings = record.ratings or [{}] * k
  value = {
    "ranks": list(record.ranks),
    "ratings": [dict(rating) for rating in ratings],
    "notes": [""] * k,
  }
  return Answer(task, record.labeler or UNNAMED, value)


def load(
  path: str | Path,
  kind: str,
  form: str,
) -> Loaded:
  """Reads the tasks and answers of a file.

  An answer of another tool that is not finished, or not as ours have to be, is left out alone.

  Args:
    path: The file.
    kind: The kind of tasks in it.
    form: Its format, "records", "labelstudio" or "argilla".

  Raises:
    UserError: the file cannot be read or a row is invalid; all problems are listed.
  """
  path = Path(path)
  if form == "records":
    return from_records(path, kind)
  require_form(kind, form, path)
  from_row = labelstudio.from_row if form == "labelstudio" else argilla.from_row
  tasks, answers, problems, left_out = [], [], [], []
  for position, row in enumerate(_read_rows(path, form)):
    place = f"{path}: item {position}"
    try:
      task, values, unfinished = from_row(row, kind)
      values, refused = _valid_values(kind, task, values)
    except (UserError, RecordError) as error:
      # A RecordError may have several problems, and each text several lines.
      lines = "\n".join(str(part) for part in error.args).split("\n")
      problems += [f"{place}: {validation.printable(line)}" for line in lines]
      continue
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
      # The readers follow what the tool writes, so any other structure ends in one of these.
      text = f"not as {form} writes it ({type(error).__name__}: {error})"
      problems.append(f"{place}: {validation.printable(text)}")
      continue
    tasks.append(task)
    left_out += [f"{place}: {validation.printable(line)}" for line in [*unfinished, *refused]]
    for labeler, value in values:
      reason = "" if value else "skipped elsewhere"
      answers.append(Answer(task, labeler, value, reason))
  records.report(problems)
  return Loaded(tasks, answers, left_out)


def require_form(
  kind: str,
  form: str,
  path: Path,
) -> None:
  """Raises UserError for a kind of tasks that another tool cannot hold; `path` names the file."""
  if kind == "continuation":
    raise UserError(
      f"{path}, --format={form}: there is no form of {form} for continuations; take "
      "--format=records"
    )


def _read_rows(path: Path, form: str) -> list[Any]:
  """Reads the list in a JSON file, which must not be empty."""
  try:
    # Some tools write a byte order mark, which plain "utf-8" would leave in the text.
    rows = plain_json.decode(path.read_text(encoding="utf-8-sig"))
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except (OSError, ValueError) as error:
    raise UserError(
      f"{path}: not JSON ({error}); give the file that the tool exported as JSON"
    ) from None
  if not isinstance(rows, list) or not rows:
    items = "tasks" if form == "labelstudio" else "records"
    raise UserError(f"{path}: a list of {items} is expected")
  return rows


def _valid_values(
  kind: str,
  task: Task,
  values: list[LabelerValue],
) -> tuple[list[LabelerValue], list[str]]:
  """Returns the answers that are valid, as skips always are, and what is wrong with the others."""
  valid: list[LabelerValue] = []
  problems: list[str] = []
  for labeler, value in values:
    try:
      if value is not None:
        check(kind, value, len(task.completions))
    except UserError as error:
      problems.append(f"{error} ({labeler})")
    else:
      valid.append((labeler, value))
  return valid, problems
