"""Files and options of a user that are wrong: exit code 2 and one line with the place."""

import argparse
import subprocess
import sys

import pytest

from instructjax import settings
from instructjax.commands import cli
from instructjax.errors import UserError


@pytest.fixture
def refused(capsys):
  """Runs a command that must fail and returns its one line."""

  def call(*arguments) -> str:
    assert cli.main([*map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err.rstrip("\n")

  return call


GOOD = "from instructjax import settings\ndef get_config():\n  return settings.config_dict('sft')\n"


@pytest.mark.parametrize(
  ("code", "message"),
  [
    ("x = 1\n1 / 0\n", "importing it raised ZeroDivisionError: division by zero at {}:2"),
    ("import no_such_module\n", "No module named 'no_such_module' at {}:1"),
    (
      "def get_config(:\n",
      "importing it raised SyntaxError: invalid syntax (own.py, line 1) at {}:1",
    ),
    ("import sys\nsys.exit()\n", "importing it raised SystemExit: code for a run must not"),
    ("x = 1\n", "has no function get_config"),
    ("get_config = 3\n", "has no function get_config"),
    ("def get_config():\n  return 1 / 0\n", "raised ZeroDivisionError: division by zero at {}:2"),
    ("def get_config():\n  exit(0)\n", "get_config of {} raised SystemExit"),
    ("def get_config():\n  return 3\n", "get_config of {} returned int; it must return an ml_coll"),
    ("def get_config():\n  pass\n", "returned NoneType"),
    ("def get_config():\n  return {1: 2}\n", "config has a key of type int, not a text"),
    ("def get_config():\n  return {'stage': ['sft']}\n", "stage=['sft'] is none of pretrain"),
    (
      "def get_config():\n  return {'stage': 'sft', 'batch': open}\n",
      "config.batch is of type bui",
    ),
    ("def get_config(a, b):\n  pass\n", "raised TypeError: get_config() missing 2 required"),
    ("def get_config():\n  return {'stage': 'sft', 'batch': 10**5000}\n", "config.batch=a number"),
    ("x = '\0'\n", "importing it raised"),
  ],
)
def test_configuration_files(refused, tmp_path, code, message):
  path = tmp_path / "own.py"
  path.write_text(code)
  line = refused("config", path)
  assert message.format(path) in line and str(path) in line


def test_a_good_configuration_file_is_read(tmp_path):
  path = tmp_path / "own.py"
  path.write_text(GOOD)
  assert settings.load(str(path)) == settings.preset("sft")


@pytest.mark.parametrize(
  "value",
  ["1e999", "9" * 400, "9" * 5000, "{[]:1}", "-" * 5000, "(" * 5000, "0x", "nan", "1j", "", "\0"],
)
@pytest.mark.parametrize("field", ["batch", "optimizer.lr", "lora.rank", "top"])
def test_values_that_are_no_numbers(field, value):
  with pytest.raises(UserError, match=rf"^config\.{field}="):
    settings.override(settings.preset("sft"), [(field, value)])


def test_numbers_are_read_as_people_write_them():
  pairs = [("batch", "1e2"), ("steps", "1_000"), ("optimizer.lr", "3e-5"), ("seed", "0x10")]
  read = settings.override(settings.preset("sft"), pairs)
  assert (read.batch, read.steps, read.optimizer.lr, read.seed) == (100, 1000, 3e-5, 16)


def options(parser: argparse.ArgumentParser):
  """Yields the options of a parser and of those inside it."""
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for inner in action.choices.values():
        yield from options(inner)
    else:
      yield action


def test_every_number_of_every_command_has_a_range():
  commands = {name: command for name, command in cli.all_commands().items() if name != "data"}
  for action in options(cli.parser(commands, [])):
    assert action.type not in (int, float), action.option_strings


@pytest.mark.parametrize(
  "words",
  [
    ["bench", "--stage=sft", "--batch=-1"],
    ["bench", "--stage=sft", "--repeats=0"],
    ["label", "--port=70000"],
    ["label", "--lease=nan"],
    ["label", "--port=" + "9" * 5000],
    ["plan", "--config=sft", "--topology=v4", "--slices=0"],
  ],
)
def test_options_out_of_range_end_before_anything_runs(words, capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(words)
  assert stop.value.code == 2
  assert "number from" in capsys.readouterr().err.splitlines()[-1]


def test_a_device_that_is_not_there_is_one_line(monkeypatch, capsys):
  def run(args, fields):
    raise RuntimeError("Unable to initialize backend 'tpu': no TPU\nand more")

  monkeypatch.setitem(cli.__dict__, "all_commands", lambda: {"config": COMMAND._replace(run=run)})
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  assert cli.main(["config"]) == 2
  message = capsys.readouterr().err
  assert message.startswith("error: JAX_PLATFORMS=tpu: Unable to initialize backend 'tpu': no TPU;")
  assert message.count("\n") == 1


def test_code_that_ends_the_program_is_an_error(monkeypatch, capsys):
  def run(args, fields):
    sys.exit()

  monkeypatch.setitem(cli.__dict__, "all_commands", lambda: {"config": COMMAND._replace(run=run)})
  assert cli.main(["config"]) == 2
  assert f"sys.exit() was called at {__file__}:" in capsys.readouterr().err


COMMAND = cli.Command("", lambda command: None, lambda args, fields: None)


@pytest.mark.slow
def test_a_real_device_that_is_not_there(tmp_path):
  command = [sys.executable, "-m", "instructjax", "bench", "--stage=sft", "--repeats=1"]
  environment = {"JAX_PLATFORMS": "nonsense", "PATH": "", "HOME": str(tmp_path)}
  process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert process.returncode == 2
  assert "error: JAX_PLATFORMS=nonsense: Unable to initialize backend" in process.stderr


# --- evaluations ---


@pytest.mark.parametrize(
  ("option", "message"),
  [
    (
      "baseline=x",
      "config.baseline=x: no model has this name, so nothing could be compared; there ",
    ),
    ("folder=none", "config.folder=none: no such folder"),
    ("template=none.jinja", "config.template=none.jinja: no such file"),
  ],
)
def test_settings_of_an_evaluation_that_name_nothing(refused, tmp_path, option, message):
  words = ["--models=a=x,b=y", "--suite=nlp", f"--workdir={tmp_path / 'eval'}"]
  assert message in refused("eval", *words, f"--config.{option}")
