"""The use cases of two data sets side by side.

The comparison gives shares, differences with 95 % intervals, and the total variation distance. It
is the paper's own (Ouyang et al. 2022, section 4.1): about 57 % of its prompts are open-ended
generation and brainstorming, which public NLP collections hardly hold, and about 18 % are
classification and question answering, which most of those collections are.

The prompts of one user are alike, so the intervals are over users and not over records; a record
that names nobody counts as a user of its own. Two samples of
one and the same mix differ by chance, too. `chance` is the 95th percentile of their distance, over
draws of both samples from all users together. A distance below it says nothing.

Dimensions: U users, C use cases, S draws.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from instructjax import intervals
from instructjax.data.curation.contents import group_of
from instructjax.data.curation.statistics import NONE, USE_CASES, use_case
from instructjax.data.records.records import Labelled
from instructjax.intervals import SAMPLES, Estimate
from instructjax.system.tables import Table

# The paper's two groups of use cases (section 4.1).
GROUPS = {
  "open-ended (generation, brainstorming)": ("Generation", "Brainstorming"),
  "classification and QA": ("Classification", "Open QA", "Closed QA"),
}
CELLS = 4_000_000  # numbers of one array of draws, 32 MB


class Mix(NamedTuple):
  """The comparison of two data sets A and B.

  `shares` maps each use case and group to (share of A, share of B, difference A - B). `distance`
  is the total variation: half the sum of the absolute differences of the use cases. `sizes` are
  the records of A and B.
  """

  shares: dict[str, tuple[float, float, Estimate]]
  distance: float
  chance: float
  sizes: tuple[int, int]


def compare(
  a: Sequence[Labelled],
  b: Sequence[Labelled],
  *,
  samples: int = SAMPLES,
  seed: int = 0,
) -> Mix:
  """Compares the mix of use cases of two data sets, neither of them empty."""
  names = _names([*a, *b])
  counts_a = _counts(a, names)
  counts_b = _counts(b, names)
  share_a = _shares(counts_a.sum(axis=0))
  share_b = _shares(counts_b.sum(axis=0))
  rng = np.random.default_rng(seed)
  # A group is the sum of its use cases, and a use case that of its own column alone.
  columns_by_name: dict[str, list[int]] = {}
  for group, members in GROUPS.items():
    columns_by_name[group] = [names.index(member) for member in members]
  for column, name in enumerate(names):
    columns_by_name[name] = [column]

  shares = {}
  for name, columns in columns_by_name.items():
    in_a = float(share_a[columns].sum())
    in_b = float(share_b[columns].sum())
    estimate_a = intervals.share(_parts(counts_a, columns))
    estimate_b = intervals.share(_parts(counts_b, columns))
    difference = intervals.unpaired(estimate_a, estimate_b)
    shares[name] = in_a, in_b, difference

  # Two samples of the same sizes, both from all users together: what chance alone does.
  pooled = np.concatenate([counts_a, counts_b])
  pooled_a = _shares(_draw_users(pooled, samples, rng, size=len(counts_a)))
  pooled_b = _shares(_draw_users(pooled, samples, rng, size=len(counts_b)))
  chance = np.quantile(_distance(pooled_a, pooled_b), 0.95)
  distance = _distance(share_a, share_b)
  return Mix(shares, float(distance), float(chance), (len(a), len(b)))


def _distance(
  a: Float[np.ndarray, "*N C"],
  b: Float[np.ndarray, "*N C"],
) -> Float[np.ndarray, "*N"] | np.floating:
  """Returns the total variation distance, sum_c |a_c - b_c| / 2."""
  return np.abs(a - b).sum(axis=-1) / 2


def table(mix: Mix, names: tuple[str, str]) -> Table:
  """Returns the mix in percent, with the groups last. `names` are those of A and B."""
  use_cases = [name for name in mix.shares if name not in GROUPS]
  rows = []
  for name in (*use_cases, *GROUPS):
    in_a, in_b, difference = mix.shares[name]
    values = (
      in_a,
      in_b,
      difference.value,
      difference.low,
      difference.high,
    )
    # Adding 0.0 turns -0.0 into 0.0.
    percents = [round(100 * value, 1) + 0.0 for value in values]
    rows.append((name, *percents))
  columns = ("use case", "A %", "B %", "A - B", "95 % from", "to")
  size_a, size_b = mix.sizes
  title = f"Use cases: A {names[0]} ({size_a:,} records), B {names[1]} ({size_b:,})"
  return Table(title, columns, rows)


def _names(rows: Iterable[Labelled]) -> list[str]:
  """Returns the paper's use cases, those of the records that it does not have, and NONE."""
  present = {use_case(row) for row in rows}
  others = sorted(present - {*USE_CASES, NONE})
  names = [*USE_CASES, *others]
  if NONE in present:
    names.append(NONE)
  return names


def _counts(rows: Sequence[Labelled], names: Sequence[str]) -> Float[np.ndarray, "U C"]:
  """Returns how often each user has each use case."""
  column_of = {name: column for column, name in enumerate(names)}
  counts_by_user: dict[str | int, Counter[int]] = defaultdict(Counter)
  for i, row in enumerate(rows):
    user = group_of(row) or i  # a record that names nobody is a user of its own
    counts_by_user[user][column_of[use_case(row)]] += 1
  counts = np.zeros((len(counts_by_user), len(names)))
  for number, counts_of_user in enumerate(counts_by_user.values()):
    for column, count in counts_of_user.items():
      counts[number, column] = count
  return counts


def _draw_users(
  counts: Float[np.ndarray, "U C"],
  samples: int,
  rng: np.random.Generator,
  size: int | None = None,
) -> Float[np.ndarray, "S C"]:
  """Returns the column sums of `samples` draws of `size` users, with replacement.

  Most users have the counts of many others. Equal ones are drawn together, by how many there are.
  """
  kinds, users_of_kind = np.unique(counts, axis=0, return_counts=True)
  probabilities = users_of_kind / len(counts)
  # A draw takes one number for each kind of user, so many draws are made in parts.
  draws_at_once = max(1, CELLS // len(kinds))
  sums = []
  for done in range(0, samples, draws_at_once):
    draws = min(draws_at_once, samples - done)
    times = rng.multinomial(size or len(counts), probabilities, size=draws)
    sums.append(times @ kinds)
  return np.concatenate(sums)


def _parts(counts: Float[np.ndarray, "U C"], columns: Sequence[int]) -> Float[np.ndarray, "U 2"]:
  """Returns how many records of each user are in some of the columns, and how many there are."""
  return np.stack([counts[:, columns].sum(axis=1), counts.sum(axis=1)], axis=1)


def _shares(counts: Float[np.ndarray, "*N C"]) -> Float[np.ndarray, "*N C"]:
  """Returns the counts of each row as shares of their sum."""
  return counts / counts.sum(axis=-1, keepdims=True)
