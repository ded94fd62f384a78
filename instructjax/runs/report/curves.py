"""A figure over model sizes, as the paper's Figure 1.

Each method has a line, and on it a point with its interval for each model. Sizes stand on a
logarithmic axis. Dashed lines with hollow points are numbers that somebody else published, for
comparison, where their sizes leave enough room for ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from instructjax.intervals import Estimate
from instructjax.runs.report.figures import (
  BOTTOM,
  HEIGHT,
  RIGHT,
  TOP,
  WIDTH,
  figure,
  frame,
  left_margin,
)
from instructjax.runs.report.scales import Axis, Real, axis
from instructjax.runs.report.svg import horizontal, mark, polyline, text, vertical

# In units of the page.
APART = 32  # between ticks of sizes
INSET = 14  # between the first or last size and the end of the axis
ASIDE = 3  # between the points of two lines at one size

# With the published sizes the axis may be this many times as wide as with ours alone, measured in
# logarithms. Beyond that our points would run together.
FAR = 4

UNITS = {"T": 1e12, "B": 1e9, "M": 1e6, "k": 1e3}

Spell = Callable[[Real], str]


class Line(NamedTuple):
  """The models of one method, by size.

  `points` holds (parameters, estimate) of our models, `published` (parameters, value) of the models
  to compare them with. `look` names the colour and the shape.
  """

  label: str
  look: str
  points: Sequence[tuple[Real, Estimate]]
  published: Sequence[tuple[Real, Real]] = ()


def spell_size(parameters: Real) -> str:
  """Returns a number of parameters in few letters: 134,515,008 is 135M, 1.3e9 is 1.3B."""
  for letter, unit in UNITS.items():
    if parameters < 0.9995 * unit:  # it would not be rounded to 1.00 of this unit
      continue
    decimals = 0 if parameters >= 9.95 * unit else 1
    number = f"{parameters / unit:.{decimals}f}"
    return number.removesuffix(".0") + letter
  return f"{parameters:.0f}"


def curves(
  title: str,
  lines: Sequence[Line],
  y_label: str,
  *,
  level: Real | None = None,
  publisher: str = "the paper's",
  note: str = "",
  percent: bool = True,
  decimals: int = 2,
) -> str:
  """Returns the figure; points that are not finite are left out.

  `level` is a reference line across it, `publisher` the name of the dashed lines in the legend.
  Values are shares, or numbers with so many decimals where `percent` is false.
  """
  lines = _without_far_sizes(lines)
  y = _value_axis(lines, level, percent)
  left = left_margin(y, percent)
  right = WIDTH - RIGHT
  own_sizes, published_sizes = _log_sizes(lines)
  x = _size_axis(own_sizes, published_sizes, left + INSET, right - INSET)

  def spell(value: Real) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.{decimals}f}"

  # The frame spans the whole width, and the ticks are ours, because they are no round numbers.
  empty_x = x._replace(start=left, end=right, ticks=())
  body = frame(empty_x, y, "parameters", y_label, (False, percent))
  for tick in x.ticks:
    body += vertical(x(tick), y.start, y.start + 4, "axis")
    body += text(x(tick), y.start + 15, spell_size(10**tick), "tick")
  if level is not None:
    body += horizontal(left, right, y(level), "reference")
  for line in lines:
    body += _draw_published(line, x, y, publisher, spell)
  # Lines at one size are moved aside, around its place, so that their intervals are all seen.
  middle = (len(lines) - 1) / 2
  for i, line in enumerate(lines):
    shift = ASIDE * (i - middle)
    body += _draw_own(line, x, y, shift, spell)

  legend = [(line.look, line.label) for line in lines]
  if published_sizes:
    legend.append(("dashed", publisher))
  return figure(title, body, legend, note)


def _log_sizes(lines: Sequence[Line]) -> tuple[list[float], list[float]]:
  """Returns the logarithms of all our sizes and of all published ones."""
  own: list[float] = []
  published: list[float] = []
  for line in lines:
    own.extend(math.log10(size) for size, _ in line.points)
    published.extend(math.log10(size) for size, _ in line.published)
  return own, published


def _without_far_sizes(lines: Sequence[Line]) -> Sequence[Line]:
  """Returns the lines, without published numbers whose sizes are too far from ours (FAR)."""
  own, published = _log_sizes(lines)
  together = own + published
  own_width = max(own) - min(own)
  width = max(together) - min(together)
  # A single size of ours has no width and always leaves room.
  if own_width == 0 or width <= FAR * own_width:
    return lines
  return [line._replace(published=()) for line in lines]


def _value_axis(lines: Sequence[Line], level: Real | None, percent: bool) -> Axis:
  """Returns the vertical axis over all values, the ends of their intervals and the level."""
  values: list[Real] = []
  for line in lines:
    for _, estimate in line.points:
      values.extend([estimate.value, estimate.low, estimate.high])
    values.extend(value for _, value in line.published)
  if level is not None:
    values.append(level)
  finite = [value for value in values if math.isfinite(value)]
  return axis(finite or [0.0, 1.0], HEIGHT - BOTTOM, TOP, count=4)


def _size_axis(
  own: Sequence[float],
  published: Sequence[float],
  start: Real,
  end: Real,
) -> Axis:
  """Returns the horizontal axis over the logarithms of sizes.

  Ticks are the sizes themselves, ours before the published ones, as many as there is room for.
  """
  low = min([*own, *published])
  high = max([*own, *published])
  if high - low < 1e-6:  # one size stands in the middle
    low -= 0.5
    high += 0.5
  x = Axis(low, high, start, end, ())
  ticks: list[float] = []
  for size in [*sorted(own), *sorted(published)]:
    distances = [abs(x(size) - x(tick)) for tick in ticks]
    if all(distance >= APART for distance in distances):
      ticks.append(size)
  return x._replace(ticks=tuple(sorted(ticks)))


def _draw_own(
  line: Line,
  x: Axis,
  y: Axis,
  shift: float,
  spell: Spell,
) -> str:
  """Returns the curve of a method, with a bar and a mark for each model."""
  corners = []
  bars = ""
  marks = ""
  for size, estimate in sorted(line.points):
    if not math.isfinite(estimate.value):
      continue
    left = x(math.log10(size)) + shift
    height = y(estimate.value)
    corners.append((left, height))
    if math.isfinite(estimate.low + estimate.high):
      low = y(estimate.low)
      high = y(estimate.high)
      bars += vertical(left, low, high, f"bar {line.look}")
    tip = f"{line.label}, {spell_size(size)}: {spell(estimate.value)}"
    marks += mark(left, height, line.look, tip)
  # Marks come last, so that they lie above the bars.
  return polyline(corners, f"curve {line.look}") + bars + marks


def _draw_published(
  line: Line,
  x: Axis,
  y: Axis,
  publisher: str,
  spell: Spell,
) -> str:
  """Returns the dashed curve of published numbers, with a hollow mark for each."""
  if not line.published:
    return ""
  corners = []
  marks = ""
  for size, value in sorted(line.published):
    left = x(math.log10(size))
    corners.append((left, y(value)))
    tip = f"{publisher} {line.label}, {spell_size(size)}: {spell(value)}"
    marks += mark(left, y(value), line.look, tip, size=2.6, kind="hollow")
  return polyline(corners, f"curve dashed {line.look}") + marks
