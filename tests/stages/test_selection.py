"""SFT that keeps the checkpoint whose samples score highest."""

import json
import shutil

import jax
import numpy as np
import pytest
from stage_runs import TUNE, files, metrics, run

from instructjax import settings
from instructjax.runs import origin
from instructjax.runs.checkpoint import Checkpoints
from instructjax.stages import selection

SCORES = """
import itertools
score = itertools.cycle([1., 3., 2.])
def f(prompts, responses):
  return [next(score)] * len(prompts)
"""


@pytest.fixture
def options(data, base, tmp_path):
  (tmp_path / "mine.py").write_text(SCORES)
  prompts = shutil.copy(data / "prompts.jsonl", tmp_path)
  select = {"reward": f"python:{tmp_path / 'mine.py'}:f", "prompts": prompts, "response": 4}
  return [
    *files(data, "demonstrations"),
    f"--config.data.valid={data / 'demonstrations.jsonl'}",
    f"--model={base}",
    *TUNE,
    "--config.checkpoint_every=1",
    *(f"--config.select.{name}={value}" for name, value in select.items()),
  ]


def test_the_checkpoint_that_scores_highest_is_left(options, tmp_path, capsys):
  """Three steps, whose samples score 1, 3, 2: the second is left, whatever the loss says; both
  choices are noted.
  """
  assert run("sft", tmp_path / "sft", *options) == 0
  rows = {row["step"]: row for row in metrics(tmp_path / "sft") if "eval/score" in row}
  assert [rows[step]["eval/score"] for step in (1, 2, 3)] == [1, 3, 2]
  losses = [rows[step]["eval/nll"] for step in (1, 2, 3)]
  by_loss = 1 + int(np.argmin(losses))
  noted = json.loads((tmp_path / "sft" / "manifest.json").read_text())["selection"]
  assert noted == {
    "by": "eval/score",
    "step": 2,
    "eval/score": 3,
    "eval/nll": losses[1],
    "by eval/nll": {
      "step": by_loss,
      "eval/score": rows[by_loss]["eval/score"],
      "eval/nll": min(losses),
    },
  }
  out = capsys.readouterr().out
  assert (
    "step 2 is kept: its samples score highest, 3.000; by the validation loss it would be step "
    f"{by_loss}" in out
  )
  kept, left = (Checkpoints(tmp_path / "sft" / "checkpoints" / name) for name in ("sft", "final"))
  assert kept.steps() == [2, 3]  # the best one and the last
  assert left.steps() == [2]
  model = origin.open_model(str(tmp_path / "sft"), settings.load("sft:tiny").model, 0)
  wanted = Checkpoints(kept.folder)
  found = wanted.extra(2)
  assert found["stage"] == "sft"
  assert origin.fingerprint(model.params) == origin.fingerprint(_of_step(kept, 2, model.params))
  assert origin.fingerprint(model.params) != origin.fingerprint(_of_step(kept, 3, model.params))
  assert run("sft", tmp_path / "sft", *options) == 0  # again: nothing to do, the same choice
  assert json.loads((tmp_path / "sft" / "manifest.json").read_text())["selection"] == noted
  lines = (tmp_path / "prompts.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "prompts.jsonl").write_text("".join(lines[1:]))
  assert run("sft", tmp_path / "sft", *options) == 2  # scores of other prompts do not compare
  assert "fingerprints" in capsys.readouterr().err


def _of_step(folder, step, like):
  import orbax.checkpoint as ocp

  with ocp.CheckpointManager(folder.folder) as manager:
    state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))[
      "state"
    ]
  names = [name for name in state if name.startswith("params/")]
  flat = {name.removeprefix("params/"): state[name] for name in names}
  paths = jax.tree_util.tree_flatten_with_path(like)[0]
  leaves = [flat["/".join(key.key for key in path)] for path, _ in paths]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def test_what_is_missing_is_said(options, tmp_path, capsys):
  without = [one for one in options if "select.prompts" not in one]
  assert run("sft", tmp_path / "a", *without) == 2
  assert "config.select.prompts=: give validation prompts" in capsys.readouterr().err
  assert run("sft", tmp_path / "b", *options, "--config.best=eval/nll") == 2
  assert "the checkpoint is chosen by eval/score" in capsys.readouterr().err
  assert run("sft", tmp_path / "c", *options, "--config.checkpoint_every=0") == 2
  said = capsys.readouterr().err
  assert "config.checkpoint_every=0: this leaves the last checkpoint alone" in said


def test_the_alternative_is_told():
  assert (
    selection.describe({"step": 4, "eval/score": 1.0})
    == "step 4 is kept: its samples score highest, 1.000"
  )
