"""The reference is true: every promised function has an example, and every example runs."""

import doctest
import inspect
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import instructjax
from instructjax import rewards

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
# The modules whose functions have examples; the others are promised all the same.
MODULES = ["losses", "returns", "likelihood", "rollout", "steps", "ppo", "reward", "sft", "models"]
# What holds no number, such as the end of a long message, may be left out of an example.
FLAGS = doctest.ELLIPSIS


def promised_functions(module: ModuleType) -> dict:
  """The functions that a module lists, or else those that it defines without an underscore."""
  everything = vars(module)
  own = [name for name, x in everything.items() if getattr(x, "__module__", "") == module.__name__]
  names = getattr(module, "__all__", own)
  return {
    name: everything[name]
    for name in names
    if inspect.isfunction(everything[name]) and not name.startswith("_")
  }


def first_lines() -> str:
  """The lines that every example begins with, as the reference prints them."""
  page = (REFERENCE / "index.md").read_text()
  return page.split("```python\n")[1].split("```")[0]


def run_examples(functions: dict, names: dict) -> doctest.TestResults:
  finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(optionflags=FLAGS)
  for name, function in functions.items():
    for test in finder.find(function, name, globs=names):
      runner.run(test, clear_globs=False)
  return runner.summarize()


@pytest.mark.parametrize("name", MODULES)
def test_every_promised_function_has_an_example(name):
  functions = promised_functions(getattr(instructjax, name))
  without = [
    function for function, x in functions.items() if "Example:\n" not in (inspect.getdoc(x) or "")
  ]
  assert functions and not without


def test_the_examples_run():
  # Pages print numbers in three digits; other tests do not.
  with np.printoptions():
    names = {}
    exec(first_lines(), names)
    results = []
    for name in MODULES:
      functions = promised_functions(getattr(instructjax, name))
      results.append(run_examples(functions, names))
      assert results[-1].attempted >= len(functions)
    # Of the rewards the reference has the functions of arrays alone.
    of_arrays = {
      function.__name__: function for function in (rewards.minimum, rewards.mean_less_deviation)
    }
    results.append(run_examples(of_arrays, names))
    assert results[-1].attempted == 2
  assert not any(result.failed for result in results)


def test_a_wrong_example_fails(capsys):
  def add(a, b):
    """Adds.

    Example:
      >>> print(1 + 1)
      3
    """

  assert run_examples({"add": add}, {}).failed == 1
  assert "Expected" in capsys.readouterr().out


def test_every_module_has_a_page():
  index = (REFERENCE / "index.md").read_text()
  for name in [*MODULES, "types", "optim", "sharding", "dpo", "rewards"]:
    assert f"\n{name}\n" in index and (REFERENCE / f"{name}.md").is_file()
