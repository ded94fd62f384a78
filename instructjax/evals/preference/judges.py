"""Judges, which say which of two answers is better, and raters, which rate one answer.

  runs/reward, run:runs/reward, or any sum of rewards (docs/rewards.md)
                               scores: the higher one wins
  python:FILE.py:FUNCTION      of (prompts, responses): scores;
                               of (prompts, a, b): P(a is better) or {win, tie, loss} of each
  openai:URL#MODEL             a chat model says A, B or tie; #template=FILE changes the question
  score:SOURCE                 takes any source as a reward: score:openai:... rates from 1 to 10
  lm:SOURCE, run:runs/sft      a model of ours: is " A" or " B" the likelier next word?
                               It takes #template=FILE too
  labels:FILE                  people, on the labeling page (`people`)

Several are written NAME=SOURCE; NAME=SOURCE. All judges but those that score see each pair in
both orders.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from instructjax import rewards
from instructjax.errors import UserError
from instructjax.evals import rows, scorers, subject
from instructjax.evals.preference import templates
from instructjax.evals.preference.people import Labels, open_labels
from instructjax.evals.tasks import Likelihood
from instructjax.rewards import Fields, Reward, functions, judge, spec
from instructjax.runs import origin, provenance
from instructjax.settings import EvalSettings
from instructjax.settings.evals import PreferenceSettings
from instructjax.settings.subjects import AnyModelSettings
from instructjax.system import jsons, user_code

# (prompt, response) to score or to rate; (prompt, first answer, second answer) to compare.
Question = tuple[str, ...]
# Answers several questions. The event is set when the run stops, so that requests end early.
Ask = Callable[[Sequence[Question], threading.Event], Sequence[Any]]

# The kinds of judges and raters.
SCORES = "scores"
PAIRS = "pairs"
RATINGS = "ratings"


class Judge(NamedTuple):
  """A judge or a rater that can be asked.

  kind        SCORES: it gives a number for each question; PAIRS: {"p": P(first is better)};
              RATINGS: the fields of Table 3
  about       what its answers depend on, for the manifest and the fingerprint
  batch       the number of questions at a time; `workers` such batches are asked at once
  everywhere  whether all processes ask (rewards, and models of ours on all devices) or only the
              first one
  """

  name: str
  kind: str
  ask: Ask
  about: Mapping[str, Any]
  batch: int = 64
  workers: int = 1
  everywhere: bool = False


def open_judges(
  config: EvalSettings, fields: Mapping[str, Fields] | None = None
) -> list[Judge | Labels]:
  """Opens the judges of config.preference.judges; our own models load at their first question.

  `fields` has the further fields of prompts by their texts, for rewards of the user.

  Raises:
    UserError: whatever can be seen before that is wrong.
  """
  source_by_name = rows.named(config.preference.judges, "judge")
  return [
    _open_judge(name, source, config, fields or {}) for name, source in source_by_name.items()
  ]


def open_raters(settings: PreferenceSettings) -> list[Judge | Labels]:
  """Opens the raters: openai:, labels:, or python: (prompts and responses -> a dict for each).

  Raises:
    UserError: a source is of another kind or cannot be opened.
  """
  source_by_name = rows.named(settings.raters, "rater")
  return [_open_rater(name, source) for name, source in source_by_name.items()]


def _open_judge(
  name: str, source: str, config: EvalSettings, fields: Mapping[str, Fields]
) -> Judge | Labels:
  kind, _, rest = source.partition(":")
  if kind == "labels":
    return open_labels(name, rest)
  if kind == "score":
    return _scoring_judge(name, rest, config.model, fields)
  if kind == "run" and not Path(rest).is_dir():
    raise UserError(
      f"config.preference.judges: {source}: no such directory; give the --workdir of a finished run"
    )
  # A run of a policy is asked which answer is better; a run of a reward model scores both.
  if kind == "lm" or (kind == "run" and origin.kind_of(rest) == "policy"):
    return _likelihood_judge(name, rest, config)
  # Three arguments are (prompts, a, b); a function of two arguments is a reward, as is any sum.
  if kind == "python" and "+" not in source and _required_arguments(rest) == 3:
    return _python_judge(name, rest, PAIRS)
  if kind == "openai" and " + " not in source:
    return _chat_judge(
      name, source, PAIRS, templates.PAIR, templates.PLACES, templates.read_verdict
    )
  if origin.is_run(source) and origin.kind_of(source) == "policy":
    return _likelihood_judge(name, source, config)
  return _scoring_judge(name, source, config.model, fields)


def _open_rater(name: str, source: str) -> Judge | Labels:
  kind, _, rest = source.partition(":")
  if kind == "labels":
    return open_labels(name, rest)
  if kind == "openai":
    places = ("prompt", "response")
    return _chat_judge(name, source, RATINGS, templates.RATING, places, templates.read_rating)
  if kind == "python":
    return _python_judge(name, rest, RATINGS)
  raise UserError(
    f"config.preference.raters: {source!r}: a rater is openai:URL#MODEL, python:FILE.py:FUNCTION "
    "or labels:FILE"
  )


# --- kinds ---


def _scoring_judge(
  name: str, source: str, model_settings: AnyModelSettings, fields: Mapping[str, Fields]
) -> Judge:
  """Opens rewards as a judge.

  Our own models load when they are first asked, so that an evaluation whose judgements are all on
  disk loads none. All other rewards are opened now, so that a hub id is in the cache by then.
  """
  terms = spec.parse(source)
  for term in terms:
    if term.kind == "run" and not Path(term.target).is_dir():
      raise UserError(f"config.preference.judges: {term.target}: no such directory; {spec.GRAMMAR}")

  @cache
  def open_rewards() -> tuple[Reward, ...]:
    return rewards.open_all(source, model_settings)

  if not any(term.kind == "run" for term in terms):
    open_rewards()

  def ask(questions: Sequence[Question], stop: threading.Event) -> list[float]:
    prompts = [prompt for prompt, _ in questions]
    responses = [response for _, response in questions]
    asked = [fields.get(prompt, {}) for prompt in prompts]
    scores = rewards.score_texts(open_rewards(), prompts, responses, asked)
    return rewards.total(open_rewards(), scores).tolist()

  about: dict[str, Any] = {"source": source, "sha256": [scorers.content(term) for term in terms]}
  if any(fields.values()) and any(term.kind in ("python", "http") for term in terms):
    # Another right answer is another question.
    about["fields"] = judge.digest(jsons.text(dict(fields), sort_keys=True))
  return Judge(name, SCORES, ask, about, everywhere=True)


def _required_arguments(target: str) -> int:
  """Returns how many arguments of a user's function have no default, not counting `fields`."""
  function, _ = user_code.find(target)
  parameters = inspect.signature(function).parameters
  return sum(
    parameter.default is parameter.empty and name != functions.FIELDS
    for name, parameter in parameters.items()
  )


