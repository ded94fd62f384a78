"""Answers of models on disk, one a line in JSONL, so that no model is asked anything twice.

A line holds the id of its item, the number of the request and of the sample, and `of`, the
fingerprint of what was asked and how. A run that was stopped anywhere goes on: a line that was cut
short is dropped, and only missing answers are asked for.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from instructjax.errors import UserError
from instructjax.evals.batches import Batch, Entry
from instructjax.evals.subject import Subject
from instructjax.evals.tasks import (
  Answer,
  Completion,
  Generate,
  Logp,
  Reply,
  Request,
  Task,
  fingerprint,
)
from instructjax.runs import writers

Place = tuple[str, int, int]  # id of the item, request, sample


class StoredAnswer(NamedTuple):
  """One answer of a file.

  of       the fingerprint of the question, and of the settings under which it was asked
  answer   the answer
  cut      the tokens that were left out of its prompt
  """

  of: str
  answer: Answer
  cut: int


class TaskAnswers(NamedTuple):
  """The stored answers of a model in a task, which `fill` completes.

  by_place       the answers
  fingerprints   for each item, what the `of` of its answers must be
  complete       whether no answer was missing when the file was read
  """

  by_place: dict[Place, StoredAnswer]
  fingerprints: list[str]
  complete: bool


# --- files of lines ---


def file(folder: Path, task: str, model: str) -> Path:
  """Returns the path of the lines of a task and a model, whose names become safe file names.

  Models whose names differ have different files.
  """
  name = _safe(model)
  # Two names may become the same file name: the fingerprint keeps them apart.
  if name != model:
    name = f"{name}-{fingerprint(model)[:8]}"
  return folder / _safe(task) / f"{name}.jsonl"


def _safe(name: str) -> str:
  return re.sub(r"[^\w.+@-]+", "_", name)


def lines(path: Path) -> list[dict[str, Any]]:
  """Returns the objects of a file that only ever grows; there are none where there is no file.

  The beginning of a last line, which a killed run leaves, is removed from the file.

  Raises:
    UserError: if any other line is broken.
  """
  if not path.is_file():
    return []
  content = path.read_bytes()
  end = content.rfind(b"\n") + 1  # of the last whole line
  whole = content[:end]
  # Several processes read the file, but only one of them may change it.
  if end < len(content) and jax.process_index() == 0:
    os.truncate(path, end)
  objects = []
  for number, line in enumerate(whole.splitlines(), 1):
    try:
      objects.append(json.loads(line))
    except ValueError as error:
      raise UserError(
        f"{path}:{number}: broken ({error}); take the line out, it will be made again"
      ) from None
  return objects


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Adds lines, all in one write, in the first process."""
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    writers.append(path, rows)


# --- answers ---


def load(path: Path) -> dict[Place, StoredAnswer]:
  """Returns the answers of a file."""
  answers: dict[Place, StoredAnswer] = {}
  for row in lines(path):
    # The fields of the answer are fields of the line, and show of which kind it is.
    kind = Logp if "logp" in row else Completion
    answer = kind(*(row[name] for name in kind._fields))
    place = (row["id"], row["request"], row["sample"])
    answers[place] = StoredAnswer(row["of"], answer, row["cut"])
  return answers


def stored(task: Task, path: Path, settings: str) -> TaskAnswers:
  """Returns the answers of a file to the items of a task.

  Raises:
    UserError: if an answer was given to another question or under other settings.
  """
  by_place = load(path)
  fingerprints: list[str] = []
  complete = True
  for item in task.items:
    requests = task.ask(item)
    questions = [_question(request) for request in requests]
    of = fingerprint(settings, questions)
    fingerprints.append(of)
    for place in places(item.id, requests):
      if place not in by_place:
        complete = False
      elif by_place[place].of != of:
        raise UserError(
          f"{path}: the answer for item {item.id!r} was given to another question or under other "
          "settings (seed, template, prefix, dtype, tokenizer); name another --workdir, or delete "
          "this file"
        )
  return TaskAnswers(by_place, fingerprints, complete)


def _question(request: Request) -> list[Any]:
  """Returns the parts of a request that the fingerprint of its answers covers."""
  fields = list(request)
  if isinstance(request, Generate):
    fields = fields[:-1]  # `is_over` changes no score
    if request.top_p == 1.0 and request.top_k == 0:
      # These two cut nothing away: files from before requests had them stay valid.
      fields = fields[:-2]
  return [type(request).__name__, *fields]


def places(item: str, requests: Sequence[Request]) -> list[Place]:
  """Returns the places of all answers of an item, by its id."""
  item_places: list[Place] = []
  for number, request in enumerate(requests):
    samples = range(_samples(request))
    item_places += [(item, number, sample) for sample in samples]
  return item_places


def _samples(request: Request) -> int:
  """Returns how many answers a request has."""
  return request.n if isinstance(request, Generate) else 1


def plan(task: Task, subject: Subject) -> list[Batch]:
  """Returns the batches of a task."""
  requests = [task.ask(item) for item in task.items]
  rows = subject.rows(enumerate(requests))
  return subject.plan(rows)


def fill(
  task: Task,
  subject: Subject,
  batches: Sequence[Batch],
  path: Path,
  answers: TaskAnswers,
) -> Iterator[bool]:
  """Asks for the missing answers and adds them to the file and to `answers.by_place`.

  Yields after each batch whether it was computed, so that the caller can show the progress.
  """
  for number, batch in enumerate(batches):
    batch_places = [_place(task, entry) for entry in batch.entries]
    if all(place in answers.by_place for place in batch_places):
      yield False
      continue

    # The noise depends on the task and the batch alone: a run that goes on samples the same.
    noise = zlib.crc32(f"{task.name}/{number}".encode())
    new_lines = []
    batch_answers = subject.answer(batch, noise)
    for place, entry, answer in zip(batch_places, batch.entries, batch_answers, strict=True):
      # A batch whose file was cut short is computed as a whole, and only what is missing is added.
      if place in answers.by_place:
        continue
      of = answers.fingerprints[entry.item]
      stored_answer = StoredAnswer(of, answer, entry.cut)
      answers.by_place[place] = stored_answer
      new_lines.append(_line(place, stored_answer))
    append(path, new_lines)
    yield True


def _place(task: Task, entry: Entry) -> Place:
  return task.items[entry.item].id, entry.request, entry.sample


def _line(place: Place, stored_answer: StoredAnswer) -> dict[str, Any]:
  """Returns the line of an answer, which `load` reads."""
  item, request, sample = place
  return {
    "id": item,
    "request": request,
    "sample": sample,
    "of": stored_answer.of,
    "cut": stored_answer.cut,
    **stored_answer.answer._asdict(),
  }


def replies(task: Task, by_place: Mapping[Place, StoredAnswer]) -> list[Reply]:
  """Returns the reply to every item, in the order of the items; no answer may be missing."""
  task_replies = []
  for item in task.items:
    answers, cut = [], 0
    for number, request in enumerate(task.ask(item)):
      sample_numbers = range(_samples(request))
      samples = [by_place[item.id, number, sample] for sample in sample_numbers]
      cut += samples[0].cut  # all samples have the same prompt
      if isinstance(request, Generate):
        answers.append(tuple(sample.answer for sample in samples))
      else:
        answers.append(samples[0].answer)
    task_replies.append(Reply(tuple(answers), cut))
  return task_replies
