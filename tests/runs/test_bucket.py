"""Runs in a bucket: every stage from the one before, going on, and what an end leaves behind."""

import json

import numpy as np
import pytest
from orbax.checkpoint._src.path import gcs_utils
from stage_runs import TUNE, files, ppo, pretrain, run, stop_after

from instructjax.commands import cli
from instructjax.errors import UserError
from instructjax.rewards import spec
from instructjax.runs import checkpoint, origin, writers
from instructjax.runs.checkpoint import Checkpoints
from instructjax.settings import SFTSettings
from instructjax.system import growing, places

RUNS = "gs://bucket/runs"


def content(bucket, address):
  return bucket.file(f"{RUNS}/{address}").read_text()


def steps(bucket, name):
  lines = content(bucket, f"{name}/metrics.jsonl").splitlines()
  return [json.loads(line)["step"] for line in lines]


def test_all_stages_in_a_bucket(bucket, data, monkeypatch, capsys):
  """They are stopped and go on, and read each other's models."""
  base, judge, policy = f"{RUNS}/base", f"{RUNS}/reward", f"{RUNS}/ppo"
  with monkeypatch.context() as stopped:
    stop_after(stopped, 3)
    assert pretrain(data, base, "--config.checkpoint_every=2") == 130
  # The lines were waiting in memory, and are there after Ctrl-C.
  assert steps(bucket, "base") == [1, 2, 3]
  assert Checkpoints(f"{base}/checkpoints/pretrain").steps() == [3]
  assert pretrain(data, base, "--config.checkpoint_every=2") == 0
  assert sorted(set(steps(bucket, "base"))) == [1, 2, 3, 4, 5, 6]
  assert origin.kind_of(base) == "policy"

  options = [*files(data, "comparisons", "demonstrations"), f"--model={base}", *TUNE]
  assert run("reward", judge, *options, f"--config.data.valid={data / 'comparisons.jsonl'}") == 0
  assert origin.kind_of(judge) == "reward"

  with monkeypatch.context() as stopped:
    stop_after(stopped, 2)
    assert ppo(data, policy, base, judge) == 130
  assert "ppo: stopped at step 2 of 4; run the same command again" in capsys.readouterr().err
  assert ppo(data, policy, base, judge) == 0
  assert steps(bucket, "ppo") == [1, 2, 3, 4]

  assert run("sample", f"{RUNS}/sample", f"--model={policy}", *files(data, "prompts")) == 0
  assert len(content(bucket, "sample/samples.jsonl").splitlines()) == 8
  for name in ("base", "reward", "ppo"):
    names = {path.name for path in bucket.file(f"{RUNS}/{name}").iterdir()}
    assert {"config.json", "manifest.json"} <= names
    assert ".lock" not in names
  capsys.readouterr()
  assert cli.main(["report", f"--workdir={policy}"]) == 0
  assert capsys.readouterr().out.strip() == f"{policy}/report.html"
  assert "<html" in content(bucket, "ppo/report.html")


def test_the_lines_before_a_checkpoint_are_there_when_it_is_written(bucket, data, monkeypatch):
  lines = []
  save = Checkpoints.save

  def count_and_save(self, step, *arguments):
    if self.folder.name == "pretrain":
      lines.append((step, len(steps(bucket, "base"))))
    save(self, step, *arguments)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", count_and_save)
  assert pretrain(data, f"{RUNS}/base", "--config.checkpoint_every=2") == 0
  assert lines == [(2, 2), (4, 4), (6, 7)]  # with the evaluation at the end
  assert bucket.writes.count(f"{RUNS}/base/metrics.jsonl") == 3


def test_a_step_that_was_not_completed_is_no_step(bucket):
  folder = Checkpoints(f"{RUNS}/run/checkpoints/sft", keep=3)
  state = {"w": np.arange(4.0, dtype=np.float32)}
  folder.save(1, state)
  folder.wait()
  # What a process leaves that is killed while it writes step 2.
  half = bucket.file(f"{RUNS}/run/checkpoints/sft/2/state")
  half.mkdir(parents=True)
  (half / "manifest.ocdbt").write_bytes(b"half")
  again = Checkpoints(f"{RUNS}/run/checkpoints/sft", keep=3)
  assert again.steps() == [1]
  again.save(2, state)
  again.wait()
  assert again.steps() == [1, 2]
  restored, _ = again.restore(state, 2)
  assert restored["w"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_failed_write_says_what_is_kept(bucket, monkeypatch):
  folder = Checkpoints(f"{RUNS}/run/checkpoints/sft")
  state = {"w": np.zeros(2, np.float32)}
  folder.save(1, state)
  folder.wait()

  def refuse(address):
    raise ConnectionError("no route")

  monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", refuse)
  message = r"step 2 could not be written .*; step 1 is kept. Check your rights in the bucket"
  with pytest.raises(UserError, match=message):
    folder.save(2, state)
    folder.wait()


def test_an_address_where_no_run_is(bucket):
  for source in (f"{RUNS}/none", f"{RUNS}/none/model.gguf"):
    message = rf"{source}: there is no run; .*copy the folder here"
    with pytest.raises(UserError, match=message):
      origin.open_model(source, SFTSettings().model, 0)
    with pytest.raises(UserError, match=message):
      origin.open_reward_model(source, SFTSettings().model)


def test_rows_and_manifest_of_a_bucket(bucket):
  folder = places.directory(f"{RUNS}/run")
  draws = folder / writers.DRAWS
  assert writers.rows(draws) == []
  with writers.open_run(folder, {"lr": 0.1}):
    writers.append(draws, [{"a": 1}])
    assert not draws.exists()
    assert writers.rows(draws) == [{"a": 1}]  # whoever reads them gets all
    writers.keep(draws, [{"a": 2}])
    writers.append(draws, [{"a": 3}])
    writers.note(folder, data="abc")
  assert writers.rows(draws) == [{"a": 2}, {"a": 3}]
  assert writers.read_manifest(folder)["data"] == "abc"
  assert not growing._files
  message = "holds a run with config.lr=0.1, this one has config.lr=0.2"
  with pytest.raises(UserError, match=message), writers.open_run(folder, {"lr": 0.2}):
    pass


def test_a_reward_in_a_bucket_is_the_directory_of_a_run():
  for text, kind in (("python:/a/file.py:f", "python"), ("classifier:/a/b", "classifier")):
    (term,) = spec.parse(text)
    assert term.kind == kind
    assert not origin.is_run(text)
  (term,) = spec.parse("0.5*gs://bucket/run/reward")
  assert (term.kind, term.target, term.weight) == ("run", "gs://bucket/run/reward", 0.5)
