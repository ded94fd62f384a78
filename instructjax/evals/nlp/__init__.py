"""Public NLP tasks (App. D): do the capabilities of the base model survive alignment?

Every task is zero-shot, and few-shot where the paper's is: exemplars are drawn by the seed from
a training set.  Generation is greedy and cut at the first newline; choices are weighed by their
mean log-probability of a token.  Items of one passage, article or video are one cluster.
`together` is the table of the alignment tax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from instructjax.errors import UserError
from instructjax.evals import rows, tax, text_metrics
from instructjax.evals.nlp import choice, prompts, reading, writing
from instructjax.evals.nlp.prompts import Form, Passage
from instructjax.evals.tasks import (
  Generate,
  Item,
  Likelihood,
  Metric,
  Request,
  Said,
  Scores,
  Suite,
  Task,
  limited,
)
from instructjax.settings import EvalSettings

F1 = (Metric("F1", decimals=2), Metric("EM", decimals=2))
ACCURACY = (Metric("accuracy"),)
WORDS = Metric("words", 0, decimals=1)
draw = tax.draw


class Benchmark(NamedTuple):
  """One data set.

  read      a row -> a passage with its turns
  shots     how many exemplars the paper shows, 0 where it shows none
  worth     (text, data of the item) -> scores; None where the answer is a choice
  length    the field of config.nlp that bounds the tokens of an answer
  metrics   the first is the paper's
  """

  title: str
  form: Form
  read: Callable[[Mapping[str, Any]], Passage]
  shots: int
  worth: Callable[[str, Mapping[str, Any]], Scores] | None
  metrics: tuple[Metric, ...]
  length: str = "tokens"
  about: str = ""


BENCHMARKS = {
  "drop": Benchmark(
    "DROP",
    reading.DROP,
    reading.drop,
    4,
    reading.drop_score,
    F1,
    about="an answer counts as one span, whatever is in it",
  ),
  "quac": Benchmark(
    "QuAC",
    reading.QUAC,
    reading.quac,
    2,
    reading.quac_score,
    F1[:1],
    about="earlier gold answers in the prompt; F1 as in QuAC's own program, but no question is left out for low agreement",
  ),
  "squad": Benchmark(
    "SQuADv2",
    reading.SQUAD,
    reading.squad,
    4,
    reading.squad_score,
    F1,
    about='earlier gold answers in the prompt; "Not in background." is compared like any answer',
  ),
  "hellaswag": Benchmark("HellaSwag", choice.HELLASWAG, choice.hellaswag, 15, None, ACCURACY),
  "sst": Benchmark("SST", choice.SST, choice.sst, 15, None, ACCURACY),
  "rte": Benchmark("RTE", choice.RTE, choice.rte, 15, None, ACCURACY),
  "wsc": Benchmark(
    "WSC",
    choice.WSC,
    choice.wsc,
    15,
    choice.wsc_score,
    ACCURACY,
    about="the noun that is named, or words of it, against the candidate; exemplars are rows whose candidate is right",
  ),
  "wmt": Benchmark(
    "WMT15 Fr-En",
    writing.WMT,
    writing.wmt,
    15,
    writing.wmt_score,
    (Metric("BLEU", of=text_metrics.bleu, decimals=2), WORDS),
    "long_tokens",
    "corpus BLEU, 13a tokens, case counts",
  ),
  "cnn_dm": Benchmark(
    "CNN/DM",
    writing.SUMMARY,
    writing.cnn_dm,
    0,
    writing.summary_score,
    (Metric("ROUGE-L"), WORDS),
    "long_tokens",
    "ROUGE-L without stemming",
  ),
  "tldr": Benchmark(
    "TL;DR",
    writing.SUMMARY,
    writing.tldr,
    0,
    writing.summary_score,
    (Metric("ROUGE-L"), WORDS),
    "long_tokens",
    "ROUGE-L without stemming; the paper's row is a copy of its CNN/DM row and is not shown (E11)",
  ),
}


def open_suite(config: EvalSettings) -> Suite:
  """The tasks whose data are given.  Raises UserError where none is, and for bad data."""
  c = config.nlp
  named = {name: one for name, one in BENCHMARKS.items() if getattr(c, name)}
  if not named:
    raise UserError(
      "the suite nlp has no data: set one of "
      f"{', '.join(f'config.nlp.{name}' for name in BENCHMARKS)}"
    )
  tasks = [task for name, one in named.items() for task in _tasks(name, one, config)]
  return Suite("nlp", tasks, partial(tax.together, tasks, seed=config.seed))


def _tasks(name: str, one: Benchmark, config: EvalSettings) -> list[Task]:
  """Zero-shot, and few-shot where there are exemplars."""
  c, source = config.nlp, getattr(config.nlp, name)
  read = partial(rows.read, convert=one.read, folder=config.folder or None)
  passages = prompts.gathered(read(source))
  items = limited(prompts.items(one.form, passages), config.limit, config.seed)
  way = _way(one, config)
  zero = "zero-shot" if one.shots else "-"
  found = [_task(one, zero, items, prompts.opening(one.form, []), getattr(c, one.length), way)]
  exemplars = getattr(c.shots, name, "")
  if exemplars:
    place = f"config.nlp.shots.{name}={exemplars}"
    drawn = prompts.drawn(prompts.gathered(read(exemplars)), one.shots, config.seed, place)
    prompts.apart(drawn, passages, place)
    head = prompts.opening(
      one.form, [prompts.shown(one.form, each, c.shot_questions) for each in drawn]
    )
    several = f"{one.shots} exemplars of {exemplars}, seed {config.seed}; {way}"
    found.append(_task(one, "few-shot", items, head, getattr(c, one.length), several))
  return found


def _way(one: Benchmark, config: EvalSettings) -> str:
  asked = "the choice with the highest mean log-probability of a token"
  if one.worth is not None:
    asked = f"greedy, to the first newline or {getattr(config.nlp, one.length)} tokens"
  return "; ".join(filter(None, [asked, one.about]))


def _task(
  one: Benchmark, shots: str, items: Sequence[Item], head: str, tokens: int, about: str
) -> Task:
  first, *rest = one.metrics
  metrics = (
    (first._replace(paper=(one.title, first.name, shots)), *rest)
    if one.title != "TL;DR"
    else one.metrics
  )
  name = one.title if shots == "-" else f"{one.title} {shots}"
  worth = one.worth

  def ask(item: Item) -> list[Request]:
    prompt = head + item.data["prompt"]
    return [Likelihood(prompt, f" {text}") for text in item.data["choices"]] or [
      Generate(prompt, tokens)
    ]

  def score(items: Sequence[Item], said: Sequence[Said]) -> list[Scores]:
    if worth is None:
      return [choice.choice_score(told, item.data) for item, told in zip(items, said, strict=True)]
    return [worth(_line(told), item.data) for item, told in zip(items, said, strict=True)]

  return Task(name, items, ask, score, metrics, 256, about)


def _line(said: Said) -> str:
  """The answer up to the first newline, in case a token held it with what follows."""
  return said.completions()[0].text.partition("\n")[0].strip()
