"""A figure over model sizes, as the paper's Figure 1: a line for each method, a point with its
interval for each model.

Sizes stand on a logarithmic axis.  Dashed lines with hollow points are somebody else's numbers,
drawn for comparison where their sizes leave ours room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from instructjax.intervals import Estimate
from instructjax.runs.report.figures import (
  BOTTOM,
  HEIGHT,
  RIGHT,
  TOP,
  WIDTH,
  Axis,
  Real,
  axis,
  figure,
  frame,
  mark,
  rule,
  spelled,
  text,
)

APART = 32  # units between ticks of sizes
INSET = 14  # units between the first and the last size and the ends of the axis
FAR = 4  # times as wide as ours alone, in logarithms, the axis may be for the sake of theirs
ASIDE = 3  # units by which the points of two lines at one size stand apart


class Line(NamedTuple):
  """The models of one method: (parameters, estimate) of each, by size; `theirs` are (parameters,
  value) to compare with.
  """

  label: str
  look: str
  points: Sequence[tuple[Real, Estimate]]
  theirs: Sequence[tuple[Real, Real]] = ()


def sized(parameters: Real) -> str:
  """A number of parameters in few letters: 134,515,008 is 135M, 1.3e9 is 1.3B."""
  for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
    if parameters >= 0.9995 * unit:
      return (
        f"{parameters / unit:.{0 if parameters >= 9.95 * unit else 1}f}".removesuffix(".0") + name
      )
  return f"{parameters:.0f}"


def curves(
  title: str,
  lines: Sequence[Line],
  y_label: str,
  *,
  level: Real | None = None,
  whose: str = "the paper's",
  note: str = "",
  percent: bool = True,
  decimals: int = 2,
) -> str:
  """The figure; `level` is a reference line across it.  Points that are not finite are left out."""
  lines = _near(lines)
  y = _heights(lines, level, percent)
  left, right = 12 + 6.5 * max(len(label) for label in spelled(y.ticks, percent)), WIDTH - RIGHT
  own = [math.log10(size) for line in lines for size, _ in line.points]
  beside = [math.log10(size) for line in lines for size, _ in line.theirs]
  x = _sizes(own, beside, left + INSET, right - INSET)
  body = frame(
    x._replace(start=left, end=right, ticks=()), y, "parameters", y_label, (False, percent)
  )
  for tick in x.ticks:
    body += rule(x(tick), y.start, x(tick), y.start + 4, "axis") + text(
      x(tick), y.start + 15, sized(10**tick), "tick"
    )
  body += "" if level is None else rule(left, y(level), right, y(level), "reference")
  middle = (len(lines) - 1) / 2
  said = lambda value: f"{100 * value:.1f} %" if percent else f"{value:.{decimals}f}"
  body += "".join(_theirs(line, x, y, whose, said) for line in lines)
  body += "".join(_ours(line, x, y, ASIDE * (at - middle), said) for at, line in enumerate(lines))
  legend = [(line.look, line.label) for line in lines] + ([("dashed", whose)] if beside else [])
  return figure(title, body, legend, note)


def _near(lines: Sequence[Line]) -> Sequence[Line]:
  """The lines, without theirs where those are so much larger or smaller that ours would run
  together.
  """
  ours = [math.log10(size) for line in lines for size, _ in line.points]
  all_of_them = ours + [math.log10(size) for line in lines for size, _ in line.theirs]
  wide, whole = max(ours) - min(ours), max(all_of_them) - min(all_of_them)
  return lines if whole <= FAR * wide or not wide else [line._replace(theirs=()) for line in lines]


def _heights(lines: Sequence[Line], level: Real | None, percent: bool) -> Axis:
  values = [float(v) for line in lines for _, e in line.points for v in e[:3]] + [
    v for line in lines for _, v in line.theirs
  ]
  values += [] if level is None else [level]
  return axis([v for v in values if math.isfinite(v)] or [0.0, 1.0], HEIGHT - BOTTOM, TOP, count=4)


def _sizes(own: Sequence[float], beside: Sequence[float], start: Real, end: Real) -> Axis:
  """Logarithms of sizes; ticks are the sizes themselves, ours before theirs, as many as there is
  room for.
  """
  low, high = min([*own, *beside]), max([*own, *beside])
  low, high = (low - 0.5, high + 0.5) if high - low < 1e-6 else (low, high)
  x, ticks = Axis(low, high, start, end, ()), []
  for value in [*sorted(own), *sorted(beside)]:
    if all(abs(x(value) - x(other)) >= APART for other in ticks):
      ticks.append(value)
  return x._replace(ticks=tuple(sorted(ticks)))


def _ours(line: Line, x: Axis, y: Axis, aside: float, said) -> str:
  points = [
    (x(math.log10(size)) + aside, size, e)
    for size, e in sorted(line.points)
    if math.isfinite(e.value)
  ]
  corners = " ".join(f"{at:.1f},{y(e.value):.1f}" for at, _, e in points)
  parts = [f'<polyline points="{corners}" class="curve {line.look}"/>']
  parts += [
    rule(at, y(e.low), at, y(e.high), "bar " + line.look)
    for at, _, e in points
    if math.isfinite(e.low + e.high)
  ]
  parts += [
    mark(at, y(e.value), line.look, f"{line.label}, {sized(size)}: {said(e.value)}")
    for at, size, e in points
  ]
  return "".join(parts)


def _theirs(line: Line, x: Axis, y: Axis, whose: str, said) -> str:
  points = [(x(math.log10(size)), size, value) for size, value in sorted(line.theirs)]
  corners = " ".join(f"{at:.1f},{y(value):.1f}" for at, _, value in points)
  parts = [f'<polyline points="{corners}" class="curve dashed {line.look}"/>'] if points else []
  tip = lambda size, value: f"{whose} {line.label}, {sized(size)}: {said(value)}"
  parts += [
    mark(at, y(value), line.look, tip(size, value), 2.6, "hollow") for at, size, value in points
  ]
  return "".join(parts)
