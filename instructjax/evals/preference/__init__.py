"""Which model is preferred to which (Ouyang et al. 2022, sections 3.6 and 4.1; Figures 1, 3, 4, 5).

Every model answers held-out prompts once, at temperature 1. Judges compare each answer with that
of config.baseline, or all answers head to head, and raters give the metadata of Table 3; `judges`
lists who can be one. The folder of the suite gets `tasks.jsonl`, the answers for
`instructjax label`, and for each set of prompts a folder with every judgement.

`together` returns the part of results.json below. An estimate is {value, low, high, n,
clusters} with an interval over prompts, which are the clusters. Shares are {by_prompt, by_both};
the second interval is over prompts and labelers, and null where there is only one labeler.

  prompts   {name of the prompts: {judges, raters, agreement}}
    judges  {name of the judge: ...}
      kind, about         the kind of the judge, and what its verdicts depend on
      votes, prompts, labelers
                          how many there are
      same                pairs of the same text, which tie; no judge is asked about them
      order               `rates.order_effect`; null for scores and people
      against_baseline    {model: `rates.rates_against`, and paper: [1.3B, 6B, 175B] of Figure 3,
                          of which METHOD@SIZE has its own alone}
      head_to_head        {"a / b": {a, b, rate (shares of a), paper [rate, half-width]}}
      bradley_terry       `bradley_terry.strengths_and_rates`
      consistency         {"a / b": `bradley_terry.consistency`}
    raters  {name of the rater: `findings.of_ratings`}
    agreement
            {"x / y": `agreement.between_judges`}
  check     {judge: {agreement, agreement_ties, tied, inconsistent}}, and
            people: {agreement, agreement_ties, tied} or null
  figures   {"1", "3": [{prompts, judge, model, against, value, low, high, n, clusters, paper}],
            "4", "5": [{prompts, judge, model, measure, value, low, high, n, clusters, paper}]},
            which are figure1.csv and so on, too

What a model has alone (the length of its answers, whether they end) is a metric of the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import jax

from instructjax import rewards
from instructjax.data.records import records, sources
from instructjax.data.records.records import Comparison, Prompt
from instructjax.errors import UserError, naming
from instructjax.evals import rows
from instructjax.evals.preference import (
  agreement,
  figures,
  findings,
  judges,
  judging,
  page,
  rates,
)
from instructjax.evals.preference.answers import Answers
from instructjax.evals.preference.judges import Judge
from instructjax.evals.preference.people import Labels
from instructjax.evals.preference.votes import Vote
from instructjax.evals.tasks import (
  Generate,
  Item,
  Metric,
  Replies,
  Reply,
  Scores,
  Suite,
  Task,
  fingerprint,
)
from instructjax.intervals import Estimate
from instructjax.runs import writers
from instructjax.settings import EvalSettings
from instructjax.system import jsons

draw = page.draw
METRICS = (
  Metric("characters", 0, decimals=0),
  Metric("ended", 0, percent=True),
)
# What a record says of its prompt, for the labeling page.
PROMPT_FACTS = ("user", "source", "use_case", "annotations")


def open_suite(config: EvalSettings) -> Suite:
  """Returns the suite of config.preference; config.limit takes the first prompts of each file.

  Raises:
    UserError: the data are bad, or a judge cannot be opened.
  """
  settings = config.preference
  if not settings.prompts.strip():
    raise UserError(
      "config.preference.prompts is empty; give a file of held-out prompts, one JSON object a line"
    )
  tasks = {}
  all_prompts: list[Prompt] = []
  with naming("config.preference.prompts", settings.prompts):
    for name, source in rows.named(settings.prompts, "prompts").items():
      prompts = sources.load(source, "prompt", folder=config.folder or None)
      prompts = prompts[: config.limit or None]
      tasks[name] = _open_task(name, prompts, config)
      all_prompts += prompts
    fields = rewards.fields_by_text(all_prompts)
  with naming("config.preference.judges", settings.judges):
    opened_judges = judges.open_judges(config, fields)
  with naming("config.preference.raters", settings.raters):
    raters = judges.open_raters(settings)
  check_records = []
  if settings.check:
    with naming("config.preference.check", settings.check):
      check_records = sources.load(settings.check, "comparison")
  compare = partial(together, config, tasks, opened_judges, raters, check_records)
  # Without a judge, nothing is compared and any models will do.
  check = partial(check_models, config) if opened_judges else None
  return Suite("preference", list(tasks.values()), compare, check)


def check_models(config: EvalSettings, models: Sequence[str]) -> None:
  """Checks that judges have models to compare.

  Raises:
    UserError: there is only one model, or there is no baseline where all pairs need it.
  """
  lone = len(models) < 2
  lacks_baseline = config.preference.pairs == "baseline" and config.baseline not in models
  if lone or lacks_baseline:
    raise UserError(
      f"config.baseline={config.baseline!r} and another model are needed in --models, which has "
      f"{', '.join(models)}; or name two others and set config.preference.pairs=all"
    )


# --- the prompts ---


def _open_task(name: str, prompts: Sequence[Prompt], config: EvalSettings) -> Task:
  """Returns the task of the prompts of one file."""
  # Long prompts are other tasks than short ones, so their length is a slice.
  quartiles = rates.quartiles([len(record.prompt) for record in prompts])
  items = []
  for number, (record, quartile) in enumerate(zip(prompts, quartiles, strict=True), 1):
    items.append(_item(number, record, quartile))
  settings = config.preference

  def ask(item: Item) -> list[Generate]:
    prompt = item.data["prompt"]
    return [Generate(prompt, settings.response, settings.temperature, settings.stop)]

  return Task(f"preference/{name}", items, ask, _score_alone, METRICS)


def _item(number: int, record: Prompt, length_quartile: str) -> Item:
  """Returns the item of a record; two records with the same prompt are one cluster."""
  facts = {}
  for name in PROMPT_FACTS:
    value = getattr(record, name)
    if value is not None:
      facts[name] = value
  slices = {name: facts[name] for name in ("use_case", "source") if name in facts}
  if length_quartile:
    slices["prompt_length"] = length_quartile
  return Item(
    id=record.id or str(number),
    data={"prompt": record.prompt, **facts},
    cluster=fingerprint(record.prompt),
    slices=slices,
  )


def _score_alone(items: Sequence[Item], answers: Sequence[Reply]) -> list[Scores]:
  """Returns the scores that need no other model."""
  scores: list[Scores] = []
  for answer in answers:
    # An answer that ran out of tokens is cut, which may be why it loses.
    ended = answer.completions()[0].ended
    scores.append({"characters": float(len(answer.text())), "ended": float(ended)})
  return scores


# --- all models together ---


def together(
  config: EvalSettings,
  tasks: Mapping[str, Task],
  opened_judges: Sequence[Judge | Labels],
  raters: Sequence[Judge | Labels],
  check_records: Sequence[Comparison],
  folder: Path,
  answers_by_task: Mapping[str, Replies],
  scores: Mapping[str, Any],
) -> dict[str, Any]:
  """Asks judges and raters and sums up; the package docstring lists what is returned.

  Args:
    config: The settings of the evaluation.
    tasks: The tasks by the name of their prompts.
    opened_judges: Who compares answers.
    raters: Who gives the metadata of Table 3.
    check_records: Rankings by people that judges are measured on.
    folder: Where judgements, tasks for people and the figures' data are written.
    answers_by_task: The answers of each model, by task.
    scores: The scores of each model, by task; none is needed here.
  """
  del scores
  answers_by_prompts = {}
  for name, task in tasks.items():
    answers_by_prompts[name] = Answers(task.items, answers_by_task[task.name])
  # First of all, because a judge may fail.
  _write_label_tasks(folder, answers_by_prompts, config.baseline)
  findings_by_prompts = {}
  for name, answers in answers_by_prompts.items():
    prompts_folder = folder / name
    judge_findings = {}
    votes_by_judge = {}
    for judge in opened_judges:
      pairs = _pairs(answers.models, config.baseline, config.preference.pairs)
      margin = config.preference.margin
      judged = judging.collect_votes(judge, answers, pairs, prompts_folder, margin)
      votes_by_judge[judge.name] = judged
      judge_findings[judge.name] = _judge_findings(config, name, judge, answers.models, judged)
    closed = _closed_domain(answers)
    rater_findings = {}
    for rater in raters:
      ratings = judging.collect_ratings(rater, answers, prompts_folder)
      rater_findings[rater.name] = findings.of_ratings(ratings, closed)
    findings_by_prompts[name] = {
      "judges": judge_findings,
      "raters": rater_findings,
      "agreement": agreement.between_judges(votes_by_judge),
    }
  figure_rows = figures.figure_rows(findings_by_prompts, config.baseline)
  figures.write(folder, figure_rows)
  check = _check_judges(opened_judges, check_records, folder, config.preference.margin)
  return to_json({"prompts": findings_by_prompts, "check": check, "figures": figure_rows})


def _judge_findings(
  config: EvalSettings,
  prompts: str,
  judge: Judge | Labels,
  models: Sequence[str],
  judged: Sequence[Vote],
) -> dict[str, Any]:
  """Returns what the votes of one judge on one set of prompts say."""
  # Intervals draw prompts by the same seed for every judge.
  judge_findings = findings.of_votes(judged, models, config.baseline, config.seed)
  for model, model_rates in judge_findings["against_baseline"].items():
    model_rates["paper"] = figures.paper_win_rates(prompts, judge.name, model)
  if isinstance(judge, Labels):
    return {"kind": "labels", "about": {"source": f"labels:{judge.file}"}, **judge_findings}
  return {"kind": judge.kind, "about": dict(judge.about), **judge_findings}


def _pairs(models: Sequence[str], baseline: str, choice: str) -> list[tuple[str, str]]:
  """Returns the pairs to compare: with the baseline, and under "all" every two others too."""
  others = [name for name in models if name != baseline]
  pairs = []
  if baseline in models:
    pairs += [(name, baseline) for name in others]
  if choice == "all":
    # Without these, two models are compared by way of the baseline alone.
    pairs += combinations(others, 2)
  return pairs


def _closed_domain(answers: Answers) -> dict[str, bool]:
  """Returns whether each prompt is closed-domain, for those whose annotations say it."""
  closed = {}
  for item in answers.items:
    annotations = item.data.get("annotations", {})
    if "closed_domain" in annotations:
      closed[item.data["prompt"]] = annotations["closed_domain"]
  return closed


def _check_judges(
  opened_judges: Sequence[Judge | Labels],
  check_records: Sequence[Comparison],
  folder: Path,
  margin: float,
) -> dict[str, Any]:
  """Measures judges on rankings by people; nothing is returned where there are none."""
  if not check_records:
    return {}
  check: dict[str, Any] = {}
  for judge in opened_judges:
    # Labels cannot be asked about other prompts.
    if isinstance(judge, Judge):
      check[judge.name] = agreement.with_people(judge, check_records, folder, margin)
  check["people"] = agreement.of_people(check_records)
  return check


# --- the tasks for people ---


def _write_label_tasks(
  folder: Path,
  answers_by_prompts: Mapping[str, Answers],
  baseline: str,
) -> None:
  """Writes tasks.jsonl for `instructjax label`, with the models behind each answer."""
  if jax.process_index() > 0:
    return
  tasks = []
  for name, answers in answers_by_prompts.items():
    for item in range(len(answers.items)):
      tasks += _label_tasks(name, answers, item, baseline)
  folder.mkdir(parents=True, exist_ok=True)
  writers.replace(folder / "tasks.jsonl", jsons.lines(tasks))


def _label_tasks(
  name: str,
  answers: Answers,
  item: int,
  baseline: str,
) -> list[dict[str, Any]]:
  """Returns the tasks of one prompt: its different answers, and which models gave them.

  More answers than a labeler can rank at once become several tasks, each with the baseline's.
  """
  prompt = answers.prompt(item)
  data = answers.items[item].data
  owners = {}
  for model in answers.models:
    text = answers.text(model, item)
    if text:  # a record holds no empty completion
      owners[text] = answers.owners(prompt, text)
  baseline_texts = [text for text, models in owners.items() if baseline in models]
  other_texts = [text for text in owners if text not in baseline_texts]
  fewest, most = records.K
  # The baseline's answer takes a place in every task.
  size = most - len(baseline_texts)
  tasks = []
  for start in range(0, len(other_texts), size):
    completions = baseline_texts + other_texts[start : start + size]
    if len(completions) < fewest:
      continue  # a single answer cannot be ranked
    task = {
      "prompt": prompt,
      "completions": completions,
      "sources": [", ".join(owners[text]) for text in completions],
      "id": f"{name}/{answers.items[item].id}",
    }
    for fact in PROMPT_FACTS:
      if fact in data:
        task[fact] = data[fact]
    tasks.append(task)
  return tasks


def to_json(value: Any) -> Any:
  """Returns a value as JSON holds it: estimates are objects, and NaN is null."""
  if isinstance(value, Estimate):
    return to_json(value._asdict())
  if isinstance(value, Mapping):
    return {name: to_json(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [to_json(part) for part in value]
  if isinstance(value, float) and value != value:
    return None
  return value
