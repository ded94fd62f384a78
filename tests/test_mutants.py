"""The table of `scripts/mutants.py` fits the code: every fault can still be made, in one place."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load():
  """The script, which is no module of the package."""
  spec = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules["mutants"] = module  # a dataclass looks itself up there
  spec.loader.exec_module(module)
  return module


mutants = load()


@pytest.mark.parametrize("module", mutants.MUTANTS)
def test_every_mutant_applies_exactly_once(module):
  text = (ROOT / mutants.path_of(module)).read_text()
  faulty = [mutants.applied(mutant, text) for mutant in mutants.MUTANTS[module]]
  trees = {ast.dump(ast.parse(mutated)) for mutated in [text, *faulty]}
  # No two of them are the same, and none is the module itself.
  assert len(trees) == 1 + len(faulty)


def test_what_is_not_there_once_is_no_mutant():
  with pytest.raises(ValueError, match="nothing: the text stands there 2 times: a"):
    mutants.applied(mutants.Mutant("a", "b", "nothing"), "aba")
  with pytest.raises(ValueError, match="0 times"):
    mutants.applied(mutants.Mutant("c", "b", "nothing"), "aba")


def test_every_module_has_mutants_and_tests():
  assert mutants.MUTANTS.keys() == mutants.TESTS.keys()
  for files in mutants.TESTS.values():
    assert all((ROOT / file).exists() for file in files)
  for listed in mutants.MUTANTS.values():
    phrases = [mutant.breaks for mutant in listed]
    assert len(set(phrases)) == len(phrases)
