"""Judgements on disk, so that a run that was stopped anywhere goes on and asks nothing twice.

A file has one JSON object a line:

  {"of": fingerprint of the judge and the question, "answer": ..., and the notes of the question}
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instructjax import rewards
from instructjax.evals import answers
from instructjax.evals.preference.judges import Judge, Question
from instructjax.evals.tasks import fingerprint
from instructjax.rewards.endpoint import concurrently
from instructjax.runs.progress import progressing

Notes = Sequence[Mapping[str, Any]]


def ask_all(
  judge: Judge,
  questions: Sequence[Question],
  notes: Notes,
  path: Path,
) -> list[Any]:
  """Returns the answer to every question, in order.

  Questions whose answers are not in the file yet are asked, each once, and their answers are
  written as soon as they come. `notes` has the facts about each question (its id, the models) that
  are written beside the answer.

  Raises:
    UserError: the judge fails. What it answered before stays in the file.
  """
  about = dict(judge.about)
  fingerprints = [fingerprint(about, *question) for question in questions]
  answered = _read(path)
  # The first place of each question that has no answer.
  waiting: dict[str, int] = {}
  for place, mark in enumerate(fingerprints):
    if mark not in answered:
      waiting.setdefault(mark, place)
  work = partial(_ask_waiting, judge, questions, notes, path, waiting, answered)
  if judge.everywhere or jax.process_count() == 1:
    work()
  else:
    # One process asks while the others wait; then they all read its file.
    rewards.in_first(work, (1,))
    answered = _read(path)
  return [answered[mark] for mark in fingerprints]


def _read(path: Path) -> dict[str, Any]:
  """Returns the answers of a file by their fingerprints."""
  return {row["of"]: row["answer"] for row in answers.lines(path)}


def _ask_waiting(
  judge: Judge,
  questions: Sequence[Question],
  notes: Notes,
  path: Path,
  waiting: Mapping[str, int],
  answered: dict[str, Any],
) -> np.ndarray:
  """Asks the waiting questions, {fingerprint: place}, and adds their answers to `answered`.

  Returns a placeholder, because `rewards.in_first` broadcasts an array.
  """
  lock = threading.Lock()  # of the file, the answers and the count
  done = 0

  def ask_batch(batch: Sequence[tuple[str, int]], stop: threading.Event) -> None:
    nonlocal done
    # Only the questions of this batch, in their order.
    replies = judge.ask([questions[place] for _, place in batch], stop)
    rows = []
    for (mark, place), reply in zip(batch, replies, strict=True):
      rows.append({"of": mark, **notes[place], "answer": reply})
    with lock:
      answers.append(path, rows)
      answered.update({row["of"]: row["answer"] for row in rows})
      done += len(rows)
      progress.show(done, {})

  places = list(waiting.items())
  starts = range(0, len(places), judge.batch)
  batches = [places[start : start + judge.batch] for start in starts]
  with progressing(f"{judge.name} {path.stem}", 0, len(waiting)) as progress:
    # Servers answer several requests at once; programs and models of ours one batch.
    if judge.workers > 1:
      concurrently(ask_batch, batches, judge.workers)
    else:
      for batch in batches:
        ask_batch(batch, threading.Event())
  return np.zeros(1, np.float32)
