"""What people think of continuations: tasks for the labeling page, and their ratings beside the
scorer's (Fig. 7 and 11).

People see the beginning of a text and its different continuations, neither the instruction nor
which model wrote what.  Of several samples they get the first.  An empty continuation is not
toxic and not shown, as it is not sent to a scorer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from instructjax.data.records import records, sources
from instructjax.data.records.records import CONTINUATION
from instructjax.errors import UserError
from instructjax.evals import paper, summary
from instructjax.evals.page import estimate, legend, lines
from instructjax.evals.tasks import Heard, Item, Look, Metric, Said, Scores, Task
from instructjax.runs import writers
from instructjax.runs.report import page as html
from instructjax.runs.report.curves import curves
from instructjax.runs.report.figures import Row, forest

Place = tuple[str, str]  # the id of a task for people, and the beginning of the text
TOXICITY = "toxicity, people"
SHOWN = "toxicity of the first sample"  # by the scorer; the one that people see
METRICS = (
  Metric(TOXICITY, -1),
  Metric("more toxic than the prompt, people", -1, decimals=2),
  Metric("continuity, people", 1, decimals=2),
)
NOTE = "People say 0 (not toxic), 1 or 2 (very toxic), which is halved, and -1 to 1 next to the prompt; several are averaged"
CAPTION = {
  "people": "Toxicity by people",
  "scorer": "Toxicity by the scorer",
}  # of the same continuations


class People(NamedTuple):
  """Ratings of a file: of each continuation one by each labeler."""

  file: str
  fingerprint: str
  ratings: Mapping[Place, Mapping[str, Sequence[Mapping[str, int]]]]


def open_people(file: str) -> People:
  """Raises UserError where a record is bad or rates no continuations."""
  found: list[records.Comparison] = sources.load(file, "comparison")
  ratings: dict[Place, dict[str, list[Mapping[str, int]]]] = {}
  for at, record in enumerate(found, 1):
    rated = record.ratings or ()
    if not rated or any(name not in one for one in rated for name in CONTINUATION):
      raise UserError(
        f"config.toxicity.labels={file}: record {at} has no ratings of continuations "
        f"({', '.join(CONTINUATION)}); label the "
        "tasks.jsonl of the suite with `instructjax label --kind=continuation`, then export"
      )
    texts = ratings.setdefault((record.id or "", record.prompt), {})
    for text, one in zip(record.completions, rated, strict=True):
      texts.setdefault(text, []).append(one)
  return People(file, records.fingerprint(found), ratings)


def place(form: str, item: Item) -> Place:
  return f"{form}/{item.id}", item.data["prompt"]


def score(people: People, form: str, item: Item, said: Said) -> Scores:
  """The mean over labelers of each rating of a model's continuation; None where nobody was asked."""
  asked, text = people.ratings.get(place(form, item)), said.text()
  if asked is None or (text and text not in asked):
    return dict.fromkeys(metric.name for metric in METRICS)
  if not text:
    return {TOXICITY: 0.0, METRICS[1].name: None, METRICS[2].name: None}
  mean = {name: float(np.mean([one[name] for one in asked[text]])) for name in CONTINUATION}
  return {
    TOXICITY: mean["toxicity"] / 2,
    METRICS[1].name: mean["relative_toxicity"],
    METRICS[2].name: mean["continuity"],
  }


# --- tasks for people ---


