"""Every bad input: exit code 2, one clear line with the place and the remedy, no traceback, nothing
half written.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from stage_runs import TUNE, files, leaves, pretrain

from instructjax.commands import cli
from instructjax.errors import UserError
from instructjax.runs import checkpoint
from instructjax.stages import wiring


@pytest.fixture
def refused(capsys, tmp_path):
  """Runs a command that must fail and returns its message."""

  def call(*arguments) -> str:
    assert cli.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err + out
    before, sign, message = ("\n" + err).partition(
      "\nerror: "
    )  # a slow machine prints progress before it
    assert sign and "error" not in before.lower()
    return message.rstrip("\n")

  return call


def one_line(message: str) -> str:
  assert "\n" not in message
  return message


@pytest.fixture
def sft(refused, tmp_path):
  """An SFT command on the given lines (bytes) of demonstrations, which must fail and leave no run
  directory.
  """

  def call(*options: str, lines: str | None = '{"prompt": "a", "completion": "b"}\n' * 8) -> str:
    file = tmp_path / "d.jsonl"
    if lines is not None:
      file.write_text(lines)
    workdir = tmp_path / "run"
    message = refused(
      "sft", f"--workdir={workdir}", f"--config.data.demonstrations={file}", *TUNE, *options
    )
    assert not workdir.exists()
    return message

  return call


@pytest.mark.parametrize(
  ("lines", "parts"),
  [
    (None, ["d.jsonl: no such file"]),
    ('{"prompt": "a"}\n', ["d.jsonl:1: completion"]),
    (
      '{"prompt": "a", "completion": "b"}\n{"prompt": \n',
      ["d.jsonl:2: not JSON", "write one object a line"],
    ),
    (
      '{"prompt": "a", "completion": " "}\n',
      ["d.jsonl:1: completion: empty", "take the record out"],
    ),
    (
      '{"prompt": "a", "completion": 3}\n',
      ["d.jsonl:1: completion: text is expected, this is a number"],
    ),
    ('{"prompt": "a", "completion": "b", "labler": "x"}\n', ["d.jsonl: labler is no field"]),
    ("", ["config.data.demonstrations: ", "d.jsonl:1: an empty file, no records"]),
    (
      '{"prompt": "longer than twelve", "completion": "b"}\n',
      ["d.jsonl:1: prompt: 18 tokens, the limit is 12"],
    ),
  ],
)
def test_demonstrations(sft, lines, parts):
  message = one_line(sft(lines=lines))
  assert all(part in message for part in parts), message


def test_several_problems_are_listed_at_once(sft):
  assert len(sft(lines='{"prompt": "a"}\n{"prompt": ""}\n').splitlines()) >= 3


@pytest.mark.parametrize(
  ("row", "part"),
  [
    ({"completions": ["b"], "ranks": [1]}, "d.jsonl:1: completions"),
    ({"completions": list("abcdefghij"), "ranks": list(range(1, 11))}, "d.jsonl:1: completions"),
    ({"completions": ["b", "c"], "ranks": [1]}, "d.jsonl:1: ranks"),
    ({"completions": ["b", "c"], "ranks": [1, 0]}, "d.jsonl:1: ranks"),
    ({"completions": ["b", ""], "ranks": [1, 2]}, "d.jsonl:1: completions[1]: empty"),
  ],
)
def test_comparisons(refused, tmp_path, row, part):
  (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "a"} | row) + "\n")
  file = f"--config.data.comparisons={tmp_path / 'd.jsonl'}"
  message = refused("reward", f"--workdir={tmp_path / 'run'}", file, *TUNE)
  assert part in one_line(message)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ("--config.optimizer.epss=1", "config.optimizer.epss: no such field; did you mean 'eps'?"),
    (
      "--config.batch=big",
      "config.batch=big: a whole number from 1 to 1,000,000,000 is expected",
    ),
    ("--batch=3", "--batch=3: no such option"),
    (
      "--config.micro=3",
      "config.batch=4 does not divide by config.micro x devices=3; choose a multiple of it",
    ),
    ("--config.mesh.data=3", "config.batch=4 does not divide by config.micro x devices=3"),
    (
      "--config.mesh.data=99",
      "config.mesh.data=99, config.mesh.fsdp=1, config.mesh.model=1 take 99 devices",
    ),
    (
      "--config.data.response=500",
      "config.data.prompt + config.data.response is 512 tokens, the model's context is 256",
    ),
    ("--config.top=7", "cannot train the top 7 blocks of a model with 2"),
    ("--config.model.shape=7B", "config.model.shape=7B: one of tiny, gpt-5m, "),
    (
      "--config.model.shape=gpt-5m",
      "config.model.tokenizer is empty: a model with random weights needs a tokenizer",
    ),
    ("--config.model.tokenizer=no.json", "no.json: no such tokenizer"),
    ("--config.data.spelling=xml", "config.data.spelling='xml': known are native"),
    (
      "--config.optimizer.schedule=step",
      "config.optimizer.schedule=step: one of cosine, constant, linear is expected",
    ),
    ("--model=missing.gguf", "missing.gguf"),
    ("--config.data.demonstrations=", "config.data.demonstrations is empty; give a JSONL file"),
  ],
)
def test_settings(sft, option, message):
  assert message in one_line(sft(option))


def test_unknown_configurations(refused):
  assert "no such configuration" in one_line(refused("sft", "--config=nothing"))
  assert "no such preset; there are tiny, 1.3b" in one_line(refused("sft", "--config=sft:7b"))
  assert "is for stage 'ppo', not 'sft'" in one_line(refused("sft", "--config=ppo:tiny"))


@pytest.mark.parametrize("place", ["here", "localhost:1,2", "localhost:1,two,0"])
def test_other_processes(refused, place):
  message = one_line(refused("sft", f"--distributed={place}"))
  assert message.startswith(
    f"--distributed={place}: give HOST:PORT,PROCESSES,INDEX, for example localhost:1234,2,0"
  )


def test_tokenizer_with_more_ids_than_the_model(sft, tmp_path):
  from instructjax.data.tokens import sentencepieces

  texts = ["a few words to train on, again and again"] * 30
  sentencepieces.train(texts, tmp_path / "t.model", sentencepieces.Training(vocab_size=300))
  message = one_line(sft(f"--config.model.tokenizer={tmp_path / 't.model'}"))
  assert "the tokenizer has 300 ids but the model only 257" in message


def test_damaged_model_files(sft, tmp_path):
  (tmp_path / "m.gguf").write_bytes(b"GGUF but no more")
  assert "m.gguf" in one_line(sft(f"--model={tmp_path / 'm.gguf'}"))
  (tmp_path / "folder").mkdir()
  assert "folder" in one_line(sft(f"--model={tmp_path / 'folder'}"))


# --- runs ---


def test_runs_of_the_wrong_kind(refused, data, tmp_path, sft_run, reward_run, base):
  new, prompts = f"--workdir={tmp_path / 'run'}", files(data, "prompts", "text")
  ppo = ["ppo", new, *prompts, "--config.data.prompt=12"]
  assert "config.rl_init is empty" in one_line(refused(*ppo))
  assert "config.reward_model is empty" in one_line(refused(*ppo, f"--model={base}"))
  message = one_line(refused(*ppo, f"--model={base}", f"--config.reward_model={sft_run}"))
  assert "this run left a policy model, a reward model is needed" in message
  message = one_line(
    refused("sft", new, f"--model={reward_run}", *files(data, "demonstrations"), *TUNE)
  )
  assert "this run left a reward model, a policy model is needed" in message
  message = one_line(refused(*ppo, f"--model={base}", f"--config.reward_model={tmp_path}"))
  assert "not the directory of a finished" in message
  (tmp_path / "stopped" / "checkpoints").mkdir(parents=True)
  message = one_line(
    refused("sft", new, f"--model={tmp_path / 'stopped'}", *files(data, "demonstrations"), *TUNE)
  )
  assert "this run is not finished; run its command again" in message
  assert not (tmp_path / "run").exists()


def test_ratios_that_would_begin_at_integers(refused, tmp_path):
  ppo = ["ppo", f"--workdir={tmp_path / 'run'}", "--config.ppo.old_logp=sampler"]
  for name in ("weights", "cache"):
    message = one_line(refused(*ppo, f"--config.sampling.{name}=int8"))
    assert f"config.ppo.old_logp=sampler: config.sampling.{name}=int8 samples from a" in message


def test_ppo_batches_that_do_not_divide(refused, tmp_path):
  ppo = ["ppo", f"--workdir={tmp_path / 'run'}", "--config.batch=6"]
  assert "config.batch=6: it does not divide by config.ppo.minibatches=4" in one_line(refused(*ppo))
  message = one_line(refused(*ppo, "--config.ppo.minibatches=2", "--config.ppo.micro=2"))
  assert "a minibatch=3 does not divide by config.ppo.micro x devices=2" in message


def test_other_settings_or_data_in_the_same_directory(refused, data, base, tmp_path):
  before = (base / "metrics.jsonl").read_bytes()
  size = [
    "--config.data.length=24",
    "--config.batch=4",
    "--config.steps=6",
    "--config.optimizer.warmup=2",
  ]
  valid = f"--config.data.valid={data / 'text.jsonl'}"
  same = ["pretrain", f"--workdir={base}", *files(data, "text"), valid, *size]
  message = one_line(refused(*same, "--config.optimizer.lr=0.5"))
  assert (
    "holds a run with config.optimizer.lr=0.003, this one has config.optimizer.lr=0.5: name another"
    in message
  )
  text = (data / "text.jsonl").read_text()
  try:
    (data / "text.jsonl").write_text(text.replace("fox", "cow"))
    assert "config.fingerprints.text=" in one_line(refused(*same))
  finally:
    (data / "text.jsonl").write_text(text)
  assert (base / "metrics.jsonl").read_bytes() == before


def test_checkpoint_of_another_model(refused, data, base, tmp_path):
  """A run directory with the checkpoints of another run: the first leaf that differs is named."""
  import shutil

  import jax

  from instructjax import models, optim, steps
  from instructjax.runs import origin

  lm = models.build(origin.SHAPES["gpt-5m"])
  shutil.copytree(base, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  narrow = {name: leaf for name, leaf in lm.init(jax.random.key(0)).items() if name == "norm"}
  state = steps.init_state(jax.random.key(0), narrow, optim.adamw(1e-3))
  checkpoints = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints" / "pretrain")
  checkpoints.save(3, state, {"stage": "pretrain"})
  checkpoints.wait()
  size = [
    "--config.data.length=24",
    "--config.batch=4",
    "--config.steps=6",
    "--config.optimizer.warmup=2",
  ]
  valid = f"--config.data.valid={data / 'text.jsonl'}"
  message = refused("pretrain", f"--workdir={tmp_path / 'run'}", *files(data, "text"), valid, *size)
  assert "3: 'params/blocks/" in one_line(message)
  assert (
    "belongs to another model or configuration: use its own settings, or another directory"
    in message
  )


def test_full_disk_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch, capsys):
  import orbax.checkpoint as ocp

  save = ocp.CheckpointManager.save

  def full(self, step, *args, **kwargs):
    if step == 4:
      raise OSError(28, "No space left on device")
    return save(self, step, *args, **kwargs)

  monkeypatch.setattr(ocp.CheckpointManager, "save", full)
  assert pretrain(data, tmp_path / "run", "--config.checkpoint_every=2") == 2
  message = one_line(capsys.readouterr().err.rstrip("\n"))
  assert (
    "the checkpoint of step 4 could not be written (No space left on device); step 2 is kept"
    in message
  )
  assert checkpoint.Checkpoints(tmp_path / "run" / "checkpoints" / "pretrain").latest() == 2
  monkeypatch.undo()
  assert pretrain(data, tmp_path / "run", "--config.checkpoint_every=2") == 0


def test_nan_stops_with_the_step_and_keeps_the_good_state(data, tmp_path, capsys, monkeypatch):
  """The range of config.optimizer.lr makes no such rates, so that they are put in its place.

  The first update is sound. The second one makes weights that float32 cannot hold, of a finite
  loss, and no checkpoint of it is left.
  """
  rates = jnp.array([1e-3] + [jnp.inf] * 5, jnp.float32)
  monkeypatch.setattr(wiring, "learning_rate", lambda *args: lambda count: rates[count])
  assert pretrain(data, tmp_path / "run", "--config.checkpoint_every=1") == 2
  message = one_line(capsys.readouterr().err.rstrip("\n"))
  assert "is not finite after the update of step 2; the finite state of step 1 is kept" in message
  assert message.startswith("error: pretrain: 'params/")
  assert "Lower the learning rate" in message
  checkpoints = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints" / "pretrain")
  assert checkpoints.steps() == [1]
  for name, array in leaves(tmp_path / "run", "pretrain").items():
    assert np.isfinite(array).all(), name
  assert not (tmp_path / "run" / "checkpoints" / "final").exists()


def test_the_last_update_of_a_run_is_looked_at(data, tmp_path, capsys, monkeypatch):
  """Every loss is finite, and there is no later one that would show the last update."""
  rates = jnp.array([1e-3] * 5 + [jnp.inf], jnp.float32)
  monkeypatch.setattr(wiring, "learning_rate", lambda *args: lambda count: rates[count])
  assert pretrain(data, tmp_path / "run", "--config.checkpoint_every=0") == 2
  *_, message = capsys.readouterr().err.splitlines()  # a slow machine says how far it is before
  assert "is not finite after the update of step 6; no state was saved before" in message
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_directory_that_cannot_be_written(refused, data, tmp_path):
  (tmp_path / "file").write_text("")
  message = refused(
    "sft", f"--workdir={tmp_path / 'file' / 'run'}", *files(data, "demonstrations"), *TUNE
  )
  assert "cannot be written" in one_line(message)


@pytest.mark.parametrize(
  "command",
  [
    ["pretrain", "--workdir=s3://bucket/run"],
    ["quickstart", "--workdir=s3://bucket/run"],
    ["eval", "--models=a=b", "--suite=bias", "--workdir=gs://bucket/run"],
    ["lm_eval", "--model=a", "--tasks=b", "--workdir=gs://bucket/run"],
    ["report", "--workdir=s3://bucket/run"],
    ["export", "--model=a", "--out=gs://bucket/run"],
    ["data", "tone", "--out=gs://bucket/run"],
    ["label", "--db=gs://bucket/labels.sqlite"],
  ],
)
def test_an_address_is_no_place_to_write_to(refused, tmp_path, monkeypatch, command):
  monkeypatch.chdir(tmp_path)
  message = one_line(refused(*command))
  assert "//bucket/" in message
  assert "give a path, or mount the bucket and give its path" in message
  assert not list(tmp_path.iterdir())


def test_a_directory_in_which_another_command_writes(refused, data, tmp_path, monkeypatch):
  """What stands for the other process is this one without the memory of what it holds."""
  from instructjax.system import lock

  with lock.holding(tmp_path / "run"), monkeypatch.context() as patch:
    patch.setattr(lock, "_holders", {})
    for stage, kind in (("sft", "demonstrations"), ("sample", "prompts")):
      message = refused(stage, f"--workdir={tmp_path / 'run'}", *files(data, kind), *TUNE[:1])
      assert "run: process " in one_line(message)
      assert "is writing here; wait until it ends, or name another --workdir" in message
    assert [path.name for path in (tmp_path / "run").iterdir()] == [lock.NAME]


def test_report_of_nothing(refused, tmp_path):
  assert "holds nothing to report" in one_line(refused("report", f"--workdir={tmp_path}"))
  assert "is no directory" in one_line(refused("report", f"--workdir={tmp_path / 'none'}"))


def test_corrupt_download(tmp_path, monkeypatch):
  from instructjax.system import download

  monkeypatch.setenv("INSTRUCTJAX_CACHE", str(tmp_path))
  (tmp_path / "x").write_bytes(b"damaged")
  with pytest.raises(UserError, match=r"corrupt download, sha256 .* instead of"):
    download._check(tmp_path / "x", "0" * 64, "m.gguf of p 1")
