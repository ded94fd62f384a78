"""What PPO shows of itself: samples, held-out prompts, and a hook that stops it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from stage_runs import files, metrics, ppo, stop_after

from instructjax.runs.loop import OF_MACHINE
from instructjax.runs.report.ppo_metrics import BY_NAME
from instructjax.settings import load, replaced

LENGTH = """
def words(prompts, responses):
  return [len(text) for text in responses]

def none(prompts, responses):
  return [float("nan")] * len(responses)
"""
STOP = """
def far(step, metrics, state):
  if metrics["objective/kl"] > -1 and step >= 2:
    return f"KL is {metrics['objective/kl']:.1f} nats"
"""


def samples(workdir):
  return [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """Files with Python of a user."""
  folder = tmp_path_factory.mktemp("own")
  (folder / "mine.py").write_text(LENGTH)
  (folder / "stop.py").write_text(STOP)
  return folder


@pytest.fixture(scope="module")
def run_options(data, own):
  return [
    *files(data, "prompts"),
    f"--config.data.valid={data / 'prompts.jsonl'}",
    f"--config.gold=python:{own / 'mine.py'}:words",
    "--config.evaluate_every=2",
    "--config.sample_every=2",
    "--config.samples=3",
  ]


@pytest.fixture(scope="module")
def looked(data, init_run, reward_run, run_options, tmp_path_factory):
  folder = tmp_path_factory.mktemp("looked") / "ppo"
  assert ppo(data, folder, init_run, reward_run, *run_options) == 0
  return folder


def test_samples_are_those_that_were_trained_on(looked, data):
  rows = samples(looked)
  assert [row["iteration"] for row in rows] == [2, 2, 2, 4, 4, 4]
  prompts = [
    json.loads(line)["prompt"] for line in (data / "prompts.jsonl").read_text().splitlines()
  ]
  for row in rows:
    assert row["prompt"] in prompts
    assert isinstance(row["response"], str)
    assert np.isfinite([row["score"], row["kl"]]).all()


def test_all_samples_have_the_means_that_are_logged(
  looked, data, init_run, reward_run, run_options, tmp_path
):
  """Eight of eight: their mean score and KL are those of the iteration."""
  options = [*run_options, "--config.samples=8", "--config.sample_every=1"]
  assert ppo(data, tmp_path / "ppo", init_run, reward_run, *options) == 0
  rows = samples(tmp_path / "ppo")
  logged = {row["step"]: row for row in metrics(tmp_path / "ppo") if "objective/kl" in row}
  for iteration in (1, 2, 3, 4):
    of_iteration = [row for row in rows if row["iteration"] == iteration]
    assert len(of_iteration) == 8
    scores, kl = (np.mean([row[name] for row in of_iteration]) for name in ("score", "kl"))
    assert scores == pytest.approx(logged[iteration]["objective/scores"], abs=1e-3)
    assert kl == pytest.approx(logged[iteration]["objective/kl"], abs=1e-3)
  # To look at a run changes nothing in it.
  before = {row["step"]: row for row in metrics(looked) if "objective/kl" in row}
  assert logged == before


def test_held_out_prompts_are_answered_and_judged_twice(looked):
  rows = [row for row in metrics(looked) if "eval/score" in row]
  assert [row["step"] for row in rows] == [2, 4]
  for row in rows:
    assert 0 < row["eval/length"] <= 6
    assert 0 <= row["eval/ended"] <= 1
    assert row["eval/gold"] >= 0  # characters
    assert abs(row["eval/kl"]) < 50


def test_every_metric_of_a_run_is_on_the_page_and_the_page_has_no_other(looked):
  """Of the machine's own, a CPU has some; only a reward that abstains counts its abstentions."""
  lines = (looked / "metrics.jsonl").read_text().splitlines()
  written = {name for line in lines for name in json.loads(line)} - {"step", "stage"}
  assert written - {*BY_NAME} == set()
  absent = {name for name in BY_NAME if name not in written and not name.startswith(OF_MACHINE)}
  assert absent == {"rollout/abstained"}


