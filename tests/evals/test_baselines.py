"""The prompted baseline: which prefix is chosen, and the command on a tiny model."""

import json

import numpy as np
import pytest

from instructjax.commands import cli
from instructjax.errors import UserError
from instructjax.evals import baselines


def test_the_prefix_with_the_highest_mean_is_chosen():
  """The length of the prefix decides: `sample` repeats its text, `reward` counts the letters."""
  seen = []

  def reward(prompts, answers):
    seen.append(list(prompts))
    return [len(answer) + i for i, answer in enumerate(answers)]

  ranked = baselines.select_prefix(
    {"a": "x", "b": "long ", "c": "yy"}, lambda texts: texts, reward, ["p", "qq"]
  )
  assert [candidate.name for candidate in ranked] == ["b", "c", "a"]
  assert ranked[0].scores == (6, 8) and ranked[0].mean.value == 7
  assert [candidate.behind.value for candidate in ranked] == [0, 3, 4]
  assert (ranked[1].behind.low, ranked[1].behind.high) == (3, 3)  # on every prompt the same
  assert seen == [["p", "qq"]] * 3  # the reward never sees a prefix
  tied = baselines.select_prefix({"a": "x", "b": "y"}, lambda texts: texts, reward, ["p"])
  assert [candidate.name for candidate in tied] == ["a", "b"]
  with pytest.raises(UserError, match="0 prefixes and 1 prompts"):
    baselines.select_prefix({}, lambda texts: texts, reward, ["p"])


def test_the_command_on_a_tiny_model(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "prompts.jsonl").write_text(
    "".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(4))
  )
  (tmp_path / "mine.py").write_text(
    "def ones(prompts, responses):\n  return [float(ord((r + '-')[0])) for r in responses]\n"
  )
  (tmp_path / "a.txt").write_text("Q: hi\nA: hello\n\n")
  (tmp_path / "b.txt").write_text("Be kind. ")
  command = [
    "baseline",
    "prefix",
    "--model=",
    "--candidates=a.txt, b.txt",
    "--prompts=prompts.jsonl",
    "--reward=python:mine.py:ones",
    "--out=best.txt",
    "--config.preference.response=6",
    "--config.tokens=512",
    "--config.model.dtype=float32",
  ]
  assert cli.main(command) == 0
  out = capsys.readouterr().out
  report = json.loads((tmp_path / "best.txt.json").read_text())
  first, second = report["candidates"]
  assert first["mean"]["value"] == np.mean(first["scores"]) >= second["mean"]["value"]
  assert second["behind"]["value"] == pytest.approx(
    first["mean"]["value"] - second["mean"]["value"]
  )
  assert (tmp_path / "best.txt").read_text() == (tmp_path / first["name"]).read_text()
  assert (
    f"best.txt: {first['name']}, by the mean reward of 4 answers; --models "
    "prompted=MODEL#prefix=best.txt" in out
  )
  assert (report["response"], report["temperature"], report["rewards"]["ones"]["weight"]) == (
    6,
    1.0,
    1.0,
  )
  assert cli.main([*command[:3], "--candidates=none.txt", *command[4:]]) == 2
  assert "none.txt: cannot be read as UTF-8 text" in capsys.readouterr().err
