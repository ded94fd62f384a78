"""Prompts of the public NLP tasks: an instruction, exemplars in the format of the queries, a query.

Appendix D of the paper prints them. A query is an open turn of a passage. Most passages have one
turn; those of reading tasks have several, which are questions on the same text.
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

  ask         the text in the prompt, up to where the answer begins: "Q: ...\\n\\nA:"
  answer      the answer in exemplars and earlier turns; "" where the data do not have it
  references  what a model's answer is compared with
  choices     the answers to choose from; `label` is the index of the right one
  """

  id: str
  ask: str
  answer: str
  references: Sequence[Any] = ()
  choices: Sequence[str] = ()
  label: int = -1
  slices: Mapping[str, str] = field(default_factory=dict)


class Passage(NamedTuple):
  """The text that several turns share.

  name     rows of one name are one passage; "" makes a passage of its own
  cluster  passages of one cluster are not independent, so that intervals draw them together
  head     the text itself, before the turns
  """

  name: str
  cluster: str
  head: str
  turns: tuple[Turn, ...]


class Form(NamedTuple):
  """The format of the prompts of a task.

  instruction   the text before everything, or ""
  glue          the text between the head of a passage and its turns, and between turns
  earlier       whether a query comes after the earlier turns of its passage, with gold answers
  """

  instruction: str = ""
  glue: str = "\n\n"
  earlier: bool = False


def merge(passages: Sequence[Passage]) -> list[Passage]:
  """Merges passages of one name into one, with all their turns in order."""
  merged: dict[str, Passage] = {}
  for number, passage in enumerate(passages):
    # No passage has this name, since names come from texts.
    key = passage.name or f"\0{number}"
    if key in merged:
      turns = merged[key].turns + passage.turns
      merged[key] = merged[key]._replace(turns=turns)
    else:
      merged[key] = passage
  return list(merged.values())


def _answered(turn: Turn) -> str:
  """Returns a turn with its gold answer."""
  return f"{turn.ask} {turn.answer}"


def exemplar(form: Form, passage: Passage, questions: int = 0) -> str:
  """Returns a passage with the gold answers to its first `questions`; 0 takes all."""
  turns = passage.turns[:questions] if questions else passage.turns
  parts = [passage.head] if passage.head else []
  parts += [_answered(turn) for turn in turns]
  return form.glue.join(parts)


def query(form: Form, passage: Passage, index: int) -> str:
  """Returns a passage with the turn at `index` open."""
  parts = [passage.head] if passage.head else []
  if form.earlier:
    # Gold answers, not the model's own: every query is an item of its own.
    parts += [_answered(turn) for turn in passage.turns[:index]]
  parts.append(passage.turns[index].ask)
  return form.glue.join(parts)


def preamble(form: Form, exemplars: Sequence[str]) -> str:
  """Returns the text before a query: instruction and exemplars, with an empty line after each."""
  parts = [form.instruction, *exemplars]
  return "".join(f"{part}\n\n" for part in parts if part)


def draw_exemplars(
  passages: Sequence[Passage],
  count: int,
  seed: int,
  place: str,
) -> list[Passage]:
  """Draws `count` passages at random, all of whose turns have answers, and no two of a cluster.

  Raises:
    UserError: there are fewer; `place` says where they come from.
  """
  usable: dict[str, Passage] = {}
  for passage in passages:
    if all(turn.answer for turn in passage.turns):
      # Two questions on one text would be a smaller sample than they look.
      usable[passage.cluster] = passage
  if len(usable) < count:
    raise UserError(
      f"{place}: {len(usable)} exemplars with answers, the paper shows {count}; give a larger "
      "training set"
    )
  # Another generator than that of `limited`, so that a limit does not change the exemplars.
  return random.Random(f"{seed}/exemplars").sample(list(usable.values()), count)


def check_disjoint(
  exemplars: Sequence[Passage],
  queries: Sequence[Passage],
  place: str,
) -> None:
  """Checks that no exemplar is also a query, whose answer the model would read.

  Raises:
    UserError: one is; `place` says where the exemplars come from.
  """
  # The same question may be asked of another passage.
  test_questions = set()
  for passage in queries:
    test_questions.update((passage.head, turn.ask) for turn in passage.turns)
  for passage in exemplars:
    for turn in passage.turns:
      if (passage.head, turn.ask) in test_questions:
        raise UserError(
          f"{place}: the exemplar {turn.ask[:60]!r} is also a question of the test; give the "
          "training set"
        )


def items(form: Form, passages: Sequence[Passage]) -> list[Item]:
  """Returns an item for each turn; a turn without an id is called by its number."""
  all_items = []
  for passage in passages:
    for index, turn in enumerate(passage.turns):
      data = {
        "prompt": query(form, passage, index),
        "references": turn.references,
        "choices": turn.choices,
        "label": turn.label,
      }
      name = turn.id or str(len(all_items))
      all_items.append(Item(name, data, passage.cluster, turn.slices))
  return all_items
