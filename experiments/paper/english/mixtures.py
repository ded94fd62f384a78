"""Public tasks in the styles of FLAN and T0: closed questions with short answers.

FLAN (Wei et al. 2021) has few templates and names the task. T0 (Sanh et al. 2021) has more wordings
of the same tasks. Neither has stories, adverts, chats or refusals, which most people ask for.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from english import corpus, tasks
from english.tasks import Task


class Example(NamedTuple):
  """A prompt of a public task and its answer."""

  prompt: str
  answer: str
  task: str


# The kinds of instructions that public data sets have too.
KINDS = ("classify", "extract", "closed_question", "question", "translate")
FLAN = ("task {t} : {x} answer :",)
T0 = (
  "task {t} : {x} answer :",
  "{x} what is the answer ?",
  "answer this : {x}",
  "{x}",
)
# The share of closed tasks in the mixtures.
CLOSED = 0.5


def some_example(rng: random.Random, style: str) -> Example:
  """Returns an example of a style, "flan" or "t0"."""
  templates = FLAN if style == "flan" else T0
  template = rng.choice(templates)
  if rng.random() < CLOSED:
    closed = corpus.some_closed(rng)
    while tasks.is_test(closed.prompt):
      closed = corpus.some_closed(rng)
    return Example(template.format(t=closed.task, x=closed.prompt), closed.answer, closed.task)
  kind = rng.choice(KINDS)
  task = tasks.some_task(rng, kind=kind)
  while tasks.is_test(task.prompt):
    task = tasks.some_task(rng, kind=kind)
  return Example(template.format(t=_name(task), x=task.prompt), short_answer(task), task.kind)


def short_answer(task: Task) -> str:
  """Returns what was asked for alone: public answers are spans and labels."""
  return f"{' '.join(group[0] for group in task.wanted)} ."


def _name(task: Task) -> str:
  """Returns the name of a task in one word of the world."""
  return {"classify": "label", "translate": "oro"}.get(task.kind, "question")
