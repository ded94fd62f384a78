"""Linear scales from data to units of the page, with round ticks and their labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

Real = int | float

ROUND_STEPS = (1, 2, 5, 10)  # times a power of ten


class Axis(NamedTuple):
  """A linear scale: data from `low` to `high` lie between `start` and `end` on the page."""

  low: float
  high: float
  start: Real
  end: Real
  ticks: tuple[float, ...]

  def __call__(self, value: Real) -> float:
    share = (value - self.low) / (self.high - self.low)
    return self.start + share * (self.end - self.start)


def axis(
  values: Sequence[Real],
  start: Real,
  end: Real,
  *,
  count: int = 5,
  fit: bool = False,
  whole: bool = False,
) -> Axis:
  """Returns a scale over all values with about `count` round ticks.

  With `fit` it ends at the smallest and the largest value, else at the ticks around them. With
  `whole` the ticks are whole numbers.
  """
  low = float(min(values))
  high = float(max(values))
  # Values that are all the same, but for rounding, still need a scale with some width.
  if high - low <= 1e-9 * max(abs(low), abs(high), 1e-3):
    margin = abs(low) / 2 or 1.0
    low -= margin
    high += margin
  step = _round_step((high - low) / count)
  if whole:
    step = max(step, 1.0)

  # Ticks are multiples of the step. The tolerance keeps a value that lies on a tick, but for
  # rounding, from losing it or from getting one more.
  if fit:
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
  else:
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
  # All decimals of a step are kept, however small it is: ticks differ from each other.
  decimals = max(12, 1 - math.floor(math.log10(step)))
  ticks = tuple(round(i * step, decimals) for i in range(first, last + 1))
  if not fit:
    low = ticks[0]
    high = ticks[-1]
  return Axis(low, high, start, end, ticks)


def _round_step(rough: float) -> float:
  """Returns the next round number from `rough` on: 1, 2 or 5 times a power of ten."""
  power = 10.0 ** math.floor(math.log10(rough))
  factor = next(factor for factor in ROUND_STEPS if factor * power >= rough * 0.999)
  return power * factor


def tick_labels(ticks: Sequence[Real], percent: bool) -> list[str]:
  """Returns the labels of ticks, all with the decimals that the step between them needs."""
  scale = 100 if percent else 1
  values = [scale * tick for tick in ticks]
  steps = [after - before for before, after in itertools.pairwise(values)]
  step = min(steps, default=1.0)
  largest = max(map(abs, values), default=0.0)
  if largest >= 1e5 or step < 1e-4:  # such numbers would be too long with all their digits
    # As many as tell two neighbours apart.
    digits = math.floor(math.log10(largest)) - math.floor(math.log10(step) + 1e-9) + 1
    return [f"{value:.{max(3, digits)}g}".replace("e+0", "e") for value in values]
  # A step of 0.2 needs one decimal, one of 20 none.
  power = math.floor(math.log10(step) + 1e-9)
  decimals = max(0, -power)
  unit = "\u00a0%" if percent else ""
  return [f"{value:,.{decimals}f}".replace("-", "−") + unit for value in values]
