"""Means, shares and win rates with 95 % intervals: the percentile bootstrap over rows, seeded.

A row is what was sampled at random: a prompt, with everything that was measured on it. Rows are
resampled, not pairs or tokens, because the pairs of a prompt depend on each other. The interval is
about other prompts, not about other training runs. Where all rows are the same (all wins, say) it
has no width and is too narrow: heed `n`.

Dimensions: N rows, S bootstrap draws of N rows, C columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

SAMPLES = 2000  # bootstrap draws
LEVEL = (0.025, 0.975)  # the quantiles at the ends of a 95 % interval
CHUNK = 2_000_000  # row numbers that are held at once: 16 MB


class Estimate(NamedTuple):
  """A value with its 95 % interval and the number of rows or pairs that it rests on.

  Everything is NaN where there are none.
  """

  value: float
  low: float
  high: float
  n: int


NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)


def resampled(
  rows: Float[np.ndarray, "N C"],
  samples: int,
  seed: int,
) -> Float[np.ndarray, "S C"]:
  """Returns the column sums of `samples` draws of N rows with replacement."""
  rng = np.random.default_rng(seed)
  n = len(rows)
  draws_at_once = max(1, CHUNK // n)
  sums = []
  for done in range(0, samples, draws_at_once):
    draws = min(draws_at_once, samples - done)
    indices = rng.integers(n, size=(draws, n))
    sums.append(rows[indices].sum(axis=1))
  return np.concatenate(sums)


def draw_counts(
  rows: int,
  samples: int,
  seed: int,
) -> Float[np.ndarray, "S N"]:
  """Returns how often each of N rows occurs in each of `samples` draws of N rows.

  A statistic that is linear in the rows needs no more than these counts.
  """
  rng = np.random.default_rng(seed)
  uniform = np.full(rows, 1 / rows)
  counts = rng.multinomial(rows, uniform, size=samples)
  return counts.astype(np.float64)


def with_ends(
  value: float,
  draws: Float[np.ndarray, " S"],
  n: int,
) -> Estimate:
  """Returns an estimate with the interval of its bootstrap draws.

  Draws that are not finite are left out: they had nothing to divide by.
  """
  draws = draws[np.isfinite(draws)]
  if not len(draws):
    return Estimate(value, np.nan, np.nan, n)
  low, high = np.quantile(draws, LEVEL)
  return Estimate(value, float(low), float(high), n)


def share(
  parts: Num[np.ndarray, "N 2"],
  samples: int = SAMPLES,
  seed: int = 0,
) -> Estimate:
  """Returns the sum of the first column over the sum of the second, which is `n`."""
  parts = np.asarray(parts, np.float64)
  numerator = float(parts[:, 0].sum())
  denominator = float(parts[:, 1].sum())
  if not denominator:
    return NOTHING
  sums = resampled(parts, samples, seed)
  # Draws with nothing to divide by are left out.
  sums = sums[sums[:, 1] > 0]
  shares = sums[:, 0] / sums[:, 1]
  low, high = np.quantile(shares, LEVEL)
  return Estimate(
    value=numerator / denominator,
    low=float(low),
    high=float(high),
    n=round(denominator),
  )


def mean(
  values: Num[np.ndarray, " N"],
  samples: int = SAMPLES,
  seed: int = 0,
) -> Estimate:
  """Returns the mean of the rows."""
  values = np.asarray(values, np.float64)
  # A mean is a share in which every row counts 1.
  parts = np.stack([values, np.ones_like(values)], axis=1)
  return share(parts, samples, seed)


def win_rate(
  ours: Num[np.ndarray, " N"],
  theirs: Num[np.ndarray, " N"],
  samples: int = SAMPLES,
  seed: int = 0,
) -> Estimate:
  """Returns the share of prompts on which `ours` scores higher; a tie counts half.

  Row i of both answers the same prompt.
  """
  difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
  # -1, 0 or 1 becomes 0, ½ or 1.
  wins = (np.sign(difference) + 1) / 2
  return mean(wins, samples, seed)
