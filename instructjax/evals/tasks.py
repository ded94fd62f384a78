"""What an evaluation is made of: items, what a model is asked for each, what its answers are worth,
how they are summed up.

A `Task` is data and pure functions; `subject` asks the models, `answers` keeps what they said,
`summary` makes the table. A suite is a function (config) -> `Suite`, which reads its data and
checks it before any model is opened.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Value = float | Sequence[float] | None
Scores = Mapping[
  str, Value
]  # of one item, by the name of the metric; None: the metric does not apply to this item


@dataclass(frozen=True)
class Item:
  """One row of an evaluation.

  data      what `ask` and `score` need: the question, the references ...
  cluster   what was drawn at random: items of one cluster (the questions on a passage) are drawn again together; "" is the id
  slices    names of groups and where this item stands in each: {"use_case": "Open QA"}
  """

  id: str
  data: Mapping[str, Any]
  cluster: str = ""
  slices: Mapping[str, str] = field(default_factory=dict)


class Generate(NamedTuple):
  """Continue `prompt` by up to `tokens` tokens, `n` times; the text is cut before the first of
  `stop`.

  Temperature 0 is greedy.  Another one draws among the `top_k` likeliest tokens (0: all), and of
  these from the smallest set that holds mass `top_p`.
  """

  prompt: str
  tokens: int
  temperature: float = 0.0
  stop: tuple[str, ...] = ("\n",)
  n: int = 1
  top_p: float = 1.0
  top_k: int = 0


class Likelihood(NamedTuple):
  """The log-probability of `continuation` after `context`, at temperature 1; without a context, of
  the whole text.
  """

  context: str
  continuation: str


class Completion(NamedTuple):
  """One answer to `Generate`: the text as it was sampled, leading space included, its tokens, and
  whether it came to an end (an end-of-text token or a stop) before `tokens` ran out.
  """

  text: str
  tokens: int
  ended: bool


class Logp(NamedTuple):
  """The answer to `Likelihood`: nats, summed over `tokens` tokens; `greedy` says that each was the
  likeliest.
  """

  logp: float
  tokens: int
  greedy: bool


class Said(NamedTuple):
  """The answers of one model to the requests of one item, in order: a `Logp` or `n` completions
  each.

  `cut` counts the tokens of prompts and contexts that did not fit the model and were left out at
  the beginning.
  """

  answers: tuple[Logp | tuple[Completion, ...], ...]
  cut: int = 0

  def text(self, request: int = 0, sample: int = 0) -> str:
    """The text of a completion, stripped."""
    return self.completions(request)[sample].text.strip()

  def completions(self, request: int = 0) -> tuple[Completion, ...]:
    """The answers to a `Generate`.  Raises TypeError where the request was a `Likelihood`."""
    found = self.answers[request]
    if isinstance(found, Logp):
      raise TypeError(f"request {request} asks for a likelihood, not for text")
    return found

  def logp(self, request: int = 0) -> Logp:
    """The answer to a `Likelihood`.  Raises TypeError where the request was a `Generate`."""
    found = self.answers[request]
    if not isinstance(found, Logp):
      raise TypeError(f"request {request} asks for text, not for a likelihood")
    return found


Request = Generate | Likelihood


class Metric(NamedTuple):
  """How the scores of items are summed up and shown.

  better   1 where higher is better, -1 where lower is, 0 where neither
  of       a statistic of summed columns, [..., C] -> [...], where the score of an item is C numbers (BLEU); None is the mean
  paper    the row of the paper's tables beside it: (task, metric, prompt), see `paper`
  percent  shown as a percentage
  """

  name: str
  better: int = 1
  of: Callable[[np.ndarray], np.ndarray] | None = None
  paper: tuple[str, str, str] | None = None
  percent: bool = False
  decimals: int = 3


class Task(NamedTuple):
  """One line of an evaluation, for example SQuADv2 few-shot.

  ask     the requests of an item
  score   what the answers of a model are worth, item by item, called for `batch` items at a time in every process; who is asked
          from the first one alone is known to `rewards.score_texts`
  about   what a reader must know beside the numbers ("stand-in": not what the paper measured with)
  judge   the fingerprint of who scores (`scorers.identity`), "" for a program of ours: scores of another are not taken
  """

  name: str
  items: Sequence[Item]
  ask: Callable[[Item], Sequence[Request]]
  score: Callable[[Sequence[Item], Sequence[Said]], Sequence[Scores]]
  metrics: tuple[Metric, ...]
  batch: int = 64
  about: str = ""
  judge: str = ""


Heard = Mapping[str, Sequence[Said]]  # by the name of the model, in the order of the items


class Look(NamedTuple):
  """How a model is drawn: `kind` is the look of its method on the page; parameters are 0 where they
  are not known.
  """

  kind: str
  parameters: int = 0


Draw = Callable[
  [Mapping[str, Any], Mapping[str, Look]], str
]  # (what `together` found, {model: its look}) -> HTML


class Suite(NamedTuple):
  """Several tasks, and what can only be said of several models at once.

  together   (folder for files of its own, {task: {model: said}}, {task: {model: scores}}) -> a part of results.json; it
             runs when all models have answered (win rates)
  check      (names of the models) raises UserError where nothing could be said of these; before any model is opened
  """

  name: str
  tasks: Sequence[Task]
  together: (
    Callable[
      [Path, Mapping[str, Heard], Mapping[str, Mapping[str, Sequence[Scores]]]], dict[str, Any]
    ]
    | None
  ) = None
  check: Callable[[Sequence[str]], None] | None = None


Answer = Logp | Completion


def limited(items: Sequence[Item], count: int, seed: int) -> list[Item]:
  """At least `count` items, or all where that is 0: whole clusters, drawn by the seed, in their
  order.
  """
  clusters = list(dict.fromkeys(item.cluster or item.id for item in items))
  sizes = Counter(item.cluster or item.id for item in items)
  kept: set[str] = set()
  total = 0
  for cluster in random.Random(seed).sample(clusters, len(clusters)):
    if count and total >= count:
      break
    kept.add(cluster)
    total += sizes[cluster]
  return [item for item in items if (item.cluster or item.id) in kept]


def fingerprint(*facts: object) -> str:
  """Of what stands behind an answer or a score; one to another question is never taken for this
  one's.
  """
  return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()[:16]
