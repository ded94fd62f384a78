"""Means, shares, differences and win rates with 95 % intervals, and the bootstrap for the rest.

A row is what was sampled at random: a prompt or a passage, with everything that was measured on it.
Rows are the clusters of an interval. The pairs or the questions of a row depend on each other, so
that they are summed first. An interval is about other rows, not about other training runs.

  shares       Wilson's score interval (1927), of as many independent items as the rows are worth.
               It has a width where all items are the same: 0 of 24 is 0 to 13.8 %.
  means        Student's t over rows
  differences  paired by row: the score interval of outcomes that are 0, ½ or 1, and t for others
  others       metrics of a whole corpus, ratios of means: t with the jackknife's standard error
               under 30 rows, the percentile bootstrap over rows from there on (`of_sums`)

The number of independent items is n over the design effect: the variance of the share between rows
over the one that independent items had. Few rows tell little about it. It is therefore drawn
towards that of an intraclass correlation of 0.1, and t takes the place of the normal distribution,
as in Korn and Graubard (1998, "Confidence intervals for proportions with small expected number of
positive counts estimated from survey data"). A test holds the coverage to 93 % at least.

Dimensions: N rows, M of them that hold something, S bootstrap draws of N rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from scipy import special

SAMPLES = 2000  # bootstrap draws
TAIL = 0.025  # the mass beyond each end of a 95 % interval
Z = float(special.ndtri(1 - TAIL))  # 1.96 standard deviations of a normal distribution
CHUNK = 2_000_000  # row numbers that are held at once: 16 MB
# The intraclass correlation that is assumed as far as the rows do not tell it.
CORRELATION = 0.1
# Fewer rows than this have t in place of the bootstrap.
FEW = 30
# Counts up to this one have a longer tail than Wilson's interval allows for.
RARE = 3.0


class Estimate(NamedTuple):
  """A value with its 95 % interval, the number of items or pairs, and that of the rows they are in.

  Everything is NaN where there are none. `clusters` is 0 where their number was not recorded.
  """

  value: float
  low: float
  high: float
  n: int
  clusters: int = 0


def counted(estimate: Estimate) -> str:
  """Returns the number of items and, where it is another one, of the clusters that they are in."""
  if estimate.clusters in (0, estimate.n):
    return f"{estimate.n:,}"
  return f"{estimate.n:,} in {estimate.clusters:,}"


NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0)


# --- shares and means ---


def share(
  parts: Num[np.ndarray, "N 2"],
  *,
  paired: bool = False,
  more: float = 0.0,
) -> Estimate:
  """Returns the sum of the first column over the sum of the second, which is `n`.

  The interval is the score interval where each part lies between 0 and its whole, and otherwise
  that of Student's t.

  Args:
    parts: for each row, a part and its whole.
    paired: the outcomes compare two answers. t then takes the place of the normal distribution, so
      that two equal models are called different in 5 % of all cases or fewer.
    more: a variance to add to that between rows, where more than the rows was sampled at random
      (labelers); 1.96 of its standard deviations hold 95 %.
  """
  parts = _occupied(np.asarray(parts, np.float64))
  rows = len(parts)
  whole = float(parts[:, 1].sum())
  if not whole:
    return NOTHING
  value = float(parts[:, 0].sum()) / whole
  if not math.isfinite(value):
    low, high = math.nan, math.nan
  elif ((parts[:, 0] >= 0) & (parts[:, 0] <= parts[:, 1])).all():
    low, high = _score_ends(parts, paired=paired, more=more)
  else:
    low, high = _student_ends(value, parts, more)
  return Estimate(value, low, high, round(whole), rows)


def mean(values: Num[np.ndarray, " N"]) -> Estimate:
  """Returns the mean of the rows."""
  return share(_parts(values))


def win_rate(ours: Num[np.ndarray, " N"], theirs: Num[np.ndarray, " N"]) -> Estimate:
  """Returns the share of prompts on which `ours` scores higher; a tie counts half.

  Row i of both answers the same prompt.
  """
  difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
  # -1, 0 or 1 becomes 0, ½ or 1.
  wins = (np.sign(difference) + 1) / 2
  return share(_parts(wins), paired=True)


def _parts(values: Num[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
  """Returns rows that count 1 each: a mean is a share of such parts."""
  values = np.asarray(values, np.float64)
  return np.stack([values, np.ones_like(values)], axis=1)


def _occupied(parts: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "M 2"]:
  """Returns the rows that hold something."""
  return parts[(parts != 0).any(axis=1)] if len(parts) else parts


def _clusters_of_equal_size(weights: Float[np.ndarray, " N"]) -> float:
  """Returns how many rows of the same size tell as much as these (Kish 1965)."""
  return float(weights.sum() ** 2 / (weights**2).sum())


def variance_of_share(parts: Float[np.ndarray, "N 2"]) -> float:
  """Returns the variance of a ratio of sums between rows, by its first derivative."""
  rows = len(parts)
  whole = parts[:, 1].sum()
  value = parts[:, 0].sum() / whole
  residuals = parts[:, 0] - value * parts[:, 1]
  return float(rows / (rows - 1) * (residuals**2).sum() / whole**2)


def _is_count(parts: Float[np.ndarray, "N 2"]) -> bool:
  """Returns whether the parts are sums of outcomes that are 0, ½ or 1."""
  doubled = 2 * parts[:, 0]
  return bool((doubled == np.round(doubled)).all())


def _score_ends(
  parts: Float[np.ndarray, "N 2"],
  *,
  paired: bool,
  more: float = 0.0,
) -> tuple[float, float]:
  """Returns the ends of the score interval of a share, with the design effect of its rows.

  With `paired` t takes the place of the normal distribution for single items too.
  """
  rows = len(parts)
  whole = float(parts[:, 1].sum())
  value = float(parts[:, 0].sum()) / whole
  if rows == 1:
    # A single row of many items says nothing about other rows.
    return wilson(value, 1.0) if whole <= 1 else (0.0, 1.0)
  weights = parts[:, 1]
  equal_rows = _clusters_of_equal_size(weights)
  items_a_row = float((weights**2).sum()) / whole
  assumed = 1 + (items_a_row - 1) * CORRELATION
  known_df = math.inf
  independent = whole
  if _is_count(parts):
    weight = Z**2
    # One less, as in the variance between rows: single items that are 0 or 1 have an effect of 1.
    independent = max(whole - 1, whole / 2)
    if not paired:
      known_df = max(whole - 1, 1.0)
  else:
    # Measures between 0 and 1 have a variance of their own, which the rows tell, unless most of
    # them are 0 or 1.
    at_an_end = (parts[:, 0] == 0) | (parts[:, 0] == parts[:, 1])
    weight = Z**2 * float(at_an_end.mean())
  binomial = value * (1 - value) / independent
  effect = variance_of_share(parts) / binomial if binomial > 0 else 0.0
  # The more rows and the more outcomes of the rarer kind, the more they tell about the effect.
  rarer = min(float(parts[:, 0].sum()), whole - float(parts[:, 0].sum()))
  evidence = min(rows, 2 * rarer)
  effect = (evidence * effect + weight * assumed) / (evidence + weight)
  if not effect and not more:
    return value, value
  scale = t_quantile(known_df) / t_quantile(max(equal_rows - 1, 1.0))
  variance = effect / (whole * min(scale, 1.0) ** 2)
  if more:
    variance += more / (value * (1 - value))
  return wilson(value, 1 / variance)


def _student_ends(
  value: float,
  parts: Float[np.ndarray, "N 2"],
  more: float = 0.0,
) -> tuple[float, float]:
  """Returns the ends of the interval of Student's t; NaN for a single row."""
  if len(parts) == 1:
    return math.nan, math.nan
  equal_rows = _clusters_of_equal_size(parts[:, 1])
  quantile = t_quantile(max(equal_rows - 1, 1.0))
  half = math.sqrt(quantile**2 * variance_of_share(parts) + Z**2 * more)
  return value - half, value + half


