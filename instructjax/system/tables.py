"""Tables of figures about data: rows of values, printed in aligned columns or given as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

FILE_WIDTH = 200  # columns of a table that is not printed on a terminal


class Table(NamedTuple):
  """A table under a title; None in a row is a value that does not exist."""

  title: str
  columns: tuple[str, ...]
  rows: list[tuple[Any, ...]]
  digits: int = 1  # decimals of floats, where they are printed


def as_json(tables: Iterable[Table]) -> list[dict[str, Any]]:
  """Returns each table as {title, rows}, and each row as {column: value}."""
  objects = []
  for table in tables:
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    objects.append({"title": table.title, "rows": rows})
  return objects


def show(tables: Sequence[Table]) -> None:
  """Prints the tables: texts to the left, numbers to the right, nothing cut off."""
  from rich import box
  from rich.console import Console
  from rich.markup import escape
  from rich.table import Table as PrintedTable

  # Into a pipe rich would assume 80 columns and fold the lines.
  width = None if sys.stdout.isatty() else FILE_WIDTH
  console = Console(highlight=False, width=width)
  for table in tables:
    console.print(escape(table.title), style="bold", soft_wrap=True)
    printed = PrintedTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, name in enumerate(table.columns):
      is_text = all(isinstance(row[i], str) for row in table.rows)
      justify = "left" if is_text else "right"
      printed.add_column(escape(name), justify=justify, overflow="fold")
    for row in table.rows:
      # Brackets in a text are not markup.
      cells = [escape(_format(value, table.digits)) for value in row]
      printed.add_row(*cells)
    console.print(printed)
    console.print()


def _format(value: Any, digits: int) -> str:
  """Returns a value as it is printed."""
  if value is None:
    return "-"
  if isinstance(value, float):
    return f"{value:,.{digits}f}"
  if isinstance(value, int):
    return f"{value:,}"
  # Texts of data may hold control characters, which could change the terminal.
  letters = [letter if letter.isprintable() else ascii(letter)[1:-1] for letter in value]
  return "".join(letters)
