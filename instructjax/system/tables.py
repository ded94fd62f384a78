"""Tables of figures about data: rows of values, printed in aligned columns or given as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
  """A title, the names of the columns, the rows and the decimals to print; None is a value that
  there is not.
  """

  title: str
  columns: tuple[str, ...]
  rows: list[tuple[Any, ...]]
  digits: int = 1


def as_json(tables: Iterable[Table]) -> list[dict[str, Any]]:
  """Each table as {title, rows}, each row as {column: value}."""
  return [
    {"title": t.title, "rows": [dict(zip(t.columns, row, strict=True)) for row in t.rows]}
    for t in tables
  ]


def show(tables: Sequence[Table]) -> None:
  """Prints the tables: texts to the left, numbers to the right, nothing cut off."""
  from rich import box
  from rich.console import Console
  from rich.markup import escape
  from rich.table import Table as Printed

  console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
  for table in tables:
    console.print(escape(table.title), style="bold", soft_wrap=True)
    printed = Printed(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, name in enumerate(table.columns):
      texts = all(isinstance(row[i], str) for row in table.rows)
      printed.add_column(escape(name), justify="left" if texts else "right", overflow="fold")
    for row in table.rows:
      printed.add_row(*[escape(_written(value, table.digits)) for value in row])
    console.print(printed)
    console.print()


def _written(value: Any, digits: int) -> str:
  if value is None:
    return "-"
  if isinstance(value, float):
    return f"{value:,.{digits}f}"
  return (
    f"{value:,}"
    if isinstance(value, int)
    else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
  )
