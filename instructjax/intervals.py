"""Means, shares and win rates with 95 % intervals: the percentile bootstrap over rows, seeded.

A row is what was drawn at random: a prompt, with everything measured on it.  Rows are drawn
again, not pairs or tokens, because the pairs of a prompt hang together.  The interval is about
other prompts, not about other training runs. Where every row is the same (all wins, say) it has
no width and is too narrow: heed `n`.

Dimensions: N rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

SAMPLES = 2000
LEVEL = (0.025, 0.975)


class Estimate(NamedTuple):
  """A value, its 95 % interval, and the number of rows or pairs that it rests on; all NaN where
  there are none.
  """

  value: float
  low: float
  high: float
  n: int


NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)


def resampled(rows: Float[np.ndarray, "N C"], samples: int, seed: int) -> Float[np.ndarray, "S C"]:
  """Column sums of `samples` draws of N rows with replacement."""
  rng = np.random.default_rng(seed)
  at_once = max(1, 2_000_000 // len(rows))
  sums = [
    rows[rng.integers(len(rows), size=(min(at_once, samples - done), len(rows)))].sum(axis=1)
    for done in range(0, samples, at_once)
  ]
  return np.concatenate(sums)


def drawn(rows: int, samples: int, seed: int) -> Float[np.ndarray, "S N"]:
  """How often each of N rows stands in each of `samples` draws of N rows with replacement."""
  return (
    np.random.default_rng(seed)
    .multinomial(rows, np.full(rows, 1 / rows), size=samples)
    .astype(np.float64)
  )


def with_ends(value: float, draws: Float[np.ndarray, " S"], n: int) -> Estimate:
  """An estimate out of its draws; those that are not finite are left out."""
  draws = draws[np.isfinite(draws)]
  low, high = np.quantile(draws, LEVEL) if len(draws) else (np.nan, np.nan)
  return Estimate(value, float(low), float(high), n)


def share(parts: Num[np.ndarray, "N 2"], samples: int = SAMPLES, seed: int = 0) -> Estimate:
  """Sum of the first column over the sum of the second, which is `n`; draws where that is 0 are
  left out.
  """
  parts = np.asarray(parts, np.float64)
  total = float(parts[:, 1].sum())
  if not total:
    return NOTHING
  sums = resampled(parts, samples, seed)
  sums = sums[sums[:, 1] > 0]
  low, high = np.quantile(sums[:, 0] / sums[:, 1], LEVEL)
  return Estimate(float(parts[:, 0].sum() / total), float(low), float(high), round(total))


def mean(values: Num[np.ndarray, " N"], samples: int = SAMPLES, seed: int = 0) -> Estimate:
  """The mean of the rows."""
  values = np.asarray(values, np.float64)
  return share(np.stack([values, np.ones_like(values)], axis=1), samples, seed)


def win_rate(
  ours: Num[np.ndarray, " N"], theirs: Num[np.ndarray, " N"], samples: int = SAMPLES, seed: int = 0
) -> Estimate:
  """The share of prompts on which we score higher, ties counted half; row i of both answers the
  same prompt.
  """
  difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
  return mean((np.sign(difference) + 1) / 2, samples, seed)
