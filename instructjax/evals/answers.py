"""What models said, answer by answer, in JSONL: a run that was stopped anywhere goes on, and
nothing is asked twice.

A line is one answer: the id of its item, the number of the request and of the sample, and `of`,
the fingerprint of what was asked and how.  A line that was cut short by a kill is dropped.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from instructjax.errors import UserError
from instructjax.evals.batches import Ask, Batch
from instructjax.evals.subject import Subject
from instructjax.evals.tasks import (
  Answer,
  Completion,
  Generate,
  Logp,
  Request,
  Said,
  Task,
  fingerprint,
)
from instructjax.runs import writers
from instructjax.runs.progress import Progress

Place = tuple[str, int, int]  # id of the item, request, sample


class Kept(NamedTuple):
  """One answer of a file, and the tokens that were left out of its prompt."""

  of: str
  answer: Answer
  cut: int


def file(folder: Path, task: str, model: str) -> Path:
  """Where the lines of a task and a model are; names become safe for a file system, and those of
  models stay apart.
  """
  safe = lambda name: re.sub(r"[^\w.+@-]+", "_", name)
  apart = "" if safe(model) == model else f"-{fingerprint(model)[:8]}"
  return folder / safe(task) / f"{safe(model)}{apart}.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
  """The objects of a file that only ever grows; the end of a last line that was cut short is taken
  away.

  Raises UserError for any other broken line.
  """
  if not path.is_file():
    return []
  content = path.read_bytes()
  whole = content[: content.rfind(b"\n") + 1]
  if len(whole) < len(content) and jax.process_index() == 0:
    os.truncate(path, len(whole))
  found = []
  for number, line in enumerate(whole.splitlines(), 1):
    try:
      found.append(json.loads(line))
    except ValueError as error:
      raise UserError(
        f"{path}:{number}: broken ({error}); take the line out, it will be made again"
      ) from None
  return found


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Adds lines at once, in the first process."""
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    writers.append(path, rows)


def load(path: Path) -> dict[Place, Kept]:
  """The answers of a file."""
  found: dict[Place, Kept] = {}
  for row in lines(path):
    kind = Logp if "logp" in row else Completion
    answer = kind(**{name: row[name] for name in kind._fields})
    found[row["id"], row["request"], row["sample"]] = Kept(row["of"], answer, row["cut"])
  return found


def missing(task: Task, path: Path, settings: str) -> tuple[dict[Place, Kept], list[str], bool]:
  """(the answers that are there, the fingerprint of each item's, whether any is missing).

  Raises UserError where one was given to another question or under other settings.
  """
  known, prints, complete = load(path), [], True
  for item in task.items:
    requests = task.ask(item)
    prints.append(fingerprint(settings, [_words(one) for one in requests]))
    for place in places(item.id, requests):
      if place not in known:
        complete = False
      elif known[place].of != prints[-1]:
        raise UserError(
          f"{path}: the answer for item {item.id!r} was given to another question or under other "
          "settings (seed, template, "
          "prefix, dtype, tokenizer); name another --workdir, or delete this file"
        )
  return known, prints, not complete


def _words(request: Request) -> list[Any]:
  """A request as its fingerprint has it; where nothing is cut away it is the one of before requests
  had top_p and top_k.
  """
  whole = isinstance(request, Generate) and request[-2:] == (1.0, 0)
  return [type(request).__name__, *(request[:-2] if whole else request)]


def places(item: str, requests: Sequence[Request]) -> list[Place]:
  """The places of all answers of an item."""
  count = lambda request: request.n if isinstance(request, Generate) else 1
  return [
    (item, number, sample) for number, one in enumerate(requests) for sample in range(count(one))
  ]


def plan(task: Task, subject: Subject) -> list[Batch]:
  """The batches of a task."""
  return subject.plan(subject.rows([(at, task.ask(item)) for at, item in enumerate(task.items)]))


def fill(
  task: Task,
  subject: Subject,
  batches: Sequence[Batch],
  path: Path,
  known: dict[Place, Kept],
  prints: Sequence[str],
  progress: Progress,
  done: int,
) -> int:
  """Asks what is not known yet and keeps it, batch by batch; `known` grows.  Gives the number of
  batches done.
  """
  for number, batch in enumerate(batches):
    place = lambda ask: (task.items[ask.item].id, ask.request, ask.sample)
    if not all(place(ask) in known for ask in batch.asks):
      noise = zlib.crc32(f"{task.name}/{number}".encode())
      fresh = []
      for ask, answer in zip(batch.asks, subject.answer(batch, noise), strict=True):
        if place(ask) not in known:
          known[place(ask)] = Kept(prints[ask.item], answer, ask.cut)
          fresh.append(_line(place(ask), ask, prints[ask.item], answer))
      append(path, fresh)
    done += 1
    progress.show(done, {})
  return done


def _line(place: Place, ask: Ask, of: str, answer: Answer) -> dict[str, Any]:
  return (
    dict(zip(("id", "request", "sample"), place, strict=True))
    | {"of": of, "cut": ask.cut}
    | answer._asdict()
  )


def said(task: Task, known: Mapping[Place, Kept]) -> list[Said]:
  """The answers of every item, in the order of the items."""
  found = []
  for item in task.items:
    answers, cut = [], 0
    for number, request in enumerate(task.ask(item)):
      several = [
        known[item.id, number, sample]
        for sample in range(request.n if isinstance(request, Generate) else 1)
      ]
      cut += several[0].cut
      if isinstance(request, Generate):
        answers.append(tuple(kept.answer for kept in several))
      else:
        answers.append(several[0].answer)
    found.append(Said(tuple(answers), cut))
  return found
