"""The GRPO stage on tiny files: what it leaves, goes on with, and refuses."""

import jax
import numpy as np
import pytest
from stage_runs import files, leaves, metrics, run, stop_after

from instructjax.runs import origin, report
from instructjax.settings.subjects import LoadedModelSettings

PLAIN = LoadedModelSettings(dtype="float32", remat="none")
SCORE = """
def letters(prompts, responses):
  return [text.count("e") * 1.0 for text in responses]


def length(prompts, responses):
  return [len(text) * 1.0 for text in responses]
"""
SIZE = [
  "--config.batch=4",
  "--config.n=4",
  "--config.iterations=3",
  "--config.grpo.minibatches=2",
  "--config.sampling.response=6",
  "--config.data.prompt=12",
]


@pytest.fixture(scope="module")
def options(data, base, tmp_path_factory):
  file = tmp_path_factory.mktemp("rewards") / "mine.py"
  file.write_text(SCORE)
  held_out = f"--config.data.valid={data / 'prompts.jsonl'}"
  letters, length = f"python:{file}:letters", f"python:{file}:length"
  reward = f"--config.rewards=min({letters}, {length}) + 0.1*{length}"
  return [*files(data, "prompts"), held_out, f"--model={base}", reward, *SIZE]


@pytest.fixture(scope="module")
def grpo_run(options, tmp_path_factory):
  folder = tmp_path_factory.mktemp("grpo") / "run"
  assert run("grpo", folder, *options) == 0
  return folder


def test_it_leaves_a_policy_and_measures_its_groups(grpo_run, base):
  rows = [row for row in metrics(grpo_run) if "loss/total" in row]
  assert len(rows) == 3
  for row in rows:
    assert 0 <= row["rollout/group_even"] <= 1 and row["objective/kl_coef"] == pytest.approx(0.04)
    assert not [name for name in row if "value" in name or name == "lr_value"]
  assert "eval/score" in metrics(grpo_run)[-1]
  before, after = (origin.open_model(str(folder), PLAIN, 0).params for folder in (base, grpo_run))
  assert (before["blocks"]["up"]["w"] != after["blocks"]["up"]["w"]).any()
  assert origin.kind_of(str(grpo_run)) == "policy"
  assert "GRPO, iteration by iteration" in report.write(grpo_run).read_text()
  assert all(0 < row["rollout/useful"] <= 1 for row in rows)


def test_rewards_of_an_ensemble_are_one_term(grpo_run):
  """No response has more letters than its length, so the least of the two is the letters."""
  for row in metrics(grpo_run):
    if "objective/scores" in row:
      letters, length = row["objective/score/letters"], row["objective/score/length"]
      assert row["objective/scores"] == pytest.approx(letters + 0.1 * length, rel=1e-5)


def test_a_stopped_run_goes_on_bit_for_bit(options, grpo_run, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    stop_after(patch, 2)
    assert run("grpo", tmp_path / "parts", *options) == 130
  assert run("grpo", tmp_path / "parts", *options) == 0
  assert metrics(tmp_path / "parts") == metrics(grpo_run)
  whole, parts = leaves(grpo_run, "grpo"), leaves(tmp_path / "parts", "grpo")
  for name in whole:
    np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


@pytest.mark.slow
def test_an_adapter_on_a_mesh_learns_as_on_one_device(options, tmp_path):
  lora = ["--config.lora.rank=2", "--config.trunk_dtype=float32"]
  rloo = ["--config.grpo.advantage=leave_one_out", "--config.grpo.kl=reward"]
  mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2"]
  assert run("grpo", tmp_path / "one", *options, *lora, *rloo) == 0
  assert run("grpo", tmp_path / "four", *options, *lora, *rloo, *mesh) == 0
  one, four = (origin.open_model(str(tmp_path / name), PLAIN, 0) for name in ("one", "four"))
  assert "adapter" in one.about
  for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_what_is_wrong_is_said(data, base, tmp_path, capsys):
  common = [*files(data, "prompts"), f"--model={base}"]
  assert run("grpo", tmp_path / "a", *common) == 2
  assert "config.rewards is empty" in capsys.readouterr().err
  assert run("grpo", tmp_path / "b", *common, "--config.n=1") == 2
  assert "config.n=1: " in capsys.readouterr().err
  assert run("grpo", tmp_path / "c", *common, "--config.grpo.minibatches=5") == 2
  assert "it has 32 episodes, which do not divide" in capsys.readouterr().err
