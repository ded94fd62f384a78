"""Figures as inline SVG without a plotting library: curves, forest plots and bars.

A figure is a string of HTML. It is 360 units wide, so that its text has its full size on a phone
too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from instructjax.runs.report import page
from instructjax.runs.report.scales import Axis, Real, axis, tick_labels
from instructjax.runs.report.svg import horizontal, mark, polyline, rule, short, text, vertical

# In units of the page.
WIDTH = 360
HEIGHT = 230
RIGHT = 18  # margins around the area of data
TOP = 22
BOTTOM = 36
LETTER = 6.5  # about the width of a letter of a tick
LABELS = 142  # the width of the labels before the rows of a forest plot or of bars
MARK = 15  # the height of a mark in a row of a forest plot
BAR = 22  # the height of a bar with the space below it

POINTS = 240  # a longer curve is drawn by the means of so many buckets
SEPARATE = 30  # a curve with more points is drawn without marks, which would run together

Values = Sequence[Real]
Mark = tuple[str, Real, Real, Real]  # look, value, low end and high end of its interval
Legend = Sequence[tuple[str, str]]  # (look, label)
Percent = tuple[bool, bool]  # whether the x and the y axis are in percent


class Series(NamedTuple):
  """A curve, or a cloud of points where `line` is false.

  `look` names its colour and shape; `low` and `high` are the ends of error bars.
  """

  label: str
  look: str
  x: Values
  y: Values
  line: bool = True
  faint: bool = False
  low: Values = ()
  high: Values = ()


class Row(NamedTuple):
  """A row of a forest plot: one or several (look, value, low, high)."""

  label: str
  marks: Sequence[Mark]


# --- long curves ---


def thinned(series: Series, count: int = POINTS) -> Series:
  """Returns the series with the means of `count` buckets in the place of more points than that.

  A series with error bars stays whole, because a mean of intervals would be none.
  """
  if len(series.x) <= count or series.low:
    return series
  return series._replace(
    x=_bucket_means(series.x, count),
    y=_bucket_means(series.y, count),
  )


def _bucket_means(values: Values, count: int) -> list[float]:
  buckets = np.array_split(np.asarray(values, np.float64), count)
  return [float(bucket.mean()) for bucket in buckets]


def smooth(y: Values, share: float = 0.08) -> list[float]:
  """Returns a running mean over about `share` of the points.

  At both ends the window is cut, so that the curve keeps its length.
  """
  half = max(1, round(len(y) * share / 2))  # points on each side
  # The sum over a window is the difference of two running sums.
  running = np.cumsum(np.asarray(y, np.float64))
  sums = np.concatenate([[0.0], running])
  means = []
  for i in range(len(y)):
    begin = max(0, i - half)
    end = min(len(y), i + half + 1)
    total = sums[end] - sums[begin]
    means.append(float(total / (end - begin)))
  return means


# --- parts of figures ---


def figure(
  title: str,
  body: str,
  legend: Legend = (),
  note: str = "",
  height: Real = HEIGHT,
  advice: str = "",
) -> str:
  """Returns the drawing `body` in its frame: title, legend, drawing, note, advice."""
  parts = [f"<figure><figcaption>{escape(title)}</figcaption>"]
  if legend:
    entries = "".join(_legend_entry(look, label) for look, label in legend)
    parts.append(f'<div class="legend">{entries}</div>')
  view = f'viewBox="0 0 {WIDTH} {height:.0f}"'
  parts.append(f'<svg {view} role="img" aria-label="{escape(title)}">{body}</svg>')
  if note:
    parts.append(f'<p class="note">{escape(note)}</p>')
  if advice:
    parts.append(f'<p class="advice">{page.with_code(advice)}</p>')
  parts.append("</figure>")
  return "".join(parts)


def _legend_entry(look: str, label: str) -> str:
  line = horizontal(0, 22, 5, f"curve {look}")
  drawing = line + mark(11, 5, look)
  key = f'<svg class="key" viewBox="0 0 22 10" aria-hidden="true">{drawing}</svg>'
  return f"<span>{key}{escape(label)}</span>"


def left_margin(y: Axis, percent: bool) -> float:
  """Returns the room that the tick labels of a vertical axis need."""
  longest = max(len(label) for label in tick_labels(y.ticks, percent))
  return 12 + LETTER * longest


def frame(
  x: Axis,
  y: Axis,
  x_label: str,
  y_label: str,
  percent: Percent,
) -> str:
  """Returns grid lines, ticks and the labels of both axes."""
  percent_x, percent_y = percent
  bottom = y.start
  right = x.end
  body = ""
  for tick in y.ticks:
    body += horizontal(x.start, right, y(tick), "gridline")
  y_labels = tick_labels(y.ticks, percent_y)
  for tick, label in zip(y.ticks, y_labels, strict=True):
    # A text stands on its baseline, so it is moved down by half the height of a digit.
    body += text(x.start - 6, y(tick) + 3.5, label, "tick", "end")
  for tick in x.ticks:
    body += vertical(x(tick), bottom, bottom + 4, "axis")
  body += _x_tick_labels(x, bottom, percent_x)
  body += horizontal(x.start, right, bottom, "axis")
  body += text(right, bottom + 30, x_label, "label", "end")
  body += text(0, 11, y_label, "label", "start")
  return body


def _x_tick_labels(x: Axis, bottom: Real, percent: bool) -> str:
  labels = tick_labels(x.ticks, percent)
  body = ""
  for tick, label in zip(x.ticks, labels, strict=True):
    body += text(x(tick), bottom + 15, label, "tick")
  return body


def _draw_series(series: Series, x: Axis, y: Axis) -> str:
  """Returns error bars, line and marks of a series; marks are left out where they run together."""
  points = list(zip(series.x, series.y, strict=True))
  is_short = len(points) <= SEPARATE
  body = ""
  if series.low:
    for value, low, high in zip(series.x, series.low, series.high, strict=True):
      body += vertical(x(value), y(low), y(high), f"bar {series.look}")
  if series.line:
    kind = "curve faint" if series.faint else "curve"
    corners = [(x(a), y(b)) for a, b in points]
    body += polyline(corners, f"{kind} {series.look}")
  if not series.faint and (is_short or not series.line):
    size = 3.4 if is_short else 2
    for a, b in points:
      tip = f"{series.label}: {a:.4g}, {b:.4g}"
      body += mark(x(a), y(b), series.look, tip, size)
  return body


# --- figures ---


def plot(
  title: str,
  series: Sequence[Series],
  x_label: str,
  y_label: str,
  *,
  percent: Percent = (False, False),
  also: tuple[Values, Values] = ((), ()),
  level: tuple[Real, str] | None = None,
  diagonal: bool = False,
  note: str = "",
  advice: str = "",
) -> str:
  """Returns curves or points over two linear axes.

  The axes hold the x and y values of `also` too, so that several figures can share their scale.
  `level` is a named reference line across the figure; `diagonal` draws the line on which x is y.
  """
  series = [thinned(curve) for curve in series]
  xs = [*also[0]]
  ys = [*also[1]]
  for curve in series:
    xs.extend(curve.x)
    ys.extend([*curve.y, *curve.low, *curve.high])
  if level:
    ys.append(level[0])
  y = axis(ys, HEIGHT - BOTTOM, TOP, count=4)
  are_steps = all(float(value).is_integer() for value in xs)
  left = left_margin(y, percent[1])
  x = axis(xs, left, WIDTH - RIGHT, fit=True, whole=are_steps)

  body = frame(x, y, x_label, y_label, percent)
  if diagonal:
    low = max(x.low, y.low)
    high = min(x.high, y.high)
    body += rule(x(low), y(low), x(high), y(high), "reference")
  if level:
    value, name = level
    body += horizontal(x.start, x.end, y(value), "reference")
    body += text(x.end, y(value) - 4, name, "label", "end")
  for curve in series:
    body += _draw_series(curve, x, y)

  # A faint curve is the noisy twin of its running mean and needs no entry of its own.
  legend = [(curve.look, curve.label) for curve in series if not curve.faint]
  if len(legend) == 1:  # the title says what a single curve is
    legend = []
  return figure(title, body, legend, note, advice=advice)


def forest(
  title: str,
  rows: Sequence[Row],
  x_label: str,
  *,
  reference: Real,
  lines: Values = (),
  legend: Legend = (),
  note: str = "",
  percent: bool = True,
  decimals: int = 2,
) -> str:
  """Returns a forest plot: values with their intervals, one row below the other.

  Values are shares, or numbers with so many decimals where `percent` is false. The dashed line
  `reference` and the thin `lines` run through all rows.
  """
  left = LABELS
  right = WIDTH - 46
  top = 8
  finite = []
  for row in rows:
    for _, *numbers in row.marks:
      finite.extend(number for number in numbers if math.isfinite(number))
  x = axis([*finite, *lines, reference], left, right, count=3)
  heights = [max(24, MARK * len(row.marks) + 8) for row in rows]
  bottom = top + sum(heights)

  body = ""
  for tick in x.ticks:
    body += vertical(x(tick), top, bottom, "gridline")
  for value in lines:
    body += vertical(x(value), top, bottom, "thread")
  body += vertical(x(reference), top, bottom, "reference")
  row_top: Real = top
  for row, height in zip(rows, heights, strict=True):
    middle = row_top + height / 2
    body += _draw_row(row, x, middle, percent, decimals)
    row_top += height
  body += _x_tick_labels(x, bottom, percent)
  body += horizontal(left, right, bottom, "axis")
  body += text(right, bottom + 30, x_label, "label", "end")
  return figure(title, body, legend, note, bottom + 36)


def _draw_row(
  row: Row,
  x: Axis,
  middle: Real,
  percent: bool,
  decimals: int,
) -> str:
  """Returns the label of a row, and for each mark its interval, its point and its number."""
  unit = " %" if percent else ""
  body = text(LABELS - 10, middle + 3.5, short(row.label), "row", "end")
  # Several marks stand below each other, around the middle of the row.
  y = middle - MARK * (len(row.marks) - 1) / 2
  for look, value, low, high in row.marks:
    if percent:
      number = f"{100 * value:.1f}"
    else:
      number = f"{value:.{decimals}f}".replace("-", "−")
    if math.isfinite(low + high):
      body += horizontal(x(low), x(high), y, f"bar {look}")
    body += mark(x(value), y, look, f"{row.label}: {number}{unit}", 4)
    body += text(WIDTH - 2, y + 3.5, number, "value", "end")
    y += MARK
  return body


def bars(
  title: str,
  rows: Sequence[tuple[str, Real]],
  unit: str,
  note: str = "",
) -> str:
  """Returns bars from 0 on, one for each (label, value), with their numbers."""
  room = WIDTH - 60 - LABELS
  longest = max((value for _, value in rows), default=0) or 1
  body = ""
  y = 12
  for label, value in rows:
    width = max(room * value / longest, 0.5)  # a small value is still seen
    box = f'x="{LABELS}" y="{y - 6}" width="{width:.1f}" height="12"'
    number = f"{value:,.1f} {unit}"
    body += text(LABELS - 10, y + 4, short(label), "row", "end")
    body += f'<rect {box} class="fill"/>'
    body += text(LABELS + width + 6, y + 4, number, "value", "start")
    y += BAR
  return figure(title, body, (), note, BAR * len(rows) + 4)
