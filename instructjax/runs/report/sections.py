"""The sections of the page, from top to bottom.

Each takes the run and returns (anchor, title, HTML). Where the run has no data for a section, its
HTML is empty and the page leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from instructjax import intervals
from instructjax.runs.report import page
from instructjax.runs.report.figures import Mark, Row, bars, forest
from instructjax.runs.report.files import Run, estimate, inside, number
from instructjax.runs.report.names import LOOKS, MODELS, SLICES
from instructjax.runs.report.page import Section
from instructjax.runs.report.ranking import ranking
from instructjax.runs.report.training import (
  alignment_tax,
  other_metrics,
  overoptimisation,
  ppo_curves,
  supervised_stages,
)

SAMPLES = 24  # prompts that the page shows
OPEN = 6  # of them are open at once, the others are folded


class Column(NamedTuple):
  """A measure of the models: its key in results.json, its title, and how it is spelled."""

  key: str
  title: str
  share: bool
  decimals: int


WINS = "win_rate_vs_sft"
# What the judges say of the answers.
JUDGED = (
  Column(WINS, "wins against SFT ↑", share=True, decimals=1),
  Column("win_rate_vs_sft_answered", "of answered ↑", share=True, decimals=1),
  Column("win_rate_vs_base", "wins against base ↑", share=True, decimals=1),
  Column("directed", "both ways ↑", share=True, decimals=1),
  Column("follows_praise", "asked to praise ↑", share=True, decimals=1),
  Column("follows_criticise", "asked to criticise ↑", share=True, decimals=1),
)
# How the judges score them, and what the training cost.
SCORED = (
  Column("gold", "gold score ↑", share=False, decimals=2),
  Column("score", "RM score ↑", share=False, decimals=2),
  Column("follows", "follows ↑", share=True, decimals=1),
  Column("kl", "KL, nats", share=False, decimals=1),
  Column("pretrain_nll", "text, nats/token ↓", share=False, decimals=3),
)
# What they are like.
FORM = (
  Column("empty", "empty ↓", share=True, decimals=1),
  Column("repeated", "repeated ↓", share=True, decimals=1),
  Column("distinct", "distinct 2-grams ↑", share=False, decimals=3),
  Column("length", "length, tokens", share=False, decimals=1),
  Column("eos_rate", "ended", share=True, decimals=1),
)
TERMS_OF_JUDGED = (
  "Wins: share of prompts with the higher gold score, ties half; of answered: where neither answer "
  "is empty. "
  "Both ways: of one instruction asked both ways, how often gold finds the praise more positive "
  "than the criticism. "
  "Asked to praise, to criticise: the sentiment lexicon finds the tone that was asked for. "
  "Small print: 95 % intervals over prompts."
)
TERMS_OF_SCORED = (
  "Gold score: of a second reward model, fitted on other texts and the ratings of other people, "
  "never trained on. RM score: of the reward model that PPO was trained on. "
  "Follows: by the lexicon, over all prompts. "
  "KL: to the model that PPO started from, a response. "
  "Text: loss on held-out pretraining text (NYT editorials in the quickstart), the interval over "
  "texts."
)
TERMS_OF_FORM = (
  "Repeated: another prompt got the same answer, word for word. "
  "Distinct 2-grams: the share of different pairs of neighbouring words. "
  "Ended: the response ended before its limit."
)


# --- results ---


def results(run: Run) -> Section:
  """Returns the tables of models and measures."""
  models = inside(run.results, "models")
  # Models of the method come first, in its order, then those that only this run has.
  own_models = [name for name in models if name not in MODELS]
  names = [name for name in MODELS if name in models] + own_models
  if not names:
    return page.section("results", "Results", "")

  # Only compared models say how many prompts there were; SFT itself does not.
  wins = [estimate(inside(models, name).get(WINS)) for name in names]
  most_prompts = max((share.n for share in wins if share is not None), default=0)
  lead = ""
  if most_prompts:
    lead = f"On {most_prompts:,} prompts that no training saw, one sampled response each."
  parts = []
  tables = ((JUDGED, TERMS_OF_JUDGED), (SCORED, TERMS_OF_SCORED), (FORM, TERMS_OF_FORM))
  for columns, terms in tables:
    table = _table_of(models, names, columns)
    if table:
      parts += [table, f'<p class="terms">{terms}</p>']
  return page.section("results", "Results", lead, *parts)


def _table_of(models: dict[str, Any], names: list[str], columns: Sequence[Column]) -> str:
  """Returns a line for each model, of the columns that some model has; "" where there are none."""
  values = {}
  for name in names:
    for column in columns:
      values[name, column.key] = estimate(inside(models, name).get(column.key))
    if name == "sft":
      values[name, WINS] = None  # nobody wins against themselves
  known = [
    column for column in columns if any(values[name, column.key] is not None for name in names)
  ]
  if not known:
    return ""
  rows = []
  for name in names:
    cells = [page.cell(values[name, column.key], column.share, column.decimals) for column in known]
    rows.append([escape(MODELS.get(name, name)), *cells])
  counts_row = []
  for column in known:
    measured = [value for name in names if (value := values[name, column.key]) is not None]
    # The most items and clusters, where models differ.
    most = max(measured, key=lambda value: value.n)
    counts_row.append(intervals.counted(most) if most.n else "")
  if any(counts_row):
    rows.append(["n", *counts_row])
  head = ["", *(column.title for column in known)]
  return page.table(head, rows)


def slices(run: Run) -> Section:
  """Returns a forest plot of the win rates against SFT, by slice of the prompts."""
  models = inside(run.results, "models")
  by_model = {}
  for name in ("ppo", "ptx"):
    rates = inside(models, name, "win_rate_vs_sft_by_slice")
    if rates:
      by_model[name] = rates
  # The slices of all models in their order; a dict keeps it, a set would not.
  slice_names = dict.fromkeys(part for rates in by_model.values() for part in rates)

  rows = []
  for part in slice_names:
    marks = _marks({name: rates.get(part) for name, rates in by_model.items()})
    if marks:
      rows.append(Row(SLICES.get(part, part), marks))
  if not rows:
    return page.section("slices", "Win rate by slice", "")
  wins_by_model = {name: inside(models, name).get(WINS) for name in by_model}
  overall = _marks(wins_by_model)
  if overall:  # stands above its slices
    rows.insert(0, Row("all prompts", overall))
  # The models have answered the same prompts.
  first = next(iter(by_model))
  counted = {"all prompts": estimate(wins_by_model[first])}
  for part in slice_names:
    counted[SLICES.get(part, part)] = estimate(by_model[first].get(part))
  body = forest(
    "Prompts won against SFT",
    rows,
    "share of prompts, gold score",
    reference=0.5,
    legend=[(name, MODELS[name]) for name in by_model],
    note=page.counts_note({label: share for label, share in counted.items() if share}),
  )
  lead = "Dots with 95 % intervals; at the dashed line, 50 %, a model does as well as SFT."
  return page.section("slices", "Win rate by slice", lead, page.grid([body]))


def _marks(values: dict[str, Any]) -> list[Mark]:
  """Returns the marks of models in a row, without those that have no number."""
  marks = []
  for name, value in values.items():
    share = estimate(value)
    if share is not None:
      marks.append((name, share.value, share.low, share.high))
  return marks


# --- samples and cost ---


def samples(run: Run) -> Section:
  """Returns the first records of samples.jsonl, as they come."""
  if any("iteration" in record for record in run.samples):
    return samples_of_training(run)
  cards = [sample(record) for record in run.samples[:SAMPLES]]
  if not cards:
    return page.section("samples", "Samples", "")
  folded_cards = cards[OPEN:]
  body = "".join(cards[:OPEN])
  if folded_cards:
    body += page.details(f"{len(folded_cards)} more", "".join(folded_cards))
  lead = f"The first {len(cards)} of {len(run.samples):,} test prompts, not chosen."
  return page.section("samples", "Samples, side by side", lead, body)


def samples_of_training(run: Run) -> Section:
  """Returns what PPO sampled at its first and its last iteration with samples."""
  records = [record for record in run.samples if number(record.get("iteration")) is not None]
  iterations = sorted({int(record["iteration"]) for record in records})
  body = ""
  for iteration in dict.fromkeys((iterations[0], iterations[-1])):
    cards = [sample_of_training(record) for record in records if record["iteration"] == iteration]
    body += page.details(f"Iteration {iteration}", "".join(cards[:SAMPLES]))
  lead = (
    f"The first responses of iterations {iterations[0]} and {iterations[-1]}, not chosen; "
    "samples.jsonl has those of "
    f"{len(iterations)} iterations."
  )
  return page.section("samples", "Samples of training", lead, body)


def sample_of_training(record: dict[str, Any]) -> str:
  """Returns a prompt and its response, with score and KL."""
  facts = []
  for name, label in (("score", "score"), ("kl", "KL")):
    value = number(record.get(name))
    if value is not None:
      facts.append(f"{label} {page.minus(value)}")
  prompt, response = escape(str(record.get("prompt", ""))), escape(str(record.get("response", "")))
  title = f'<dt class="ppo">PPO <small>{" · ".join(facts)}</small></dt>'
  answer = f"<div>{title}<dd>{response or '<em>empty</em>'}</dd></div>"
  return f'<div class="sample"><p>{prompt}</p><dl>{answer}</dl></div>'


def sample(record: dict[str, Any]) -> str:
  """Returns a prompt and the response of each model with its scores."""
  labels = [str(record[key]) for key in ("domain", "use_case") if record.get(key)]
  prompt = escape(str(record.get("prompt", "")))
  head = f"<p>{prompt} <small>{escape(' · '.join(labels))}</small></p>"
  answers = ""
  for name, response in inside(record, "responses").items():
    look = LOOKS.get(name, "base")
    title = escape(MODELS.get(name, name))  # names come from the file
    scores = _scores(record, name)
    text = escape(str(response)) or "<em>empty</em>"
    answers += f'<div><dt class="{look}">{title} <small>{scores}</small></dt><dd>{text}</dd></div>'
  return f'<div class="sample">{head}<dl>{answers}</dl></div>'


def _scores(record: dict[str, Any], name: str) -> str:
  """Returns the scores of the response of one model."""
  parts = []
  for judge, key in (("RM", "scores"), ("gold", "gold")):
    score = number(inside(record, key).get(name))
    if score is not None:
      parts.append(f"{judge} {page.minus(score)}")
  return " · ".join(parts)


def cost(run: Run) -> Section:
  """Returns seconds by stage, memory and seed; versions and settings are folded."""
  recorded = inside(run.results, "seconds")
  seconds = []
  for name, entry in recorded.items():
    value = number(entry)
    if name != "total" and value is not None:
      seconds.append((name, value))
  memory = number(run.results.get("peak_rss_gb"))
  seed = run.results.get("seed", run.manifest.get("seed"))

  facts = []
  body = ""
  if seconds:
    total = number(recorded.get("total")) or sum(value for _, value in seconds)
    facts.append(f"{total:,.0f} seconds in all")
    body = page.grid([bars("Seconds by stage", seconds, "s")])
  if memory is not None:
    facts.append(f"{memory:.1f} GB at the peak")
  if seed is not None:
    facts.append(f"seed {seed}")
  settings = page.settings("Configuration", run.config)
  versions = page.settings("Versions, device, data", run.manifest)
  return page.section("cost", "Cost and settings", ", ".join(facts), body, settings, versions)


# In the order of the page: what came out, how it came about, what it cost, and the rest.
ALL = (
  results,
  slices,
  ranking,
  supervised_stages,
  ppo_curves,
  overoptimisation,
  alignment_tax,
  samples,
  cost,
  other_metrics,
)
