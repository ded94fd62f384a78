"""The few elements of SVG that figures are drawn with; every text is escaped here.

Colours are classes of the page, so that a figure follows its light or dark style.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from instructjax.runs.report.scales import Real

Point = tuple[Real, Real]  # x from the left and y from the top of the page

# A point has a shape beside its colour, for readers who do not see the colours.
SHAPES = {
  "ppo": "circle",
  "ptx": "square",
  "sft": "triangle",
  "base": "diamond",
  "rm": "wedge",
  "gold": "square",
}

# Corners around the point, in units of its size. The factors give all shapes about the same area.
CORNERS: dict[str, Sequence[Point]] = {
  "square": (
    (-0.9, -0.9),
    (0.9, -0.9),
    (0.9, 0.9),
    (-0.9, 0.9),
  ),
  "triangle": (
    (0, -1.2),
    (1.1, 0.9),
    (-1.1, 0.9),
  ),
  "wedge": (  # a triangle upside down
    (0, 1.2),
    (1.1, -0.9),
    (-1.1, -0.9),
  ),
  "diamond": (
    (0, -1.3),
    (1.3, 0),
    (0, 1.3),
    (-1.3, 0),
  ),
}


def text(
  x: Real,
  y: Real,
  content: str,
  kind: str = "",
  anchor: str = "middle",
) -> str:
  """A line of text; `kind` is a class of the page."""
  attributes = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"'
  return f"<text {attributes}>{escape(content)}</text>"


def rule(
  x1: Real,
  y1: Real,
  x2: Real,
  y2: Real,
  kind: str,
) -> str:
  """A straight line."""
  ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'  # a tenth of a unit is enough
  return f'<line {ends} class="{kind}"/>'


def horizontal(left: Real, right: Real, y: Real, kind: str) -> str:
  """A line from left to right."""
  return rule(left, y, right, y, kind)


def vertical(x: Real, top: Real, bottom: Real, kind: str) -> str:
  """A line from one height to another."""
  return rule(x, top, x, bottom, kind)


def polyline(points: Sequence[Point], kind: str) -> str:
  """A line through points of the page."""
  return f'<polyline points="{_coordinates(points)}" class="{kind}"/>'


def _coordinates(points: Sequence[Point]) -> str:
  return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def mark(
  x: Real,
  y: Real,
  look: str,
  tip: str = "",
  size: Real = 3.4,
  kind: str = "",
) -> str:
  """A point with the colour and shape of a look.

  `tip` is the text that a browser shows beside the pointer, `kind` another class of the page such
  as "hollow".
  """
  title = f"<title>{escape(tip)}</title>" if tip else ""
  shape = SHAPES.get(look, "circle")
  classes = f"mark {look} {kind}".rstrip()
  if shape == "circle":
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" class="{classes}">{title}</circle>'
  corners = []
  for dx, dy in CORNERS[shape]:
    corners.append((x + size * dx, y + size * dy))
  return f'<polygon points="{_coordinates(corners)}" class="{classes}">{title}</polygon>'


def short(label: str, length: int = 20) -> str:
  """A label that fits beside its row."""
  return label if len(label) <= length else label[: length - 1] + "…"