def wilson(share: float, n: float) -> tuple[float, float]:
  """Returns the ends of Wilson's score interval of a share of n items, which may be a fraction.

    (p + z²/2n ± z √(p (1 - p)/n + z²/4n²)) / (1 + z²/n)    (Wilson 1927)

  Unlike p ± z √(p (1 - p)/n) it stays within 0 and 1, and has a width where p is 0 or 1. Where a
  count is at most 3, its end at that side is that of a Poisson count, which is farther out (Brown,
  Cai and DasGupta 2001, "Interval estimation for a binomial proportion", section 4.1.1).
  """
  z2 = Z * Z
  middle = share + z2 / (2 * n)
  variance = share * (1 - share) / n + z2 / (4 * n * n)
  half = Z * math.sqrt(variance)
  scale = 1 + z2 / n
  low = max((middle - half) / scale, 0.0)
  high = min((middle + half) / scale, 1.0)
  low = min(low, _rare_end(share * n) / n, share)
  high = max(high, 1 - _rare_end((1 - share) * n) / n, share)
  return low, high


def effective_items(estimate: Estimate) -> float:
  """Returns how many independent items have a score interval as wide as this one."""
  width = estimate.high - estimate.low
  fewest, most = 1e-3, 1e12
  # The width falls with the number of items.
  for _ in range(80):
    middle = math.sqrt(fewest * most)
    low, high = wilson(estimate.value, middle)
    if high - low > width:
      fewest = middle
    else:
      most = middle
  return most


