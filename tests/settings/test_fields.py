"""Every field of every stage: its sentence, its range, and what a wrong value says."""

import subprocess
import sys
from typing import Literal, get_args, get_origin

import pytest

import instructjax
from instructjax import settings
from instructjax.commands import cli, config, stages
from instructjax.errors import UserError
from instructjax.runs import origin
from instructjax.settings import fields, subjects

PRESETS = [f"{stage}:{name}" for stage, presets in settings.PRESETS.items() for name in presets]
NUMBERS = ("-1", "0", "nan", "1e30", "word")


def fields_of(name):
  return list(fields.walk(settings.load(name)))


def holds(field, kind):
  """Returns whether a field may hold values of a type, alone or several of them."""
  options = fields.options(field.kind)
  inner = [get_args(option)[0] for option in options if get_origin(option) is tuple]
  return kind in (*options, *inner)


def is_choice(field):
  return any(get_origin(option) is Literal for option in fields.options(field.kind))


# --- what a field says of itself ---


@pytest.mark.parametrize("stage", settings.PRESETS)
def test_every_field_has_a_sentence_and_says_what_it_takes(stage):
  for field in fields_of(stage):
    assert field.sentence.endswith((".", ")")), (field.path, field.sentence)
    expectation = fields.expectation(field.kind, field.limits)
    if holds(field, int) or holds(field, float):
      assert "from" in expectation or "above" in expectation, field.path
    elif is_choice(field):
      assert "one of" in expectation, field.path
    else:
      assert "text" in expectation or expectation == "true or false", field.path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_back_from_its_config_dict(name):
  stage, _, preset = name.partition(":")
  loaded = settings.load(name)
  assert settings.from_dict(settings.config_dict(stage, preset).to_dict()) == loaded
  assert settings.from_dict(settings.to_dict(loaded)) == loaded


def test_the_shapes_of_the_settings_are_those_of_the_models():
  assert get_args(subjects.Shape) == tuple(origin.SHAPES)


# --- wrong values ---


def wrong_values(field):
  """Texts of which at least one is no value of the field."""
  if holds(field, int) or holds(field, float):
    return NUMBERS
  return ("maybe",) if holds(field, bool) else ("x",)


@pytest.mark.parametrize("name", [*settings.PRESETS, "pretrain:6b", "ppo:6b"])
def test_a_value_is_taken_or_its_field_is_named(name):
  """The message is one line with the name of the field and its range, its choices or its rival."""
  loaded = settings.load(name)
  for field in fields.walk(loaded):
    for text in wrong_values(field):
      try:
        changed = settings.override(loaded, [(field.path, text)])
      except UserError as error:
        assert_names(str(error), field)
      else:
        assert type(changed) is type(loaded)
        assert text not in ("nan", "word", "maybe"), field.path
        assert not is_choice(field), field.path


def assert_names(message, field):
  """A message is about a field: it says what it takes, or what contradicts it."""
  assert "\n" not in message
  if message.startswith(f"config.{field.path}="):
    expectation = fields.expectation(field.kind, field.limits)
    assert f"{expectation} is expected" in message or len(message.split(": ", 1)[1]) > 20
    return
  group, _, name = field.path.rpartition(".")
  assert message.startswith(f"config.{group}") and name in message, message


@pytest.mark.parametrize("wrong", [[1], {"a": 1}, {"b": None}, float("inf"), b"x"], ids=str)
@pytest.mark.parametrize("stage", settings.PRESETS)
def test_no_field_takes_a_value_of_another_type_from_python(stage, wrong):
  loaded = settings.load(stage)
  for field in fields.walk(loaded):
    if wrong == [1] and get_origin(field.kind) is tuple and holds(field, float):
      continue
    with pytest.raises(UserError) as error:
      settings.replaced(loaded, {field.path: wrong})
    assert f"config.{field.path}=" in str(error.value)


# --- a file of one's own ---

OWN = """
from instructjax.configs import ppo

def get_config():
  config = ppo.get_config("6b")
  config.ppo.clip = 0.1
  config.kl.coef = 0.05
  config.data.prompts = "mine.jsonl"
  return config
"""


def test_a_file_of_ones_own_changes_three_fields_of_a_preset(tmp_path, capsys):
  path = tmp_path / "my_ppo.py"
  path.write_text(OWN)
  changes = {"ppo.clip": 0.1, "kl.coef": 0.05, "data.prompts": "mine.jsonl"}
  assert settings.load(str(path)) == settings.replaced(settings.load("ppo:6b"), changes)
  workdir = tmp_path / "run"
  # Prompts are read before models are opened, so that this file is what the command misses first.
  assert cli.main(["ppo", f"--config={path}", f"--workdir={workdir}"]) == 2
  assert "mine.jsonl: no such file" in capsys.readouterr().err
  assert cli.main(["sft", f"--config={path}"]) == 2
  assert "is for stage 'ppo', not 'sft'" in capsys.readouterr().err


def test_a_misspelt_field_of_ones_own_file_is_named(tmp_path):
  path = tmp_path / "my_ppo.py"
  path.write_text(OWN.replace("config.ppo.clip", "config.ppo.clipp"))
  with pytest.raises(UserError, match=r"config\.ppo\.clipp: no such field; did you mean 'clip'"):
    settings.load(str(path))


# --- the command line ---


@pytest.mark.parametrize("name", ["ppo:6b", "eval:paper", "sft:tiny"])
def test_config_prints_every_field_with_its_value_and_sentence(name, capsys):
  assert cli.main(["config", name]) == 0
  printed = capsys.readouterr().out.splitlines()
  assert max(len(line) for line in printed) <= config.WIDTH
  beginnings = [line.split()[:2] for line in printed if line.startswith("config.")]
  expected = [
    [f"config.{field.path}", *config.quoted(field.value).split()][:2] for field in fields_of(name)
  ]
  assert beginnings == expected
  words = " ".join(" ".join(printed).split())
  for field in fields_of(name):
    assert field.sentence.split()[0] in words


def test_config_shows_what_the_command_line_sets(capsys):
  assert cli.main(["config", "ppo:6b", "--config.ppo.clip=0.1"]) == 0
  line = next(line for line in capsys.readouterr().out.splitlines() if "config.ppo.clip " in line)
  assert line.split()[1] == "0.1"


@pytest.mark.parametrize("command", [*stages.STAGES, "eval", "quickstart"])
def test_help_lists_the_fields(command, capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main([command, "--help"])
  assert stop.value.code == 0
  words = capsys.readouterr().out.split()
  assert {f"config.{field.path}" for field in fields_of(command)} <= {*words}


def test_version(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(["--version"])
  assert stop.value.code == 0
  assert capsys.readouterr().out == f"instructjax {instructjax.__version__}\n"


def test_settings_need_neither_jax_nor_config_dicts():
  code = "import sys, instructjax.settings as s; s.load('ppo:6b'); sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
