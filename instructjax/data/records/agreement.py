"""How far labelers agree: on the better of two outputs, on the overall quality and on each flag.

Two labelers of one prompt are compared on every pair of its outputs. The paper (Ouyang et al.
2022, section 3.4) reports 72.6 % for its training labelers and does not say how ties count, so
there are two figures:

  agreement       leaves out the pairs that either of them ties;
  agreement_ties  counts all pairs: the same answer (better, worse or tie) as 1, a tie against a
                  preference as 1/2, and opposite preferences as 0.

`tied` is the share of judgments that are ties, `tau_b` Kendall's tau-b, averaged over pairs of
labelers, and `alpha/NAME` Krippendorff's alpha of a rating.

Intervals are 95 % intervals over prompts (instructjax/intervals.py), because the pairs of one
prompt are not independent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from instructjax import intervals
from instructjax.data.records import preferences
from instructjax.data.records.records import CONTINUATION, RATINGS, Comparison
from instructjax.errors import UserError
from instructjax.intervals import Estimate

# For each pair of outputs that two labelers compared, 1 where one of them prefers the first, -1
# where they prefer the second, and 0 for a tie.
Signs = np.ndarray
# How much of something agrees, and how much there is of it.
Share = tuple[float, float]
# Compares what two labelers said of the same pairs.
Count = Callable[[Signs, Signs], Share]
# The records of one prompt with the same outputs, by different labelers.
Votes = list[Comparison]
Group = list[Votes]  # of one prompt, which may have been given with different outputs

MEANINGS = {
  "agreement": "pairs ordered alike, ties left out",
  "agreement_ties": "pairs, a tie against a preference 1/2",
  "tied": "judgments that tie",
  "tau_b": "Kendall's tau-b, mean over pairs of labelers",
}


def measure(records: Sequence[Comparison]) -> dict[str, Estimate]:
  """Returns all figures of a set of comparisons by name.

  `with/LABELER` is the agreement of one labeler with all others, with ties left out.

  Raises:
    UserError: no prompt has two labelers.
  """
  groups = _group(records)
  if not groups:
    raise UserError("no prompt has answers of two labelers: agreement needs --per-prompt=2 or more")
  estimates = {
    "agreement": on_pairs(records),
    "agreement_ties": intervals.share(_sums(groups, _with_ties)),
    "tied": intervals.share(_sums(groups, _tied)),
    "tau_b": intervals.share(_sums(groups, _tau_b)),
  }
  # Comparisons have the ratings of Table 3, continuations those of Fig. 11. An alpha of ratings
  # that nobody gave rests on nothing (n = 0).
  for name in (*RATINGS, *CONTINUATION):
    ratings = [_ratings(group, name) for group in groups]
    estimates[f"alpha/{name}"] = alpha(ratings)
  labelers: set[str] = set()
  for group in groups:
    for votes in group:
      labelers.update(vote.labeler or "" for vote in votes)
  for labeler in sorted(labelers):
    sums = _sums(groups, _strict, labeler)
    estimates[f"with/{labeler}"] = intervals.share(sums)
  return estimates


def on_pairs(records: Sequence[Comparison]) -> Estimate:
  """Returns `agreement` alone; it rests on nothing where no prompt has two labelers."""
  groups = _group(records)
  if not groups:
    return intervals.NOTHING
  return intervals.share(_sums(groups, _strict))


def as_text(estimates: dict[str, Estimate]) -> str:
  """Returns a line for each figure, without those that rest on nothing.

  "n 60 in 20" are 60 pairs in 20 prompts.
  """
  lines = []
  for name, estimate in estimates.items():
    if not estimate.n or math.isnan(estimate.value):
      continue
    if name.startswith("alpha/"):
      meaning = "Krippendorff's alpha"
    else:
      meaning = MEANINGS.get(name, "this labeler and the others")
    interval = f"({estimate.low:.3f} to {estimate.high:.3f})"
    lines.append(
      f"{name:28} {estimate.value:6.3f}  {interval}  n {intervals.counted(estimate):<12} {meaning}"
    )
  return "\n".join(lines)


def _group(records: Sequence[Comparison]) -> list[Group]:
  """Returns for each prompt the votes on the tasks that two labelers or more answered."""
  # The same prompt may have been given with other outputs: that is another task, but the same
  # prompt of the bootstrap. A second answer of a labeler to a task replaces the first.
  tasks: dict[tuple, dict[str, Comparison]] = defaultdict(dict)
  for record in records:
    task = (record.prompt, record.id, record.completions)
    tasks[task][record.labeler or ""] = record
  groups: dict[str, Group] = defaultdict(list)
  for (prompt, _, _), by_labeler in tasks.items():
    if len(by_labeler) > 1:
      votes = [by_labeler[name] for name in sorted(by_labeler)]
      groups[prompt].append(votes)
  return list(groups.values())


def _sums(
  groups: list[Group],
  count: Count,
  labeler: str | None = None,
) -> np.ndarray:
  """Returns [prompts, 2]: the sums of `count` over all pairs of labelers of each prompt.

  With `labeler`, only the pairs that this labeler is in are summed.
  """
  sums = np.zeros((len(groups), 2))
  for row, group in enumerate(groups):
    for votes in group:
      for a, b in combinations(votes, 2):
        pair = (a.labeler or "", b.labeler or "")
        if labeler is None or labeler in pair:
          sums[row] += count(*_signs(a, b))
  return sums


# --- the comparison of two labelers ---


def _signs(a: Comparison, b: Comparison) -> tuple[Signs, Signs]:
  """Returns the signs of two labelers, for the pairs that both compared."""
  both = np.triu(preferences.compared(a) & preferences.compared(b), k=1)
  return preferences.signs(a)[both], preferences.signs(b)[both]


def _strict(x: Signs, y: Signs) -> Share:
  """Counts the pairs that both order, and of those the pairs that they order alike."""
  both_order = (x != 0) & (y != 0)
  alike = both_order & (x == y)
  return float(alike.sum()), float(both_order.sum())


def _with_ties(x: Signs, y: Signs) -> Share:
  """Counts all pairs, and of those the pairs ordered alike."""
  # |x - y| is 0 for the same answer, 1 for a tie on one side and 2 for opposite preferences.
  agreed = 1 - np.abs(x - y) / 2
  return float(agreed.sum()), float(len(x))


def _tied(x: Signs, y: Signs) -> Share:
  """Counts the judgments, two for each pair, and of those the ties."""
  signs = np.stack([x, y])
  ties = signs == 0
  return float(ties.sum()), float(signs.size)


def _tau_b(x: Signs, y: Signs) -> Share:
  """Kendall's tau-b as the count of one pair of labelers, so that the sums give its mean.

    tau_b = sum x y / sqrt(sum |x| sum |y|),  x and y the signs of `_signs`

  It is undefined, and left out, where one of them ties everything.
  """
  ordered_by_a = float(np.abs(x).sum())
  ordered_by_b = float(np.abs(y).sum())
  size = math.sqrt(ordered_by_a * ordered_by_b)
  if not size:
    return 0.0, 0.0
  tau = float((x * y).sum()) / size
  return tau, 1.0


# --- Krippendorff's alpha ---


def _ratings(group: Group, name: str) -> list[list[float]]:
  """Returns the ratings of each output of a prompt; alpha needs at least two of an output."""
  units = []
  for votes in group:
    for output in range(len(votes[0].completions)):
      ratings = [vote.ratings[output] for vote in votes if vote.ratings]
      unit = [float(rating[name]) for rating in ratings if name in rating]
      if len(unit) > 1:
        units.append(unit)
  return units


def alpha(
  prompts: Sequence[Sequence[Sequence[float]]],
  seed: int = 0,
) -> Estimate:
  """Krippendorff's alpha with squared differences: interval data, and for flags nominal data too.

    alpha = 1 - D_o / D_e
    D_e   = 2 (n sum x^2 - (sum x)^2) / (n (n - 1))               over all n ratings
    D_o   = 1/n sum over units of 2 (m sum x^2 - (sum x)^2) / (m - 1)   over the m of a unit

  Source: Krippendorff, Content Analysis, 2004, chapter 11.

  Args:
    prompts: prompts[i][j] are the ratings of output j of prompt i, at least two.
    seed: The seed of the bootstrap.

  Returns:
    The estimate, whose `n` counts ratings; NaN where all ratings are the same.
  """
  # Alpha is a function of four sums over prompts: n, sum x, sum x^2 and the sum of D_o.
  rows = np.zeros((len(prompts), 4))
  for row, units in enumerate(prompts):
    for ratings in units:
      unit = np.asarray(ratings)
      m = len(unit)
      total = unit.sum()
      square = (unit**2).sum()
      observed = 2 * (m * square - total**2) / (m - 1)
      rows[row] += [m, total, square, observed]
  n = round(rows[:, 0].sum())
  value = float(_alpha_of_sums(rows.sum(axis=0)))
  if math.isnan(value):
    return intervals.NOTHING._replace(n=n, clusters=len(prompts))
  return intervals.of_sums(rows, _alpha_of_sums, n, seed)


def _alpha_of_sums(sums: np.ndarray) -> np.ndarray:
  """Returns alpha [...] of the four sums [..., 4]; NaN where no two ratings differ."""
  n, total, square, within = np.moveaxis(sums, -1, 0)
  between = 2 * (n * square - total**2)
  differs = between > 1e-9  # above the rounding errors of a difference that is zero
  safe = np.where(differs, between, 1.0)
  alphas = 1 - within * (n - 1) / safe
  return np.where(differs, alphas, np.nan)
