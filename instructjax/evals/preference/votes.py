"""Votes on two models' answers to one prompt, and the draws that give 95 % intervals.

The bootstrap draws prompts, not votes, because the votes on one prompt are not independent. Where
several labelers voted, a second interval draws the labelers too: a vote then counts the product of
how often its prompt and its labeler were drawn (Owen 2007, "The pigeonhole bootstrap"). That
interval is about other labelers as well, and it is a little too wide.

All numbers about the same votes use the same draws, so that they can be compared.

Dimensions: N votes, P prompts, L labelers, C columns, S draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from instructjax import intervals
from instructjax.intervals import NOTHING, SAMPLES, Estimate

Values = Sequence[float] | Num[np.ndarray, " N"] | Bool[np.ndarray, " N"]


class Vote(NamedTuple):
  """The verdict of a judge or a labeler on the answers of models `a` and `b` to a prompt.

  An outcome is 1 where `a` won, 0.5 for a tie and 0 where `a` lost.

  orders   the outcome with the answer of `a` shown first, then the one with it shown second; a
           single outcome where the order plays no role or nobody recorded it
  ratio    the log of the length of a's answer over that of b's, in characters
  slices   the value of the prompt in each group of slices
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
    """The outcome, averaged over the orders."""
    return sum(self.orders) / len(self.orders)

  def reversed(self) -> Vote:
    """Returns the same vote from the side of `b`."""
    # b's answer came first in the presentation in which a's came second.
    orders = tuple(1 - outcome for outcome in reversed(self.orders))
    return self._replace(a=self.b, b=self.a, orders=orders, ratio=-self.ratio)


def between(votes: Sequence[Vote], model: str, opponent: str) -> list[Vote]:
  """Returns the votes on two models, from the side of `model`."""
  pair_votes = []
  for vote in votes:
    if (vote.a, vote.b) == (model, opponent):
      pair_votes.append(vote)
    elif (vote.b, vote.a) == (model, opponent):
      pair_votes.append(vote.reversed())
  return pair_votes


class Draws(NamedTuple):
  """How often each prompt was drawn, and each labeler where there are several.

  `prompt` and `labeler` give the columns of `prompts` and `labelers`.
  """

  prompt: Mapping[str, int]
  labeler: Mapping[str, int]
  prompts: Float[np.ndarray, "S P"]
  labelers: Float[np.ndarray, "S L"] | None


def draw(votes: Sequence[Vote], samples: int = SAMPLES, seed: int = 0) -> Draws:
  """Draws the prompts and the labelers of at least one vote, with replacement."""
  prompt = _columns(vote.prompt for vote in votes)
  labeler = _columns(vote.labeler for vote in votes)
  prompts = intervals.draw_counts(len(prompt), samples, seed)
  labelers = None
  if len(labeler) > 1:
    # Another seed, so that prompts and labelers are drawn independently.
    labelers = intervals.draw_counts(len(labeler), samples, seed + 1)
  return Draws(prompt, labeler, prompts, labelers)


def _columns(names: Iterable[str]) -> dict[str, int]:
  """Returns a column for each name, in alphabetical order."""
  return {name: column for column, name in enumerate(sorted(set(names)))}


def sums(
  draws: Draws,
  votes: Sequence[Vote],
  columns: Float[np.ndarray, "N C"],
  *,
  both: bool = False,
) -> Float[np.ndarray, "S C"]:
  """Returns the column sums over the votes of each draw.

  With `both`, votes are weighted by the draws of the labelers too, where there are any.
  """
  prompt_columns = [draws.prompt[vote.prompt] for vote in votes]
  shape = (len(draws.prompt), columns.shape[1])
  labelers = draws.labelers if both else None
  if labelers is None:
    # Votes are summed by prompt first; a draw then weighs whole prompts.
    by_prompt = np.zeros(shape)
    np.add.at(by_prompt, prompt_columns, columns)
    return draws.prompts @ by_prompt
  # The sums of each labeler and prompt are small; no array of all draws and all votes is needed.
  labeler_columns = [draws.labeler[vote.labeler] for vote in votes]
  by_labeler = np.zeros((len(draws.labeler), *shape))
  np.add.at(by_labeler, (labeler_columns, prompt_columns), columns)
  total = np.zeros((len(draws.prompts), columns.shape[1]))
  for labeler, by_prompt in enumerate(by_labeler):
    total += labelers[:, [labeler]] * (draws.prompts @ by_prompt)
  return total


def weights(
  draws: Draws,
  votes: Sequence[Vote],
  part: slice,
  *,
  both: bool = False,
) -> Float[np.ndarray, "S N"]:
  """Returns how often each vote counts in some of the draws."""
  prompt_columns = [draws.prompt[vote.prompt] for vote in votes]
  counts = draws.prompts[part][:, prompt_columns]
  if both and draws.labelers is not None:
    labeler_columns = [draws.labeler[vote.labeler] for vote in votes]
    counts = counts * draws.labelers[part][:, labeler_columns]
  return counts


def share(
  draws: Draws,
  votes: Sequence[Vote],
  values: Values,
  *,
  both: bool = False,
) -> Estimate:
  """Returns the mean of a value that each vote has."""
  if not len(votes):
    return NOTHING
  # The sum of the values and the number of votes, whose ratio is the mean.
  ones = np.ones(len(votes))
  parts = np.stack([np.asarray(values, np.float64), ones], axis=1)
  drawn_parts = sums(draws, votes, parts, both=both)
  # A draw without any of these votes is 0 / 0; `with_ends` leaves it out.
  with np.errstate(invalid="ignore"):
    drawn_means = drawn_parts[:, 0] / drawn_parts[:, 1]
  return intervals.with_ends(float(parts[:, 0].mean()), drawn_means, len(votes))


def shares(
  draws: Draws,
  votes: Sequence[Vote],
  values: Values,
) -> dict[str, Estimate | None]:
  """Returns the mean of a value that each vote has, with both of its intervals.

  `by_prompt` is over prompts. `by_both` is over prompts and labelers; it is None where there is
  only one labeler.
  """
  by_both = None
  if draws.labelers is not None:
    by_both = share(draws, votes, values, both=True)
  return {"by_prompt": share(draws, votes, values), "by_both": by_both}
