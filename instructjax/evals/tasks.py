"""What an evaluation is made of: items, requests to a model, scores of its replies, and metrics.

A `Task` is data and pure functions. `subject` asks the models, `answers` keeps their replies on
disk, and `summary` makes the table. A suite is a function from the settings to a `Suite`: it reads
its data and checks it before any model is opened.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructjax.system import jsons

# A number; several columns for a metric of the whole corpus; None where the metric does not apply.
Value = float | Sequence[float] | None
# The scores of one item, by the name of the metric.
Scores = Mapping[str, Value]


@dataclass(frozen=True)
class Item:
  """One row of an evaluation.

  id        a name that is unique within its task; answers are stored under it
  data      what `ask` and `score` need: the question, the references ...
  cluster   the unit that was sampled at random: intervals take the items of one cluster (the
            questions on a passage) together; "" stands for the id
  slices    names of groups and the item's value in each: {"use_case": "Open QA"}
  """

  id: str
  data: Mapping[str, Any]
  cluster: str = ""
  slices: Mapping[str, str] = field(default_factory=dict)


# --- what a model is asked, and what it answers ---


class Generate(NamedTuple):
  """A request to continue `prompt` by up to `tokens` tokens, `n` times.

  The text is cut before the first of `stop`. Temperature 0 is greedy. Any higher one samples among
  the `top_k` likeliest tokens (0 takes all), and of these from the smallest set that holds mass
  `top_p`.

  `is_over` says of the text so far whether nothing that follows can change what the answer is
  worth. A greedy answer then ends, where it is looked at: after 32, 64, 128 ... tokens. It is no
  part of the fingerprint of an answer, whose worth does not depend on it.
  """

  prompt: str
  tokens: int
  temperature: float = 0.0
  stop: tuple[str, ...] = ("\n",)
  n: int = 1
  top_p: float = 1.0
  top_k: int = 0
  is_over: Callable[[str], bool] | None = None


class Likelihood(NamedTuple):
  """A request for the log-probability of `continuation` after `context`, at temperature 1.

  Without a context it is that of the whole text.
  """

  context: str
  continuation: str


Request = Generate | Likelihood


class Completion(NamedTuple):
  """One answer to `Generate`.

  text     the text as it was sampled, leading space included, cut before the first stop
  tokens   the number of sampled tokens
  ended    whether an end-of-text token or a stop came before the tokens ran out
  """

  text: str
  tokens: int
  ended: bool


class Logp(NamedTuple):
  """The answer to `Likelihood`.

  logp     nats, summed over the tokens of the continuation
  tokens   the number of these tokens
  greedy   whether each of them was the likeliest
  """

  logp: float
  tokens: int
  greedy: bool


Answer = Logp | Completion


class Reply(NamedTuple):
  """The answers of one model to all requests of one item.

  answers   for each request, in order, a `Logp` or `n` completions
  cut       the tokens that prompts and contexts lost at their beginning to fit the model
  """

  answers: tuple[Logp | tuple[Completion, ...], ...]
  cut: int = 0

  def text(self, request: int = 0, sample: int = 0) -> str:
    """Returns the text of a completion, stripped."""
    return self.completions(request)[sample].text.strip()

  def completions(self, request: int = 0) -> tuple[Completion, ...]:
    """Returns the answers to a `Generate`.

    Raises:
      TypeError: if the request was a `Likelihood`.
    """
    answer = self.answers[request]
    if isinstance(answer, Logp):
      raise TypeError(f"request {request} asks for a likelihood, not for text")
    return answer

  def logp(self, request: int = 0) -> Logp:
    """Returns the answer to a `Likelihood`.

    Raises:
      TypeError: if the request was a `Generate`.
    """
    answer = self.answers[request]
    if not isinstance(answer, Logp):
      raise TypeError(f"request {request} asks for text, not for a likelihood")
    return answer


Replies = Mapping[str, Sequence[Reply]]  # by the name of the model, in the order of the items


# --- how replies are scored and summed up ---


def ratio(sums: np.ndarray) -> np.ndarray:
  """Returns the first column over the second; NaN where that is 0."""
  nothing = np.full(sums.shape[:-1], np.nan)
  return np.divide(sums[..., 0], sums[..., 1], out=nothing, where=sums[..., 1] > 0)


class Metric(NamedTuple):
  """How the scores of items are summed up and shown.

  better    1 where higher is better, -1 where lower is, 0 where neither
  of        a statistic of summed columns, [..., C] -> [...], for a metric whose score of an item is
            C numbers (BLEU); None is the mean, and `ratio` a share of (part, whole)
  paper     the row of the paper's tables beside it: (task, metric, prompt), see `paper`
  percent   whether it is shown as a percentage
  decimals  the places after the point where it is not
  """

  name: str
  better: int = 1
  of: Callable[[np.ndarray], np.ndarray] | None = None
  paper: tuple[str, str, str] | None = None
  percent: bool = False
  decimals: int = 3


class Task(NamedTuple):
  """One line of an evaluation, for example SQuADv2 few-shot.

  ask     gives the requests of an item
  score   scores the replies of a model, item by item. It is called for `batch` items at a time, in
          every process; `rewards.score_texts` knows which judges the first process asks alone
  about   what a reader must know beside the numbers ("stand-in": not the paper's instrument)
  judge   the fingerprint of the judge that scores (`scorers.identity`), "" for a program of ours;
          stored scores of another judge are not used
  """

  name: str
  items: Sequence[Item]
  ask: Callable[[Item], Sequence[Request]]
  score: Callable[[Sequence[Item], Sequence[Reply]], Sequence[Scores]]
  metrics: tuple[Metric, ...]
  batch: int = 64
  about: str = ""
  judge: str = ""


# From a folder for files of its own, {task: {model: replies}} and {task: {model: scores}} to a part
# of results.json.
Together = Callable[
  [Path, Mapping[str, Replies], Mapping[str, Mapping[str, Sequence[Scores]]]],
  dict[str, Any],
]


class Suite(NamedTuple):
  """Several tasks, and what can only be computed from several models at once.

  together   makes the suite's own part of results.json (win rates) when all models have answered
  check      raises UserError if these models, by name, cannot be compared; it runs before any model
             is opened
  """

  name: str
  tasks: Sequence[Task]
  together: Together | None = None
  check: Callable[[Sequence[str]], None] | None = None


class Look(NamedTuple):
  """How a model is drawn on the page.

  kind         the style of its method
  parameters   0 where their number is not recorded
  """

  kind: str
  parameters: int = 0


# From what `together` returned and {model: its look} to HTML.
Draw = Callable[[Mapping[str, Any], Mapping[str, Look]], str]


# --- what suites share ---


def limited(items: Sequence[Item], count: int, seed: int) -> list[Item]:
  """Returns at least `count` items, in their order, or all of them where `count` is 0.

  Whole clusters are drawn, by the seed, until there are enough items.
  """
  cluster_of_item = [item.cluster or item.id for item in items]
  clusters = list(dict.fromkeys(cluster_of_item))
  sizes = Counter(cluster_of_item)
  selected: set[str] = set()
  total = 0
  for cluster in random.Random(seed).sample(clusters, len(clusters)):
    if count and total >= count:
      break
    selected.add(cluster)
    total += sizes[cluster]
  limited_items = []
  for item, cluster in zip(items, cluster_of_item, strict=True):
    if cluster in selected:
      limited_items.append(item)
  return limited_items


def fingerprint(*facts: object) -> str:
  """Returns a hash of everything that an answer or a score depends on.

  A stored one is reused only under the same hash, so that it never counts for another question.
  """
  text = jsons.text_with_nulls(facts)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
