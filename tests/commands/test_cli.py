"""The command line starts at once, reads configurations and overrides, and runs the commands."""

import json
import os
import subprocess
import sys
import time
import typing
from pathlib import Path

import jax
import pytest

from instructjax import runs, settings
from instructjax.commands import cli, options, stages
from instructjax.errors import UserError
from instructjax.settings import fields
from instructjax.system import processes

COMMANDS = [
  *stages.STAGES,
  "rm_cv",
  "quickstart",
  "config",
  "report",
  "eval",
  "lm_eval",
  "card",
  "baseline",
  "export",
  "bench",
  "plan",
  "data",
  "label",
  "tokenizer",
]


def test_help_starts_at_once_and_imports_nothing_slow():
  code = (
    "import sys; from instructjax.commands import cli\n"
    "try: cli.main(['--help'])\n"
    "except SystemExit: pass\n"
    "slow = {'jax', 'numpy', 'flax', 'ml_collections', 'rich', 'orbax'} & set(sys.modules)\n"
    "sys.exit(f'imported {slow}' if slow else 0)"
  )
  start = time.perf_counter()
  run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert time.perf_counter() - start < 2  # about 0.05 s on an idle machine
  assert run.returncode == 0, run.stderr
  assert all(name in run.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main([command, "--help"])
  assert stop.value.code == 0
  assert "usage: instructjax" in capsys.readouterr().out


# --- settings ---


def test_a_configuration_is_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert settings.load("sft:1.3b").batch == 32
  assert settings.load("configs/sft.py:175b").batch == 8
  assert settings.load("sft").stage == "sft"
  (tmp_path / "mine.py").write_text("def get_config():\n  return {'stage': 'sft', 'batch': 3}\n")
  assert settings.load("mine.py").batch == 3
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "sft.py").write_text(
    "def get_config():\n  return {'stage': 'sft', 'batch': 4}\n"
  )
  assert settings.load("sft").batch == 4


@pytest.mark.parametrize(
  ("name", "text", "value"),
  [
    ("optimizer.lr", "1e-5", 1e-5),
    ("optimizer.lr", "1", 1.0),
    ("batch", "64", 64),
    ("batch", "1e2", 100),
    ("loss_on_prompt", "true", True),
    ("loss_on_prompt", "False", False),
    ("model.source", "a:b=c", "a:b=c"),
    ("model.source", "12", "12"),
    ("top", "6", 6),
    ("top", "none", None),
    ("optimizer.clip", "0.5", 0.5),
    ("optimizer.clip", "none", None),
  ],
)
def test_overrides_take_the_type_of_the_field(name, text, value):
  changed = settings.override(settings.load("sft:1.3b"), [(name, text)])
  held = fields.getattr_path(changed, name)
  assert held == value
  assert type(held) is type(value)


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    (
      "optimizer.learning",
      "1",
      "config.optimizer.learning: no such field; there are lr, schedule, warmup, ",
    ),
    ("optimiser.lr", "1", "config.optimiser.lr: no such field; did you mean 'optimizer'?"),
    ("batchs", "1", "config.batchs: no such field; did you mean 'batch'?"),
    ("optimizer", "1", "config.optimizer holds the fields lr, schedule, warmup, "),
    ("batch.x", "1", "config.batch.x: config.batch is a value and holds no fields"),
    (
      "batch",
      "many",
      "config.batch=many: a whole number from 1 to 1,000,000,000 is expected",
    ),
    ("batch", "1.5", "config.batch=1.5: a whole number from 1 to 1,000,000,000 is expected"),
    ("batch", "true", "config.batch=true: a whole number from 1"),
    ("optimizer.lr", "fast", "config.optimizer.lr=fast: a number above 0 and up to 1 is expected"),
    (
      "loss_on_prompt",
      "1",
      "config.loss_on_prompt=1: true or false is expected",
    ),
    ("batch", "none", "config.batch=none: a whole number from 1"),
  ],
)
def test_wrong_overrides_are_named(name, text, message):
  with pytest.raises(UserError) as error:
    settings.override(settings.load("sft:1.3b"), [(name, text)])
  assert str(error.value).startswith(message)


