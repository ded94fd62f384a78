"""The DPO stage on tiny files: what it leaves, goes on with, and refuses."""

import json

import numpy as np
import pytest
from stage_runs import TUNE, files, leaves, metrics, run, stop_after

from instructjax.data.batches import pipeline
from instructjax.data.records import records
from instructjax.runs import origin, report
from instructjax.settings.subjects import LoadedModelSettings
from instructjax.stages import dpo as dpo_stage

PLAIN = LoadedModelSettings(dtype="float32", remat="none")


def options(data, base):
  held_out = f"--config.data.valid={data / 'comparisons.jsonl'}"
  return [*files(data, "comparisons"), held_out, f"--model={base}", *TUNE, "--config.epochs=2"]


@pytest.fixture(scope="module")
def dpo_run(data, base, tmp_path_factory):
  folder = tmp_path_factory.mktemp("dpo") / "run"
  assert run("dpo", folder, *options(data, base)) == 0
  return folder


def test_it_leaves_a_policy_that_prefers_what_people_do(dpo_run, base):
  rows = metrics(dpo_run)
  losses = [row["loss"] for row in rows if "loss" in row]
  assert losses[0] == pytest.approx(np.log(2), abs=1e-5)
  assert losses[-1] < losses[0]
  assert rows[-1]["eval/accuracy_low"] <= rows[-1]["eval/accuracy"] <= 1
  before, after = (origin.open_model(str(folder), PLAIN, 0).params for folder in (base, dpo_run))
  assert (before["blocks"]["up"]["w"] != after["blocks"]["up"]["w"]).any()
  assert origin.kind_of(str(dpo_run)) == "policy"
  page = report.write(dpo_run).read_text()
  assert "DPO: loss" in page
  assert "DPO: eval/accuracy" in page


def test_it_leaves_its_accuracy_with_an_interval(dpo_run):
  measured = json.loads((dpo_run / "results.json").read_text())["dpo"]
  accuracy, last = measured["pair_accuracy"], metrics(dpo_run)[-1]
  assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
  assert accuracy["n"] >= accuracy["clusters"] > 1
  for name in ("value", "low", "high"):
    suffix = "" if name == "value" else f"_{name}"
    assert accuracy[name] == pytest.approx(last[f"eval/accuracy{suffix}"])
  page = report.write(dpo_run).read_text()
  assert "The implicit reward orders" in page and ">Implicit reward</h2>" in page
  assert "reward model" not in page.lower()


def test_a_stopped_run_goes_on_bit_for_bit(data, base, dpo_run, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    stop_after(patch, 2)
    assert run("dpo", tmp_path / "parts", *options(data, base)) == 130
  assert run("dpo", tmp_path / "parts", *options(data, base)) == 0
  assert metrics(tmp_path / "parts") == metrics(dpo_run)
  whole, parts = leaves(dpo_run, "dpo"), leaves(tmp_path / "parts", "dpo")
  for name in whole:
    np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


@pytest.mark.parametrize(
  "changes",
  [
    ["--config.top=1", "--config.data.stems=true", "--config.trunk_dtype=float32"],
    ["--config.lora.rank=2", "--config.trunk_dtype=float32"],
  ],
)
def test_a_part_of_the_model_starts_from_the_same_reference(data, base, tmp_path, changes):
  """Top blocks and an adapter: the first loss is log 2, so the reference is the start."""
  assert run("dpo", tmp_path / "run", *options(data, base), *changes) == 0
  rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
  assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
  assert rows[-1]["loss"] < rows[0]["loss"]
  about = origin.open_model(str(tmp_path / "run"), PLAIN, 0).about
  assert ("adapter" in about) == ("lora" in changes[0])


def test_completions_are_learnt_and_cut_without_an_end(data, base):
  """The prompt carries no loss, and a cut completion does not end."""
  model = origin.open_model(str(base), PLAIN, 0)
  comparisons = records.read(data / "comparisons.jsonl", "comparison")[:2]
  groups = pipeline.comparisons(comparisons, model.tokenizer, prompt=12, response=3, end_cut=False)
  run = dpo_stage.packable_groups(groups)[0]
  prompt = model.tokenizer.encode(comparisons[0].prompt)
  assert (run.learnt.completion == 0).sum() == 3
  assert run.learnt.before[0] == len(prompt) - 1
  assert model.tokenizer.eos[0] not in run.ids


def test_what_is_wrong_is_said(base, tmp_path, capsys):
  assert run("dpo", tmp_path / "a", "--config.data.comparisons=", f"--model={base}") == 2
  assert "config.data.comparisons is empty" in capsys.readouterr().err
  assert run("dpo", tmp_path / "b", "--config.beta=0") == 2
  assert "config.beta=0: " in capsys.readouterr().err
