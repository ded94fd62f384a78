"""The use cases of two data sets side by side: shares, differences with 95 % intervals, total
variation distance.

The paper's own comparison (section 4.1): about 57 % of its prompts are open-ended generation and
brainstorming, which public NLP collections hardly hold, and about 18 % are classification and
question answering, which they mostly are.

A user's prompts hang together, so users are drawn again (the percentile bootstrap of
`intervals`), each record that names nobody by itself.  The distance of two samples of one and
the same mix is above 0 by chance: `chance` is the 95th percentile of that, over draws of both
samples from all users together.  A distance below it says nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from instructjax.data.curation.hygiene import group_of
from instructjax.data.curation.statistics import NONE, USE_CASES, use_case
from instructjax.data.records.records import Labelled
from instructjax.intervals import LEVEL, SAMPLES, Estimate
from instructjax.system.tables import Table

GROUPS = {  # section 4.1
  "open-ended (generation, brainstorming)": ("Generation", "Brainstorming"),
  "classification and QA": ("Classification", "Open QA", "Closed QA"),
}


class Mix(NamedTuple):
  """Shares and differences (the first data set less the second) of each use case and group, and the
  distance.
  """

  shares: dict[str, tuple[float, float, Estimate]]  # {name: (share of A, share of B, difference)}
  distance: float  # total variation: half the sum of the absolute differences of the use cases
  chance: float
  sizes: tuple[int, int]


def compare(
  a: Sequence[Labelled], b: Sequence[Labelled], *, samples: int = SAMPLES, seed: int = 0
) -> Mix:
  """The mix of two data sets, neither empty."""
  names = _names([*a, *b])
  counts = [_counts(rows, names) for rows in (a, b)]
  point = [_shares(found.sum(axis=0)) for found in counts]
  rng = np.random.default_rng(seed)
  draws = [_shares(_drawn(found, samples, rng)) for found in counts]
  groups = {name: [names.index(one) for one in members] for name, members in GROUPS.items()}
  groups |= {name: [i] for i, name in enumerate(names)}
  shares = {}
  for name, columns in groups.items():
    here, there = (float(share[columns].sum()) for share in point)
    low, high = np.quantile(
      draws[0][:, columns].sum(axis=1) - draws[1][:, columns].sum(axis=1), LEVEL
    )
    shares[name] = here, there, Estimate(here - there, float(low), float(high), len(a) + len(b))
  pooled = np.concatenate(counts)
  same = [_shares(_drawn(pooled, samples, rng, size=len(found))) for found in counts]
  chance = float(np.quantile(np.abs(same[0] - same[1]).sum(axis=1) / 2, 0.95))
  return Mix(shares, float(np.abs(point[0] - point[1]).sum() / 2), chance, (len(a), len(b)))


def table(mix: Mix, names: tuple[str, str]) -> Table:
  """The mix in percent, the groups last; + 0.0 makes 0 of -0."""
  row = lambda name, one: (
    name,
    *(round(100 * v, 1) + 0.0 for v in (one[0], one[1], one[2].value, one[2].low, one[2].high)),
  )
  rows = [row(name, one) for name, one in mix.shares.items() if name not in GROUPS]
  rows += [row(name, mix.shares[name]) for name in GROUPS]
  columns = ("use case", "A %", "B %", "A - B", "95 % from", "to")
  title = f"Use cases: A {names[0]} ({mix.sizes[0]:,} records), B {names[1]} ({mix.sizes[1]:,})"
  return Table(title, columns, rows)


def _names(rows: Iterable[Labelled]) -> list[str]:
  found = {use_case(row) for row in rows}
  return [*USE_CASES, *sorted(found - {*USE_CASES, NONE}), *([NONE] if NONE in found else [])]


def _counts(rows: Sequence[Labelled], names: Sequence[str]) -> Float[np.ndarray, "U C"]:
  """How often each user has each use case."""
  place = {name: i for i, name in enumerate(names)}
  users: dict[str | int, Counter[int]] = defaultdict(Counter)
  for i, row in enumerate(rows):
    users[group_of(row) or i][place[use_case(row)]] += 1
  found = np.zeros((len(users), len(names)))
  for row, counts in zip(found, users.values(), strict=True):
    row[list(counts)] = list(counts.values())
  return found


def _drawn(
  rows: Float[np.ndarray, "U C"], samples: int, rng: np.random.Generator, size: int | None = None
) -> Float[np.ndarray, "S C"]:
  """Column sums of draws of `size` rows with replacement; equal rows, which most are, are drawn
  together.
  """
  kinds, times = np.unique(rows, axis=0, return_counts=True)
  at_once = max(1, 4_000_000 // len(kinds))
  parts = [min(at_once, samples - done) for done in range(0, samples, at_once)]
  return np.concatenate(
    [rng.multinomial(size or len(rows), times / len(rows), size=part) @ kinds for part in parts]
  )


def _shares(counts: Float[np.ndarray, "*N C"]) -> Float[np.ndarray, "*N C"]:
  return counts / counts.sum(axis=-1, keepdims=True)
