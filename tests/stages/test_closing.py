"""What SFT, DPO and the reward model leave in samples.jsonl at their end."""

import json

import numpy as np
from stage_runs import TUNE, WORDS, files, run, stop_after

from instructjax.data.records.records import Comparison
from instructjax.stages import closing


def samples(workdir):
  return [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]


def held_out(data, name):
  return [*files(data, name), f"--config.data.valid={data / name}.jsonl"]


def ranked(data, base, *options):
  """The options of a reward model on the comparisons, which is not normalised."""
  own = [*held_out(data, "comparisons"), "--config.data.demonstrations=", f"--model={base}"]
  return [*own, *TUNE, *options]


def test_sft_answers_held_out_prompts_beside_people(data, base, tmp_path, monkeypatch):
  options = [*held_out(data, "demonstrations"), f"--model={base}", *TUNE, "--config.samples=2"]
  assert run("sft", tmp_path / "run", *options) == 0
  rows = samples(tmp_path / "run")
  assert [row["prompt"] for row in rows] == ["say 0", "say 1"]
  assert [row["reference"] for row in rows] == WORDS[:2]
  assert {(row["stage"], row["iteration"]) for row in rows} == {("sft", 3)}
  assert all(isinstance(row["response"], str) for row in rows)
  # A run that is stopped and goes on leaves the same answers, once.
  with monkeypatch.context() as patch:
    stop_after(patch, 2)
    assert run("sft", tmp_path / "parts", *options) == 130
  assert not (tmp_path / "parts" / "samples.jsonl").exists()
  assert run("sft", tmp_path / "parts", *options) == 0
  assert samples(tmp_path / "parts") == rows


def test_a_reward_model_shows_its_best_and_its_worst(data, base, tmp_path):
  assert run("reward", tmp_path / "run", *ranked(data, base, "--config.samples=3")) == 0
  rows = samples(tmp_path / "run")
  assert [row["prompt"] for row in rows] == ["say 0", "say 1", "say 2"]
  for row in rows:
    assert row["scores"]["highest"] >= row["scores"]["lowest"]
    assert {*row["responses"].values()} <= {*WORDS}


def test_no_samples_where_none_are_wanted(data, base, tmp_path):
  assert run("reward", tmp_path / "run", *ranked(data, base, "--config.samples=0")) == 0
  assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_the_highest_and_the_lowest_of_each_prompt():
  records = [
    Comparison("p", ("a", "b"), (2, 1)),
    Comparison("q", ("c", "d", "e"), (), pairs=((0, 1),)),
    Comparison("r", ("f", "g"), (1, 2)),
  ]
  # A padded place scores highest and counts for nothing.
  scores = np.array([[1.0, -1.0, 9.0], [0.0, 3.0, 2.0], [0.0, 1.0, 9.0]])
  first, second = closing.best_and_worst(records, scores, 2)
  assert first["responses"] == {"highest": "a", "lowest": "b"}
  assert first["scores"] == {"highest": 1.0, "lowest": -1.0}
  assert first["ranks"] == {"highest": 2, "lowest": 1}
  assert second["responses"] == {"highest": "d", "lowest": "c"}
  assert second["ranks"] == {"highest": None, "lowest": None}


def test_the_reference_is_what_people_prefer():
  assert closing.reference_of(Comparison("p", ("a", "b", "c"), (2, 1, 1))) == "b"
  assert closing.reference_of(Comparison("p", ("a", "b"), (), pairs=((0, 1),))) is None
