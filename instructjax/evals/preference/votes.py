"""Votes on two models' answers to one prompt, and what gives their 95 % intervals.

The rows of an interval are prompts, not votes, because the votes on one prompt are not independent.
Where several labelers voted, a second interval is about other labelers too. The variance of a share
is then the sum of that between prompts and that between labelers, less that between single votes,
which is in both (Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering").

Strengths and rates at equal length have no such formula and are bootstrapped: a vote counts the
product of how often its prompt and its labeler were drawn (Owen 2007, "The pigeonhole bootstrap"),
which is a little too wide. All of them use the same draws, so that they can be compared.

Dimensions: N votes, P prompts, L labelers, G groups of votes, C columns, S draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
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
  longer_by
           the length of a's answer less that of b's, in characters
  slices   the value of the prompt in each group of slices
  """

  prompt: str
  a: str
  b: str
  orders: tuple[float, ...]
  ratio: float = 0.0
  labeler: str = ""
  slices: Mapping[str, str] = {}
  longer_by: int = 0

  @property
  def won(self) -> float:
    """The outcome, averaged over the orders."""
    return sum(self.orders) / len(self.orders)

  def reversed(self) -> Vote:
    """Returns the same vote from the side of `b`."""
    # b's answer came first in the presentation in which a's came second.
    orders = tuple(1 - outcome for outcome in reversed(self.orders))
    return self._replace(
      a=self.b,
      b=self.a,
      orders=orders,
      ratio=-self.ratio,
      longer_by=-self.longer_by,
    )


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
  votes: Sequence[Vote],
  values: Values,
  *,
  both: bool = False,
  paired: bool = False,
) -> Estimate:
  """Returns the mean of a value that each vote has.

  With `both` the interval is over prompts and labelers. `paired` is for outcomes that compare two
  models, see `intervals.share`.
  """
  if not len(votes):
    return NOTHING
  parts = np.stack([np.asarray(values, np.float64), np.ones(len(votes))], axis=1)
  by_prompt = _summed([vote.prompt for vote in votes], parts)
  more = _labeler_variance(votes, parts) if both else 0.0
  return intervals.share(by_prompt, paired=paired, more=more)


def _labeler_variance(votes: Sequence[Vote], parts: Float[np.ndarray, "N 2"]) -> float:
  """Returns the variance that labelers add to that over prompts.

  It is scaled so that 1.96 standard deviations hold 95 %: few labelers tell little about how much
  they differ (Satterthwaite 1946).
  """
  by_prompt = _summed([vote.prompt for vote in votes], parts)
  by_labeler = _summed([vote.labeler for vote in votes], parts)
  by_both = _summed([(vote.prompt, vote.labeler) for vote in votes], parts)
  if len(by_prompt) < 2 or len(by_labeler) < 2:
    return 0.0
  over_prompts = intervals.variance_of_share(by_prompt)
  more = intervals.variance_of_share(by_labeler) - intervals.variance_of_share(by_both)
  if more <= 0:
    return 0.0
  precision = over_prompts**2 / (len(by_prompt) - 1) + more**2 / (len(by_labeler) - 1)
  quantile = intervals.t_quantile((over_prompts + more) ** 2 / precision)
  return more * (quantile / intervals.Z) ** 2


def _summed(
  groups: Sequence[Hashable],
  columns: Float[np.ndarray, "N C"],
) -> Float[np.ndarray, "G C"]:
  """Returns the column sums of each group of votes."""
  numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
  by_group = np.zeros((len(numbers), columns.shape[1]))
  np.add.at(by_group, [numbers[group] for group in groups], columns)
  return by_group


def shares(
  votes: Sequence[Vote],
  values: Values,
  *,
  paired: bool = False,
) -> dict[str, Estimate | None]:
  """Returns the mean of a value that each vote has, with both of its intervals.

  `by_prompt` is over prompts. `by_both` is over prompts and labelers; it is None where there is
  only one labeler.
  """
  by_both = None
  if len({vote.labeler for vote in votes}) > 1:
    by_both = share(votes, values, both=True, paired=paired)
  return {"by_prompt": share(votes, values, paired=paired), "by_both": by_both}


def main_estimate(shares: Mapping[str, Estimate | None]) -> Estimate:
  """Returns the estimate to print: over prompts and labelers where there are several labelers."""
  estimate = shares["by_both"] or shares["by_prompt"]
  assert estimate is not None
  return estimate
