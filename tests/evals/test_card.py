"""A model card holds the numbers of files and the limitations, and says what was not measured."""

import json

import jax
import pytest

from instructjax import settings
from instructjax.commands.cli import main
from instructjax.errors import UserError
from instructjax.evals import card
from instructjax.runs import origin

ESTIMATE = {"value": 0.25, "low": 0.125, "high": 0.5, "n": 40}
METRIC = {
  "name": "all satisfied",
  "better": 1,
  "percent": True,
  "decimals": 3,
  "paper": {"ptx": [0.207, 0.096, 0.178]},
}
RTE = {
  "name": "accuracy",
  "better": 1,
  "percent": False,
  "decimals": 3,
  "paper": {"ptx": [0.5, 0.6, 0.7]},
}


def task(metric, about=""):
  rows = {name: {metric["name"]: ESTIMATE} for name in ("sft", "ptx")}
  less = {"ptx": {metric["name"]: ESTIMATE | {"value": -0.01, "low": -0.02, "high": 0.0}}}
  return {
    "about": about,
    "n": 40,
    "metrics": [metric],
    "models": rows,
    "differences": less,
    "slices": {},
    "cut": {},
  }


MADE = {"models": ["sft", "ptx"], "settings": {"baseline": "sft"}}
RESULTS = {
  "models": {
    name: {"source": f"runs/{name}", "weights": "abcdef0123456789", "parameters": 1234567}
    for name in ("sft", "ptx")
  },
  "suites": {
    "behaviours": MADE
    | {"tasks": {"behaviours/constraints": task(METRIC, "a stand-in | of ours")}, "together": {}},
    "nlp": MADE | {"tasks": {"RTE few-shot": task(RTE)}, "together": {}},
  },
  "notes": [],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "ptx"
  config = settings.load("ppo")
  (folder).mkdir()
  (folder / "config.json").write_text(json.dumps(settings.to_dict(config)))
  (folder / "manifest.json").write_text(
    json.dumps({"seed": 3, "device": "cpu", "versions": {"jax": "9.9"}})
  )
  rows = [
    {"step": step, "stage": "ppo", "loss/total": value} for step, value in ((1, 2.0), (2, 1.5))
  ]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  model = origin.open_model("", settings.load("eval").model, 0)
  origin.finish(folder, 2, jax.device_get(model.params), model.about, "policy")
  results = folder.parent / "eval"
  results.mkdir()
  (results / "results.json").write_text(json.dumps(RESULTS))
  return folder


@pytest.mark.parametrize(
  "name, head", [("ptx@6b", "| paper, 6B |"), ("ptx@135m", "| paper |"), ("ptx", "| paper |")]
)
def test_one_number_of_the_paper_has_its_size_above(name, head):
  results = json.loads(json.dumps(RESULTS).replace('"ptx"', f'"{name}"'))
  lines = list(card._evaluation(results, name))
  assert sum(line.startswith("| task |") and line.endswith(head) for line in lines) == 2


def test_the_numbers_are_those_of_the_files(run, capsys):
  out = run.parent / "docs" / "card.md"
  options = [f"--model={run}", f"--eval={run.parent / 'eval'}", "--name=ptx", f"--out={out}"]
  assert main(["card", *options]) == 0 and str(out) in capsys.readouterr().out
  text = out.read_text()
  lines = text.splitlines()
  cells = "25.0 % (12.5 to 50.0) | -1.0 % (-2.0 to 0.0) | 20.7 / 9.6 / 17.8 %"  # in one unit
  assert f"| behaviours/constraints | all satisfied | 40 | {cells} |" in lines
  assert (
    "| RTE few-shot | accuracy | 40 | 0.250 (0.125 to 0.500) | -0.010 (-0.020 to 0.000) | 0.500 / "
    "0.600 / 0.700 |" in lines
  )
  assert (
    "| loss/total | 1.5 |" in lines
    and "| jax | 9.9 |" in lines
    and "| parameters | 1,234,567 |" in lines
  )
  assert "- a stand-in | of ours" in lines  # a list, not a table
  for limitation, _ in card.LIMITATIONS:
    assert f"- **{limitation}**" in lines
  after = lambda start: lines[
    next(i for i, line in enumerate(lines) if line.startswith(f"- **{start}")) + 1
  ]
  assert (
    after("They lose track")
    == "  behaviours/constraints: all satisfied 25.0 % (12.5 to 50.0), n 40."
  )
  assert after("They hedge") == "  Not measured: `instructjax eval --suite=behaviours`."
  assert (
    after("They still write toxic") == "  Not measured: `instructjax eval --suite=toxicity,bias`."
  )
  assert str(run.parent) not in text  # no path of the machine


def test_an_unknown_name_and_an_unfinished_run_are_refused(run, tmp_path):
  with pytest.raises(UserError, match="results of sft, ptx, not of --name=other"):
    card.write(run, run.parent / "eval", "other", tmp_path / "a.md")
  with pytest.raises(UserError, match="not finished"):
    card.write(tmp_path, run.parent / "eval", "ptx", tmp_path / "a.md")
  with pytest.raises(UserError, match="results of nobody"):
    card.write(run, tmp_path, "ptx", tmp_path / "a.md")


def test_an_unknown_difference_is_a_dash():
  """As between two models of which one never answered: the rate of what it answered is unknown."""
  metric = {"name": "right of answered", "percent": True, "decimals": 1}
  unknown = {"value": None, "low": None, "high": None, "n": 0}
  assert card._number(metric, unknown) == "–"
  assert card._number(metric, {"value": 0.5, "low": None, "high": None, "n": 2}) == "50.0 %"
