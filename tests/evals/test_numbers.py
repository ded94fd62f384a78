"""Every suite with small made-up answers: what the page shows stands in results.csv, on the
terminal and on the card too, and the items and clusters stand beside every interval.
"""

import csv
import hashlib
import json
import random
import re
from html.parser import HTMLParser
from typing import NamedTuple

import pytest

from instructjax.commands import eval as command
from instructjax.evals import (
  behaviours,
  bias,
  card,
  hallucination,
  nlp,
  preference,
  results,
  reward,
  toxicity,
  truthfulqa,
)
from instructjax.evals.tasks import Completion, Generate, Logp, Reply
from instructjax.label import tasks as label
from instructjax.settings import reading

MODULES = {
  "preference": preference,
  "truthfulqa": truthfulqa,
  "toxicity": toxicity,
  "bias": bias,
  "hallucination": hallucination,
  "nlp": nlp,
  "behaviours": behaviours,
}
MODELS = ("base", "sft", "ppo")
# Made-up answers: some say something, some refuse, some are right.
TEXTS = (
  "No, pigs cannot fly.",
  "Yes, pigs can fly!",
  "I have no comment.",
  "a b",
  "The text does not say.",
  "I cannot help with that.",
  "Paris",
  "42 towns in Peru, said Rosa Blum.",
)
JUDGE = """
def letters(prompts, responses):
  return [min(len(r) / 40, 1) for r in responses]

def number(prompts, responses):
  return [float(response) for response in responses]

def turned(prompts, responses):
  return [1 - float(response) / 2 for response in responses]

def longer(prompts, a, b):
  return [float(len(x) > len(y)) + .5 * (len(x) == len(y)) for x, y in zip(a, b)]

def rate(prompts, responses):
  return [{"overall": 1 + len(r) % 7, "hallucination": len(r) % 2 == 0} for r in responses]
"""


def written(folder, name, rows):
  path = folder / name
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def fields_of(suite, folder):
  """The settings that give a suite small data."""
  judge = f"python:{folder / 'judge.py'}"
  if suite == "preference":
    prompts = [
      {"prompt": f"say {n}", "use_case": ("qa", "chat")[n % 2], "id": f"p{n}"} for n in range(12)
    ]
    check = [
      {"prompt": f"q{n}", "completions": ["a", "bb", "c"], "ranks": ranks, "labeler": labeler}
      for n in range(4)
      for labeler, ranks in (("x", [2, 1, 3]), ("y", [1 + n % 2, 1, 2]))
    ]
    return {
      "prompts": written(folder, "prompts.jsonl", prompts),
      "judges": f"pair={judge}:longer; score={judge}:letters",
      "raters": f"{judge}:rate",
      "check": written(folder, "check.jsonl", check),
      "pairs": "all",
    }
  if suite == "truthfulqa":
    questions = [
      {
        "type": ("Adversarial", "Non-Adversarial")[n % 2],
        "category": "Myths",
        "question": f"Can pigs fly {n} miles?",
        "best_answer": "No, pigs cannot fly",
        "correct_answers": ["No, pigs cannot fly", "Pigs have no wings"],
        "incorrect_answers": ["Yes, pigs can fly"],
      }
      for n in range(12)
    ]
    return {
      "data": written(folder, "questions.jsonl", questions),
      "true_judge": f"{judge}:letters",
      "info_judge": f"{judge}:letters",
    }
  if suite == "toxicity":
    prompts = [{"prompt": f"It was {n}", "toxicity": n / 12} for n in range(12)]
    return {
      "prompts": written(folder, "prompts.jsonl", prompts),
      "scorer": f"{judge}:letters",
      "forms": "basic,respectful",
    }
  if suite == "bias":
    pairs = [{"sentences": [f"a b {n}", f"a c {n}"], "type": "xy"[n % 2]} for n in range(12)]
    return {"crows": written(folder, "crows.jsonl", pairs)}
  if suite == "nlp":
    squad = [
      {
        "id": str(n),
        "title": "T",
        "context": f"C{n // 2}",
        "question": f"Which {n}?",
        "answers": {"text": ["a b"] if n % 3 else []},
      }
      for n in range(12)
    ]
    news = [{"article": f"Text {n}.", "highlights": "a b", "id": str(n)} for n in range(12)]
    return {
      "squad": written(folder, "squad.jsonl", squad),
      "cnn_dm": written(folder, "cnn.jsonl", news),
    }
  return {}


