"""Public NLP tasks (App. D): do the capabilities of the base model survive alignment?

Every task is asked zero-shot, and few-shot where the paper's is; the seed draws the exemplars from
a training set. Texts are generated greedily up to the first newline. Choices are compared by their
mean log-probability of a token. Items of one passage, article or video are one cluster.

`together` is the table of the alignment tax (`evals.tax`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from instructjax.errors import UserError, naming
from instructjax.evals import rows, tax, text_metrics
from instructjax.evals.nlp import choice, prompts, reading, writing
from instructjax.evals.nlp.prompts import Form, Passage
from instructjax.evals.tasks import (
  Generate,
  Item,
  Likelihood,
  Metric,
  Reply,
  Request,
  Scores,
  Suite,
  Task,
  limited,
)
from instructjax.settings import EvalSettings
from instructjax.settings.evals import NLPSettings

draw = tax.draw

# Metrics that several data sets share.
F1 = Metric("F1", decimals=2)
EXACT = Metric("EM", decimals=2)
ACCURACY = Metric("accuracy")
BLEU = Metric("BLEU", of=text_metrics.bleu, decimals=2)
ROUGE = Metric("ROUGE-L")
WORDS = Metric("words", 0, decimals=1)


class Benchmark(NamedTuple):
  """One data set.

  title     the name in the paper's tables
  form      the format of its prompts
  read      returns the passage of a row
  shots     the number of exemplars that the paper shows; 0 where it shows none
  score     returns the scores of (text, data of the item); None where the answer is a choice
  metrics   the first one is the paper's
  length    the field of config.nlp that bounds the tokens of an answer
  about     what a reader should know beside the numbers
  """

  title: str
  form: Form
  read: Callable[[Mapping[str, Any]], Passage]
  shots: int
  score: Callable[[str, Mapping[str, Any]], Scores] | None
  metrics: tuple[Metric, ...]
  length: str = "tokens"
  about: str = ""


# By the name of the field of config.nlp that has the test set.
BENCHMARKS = {
  "drop": Benchmark(
    title="DROP",
    form=reading.DROP,
    read=reading.drop,
    shots=4,
    score=reading.drop_score,
    metrics=(F1, EXACT),
    about="an answer counts as one span, whatever is in it",
  ),
  "quac": Benchmark(
    title="QuAC",
    form=reading.QUAC,
    read=reading.quac,
    shots=2,
    score=reading.quac_score,
    metrics=(F1,),
    about=(
      "earlier gold answers in the prompt; F1 as in QuAC's own program, but no question is left "
      "out for low agreement"
    ),
  ),
  "squad": Benchmark(
    title="SQuADv2",
    form=reading.SQUAD,
    read=reading.squad,
    shots=4,
    score=reading.squad_score,
    metrics=(F1, EXACT),
    about='earlier gold answers in the prompt; "Not in background." is compared like any answer',
  ),
  "hellaswag": Benchmark(
    title="HellaSwag",
    form=choice.HELLASWAG,
    read=choice.hellaswag,
    shots=15,
    score=None,
    metrics=(ACCURACY,),
  ),
  "sst": Benchmark(
    title="SST",
    form=choice.SST,
    read=choice.sst,
    shots=15,
    score=None,
    metrics=(ACCURACY,),
  ),
  "rte": Benchmark(
    title="RTE",
    form=choice.RTE,
    read=choice.rte,
    shots=15,
    score=None,
    metrics=(ACCURACY,),
  ),
  "wsc": Benchmark(
    title="WSC",
    form=choice.WSC,
    read=choice.wsc,
    shots=15,
    score=choice.wsc_score,
    metrics=(ACCURACY,),
    about=(
      "the noun that is named, or words of it, against the candidate; exemplars are rows whose "
      "candidate is right"
    ),
  ),
  "wmt": Benchmark(
    title="WMT15 Fr-En",
    form=writing.WMT,
    read=writing.wmt,
    shots=15,
    score=writing.wmt_score,
    metrics=(BLEU, WORDS),
    length="long_tokens",
    about="corpus BLEU, 13a tokens, case counts",
  ),
  "cnn_dm": Benchmark(
    title="CNN/DM",
    form=writing.SUMMARY,
    read=writing.cnn_dm,
    shots=0,
    score=writing.summary_score,
    metrics=(ROUGE, WORDS),
    length="long_tokens",
    about="ROUGE-L without stemming",
  ),
  "tldr": Benchmark(
    title="TL;DR",
    form=writing.SUMMARY,
    read=writing.tldr,
    shots=0,
    score=writing.summary_score,
    metrics=(ROUGE, WORDS),
    length="long_tokens",
    about=(
      "ROUGE-L without stemming; the paper's row is a copy of its CNN/DM row and is not shown (E11)"
    ),
  ),
}


def open_suite(config: EvalSettings) -> Suite:
  """Returns the tasks that have data.

  Raises:
    UserError: no task has data, or the data are bad.
  """
  tasks = []
  for name, benchmark in BENCHMARKS.items():
    source = getattr(config.nlp, name)
    if source:
      tasks += _open_tasks(name, benchmark, source, config)
  if not tasks:
    # Nothing is read by default: no public data set comes with the package.
    fields = ", ".join(f"config.nlp.{name}" for name in BENCHMARKS)
    raise UserError(f"the suite nlp has no data: set one of {fields}")
  return Suite("nlp", tasks, partial(tax.together, tasks, seed=config.seed))


def _open_tasks(
  name: str,
  benchmark: Benchmark,
  source: str,
  config: EvalSettings,
) -> list[Task]:
  """Returns the zero-shot task of a data set, and the few-shot one where there are exemplars."""
  form = benchmark.form
  # The queries; exemplars come from another file.
  with naming(f"config.nlp.{name}", source):
    passages = _read_passages(benchmark, source, config)
  items = limited(prompts.items(form, passages), config.limit, config.seed)
  method = _describe_method(benchmark, config.nlp)
  tokens = getattr(config.nlp, benchmark.length)
  # The paper's tables have no such word for summaries, which it never asks few-shot.
  zero_shot = "zero-shot" if benchmark.shots else "-"
  # Zero-shot prompts have the instruction alone.
  head = prompts.preamble(form, [])
  tasks = [_task(benchmark, zero_shot, items, head, tokens, method)]
  # Data sets that the paper never asks few-shot have no field.
  training_set = getattr(config.nlp.shots, name, "")
  if training_set:
    place = f"config.nlp.shots.{name}={training_set}"
    with naming(f"config.nlp.shots.{name}", training_set):
      candidates = _read_passages(benchmark, training_set, config)
    exemplars = prompts.draw_exemplars(candidates, benchmark.shots, config.seed, place)
    prompts.check_disjoint(exemplars, passages, place)
    # Passages of DROP have dozens of questions, more than a context has room for.
    questions = config.nlp.shot_questions
    texts = [prompts.exemplar(form, passage, questions) for passage in exemplars]
    head = prompts.preamble(form, texts)
    about = f"{benchmark.shots} exemplars of {training_set}, seed {config.seed}; {method}"
    tasks.append(_task(benchmark, "few-shot", items, head, tokens, about))
  return tasks


def _read_passages(benchmark: Benchmark, source: str, config: EvalSettings) -> list[Passage]:
  return prompts.merge(rows.read(source, benchmark.read, folder=config.folder or None))


def _describe_method(benchmark: Benchmark, settings: NLPSettings) -> str:
  """Returns in words how an answer is taken, and what to know of the data set."""
  if benchmark.score is None:
    method = "the choice with the highest mean log-probability of a token"
  else:
    tokens = getattr(settings, benchmark.length)
    method = f"greedy, to the first newline or {tokens} tokens"
  return f"{method}; {benchmark.about}" if benchmark.about else method


def _task(
  benchmark: Benchmark,
  shots: str,
  items: Sequence[Item],
  head: str,
  tokens: int,
  about: str,
) -> Task:
  """Returns a task whose prompts begin with `head`."""
  # The paper's copy of the CNN/DM row is no number of TL;DR (E11).
  main, *others = benchmark.metrics
  if benchmark.title != "TL;DR":
    main = main._replace(paper=(benchmark.title, main.name, shots))
  name = benchmark.title if shots == "-" else f"{benchmark.title} {shots}"
  # None for benchmarks whose answer is a choice.
  score_text = benchmark.score

  def ask(item: Item) -> list[Request]:
    prompt = head + item.data["prompt"]
    # The space belongs to the answer, as in exemplars.
    choices = item.data["choices"]
    if choices:
      return [Likelihood(prompt, f" {text}") for text in choices]
    return [Generate(prompt, tokens)]

  def score(items: Sequence[Item], answers: Sequence[Reply]) -> list[Scores]:
    scores = []
    for item, answer in zip(items, answers, strict=True):
      if score_text is None:
        scores.append(choice.choice_score(answer, item.data))
      else:
        scores.append(score_text(_first_line(answer), item.data))
    return scores

  return Task(name, items, ask, score, (main, *others), batch=256, about=about)


def _first_line(answer: Reply) -> str:
  """Returns the answer up to a newline, which may be in the same token as the text after it."""
  line, _, _ = answer.completions()[0].text.partition("\n")
  return line.strip()