def _rare_end(count: float) -> float:
  """Returns the lower end of a Poisson count from 0 to 3; larger counts are not limited."""
  if count <= 0:
    return 0.0
  if count > RARE:
    return math.inf
  # The other side of the interval holds nothing here, so that this one has both tails.
  return float(special.gammaincinv(count, 2 * TAIL))


def t_quantile(df: float) -> float:
  """Returns the 97.5 % quantile of Student's t; 1.96 for infinitely many degrees of freedom."""
  if math.isinf(df):
    return Z
  return float(special.stdtrit(max(df, 1.0), 1 - TAIL))


# --- differences ---


def difference(ours: Num[np.ndarray, "N 2"], theirs: Num[np.ndarray, "N 2"]) -> Estimate:
  """Returns our share less theirs, paired: row i of both is of the same items.

  Both have the same wholes (second column), whose sum is `n`.
  """
  ours = np.asarray(ours, np.float64)
  theirs = np.asarray(theirs, np.float64)
  wholes = ours[:, 1]
  gains = np.stack([ours[:, 0] - theirs[:, 0], wholes], axis=1)[wholes > 0]
  if not len(gains):
    return NOTHING
  whole = float(gains[:, 1].sum())
  value = float(gains[:, 0].sum()) / whole
  # A gain of -1, 0 or 1 an item becomes 0, ½ or 1.
  outcomes = np.stack([(gains[:, 0] + gains[:, 1]) / 2, gains[:, 1]], axis=1)
  if not math.isfinite(value):
    low, high = math.nan, math.nan
  elif _are_outcomes(ours) and _are_outcomes(theirs):
    low, high = _score_ends(outcomes, paired=True)
    low, high = 2 * low - 1, 2 * high - 1
  else:
    low, high = _student_ends(value, gains)
  return Estimate(value, low, high, round(whole), len(gains))


def _are_outcomes(parts: Float[np.ndarray, "N 2"]) -> bool:
  """Returns whether every item was 0, ½ or 1, as far as sums of rows can tell."""
  inside = (parts[:, 0] >= 0) & (parts[:, 0] <= parts[:, 1])
  return bool(inside.all()) and _is_count(parts)


def mean_difference(ours: Num[np.ndarray, " N"], theirs: Num[np.ndarray, " N"]) -> Estimate:
  """Returns the mean of ours less that of theirs, paired by row."""
  return difference(_parts(ours), _parts(theirs))


