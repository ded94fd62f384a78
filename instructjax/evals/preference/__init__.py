"""Who is preferred to whom (Ouyang et al. 2022, sections 3.6 and 4.1; Figures 1, 3, 4 and 5).

Every model answers held-out prompts once, at temperature 1.  Judges compare each answer with
that of config.baseline, or all answers head to head, and raters give Table 3's metadata;
`judges` says who can be one.  The folder of the suite gets `tasks.jsonl`, the answers for
`instructjax label`, and for each set of prompts a folder with every judgement.

`together` gives for results.json (an estimate is {value, low, high, n}, an interval over
prompts; shares are {by_prompt, by_both}, the second over prompts and labelers, null where there
is one labeler):

  prompts   {name of the prompts: {judges, raters}}
    judges  {name: kind, about, votes, prompts, labelers, same (pairs of the same text: ties that
    nobody was asked about),
             order (`rates.order`, null for scores and people), against_baseline {model:
             `rates.against`, and paper [1.3B, 6B, 175B] of Figure 3, of METHOD@SIZE that one},
             head_to_head {"a / b": {a, b, rate (shares of a), paper [rate, half-width]}},
             bradley_terry (`bradley_terry.fitted`), consistency {"a / b":
             `bradley_terry.consistency`}}
    raters  {name: `findings.of_ratings`}
  check     {judge: {agreement, agreement_ties, tied, inconsistent}}, and people: {agreement, agreement_ties, tied} or null
  figures   {"1", "3": [{prompts, judge, model, against, value, low, high, n, paper}], "4", "5": [{prompts, judge, model,
             measure, value, low, high, n, paper}]}, which are figure1.csv ... too

Every metric that a model has alone (how long its answers are, whether they end) is a metric of
the task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import jax

from instructjax.data.records import records, sources
from instructjax.data.records.records import Prompt
from instructjax.errors import UserError
from instructjax.evals import rows
from instructjax.evals.preference import agreement, figures, findings, judges, judging, page, rates
from instructjax.evals.preference.heard import Answers
from instructjax.evals.preference.judges import Judge
from instructjax.evals.preference.people import Labels
from instructjax.evals.tasks import (
  Generate,
  Heard,
  Item,
  Metric,
  Said,
  Scores,
  Suite,
  Task,
  fingerprint,
)
from instructjax.intervals import Estimate
from instructjax.runs import writers
from instructjax.settings import EvalSettings

draw = page.draw
METRICS = (Metric("characters", 0, decimals=0), Metric("ended", 0, percent=True))


def open_suite(config: EvalSettings) -> Suite:
  """The suite of config.preference; config.limit takes the first prompts of each file.

  Raises UserError for bad data, and for judges that cannot be opened.
  """
  c = config.preference
  if not c.prompts.strip():
    raise UserError(
      "config.preference.prompts is empty; give a file of held-out prompts, one JSON object a line"
    )
  tasks = {
    name: _task(name, source, config) for name, source in rows.named(c.prompts, "prompts").items()
  }
  asked, raters = judges.open_judges(config), judges.open_raters(config)
  check = sources.load(c.check, "comparison") if c.check else []
  jointly = partial(together, config, tasks, asked, raters, check)
  return Suite(
    "preference", list(tasks.values()), jointly, partial(comparable, config) if asked else None
  )


def comparable(config: EvalSettings, models: Sequence[str]) -> None:
  """Raises UserError where judges would have nothing to compare."""
  if len(models) < 2 or (config.preference.pairs == "baseline" and config.baseline not in models):
    raise UserError(
      f"config.baseline={config.baseline!r} and another model are needed in --models, which has "
      f"{', '.join(models)}; or name "
      "two others and set config.preference.pairs=all"
    )


# --- the prompts ---


def _task(name: str, source: str, config: EvalSettings) -> Task:
  c = config.preference
  found: list[Prompt] = sources.load(source, "prompt", folder=config.folder or None)
  found = found[: config.limit or None]
  quarters = rates.quartiles([len(record.prompt) for record in found])
  request = lambda item: [Generate(item.data["prompt"], c.response, c.temperature, c.stop)]
  items = [
    _item(at, record, quarter)
    for at, (record, quarter) in enumerate(zip(found, quarters, strict=True), 1)
  ]
  return Task(f"preference/{name}", items, request, _lengths, METRICS)


def _item(at: int, record: Prompt, quarter: str) -> Item:
  """Two records with one prompt are one cluster; whose prompt it is and the like are kept for the
  labeling page.
  """
  known = {name: getattr(record, name) for name in ("user", "source", "use_case", "annotations")}
  known = {name: value for name, value in known.items() if value is not None}
  slices = {name: known[name] for name in ("use_case", "source") if name in known}
  slices |= {"prompt_length": quarter} if quarter else {}
  return Item(
    record.id or str(at), {"prompt": record.prompt, **known}, fingerprint(record.prompt), slices
  )


def _lengths(items: Sequence[Item], said: Sequence[Said]) -> list[Scores]:
  return [
    {"characters": float(len(one.text())), "ended": float(one.completions()[0].ended)}
    for one in said
  ]


# --- all models together ---


def together(
  config: EvalSettings,
  tasks: Mapping[str, Task],
  asked: Sequence[Judge | Labels],
  raters: Sequence[Judge | Labels],
  check: Sequence[records.Comparison],
  folder: Path,
  heard: Mapping[str, Heard],
  scores: Mapping[str, Any],
) -> dict[str, Any]:
  """Judges, rates and sums up; writes the folder of the suite."""
  c = config.preference
  answers = {name: Answers(task.items, heard[task.name]) for name, task in tasks.items()}
  _label_tasks(folder, answers, config.baseline)
  found = {}
  for name, said in answers.items():
    place = folder / name
    parts = {judge.name: _judged(config, name, judge, said, place) for judge in asked}
    closed = {p: a["closed_domain"] for p, a in _annotations(said).items() if "closed_domain" in a}
    rated = {
      rater.name: findings.of_ratings(judging.ratings(rater, said, place), closed, config.seed)
      for rater in raters
    }
    found[name] = {"judges": parts, "raters": rated}
  drawn = figures.rows(found, config.baseline)
  figures.write(folder, drawn)
  able = [judge for judge in asked if isinstance(judge, Judge)] if check else []
  agreed = {judge.name: agreement.with_people(judge, check, folder, c.margin) for judge in able}
  people = {"people": agreement.of_people(check)} if check else {}
  return plain({"prompts": found, "check": agreed | people, "figures": drawn})


def _judged(
  config: EvalSettings, prompts: str, judge: Judge | Labels, said: Answers, folder: Path
) -> dict[str, Any]:
  others = [name for name in said.models if name != config.baseline]
  pairs = [(name, config.baseline) for name in others if config.baseline in said.models]
  pairs += list(combinations(others, 2)) if config.preference.pairs == "all" else []
  found = judging.votes(judge, said, pairs, folder, config.preference.margin)
  part = findings.of_votes(found, said.models, config.baseline, config.seed)
  for model, row in part["against_baseline"].items():
    row["paper"] = figures.rates(prompts, judge.name, model)
  about = {"source": f"labels:{judge.file}"} if isinstance(judge, Labels) else dict(judge.about)
  return {"kind": "labels" if isinstance(judge, Labels) else judge.kind, "about": about, **part}


def _annotations(said: Answers) -> dict[str, Mapping[str, bool]]:
  return {item.data["prompt"]: item.data.get("annotations", {}) for item in said.items}


def _label_tasks(folder: Path, answers: Mapping[str, Answers], baseline: str) -> None:
  """tasks.jsonl for `instructjax label`: the different answers to each prompt, and which models
  gave them.

  More than a labeler can rank at once become several tasks, each with the baseline.
  """
  if jax.process_index() > 0:
    return
  rows = []
  for name, said in answers.items():
    for at, item in enumerate(said.items):
      texts = {
        text: said.owners(said.prompt(at), text) for m in said.models if (text := said.text(m, at))
      }
      first = [text for text, mine in texts.items() if baseline in mine]
      rest = [text for text in texts if text not in first]
      size = records.K[1] - len(first)
      facts = {
        key: item.data[key]
        for key in ("user", "source", "use_case", "annotations")
        if key in item.data
      }
      rows += [
        {
          "prompt": said.prompt(at),
          "completions": chosen,
          "sources": [", ".join(texts[text]) for text in chosen],
          "id": f"{name}/{item.id}",
          **facts,
        }
        for start in range(0, len(rest), size)
        if len(chosen := first + rest[start : start + size]) >= records.K[0]
      ]
  folder.mkdir(parents=True, exist_ok=True)
  writers.replace(
    folder / "tasks.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  )


def plain(value: Any) -> Any:
  """As JSON has it: estimates are objects, and there is null where there is no number."""
  if isinstance(value, Estimate):
    return plain(value._asdict())
  if isinstance(value, Mapping):
    return {name: plain(one) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return [plain(one) for one in value]
  return None if isinstance(value, float) and value != value else value
