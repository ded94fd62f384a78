"""People who rank answers: what they see is gold through their own eyes, with noise.

A labeler's utility of an answer is

    u = strength x (weights . parts of gold) + length x log words + style x courtesy

and the better of two is chosen with the chance sigmoid(u - u'), the model of Bradley and Terry.
A ranking is made of utilities with Gumbel noise, which gives every pair that chance (Luce 1959).
`fitted` sets the strength so that two labelers agree on a pair as often as the paper's did, 72.6
times in 100 (Ouyang et al. 2022, section 3.4).

Dimensions: P pairs, L labelers, F features.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from english import gold
from english.tasks import Task

AGREEMENT = 0.73
# The parts of gold that labelers weigh each in their own way.
PARTS = len(gold.Parts._fields)
FEATURES = PARTS + 2  # and the log of the number of words, and courtesies up to 2
ROUNDS = 60  # of the search for the strength


class Labeler(NamedTuple):
  """A person who ranks answers: weights of the features, before the strength."""

  name: str
  weights: tuple[float, ...]


class Tastes(NamedTuple):
  """How labelers of a group differ: means of two tastes, and the spread of all weights."""

  length: float = 0.3
  style: float = 0.5
  spread: float = 0.4


# Those who label training data, those who are held out, and equal ones as a control.
TRAINING = Tastes()
HELD_OUT = Tastes(length=-0.2, style=-0.1)
EQUAL = Tastes(spread=0.0)


def group(rng: random.Random, tastes: Tastes, count: int, name: str = "labeler") -> list[Labeler]:
  """Returns labelers of a group. The weights of gold's parts have a log-normal spread."""
  labelers = []
  for number in range(count):
    weights = [math.exp(rng.gauss(0, tastes.spread)) for _ in range(PARTS)]
    weights.append(tastes.length + rng.gauss(0, tastes.spread) / 2)
    weights.append(tastes.style + rng.gauss(0, tastes.spread) / 2)
    labelers.append(Labeler(f"{name}{number}", tuple(weights)))
  return labelers


def features(task: Task, response: str) -> Float[np.ndarray, " F"]:
  """Returns what labelers see of an answer."""
  courtesies = min(gold.read(task, response).courtesies, 2)
  words = len(response.split())
  return np.asarray([*gold.parts(task, response), math.log(1 + words), courtesies])


def chances(
  labelers: Sequence[Labeler],
  differences: Float[np.ndarray, "P F"],
  strength: float,
) -> Float[np.ndarray, "L P"]:
  """Returns how likely each labeler prefers the first answer of each pair."""
  weights = np.asarray([labeler.weights for labeler in labelers])
  return special.expit(strength * (weights @ differences.T))


def agreement(chances_of_two: Float[np.ndarray, "L P"]) -> float:
  """Returns how often two different labelers agree on a pair, on average."""
  first = chances_of_two.sum(0)
  second = (1 - chances_of_two).sum(0)
  count = len(chances_of_two)
  both = first**2 - (chances_of_two**2).sum(0) + second**2 - ((1 - chances_of_two) ** 2).sum(0)
  return float(both.mean() / (count * (count - 1)))


def fitted(
  labelers: Sequence[Labeler],
  differences: Float[np.ndarray, "P F"],
  wanted: float = AGREEMENT,
) -> float:
  """Returns the strength at which two of the labelers agree as often as `wanted`.

  Agreement rises with the strength from a half. The search takes the middle of powers of 2.

  Raises:
    ValueError: where the labelers differ so much that no strength makes them agree as often.
  """
  low, high = 2.0**-10, 2.0**10
  if agreement(chances(labelers, differences, high)) < wanted:
    raise ValueError(f"{len(labelers)} labelers never agree on {wanted:.0%} of pairs")
  for _ in range(ROUNDS):
    middle = math.sqrt(low * high)
    if agreement(chances(labelers, differences, middle)) < wanted:
      low = middle
    else:
      high = middle
  return high


def ranks(
  rng: random.Random, labeler: Labeler, task: Task, responses: Sequence[str], strength: float
) -> list[int]:
  """Returns the rank that a labeler gives each answer, 1 for the best. Equal texts tie."""
  weights = np.asarray(labeler.weights)
  utilities: dict[str, float] = {}
  for response in responses:
    if response not in utilities:
      noise = -math.log(-math.log(rng.random() or 1e-300))
      utilities[response] = strength * float(weights @ features(task, response)) + noise
  ordered = sorted(set(utilities.values()), reverse=True)
  return [ordered.index(utilities[response]) + 1 for response in responses]