def unpaired(ours: Estimate, theirs: Estimate) -> Estimate:
  """Returns our share less theirs where both are of different rows.

    d - √((p - l)² + (u' - p')²)  to  d + √((u - p)² + (p' - l')²)

  Source: Newcombe 1998, "Interval estimation for the difference between independent proportions",
  method 10: l and u are the ends of our interval, those with a stroke of theirs.
  """
  value = ours.value - theirs.value
  below = math.hypot(ours.value - ours.low, theirs.high - theirs.value)
  above = math.hypot(ours.high - ours.value, theirs.value - theirs.low)
  return Estimate(
    value,
    value - below,
    value + above,
    ours.n + theirs.n,
    ours.clusters + theirs.clusters,
  )


def over_runs(estimates: Sequence[Estimate]) -> Estimate:
  """Returns the mean of what several runs measured, with an interval over runs and rows.

  The runs differ in their seed, and so in their models and in the rows that they were measured on.
  Student's t over their values holds both. Few runs may agree by chance, so the interval is never
  narrower than that of the rows of all runs.

  Raises:
    ValueError: for fewer than two runs, which do not tell how they differ.
  """
  if len(estimates) < 2:
    raise ValueError(f"{len(estimates)} runs do not tell how runs differ: give two or more")
  values = np.asarray([estimate.value for estimate in estimates])
  value = float(values.mean())
  spread = float(values.std(ddof=1)) * t_quantile(len(values) - 1)
  below = [estimate.value - estimate.low for estimate in estimates]
  above = [estimate.high - estimate.value for estimate in estimates]
  root = math.sqrt(len(values))
  return Estimate(
    value,
    value - max(spread, float(np.mean(below))) / root,
    value + max(spread, float(np.mean(above))) / root,
    sum(estimate.n for estimate in estimates),
    len(values),
  )


# --- the bootstrap, for ratios and metrics of a whole corpus ---


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
  clusters: int,
) -> Estimate:
  """Returns an estimate with the interval of its bootstrap draws of `clusters` rows.

  The percentiles of few rows lie too close together, because a draw varies by √((N - 1)/N) of what
  it should and is taken as normal. They are moved to where t of N - 1 degrees of freedom lies:

      Φ(-√(N/(N - 1)) t)        (Hesterberg 2015, "What teachers should know about the bootstrap")

  Draws that are not finite are left out: they had nothing to divide by. One row has no interval.
  """
  draws = draws[np.isfinite(draws)]
  if not len(draws) or clusters < 2:
    return Estimate(value, np.nan, np.nan, n, clusters)
  distance = math.sqrt(clusters / (clusters - 1)) * t_quantile(clusters - 1)
  tail = float(special.ndtr(-distance))
  low, high = np.quantile(draws, (tail, 1 - tail))
  return Estimate(value, float(low), float(high), n, clusters)


def of_sums(
  rows: Float[np.ndarray, "N C"],
  statistic: Callable[[np.ndarray], np.ndarray],
  n: int,
  seed: int = 0,
) -> Estimate:
  """Returns a statistic of the column sums, such as BLEU of a corpus; [..., C] -> [...].

  Under 30 rows the interval is that of t with the jackknife's standard error, because draws of few
  rows vary too little; from there on it is the bootstrap's.
  """
  clusters = len(rows)
  totals = rows.sum(axis=0)
  value = float(statistic(totals))
  if 1 < clusters < FEW:
    # The statistic without each of the rows.
    without = np.asarray(statistic(totals - rows), np.float64)
    squares = ((without - without.mean()) ** 2).sum()
    error = math.sqrt((clusters - 1) / clusters * squares)
    df = _clusters_of_equal_size(np.abs(rows).sum(axis=1)) - 1
    half = t_quantile(max(df, 1.0)) * error
    if math.isfinite(half):
      return Estimate(value, value - half, value + half, n, clusters)
  draws = np.asarray(statistic(resampled(rows, SAMPLES, seed)))
  return with_ends(value, draws, n, clusters)


# --- many intervals ---


def many(count: int) -> str:
  """Returns what a reader of `count` intervals should keep in mind; "" for fewer than 20."""
  if count < 20:
    return ""
  misses = round(2 * TAIL * count)
  return (
    f"These are {count:,} intervals of 95 % each: about {misses:,} of them will miss their true "
    "value by chance alone."
  )
