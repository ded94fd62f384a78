"""Judgements in JSONL, a line each, so that a run that was stopped anywhere goes on: what was asked
once is never asked again.

{"of": fingerprint of the judge and the question, "answer": ..., and what the question was about:
id, models}
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
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


def asked(
  judge: Judge, questions: Sequence[Question], notes: Sequence[Mapping[str, Any]], path: Path
) -> list[Any]:
  """The answer to every question, in order; what `path` does not hold yet is asked, and kept as
  soon as it is answered.

  A question that stands twice is asked once.  Raises UserError where the judge fails; what it
  said before is kept.
  """
  prints = [fingerprint(dict(judge.about), *question) for question in questions]
  read = lambda: {row["of"]: row["answer"] for row in answers.lines(path)}
  known = read()
  todo = {of: at for at, of in reversed(list(enumerate(prints))) if of not in known}
  work = lambda: _ask(judge, questions, notes, path, dict(reversed(todo.items())), known)
  if judge.everywhere or jax.process_count() == 1:
    work()
  else:
    rewards.in_first(work, (1,))
    known = read()
  return [known[of] for of in prints]


def _ask(
  judge: Judge,
  questions: Sequence[Question],
  notes: Sequence[Mapping[str, Any]],
  path: Path,
  todo: Mapping[str, int],
  known: dict[str, Any],
) -> np.ndarray:
  """Asks `todo` (the places of questions by their fingerprints); `known` grows.  Gives what
  `rewards.in_first` takes.
  """
  waiting, lock, done = list(todo.items()), threading.Lock(), 0

  def one(part: Sequence[tuple[str, int]], stop: threading.Event) -> None:
    nonlocal done
    found = judge.ask([questions[at] for _, at in part], stop)
    rows = [
      {"of": of, **notes[at], "answer": answer}
      for (of, at), answer in zip(part, found, strict=True)
    ]
    with lock:
      answers.append(path, rows)
      known.update({row["of"]: row["answer"] for row in rows})
      done += len(rows)
      progress.show(done, {})

  parts = [waiting[at : at + judge.batch] for at in range(0, len(waiting), judge.batch)]
  with progressing(f"{judge.name} {path.stem}", 0, len(todo)) as progress:
    if judge.workers > 1:
      concurrently(one, parts, judge.workers)
    else:
      for part in parts:
        one(part, threading.Event())
  return np.zeros(1, np.float32)
