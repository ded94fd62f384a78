"""Toxicity judged by people: the tasks they get, what their ratings are worth by hand, and Figure
7.
"""

import json
import math

import pytest

from instructjax import settings
from instructjax.data.records import records
from instructjax.errors import UserError
from instructjax.evals import continuations, run, summary, toxicity
from instructjax.evals.tasks import Completion, Item, Look, Reply
from instructjax.label import tasks as label

TEXTS = {
  "base": ["bad", "same", "one", "a"],
  "sft": ["good", "same", "", "a"],
  "ptx": ["good", "other", "two", "a"],
}


@pytest.fixture
def config(tmp_path):
  written(
    tmp_path / "prompts.jsonl", [{"prompt": f"It was {i}", "toxicity": i / 4} for i in range(4)]
  )
  (tmp_path / "mine.py").write_text(
    "def letters(prompts, responses):\n  return [min(len(r) / 10, 1) for r in responses]\n"
  )
  return settings.replaced(
    settings.load("eval"),
    {
      "toxicity.prompts": f"{tmp_path}/prompts.jsonl",
      "toxicity.scorer": f"python:{tmp_path}/mine.py:letters",
      "toxicity.forms": "respectful",
    },
  )


def written(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def answers_by_model(texts=TEXTS):
  return {
    model: [Reply(((Completion(f" {text}", 3, True),),)) for text in row]
    for model, row in texts.items()
  }


def rated(row, toxic, labeler="ana"):
  """A record of a task: `toxic` are the ratings by text."""
  ratings = [
    {"continuity": 5, "toxicity": toxic[text], "relative_toxicity": toxic[text] - 1}
    for text in row["completions"]
  ]
  return row | {"ranks": [1] * len(ratings), "ratings": ratings, "labeler": labeler}


def run_together(suite, folder, texts=TEXTS):
  (task,) = suite.tasks
  answers = answers_by_model(texts)
  scores = {model: task.score(task.items, row) for model, row in answers.items()}
  return suite.together(folder, {task.name: answers}, {task.name: scores}), scores


def test_people_get_the_different_continuations(config, tmp_path):
  suite = toxicity.open_suite(config)
  assert run_together(suite, tmp_path / "out")[0] == {}
  tasks, left_out = label.read(tmp_path / "out" / "tasks.jsonl", "continuation")
  assert sorted((task.prompt, task.completions, task.id) for task in tasks) == [
    ("It was 0", ("bad", "good"), "respectful/0"),
    ("It was 1", ("same", "other"), "respectful/1"),
    ("It was 2", ("one", "two"), "respectful/2"),
  ]
  first = next(task for task in tasks if task.prompt == "It was 0")
  assert [source["model"] for source in first.sources] == ["base", "sft, ptx"] and left_out == []


def test_the_first_tasks_are_a_sample_in_every_form(config, tmp_path):
  written(
    tmp_path / "prompts.jsonl", [{"prompt": f"It was {i}", "toxicity": i / 40} for i in range(40)]
  )
  config = settings.replaced(config, {"toxicity.forms": "basic,respectful"})
  suite = toxicity.open_suite(config)
  answers = answers_by_model({"a": ["x"] * 40, "b": ["y"] * 40})
  suite.together(tmp_path, {task.name: answers for task in suite.tasks}, {})
  rows = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
  order = [row["prompt"] for row in rows]
  assert order[::2] == order[1::2] and {row["id"].split("/")[0] for row in rows[:2]} == {
    "basic",
    "respectful",
  }
  assert (
    len(set(order)) == 40 and 8 < sum(int(prompt[7:]) for prompt in order[:20]) / 20 < 31
  )  # not the first ones


def test_many_continuations_become_tasks_that_can_be_ranked():
  items = [Item("0", {"prompt": "It was"})]
  for count in (2, 9, 10, 19):
    answers = {str(i): [Reply(((Completion(f"text {i}", 3, True),),))] for i in range(count)}
    sizes = [
      len(row["completions"]) for row in continuations.tasks_for_people("basic", items, answers)
    ]
    assert (
      sum(sizes) == count
      and min(sizes) >= 2
      and max(sizes) <= 9
      and len(sizes) == math.ceil(count / 9)
    )


def test_ratings_by_hand_stand_beside_the_scorer(config, tmp_path):
  run_together(toxicity.open_suite(config), tmp_path)
  lines = (tmp_path / "tasks.jsonl").read_text().splitlines()
  rows = {int(row["id"][-1]): row for row in map(json.loads, lines)}
  ratings = [rated(rows[0], {"bad": 2, "good": 0}), rated(rows[0], {"bad": 1, "good": 1}, "ben")]
  ratings.append(rated(rows[2], {"one": 2, "two": 0}))
  config = settings.replaced(
    config, {"toxicity.labels": written(tmp_path / "rated.jsonl", ratings)}
  )
  suite = toxicity.open_suite(config)
  together, scores = run_together(suite, tmp_path)
  (task,) = suite.tasks
  table = summary.table(task, scores)
  value = lambda model, name=continuations.TOXICITY: (
    table[model][name].value,
    table[model][name].n,
  )
  assert value("base") == ((0.75 + 1) / 2, 2)  # (2, 1) and (2), halved; "same" was not rated
  assert value("sft") == ((0.25 + 0) / 2, 2)  # an empty continuation is not toxic
  assert value("ptx") == ((0.25 + 0) / 2, 2)
  assert value("base", "more toxic than the prompt, people") == ((0.5 + 1) / 2, 2)
  assert value("sft", "continuity, people") == (5, 1)
  assert "People say 0" in task.about and table["base"]["toxicity"].n == 4
  rows = {(row["by"], row["model"]): row for row in together["figure7"]}
  assert (
    rows["scorer", "base"]["value"] == pytest.approx(0.3) and rows["scorer", "base"]["n"] == 2
  )  # "bad" and "one"
  assert rows["people", "base"]["value"] == value("base")[0]
  assert (
    rows["people", "ptx"]["paper"] == 0.167 and rows["scorer", "base"]["paper"] == 0.235
  )  # Fig. 7
  look = {name: Look(name, 10) for name in TEXTS}
  html = toxicity.draw(together, look)
  assert (
    html.count("<figure>") == 2 and "Toxicity by people: respectful" in html and "nan" not in html
  )
  assert "2 continuations a model, the same for both" in html and "the paper&#x27;s, 175B" in html


def test_other_labels_give_other_scores(config, tmp_path):
  row = {"prompt": "It was 0", "completions": ["bad", "good"], "id": "respectful/0"}
  judges = []
  for toxic in ({"bad": 2, "good": 0}, {"bad": 1, "good": 0}):
    config = settings.replaced(
      config, {"toxicity.labels": written(tmp_path / "rated.jsonl", [rated(row, toxic)])}
    )
    judges.append(toxicity.open_suite(config).tasks[0].judge)
  config = settings.replaced(config, {"toxicity.labels": ""})
  assert len({*judges, toxicity.open_suite(config).tasks[0].judge}) == 3


@pytest.mark.parametrize(
  "change, message",
  [
    ({"ratings": [{"overall": 1}, {"overall": 2}]}, "rated.jsonl:1: no ratings of continuations"),
    ({"ratings": None}, "rated.jsonl:1: no ratings of continuations"),
  ],
)
def test_labels_of_something_else_are_refused(config, tmp_path, change, message):
  row = (
    rated(
      {"prompt": "It was 0", "completions": ["bad", "good"], "id": "respectful/0"},
      {"bad": 1, "good": 0},
    )
    | change
  )
  path = tmp_path / "rated.jsonl"
  records.write(
    path,
    records.parse(
      [{name: value for name, value in row.items() if value is not None}], "comparison"
    ),
  )
  config = settings.replaced(config, {"toxicity.labels": str(path)})
  with pytest.raises(UserError, match=message):
    toxicity.open_suite(config)


def test_labels_of_other_models_are_an_error(config, tmp_path):
  row = {"prompt": "It was 0", "completions": ["never", "said"], "id": "respectful/0"}
  config = settings.replaced(
    config,
    {"toxicity.labels": written(tmp_path / "rated.jsonl", [rated(row, {"never": 1, "said": 0})])},
  )
  with pytest.raises(
    UserError, match=r"rates no continuation of these models; label .*tasks\.jsonl"
  ):
    run_together(toxicity.open_suite(config), tmp_path)


def test_the_runner_shows_both_panels(config, tmp_path):
  config = settings.replaced(
    config,
    {
      "tokens": 512,
      "limit": 2,
      "model.dtype": "float32",
      "toxicity.tokens": 12,
      "toxicity.samples": 2,
    },
  )
  models = {"base": "", "sft": f"#prefix={tmp_path / 'pre.txt'}"}
  (tmp_path / "pre.txt").write_text("hello. ")
  work = tmp_path / "eval"
  run.main(config, work, models, {"toxicity": toxicity.open_suite}, {"toxicity": toxicity.draw})
  rows = [json.loads(line) for line in (work / "toxicity" / "tasks.jsonl").read_text().splitlines()]
  labels = written(
    tmp_path / "rated.jsonl", [rated(row, dict.fromkeys(row["completions"], 1)) for row in rows]
  )
  config = settings.replaced(config, {"toxicity.labels": labels})
  run.main(config, work, models, {"toxicity": toxicity.open_suite}, {"toxicity": toxicity.draw})
  part = json.loads((work / "results.json").read_text())["suites"]["toxicity"]
  assert part["together"]["figure7"][0]["value"] == 0.5
  assert (
    part["tasks"]["RealToxicity (respectful)"]["models"]["sft"][continuations.TOXICITY]["value"]
    == 0.5
  )
  assert "Toxicity by people" in (work / "report.html").read_text()
