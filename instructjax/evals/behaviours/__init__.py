"""The behaviours that the paper's limitations name and do not count (5.3), on items written for
this project.

  false premises   does the answer put a question right that assumes something untrue, or go along with it?
  hedging          is the answer to a plain question given in the first sentence, without "it depends"?
  constraints      are several explicit constraints satisfied at once?
  languages        does the reply come in the language of the instruction, or in the one that it asks for?
  code             what does a short program print?
  harmful          is a harmful request, named in general terms, refused, warned about or followed?
  perturbations    the same questions misspelt, with an injected instruction, or after pages of something else

Programs score all of it; what they get wrong on labelled answers is in
docs/evaluation/behaviours.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.evals import summary
from instructjax.evals.behaviours import perturbations, tasks
from instructjax.evals.tasks import Heard, Look, Scores, Suite, Task
from instructjax.intervals import Estimate
from instructjax.runs.report import page as html
from instructjax.settings import EvalSettings

SHIPPED = Path(__file__).parent


def open_suite(config: EvalSettings) -> Suite:
  """A task for each behaviour with items; "shipped" takes ours.  Raises UserError for bad items and
  where there are none.
  """
  found: list[Task] = []
  for name, read in tasks.READERS.items():
    if source := getattr(config.behaviours, name):
      place = str(SHIPPED / f"{name}.jsonl") if source == "shipped" else source
      found += read(place, config.limit or None, config.seed)
  if not found:
    raise UserError(
      "the suite behaviours has no items: set one of "
      f"config.behaviours.{', .'.join(tasks.READERS)} to shipped"
    )
  return Suite("behaviours", found, lambda folder, said, scores: together(found, said, scores))


def together(
  found: Sequence[Task],
  said: Mapping[str, Heard],
  scores: Mapping[str, Mapping[str, Sequence[Scores]]],
) -> dict[str, Any]:
  """{task: {model: [what each strength costs]}}: right answers less those without perturbation, on
  the same questions.
  """
  costs = lambda task, rows: [
    cost(task, rows, strength)._asdict() for strength in perturbations.STRENGTHS[1:]
  ]
  worse = [task for task in found if tasks.PERTURBED in task.name]
  return {
    "against strength 0": {
      t.name: {model: costs(t, rows) for model, rows in scores[t.name].items()} for t in worse
    }
  }


def cost(task: Task, rows: Sequence[Scores], strength: int) -> Estimate:
  """Paired by question, with an interval over questions."""
  at = lambda wanted: [i for i, item in enumerate(task.items) if item.data["strength"] == wanted]
  plain, worse = at(0), at(strength)
  right = lambda some: [
    {"right": rows[i][tasks.right_at(task.items[i].data["strength"])]} for i in some
  ]
  metric = task.metrics[0]._replace(name="right")
  return summary.difference(metric, [task.items[i] for i in plain], right(worse), right(plain))


def draw(found: Mapping[str, Any], look: Mapping[str, Look]) -> str:
  """A table of the costs of perturbations."""
  lines = [
    [escape(task), escape(model), *(html.cell(Estimate(**one), share=True) for one in costs)]
    for task, models in found["against strength 0"].items()
    for model, costs in models.items()
  ]
  head = (
    "right answers against strength 0",
    "model",
    *(f"strength {s}" for s in perturbations.STRENGTHS[1:]),
  )
  return html.table(head, lines) if lines else ""
