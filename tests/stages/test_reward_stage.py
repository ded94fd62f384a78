"""What the reward stage measures on held-out comparisons, and the scale that it leaves."""

import json

import numpy as np
import pytest
from stage_runs import TUNE, files, metrics, run

from instructjax.errors import UserError
from instructjax.runs import origin, report
from instructjax.settings.subjects import LoadedModelSettings
from instructjax.stages import reward as reward_stage

NOTHING_ELSE = ["--config.data.demonstrations=", "--config.data.valid="]
PLAIN = LoadedModelSettings(dtype="float32", remat="none")


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def compared(prompt, labeler, ranks):
  words = ["good", "bad", "fine"][: len(ranks)]
  return {"prompt": prompt, "completions": words, "ranks": ranks, "labeler": labeler}


@pytest.fixture(scope="module")
def labeled_run(data, base, tmp_path_factory):
  """A run whose held-out comparisons have labelers; all are normalised to the deviation 1 too."""
  folder = tmp_path_factory.mktemp("labeled")
  train = [compared(f"say {i}", "ana", [1, 2]) for i in range(8)]
  valid = [compared(f"say {i}", "ana", [1, 2, 3]) for i in range(4)]
  valid += [compared(f"say {i}", "ben", [1, 3, 2]) for i in range(4)]
  valid += [compared("say 9", "ben", [1, 2])]
  options = [
    f"--config.data.comparisons={write(folder / 'train.jsonl', train)}",
    f"--config.data.valid={write(folder / 'valid.jsonl', valid)}",
    *files(data, "demonstrations"),
    f"--model={base}",
    *TUNE,
    "--config.normalise=mean_and_std",
  ]
  assert run("reward", folder / "run", *options) == 0
  return folder / "run"


def test_a_run_leaves_its_accuracy_with_an_interval_by_k_and_by_labeler(labeled_run):
  measured = json.loads((labeled_run / "results.json").read_text())["rm"]
  accuracy = measured["pair_accuracy"]
  assert accuracy["n"] == 4 * 3 + 4 * 3 + 1
  assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
  assert {name: part["n"] for name, part in measured["by_k"].items()} == {"2": 1, "3": 24}
  assert {name: part["n"] for name, part in measured["by_labeler"].items()} == {
    "ana": 12,
    "ben": 13,
  }
  pools = {name: part["n"] for name, part in measured["by_pool"].items()}
  assert pools == {"training labelers": 12, "held-out labelers": 13}
  # Of each of four prompts two of three pairs are ordered alike.
  assert measured["references"]["labelers"]["value"] == pytest.approx(2 / 3)
  assert sum(row["n"] for row in measured["calibration"]) == 25
  last = metrics(labeled_run)[-1]
  assert last["eval/accuracy"] == pytest.approx(accuracy["value"])
  assert last["eval/accuracy_low"] == pytest.approx(accuracy["low"])
  assert last["eval/log_loss"] > 0


def test_the_headline_stands_beside_chance_and_length(labeled_run):
  """Of 25 pairs, 9 prefer the longer text: good, bad and fine have 4, 3 and 4 letters."""
  measured = json.loads((labeled_run / "results.json").read_text())["rm"]
  line = reward_stage.describe(measured)
  value = f"held-out accuracy {measured['pair_accuracy']['value']:.3f} ("
  assert line.startswith(value) and " of 25 pairs; chance 0.500, the longer one wins 0." in line
  page = report.write(labeled_run).read_text()
  longer = 100 * measured["references"]["longer"]["value"]
  assert ") of held-out pairs as people do; chance 50.0" in page
  assert f"the longer one wins {longer:.1f}" in page


def test_the_page_shows_them(labeled_run):
  page = report.write(labeled_run).read_text()
  for words in (
    "held-out labelers",
    "K = 3",
    "ben",
    "two labelers",
    "best possible",
    "Calibration",
  ):
    assert words in page, words


