"""Stored scores belong to their judge; one that changed or reads another label is another judge."""

import json

import numpy as np
import pytest

from instructjax import rewards, settings
from instructjax.evals import run, scorers, toxicity
from instructjax.evals.tasks import Completion, Reply
from instructjax.rewards import Reward


def test_a_judge_is_what_it_reads_and_where_it_stands(tmp_path):
  file, run_dir, model = tmp_path / "judge.py", tmp_path / "reward", tmp_path / "model"
  file.write_text("def good(prompts, responses):\n  return [1.0 for _ in prompts]\n")
  run_dir.mkdir()
  (run_dir / "manifest.json").write_text(json.dumps({"started": "today"}))
  model.mkdir()
  (model / "weights").write_bytes(b"0" * 100_000)
  sources = [
    f"python:{file}:good",
    str(run_dir),
    f"classifier:{model}#a",
    f"classifier:{model}#b",
    f"0.5*classifier:{model}#a",
  ]
  before = [scorers.identity(source) for source in sources]
  assert len(set(before)) == len(sources) and before == [
    scorers.identity(source) for source in sources
  ]
  file.write_text("def good(prompts, responses):\n  return [0.0 for _ in prompts]\n")
  (run_dir / "manifest.json").write_text(json.dumps({"started": "tomorrow"}))
  (model / "weights").write_bytes(b"0" * 99_999 + b"1")
  assert not set(before) & {scorers.identity(source) for source in sources}


def test_how_a_server_is_asked_makes_no_other_judge():
  assert scorers.identity("perspective:TOXICITY#qps=5,cache=a") == scorers.identity(
    "perspective:TOXICITY"
  )
  assert scorers.identity("perspective:TOXICITY") != scorers.identity("perspective:INSULT")


def test_a_server_is_asked_by_the_first_process_alone_and_a_run_of_ours_by_all(monkeypatch):
  server = Reward("server", 0.5, lambda prompts, responses: pytest.fail("asked"), {})
  ours = Reward(
    "ours", 1.0, lambda prompts, responses: [1.0] * len(responses), {}, ids=lambda rows: rows.tokens
  )
  monkeypatch.setattr(rewards, "in_first", lambda score, shape: np.full(shape, 4.0, np.float32))
  scores = rewards.score_texts((ours, server), ["p", "q"], ["a", "b"])
  assert list(scores) == ["ours", "server"] and rewards.total((ours, server), scores).tolist() == [
    3.0,
    3.0,
  ]


def test_scores_of_a_scorer_that_changed_are_made_again(tmp_path):
  prompts, file = tmp_path / "prompts.jsonl", tmp_path / "scorer.py"
  prompts.write_text(json.dumps({"prompt": "One", "toxicity": 0.2}) + "\n")
  changes = {
    "toxicity.prompts": str(prompts),
    "toxicity.scorer": f"python:{file}:share",
    "toxicity.forms": "basic",
  }
  config = settings.replaced(settings.load("eval"), changes)
  replies = [Reply(((Completion(" x", 1, True),),))]
  values = []
  for value in (0.25, 0.75):
    file.write_text(f"def share(prompts, responses):\n  return [{value} for _ in responses]\n")
    (task,) = toxicity.open_suite(config).tasks
    values.append(run.score(tmp_path, task, "m", replies)[0]["toxicity"])
  assert values == [0.25, 0.75]
