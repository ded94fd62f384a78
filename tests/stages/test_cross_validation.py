"""Cross-validation of reward models over labelers: groups, files, both accuracies, going on."""

import json
from collections import Counter

import pytest
from stage_runs import TUNE

from instructjax.commands import cli
from instructjax.data.records.records import Comparison
from instructjax.errors import UserError
from instructjax.runs import report
from instructjax.stages import cross_validation

LABELERS = {"ana": 4, "ben": 4, "cem": 3, "dee": 1, "eva": 1}


def compared(prompt, labeler):
  return {
    "prompt": prompt,
    "completions": ["good", "bad"],
    "ranks": [1, 2],
    "labeler": labeler,
  }


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture
def options(base, tmp_path):
  rows = [compared(f"say {i}", name) for name, count in LABELERS.items() for i in range(count)]
  valid = [compared("say 9", name) for name in LABELERS] + [compared("say 9", "zoe")]
  return [
    "rm_cv",
    "--config=reward:tiny",
    f"--model={base}",
    f"--workdir={tmp_path / 'cv'}",
    f"--config.data.comparisons={write(tmp_path / 'train.jsonl', rows)}",
    f"--config.data.valid={write(tmp_path / 'valid.jsonl', valid)}",
    "--config.data.demonstrations=",
    *TUNE,
  ]


def test_groups_have_about_as_many_comparisons_each():
  records = [
    Comparison("p", ("a", "b"), (1, 2), labeler=name)
    for name, count in LABELERS.items()
    for _ in range(count)
  ]
  assert cross_validation.split_labelers(records, 3) == [["ana", "eva"], ["ben"], ["cem", "dee"]]
  with pytest.raises(UserError, match=r"--groups=6: config\.data\.comparisons has 5 labelers"):
    cross_validation.split_labelers(records, 6)


def test_every_group_is_held_out_once_a_seed(options, tmp_path, capsys, monkeypatch):
  assert cli.main([*options, "--groups=2", "--seeds=2"]) == 0, capsys.readouterr().err
  out = capsys.readouterr().out
  assert "1 held-out comparisons are by other labelers" in out
  assert out.count("  n 4 in 2\n") == 3
  folder = tmp_path / "cv"
  summary = json.loads((folder / "results.json").read_text())["rm_cv"]
  groups = [tuple(model["group"]) for model in summary["models"]]
  assert Counter(groups) == {("ana", "cem"): 2, ("ben", "dee", "eva"): 2}
  assert [model["seed"] for model in summary["models"]] == [0, 1, 0, 1]
  # No model saw a comparison of the group that it is measured on as held out.
  for number, group in enumerate([("ana", "cem"), ("ben", "dee", "eva")]):
    lines = (folder / "data" / f"group-{number}" / "comparisons.jsonl").read_text().splitlines()
    seen = {json.loads(line)["labeler"] for line in lines}
    assert seen == {*LABELERS} - {*group}
  counts = [model["held-out labelers"]["n"] for model in summary["models"]]
  assert counts == [2, 2, 3, 3]
  gap = summary["training labelers"]["value"] - summary["held-out labelers"]["value"]
  assert summary["gap"]["value"] == pytest.approx(gap)
  assert not list(folder.glob("runs/*/checkpoints"))
  page = report.write(folder).read_text()
  assert "Labelers of the training data, and others" in page
  assert "Means over 4 models" in page
  assert "n: training labelers 4 in 2, held-out labelers 4 in 2." in page

  # The same command again trains nothing.
  monkeypatch.setattr(cross_validation.reward, "run", None)
  assert cli.main([*options, "--groups=2", "--seeds=2"]) == 0


def test_intervals_are_over_groups():
  """Models of one group are as good as each other: ten seeds tell no more than one."""

  def models(seeds):
    values = {"ana": (0.8, 0.7), "ben": (0.7, 0.68), "cem": (0.76, 0.7)}
    return [
      {"group": [group], "seed": seed}
      | {"training labelers": {"value": own}, "held-out labelers": {"value": other}}
      for group, (own, other) in values.items()
      for seed in range(seeds)
    ]

  few, many = (cross_validation.summarise(models(seeds)) for seeds in (1, 10))
  for name in ("training labelers", "held-out labelers", "gap"):
    ends = [(part[name]["low"], part[name]["high"]) for part in (few, many)]
    assert ends[1] == pytest.approx(ends[0], abs=0.02)
    assert (many[name]["n"], many[name]["clusters"]) == (30, 3)
  # By hand: gaps of .1, .02 and .06, whose t interval of 2 degrees is .06 ± 4.303 × .04 / √3.
  assert few["gap"]["low"] == pytest.approx(0.06 - 4.303 * 0.04 / 3**0.5, abs=1e-4)


def test_what_cannot_be_cross_validated_is_said(options, tmp_path, capsys):
  without = [word for word in options if "data.valid" not in word]
  assert cli.main([*without, "--config.data.valid="]) == 2
  assert "config.data.valid is empty" in capsys.readouterr().err
  with pytest.raises(SystemExit) as stop:
    cli.main([*options, "--groups=1"])
  assert stop.value.code == 2
  assert "--groups: 1: a whole number from 2 to 1,000" in capsys.readouterr().err
  assert cli.main([*options, "--groups=6"]) == 2
  assert "has 5 labelers" in capsys.readouterr().err
  nameless = write(tmp_path / "nameless.jsonl", [{**compared("say 1", ""), "labeler": None}])
  assert cli.main([*options, f"--config.data.comparisons={nameless}"]) == 2
  assert "nameless.jsonl:1: labeler: none; cross-validation is over" in capsys.readouterr().err
  assert cli.main(["rm_cv", "--config=sft:tiny"]) == 2
  assert "rm_cv trains reward models" in capsys.readouterr().err
