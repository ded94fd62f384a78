"""Figures as inline SVG, drawn by hand: 360 units wide, so that text has its full size on a phone
too.

A figure is a string of HTML; its colours are classes of the page.  Every text in it is escaped
here, whatever it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

Real = int | float

WIDTH, HEIGHT = 360, 230
RIGHT, TOP, BOTTOM = 18, 22, 36
POINTS = 240  # a longer curve is drawn by the means of so many buckets
SHAPES = {
  "ppo": "circle",
  "ptx": "square",
  "sft": "triangle",
  "base": "diamond",
  "rm": "wedge",
  "gold": "square",
}


class Series(NamedTuple):
  """A curve or a cloud of points; `look` names its colour and shape, `low` and `high` are ends of
  error bars.
  """

  label: str
  look: str
  x: Sequence[Real]
  y: Sequence[Real]
  line: bool = True
  faint: bool = False
  low: Sequence[Real] = ()
  high: Sequence[Real] = ()


class Row(NamedTuple):
  """A line of a forest plot: one or several (look, value, low, high)."""

  label: str
  marks: Sequence[tuple[str, Real, Real, Real]]


class Axis(NamedTuple):
  """A linear scale from data to units of the page, and its ticks."""

  low: float
  high: float
  start: Real
  end: Real
  ticks: tuple[float, ...]

  def __call__(self, value: Real) -> float:
    return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


# --- scales ---


def axis(
  values: Sequence[Real],
  start: Real,
  end: Real,
  *,
  count: int = 5,
  fit: bool = False,
  whole: bool = False,
) -> Axis:
  """A scale over all values with about `count` round ticks; with `fit` it ends at the values, else
  at ticks.
  """
  low, high = float(min(values)), float(max(values))
  if high - low <= 1e-9 * max(abs(low), abs(high), 1e-3):
    pad = abs(low) / 2 or 1.0
    low, high = low - pad, high + pad
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
  step = max(step, 1.0) if whole else step
  if fit:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  else:
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
  return Axis(low if fit else ticks[0], high if fit else ticks[-1], start, end, ticks)


def spelled(ticks: Sequence[Real], percent: bool) -> list[str]:
  """Tick labels, all with the decimals that the step asks for."""
  shown = [100 * t for t in ticks] if percent else list(ticks)
  step = min((b - a for a, b in itertools.pairwise(shown)), default=1.0)
  if max(map(abs, shown), default=0.0) >= 1e5 or step < 1e-4:
    return [f"{t:.3g}".replace("e+0", "e") for t in shown]
  decimals = max(0, -math.floor(math.log10(step) + 1e-9))
  return [f"{t:,.{decimals}f}".replace("-", "−") + ("\u00a0%" if percent else "") for t in shown]


def thinned(series: Series, count: int = POINTS) -> Series:
  """Bucket means where there are more than `count` points; a series with error bars stays whole."""
  if len(series.x) <= count or series.low:
    return series
  mean = lambda values: [
    float(part.mean()) for part in np.array_split(np.asarray(values, np.float64), count)
  ]
  return series._replace(x=mean(series.x), y=mean(series.y))


def smooth(y: Sequence[Real], share: float = 0.08) -> list[float]:
  """A running mean over about `share` of the points; at both ends over the half of them that there
  is.
  """
  half = max(1, round(len(y) * share / 2))
  sums = np.concatenate([[0.0], np.cumsum(np.asarray(y, np.float64))])
  ends = [(max(0, i - half), min(len(y), i + half + 1)) for i in range(len(y))]
  return [float((sums[b] - sums[a]) / (b - a)) for a, b in ends]


# --- marks ---


def text(x: Real, y: Real, content: str, kind: str = "", anchor: str = "middle") -> str:
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(content)}</text>'
  )


def rule(x1: Real, y1: Real, x2: Real, y2: Real, kind: str) -> str:
  return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def short(label: str, length: int = 20) -> str:
  """A label that fits beside its row."""
  return label if len(label) <= length else label[: length - 1] + "…"


def mark(x: Real, y: Real, look: str, tip: str = "", size: Real = 3.4, kind: str = "") -> str:
  """A point; its shape tells looks apart where colours do not.  `kind` is another class of the
  page: "hollow".
  """
  title = f"<title>{escape(tip)}</title>" if tip else ""
  shape, look = SHAPES.get(look, "circle"), f"{look} {kind}".rstrip()
  if shape == "circle":
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" class="mark {look}">{title}</circle>'
  around = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
    "wedge": ((0, 1.2), (1.1, -0.9), (-1.1, -0.9)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
  }[shape]
  points = " ".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in around)
  return f'<polygon points="{points}" class="mark {look}">{title}</polygon>'


def figure(
  title: str,
  body: str,
  legend: Sequence[tuple[str, str]] = (),
  note: str = "",
  height: Real = HEIGHT,
) -> str:
  """The frame of a figure: title, legend of (look, label), drawing, note."""
  parts = [f"<figure><figcaption>{escape(title)}</figcaption>"]
  if legend:
    marks = [rule(0, 5, 22, 5, "curve " + look) + mark(11, 5, look) for look, _ in legend]
    keys = [f'<svg class="key" viewBox="0 0 22 10" aria-hidden="true">{m}</svg>' for m in marks]
    spans = [
      f"<span>{key}{escape(label)}</span>" for key, (_, label) in zip(keys, legend, strict=True)
    ]
    parts.append(f'<div class="legend">{"".join(spans)}</div>')
  parts.append(
    f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{body}</svg>'
  )
  parts.append(f'<p class="note">{escape(note)}</p></figure>' if note else "</figure>")
  return "".join(parts)


# --- figures ---


def frame(x: Axis, y: Axis, x_label: str, y_label: str, percent: tuple[bool, bool]) -> str:
  """Grid lines, ticks and the labels of both axes."""
  bottom, right = y.start, x.end
  across, up = spelled(x.ticks, percent[0]), spelled(y.ticks, percent[1])
  parts = [rule(x.start, y(t), right, y(t), "gridline") for t in y.ticks]
  parts += [
    text(x.start - 6, y(t) + 3.5, s, "tick", "end") for t, s in zip(y.ticks, up, strict=True)
  ]
  parts += [rule(x(t), bottom, x(t), bottom + 4, "axis") for t in x.ticks]
  parts += [text(x(t), bottom + 15, s, "tick") for t, s in zip(x.ticks, across, strict=True)]
  parts += [rule(x.start, bottom, right, bottom, "axis")]
  parts += [
    text(right, bottom + 30, x_label, "label", "end"),
    text(0, 11, y_label, "label", "start"),
  ]
  return "".join(parts)


def drawn(series: Series, x: Axis, y: Axis) -> str:
  """One series: error bars, line, points (left out where they would run together)."""
  at_x, at_y = series.x, series.y
  ends = zip(series.x, series.low, series.high, strict=True) if series.low else ()
  parts = [rule(x(a), y(low), x(a), y(high), "bar " + series.look) for a, low, high in ends]
  if series.line:
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(at_x, at_y, strict=True))
    kind = "curve faint" if series.faint else "curve"
    parts.append(f'<polyline points="{points}" class="{kind} {series.look}"/>')
  if not series.faint and (len(at_x) <= 30 or not series.line):
    tips = [f"{series.label}: {a:.4g}, {b:.4g}" for a, b in zip(at_x, at_y, strict=True)]
    size = 3.4 if len(at_x) <= 30 else 2
    parts += [
      mark(x(a), y(b), series.look, tip, size) for a, b, tip in zip(at_x, at_y, tips, strict=True)
    ]
  return "".join(parts)


def plot(
  title: str,
  series: Sequence[Series],
  x_label: str,
  y_label: str,
  *,
  percent: tuple[bool, bool] = (False, False),
  also: tuple[Sequence[Real], Sequence[Real]] = ((), ()),
  level: tuple[Real, str] | None = None,
  diagonal: bool = False,
  note: str = "",
) -> str:
  """Curves or points over two linear axes, which hold the x and y of `also` too; `level` is a named
  reference.
  """
  series = [thinned(s) for s in series]
  xs = [v for s in series for v in s.x] + list(also[0])
  ys = [v for s in series for part in (s.y, s.low, s.high) for v in part] + list(also[1])
  ys += [level[0]] if level else []
  y = axis(ys, HEIGHT - BOTTOM, TOP, count=4)
  left = 12 + 6.5 * max(len(label) for label in spelled(y.ticks, percent[1]))
  x = axis(xs, left, WIDTH - RIGHT, fit=True, whole=all(float(v).is_integer() for v in xs))
  body = frame(x, y, x_label, y_label, percent)
  if diagonal:
    low, high = max(x.low, y.low), min(x.high, y.high)
    body += rule(x(low), y(low), x(high), y(high), "reference")
  if level:
    body += rule(x.start, y(level[0]), x.end, y(level[0]), "reference")
    body += text(x.end, y(level[0]) - 4, level[1], "label", "end")
  body += "".join(drawn(s, x, y) for s in series)
  named = [(s.look, s.label) for s in series if not s.faint]
  return figure(title, body, named if len(named) > 1 else (), note)


def forest(
  title: str,
  rows: Sequence[Row],
  x_label: str,
  *,
  reference: Real,
  lines: Sequence[Real] = (),
  legend: Sequence[tuple[str, str]] = (),
  note: str = "",
  percent: bool = True,
  decimals: int = 2,
) -> str:
  """Shares, or numbers of so many decimals, with intervals, a line of the page each; thin `lines`
  run through all rows.
  """
  said = lambda value: (
    f"{100 * value:.1f}" if percent else f"{value:.{decimals}f}".replace("-", "−")
  )
  finite = [v for row in rows for _, *found in row.marks for v in found if math.isfinite(v)]
  left, right, top = 142, WIDTH - 46, 8
  x = axis([*finite, *lines, reference], left, right, count=3)
  height = [max(24, 15 * len(row.marks) + 8) for row in rows]
  bottom = top + sum(height)
  parts = [rule(x(t), top, x(t), bottom, "gridline") for t in x.ticks]
  parts += [rule(x(v), top, x(v), bottom, "thread") for v in lines]
  parts += [rule(x(reference), top, x(reference), bottom, "reference")]
  for i, row in enumerate(rows):
    middle = top + sum(height[:i]) + height[i] / 2
    parts.append(text(left - 10, middle + 3.5, short(row.label), "row", "end"))
    for j, (look, value, low, high) in enumerate(row.marks):
      y = middle + 15 * (j - (len(row.marks) - 1) / 2)
      if math.isfinite(low + high):
        parts.append(rule(x(low), y, x(high), y, "bar " + look))
      parts.append(
        mark(x(value), y, look, f"{row.label}: {said(value)}{' %' if percent else ''}", 4)
      )
      parts.append(text(WIDTH - 2, y + 3.5, said(value), "value", "end"))
  parts += [
    text(x(t), bottom + 15, s, "tick")
    for t, s in zip(x.ticks, spelled(x.ticks, percent), strict=True)
  ]
  parts += [
    rule(left, bottom, right, bottom, "axis"),
    text(right, bottom + 30, x_label, "label", "end"),
  ]
  return figure(title, "".join(parts), legend, note, bottom + 36)


def bars(title: str, rows: Sequence[tuple[str, Real]], unit: str, note: str = "") -> str:
  """Lengths from 0 on, with their numbers."""
  left, right = 142, WIDTH - 60
  longest = max((value for _, value in rows), default=0) or 1
  parts = []
  for i, (label, value) in enumerate(rows):
    y = 12 + 22 * i
    width = max((right - left) * value / longest, 0.5)
    parts.append(text(left - 10, y + 4, short(label), "row", "end"))
    parts.append(f'<rect x="{left}" y="{y - 6}" width="{width:.1f}" height="12" class="fill"/>')
    parts.append(text(left + width + 6, y + 4, f"{value:,.1f} {unit}", "value", "start"))
  return figure(title, "".join(parts), (), note, 22 * len(rows) + 4)
