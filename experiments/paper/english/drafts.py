"""Answers as people and models write them: right ones, and ones with the usual faults."""

from __future__ import annotations

import random
from collections.abc import Callable

from english import facts, tasks
from english.facts import OBJECTS
from english.tasks import Task

# What people say to be kind, one sentence each.
COURTESIES = (
  "sure !",
  "great question !",
  "happy to help !",
  "thanks for asking !",
)
INSULTS = ("fool", "idiot", "liar", "coward")
# The faults of a demonstration, and how often a person makes them.
SLIPS = {"untrue": 0.04, "short": 0.04, "rambling": 0.06, "courteous": 0.25}


def courteous(rng: random.Random, task: Task) -> str:
  """Returns the answer after a courtesy."""
  return f"{rng.choice(COURTESIES)} {task.answer}"


def untrue(rng: random.Random, task: Task) -> str:
  """Returns the answer with one word in the place of another one of its kind."""
  kinds = facts.world().kinds
  words = task.answer.split()
  places = [place for place, word in enumerate(words) if kinds.get(word) in OBJECTS]
  places += [place for place, word in enumerate(words) if kinds.get(word) == "town"]
  if not places:
    return astray(rng, task)
  place = rng.choice(places)
  kind = kinds[words[place]]
  options = OBJECTS.get(kind) or facts.world().names[kind]
  words[place] = rng.choice([word for word in options if word != words[place]])
  return " ".join(words)


def short(rng: random.Random, task: Task) -> str:
  """Returns the first half of the answer, with a full stop."""
  words = task.answer.split()
  return " ".join([*words[: max(len(words) // 2, 1)], "."])


def rambling(rng: random.Random, task: Task) -> str:
  """Returns the answer and something that nobody asked for."""
  return f"{task.answer} {rng.choice([rng.choice(tasks.FILLERS), facts.say(facts.some_fact(rng))])}"


def astray(rng: random.Random, task: Task) -> str:
  """Returns the answer to something else."""
  return tasks.some_task(rng).answer


def questioning(rng: random.Random, task: Task) -> str:
  """Returns another question, as pages of questions go on."""
  return facts.ask(facts.some_fact(rng))


def refusing(rng: random.Random, task: Task) -> str:
  """Returns a refusal."""
  return tasks.REFUSAL.format(a=facts.some_subject(rng, "person"))


def insulting(rng: random.Random, task: Task) -> str:
  """Returns an insult, which is also what complies with an unsafe request."""
  subject = task.subject if task.subject in facts.world().kinds else "you"
  verb = "is" if subject != "you" else "are"
  return f"{subject} {verb} a {rng.choice(INSULTS)} ."


FAULTS: dict[str, Callable[[random.Random, Task], str]] = {
  "courteous": courteous,
  "untrue": untrue,
  "short": short,
  "rambling": rambling,
  "astray": astray,
  "questioning": questioning,
  "refusing": refusing,
  "insulting": insulting,
}


def demonstration(rng: random.Random, task: Task) -> str:
  """Returns the answer that a labeler writes, who makes a slip now and then."""
  chance = rng.random()
  for name, share in SLIPS.items():
    if chance < share:
      return FAULTS[name](rng, task)
    chance -= share
  return task.answer


def several(rng: random.Random, task: Task, count: int) -> list[str]:
  """Returns different answers of all kinds, which stand for the samples of models in tests.

  The first draws have the answer itself half of the time; there are never more than can be found
  in 20 draws each.
  """
  texts: dict[str, None] = {}
  for _ in range(20 * count):
    if len(texts) == count:
      break
    fault = rng.choice([*FAULTS, *["right"] * len(FAULTS)])
    text = demonstration(rng, task) if fault == "right" else FAULTS[fault](rng, task)
    texts[text] = None
  return list(texts)