def test_the_scale_before_and_after_is_noted_and_left(labeled_run, data):
  noted = json.loads((labeled_run / "manifest.json").read_text())["normalisation"]
  assert noted["demonstrations"] == 12
  assert noted["before"]["gain"] == 1
  assert noted["after"]["gain"] == pytest.approx(1 / noted["before"]["std"])
  judge = origin.open_reward_model(str(labeled_run), PLAIN)
  assert float(judge.head["b"]) == pytest.approx(noted["after"]["bias"])
  from instructjax.data.batches import pipeline
  from instructjax.data.records import records

  demonstrations = records.read(data / "demonstrations.jsonl", "demonstration")
  rows = pipeline.demonstrations(demonstrations, judge.tokenizer, prompt=12, response=12)
  params = {"lm": judge.params, "head": judge.head}
  scores = reward_stage.demonstration_scores(judge.lm, params, rows, 1)
  assert scores.mean() == pytest.approx(0, abs=1e-5)
  assert scores.std() == pytest.approx(1, abs=1e-4)


def test_scores_without_a_deviation_cannot_have_the_deviation_1():
  params = {"head": {"w": np.ones(2), "b": np.float32(0)}}
  with pytest.raises(UserError, match=r"config\.normalise=mean_and_std: the 3 demonstrations all"):
    reward_stage.normalise("mean_and_std", params, np.ones(3))


def test_pairs_that_all_tie_leave_the_accuracy_unknown(data, base, tmp_path, capsys):
  tied = write(tmp_path / "tied.jsonl", [compared(f"say {i}", "ana", [1, 1]) for i in range(4)])
  options = [
    *files(data, "comparisons"),
    "--config.data.demonstrations=",
    f"--config.data.valid={tied}",
    f"--model={base}",
    *TUNE,
  ]
  assert run("reward", tmp_path / "run", *options) == 0
  assert metrics(tmp_path / "run")[-1]["eval/accuracy"] is None
  assert "the accuracy is unknown" in capsys.readouterr().out
  measured = json.loads((tmp_path / "run" / "results.json").read_text())["rm"]
  unknown = {"value": None, "low": None, "high": None, "n": 0, "clusters": 0}
  assert measured["pair_accuracy"] == unknown
  assert 'id="ranking"' not in report.write(tmp_path / "run").read_text()


# --- held out of the training data ---


def test_a_share_is_held_out_by_the_first_message(base, tmp_path, capsys):
  rows = []
  for i in range(12):
    question = [{"role": "user", "content": f"q {i}"}]
    more = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    rows += [compared(question, "ana", [1, 2]), compared(question + more, "ana", [1, 2])]
  options = [
    f"--config.data.comparisons={write(tmp_path / 'chats.jsonl', rows)}",
    *NOTHING_ELSE,
    f"--model={base}",
    *TUNE,
    "--config.data.prompt=50",
    "--config.data.held_out=0.3",
  ]
  assert run("reward", tmp_path / "run", *options) == 0
  output = capsys.readouterr()
  measured = json.loads((tmp_path / "run" / "results.json").read_text())["rm"]
  held_out = measured["pair_accuracy"]["n"]
  assert held_out and held_out % 2 == 0
  line = (
    f"config.data.held_out=0.3: {held_out} records are held out, {24 - held_out} are trained on"
  )
  assert line in output.err and "held-out records begin as" not in output.err
  assert "nothing was held out" not in output.out


def test_what_is_shared_with_a_held_out_file_is_said(data, base, tmp_path, capsys):
  valid = [compared(" SAY 3", "ana", [1, 2]), compared("say 99", "ana", [1, 2])]
  options = [
    *files(data, "comparisons"),
    "--config.data.demonstrations=",
    f"--config.data.valid={write(tmp_path / 'valid.jsonl', valid)}",
    f"--model={base}",
    *TUNE,
  ]
  assert run("reward", tmp_path / "run", *options) == 0
  line = "config.data.valid: 1 of 2 held-out records begin as one that is trained on does"
  assert line in capsys.readouterr().err


