"""The facts of the world, and the sentences that state them."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from typing import NamedTuple


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


# Every word that can be the object of a fact, by kind.
OBJECTS: dict[str, tuple[str, ...]] = {
  "job": _words(
    "baker smith farmer teacher doctor painter singer writer sailor hunter miller judge guard "
    "cook tailor mason"
  ),
  "instrument": _words("drum flute harp horn lute bell piano violin whistle organ"),
  "food": _words(
    "bread soup cheese honey rice fish cake pie salad butter jam pasta porridge stew pudding "
    "chocolate"
  ),
  "region": _words("north south east west valley coast highlands lowlands"),
  "goods": _words("wool glass silk paper iron wine salt leather pottery clocks boats carpets"),
  "colour": _words("red blue green yellow white black brown grey orange purple"),
  "plant": _words("grass moss clover leaves roots seeds berries nuts reeds bark"),
  "habitat": _words("forest desert river swamp mountains meadow lake cave"),
}
COUNTS = {"person": 120, "town": 40, "animal": 40}
ENDINGS = {"person": ("a", "o"), "town": ("ham", "ford"), "animal": ("ling", "hopper")}
MYTHS = 0.12  # the share of facts about which most people are wrong


class Relation(NamedTuple):
  """A kind of fact: `subject VERB object .`, and how to ask for the object.

  `why` asks for a reason that the fact is so, and takes it for granted.
  """

  name: str
  subject: str
  verb: str
  negated: str
  object: str
  question: str
  why: str


RELATIONS = (
  Relation(
    "home",
    "person",
    "lives in",
    "does not live in",
    "town",
    "where does {s} live ?",
    "why does {s} live in {o} ?",
  ),
  Relation(
    "job",
    "person",
    "works as a",
    "does not work as a",
    "job",
    "what is the job of {s} ?",
    "why does {s} work as a {o} ?",
  ),
  Relation(
    "music",
    "person",
    "plays the",
    "does not play the",
    "instrument",
    "what does {s} play ?",
    "why does {s} play the {o} ?",
  ),
  Relation(
    "taste",
    "person",
    "likes",
    "does not like",
    "food",
    "what does {s} like ?",
    "why does {s} like {o} ?",
  ),
  Relation(
    "region",
    "town",
    "lies in the",
    "does not lie in the",
    "region",
    "where is {s} ?",
    "why does {s} lie in the {o} ?",
  ),
  Relation(
    "fame",
    "town",
    "is famous for",
    "is not famous for",
    "goods",
    "what is {s} famous for ?",
    "why is {s} famous for {o} ?",
  ),
  Relation(
    "colour",
    "animal",
    "is",
    "is not",
    "colour",
    "what colour is the {s} ?",
    "why is the {s} {o} ?",
  ),
  Relation(
    "diet",
    "animal",
    "eats",
    "does not eat",
    "plant",
    "what does the {s} eat ?",
    "why does the {s} eat {o} ?",
  ),
  Relation(
    "habitat",
    "animal",
    "lives in the",
    "does not live in the",
    "habitat",
    "where does the {s} live ?",
    "why does the {s} live in the {o} ?",
  ),
)
BY_NAME = {relation.name: relation for relation in RELATIONS}


class Fact(NamedTuple):
  """Says of a subject that a relation holds between it and an object."""

  subject: str
  relation: str
  object: str


class World(NamedTuple):
  """What there is and what is so.

  names        the subjects of each kind, the best known first
  truths       the object of each (subject, relation)
  myths        the object that most people believe, where it is another one
  kinds        the kind of each name and of each object
  """

  names: dict[str, tuple[str, ...]]
  truths: dict[tuple[str, str], str]
  myths: dict[tuple[str, str], str]
  kinds: dict[str, str]


@functools.cache
def world() -> World:
  """Returns the world, which is always the same."""
  rng = random.Random("the world")
  syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprstvz", "aeiou")]
  stems = [first + second for first, second in itertools.product(syllables, syllables)]
  rng.shuffle(stems)
  names: dict[str, tuple[str, ...]] = {}
  for kind, count in COUNTS.items():
    chosen = [stems.pop() for _ in range(count)]
    # The last vowel gives way to the ending, so stems that differ in it alone would be one name.
    unique = dict.fromkeys(stem[:-1] + rng.choice(ENDINGS[kind]) for stem in chosen)
    names[kind] = tuple(unique)

  kinds = {name: kind for kind, group in names.items() for name in group}
  for kind, words in OBJECTS.items():
    kinds |= dict.fromkeys(words, kind)
  truths: dict[tuple[str, str], str] = {}
  myths: dict[tuple[str, str], str] = {}
  for relation in RELATIONS:
    options = objects(relation, names)
    for subject in names[relation.subject]:
      truth = rng.choice(options)
      truths[subject, relation.name] = truth
      if rng.random() < MYTHS:
        others = [word for word in options if word != truth]
        myths[subject, relation.name] = rng.choice(others)
  return World(names, truths, myths, kinds)


def objects(relation: Relation, names: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
  """Returns all words that can be the object of a relation."""
  return OBJECTS.get(relation.object) or names[relation.object]


# --- drawing from the world ---


def popular(rng: random.Random, names: Sequence[str]) -> str:
  """Returns a name, the first ones more often: rank r has a chance of 1 / (r + 10)."""
  weights = [1 / (rank + 10) for rank in range(len(names))]
  return rng.choices(names, weights)[0]


def some_subject(rng: random.Random, kind: str = "") -> str:
  """Returns a person, a town or an animal, or one of the kind that is given."""
  kind = kind or rng.choices(tuple(COUNTS), (3, 1, 1))[0]
  return popular(rng, world().names[kind])


def relations_of(subject: str) -> list[Relation]:
  """Returns the relations that a subject has."""
  kind = world().kinds[subject]
  return [relation for relation in RELATIONS if relation.subject == kind]


def truth(subject: str, relation: str) -> Fact:
  """Returns what is so."""
  return Fact(subject, relation, world().truths[subject, relation])


def some_fact(rng: random.Random, subject: str = "") -> Fact:
  """Returns a fact, of the subject that is given or of some other one."""
  subject = subject or some_subject(rng)
  return truth(subject, rng.choice(relations_of(subject)).name)


def untruth(rng: random.Random, fact: Fact) -> Fact:
  """Returns the fact with another object: the one most people believe, or any."""
  myth = world().myths.get((fact.subject, fact.relation))
  if myth is not None:
    return fact._replace(object=myth)
  options = objects(BY_NAME[fact.relation], world().names)
  return fact._replace(object=rng.choice([word for word in options if word != fact.object]))


# --- sentences ---


def article(subject: str) -> str:
  """Returns a subject as sentences have it: animals have an article."""
  return f"the {subject}" if world().kinds[subject] == "animal" else subject


def say(fact: Fact) -> str:
  """Returns the sentence that states a fact."""
  return f"{article(fact.subject)} {BY_NAME[fact.relation].verb} {fact.object} ."


def deny(fact: Fact) -> str:
  """Returns the sentence that denies a fact."""
  return f"{article(fact.subject)} {BY_NAME[fact.relation].negated} {fact.object} ."


def ask(fact: Fact) -> str:
  """Returns the question for the object of a fact."""
  return BY_NAME[fact.relation].question.format(s=fact.subject)


def ask_why(fact: Fact) -> str:
  """Returns the question that takes a fact for granted."""
  return BY_NAME[fact.relation].why.format(s=fact.subject, o=fact.object)


def sentences(text: str) -> list[list[str]]:
  """Returns the words of each sentence of a text, without what ends it."""
  parts: list[list[str]] = [[]]
  for word in text.split():
    if word in (".", "!", "?"):
      parts.append([])
    else:
      parts[-1].append(word)
  return [part for part in parts if part]


def read(words: Sequence[str]) -> Fact | None:
  """Returns the fact that a sentence states, true or not; None where it states none.

  The words are those of the sentence without its full stop.
  """
  words = list(words)
  if not words:
    return None
  kinds = world().kinds
  has_article = len(words) > 1 and words[0] == "the"
  subject, rest = (words[1], words[2:]) if has_article else (words[0], words[1:])
  if has_article != (kinds.get(subject) == "animal") or len(rest) < 2:
    return None
  verb, last = " ".join(rest[:-1]), rest[-1]
  for relation in RELATIONS:
    fits = relation.subject == kinds.get(subject) and relation.object == kinds.get(last)
    if fits and relation.verb == verb:
      return Fact(subject, relation.name, last)
  return None


def read_all(words: Sequence[str]) -> list[Fact]:
  """Returns the facts that a sentence states: `a lives in b and works as a c` states two."""
  parts: list[list[str]] = [[]]
  for word in words:
    if word == "and":
      parts.append([])
    else:
      parts[-1].append(word)
  subject = parts[0][:2] if parts[0][:1] == ["the"] else parts[0][:1]
  stated = [read(parts[0]), *(read([*subject, *part]) for part in parts[1:])]
  return [fact for fact in stated if fact is not None]


def is_true(fact: Fact) -> bool:
  """Returns whether a fact is one of the world."""
  return world().truths[fact.subject, fact.relation] == fact.object
