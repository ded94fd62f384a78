"""Judges: whoever says which of two answers is better, and raters, who rate one answer.

  runs/reward, run:runs/reward, or any sum of rewards (docs/rewards.md)    scores: the higher one wins
  python:FILE.py:FUNCTION      of (prompts, responses): scores; of (prompts, a, b): P(a is better) or {win, tie, loss} each
  openai:URL#MODEL             a chat model says A, B or tie; #template=FILE for other words
  score:SOURCE                 rewards whatever the source, such as score:openai:... for ratings from 1 to 10
  lm:SOURCE, run:runs/sft      a model of ours: is " A" or " B" the likelier next word?  #template=FILE as above
  labels:FILE                  people, on the labeling page (`people`)

Several are written NAME=SOURCE; NAME=SOURCE.  Everything but scores sees each pair in both orders.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from instructjax import rewards
from instructjax.errors import UserError
from instructjax.evals import rows, scorers, subject
from instructjax.evals.preference import words
from instructjax.evals.preference.people import Labels, open_labels
from instructjax.evals.tasks import Likelihood
from instructjax.rewards import functions, judge, spec
from instructjax.runs import origin, provenance
from instructjax.system import user_code

Config = Any  # ml_collections.ConfigDict
Question = tuple[
  str, ...
]  # (prompt, response) to score or rate, (prompt, first answer, second answer) to compare
Ask = Callable[[Sequence[Question], threading.Event], Sequence[Any]]
SCORES, PAIRS, RATINGS = "scores", "pairs", "ratings"


class Judge(NamedTuple):
  """Who can be asked.

  kind        scores: a number for each question; pairs: {"p": P(first is better)}; ratings: Table 3's fields
  about       what its answers depend on, for the manifest and the fingerprint
  batch       questions at a time, `workers` times at once
  everywhere  all processes ask (rewards, and models of ours on all devices); otherwise the first one
  """

  name: str
  kind: str
  ask: Ask
  about: Mapping[str, Any]
  batch: int = 64
  workers: int = 1
  everywhere: bool = False


def open_judges(config: Config) -> list[Judge | Labels]:
  """The judges of config.preference.judges; models of ours are opened when they are first asked.

  Raises UserError for whatever can be seen before that.
  """
  return [
    _open(name, source, config)
    for name, source in rows.named(config.preference.judges, "judge").items()
  ]


def open_raters(config: Config) -> list[Judge | Labels]:
  """The raters of config.preference.raters: openai:, python: (of prompts and responses, a dict
  each) or labels:.
  """
  return [
    _rater(name, source) for name, source in rows.named(config.preference.raters, "rater").items()
  ]


def _open(name: str, source: str, config: Config) -> Judge | Labels:
  kind, _, rest = source.partition(":")
  if kind == "labels":
    return open_labels(name, rest)
  if kind == "score":
    return _scores(name, rest, config)
  if kind == "run" and not Path(rest).is_dir():
    raise UserError(
      f"config.preference.judges: {source}: no such directory; give the --workdir of a finished run"
    )
  if kind == "lm" or (kind == "run" and origin.kind_of(rest) == "policy"):
    return _likelihood(name, rest, config)
  if kind == "python" and "+" not in source and _arguments(rest) == 3:
    return _python(name, rest)
  if kind == "openai" and " + " not in source:
    return _openai(name, source, PAIRS, words.PAIR, words.PLACES, words.verdict)
  if origin.is_run(source) and origin.kind_of(source) == "policy":
    return _likelihood(name, source, config)
  return _scores(name, source, config)


def _rater(name: str, source: str) -> Judge | Labels:
  kind, _, rest = source.partition(":")
  if kind == "labels":
    return open_labels(name, rest)
  if kind == "openai":
    return _openai(name, source, RATINGS, words.RATING, ("prompt", "response"), words.ratings)
  if kind == "python":
    return _python(name, rest, RATINGS)
  raise UserError(
    f"config.preference.raters: {source!r}: a rater is openai:URL#MODEL, python:FILE.py:FUNCTION "
    "or labels:FILE"
  )


# --- kinds ---


def _scores(name: str, source: str, config: Config) -> Judge:
  """Any rewards.  Models of ours are opened when they are first asked, all others now: a hub id is
  then in the cache.
  """
  terms = spec.parse(source)
  for term in terms:
    if term.kind == "run" and not Path(term.target).is_dir():
      raise UserError(f"config.preference.judges: {term.target}: no such directory; {spec.GRAMMAR}")
  opened = cache(partial(rewards.open_all, source, config.model))
  if not any(term.kind == "run" for term in terms):
    opened()

  def ask(questions: Sequence[Question], stop: threading.Event) -> list[float]:
    prompts, responses = ([question[i] for question in questions] for i in (0, 1))
    return rewards.total(opened(), rewards.score_texts(opened(), prompts, responses)).tolist()

  about = {"source": source, "sha256": [scorers.content(term) for term in terms]}
  return Judge(name, SCORES, ask, about, everywhere=True)


def _arguments(target: str) -> int:
  function, _ = user_code.find(target)
  return sum(p.default is p.empty for p in inspect.signature(function).parameters.values())


def _python(name: str, target: str, kind: str = PAIRS) -> Judge:
  """A function of lists of texts."""
  function, about = functions.open_function(target)

  def ask(questions: Sequence[Question], stop: threading.Event) -> list[Any]:
    found = function(*([question[i] for question in questions] for i in range(len(questions[0]))))
    given = list(found) if isinstance(found, Sequence) or hasattr(found, "__iter__") else []
    if len(given) != len(questions):
      raise UserError(
        f"{name}: returned {len(given)} answers to {len(questions)} questions; return one for each"
      )
    return [_probability(name, one) if kind == PAIRS else _rating(name, one) for one in given]

  return Judge(name, kind, ask, {"source": f"python:{target}"} | about)


def _probability(name: str, given: Any) -> dict[str, float]:
  """{"p"} of a number from 0 to 1 or of {win, tie, loss}, which sum to 1."""
  if (
    isinstance(given, Mapping)
    and set(given) <= {"win", "tie", "loss"}
    and abs(sum(given.values()) - 1) < 1e-6
  ):
    given = given.get("win", 0.0) + 0.5 * given.get("tie", 0.0)
  try:
    p = float(given)
  except (TypeError, ValueError):
    p = math.nan
  if not 0 <= p <= 1:
    raise UserError(
      f"{name}: answered {given!r}; P(the first is better) from 0 to 1, or {{win, tie, loss}} that "
      "sum to 1"
    )
  return {"p": p}


def _rating(name: str, given: Any) -> dict[str, Any]:
  if problem := words.wrong(given):
    raise UserError(f"{name}: {problem}")
  return dict(given)


def _openai(
  name: str, source: str, kind: str, default: str, places: Sequence[str], read: Callable[[str], Any]
) -> Judge:
  """A chat model behind an address, one question a request."""
  (term,) = spec.parse(source)
  form = judge.template(term.options["template"], default, places)
  say = judge.open_chat(term.target, term.choice, term.options)

  def ask(questions: Sequence[Question], stop: threading.Event) -> list[Any]:
    return [
      say(judge.filled(form, **dict(zip(places, question, strict=True))), stop, read)
      for question in questions
    ]

  about = {"source": f"openai:{term.target}#{term.choice}", "template_sha256": judge.digest(form)}
  return Judge(name, kind, ask, about, batch=1, workers=term.options["concurrent"])


def _likelihood(name: str, source: str, config: Config) -> Judge:
  """P(first) = p(" A") / (p(" A") + p(" B")) after the template, by a model of ours."""
  source, _, file = source.partition("#template=")
  form = judge.template(file, words.SHORT, words.PLACES)

  @cache
  def opened() -> subject.Subject:
    return subject.open_subject(source, config, config.mesh.data * config.mesh.fsdp)

  def ask(questions: Sequence[Question], stop: threading.Event) -> list[dict[str, float]]:
    contexts = [
      judge.filled(form, **dict(zip(words.PLACES, question, strict=True))) for question in questions
    ]
    heard = subject.ask(
      opened(), [(Likelihood(text, " A"), Likelihood(text, " B")) for text in contexts]
    )
    if lost := max(said.cut for said in heard):
      raise UserError(
        f"{name}: a question has {lost} tokens more than the context of {source}; take a model "
        "with a longer one, or a shorter "
        "#template=FILE"
      )
    gaps = [said.logp(1).logp - said.logp(0).logp for said in heard]
    return [{"p": 1 / (1 + math.exp(min(gap, 700.0)))} for gap in gaps]

  about = {
    "source": source,
    "sha256": provenance.digest(source),
    "template_sha256": judge.digest(form),
    "settings": subject.settings(source, config),
  }
  return Judge(name, PAIRS, ask, about, everywhere=True)
