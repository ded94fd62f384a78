"""`scripts/measure_alpaca_eval.py` on a made-up checkout: sides, ties, errors by hand, files."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

from instructjax.errors import UserError

PATH = Path(__file__).parent.parent / "scripts" / "measure_alpaca_eval.py"
SPEC = importlib.util.spec_from_file_location("measure_alpaca_eval", PATH)
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


def pair(number, preference, ours="bb", theirs="aaaa", names=("base", "mine"), **more):
  first, second = names
  return {
    "instruction": f"i{number}",
    "generator_1": first,
    "output_1": theirs,
    "generator_2": second,
    "output_2": ours,
    "preference": preference,
    **more,
  }


def written(folder, rates, annotations):
  leaderboard = folder / script.LEADERBOARD.format(annotator=script.ANNOTATOR)
  leaderboard.parent.mkdir(parents=True)
  lines = [f"{name},{rate}" for name, rate in rates.items()]
  leaderboard.write_text("\n".join([",length_controlled_winrate", *lines]) + "\n")
  for name, pairs in annotations.items():
    path = folder / "results" / name / script.ANNOTATOR / "annotations.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(pairs))
  return folder


def test_a_vote_is_from_the_side_of_the_model():
  turned = pair(2, 1.2, ours="aaaa", theirs="bb", names=("mine", "base"))
  judged = script.votes_of(
    [pair(0, 1.25), pair(1, 0), turned, pair(3, None), pair(4, math.nan)], "model", "mine"
  )
  assert [vote.orders[0] for vote in judged] == pytest.approx([0.25, 0.5, 0.8])
  assert [(vote.a, vote.b, vote.longer_by) for vote in judged] == [("model", "baseline", -2)] * 3
  with pytest.raises(UserError, match=r"pair 1: is between 'base' and 'mine', .*--alias"):
    script.votes_of([pair(0, 1)], "model", "other")


def test_errors_of_a_made_up_leaderboard(tmp_path, capsys):
  """All answers are equally long, so that the rate is the raw one: 50 % and 75 %."""
  half = [pair(n, 1 + n % 2, ours="aaaa") for n in range(20)]
  more = [pair(n, 1 + (n % 4 > 0), ours="aaaa") for n in range(20)]
  short = [pair(n, 1, ours="a") for n in range(20)]
  itself = [pair(n, 1.5, names=("base", "base")) for n in range(20)]
  unpublished = [pair(n, 1) for n in range(20)]
  rates = {"half": 52, "more": 74, "short": 10, "base": 50}
  annotations = {"half": half, "more": more, "short": short, "base": itself, "new": unpublished}
  folder = written(tmp_path, rates, annotations)
  aliases = ["--alias=half=mine", "--alias=more=mine", "--alias=short=mine"]
  assert script.main([str(folder), *aliases]) == 0
  out = capsys.readouterr().out
  assert "3 models, 1 of them without a rate" in out
  assert "mean 1.50, median 1.50, largest 2.00 (half)" in out
  assert "0 % of the pairs have answers whose lengths are within" in out and "theirs 10.0" in out


def test_what_is_not_there(tmp_path, capsys):
  assert script.main([str(tmp_path)]) == 2
  assert "cannot be read as a leaderboard" in capsys.readouterr().err
  assert script.main([str(written(tmp_path / "a", {"half": 5}, {}))]) == 2
  assert "give a checkout of github.com/tatsu-lab/alpaca_eval" in capsys.readouterr().err