def test_a_stopped_run_has_each_sample_once(
  looked, data, init_run, reward_run, run_options, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    stop_after(patch, 3)
    assert ppo(data, tmp_path / "ppo", init_run, reward_run, *run_options) == 130
  assert ppo(data, tmp_path / "ppo", init_run, reward_run, *run_options) == 0
  assert samples(tmp_path / "ppo") == samples(looked)
  assert metrics(tmp_path / "ppo") == metrics(looked)


def test_no_samples_where_none_are_wanted(data, init_run, reward_run, tmp_path):
  folder = tmp_path / "ppo"
  assert ppo(data, folder, init_run, reward_run, "--config.sample_every=0") == 0
  assert not (folder / "samples.jsonl").exists()


def test_a_gold_score_that_is_always_missing_is_unknown(
  data, init_run, reward_run, run_options, own, tmp_path
):
  options = [*run_options, f"--config.gold=python:{own / 'mine.py'}:none", "--config.iterations=1"]
  assert ppo(data, tmp_path / "ppo", init_run, reward_run, *options) == 0
  (row,) = [row for row in metrics(tmp_path / "ppo") if "eval/score" in row]
  assert row["eval/gold"] is None


def test_a_gold_reward_needs_held_out_prompts(data, init_run, reward_run, own, tmp_path, capsys):
  gold = f"--config.gold=python:{own / 'mine.py'}:words"
  assert ppo(data, tmp_path / "ppo", init_run, reward_run, gold) == 2
  error = capsys.readouterr().err
  assert "config.gold=" in error
  assert "name some in config.data.valid" in error


def test_a_hook_stops_ppo_by_its_kl(data, init_run, reward_run, own, tmp_path, capsys):
  """The model is left as after the last iteration, and the same command leaves it so."""
  folder, hook = tmp_path / "ppo", f"--hook={own / 'stop.py'}:far"
  assert ppo(data, folder, init_run, reward_run, hook) == 0
  assert f"ppo: stopped at step 2 of 4 by {own / 'stop.py'}:far: KL is" in capsys.readouterr().err
  assert [row["step"] for row in metrics(folder)] == [1, 2]
  assert (folder / "checkpoints" / "final" / "2").exists()
  stopped = json.loads((folder / "manifest.json").read_text())["stopped"]["ppo"]
  assert stopped["step"] == 2
  assert "far: KL is" in stopped["by"]
  assert ppo(data, folder, init_run, reward_run, hook) == 0
  assert "ppo: was stopped at step 2 of 4" in capsys.readouterr().err
  assert [row["step"] for row in metrics(folder)] == [1, 2]
  # For a command with the hook it is finished; one without goes on, and then it is stopped no more.
  assert ppo(data, folder, init_run, reward_run, hook, "--unless-finished") == 0
  said = capsys.readouterr().out
  assert f"{folder}: is finished already, at step 2, where a hook stopped it: {own}" in said
  assert "without --hook it goes on" in said
  assert ppo(data, folder, init_run, reward_run, "--unless-finished") == 0
  assert [row["step"] for row in metrics(folder)] == [1, 2, 3, 4]
  manifest = json.loads((folder / "manifest.json").read_text())
  assert (manifest["stopped"], manifest["finished"]["step"]) == ({}, 4)
  content = (own / "stop.py").read_bytes()
  assert manifest["hook"]["ppo"]["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ("--hook=nowhere.py:far", "nowhere.py: no such file"),
    ("--profile=3", "--profile=3: write START:STEPS"),
    ("--profile=3:9", "--profile=3:9: ppo has 4 steps"),
  ],
)
def test_what_cannot_look_on_is_one_line(
  option, message, data, init_run, reward_run, tmp_path, capsys
):
  assert ppo(data, tmp_path / "ppo", init_run, reward_run, option) == 2
  error = capsys.readouterr().err.rstrip().rpartition("error: ")[2]
  assert message in error
  assert "\n" not in error


def test_the_example_of_the_documentation_stops_a_run_from_python(
  data, init_run, reward_run, tmp_path, capsys
):
  """docs/monitoring.md: its function, and its call with these settings."""
  page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
  function, call = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
  function = function.replace("> 30", "> -1")
  changes = {
    "rl_init": str(init_run),
    "reward_model": str(reward_run),
    "data.prompts": str(data / "prompts.jsonl"),
    "data.prompt": 12,
    "sampling.response": 6,
    "iterations": 9,
    "batch": 8,
    "ppo.minibatches": 2,
    "ppo.ptx_coef": 0.0,
  }
  settings = replaced(load("ppo:tiny"), changes)
  exec(function + call, {"settings": settings, "workdir": tmp_path / "ppo"})
  assert "ppo: stopped at step 5 of 9 by stop_when_far: the KL is" in capsys.readouterr().err
  assert [row["step"] for row in metrics(tmp_path / "ppo")] == [1, 2, 3, 4, 5]