def _python_judge(name: str, target: str, kind: str) -> Judge:
  """Opens a function of lists of texts as a judge or a rater."""
  function, about = functions.open_function(target)
  convert = _probability if kind == PAIRS else _rating

  def ask(questions: Sequence[Question], stop: threading.Event) -> list[Any]:
    # Columns: the prompts, then the responses or the two answers.
    columns = [list(column) for column in zip(*questions, strict=True)]
    result = function(*columns)
    replies = list(result) if hasattr(result, "__iter__") else []
    if len(replies) != len(questions):
      raise UserError(
        f"{name}: returned {len(replies)} answers to {len(questions)} questions; "
        "return one for each"
      )
    return [convert(name, reply) for reply in replies]

  return Judge(name, kind, ask, {"source": f"python:{target}", **about})


def _probability(name: str, reply: Any) -> dict[str, float]:
  """Returns {"p"} of a number from 0 to 1 or of {win, tie, loss}, which must sum to 1."""
  outcomes = {"win", "tie", "loss"}
  # What a user's function returns may hold anything.
  is_outcomes = isinstance(reply, Mapping) and set(reply) <= outcomes
  shares = list(reply.values()) if is_outcomes else []
  has_numbers = all(isinstance(share, int | float) for share in shares)
  is_distribution = bool(shares) and has_numbers and abs(sum(shares) - 1) < 1e-6
  if is_distribution:
    reply = reply.get("win", 0.0) + 0.5 * reply.get("tie", 0.0)
  try:
    p = float(reply)
  except (TypeError, ValueError):
    p = math.nan  # no range holds it, so that the error below shows the reply
  if not 0 <= p <= 1:
    raise UserError(
      f"{name}: answered {reply!r}; P(the first is better) from 0 to 1, or {{win, tie, loss}} that "
      "sum to 1"
    )
  return {"p": p}


def _rating(name: str, reply: Any) -> dict[str, Any]:
  problem = templates.rating_problem(reply)
  if problem:
    raise UserError(f"{name}: {problem}")
  return dict(reply)


def _chat_judge(
  name: str,
  source: str,
  kind: str,
  default_template: str,
  places: Sequence[str],
  read: Callable[[str], Any],
) -> Judge:
  """Opens a chat model behind an address, which gets one question a request."""
  (term,) = spec.parse(source)
  template = judge.template(term.options["template"], default_template, places)
  chat = judge.open_chat(term.target, term.choice, term.options)

  def ask(questions: Sequence[Question], stop: threading.Event) -> list[Any]:
    replies = []
    for question in questions:
      values = dict(zip(places, question, strict=True))
      replies.append(chat(judge.filled(template, **values), stop, read))
    return replies

  about = {
    "source": f"openai:{term.target}#{term.choice}",
    "template_sha256": judge.digest(template),
  }
  return Judge(name, kind, ask, about, batch=1, workers=term.options["concurrent"])


def _likelihood_judge(name: str, source: str, config: EvalSettings) -> Judge:
  """Opens a model of ours, whose next word after the question decides.

  P(first is better) = p(" A") / (p(" A") + p(" B"))
  """
  source, _, template_file = source.partition("#template=")
  template = judge.template(template_file, templates.SHORT, templates.PLACES)

  @cache
  def open_model() -> subject.Subject:
    parts = config.mesh.data * config.mesh.fsdp  # the devices that split a batch
    return subject.open_subject(source, config, parts)

  def ask(questions: Sequence[Question], stop: threading.Event) -> list[dict[str, float]]:
    requests = []
    for question in questions:
      values = dict(zip(templates.PLACES, question, strict=True))
      context = judge.filled(template, **values)
      requests.append((Likelihood(context, " A"), Likelihood(context, " B")))
    answers = subject.ask(open_model(), requests)
    # A question without its beginning is another question.
    excess = max(answer.cut for answer in answers)
    if excess:
      raise UserError(
        f"{name}: a question has {excess} tokens more than the context of {source}; take a model "
        "with a longer one, or a shorter #template=FILE"
      )
    verdicts = []
    for answer in answers:
      gap = answer.logp(1).logp - answer.logp(0).logp
      # exp overflows above 709 nats.
      verdicts.append({"p": 1 / (1 + math.exp(min(gap, 700.0)))})
    return verdicts

  about = {
    "source": source,
    "sha256": provenance.digest(source),
    "template_sha256": judge.digest(template),
    "settings": subject.settings(source, config),
  }
  return Judge(name, PAIRS, ask, about, everywhere=True)
