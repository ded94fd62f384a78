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
from instructjax.runs.report.names import LOOKS, MODELS, SLICES, stage_look, stage_title
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

# What the samples of a stage are, which it leaves at its end.
LEADS_OF_SAMPLES = {
  "sft": "Answers to the first held-out prompts, sampled at temperature 1 and not chosen, beside "
  "the demonstrations of people.",
  "rl_init": "Answers to the first held-out prompts, sampled at temperature 1 and not chosen, "
  "beside the demonstrations of people.",
  "dpo": "Answers to the first held-out prompts, sampled at temperature 1 and not chosen, beside "
  "the completion that people prefer.",
  "reward": "Of the first held-out prompts, the completions that the model scores highest and "
  "lowest. The rank is the labeler's, 1 is the best.",
}
# The names of a reward model's samples in samples.jsonl, as readers see them.
SCORED_ENDS = {"highest": "highest score", "lowest": "lowest score"}

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
  if not run.samples:
    return page.section("samples", "Samples", "", _why_no_samples(run))
  body = _some_open([sample(record) for record in run.samples[:SAMPLES]])
  count = min(SAMPLES, len(run.samples))
  lead = f"The first {count} of {len(run.samples):,} test prompts, not chosen."
  return page.section("samples", "Samples, side by side", lead, body)


def _some_open(cards: Sequence[str]) -> str:
  """Returns the first cards, and the others folded."""
  body = "".join(cards[:OPEN])
  folded_cards = cards[OPEN:]
  if folded_cards:
    body += page.details(f"{len(folded_cards)} more", "".join(folded_cards))
  return body


def _why_no_samples(run: Run) -> str:
  """Returns how a stage that samples at its end gets held-out prompts, where it had none."""
  data = inside(run.config, "data")
  has_none_held_out = not (data.get("valid") or data.get("held_out"))
  if run.config.get("stage") not in LEADS_OF_SAMPLES or not has_none_held_out:
    return ""
  sentence = (
    "None: nothing was held out, and answers to what a model has learnt would look too good. "
    "`config.data.held_out=0.05` holds out a part of the data, `config.data.valid` names a file."
  )
  return f'<p class="advice">{page.with_code(sentence)}</p>'


def samples_of_training(run: Run) -> Section:
  """Returns what stages of training sampled: the first and the last samples of each."""
  by_stage: dict[str, list[tuple[float, dict[str, Any]]]] = {}
  for record in run.samples:
    iteration = number(record.get("iteration"))
    if iteration is not None:
      by_stage.setdefault(str(record.get("stage", "ppo")), []).append((iteration, record))
  bodies = [_samples_of_stage(run, stage, records) for stage, records in by_stage.items()]
  return page.section("samples", "Samples of training", "", *bodies)


def _samples_of_stage(run: Run, stage: str, records: Sequence[tuple[float, dict[str, Any]]]) -> str:
  """Returns the samples of one stage, with a sentence that says what they are.

  `records` are pairs of an iteration and a record.
  """
  iterations = sorted({iteration for iteration, _ in records})
  first, last = iterations[0], iterations[-1]

  def cards_of(wanted: float) -> list[str]:
    of_iteration = [record for iteration, record in records if iteration == wanted]
    return [_sample_card(run, stage, record) for record in of_iteration[:SAMPLES]]

  if stage in LEADS_OF_SAMPLES:
    return f"<p>{escape(LEADS_OF_SAMPLES[stage])}</p>{_some_open(cards_of(last))}"
  # What the policy says now is what a reader wants to see first.
  body = f"<h3>Iteration {last:.0f}</h3>{_some_open(cards_of(last))}"
  if first == last:
    return f"<p>The first responses of an iteration, not chosen.</p>{body}"
  lead = (
    f"The first responses of iterations {first:.0f} and {last:.0f}, not chosen; "
    f"samples.jsonl has those of {len(iterations)} iterations."
  )
  body += page.details(f"Iteration {first:.0f}", "".join(cards_of(first)))
  return f"<p>{lead}</p>{body}"


def _sample_card(run: Run, stage: str, record: dict[str, Any]) -> str:
  """Returns a prompt with one response, or with several that a reward model has scored."""
  return sample(record) if "responses" in record else sample_of_training(run, stage, record)


def sample_of_training(run: Run, stage: str, record: dict[str, Any]) -> str:
  """Returns a prompt and its response, with score and KL, beside the answer of people."""
  facts = []
  for name, label in (("score", "score"), ("kl", "KL")):
    value = number(record.get(name))
    if value is not None:
      facts.append(f"{label} {page.minus(value)}")
  look, title = stage_look(run, stage), stage_title(stage)
  answers = _answer(look, title, " · ".join(facts), record.get("response", ""))
  if record.get("reference") is not None:
    answers += _answer("base", "people", "", record["reference"])
  prompt = escape(str(record.get("prompt", "")))
  return f'<div class="sample"><p>{prompt}</p><dl>{answers}</dl></div>'


def _answer(look: str, title: str, facts: str, text: Any) -> str:
  """Returns one answer under the name of whoever gave it; `facts` are the small print beside it."""
  head = f'<dt class="{look}">{escape(title)} <small>{facts}</small></dt>'
  return f"<div>{head}<dd>{escape(str(text)) or '<em>empty</em>'}</dd></div>"


def sample(record: dict[str, Any]) -> str:
  """Returns a prompt and the response of each model with its scores."""
  labels = [str(record[key]) for key in ("domain", "use_case") if record.get(key)]
  prompt = escape(str(record.get("prompt", "")))
  head = f"<p>{prompt} <small>{escape(' · '.join(labels))}</small></p>"
  answers = ""
  for name, response in inside(record, "responses").items():
    look = LOOKS.get(name, "base")
    title = MODELS.get(name) or SCORED_ENDS.get(name, name)
    answers += _answer(look, title, _scores(record, name), response)
  return f'<div class="sample">{head}<dl>{answers}</dl></div>'


def _scores(record: dict[str, Any], name: str) -> str:
  """Returns the scores of the response of one model."""
  parts = []
  for judge, key in (("RM", "scores"), ("gold", "gold")):
    score = number(inside(record, key).get(name))
    if score is not None:
      parts.append(f"{judge} {page.minus(score)}")
  rank = number(inside(record, "ranks").get(name))
  if rank is not None:
    parts.append(f"rank {rank:.0f}")
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
