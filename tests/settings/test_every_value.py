"""Every field of every stage with odd values, through the command line on tiny data.

A value that the settings take must matter: the run leaves something else than the run without it,
or it ends with one line that names the field. `test_fields.py` has the values that are refused.
"""

import json
import shutil
from importlib import import_module

import pytest
from rich_settings import RICH, prepare
from stage_runs import leaves, metrics, written

from instructjax import settings
from instructjax.commands import cli
from instructjax.errors import UserError
from instructjax.settings import fields

ODD = ("-1", "0", "nan", "1e30", "x", "maybe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return prepare(tmp_path_factory.mktemp("values"))


def once_each():
  """{stage: its fields}, with a field of settings that stages share at the first of them alone."""
  seen, wanted = set(), {}
  for stage in RICH:
    loaded = settings.load(stage)
    wanted[stage] = []
    for field in fields.walk(loaded):
      parent, _, name = field.path.rpartition(".")
      owner = type(fields.getattr_path(loaded, parent)) if parent else type(loaded)
      if (owner, name) not in seen and name != "stage":
        seen.add((owner, name))
        wanted[stage].append(field)
  return wanted


FIELDS = once_each()
# What acts on texts that an untrained model does not write: `test_sample.py` tests it.
UNSEEN = {"data.separator"}
# What changes the work and never the result: `test_rollout.py` holds it to that.
WORK = {"sampling.halvings"}


def accepted(config, field):
  """The odd values that the settings take for a field, and that are not what it has already."""
  for text in ("x",) if field.kind is str else ODD:
    try:
      changed = settings.override(config, [(field.path, text)])
    except UserError:
      continue
    if changed != config:
      yield text


def run(stage, workdir, values, capsys):
  """(exit code, what the command printed on stderr)."""
  shutil.rmtree(workdir, ignore_errors=True)
  options = [f"--config.{name}={fields.show(value)}" for name, value in values.items()]
  code = cli.main([stage, f"--config={stage}:tiny", f"--workdir={workdir}", *options])
  return code, capsys.readouterr().err


def left(workdir, stage):
  """What a run left: its lines, the names of its checkpoints, and the last parameters."""
  names = ("samples.jsonl", "draws.jsonl")
  lines = {name: (workdir / name).read_text() for name in names if (workdir / name).exists()}
  lines["metrics"] = metrics(workdir) if (workdir / "metrics.jsonl").exists() else []
  steps = sorted(path.name for path in workdir.glob(f"checkpoints/{stage}/*"))
  params = {}
  if (workdir / "checkpoints").exists():
    params = {name: leaf.tobytes() for name, leaf in leaves(workdir, "final").items()}
  return lines, steps, params


@pytest.mark.slow
@pytest.mark.parametrize("stage", RICH)
def test_a_value_that_is_taken_matters_or_is_named(stage, folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  config = settings.replaced(settings.load(f"{stage}:tiny"), RICH[stage])
  code, error = run(stage, folder / "run", RICH[stage], capsys)
  assert code == 0, error
  baseline = left(folder / "run", stage)
  wrong = []
  for field in FIELDS[stage]:
    for text in accepted(config, field):
      case = f"config.{field.path}={text}"
      code, error = run(stage, folder / "run", {**RICH[stage], field.path: text}, capsys)
      last = error.rstrip("\n").rpartition("error: ")[2]
      is_unseen = field.path in WORK or (stage == "bestofn" and field.path in UNSEEN)
      if code == 0 and left(folder / "run", stage) == baseline and not is_unseen:
        wrong.append(f"{case}: nothing changed")
      elif code == 2 and ("\n" in last or not last.startswith(f"config.{field.path}")):
        wrong.append(f"{case}: {last}")
  assert not wrong, "\n".join(wrong)


# --- evaluations ---

SQUAD_ROW = {
  "id": "1",
  "title": "T",
  "context": "C",
  "question": "Q?",
  "answers": {"text": ["C"], "answer_start": [0]},
}
QUESTION = {
  "type": "Adversarial",
  "category": "Law",
  "question": "Q?",
  "best_answer": "a",
  "correct_answers": ["a"],
  "incorrect_answers": ["b"],
}
EVALUATED = {
  "nlp.squad": "squad.jsonl",
  "truthfulqa.data": "questions.jsonl",
  "preference.prompts": "prompts.jsonl",
  "toxicity.prompts": "toxicity.jsonl",
  "toxicity.scorer": "python:mine.py:share",
}
SUITES = ("nlp", "truthfulqa", "preference", "toxicity", "bias", "hallucination", "behaviours")


@pytest.mark.parametrize("suite", SUITES)
def test_a_text_that_a_suite_cannot_read_is_named(suite, tmp_path, monkeypatch):
  """No text field of an evaluation takes "x": the message names it before a model is opened."""
  monkeypatch.chdir(written(tmp_path))
  rows = {
    "squad": SQUAD_ROW,
    "questions": QUESTION,
    "toxicity": {"prompt": "p", "toxicity": 0.5},
  }
  for name, row in rows.items():
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
  (tmp_path / "mine.py").write_text(
    "def share(prompts, responses):\n  return [0.5] * len(prompts)\n"
  )
  config = settings.replaced(settings.load("eval"), EVALUATED)
  open_suite = import_module(f"instructjax.evals.{suite}").open_suite
  if suite != "bias":  # whose data are not shipped
    assert open_suite(config).tasks
  for field in fields.walk(getattr(config, suite), f"{suite}."):
    if field.kind is not str:
      continue
    with pytest.raises(UserError) as error:
      open_suite(settings.override(config, [(field.path, "x")]))
    message = str(error.value)
    assert message.startswith(f"config.{field.path}"), f"{field.path}: {message}"
    assert "\n" not in message
