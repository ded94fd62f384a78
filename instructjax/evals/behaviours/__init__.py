"""Behaviours that the paper's limitations name and do not count (5.3), on items of our own.

  false premises   does the answer correct a question that assumes something untrue, or go along?
  hedging          is a plain question answered in the first sentence, without "it depends"?
  constraints      are several explicit constraints satisfied at once?
  languages        is the reply in the language of the instruction, or in the one it asks for?
  code             what does a short program print?
  harmful          is a harmful request, in general terms, refused, warned about or followed?
  over-refusal     is a safe request that sounds harmful refused?
  perturbations    the same questions misspelt, with an injected instruction, or after paragraphs
                   about something else

Programs score all of it, and a judge (`config.behaviours.judge`) may decide what is a refusal;
docs/evaluation/behaviours.md says how often the programs are wrong on labelled answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from instructjax.errors import UserError, naming
from instructjax.evals import page, summary
from instructjax.evals.behaviours import perturbations, refusals, tasks
from instructjax.evals.tasks import Look, Replies, Scores, Suite, Task
from instructjax.intervals import Estimate
from instructjax.runs.report import page as html
from instructjax.settings import EvalSettings

SHIPPED = Path(__file__).parent  # the folder of our own items
# The strengths that cost something.
WORSE = perturbations.STRENGTHS[1:]


def open_suite(config: EvalSettings) -> Suite:
  """Returns a task for each behaviour that has items; "shipped" takes ours.

  Raises:
    UserError: no behaviour has items, or some of them are bad.
  """
  judge_source = config.behaviours.judge
  judge: refusals.Judge | None = None
  if judge_source:
    with naming("config.behaviours.judge", judge_source):
      judge = refusals.open_judge(judge_source, config.model)
  opened: list[Task] = []
  for name, read in tasks.READERS.items():
    setting = getattr(config.behaviours, name)
    source = str(SHIPPED / f"{name}.jsonl") if setting == "shipped" else setting
    if source:
      with naming(f"config.behaviours.{name}", setting):
        new_tasks = read(source, config.limit or None, config.seed)
      if judge and name in tasks.REFUSALS:
        new_tasks = [tasks.with_judge(name, task, judge, judge_source) for task in new_tasks]
      opened += new_tasks
  if not opened:
    raise UserError(
      "the suite behaviours has no items: set one of "
      f"config.behaviours.{', .'.join(tasks.READERS)} to shipped"
    )
  return Suite("behaviours", opened, partial(together, opened))


def together(
  opened: Sequence[Task],
  folder: Path,
  answers_by_task: Mapping[str, Replies],
  scores: Mapping[str, Mapping[str, Sequence[Scores]]],
) -> dict[str, Any]:
  """Returns what perturbations cost: {"against strength 0": {task: {model: [estimates]}}}.

  There is an estimate for each strength from 1: its share of right answers less that without a
  perturbation, on the same questions.
  """
  del folder, answers_by_task
  costs: dict[str, dict[str, Any]] = {}
  for task in opened:
    if tasks.PERTURBED not in task.name:
      continue
    costs[task.name] = {}
    for model, rows in scores[task.name].items():
      estimates = [summary.plain(cost(task, rows, strength)) for strength in WORSE]
      costs[task.name][model] = estimates
  return {"against strength 0": costs}


def cost(task: Task, rows: Sequence[Scores], strength: int) -> Estimate:
  """Returns the difference at one strength, paired by question; the interval is over questions."""
  items = []
  unperturbed = []
  perturbed = []
  # Both lists have the questions in the same order.
  for item, row in zip(task.items, rows, strict=True):
    if item.data["strength"] == 0:
      items.append(item)
      unperturbed.append({"right": row[tasks.right_at(0)]})
    elif item.data["strength"] == strength:
      perturbed.append({"right": row[tasks.right_at(strength)]})
  metric = task.metrics[0]._replace(name="right")
  return summary.difference(metric, items, perturbed, unperturbed)


def draw(results: Mapping[str, Any], looks: Mapping[str, Look]) -> str:
  """Returns a table of the costs of perturbations."""
  del looks
  rows = []
  for task, costs in results["against strength 0"].items():
    for model, estimates in costs.items():
      cells = [page.counted_cell(estimate, share=True) for estimate in estimates]
      rows.append([escape(task), escape(model), *cells])
  if not rows:
    return ""
  head = ["right answers against strength 0", "model"]
  head += [f"strength {strength}" for strength in WORSE]
  return html.table(head, rows)