def reply_of(model, task, item):
  """Made-up answers to the requests of an item, the same in every run."""
  answers = []
  for place, request in enumerate(task.ask(item)):
    name = f"{model} {task.name} {item.id} {place}"
    rng = random.Random(hashlib.sha256(name.encode()).hexdigest())
    if isinstance(request, Generate):
      texts = rng.choices(TEXTS, k=request.n)
      answers.append(tuple(Completion(f" {text}", 3, len(text) % 3 > 0) for text in texts))
    else:
      answers.append(Logp(-20 * rng.random(), rng.randint(1, 4), rng.random() < 0.5))
  return Reply(tuple(answers))


def evaluated(suite, folder):
  """Leaves the files of an evaluation of a suite in folder / "out" and returns results.json."""
  folder.joinpath("judge.py").write_text(JUDGE)
  out = folder / "out"
  judge = f"python:{folder / 'judge.py'}"
  draws = command.drawings(MODULES) | {"reward": reward.draw}
  if suite == "reward":
    comparisons = [
      {
        "prompt": f"q{n // 2}",
        "completions": [str(n % 5 + 0.25), "2", "1.5"],
        "ranks": [1, 2, 3],
        "labeler": "xy"[n % 2],
      }
      for n in range(24)
    ]
    fields = {"reward.comparisons": written(folder, "c.jsonl", comparisons)}
    config = reading.override(reading.load("eval"), list(fields.items()))
    reward.main(config, out, {"sft": f"{judge}:number", "ppo": f"{judge}:turned"}, draws)
    return json.loads((out / "results.json").read_text())
  fields = {f"{suite}.{name}": value for name, value in fields_of(suite, folder).items()}
  config = reading.override(reading.load("eval"), [("limit", "12"), *fields.items()])
  opened = MODULES[suite].open_suite(config)
  replies = {
    task.name: {model: [reply_of(model, task, item) for item in task.items] for model in MODELS}
    for task in opened.tasks
  }
  scores = {
    task.name: {model: task.score(task.items, replies[task.name][model]) for model in MODELS}
    for task in opened.tasks
  }
  if suite == "toxicity":
    opened = rated_by_people(config, opened, replies, scores, folder)
    scores = {
      task.name: {model: task.score(task.items, replies[task.name][model]) for model in MODELS}
      for task in opened.tasks
    }
  out.mkdir()
  part = results.of_suite(config, out, opened, replies, scores)
  results.write(out, {suite: part}, dict.fromkeys(MODELS, ""), [], draws)
  return json.loads((out / "results.json").read_text())


def rated_by_people(config, opened, replies, scores, folder):
  """The suite of toxicity with labels: its tasks are written, and people rate them all."""
  opened.together(folder / "tasks", replies, scores)
  tasks, _ = label.read(folder / "tasks" / "tasks.jsonl", "continuation")
  rows = []
  for task in tasks:
    ratings = [
      {"continuity": 5, "toxicity": len(text) % 3, "relative_toxicity": len(text) % 3 - 1}
      for text in task.completions
    ]
    rows.append(
      {
        "prompt": task.prompt,
        "completions": list(task.completions),
        "id": task.id,
        "ranks": [1] * len(ratings),
        "ratings": ratings,
        "labeler": "ana",
      }
    )
  file = written(folder, "labels.jsonl", rows)
  return toxicity.open_suite(reading.override(config, [("toxicity.labels", file)]))


# --- what the page shows ---

NUMBER = re.compile(r"-?[0-9]+\.[0-9]+")
ENDS = re.compile(r"(-?[0-9.]+) to (-?[0-9.]+)")


class Cell(NamedTuple):
  """A cell of a table, a tip of a figure or a note, as text; `folded` needs a click to be seen."""

  text: str
  row: tuple[str, ...]
  folded: bool


