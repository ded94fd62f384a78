"""The files of a run directory: what is written, what is dropped, and which runs may go on."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from instructjax.errors import UserError
from instructjax.runs import writers
from instructjax.runs.sinks import Sink


@pytest.fixture
def writer(tmp_path):
  with writers.open_run(tmp_path / "run", {"lr": 0.1}, seed=1) as run_writer:
    yield run_writer


def rows(tmp_path):
  return [
    json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  ]


def test_another_configuration_in_the_same_directory_is_refused(writer, tmp_path):
  with writers.open_run(
    tmp_path / "run", {"lr": 0.2}
  ):  # nothing was done yet: the settings may change
    pass
  with writers.open_run(tmp_path / "run", {"lr": 0.1}) as again:
    again.metrics(1, "a", {"loss": 1.0})
  message = r"run holds a run with config.lr=0.1, this one has config.lr=0.2: name another"
  with pytest.raises(UserError, match=message), writers.open_run(tmp_path / "run", {"lr": 0.2}):
    pass


def test_half_a_line_left_by_a_crash_is_dropped(writer, tmp_path):
  writer.metrics(1, "a", {"x": 1.0})
  with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 2, "sta')
  writer.rewind("a", 1)
  assert rows(tmp_path) == [{"step": 1, "stage": "a", "x": 1.0}]


def test_a_line_without_its_end_is_written_anew(writer, tmp_path):
  writer.metrics(1, "a", {"x": 1.0})
  with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 2, "stage": "a", "x": 2.0}')
  writer.rewind("a", 1)
  writer.metrics(2, "a", {"x": 2.0})
  assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_settings_that_change_no_number_may_change(writer, tmp_path):
  writer.metrics(1, "a", {"x": 1.0})
  with writers.open_run(tmp_path / "run", {"lr": 0.1, "mesh": {"data": 2}, "keep": 3}):
    pass
  assert json.loads((tmp_path / "run" / "config.json").read_text())["mesh"] == {"data": 2}
  prints = [writers.fingerprint({"lr": lr, "keep": keep}) for lr, keep in ((1, 1), (1, 2), (2, 1))]
  assert prints[0] == prints[1] != prints[2]


def test_notes_join_the_manifest(writer, tmp_path):
  writers.note(tmp_path / "run", fingerprints={"data": "abc"})
  manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
  assert manifest["fingerprints"] == {"data": "abc"}
  assert manifest["seed"] == 1


@pytest.mark.parametrize(("sink", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_names_the_extra(sink, package, tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, package, None)
  message = rf"needs the package {package}: run .* 'instructjax\[{sink}\]'"
  with pytest.raises(UserError, match=message), writers.open_run(tmp_path, {}, sinks=(sink,)):
    pass


def test_sinks_get_every_metric(tmp_path, monkeypatch):
  import contextlib

  seen = []

  @contextlib.contextmanager
  def sink(workdir, config):
    yield Sink(
      lambda step, stage, scalars: seen.append((step, stage, dict(scalars))),
      lambda step, stage, rows: seen.append((step, stage, list(rows))),
    )

  monkeypatch.setitem(writers.SINKS, "tensorboard", sink)
  with writers.open_run(tmp_path, {}, sinks=("tensorboard",)) as writer:
    writer.metrics(3, "a", {"loss": 1.5})
    writer.table(4, "a", [{"prompt": "p", "kl": 0.5}])
  assert seen == [(3, "a", {"loss": 1.5}), (4, "a", [{"prompt": "p", "kl": 0.5}])]


def samples(tmp_path):
  lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_samples_after_the_checkpoint_are_dropped_and_those_of_others_stay(writer, tmp_path):
  writer.samples([{"prompt": "of a test"}])
  writer.table(2, "ppo", [{"prompt": "p"}])
  writer.table(4, "ppo", [{"prompt": "q"}])
  writer.table(4, "other", [{"prompt": "r"}])
  writer.rewind("ppo", 3)
  assert samples(tmp_path) == [
    {"prompt": "of a test"},
    {"stage": "ppo", "iteration": 2, "prompt": "p"},
    {"stage": "other", "iteration": 4, "prompt": "r"},
  ]


class Events:
  """A SummaryWriter that keeps what it gets."""

  def __init__(self, folder=""):
    self.seen = []
    Events.last = self

  def add_text(self, *arguments):
    self.seen.append(arguments)

  def add_scalar(self, *arguments):
    self.seen.append(arguments)

  def close(self):
    self.seen.append("closed")


def test_tensorboard_shows_samples_as_a_table(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Events))
  with writers.open_run(tmp_path, {}, sinks=("tensorboard",)) as writer:
    writer.table(
      4, "ppo", [{"prompt": "a|b", "response": "1\n<b>"}, {"prompt": "", "response": "2"}]
    )
  text = "| prompt | response |\n| --- | --- |\n| a&#124;b | 1<br>&lt;b&gt; |\n|  | 2 |"
  assert Events.last.seen == [("ppo/samples", text, 4), "closed"]


def test_tensorboard_writes_into_the_bucket_of_the_run(bucket, monkeypatch):
  """It has a writer of its own for such an address."""
  folders = []

  def open_events(folder):
    folders.append(folder)
    return Events(folder)

  monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=open_events))
  with writers.open_run("gs://bucket/runs/a", {}, sinks=("tensorboard",)) as writer:
    writer.metrics(1, "sft", {"loss": 2.0})
  assert folders == ["gs://bucket/runs/a/tensorboard"]
  assert Events.last.seen == [("sft/loss", 2.0, 1), "closed"]


def test_wandb_shows_samples_as_a_table(tmp_path, monkeypatch):
  logged = []
  opened = SimpleNamespace(log=logged.append, finish=lambda: None)
  package = SimpleNamespace(
    init=lambda **options: opened, Table=lambda columns, data: (columns, data)
  )
  monkeypatch.setitem(sys.modules, "wandb", package)
  with writers.open_run(tmp_path, {}, sinks=("wandb",)) as writer:
    writer.table(4, "ppo", [{"prompt": "p", "score": 1.5}])
  assert logged == [{"ppo/samples": (["prompt", "score"], [["p", 1.5]]), "ppo/step": 4}]


@pytest.mark.parametrize("content", ["", '{"seed": 1', "[]"])
def test_a_manifest_that_was_cut_is_one_line(writer, tmp_path, content):
  path = tmp_path / "run" / "manifest.json"
  path.write_text(content)
  with pytest.raises(UserError, match=r"manifest.json: .*; move it away and run the same") as error:
    writers.note(tmp_path / "run", more=1)
  assert "\n" not in str(error.value)
  path.unlink()
  writers.note(tmp_path / "run", more=1)


def test_a_line_that_is_json_but_no_metrics_is_dropped(writer, tmp_path):
  writer.metrics(1, "a", {"x": 1.0})
  with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
    file.write('[]\n{"step": "a"}\n')
  writer.rewind("a", 1)
  assert [row["step"] for row in rows(tmp_path)] == [1]


def test_no_line_holds_a_number_that_json_does_not_have(writer, tmp_path):
  with pytest.raises(UserError, match=r"samples.jsonl: new line 2: scores.first is nan"):
    writer.samples([{"scores": {"first": 1.0}}, {"scores": {"first": float("nan")}}])
  assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_another_process_cannot_open_the_run(writer, tmp_path, monkeypatch):
  """What stands for the other process is this one without the memory of what it holds."""
  from instructjax.system import lock

  monkeypatch.setattr(lock, "_holders", {})
  message = r"run: process \d+ on .* is writing here"
  with pytest.raises(UserError, match=message), writers.open_run(tmp_path / "run", {"lr": 0.1}):
    pass
  # The processes of one command hold it together, by their first one.
  monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
  with writers.open_run(tmp_path / "run", {"lr": 0.1}) as silent:
    assert silent is writers.SILENT


@pytest.mark.parametrize("place", ["hdfs://bucket/run", "s3://bucket/run"])
def test_an_address_is_no_directory(place, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for workdir in (place, Path(place)):
    message = "give a path, or mount the bucket"
    with pytest.raises(UserError, match=message), writers.open_run(workdir, {}):
      pass
  assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_is_the_same_run_of_weights_and_biases(tmp_path, monkeypatch):
  calls = []
  run = SimpleNamespace(log=lambda row: None, finish=lambda: None)
  fake = SimpleNamespace(init=lambda **options: calls.append(options) or run)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  for folder in ("a", "a", "b"):
    with writers.open_run(tmp_path / folder, {}, sinks=("wandb",)):
      pass
  ids = [options["id"] for options in calls]
  assert ids[0] == ids[1] != ids[2]
  assert all(options["resume"] == "allow" for options in calls)
  (tmp_path / "a" / "wandb.json").write_text("{")
  opening = writers.open_run(tmp_path / "a", {}, sinks=("wandb",))
  with pytest.raises(UserError, match=r"wandb.json: cannot be read .*; delete it"), opening:
    pass


def test_a_run_of_the_first_version_is_refused_in_one_line(tmp_path):
  """Version 0.1 wrote no format into config.json; its settings had other fields."""
  config = {"stage": "sft", "seed": 0, "text_share": 0.0}
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "checkpoints").mkdir()
  message = "a run of another version of InstructJAX"
  with pytest.raises(UserError, match=message) as refusal, writers.open_run(tmp_path, config):
    pass
  assert "\n" not in str(refusal.value)
