"""EleutherAI's lm-evaluation-harness on our models: `instructjax lm_eval --model=... --tasks=...`.

The adapter answers with the programs of `subject`, so its log-likelihoods are ours. As the harness
does for other models, the spaces at the end of a context go to the continuation; unlike there, both
are encoded separately, as in training. With a chat template the harness makes chats of a task's
prompts and exemplars, and the adapter renders them with the model's own template. A context that
does not fit the model loses its beginning, and an answer has at most half of the model's context.
How often that happened stands in lm_eval.json under `limits`, and below the table.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from instructjax.data.batches.pipeline import Row
from instructjax.data.records.records import Message
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.evals import batches
from instructjax.evals import subject as subjects
from instructjax.evals.batches import Entry
from instructjax.evals.subject import Subject
from instructjax.evals.tasks import Answer, Completion, Generate, Likelihood, Logp, Request
from instructjax.runs import writers
from instructjax.runs.progress import progressing
from instructjax.settings import EvalSettings
from instructjax.settings.fields import to_dict
from instructjax.stages import running
from instructjax.system import jsons, places

TOKENS = 256  # tokens of an answer, where a task names no number
# The options of a request for text that the adapter understands.
OPTIONS = (
  "until",
  "max_gen_toks",
  "max_new_tokens",
  "temperature",
  "do_sample",
  "top_p",
  "top_k",
)


def main(
  config: EvalSettings,
  source: str,
  tasks: Sequence[str],
  workdir: Path,
  *,
  shots: int | None,
  limit: int,
  include: str,
  chats: bool = False,
  multiturn: bool = True,
  system: str = "",
) -> None:
  """Runs tasks of the harness, prints its table, and leaves lm_eval.json and the samples.

  Args:
    config: the settings; model, template, tokens, mesh and seed count.
    source: the model, as `subject` has it.
    tasks: names of tasks.
    workdir: the directory of the results.
    shots: the exemplars of a prompt; None leaves the task's own number.
    limit: the first so many documents of each task; 0 takes all.
    include: a folder of the user's own tasks, or "".
    chats: puts prompts into the model's chat template (the harness's apply_chat_template).
    multiturn: with `chats`, an exemplar is a turn of the user and one of the assistant; otherwise
      all exemplars stand in one turn of the user.
    system: a message that precedes the chats, or with plain text the prompts; "" has none.

  Raises:
    UserError: if the harness is not installed or has no such task, or the model cannot be opened.
  """
  if chats and config.template not in ("", chat.AUTO):
    raise UserError(
      f"config.template={config.template} and --apply_chat_template: the prompts would be put into "
      "a template twice; leave one of them out"
    )
  places.require_local(workdir, "--workdir")
  package = _package("lm_eval")
  manager = _package("lm_eval.tasks").TaskManager(include_path=include or None)
  for task in tasks:
    if task not in manager.all_tasks:
      raise UserError(
        f"--tasks={task}: the harness has no such task; `lm_eval ls tasks` lists its own, "
        "--include=FOLDER adds yours"
      )
  # The adapter fills this while the harness runs.
  limits: dict[str, Limits] = {}
  with (
    running.devices(config.mesh) as parts,
    writers.open_run(workdir, to_dict(config), seed=config.seed),
  ):
    # Published tables of the harness are of plain text, unless its own switch asks for a template.
    if config.template == chat.AUTO:
      config = dataclasses.replace(config, template="")
    model = subjects.open_subject(source, config, parts)
    writers.note(workdir, models={"model": dict(model.about)})
    template = model.own_template() if chats else None
    results = package.simple_evaluate(
      model=adapter(model, limits, template),
      tasks=list(tasks),
      num_fewshot=shots,
      limit=limit or None,
      task_manager=manager,
      apply_chat_template=chats,
      fewshot_as_multiturn=chats and multiturn,
      system_instruction=system or None,
      random_seed=config.seed,
      numpy_random_seed=config.seed,
      torch_random_seed=config.seed,
      fewshot_random_seed=config.seed,
    )
  results["limits"] = {}
  for task, counts in limits.items():
    results["limits"][task] = dataclasses.asdict(counts)
  # Samples are many times longer than the results, and get a file for each task.
  samples = results.pop("samples", {})
  _write_json(workdir / "lm_eval.json", results)
  for task, rows in samples.items():
    _write_json(workdir / f"lm_eval.{task}.json", rows)
  print(_package("lm_eval.utils").make_table(results))
  for note in limit_notes(limits, model.context):
    print(note)


def _write_json(path: Path, value: Any) -> None:
  # The harness leaves functions and arrays in its results: they become their text.
  text = jsons.text_with_nulls(value, indent=1, default=str)
  writers.replace(path, f"{text}\n")


# --- what does not fit the model ---


@dataclass
class Limits:
  """Counts of the requests of a task, and of those that did not fit the model.

  requests            all of them
  contexts_cut        those whose context lost its beginning
  answers_shortened   those that got fewer tokens than the task allows
  """

  requests: int = 0
  contexts_cut: int = 0
  answers_shortened: int = 0


def limit_notes(limits: Mapping[str, Limits], context: int) -> list[str]:
  """Returns a line for each task with requests that do not fit a model of so many tokens."""
  notes = []
  for task, counts in limits.items():
    effects = []
    if counts.contexts_cut:
      effects.append(f"the contexts of {counts.contexts_cut} lost their beginning")
    if counts.answers_shortened:
      effects.append(
        f"the answers of {counts.answers_shortened} were bounded by {context // 2} tokens"
      )
    if effects:
      notes.append(
        f"note: {task}: of {counts.requests} requests {' and '.join(effects)}; the model's context "
        f"is {context} tokens"
      )
  return notes


# --- the adapter ---


def adapter(
  subject: Subject, limits: dict[str, Limits], template: chat.Template | None = None
) -> Any:
  """Returns the `lm_eval.api.model.LM` of an open model.

  `limits` gets, by task, the counts of requests and of those that did not fit. With a `template`
  the contexts are texts that the adapter has rendered, special tokens included.
  """
  # The harness is an optional package: its base class is there only once it is imported.
  base: Any = _package("lm_eval.api.model").LM
  utils = _package("lm_eval.utils")

  def answers(
    stage: str,
    instances: Sequence[Any],
    requests: Sequence[Request],
  ) -> list[Answer]:
    """Answers instances of the harness, which are also given as our requests."""
    items = [[request] for request in requests]
    if template is None:
      entries = subject.rows(enumerate(items))
    else:
      entries = batches.rows(
        enumerate(items),
        head=partial(rendered_ids, subject.tokenizer),
        encode=subject.tokenizer.encode_next,
        context=subject.context,
      )
    for instance, request, entry in zip(instances, requests, entries, strict=True):
      task = instance.task_name or ""
      counts = limits.setdefault(task, Limits())
      counts.requests += 1
      counts.contexts_cut += entry.cut > 0
      if isinstance(request, Generate):
        allowed = answer_tokens(instance.args[1])
        counts.answers_shortened += request.tokens < allowed
    return _answers(subject, stage, entries)

  class InstructJAX(base):
    """Log-likelihoods in nats, of a continuation or of a whole text, and text until a stop."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
      ours: list[Request] = [likelihood(*instance.args) for instance in requests]
      weighed = answers("loglikelihood", requests, ours)
      # All of them are; the type of an answer does not say so.
      logps = [answer for answer in weighed if isinstance(answer, Logp)]
      return [(logp.logp, logp.greedy) for logp in logps]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
      texts = [instance.args[0] for instance in requests]
      return rolling(subject, utils, texts)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
      ours: list[Request] = [generation(subject, *instance.args) for instance in requests]
      completions = answers("generate_until", requests, ours)
      return [answer.text for answer in completions if isinstance(answer, Completion)]

    def apply_chat_template(
      self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
      assert template is not None
      return rendered(template, chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
      return "" if template is None else template.text

    @property
    def tokenizer_name(self) -> str:
      # The harness keys its cache of prompts by this name.
      return subject.tokenizer.fingerprint

  return InstructJAX()


def rendered(
  template: chat.Template, history: Sequence[Mapping[str, Any]], add_generation_prompt: bool
) -> str:
  """Returns the text of a chat.

  Where the harness has begun the reply itself, add_generation_prompt is false: the text ends with
  that beginning, and the end of the reply is left out.

  Raises:
    UserError: if the template cannot render it.
  """
  messages: list[Message] = [
    {"role": message["role"], "content": message["content"]} for message in history
  ]
  try:
    text = chat.render(template, messages, prompt=add_generation_prompt)
  except chat.ChatError as problem:
    raise UserError(f"--apply_chat_template: {problem}; its chats need this template") from None
  if add_generation_prompt:
    return text
  begun = messages[-1]["content"].strip()
  return text[: text.rindex(begun) + len(begun)]


def rendered_ids(tokenizer: Tokenizer, text: str) -> list[int]:
  """Returns the ids of a rendered chat, with the token that begins a text where it has none."""
  ids = tokenizer.encode(text)
  begin = list(tokenizer.bos)
  return ids if ids[: len(begin)] == begin else begin + ids


def likelihood(context: str, continuation: str) -> Likelihood:
  """Returns a request of the harness as ours: final spaces of a context go to the continuation."""
  bare = context.rstrip()
  if not bare:  # a context of spaces alone stays, for the continuation follows something
    return Likelihood(context, continuation)
  return Likelihood(bare, context[len(bare) :] + continuation)


def generation(subject: Subject, context: str, options: Mapping[str, Any]) -> Generate:
  """Returns a request of the harness as ours, of at most half of the model's context.

  An option that is null counts as absent. A task that samples and names no top_p or top_k samples
  from the whole distribution.

  Raises:
    UserError: if the task samples with options that are not in OPTIONS.
  """
  options = {name: value for name, value in options.items() if value is not None}
  # A task names one stop, several or none.
  until = options.get("until") or ()
  stop = (until,) if isinstance(until, str) else tuple(until)
  # The other half is for the prompt.
  tokens = min(answer_tokens(options), subject.context // 2)
  temperature = float(options.get("temperature", 1.0))
  if not options.get("do_sample", False) or temperature <= 0:
    return Generate(context, tokens, 0.0, stop)

  unknown = {name: value for name, value in options.items() if name not in OPTIONS}
  if unknown:
    names = ", ".join(OPTIONS)
    raise UserError(f"the task samples with {unknown}; the adapter knows {names}")
  top_p = float(options.get("top_p", 1.0))
  top_k = max(int(options.get("top_k", 0)), 0)  # some tasks write -1 for all tokens, which is our 0
  return Generate(
    context,
    tokens,
    temperature,
    stop,
    top_p=top_p,
    top_k=top_k,
  )


def answer_tokens(options: Mapping[str, Any]) -> int:
  """Returns the tokens that a task allows an answer."""
  tokens = options.get("max_gen_toks") or options.get("max_new_tokens")
  return int(tokens or TOKENS)


def _answers(subject: Subject, stage: str, entries: Sequence[Entry]) -> list[Answer]:
  """Returns the answers of rows, one for each item, in the order of the items."""
  plan = subject.plan(entries)
  answers_by_item: dict[int, Answer] = {}
  with progressing(stage, 0, len(plan)) as progress:
    for number, batch in enumerate(plan):
      batch_answers = subject.answer(batch, number)
      for entry, answer in zip(batch.entries, batch_answers, strict=True):
        answers_by_item[entry.item] = answer
      progress.show(number + 1, {})
  return [answers_by_item[entry.item] for entry in entries]


def rolling(subject: Subject, utils: Any, texts: Sequence[str]) -> list[float]:
  """Returns log p of whole texts, in nats, with the module `lm_eval.utils`.

  A text is split into windows of the model's context that share no predicted token; the first one
  follows an end-of-text token.
  """
  tokenizer = subject.tokenizer
  prefix = tokenizer.bos[0] if tokenizer.bos else tokenizer.eos[0]
  size = subject.context - 1  # beside the token before the window
  entries: list[Entry] = []
  text_of_entry = []
  for number, text in enumerate(texts):
    ids = tokenizer.encode(text)
    for window in utils.get_rolling_token_windows(ids, prefix, size, 1):
      before, after = utils.make_disjoint_window(window)
      window_ids = np.asarray([*before, *after], np.int32)
      row = Row(window_ids, len(before))
      # Each window is an item of its own.
      item = len(entries)
      entries.append(Entry(item, 0, 0, row, 0))
      text_of_entry.append(number)
  sums = [0.0] * len(texts)
  answers = _answers(subject, "loglikelihood_rolling", entries)
  for number, answer in zip(text_of_entry, answers, strict=True):
    if isinstance(answer, Logp):
      sums[number] += answer.logp
  return sums


def _package(name: str) -> Any:
  """Returns a module of the harness.

  Raises:
    UserError: if the harness is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(
      f"lm-evaluation-harness is not installed ({error}); run pip install 'instructjax[harness]'"
    ) from None
