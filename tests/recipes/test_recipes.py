"""The recipes as files: short, with a paper, a command and a measured row in the README."""

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "recipes"
README = (FOLDER / "README.md").read_text()
SOURCES = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.py"))}
RECIPES = [name for name, source in SOURCES.items() if "\ndef main(" in source]


def lines_of_code(source: str) -> int:
  """Lines that are neither blank, nor a comment, nor of a docstring."""
  lines = {
    number
    for number, line in enumerate(source.splitlines(), 1)
    if line.strip() and not line.strip().startswith("#")
  }
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
  return len(lines)


def method_of(source: str) -> str:
  """The part under "# The method"."""
  _, _, rest = source.partition("# The method\n")
  method, _, _ = rest.partition("# The run\n")
  return method


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_says_its_paper_and_its_command(name):
  docstring = ast.get_docstring(ast.parse(SOURCES[name]))
  assert len(SOURCES[name].splitlines()) <= 100
  assert re.search(r"\d{4}[,)]", docstring), "no paper"
  assert f"python experiments/recipes/{name} --seed=0" in docstring


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_a_measured_row(name):
  rows = [line for line in README.splitlines() if line.startswith(f"| [{name}]({name})")]
  assert rows, f"{name} has no row in experiments/recipes/README.md"
  assert re.search(r"\[[-+−.\d]+, [-+−.\d]+\]", rows[0]), "no interval"


@pytest.mark.parametrize(("name", "most"), [("dpo.py", 15), ("grpo.py", 30)])
def test_the_method_is_few_lines(name, most):
  method = method_of(SOURCES[name])
  assert 5 < lines_of_code(method) <= most, lines_of_code(method)


def test_what_counts_as_code():
  source = '# A\n\ndef f():\n  """One.\n\n  Two.\n  """\n  # three\n  return (\n    4\n  )\n'
  assert lines_of_code(source) == 4
  assert method_of("a\n# The method\nb\n# The run\nc\n") == "b\n"
