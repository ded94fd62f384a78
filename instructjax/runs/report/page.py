"""The frame of the page, and the few shapes of HTML that its sections are made of.

The page holds no script and makes no request, so that it can be opened anywhere and for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from instructjax import intervals
from instructjax.intervals import Estimate
from instructjax.runs.report.style import STYLE
from instructjax.system import jsons

FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

Section = tuple[str, str, str]  # anchor, title, HTML; the HTML is empty where there are no data


def page(title: str, body: str) -> str:
  """Returns the whole document; its own policy forbids scripts and requests."""
  return FRAME.format(title=escape(title), style=STYLE, body=body)


def section(
  name: str,
  title: str,
  lead: str,
  *parts: str,
) -> Section:
  """Returns a section with a sentence before its parts; empty where no part has anything in it."""
  body = "".join(parts)
  if not body:
    return name, title, ""
  heading = f"<h2>{escape(title)}</h2>"
  lead_html = f"<p>{escape(lead)}</p>" if lead else ""
  html = f'<section id="{name}">{heading}{lead_html}{body}</section>'
  return name, title, html


def grid(figures: Sequence[str]) -> str:
  """Returns figures side by side, as many as there is room for."""
  cells = "".join(figures)
  return f'<div class="grid">{cells}</div>' if cells else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table of cells that are HTML already; a wide one scrolls inside its own box."""
  head_row = "".join(f"<th>{title}</th>" for title in head)
  body_rows = "".join(_table_row(row) for row in rows)
  content = f"<thead><tr>{head_row}</tr></thead><tbody>{body_rows}</tbody>"
  # The tab index lets a keyboard scroll the box.
  return f'<div class="box" tabindex="0"><table>{content}</table></div>'


def _table_row(cells: Sequence[str]) -> str:
  content = "".join(f"<td>{content}</td>" for content in cells)
  return f"<tr>{content}</tr>"


def details(title: str, body: str) -> str:
  """Returns HTML that is shown on a click on its title."""
  return f"<details><summary>{escape(title)}</summary>{body}</details>"


def with_code(sentence: str) -> str:
  """Returns a sentence as HTML, in which `words` are code."""
  parts = escape(sentence).split("`")
  if len(parts) % 2 == 0:  # a mark without its partner is itself
    return "`".join(parts)
  marked = [f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)]
  return "".join(marked)


def settings(title: str, tree: dict[str, Any]) -> str:
  """Returns a folded table of names and values; nothing where there are none."""
  rows = [_table_row([escape(name), escape(value)]) for name, value in flat(tree)]
  if not rows:
    return ""
  content = "".join(rows)
  return details(title, f'<div class="box plain"><table>{content}</table></div>')


def flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
  """Returns the dotted names of a tree of settings with their values as text."""
  pairs = []
  for name, value in tree.items():
    dotted = f"{prefix}{name}"
    if isinstance(value, dict) and value:  # an empty object is shown as a value
      pairs.extend(flat(value, f"{dotted}."))
    elif isinstance(value, str):
      pairs.append((dotted, value))
    else:
      pairs.append((dotted, jsons.text_with_nulls(value)))
  return pairs


# --- numbers ---

# A non-breaking space stands between a number and its unit.


def percent(value: float) -> str:
  """Returns a share as 12.3 %."""
  return f"{100 * value:.1f}\u00a0%"


def minus(value: float, decimals: int = 2) -> str:
  """Returns a number with a true minus sign, and never a negative zero."""
  rounded = round(value, decimals) + 0.0  # -0.0 + 0.0 is 0.0
  return f"{rounded:.{decimals}f}".replace("-", "−")


def _value(value: float, share: bool, decimals: int) -> str:
  return percent(value) if share else minus(value, decimals)


def interval(estimate: Estimate, share: bool = False, decimals: int = 2) -> str:
  """Returns the two ends, or nothing where there is no interval."""
  low = estimate.low
  high = estimate.high
  if not math.isfinite(low + high):
    return ""
  if share:
    return f"{100 * low:.1f} to {100 * high:.1f}\u00a0%"
  return f"{minus(low, decimals)} to {minus(high, decimals)}"


def cell(
  estimate: Estimate | None,
  share: bool = False,
  decimals: int = 2,
) -> str:
  """Returns a value over its interval, for a cell of a table."""
  if estimate is None:
    return "–"
  value = _value(estimate.value, share, decimals)
  ends = interval(estimate, share, decimals)
  return f"{value}<small>{ends}</small>" if ends else value


def with_ends(estimate: Estimate, share: bool = True) -> str:
  """Returns a value, its interval and its n as they stand in a sentence."""
  value = _value(estimate.value, share, decimals=2)
  ends = interval(estimate, share)
  if not ends:
    return value
  return f"{value} (95\u00a0% interval {ends}{n_after_comma(estimate)})"


def n_after_comma(estimate: Estimate) -> str:
  """Returns ", n 60 in 20": 60 items in 20 clusters; nothing where the number is not recorded."""
  return f", n {intervals.counted(estimate)}" if estimate.n else ""


def counts_note(estimates: Mapping[str, Estimate]) -> str:
  """Returns the items and clusters of each estimate of a figure, by its label, as a sentence."""
  parts = []
  for label, estimate in estimates.items():
    if estimate.n:
      parts.append(f"{label} {intervals.counted(estimate)}")
  return f"n: {', '.join(parts)}." if parts else ""
