"""A few cases of each kind of `scripts/fuzz.py`, which runs many."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "scripts" / "fuzz.py"
SPEC = importlib.util.spec_from_file_location("fuzz", PATH)
fuzz = importlib.util.module_from_spec(SPEC)
sys.modules["fuzz"] = fuzz
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_no_case_is_a_fault_and_both_other_outcomes_occur(kind):
  counts, faults = fuzz.run(kind, seed=1, cases=50)
  assert not faults, faults[0]
  assert counts["accepted"] and counts["refused"]


def test_what_is_wrong_is_seen(monkeypatch):
  """Each way of a fault is one."""

  def hang(rng, folder):
    while True:
      pass

  def several_lines(rng, folder):
    raise fuzz.UserError("a\nb")

  def wrong(rng, folder):
    raise fuzz.WrongError

  monkeypatch.setattr(fuzz, "PATIENCE", 0.1)
  for case in (hang, several_lines, wrong, lambda rng, folder: 1 / 0):
    monkeypatch.setitem(fuzz.KINDS, "settings", case)
    assert fuzz.attempt("settings", 0, 0).word == "fault"