def test_the_stages_of_training_are_those_with_settings_of_training():
  training = set(typing.get_args(settings.TrainingSettings))
  of_command_line = {name for name in stages.STAGES if type(settings.load(name)) in training}
  assert set(runs.TRAINING) == of_command_line


def test_words_of_the_command_line_become_assignments():
  assert settings.assignments(["--config.a.b=1", "--config.c", "x=y"]) == [
    ("a.b", "1"),
    ("c", "x=y"),
  ]
  with pytest.raises(UserError, match=r"--confg\.a=1: no such option"):
    settings.assignments(["--confg.a=1"])
  with pytest.raises(UserError, match=r"--config\.a: give a value"):
    settings.assignments(["--config.a", "--config.b=1"])


def test_a_command_without_a_configuration_takes_no_field_of_one(capsys, tmp_path):
  assert cli.main(["report", f"--workdir={tmp_path}", "--config.batch=3"]) == 2
  assert "--config.batch: this command reads no configuration" in capsys.readouterr().err


def test_model_is_short_for_a_field(monkeypatch, tmp_path):
  from instructjax.stages import ppo, selection

  seen = []
  monkeypatch.setattr(options, "prepare_jax", lambda: None)
  monkeypatch.setattr(selection, "run", lambda *args: seen.append(args))
  monkeypatch.setattr(ppo, "run", lambda *args: seen.append(args))
  assert (
    cli.main(["sft", "--model=x", f"--workdir={tmp_path}", "--writer=wandb", "--config.seed=3"])
    == 0
  )
  assert cli.main(["ppo", "--config=ppo:1.3b", "--model=y"]) == 0
  (sft, workdir, sinks, _), (ppo, _, none, _) = seen
  assert (sft.model.source, sft.seed, workdir, sinks) == ("x", 3, tmp_path, ("wandb",))
  assert (ppo.rl_init, ppo.batch, none) == ("y", 512, ())


def test_compiled_programs_are_kept_in_the_users_cache(monkeypatch, tmp_path):
  import jax

  monkeypatch.setenv("INSTRUCTJAX_CACHE", str(tmp_path))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  before = jax.config.jax_compilation_cache_dir
  try:
    options.prepare_jax()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


# --- commands ---


def test_data_check_counts_and_lists_problems(tmp_path, capsys):
  file = tmp_path / "d.jsonl"
  file.write_text('{"prompt": "a", "completion": "b"}\n')
  assert cli.main(["data", "check", str(file), "--kind=demonstration"]) == 0
  assert capsys.readouterr().out.strip().endswith("1 demonstration, no problem")
  file.write_text('{"prompt": "a"}\n{"prompt": "", "completion": "b"}\n')
  assert cli.main(["data", "check", str(file), "--kind=demonstration"]) == 2
  error = capsys.readouterr().err
  assert "d.jsonl:1: completion" in error
  assert "d.jsonl:2: prompt" in error


def test_data_tone_writes_the_files_that_the_presets_name(tmp_path, capsys):
  assert cli.main(["data", "tone", f"--out={tmp_path}"]) == 0
  tiny = [settings.load(f"{stage}:tiny") for stage in stages.STAGES]
  values = [field.value for config in tiny for field in fields.walk(config)]
  named = {str(value).removeprefix("data/") for value in values if str(value).startswith("data/")}
  assert named <= {path.name for path in tmp_path.iterdir()}
  assert "text_train.jsonl" in capsys.readouterr().out


def test_tokenizer_train(tmp_path, capsys):
  (tmp_path / "t.txt").write_text("a few words to train on, again and again\n" * 30)
  files = [f"--input={tmp_path / 't.txt'}", f"--out={tmp_path / 'm.model'}"]
  assert cli.main(["tokenizer", "train", *files, "--vocab-size=300"]) == 0
  assert "300 pieces" in capsys.readouterr().out


