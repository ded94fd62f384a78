"""How dense the code is: tokens a line of code, comments in 100 lines, and names that say nothing.

  python scripts/density.py                 the package, room by room
  python scripts/density.py instructjax/evals --files

Docstrings, comments, blank lines and the layout itself are no code.  A line of code is a line on
which a token of code begins; a string over several lines counts once.
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from pathlib import Path
from typing import NamedTuple

LAYOUT = {
  tokenize.NEWLINE,
  tokenize.NL,
  tokenize.INDENT,
  tokenize.DEDENT,
  tokenize.ENCODING,
  tokenize.ENDMARKER,
  tokenize.COMMENT,
}
EMPTY_NAMES = ("found", "said", "told", "drawn", "known")


class Density(NamedTuple):
  """The counts of one file, or the sum of several."""

  tokens: int = 0
  lines: int = 0
  comments: int = 0
  empty_names: int = 0
  skips: int = 0

  def plus(self, other: Density) -> Density:
    return Density(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def docstring_lines(source: str) -> set[int]:
  """The first line of every docstring."""
  first_lines = set()
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      continue
    first = node.body[0] if node.body else None
    if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
      continue
    if isinstance(first.value.value, str):
      first_lines.add(first.lineno)
  return first_lines


def bound_names(source: str) -> list[str]:
  """Every name that is assigned to, every parameter and every function."""
  names = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      names.append(node.id)
    elif isinstance(node, ast.arg):
      names.append(node.arg)
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.append(node.name)
  return names


def measure(source: str) -> Density:
  """The counts of one file."""
  documented = docstring_lines(source)
  tokens, comments, skips = 0, 0, 0
  lines = set()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      comments += 1
      skips += "fmt: skip" in token.string or "fmt: off" in token.string
    if token.type in LAYOUT or (token.type == tokenize.STRING and token.start[0] in documented):
      continue
    tokens += 1
    lines.add(token.start[0])
  empty = sum(name in EMPTY_NAMES for name in bound_names(source))
  return Density(tokens, len(lines), comments, empty, skips)


def row(name: str, density: Density) -> str:
  """One line of the table."""
  lines = max(density.lines, 1)
  return (
    f"{name:<44} {density.lines:>6} lines  {density.tokens / lines:>5.2f} tokens a line  "
    f"{100 * density.comments / lines:>5.1f} comments in 100  {density.empty_names:>4} empty names "
    " "
    f"{density.skips:>3} skips"
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", nargs="?", default="instructjax", type=Path)
  parser.add_argument("--files", action="store_true", help="a row for each file")
  args = parser.parse_args()
  rooms: dict[str, Density] = {}
  for path in sorted(args.folder.rglob("*.py")):
    parts = path.relative_to(args.folder).parts
    room = str(path) if args.files else parts[0] if len(parts) > 1 else "(top level)"
    rooms[room] = rooms.get(room, Density()).plus(measure(path.read_text(encoding="utf-8")))
  total = Density()
  for room, density in rooms.items():
    print(row(room, density))
    total = total.plus(density)
  print(row("all", total))


if __name__ == "__main__":
  main()
