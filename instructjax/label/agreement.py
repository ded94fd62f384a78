"""How far labelers agree: on which of two outputs is better (the paper's 72.6 %), on the overall
quality and on each flag.

Two labelers of one prompt are compared on every pair of its outputs.  The paper does not say how
ties count, so both are here: `agreement` leaves out pairs that either of them ties;
`agreement_ties` counts them, the same answer (better, worse or tie) as 1, a tie against a
preference as 1/2, opposite preferences as 0.  `tau_b` is Kendall's, the mean over pairs of
labelers.  `alpha` is Krippendorff's with the squared difference: 1 - observed / expected
disagreement of the ratings.

Intervals are 95 % bootstrap intervals over prompts (instructjax/intervals.py): the pairs of a
prompt hang together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from instructjax import intervals
from instructjax.data.records.records import CONTINUATION, RATINGS, Comparison
from instructjax.errors import UserError
from instructjax.intervals import Estimate

Count = Callable[[Sequence[int], Sequence[int]], tuple[float, float]]
Votes = list[Comparison]  # of one prompt and the same outputs, by different labelers


def measure(records: Sequence[Comparison]) -> dict[str, Estimate]:
  """All figures of a set of comparisons; `with/NAME` is a labeler against all others, ties left
  out.

  Raises UserError where no prompt has two labelers.
  """
  groups = _groups(records)
  if not groups:
    raise UserError("no prompt has answers of two labelers: agreement needs --per-prompt=2 or more")
  found = {
    "agreement": intervals.share(_shares(groups, _strict)),
    "agreement_ties": intervals.share(_shares(groups, _with_ties)),
    "tied": intervals.share(_shares(groups, _tied)),
    "tau_b": intervals.share(_shares(groups, _tau)),
  }
  for name in (*RATINGS, *CONTINUATION):
    found[f"alpha/{name}"] = alpha([_values(group, name) for group in groups])
  for labeler in sorted(
    {vote.labeler or "" for group in groups for votes in group for vote in votes}
  ):
    found[f"with/{labeler}"] = intervals.share(_shares(groups, _strict, labeler))
  return found


def _groups(records: Sequence[Comparison]) -> list[list[Votes]]:
  """For each prompt the tasks that two labelers or more answered."""
  tasks: dict[tuple, dict[str, Comparison]] = defaultdict(dict)
  for record in records:
    tasks[(record.prompt, record.id, record.completions)][record.labeler or ""] = record
  prompts: dict[str, list[Votes]] = defaultdict(list)
  for (prompt, *_), votes in tasks.items():
    if len(votes) > 1:
      prompts[prompt].append([votes[name] for name in sorted(votes)])
  return list(prompts.values())


def _shares(groups: list[list[Votes]], count: Count, labeler: str | None = None) -> np.ndarray:
  """[prompts, 2]: the sums of `count(ranks, ranks)`, which is (agreed, out of), over pairs of
  labelers.
  """
  rows = np.zeros((len(groups), 2))
  for row, group in zip(rows, groups, strict=True):
    for votes in group:
      for a, b in combinations(votes, 2):
        if labeler is None or labeler in (a.labeler or "", b.labeler or ""):
          row += count(a.ranks, b.ranks)
  return rows


def _signs(a: Sequence[int], b: Sequence[int]) -> np.ndarray:
  """[pairs of outputs, 2]: -1, 0 or 1 by each labeler; 1 where the first output has the higher
  number.
  """
  pairs = list(combinations(range(len(a)), 2))
  return np.sign([[ranks[i] - ranks[j] for ranks in (a, b)] for i, j in pairs])


def _strict(a: Sequence[int], b: Sequence[int]) -> tuple[float, float]:
  x, y = _signs(a, b).T
  both = (x != 0) & (y != 0)
  return float((both & (x == y)).sum()), float(both.sum())


def _with_ties(a: Sequence[int], b: Sequence[int]) -> tuple[float, float]:
  x, y = _signs(a, b).T
  return float((1 - np.abs(x - y) / 2).sum()), float(len(x))


def _tied(a: Sequence[int], b: Sequence[int]) -> tuple[float, float]:
  signs = _signs(a, b)
  return float((signs == 0).sum()), float(signs.size)


def _tau(a: Sequence[int], b: Sequence[int]) -> tuple[float, float]:
  """Kendall's tau-b, which is undefined (and left out) where one of them ties everything."""
  x, y = _signs(a, b).T
  size = math.sqrt(float(np.abs(x).sum()) * float(np.abs(y).sum()))
  return (float((x * y).sum()) / size, 1.0) if size else (0.0, 0.0)


def _values(group: list[Votes], name: str) -> list[list[float]]:
  """For each output of a prompt the ratings it got, where two or more labelers gave one."""
  units = [
    [float(vote.ratings[at][name]) for vote in votes if vote.ratings and name in vote.ratings[at]]
    for votes in group
    for at in range(len(votes[0].completions))
  ]
  return [unit for unit in units if len(unit) > 1]


def alpha(
  prompts: Sequence[Sequence[Sequence[float]]], samples: int = intervals.SAMPLES, seed: int = 0
) -> Estimate:
  """Krippendorff's alpha with squared differences (interval data; for flags the same as nominal).

  prompts[i][j] are the ratings of one output; `n` of the result counts ratings.  NaN where all
  ratings are the same.

    alpha = 1 - D_o / D_e,  D_e = 2 (n sum x^2 - (sum x)^2) / (n (n - 1)),
    D_o = 1/n sum over units of 2 (m sum x^2 - (sum x)^2) / (m - 1),  m ratings of a unit

  Source: Krippendorff, Content Analysis, 2004, chapter 11.
  """
  rows = np.zeros(
    (len(prompts), 4)
  )  # n, sum x, sum x^2, the sum of D_o: alpha is a function of their column sums
  for row, units in zip(rows, prompts, strict=True):
    for unit in map(np.asarray, units):
      m, total, square = len(unit), unit.sum(), (unit**2).sum()
      row += [m, total, square, 2 * (m * square - total**2) / (m - 1)]
  value = float(_alpha(rows.sum(axis=0)[None])[0])
  if math.isnan(value):
    return intervals.NOTHING._replace(n=round(rows[:, 0].sum()))
  draws = _alpha(intervals.resampled(rows, samples, seed))
  low, high = np.quantile(draws[~np.isnan(draws)], intervals.LEVEL)
  return Estimate(value, float(low), float(high), round(rows[:, 0].sum()))


def _alpha(sums: np.ndarray) -> np.ndarray:
  """[S] of column sums [S, 4]; NaN where nothing differs."""
  n, total, square, within = sums.T
  between = 2 * (n * square - total**2)
  differs = between > 1e-9
  safe = np.where(differs, between, 1.0)
  return np.where(differs, 1 - within * (n - 1) / safe, np.nan)


def text(found: dict[str, Estimate]) -> str:
  """A line for each figure that there is."""
  about = {
    "agreement": "pairs ordered alike, ties left out",
    "agreement_ties": "pairs, a tie against a preference 1/2",
    "tied": "judgments that tie",
    "tau_b": "Kendall's tau-b, mean over pairs of labelers",
  }
  lines = []
  for name, one in found.items():
    if one.n and not math.isnan(one.value):
      what = about.get(
        name, "Krippendorff's alpha" if name.startswith("alpha/") else "this labeler and the others"
      )
      lines.append(
        f"{name:28} {one.value:6.3f}  ({one.low:.3f} to {one.high:.3f})  n {one.n:<6} {what}"
      )
  return "\n".join(lines)