def test_report_writes_the_page(tmp_path, capsys):
  (tmp_path / "metrics.jsonl").write_text(
    json.dumps({"step": 1, "stage": "sft", "loss": 2.0}) + "\n"
  )
  assert cli.main(["report", f"--workdir={tmp_path}"]) == 0
  assert (tmp_path / "report.html").is_file()
  assert "report.html" in capsys.readouterr().out


def test_of_several_processes_the_first_writes_the_report(tmp_path, monkeypatch, capsys):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "sft", "loss": 2.0}\n')
  joined = []
  monkeypatch.setattr(processes, "join", joined.append)
  index = 1
  monkeypatch.setattr(jax, "process_index", lambda: index)
  words = ["report", f"--workdir={tmp_path}", "--distributed"]
  assert cli.main(words) == 0
  assert capsys.readouterr().out == ""
  assert not (tmp_path / "report.html").exists()
  index = 0
  assert cli.main(words) == 0
  assert (tmp_path / "report.html").is_file()
  assert joined == ["auto", "auto"]


def test_bench_gets_its_options(monkeypatch):
  from instructjax.commands import bench as bench_command
  from instructjax.plan import bench

  seen = []
  monkeypatch.setattr(bench_command, "prepare_jax", lambda: None)
  monkeypatch.setattr(bench, "main", lambda b, *, as_json: seen.append((b, as_json)))
  assert (
    cli.main(
      ["bench", "--stage=ppo", "--batch=8", "--epochs=2", "--frozen-dtype=bfloat16", "--json"]
    )
    == 0
  )
  assert cli.main(["bench", "--stage=sft", "--text=a.jsonl"]) == 0
  assert seen == [
    (bench.Bench(stage="ppo", batch=8, epochs=2, frozen_dtype="bfloat16"), True),
    (bench.Bench(stage="sft", text="a.jsonl"), False),
  ]


def test_quickstart_gets_its_settings(monkeypatch, tmp_path):
  from instructjax import quickstart

  seen = []
  monkeypatch.setattr(options, "prepare_jax", lambda: None)
  monkeypatch.setattr(
    quickstart, "main", lambda config, workdir, sinks: seen.append((config, workdir))
  )
  assert cli.main(["quickstart", "--seed=3", f"--workdir={tmp_path}", "--config.top=none"]) == 0
  assert cli.main(["quickstart", "--fast"]) == 0
  (full, workdir), (fast, default) = seen
  assert (full.seed, full.top, workdir, default) == (3, None, str(tmp_path), "runs/quickstart-fast")
  assert fast.iterations <= full.iterations


def test_ctrl_c_anywhere_is_130(monkeypatch, capsys):
  def stop(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(options, "prepare_jax", stop)
  assert cli.main(["sft"]) == 130
  assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("words", [["--help"], ["config", "ppo"], ["data", "check", "none.jsonl"]])
def test_an_output_that_is_closed_ends_a_command_quietly(words, monkeypatch):
  """As `head` closes it once it has what it wants; the second of these goes on to write."""
  read_end, write_end = os.pipe()
  os.close(read_end)
  # The words of the third go to stderr, which is the same pipe (2>&1).
  with os.fdopen(write_end, "w") as out, os.fdopen(os.dup(write_end), "w") as err:
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(words) == 141
    monkeypatch.undo()


def test_a_table_whose_reader_has_gone_ends_a_command_quietly(monkeypatch, tmp_path):
  """rich makes an end of the program of it."""
  (tmp_path / "p.jsonl").write_text('{"prompt": "p"}\n')
  read_end, write_end = os.pipe()
  os.close(read_end)
  with os.fdopen(write_end, "w") as out, Path(os.devnull).open("w") as err:
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["data", "stats", str(tmp_path / "p.jsonl")]) == 141
    monkeypatch.undo()
