"""Prompts of the public NLP tasks: an instruction, exemplars in the format of the queries, and an
open query (App. D).

A query is a turn of a passage: most passages have one, those of reading tasks several.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from instructjax.errors import UserError
from instructjax.evals.tasks import Item


@dataclass(frozen=True)
class Turn:
  """One question.

  ask         as it stands in the prompt, up to where the answer begins: "Q: ...\\n\\nA:"
  answer      what stands there in exemplars and earlier turns; "" where nobody knows
  references  what an answer is compared with
  choices     the answers to choose from, and the place of the right one
  """

  id: str
  ask: str
  answer: str
  references: Sequence[Any] = ()
  choices: Sequence[str] = ()
  label: int = -1
  slices: Mapping[str, str] = field(default_factory=dict)


class Passage(NamedTuple):
  """What several turns share.  Rows of one `name` are one passage, unless it is ""; `cluster` says
  which hang together.
  """

  name: str
  cluster: str
  head: str
  turns: tuple[Turn, ...]


class Form(NamedTuple):
  """How a task is asked.

  instruction   before everything, or ""
  glue          between the head of a passage and its turns, and between turns
  earlier       a query follows the earlier turns of its passage with their gold answers
  """

  instruction: str = ""
  glue: str = "\n\n"
  earlier: bool = False


def gathered(passages: Sequence[Passage]) -> list[Passage]:
  """Passages of one name become one, their turns in order."""
  turns: dict[str, list[Turn]] = {}
  for number, one in enumerate(passages):
    turns.setdefault(one.name or f"\0{number}", []).extend(one.turns)
  first = {one.name or f"\0{number}": one for number, one in reversed(list(enumerate(passages)))}
  return [first[name]._replace(turns=tuple(several)) for name, several in turns.items()]


def closed(turn: Turn) -> str:
  """A turn with its answer."""
  return f"{turn.ask} {turn.answer}"


def shown(form: Form, passage: Passage, questions: int = 0) -> str:
  """A passage as an exemplar, with the answers to its first `questions`; 0 is all."""
  turns = passage.turns[:questions] if questions else passage.turns
  return form.glue.join([*filter(None, [passage.head]), *map(closed, turns)])


def query(form: Form, passage: Passage, at: int) -> str:
  """The open turn `at` of a passage."""
  before = [closed(turn) for turn in passage.turns[:at]] if form.earlier else []
  return form.glue.join([*filter(None, [passage.head]), *before, passage.turns[at].ask])


def opening(form: Form, exemplars: Sequence[str]) -> str:
  """What stands before a query: the instruction and the exemplars, an empty line after each."""
  return "".join(f"{part}\n\n" for part in (form.instruction, *exemplars) if part)


def drawn(passages: Sequence[Passage], count: int, seed: int, place: str) -> list[Passage]:
  """`count` passages, no two of a cluster, all of whose turns have answers; by the seed.

  Raises UserError where there are fewer.
  """
  usable = {one.cluster: one for one in passages if all(turn.answer for turn in one.turns)}
  if len(usable) < count:
    raise UserError(
      f"{place}: {len(usable)} exemplars with answers, the paper shows {count}; give a larger "
      "training set"
    )
  return random.Random(f"{seed}/exemplars").sample(list(usable.values()), count)


def apart(exemplars: Sequence[Passage], queries: Sequence[Passage], place: str) -> None:
  """Raises UserError where an exemplar is also a query: the model would read the answer."""
  asked = {(one.head, turn.ask) for one in queries for turn in one.turns}
  for one in exemplars:
    for turn in one.turns:
      if (one.head, turn.ask) in asked:
        raise UserError(
          f"{place}: the exemplar {turn.ask[:60]!r} is also a question of the test; give the "
          "training set"
        )


def items(form: Form, passages: Sequence[Passage]) -> list[Item]:
  """An item for each turn; without an id of its own it is called by its number."""
  turns = [(passage, at, turn) for passage in passages for at, turn in enumerate(passage.turns)]
  return [
    Item(
      turn.id or str(number),
      {
        "prompt": query(form, passage, at),
        "references": turn.references,
        "choices": turn.choices,
        "label": turn.label,
      },
      passage.cluster,
      turn.slices,
    )
    for number, (passage, at, turn) in enumerate(turns)
  ]
