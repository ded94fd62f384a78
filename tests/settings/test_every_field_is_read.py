"""No field is there for nothing: while a stage runs, each of its fields is read by the code."""

import ast
import sys
from pathlib import Path

import pytest
from rich_settings import RICH, prepare
from stage_runs import metrics

import instructjax
from instructjax import losses, settings
from instructjax.commands import cli
from instructjax.settings import fields

PACKAGE = Path(instructjax.__file__).parent
# Who reads every field of every object: what makes, copies, prints and compares them.
GENERAL = (str(PACKAGE / "settings" / "fields.py"), "dataclasses.py", "<string>")
TOP = {"top": 1, "trunk_dtype": "float32"}
LORA = {"lora.rank": 2, "lora.alpha": 4.0, "trunk_dtype": "float32", "model.source": "policy"}
ADAPTED = {**LORA, "rl_init": "policy"}
ADAPTED.pop("model.source")
ARITHMETIC = ["--topology=h100:1", "--arithmetic"]
# What is run of a stage, as changes of its rich settings, until everything is read.
RUNS = {
  "pretrain": [{}, {**TOP, "lora.rank": 0}, {"model.source": "", "lora.rank": 0, "steps": 0}],
  "sft": [{**TOP, "data.stems": True}, LORA, {"steps": 0, "epochs": 1}],
  "rl_init": [{**TOP, "data.stems": True}, LORA, {"steps": 0, "epochs": 1}],
  "reward": [{**TOP, "data.stems": True}, LORA, {"steps": 0, "epochs": 1}],
  "dpo": [{**TOP, "data.stems": True}, LORA, {"steps": 0, "epochs": 1}],
  "ppo": [
    {**TOP, "data.stems": True},
    {**ADAPTED, "rewards": "", "policy_optimizer.schedule": "linear"},
  ],
  "grpo": [TOP, {**ADAPTED, "optimizer.schedule": "linear", "grpo.advantage": "leave_one_out"}],
  "bestofn": [{}, {"model.source": ""}],
  "sample": [{}, {"model.source": ""}],
}


def classes(cls):
  """A class of settings and those of its parts."""
  yield cls
  for kind in fields.kinds(cls).values():
    if fields.is_group(kind):
      yield from classes(kind)


@pytest.fixture
def reads(monkeypatch):
  """(class, field) of every field that is read, except by what reads all fields of an object."""
  seen = set()

  def recording(self, name):
    code = sys._getframe(1).f_code
    if name[0] != "_" and not code.co_filename.endswith(GENERAL) and code.co_name != "conflicts":
      seen.add((type(self), name))
    return object.__getattribute__(self, name)

  for presets in settings.PRESETS.values():
    for cls in classes(type(next(iter(presets.values())))):
      monkeypatch.setattr(cls, "__getattribute__", recording, raising=False)
  return seen


def unread(cls, seen, prefix=""):
  """The fields of a class and of its parts that are not among those that were read."""
  for name, kind in fields.kinds(cls).items():
    if fields.is_group(kind):
      yield from unread(kind, seen, f"{prefix}{name}.")
    elif (cls, name) not in seen:
      yield f"{prefix}{name}"


@pytest.mark.slow
@pytest.mark.parametrize("stage", RICH)
def test_a_stage_and_its_plan_read_every_field(stage, reads, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(prepare(tmp_path))
  for number, changes in enumerate(RUNS[stage]):
    options = options_of({**RICH[stage], **changes})
    words = [stage, f"--config={stage}:tiny", f"--workdir=run{number}", *options]
    assert cli.main(words) == 0, capsys.readouterr().err
  if stage not in ("bestofn", "sample"):
    plan = ["plan", f"--config={stage}:tiny", *ARITHMETIC]
    assert cli.main(plan) == 0, capsys.readouterr().err
  assert list(unread(type(settings.load(stage)), reads)) == []


def options_of(values):
  return [f"--config.{name}={fields.show(value)}" for name, value in values.items()]


@pytest.mark.parametrize(("stage", "room"), [("eval", "evals"), ("quickstart", "quickstart")])
def test_the_code_of_a_room_names_every_field(stage, room):
  """Evaluations and the quickstart take too long to run here: their code is read."""
  names = set()
  for path in [*(PACKAGE / room).rglob("*.py"), PACKAGE / "runs" / "origin.py"]:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute):
        names.add(node.attr)
      elif isinstance(node, ast.Constant):
        names.add(node.value)
  shared = {
    "stage",
    "seed",
    "model",
    "mesh",
    "data",
    "fsdp",
    "compiler",
  }  # that the commands and `running` read
  for field in fields.walk(settings.load(stage)):
    assert {*field.path.split(".")} <= names | shared, field.path


# --- one field from its file to the loss ---


def test_the_clip_of_ppo_reaches_its_loss(tmp_path, monkeypatch, capsys):
  """The loss is traced with it, and the second pass over the episodes measures with it.

  The steps are so small that no ratio leaves the default of 0.2.
  """
  monkeypatch.chdir(prepare(tmp_path))
  clips = []
  clipped_policy = losses.clipped_policy

  def recording(*args, clip):
    clips.append(clip)
    return clipped_policy(*args, clip=clip)

  monkeypatch.setattr(losses, "clipped_policy", recording)
  changes = {"ppo.clip": 1e-6, "ppo.epochs": 2, "iterations": 1, "ppo.minibatches": 1}
  words = ["ppo", "--config=ppo:tiny", "--workdir=run"]
  assert cli.main([*words, *options_of({**RICH["ppo"], **changes})]) == 0, capsys.readouterr().err
  assert set(clips) == {1e-6}
  row, of_held_out = metrics(tmp_path / "run")
  assert row["policy/clipfrac_avg"] > 0
  assert "eval/score" in of_held_out