class Page(HTMLParser):
  """Collects the cells, tips and notes of one section, without the numbers of the paper."""

  def __init__(self, suite):
    super().__init__()
    self.suite, self.inside, self.depth = suite, False, 0
    self.head, self.row, self.text = [], [], None
    self.cells, self.tips, self.notes = [], [], []
    self.look, self.small = "", False

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    if tag == "section":
      self.inside = attributes.get("id") == self.suite
    if not self.inside:
      return
    self.depth += tag == "details"
    if tag == "thead":
      self.head = []
    if tag == "tr":
      self.row = []
    if tag in ("th", "td", "title") or (tag == "p" and attributes.get("class") == "note"):
      self.text = ""
    if tag == "small" and self.text is not None:
      self.text += "\n"
    if tag in ("circle", "polygon"):
      self.look = attributes.get("class", "")

  def handle_data(self, data):
    if self.text is not None:
      self.text += data.replace("\xa0", " ").replace("−", "-")

  def handle_endtag(self, tag):
    if not self.inside:
      return
    self.depth -= tag == "details"
    if tag == "th":
      self.head.append(self.text)
    elif tag == "td":
      self.row.append(self.text)
    elif tag == "title" and "gold" not in self.look and "the paper's" not in self.text:
      self.tips.append(self.text)
    elif tag == "p" and self.text is not None and not self.text.startswith("Made with"):
      # Notes name settings too; what was measured is a percentage there.
      self.notes += re.findall(r"[0-9]+\.[0-9]+ %", self.text)
    elif tag == "tr" and self.row:
      of_paper = [name.startswith("paper") for name in self.head]
      if of_paper[0] or "hallucinations" in self.head:  # the table of the paper's Figure 4
        return
      self.cells += [
        Cell(text, tuple(self.row), self.depth > 0)
        for text, is_paper in zip(self.row, of_paper, strict=True)
        if NUMBER.match(text) and not is_paper
      ]
    if tag in ("th", "td", "title", "p"):
      self.text = None


def page_of(folder, suite):
  page = Page(suite)
  page.feed((folder / "out" / "report.html").read_text())
  return page


def without_paper(text):
  return "\n".join(line for line in text.split("\n") if not line.startswith("paper"))


def spelled(value, like):
  """A value of results.csv as the page spells the number `like`."""
  decimals = len(like.partition(".")[2])
  # Adding 0 turns a negative zero into zero.
  return {f"{round(scale * value, decimals) + 0.0:.{decimals}f}" for scale in (1, 100)}


SUITES = [*MODULES, "reward"]


@pytest.mark.parametrize("suite", SUITES)
def test_what_the_page_shows_stands_in_the_table_on_the_terminal_and_on_the_card(
  suite, tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv("COLUMNS", "250")
  whole = evaluated(suite, tmp_path)
  rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
  terminal = capsys.readouterr().out.replace("−", "-")
  models = whole["suites"][suite]["models"]
  cards = "\n".join(line for model in models for line in card._evaluation(whole, model))
  values = [float(row[name]) for row in rows for name in ("value", "low", "high") if row[name]]
  on_terminal, on_cards = set(NUMBER.findall(terminal)), set(NUMBER.findall(cards))

  page = page_of(tmp_path, suite)
  count = 0
  shown = [(cell.text, cell.folded) for cell in page.cells] + [(text, True) for text in page.tips]
  for text, folded in shown + [(note, False) for note in page.notes]:
    for number in NUMBER.findall(without_paper(text)):
      count += 1
      assert any(number in spelled(value, number) for value in values), (number, text)
      if not folded:
        assert number in on_terminal, (number, text)
        assert number in on_cards, (number, text)
  assert count > 10 and "nan" not in terminal + cards


@pytest.mark.parametrize("suite", SUITES)
def test_the_items_and_clusters_stand_beside_every_interval(suite, tmp_path):
  evaluated(suite, tmp_path)
  rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
  intervals = [cell for cell in page_of(tmp_path, suite).cells if ENDS.search(cell.text)]
  assert len(intervals) > 2
  for cell in intervals:
    numbers = [NUMBER.match(cell.text)[0], *ENDS.search(cell.text).groups()]
    counts = {
      row["n"] if row["n"] == row["clusters"] else f"{row['n']} in {row['clusters']}"
      for row in rows
      if row["low"]
      and all(
        number in spelled(float(row[name]), number)
        for number, name in zip(numbers, ("value", "low", "high"), strict=True)
      )
    }
    own = [line.removeprefix("n ") for line in cell.text.split("\n") if line.startswith("n ")]
    # Without a number of its own, the one in the column of the line counts.
    assert counts & set(own or cell.row), cell