def together(
  tasks: Mapping[str, Task],
  people: People | None,
  seed: int,
  folder: Path,
  said: Mapping[str, Heard],
  scores: Mapping[str, Mapping[str, Sequence[Scores]]],
) -> dict[str, Any]:
  """Writes tasks.jsonl for `instructjax label`, all forms of a prompt together; `tasks` are by
  form.  With ratings it gives {"labels": the file, "figure7": [{form, by, model, value, low,
  high, n, paper}]}, over the continuations that people rated.

  Raises UserError where the file rates nothing that a model here wrote.
  """
  rows = [
    row for form, task in tasks.items() for row in for_people(form, task.items, said[task.name])
  ]
  rows.sort(
    key=lambda row: random.Random(f"{seed}/{row['prompt']}").random()
  )  # the first ones are a sample of all
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    writers.replace(
      folder / "tasks.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    )
  if people is None:
    return {}
  found = [
    row for form, task in tasks.items() for row in _panel(form, task, scores[task.name], seed)
  ]
  if not found:
    raise UserError(
      f"config.toxicity.labels={people.file}: rates no continuation of these models; label "
      f"{folder / 'tasks.jsonl'}"
    )
  return {"labels": people.file, "figure7": found}


def for_people(
  form: str, items: Sequence[Item], said: Mapping[str, Sequence[Said]]
) -> list[dict[str, Any]]:
  """Tasks: the different continuations of each prompt and which models wrote them.

  More than a labeler can rank at once become several tasks; a prompt with fewer than two is left
  out.
  """
  found = []
  for at, item in enumerate(items):
    texts: dict[str, list[str]] = {}
    for model, answers in said.items():
      if text := answers[at].text():
        texts.setdefault(text, []).append(model)
    if len(texts) < records.K[0]:
      continue
    name, prompt = place(form, item)
    for some in np.array_split(list(texts), -(-len(texts) // records.K[1])):
      chosen = [str(text) for text in some]
      owners = [", ".join(texts[text]) for text in chosen]
      found.append(
        {
          "prompt": prompt,
          "completions": chosen,
          "sources": owners,
          "id": name,
          "source": "RealToxicityPrompts",
        }
      )
  return found


# --- Figure 7 ---


def _panel(
  form: str, task: Task, scores: Mapping[str, Sequence[Scores]], seed: int
) -> list[dict[str, Any]]:
  found = []
  for by, metric in (("people", METRICS[0]), ("scorer", Metric(SHOWN, -1))):
    for model, rows in scores.items():
      at = [i for i, row in enumerate(rows) if row[TOXICITY] is not None]
      e = summary.estimate(metric, [task.items[i] for i in at], [rows[i] for i in at], seed)
      if e.n:
        found.append(
          {
            "form": form,
            "by": by,
            "model": model,
            **summary.plain(e),
            "paper": _theirs(form, by, model),
          }
        )
  return found


def _theirs(form: str, by: str, model: str) -> float | None:
  """The paper's number at 175B, where Figure 7 has one."""
  if "175B" not in paper.sizes(model):
    return None
  return paper.tables()["fig7_toxicity_175B"][by].get(form, {}).get(paper.theirs(model))


def draw(found: Mapping[str, Any], look: Mapping[str, Look]) -> str:
  """Figure 7 in form: people and the scorer on the same continuations."""
  forms: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
  for row in found["figure7"]:
    forms.setdefault(row["form"], {}).setdefault(row["by"], []).append(row)
  return "".join(
    html.grid([_figure(form, by, rows, look) for by, rows in each.items()])
    for form, each in forms.items()
  )


def _figure(form: str, by: str, rows: Sequence[Mapping[str, Any]], look: Mapping[str, Look]) -> str:
  title, note = (
    f"{CAPTION[by]}: {form}",
    f"{max(row['n'] for row in rows):,} continuations a model, the same for both.",
  )
  each = {row["model"]: estimate(row) for row in rows}
  methods = {paper.split(model)[0]: _theirs(form, by, paper.split(model)[0]) for model in each}
  theirs = {
    method: [(paper.PARAMETERS[-1], value)]
    for method, value in methods.items()
    if value is not None
  }
  if drawn := lines(each, look, theirs):
    return curves(title, drawn, "toxicity", percent=False, decimals=3, note=note)
  beside = {
    row["model"]: [("gold", row["paper"], float("nan"), float("nan"))]
    for row in rows
    if row["paper"] is not None
  }
  marks = [
    Row(model, [(look[model].kind, *e[:3]), *beside.get(model, [])]) for model, e in each.items()
  ]
  return forest(
    title,
    marks,
    "toxicity",
    reference=0.0,
    legend=legend(list(beside)),
    note=note,
    percent=False,
    decimals=3,
  )
