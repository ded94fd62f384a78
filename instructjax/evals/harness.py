"""EleutherAI's lm-evaluation-harness on our models: any of its tasks, `instructjax lm_eval
--model=runs/ppo --tasks=...`.

The adapter answers with the programs of `subject`, so its log-likelihoods are ours.  As the
harness does for other models, the spaces at the end of a context go to the continuation; unlike
it, both are encoded apart, as in training.  A context that does not fit the model loses its
beginning, and an answer has at most half of the model's context: how often stands in
lm_eval.json under `limits`, and below the table.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructjax.data.batches.pipeline import Row
from instructjax.errors import UserError
from instructjax.evals import subject as subjects
from instructjax.evals.batches import Ask
from instructjax.evals.subject import Subject
from instructjax.evals.tasks import Answer, Completion, Generate, Likelihood, Logp, Request
from instructjax.runs import writers
from instructjax.runs.progress import progressing
from instructjax.settings.fields import to_dict
from instructjax.stages import running

Config = Any  # ml_collections.ConfigDict
TOKENS = 256  # of an answer, where a task does not say


def main(
  config: Config,
  source: str,
  tasks: Sequence[str],
  workdir: Path,
  *,
  shots: int | None,
  limit: int,
  include: str,
) -> None:
  """Runs tasks of the harness, prints its table and leaves lm_eval.json and its samples in the
  directory.
  """
  package, manager = (
    _package("lm_eval"),
    _package("lm_eval.tasks").TaskManager(include_path=include or None),
  )
  for task in tasks:
    if task not in manager.all_tasks:
      raise UserError(
        f"--tasks={task}: the harness has no such task; `lm_eval ls tasks` lists its own, "
        "--include=FOLDER adds yours"
      )
  limits: dict[str, Limits] = {}
  with (
    running.devices(config.mesh) as parts,
    writers.open_run(workdir, to_dict(config), seed=config.seed),
  ):
    model = subjects.open_subject(source, config, parts)
    writers.note(workdir, models={"model": dict(model.about)})
    found = package.simple_evaluate(
      model=adapter(model, limits),
      tasks=list(tasks),
      num_fewshot=shots,
      limit=limit or None,
      task_manager=manager,
      random_seed=config.seed,
      numpy_random_seed=config.seed,
      torch_random_seed=config.seed,
      fewshot_random_seed=config.seed,
    )
  found["limits"] = {task: dataclasses.asdict(one) for task, one in limits.items()}
  samples = found.pop("samples", {})
  text = lambda value: json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"
  writers.replace(workdir / "lm_eval.json", text(found))
  for task, rows in samples.items():
    writers.replace(workdir / f"lm_eval.{task}.json", text(rows))
  print("\n".join([_package("lm_eval.utils").make_table(found), *told(limits, model.context)]))


@dataclass
class Limits:
  """How many requests of a task there were, lost the beginning of their context, and got fewer
  tokens than the task gives.
  """

  requests: int = 0
  contexts_cut: int = 0
  answers_shortened: int = 0


def told(limits: Mapping[str, Limits], context: int) -> list[str]:
  """A line for each task that does not fit the model."""
  lines = []
  for task, one in limits.items():
    cut = f"the contexts of {one.contexts_cut} lost their beginning" if one.contexts_cut else ""
    short = (
      f"the answers of {one.answers_shortened} were bounded by {context // 2} tokens"
      if one.answers_shortened
      else ""
    )
    if said := " and ".join(filter(None, [cut, short])):
      lines.append(
        f"note: {task}: of {one.requests} requests {said}; the model's context is {context} tokens"
      )
  return lines


def adapter(subject: Subject, limits: dict[str, Limits]) -> Any:
  """The `lm_eval.api.model.LM` of an open model; `limits` gets what did not fit it, by task."""
  base: Any = _package("lm_eval.api.model").LM
  utils = _package("lm_eval.utils")

  def answers(name: str, given: Sequence[Any], requests: Sequence[Request]) -> list[Answer]:
    rows = subject.rows([(at, [request]) for at, request in enumerate(requests)])
    for one, request, (ask, _) in zip(given, requests, rows, strict=True):
      count = limits.setdefault(one.task_name or "", Limits())
      count.requests += 1
      count.contexts_cut += ask.cut > 0
      count.answers_shortened += isinstance(request, Generate) and request.tokens < wanted(
        one.args[1]
      )
    return _run(subject, name, rows, len(requests))

  class InstructJAX(base):
    """Log-likelihoods in nats, of a continuation or of a whole text, and text until a stop."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
      found = answers("loglikelihood", requests, [_likelihood(*one.args) for one in requests])
      return [(one.logp, one.greedy) for one in found if isinstance(one, Logp)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
      return rolling(subject, utils, [one.args[0] for one in requests])

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
      found = answers(
        "generate_until", requests, [generation(subject, *one.args) for one in requests]
      )
      return [one.text for one in found if isinstance(one, Completion)]

    @property
    def tokenizer_name(self) -> str:
      return subject.tokenizer.fingerprint

  return InstructJAX()


def _likelihood(context: str, continuation: str) -> Likelihood:
  bare = context.rstrip()
  return (
    Likelihood(bare, context[len(bare) :] + continuation)
    if bare
    else Likelihood(context, continuation)
  )


def generation(subject: Subject, context: str, options: dict[str, Any]) -> Generate:
  """A request of the harness as ours, of at most half of the context; an option that is null is as
  if it were not there.

  A task that samples and names no top_p or top_k draws from the whole distribution.  Raises
  UserError for other options.
  """
  options = {name: value for name, value in options.items() if value is not None}
  known = ("until", "max_gen_toks", "max_new_tokens", "temperature", "do_sample", "top_p", "top_k")
  drawn = options.get("do_sample", False) and options.get("temperature", 1.0) > 0
  other = {name: value for name, value in options.items() if name not in known}
  if drawn and other:
    raise UserError(f"the task samples with {other}; the adapter knows {', '.join(known)}")
  until = options.get("until") or ()
  stop = (until,) if isinstance(until, str) else tuple(until)
  tokens = min(wanted(options), subject.context // 2)
  if not drawn:
    return Generate(context, tokens, 0.0, stop)
  cut = {
    "top_p": float(options.get("top_p", 1.0)),
    "top_k": max(int(options.get("top_k", 0)), 0),
  }  # -1 is 0 to some
  return Generate(context, tokens, float(options.get("temperature", 1.0)), stop, **cut)


def wanted(options: Mapping[str, Any]) -> int:
  """The tokens that a task gives an answer."""
  return int(options.get("max_gen_toks") or options.get("max_new_tokens") or TOKENS)


def _run(subject: Subject, name: str, rows: Sequence[Any], count: int) -> list[Answer]:
  plan = subject.plan(rows)
  found: dict[int, Answer] = {}
  with progressing(name, 0, len(plan)) as progress:
    for number, batch in enumerate(plan):
      found |= {
        ask.item: answer
        for ask, answer in zip(batch.asks, subject.answer(batch, number), strict=True)
      }
      progress.show(number + 1, {})
  return [found[at] for at in range(count)]


def rolling(subject: Subject, utils: Any, texts: Sequence[str]) -> list[float]:
  """log p of whole texts: windows of the context that share no predicted token, the first after an
  end-of-text token.
  """
  tokenizer, rows, owner = subject.tokenizer, [], []
  prefix = [*tokenizer.bos, tokenizer.eos[0]][0]
  for at, text in enumerate(texts):
    windows = utils.get_rolling_token_windows(
      tokenizer.encode(text), prefix, subject.context - 1, 1
    )
    for before, after in map(utils.make_disjoint_window, windows):
      rows.append(
        (Ask(len(rows), 0, 0, Row(np.asarray([*before, *after], np.int32), len(before)), 0), None)
      )
      owner.append(at)
  sums = [0.0] * len(texts)
  for at, one in zip(owner, _run(subject, "loglikelihood_rolling", rows, len(rows)), strict=True):
    sums[at] += one.logp if isinstance(one, Logp) else 0.0
  return sums


def _package(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(
      f"lm-evaluation-harness is not installed ({error}); run pip install 'instructjax[harness]'"
    ) from None