def test_a_run_that_holds_nothing_out_offers_to(data, base, tmp_path, capsys):
  options = [*files(data, "comparisons"), *NOTHING_ELSE, f"--model={base}", *TUNE]
  assert run("reward", tmp_path / "run", *options) == 0
  assert "config.data.held_out=0.05 holds out a part of the data" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--config.data.held_out=0.1", "--config.data.valid=x"], "config.data.valid=x is measured on"),
    (["--config.data.held_out=0.0001"], "none of 8 records would be held out"),
    (["--config.data.held_out=0.9999"], "every one of 8 records would be held out"),
  ],
)
def test_shares_that_cannot_be_held_out(data, base, tmp_path, capsys, options, message):
  common = [*files(data, "comparisons"), *NOTHING_ELSE, f"--model={base}", *TUNE]
  assert run("reward", tmp_path / "run", *common, *options) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["sft", "rl_init", "dpo"])
def test_other_stages_hold_out_in_the_same_way(data, base, tmp_path, capsys, stage):
  names = ["comparisons"] if stage == "dpo" else ["demonstrations"]
  options = [*files(data, *names), *(files(data, "text") if stage == "rl_init" else [])]
  options += [f"--model={base}", *TUNE, "--config.data.valid=", "--config.data.held_out=0.3"]
  assert run(stage, tmp_path / "run", *options) == 0
  assert "config.data.held_out=0.3: " in capsys.readouterr().err
  name = "eval/accuracy" if stage == "dpo" else "eval/nll"
  assert metrics(tmp_path / "run")[-1][name] is not None


# --- the loss that settings name ---


def losses_of(data, base, workdir, *options):
  """The losses of a run from one start."""
  common = [*files(data, "comparisons"), *NOTHING_ELSE, f"--model={base}", *TUNE]
  assert run("reward", workdir, *common, *options) == 0
  return [row["loss"] for row in metrics(workdir)]


def test_the_loss_of_a_stage_is_the_one_that_its_settings_name(data, base, tmp_path):
  choices = {
    "pairs": [],
    "best": ["--config.loss=best_of_k"],
    "centered": ["--config.centering=0.5"],
    "margin": ["--config.margin=1"],
    "by_rank": ["--config.margin=1", "--config.margin_by=rank"],
  }
  first = {
    name: losses_of(data, base, tmp_path / name, *options)[0] for name, options in choices.items()
  }
  assert len(set(first.values())) == len(choices), first
  assert first["pairs"] < first["margin"] < first["by_rank"]


def test_a_margin_by_rating_needs_ratings(data, base, tmp_path, capsys):
  options = ["--config.margin=1", "--config.margin_by=rating"]
  common = [*files(data, "comparisons"), *NOTHING_ELSE, f"--model={base}", *TUNE]
  assert run("reward", tmp_path / "none", *common, *options) == 2
  assert "comparisons.jsonl:1: ratings: config.margin_by=rating needs" in capsys.readouterr().err
  rows = [
    compared(f"say {i}", "ana", [1, 2, 3])
    | {"ratings": [{"overall": 7}, {"overall": 4}, {"overall": 3}]}
    for i in range(4)
  ]
  rated = write(tmp_path / "rated.jsonl", rows)
  by_rating, by_pair = (
    losses_of(
      data,
      base,
      tmp_path / f"{kind}",
      *options[:1],
      f"--config.margin_by={kind}",
      f"--config.data.comparisons={rated}",
    )
    for kind in ("rating", "pair")
  )
  assert by_rating[0] > by_pair[0]


def test_fields_of_a_loss_that_say_nothing_are_refused(data, tmp_path, capsys):
  for option, words in (
    ("--config.margin_by=rank", "config.margin_by=rank: there is no margin to count"),
    ("--config.normalise=mean_and_std", "config.normalise=mean_and_std: give demonstrations"),
  ):
    assert run("reward", tmp_path, option, "--config.data.demonstrations=") == 2
    assert words in capsys.readouterr().err
  assert run("reward", tmp_path, "--config.margin=1", "--config.loss=best_of_k") == 2
  assert "config.margin=1: the choice of the best of K has no pairs" in capsys.readouterr().err
