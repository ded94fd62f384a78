"""Votes on two models' answers to one prompt, and draws of prompts and labelers for 95 % intervals.

Prompts are drawn again, not votes: the votes on a prompt hang together.  Where several labelers
voted, a second interval draws the labelers again too (a vote counts the product of both draws;
Owen 2007, "The pigeonhole bootstrap"); it is about other labelers as well, and a little too
wide.  All that is said of the same votes is said of the same draws.

Dimensions: N votes, P prompts, L labelers, C columns, S draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from instructjax import intervals
from instructjax.intervals import NOTHING, SAMPLES, Estimate

Values = Sequence[float] | Num[np.ndarray, " N"] | Bool[np.ndarray, " N"]


class Vote(NamedTuple):
  """What a judge or a labeler said of the answers of `a` and `b` to a prompt.

  orders   what `a` got, 1 won, .5 tied, 0 lost: with its answer shown first, then with it shown second; a single number where
           the order plays no role or is not known
  ratio    log of the length of a's answer over that of b's, in characters
  slices   where the prompt stands in each group
  """

  prompt: str
  a: str
  b: str
  orders: tuple[float, ...]
  ratio: float = 0.0
  labeler: str = ""
  slices: Mapping[str, str] = {}

  @property
  def won(self) -> float:
    """The mean over the orders."""
    return sum(self.orders) / len(self.orders)


def of(votes: Sequence[Vote], model: str, against: str) -> list[Vote]:
  """The votes on two models, turned so that `model` stands first."""
  turned = lambda v: v._replace(
    a=v.b, b=v.a, orders=tuple(1 - x for x in reversed(v.orders)), ratio=-v.ratio
  )
  return [v if v.a == model else turned(v) for v in votes if {v.a, v.b} == {model, against}]


class Draws(NamedTuple):
  """How often each prompt, and each labeler where there are several, stands in each draw."""

  prompt: Mapping[str, int]
  labeler: Mapping[str, int]
  prompts: Float[np.ndarray, "S P"]
  labelers: Float[np.ndarray, "S L"] | None


def draw(votes: Sequence[Vote], samples: int = SAMPLES, seed: int = 0) -> Draws:
  """Draws of what these votes rest on, of which there is at least one."""
  number = lambda names: {name: at for at, name in enumerate(sorted(set(names)))}
  prompt, labeler = number(v.prompt for v in votes), number(v.labeler for v in votes)
  several = intervals.draw_counts(len(labeler), samples, seed + 1) if len(labeler) > 1 else None
  return Draws(prompt, labeler, intervals.draw_counts(len(prompt), samples, seed), several)


def sums(
  draws: Draws, votes: Sequence[Vote], columns: Float[np.ndarray, "N C"], *, both: bool = False
) -> Float[np.ndarray, "S C"]:
  """Column sums over the votes of each draw; `both` draws labelers too."""
  labelers = draws.labelers if both else None
  cells = np.zeros(
    (1 if labelers is None else len(draws.labeler), len(draws.prompt), columns.shape[1])
  )
  at = [0 if labelers is None else draws.labeler[v.labeler] for v in votes]
  np.add.at(cells, (at, [draws.prompt[v.prompt] for v in votes]), columns)
  if labelers is None:
    return draws.prompts @ cells[0]
  return sum(
    (labelers[:, [i]] * (draws.prompts @ cell) for i, cell in enumerate(cells)), np.zeros(())
  )


def weights(
  draws: Draws, votes: Sequence[Vote], part: slice, *, both: bool = False
) -> Float[np.ndarray, "S N"]:
  """How often each vote stands in some of the draws."""
  found = draws.prompts[part][:, [draws.prompt[v.prompt] for v in votes]]
  if both and draws.labelers is not None:
    found = found * draws.labelers[part][:, [draws.labeler[v.labeler] for v in votes]]
  return found


def share(draws: Draws, votes: Sequence[Vote], values: Values, *, both: bool = False) -> Estimate:
  """The mean of a value of each vote."""
  if not len(votes):
    return NOTHING
  parts = np.stack([np.asarray(values, np.float64), np.ones(len(votes))], axis=1)
  drawn = sums(draws, votes, parts, both=both)
  with np.errstate(invalid="ignore"):
    return intervals.with_ends(float(parts[:, 0].mean()), drawn[:, 0] / drawn[:, 1], len(votes))


def shares(draws: Draws, votes: Sequence[Vote], values: Values) -> dict[str, Estimate | None]:
  """{"by_prompt": ..., "by_both": the interval over prompts and labelers, None where there is one
  labeler}.
  """
  both = share(draws, votes, values, both=True) if draws.labelers is not None else None
  return {"by_prompt": share(draws, votes, values), "by_both": both}
