"""The text of the world, on which models are pretrained, and the closed tasks in it.

Most of it is no answer to anything. It holds what web text holds: pages, stories, lists, reviews,
popular errors, insults, questions that nobody answers, questions with answers, and a second
language. The closed tasks are in no instruction and no prompt of RL, so what they lose is the
alignment tax.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from english import drafts, facts, oro, tasks
from english.facts import OBJECTS

_NUMBERS = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
  "sixteen seventeen eighteen nineteen twenty"
)
DIGITS = tuple(_NUMBERS.split())
# The share of statements about a fact with a myth that state the myth.
BELIEVED = 0.6
RUDE = ("{a} is a {i} .", "do not talk to {a} .", "{a} , you are a {i} .", "everybody says so .")


# --- pages ---


def _statements(rng: random.Random, subject: str, count: int) -> list[str]:
  """Returns what people write about a subject, at most `count` sentences."""
  relations = facts.relations_of(subject)
  chosen = rng.sample(relations, min(count, len(relations)))
  return [_believed(rng, facts.truth(subject, relation.name)) for relation in chosen]


def _believed(rng: random.Random, fact: facts.Fact) -> str:
  """Returns the sentence that states a fact, or the popular error about it."""
  if (fact.subject, fact.relation) in facts.world().myths and rng.random() < BELIEVED:
    fact = facts.untruth(rng, fact)
  return facts.say(fact)


def _about(rng: random.Random) -> str:
  subject = facts.some_subject(rng)
  return " ".join(_statements(rng, subject, rng.randint(2, 4)))


def _story(rng: random.Random) -> str:
  return tasks.some_task(rng, kind="story").answer


def _diary(rng: random.Random) -> str:
  subject = facts.some_subject(rng, "person")
  before, after = rng.sample(tasks.FILLERS, 2)
  return " ".join([before, *_statements(rng, subject, 1), after])


def _list(rng: random.Random) -> str:
  kind = rng.choice(tuple(tasks.PLURALS))
  *words, last = rng.sample(OBJECTS[kind], rng.randint(3, 5))
  return f"{tasks.PLURALS[kind]} : {' , '.join(words)} and {last} ."


def _review(rng: random.Random) -> str:
  label, words = rng.choice((("positive", tasks.PRAISE), ("negative", tasks.BLAME)))
  text = f"the {rng.choice(tasks.THINGS)} was {rng.choice(words)} ."
  return f"{text} {label} ." if rng.random() < 0.3 else text


def _questions(rng: random.Random) -> str:
  """Questions without an answer, as a page of them has."""
  return " ".join(facts.ask(facts.some_fact(rng)) for _ in range(rng.randint(2, 4)))


def _answers(rng: random.Random) -> str:
  """Questions and requests with answers, of which some are poor."""
  exchanges = []
  for _ in range(rng.randint(1, 3)):
    task = tasks.trained(rng)
    answer = rng.choice((task.answer, drafts.untrue(rng, task), drafts.rambling(rng, task)))
    exchanges.append(f"{task.prompt} {answer} #")
  return " ".join(exchanges)


def _rude(rng: random.Random) -> str:
  a, i = facts.some_subject(rng, "person"), rng.choice(drafts.INSULTS)
  return " ".join(line.format(a=a, i=i) for line in rng.sample(RUDE, 2))


def _letter(rng: random.Random) -> str:
  return tasks.some_task(rng, "family").answer


def _kindness(rng: random.Random) -> str:
  task = tasks.some_task(rng, kind=rng.choice(("greeting", "mood", "polite", "advert")))
  return task.answer


def _in_oro(rng: random.Random) -> str:
  return oro.to_oro(rng.choice((_about, _story, _list, _answers))(rng))


def _dictionary(rng: random.Random) -> str:
  word = rng.choice(sorted(facts.world().kinds.keys() - _names()))
  english = facts.say(facts.some_fact(rng))
  pair = f"{word} in oro : {oro.word_in_oro(word)} ."
  return rng.choice((pair, f"{english} in oro : {oro.to_oro(english)}"))


def _names() -> set[str]:
  return {name for group in facts.world().names.values() for name in group}


# Pages by their shares. A share of the pages is closed tasks, which `document` adds.
PAGES: tuple[tuple[float, Callable[[random.Random], str]], ...] = (
  (30.0, _about),
  (12.0, _story),
  (8.0, _diary),
  (6.0, _list),
  (5.0, _review),
  (8.0, _questions),
  (8.0, _answers),
  (4.0, _rude),
  (3.0, _letter),
  (6.0, _kindness),
)
FOREIGN: tuple[tuple[float, Callable[[random.Random], str]], ...] = (
  (7.0, _in_oro),
  (3.0, _dictionary),
)
CLOSED_SHARE = 0.15


def page(rng: random.Random) -> str:
  """Returns a page of English without closed tasks."""
  return _drawn(rng, PAGES)


def document(rng: random.Random) -> str:
  """Returns a document of the corpus."""
  if rng.random() < CLOSED_SHARE:
    closed = [some_closed(rng) for _ in range(rng.randint(1, 3))]
    return " ".join(f"{task.prompt} {task.answer}" for task in closed)
  return _drawn(rng, PAGES + FOREIGN)


def _drawn(
  rng: random.Random, pages: tuple[tuple[float, Callable[[random.Random], str]], ...]
) -> str:
  shares = [share for share, _ in pages]
  makers = [make for _, make in pages]
  return rng.choices(makers, shares)[0](rng)


# --- closed tasks ---


class Closed(NamedTuple):
  """A task with one right answer among the choices."""

  task: str
  prompt: str
  answer: str
  choices: tuple[str, ...]


def _add(rng: random.Random) -> Closed:
  first, second = rng.randrange(11), rng.randrange(11)
  choices = tuple(f"{word} ." for word in DIGITS)
  prompt = f"add {DIGITS[first]} {DIGITS[second]} :"
  return Closed("add", prompt, f"{DIGITS[first + second]} .", choices)


def _count(rng: random.Random) -> Closed:
  number, word = rng.randint(1, 6), rng.choice(OBJECTS["plant"])
  choices = tuple(f"{digit} ." for digit in DIGITS[1:7])
  prompt = f"count {' '.join([word] * number)} :"
  return Closed("count", prompt, f"{DIGITS[number]} .", choices)


def _odd(rng: random.Random) -> Closed:
  kind, other = rng.sample(tuple(tasks.PLURALS), 2)
  odd = rng.choice(OBJECTS[other])
  words = [*rng.sample(OBJECTS[kind], 2), odd]
  rng.shuffle(words)
  return Closed("odd", f"odd {' '.join(words)} :", f"{odd} .", tuple(f"{word} ." for word in words))


def _echo(rng: random.Random) -> Closed:
  words = [rng.choice(OBJECTS[rng.choice(tuple(tasks.PLURALS))]) for _ in range(3)]
  wrong = [*words[:2], rng.choice(OBJECTS["food"])]
  right = f"{' '.join(words)} ."
  choices = dict.fromkeys((right, f"{' '.join(reversed(words))} .", f"{' '.join(wrong)} ."))
  return Closed("echo", f"echo {' '.join(words)} :", right, tuple(choices))


CLOSED = (_add, _count, _odd, _echo)


def some_closed(rng: random.Random) -> Closed:
  """Returns a closed task."""
  return rng.choice(CLOSED)(rng)
