"""A model under evaluation: it is opened once and answers the requests of every task in batches.

A source is what `--model` of every stage takes, or that with a text before every prompt:
SOURCE#prefix=FILE (the paper's prompted GPT-3). Likelihoods are of the ids that training sees: a
context and its continuation are encoded separately.

By default (`config.template=auto`) a model is asked in the way in which it was trained: a public
chat model by the template of its tokenizer, a run of ours by the one of its training, and every
other model in plain text. Likelihoods are then of plain texts, as in public tables of results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from instructjax import compiler, likelihood, rollout, sharding
from instructjax.data.batches import pipeline
from instructjax.data.batches.pipeline import Row
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.data.tokens.vocabulary import document_end, named_specials, refusal
from instructjax.errors import UserError
from instructjax.evals import batches
from instructjax.evals.batches import Batch, Decoding, Entry
from instructjax.evals.tasks import Answer, Completion, Logp, Reply, Request, fingerprint
from instructjax.rollout import Sampling
from instructjax.runs import origin, provenance
from instructjax.settings import EvalSettings
from instructjax.system import keys
from instructjax.types import LM, Demonstrations, Params, Prompts

T = TypeVar("T")
# The fewest positions of a row whose logits are computed. Windows are powers of two from here on,
# so that a width has few programs.
WINDOW = 32
# Tokens of the first part of an answer that may be over before its last token.
FIRST_PART = 32
PLAIN = "in plain text"  # how a model without a template is asked


class Subject(NamedTuple):
  """An open model.

  about       its source, the fingerprint of its weights, how it is asked ..., for the manifest
  tokenizer   its tokenizer
  context     the tokens that it can read
  rows        pairs of (place of an item, its requests) -> rows of ids
  plan        rows -> batches
  answer      (batch, number of its noise) -> the answers of its rows, in order
  settings    the fingerprint of what changes an answer beside the weights, see `settings`
  own_template  gives the template that the model was trained with, or its tokenizer's; it raises
              UserError where there is none
  """

  about: Mapping[str, Any]
  tokenizer: Tokenizer
  context: int
  rows: Callable[[Iterable[tuple[int, Sequence[Request]]]], list[Entry]]
  plan: Callable[[Sequence[Entry]], list[Batch]]
  answer: Callable[[Batch, int], list[Answer]]
  settings: str
  own_template: Callable[[], chat.Template | None] = lambda: None


# --- opening a model ---


def split(source: str) -> tuple[str, str]:
  """Returns (the model, the file of its prefix or "") of SOURCE or SOURCE#prefix=FILE.

  Raises:
    UserError: if there is another option after the #.
  """
  model, sign, option = source.partition("#")
  if sign and not option.startswith("prefix="):
    raise UserError(
      f"--models: {source!r}: after # only prefix=FILE is known, a text that is put before every "
      "prompt"
    )
  return model, option.removeprefix("prefix=")


def settings(source: str, config: EvalSettings) -> str:
  """Returns the fingerprint of what changes an answer beside the weights.

  That is the template, the prefix, the seed, the dtype and the tokenizer.
  """
  template = config.template
  if template not in (
    "",
    chat.OWN,
    chat.AUTO,
  ):  # a template in a file counts by its text, not by its path
    template = chat.read(template)
  prefix = prefix_of(split(source)[1])
  facts = [template, prefix, config.seed, config.model.dtype]
  # The model's own tokenizer is part of the model and needs no mention.
  if config.model.tokenizer:
    facts.append(config.model.tokenizer)
  return fingerprint(*facts)


def open_subject(source: str, config: EvalSettings, parts: int) -> Subject:
  """Opens a model for batches that are split over `parts` devices.

  Raises:
    UserError: if there is no model at the source, or its chat template cannot be used.
  """
  model, file = split(source)
  opened = origin.open_model(model, config.model, config.seed)
  tokenizer, context = opened.tokenizer, opened.lm.context
  if config.template == chat.AUTO:
    template = origin.natural_template(model, opened.about, tokenizer)
    likelihood_template = None
  else:
    template = origin.chat_template(config.template, opened.about, tokenizer)
    likelihood_template = template
  prefix = prefix_of(file)
  about = provenance.about(source, opened)
  about["asked"] = f"by {template.name}" if template else PLAIN
  if prefix:
    about["prefix"] = fingerprint(prefix)

  def encode_continuation(text: str) -> list[int]:
    if likelihood_template is not None:
      text = text.lstrip()  # a template has its own space before a reply
    ids = tokenizer.encode_next(text)
    check_plain(tokenizer, text, ids)
    return ids

  make_rows = partial(
    batches.rows,
    head=prompt_encoder(tokenizer, template, prefix),
    encode=encode_continuation,
    context=context,
    before=prompt_encoder(tokenizer, likelihood_template, prefix),
  )
  make_plan = partial(
    batches.plan,
    budget=config.tokens,
    parts=parts,
    most=context,
  )
  return Subject(
    about=about,
    tokenizer=tokenizer,
    context=context,
    rows=make_rows,
    plan=make_plan,
    answer=_answering(opened.lm, opened.params, tokenizer, config.seed, config.mesh.compiler),
    settings=settings(source, config),
    own_template=partial(origin.chat_template, chat.OWN, opened.about, tokenizer),
  )


def prompt_encoder(
  tokenizer: Tokenizer, template: chat.Template | None, prefix: str = ""
) -> Callable[[str], list[int]]:
  """Returns a function from a prompt to its ids.

  An empty prompt becomes the token that ends a document, which precedes a text in pretraining too.
  """

  # Prompts repeat: the choices of a question are one request each.
  @cache
  def encode(text: str) -> list[int]:
    text = prefix + text
    if template is None:
      ids = tokenizer.encode(text)
      check_plain(tokenizer, text, ids)
      return [*tokenizer.bos, *ids] or [document_end(tokenizer)]
    try:
      return chat.head(template, tokenizer, text, None)
    except chat.ChatError as problem:
      raise UserError(
        f"a prompt of the evaluation cannot be a chat: {problem}; it begins {text[:60]!r}"
      ) from None

  return encode


def check_plain(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> None:
  """Raises UserError for a text that spells special tokens, as the stages do."""
  names = named_specials(tokenizer, text, ids)
  if names:
    raise UserError(f"a text of the evaluation {refusal(names)}; it begins {text[:60]!r}")


def prefix_of(file: str) -> str:
  """Returns the text of a prefix file, "" without a file.

  Raises:
    UserError: if the file cannot be read.
  """
  if not file:
    return ""
  try:
    return Path(file).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"#prefix={file}: cannot be read as UTF-8 text ({error})") from None


# --- computing a batch ---


def _answering(
  lm: LM,
  params: Params,
  tokenizer: Tokenizer,
  seed: int,
  options: str,
) -> Callable[[Batch, int], list[Answer]]:
  """Returns the function that answers a batch; its programs are compiled once for each shape.

  `options` are the user's for the compiler.
  """
  weigh_rows = partial(likelihood.continuation, lm)
  weigh = compiler.jit(weigh_rows, options, static_argnums=2)  # the window decides a shape
  weigh_ends = compiler.jit(partial(likelihood.choices, lm), options)
  stops = cache(partial(stop_ids, tokenizer))

  @cache
  def sampler(cfg: Sampling) -> Callable[..., Any]:
    sample = partial(rollout.sample, lm, cfg=cfg)
    return compiler.jit(sample, options)

  def weigh_batch(batch: Batch) -> list[Answer]:
    if batch.end:
      ends = _ends(batch)
      arguments = (_prompts(batch), ends.tokens, ends.mask)
      results = weigh_ends(params, *sharding.place_batch(arguments))
    else:
      rows = [entry.row for entry in _filled(batch)]
      padded = pipeline.pad_demonstrations(rows, length=batch.width)
      on_devices = sharding.place_batch(padded)
      window = _window(batch)
      results = weigh(params, on_devices, window)
    answers: list[Answer] = []
    rows_of_results = zip(*sharding.fetch(results), strict=True)
    for logp, tokens, greedy in _own(batch, rows_of_results):
      # Plain numbers, which JSON can hold.
      answer = Logp(float(logp), int(tokens), bool(greedy))
      answers.append(answer)
    return answers

  def continue_batch(batch: Batch, number: int) -> list[Answer]:
    decoding = batch.decoding
    assert decoding is not None
    key = keys.run_key(seed, "evaluation", number)
    if decoding.is_over and batch.fan == 1:
      return _in_parts(batch, decoding, tokenizer, partial(sampled, key=key))
    rows = sampled(_prompts(batch), decoding, batch.fan, key=key)
    answers: list[Answer] = []
    for ids, ended in _own(batch, rows):
      answers.append(completion(tokenizer, ids, ended, decoding.stop))
    return answers

  def sampled(
    prompts: Prompts, decoding: Decoding, fan: int, *, key: Any
  ) -> list[tuple[np.ndarray, bool]]:
    """Returns the sampled ids of each row, and whether it has ended."""
    # Every stop ends sampling where it can; `completion` cuts the text.
    eos = (*tokenizer.eos, *stops(decoding.stop))
    cfg = Sampling(
      decoding.tokens,
      decoding.temperature,
      top_k=decoding.top_k,
      top_p=decoding.top_p,
      eos=eos,
      banned=tokenizer.banned,
      n=fan,
    )
    sample = sampler(cfg)
    samples = sharding.fetch(sample(params, sharding.place_batch(prompts), key))
    # The rows of `tokens` hold the prompt too, those of `mask` the response alone.
    responses = samples.tokens[:, -decoding.tokens :]
    rows = zip(responses, samples.mask, samples.ended, strict=True)
    return [(ids[mask], bool(ended)) for ids, mask, ended in rows]

  def answer_batch(batch: Batch, number: int) -> list[Answer]:
    if batch.decoding is None:
      return weigh_batch(batch)
    return continue_batch(batch, number)

  return answer_batch


def _in_parts(
  batch: Batch,
  decoding: Decoding,
  tokenizer: Tokenizer,
  sample: Callable[[Prompts, Decoding, int], list[tuple[np.ndarray, bool]]],
) -> list[Answer]:
  """Continues greedily in parts, and after each of them looks which answers are over.

  A model that rambles would otherwise be sampled to the last token of every answer. `sample` gives
  the ids of each row of prompts, and whether it has ended.
  """
  assert decoding.is_over is not None
  prompt_ids = [entry.row.ids[: entry.prompt_length] for entry in batch.entries]
  responses = [np.zeros(0, np.int32)] * len(prompt_ids)
  answers: list[Completion | None] = [None] * len(prompt_ids)
  done = 0
  for tokens in parts_of(decoding.tokens):
    unfinished = [row for row, answer in enumerate(answers) if answer is None]
    if not unfinished:
      break
    rows = []
    for place in range(batch.size):
      row = unfinished[place % len(unfinished)]  # the rest is filling
      rows.append(Row(np.concatenate([prompt_ids[row], responses[row]]), 0))
    prompts = pipeline.pad_prompts(rows, length=batch.width + done)
    results = sample(prompts, decoding._replace(tokens=tokens), 1)
    done += tokens
    for row, (ids, ended) in zip(unfinished, results[: len(unfinished)], strict=True):
      responses[row] = np.concatenate([responses[row], ids])
      answer = completion(tokenizer, responses[row], ended, decoding.stop)
      if decoding.is_over(answer.text):
        answer = answer._replace(ended=True)
      if answer.ended or done == decoding.tokens:
        answers[row] = answer
  return [answer for answer in answers if answer is not None]


def parts_of(tokens: int) -> list[int]:
  """Returns the tokens of the parts of an answer: 32, and then as many as there are already."""
  parts: list[int] = []
  while sum(parts) < tokens:
    parts.append(min(sum(parts) or FIRST_PART, tokens - sum(parts)))
  return parts


def _filled(batch: Batch) -> list[Entry]:
  """Returns size * fan rows: a short group repeats its first row, the batch its first groups."""
  rows = []
  for number in range(batch.size):
    group = batch.groups[number % len(batch.groups)]
    filling = [group[0]] * (batch.fan - len(group))
    rows += [*group, *filling]
  return rows


def _prompts(batch: Batch) -> Prompts:
  """Returns the prompt of each group, padded."""
  rows = []
  for entry in _filled(batch)[:: batch.fan]:  # the first row of each group
    ids = entry.row.ids[: entry.prompt_length]
    rows.append(Row(ids, 0))
  return pipeline.pad_prompts(rows, length=batch.width)


def _ends(batch: Batch) -> Demonstrations:
  """Returns what follows the prompt in each row, padded."""
  rows = []
  for entry in _filled(batch):
    ids = entry.row.ids[entry.prompt_length :]
    rows.append(Row(ids, 0))  # all of it is weighed
  return pipeline.pad_demonstrations(rows, length=batch.end)


def _window(batch: Batch) -> int:
  """Returns how many positions of a row hold every continuation; only these get logits."""
  longest = max(entry.end_length for entry in batch.entries)
  power_of_two = 1 << (longest - 1).bit_length()
  return min(max(WINDOW, power_of_two), batch.width - 1)


def _own(batch: Batch, results: Iterable[T]) -> Iterator[T]:
  """Yields the results of `batch.entries`, in order, out of those of all rows, filling included."""
  results_of_rows = list(results)
  for number, group in enumerate(batch.groups):
    start = number * batch.fan
    yield from results_of_rows[start : start + len(group)]


def completion(
  tokenizer: Tokenizer,
  ids: np.ndarray,
  ended: bool,
  stop: tuple[str, ...],
) -> Completion:
  """Returns the text of sampled ids, cut before the first stop."""
  text = tokenizer.decode_next(ids.tolist())
  places = [text.find(word) for word in stop if word in text]
  if places:
    text = text[: min(places)]
    ended = True
  return Completion(text, len(ids), ended)


def stop_ids(tokenizer: Tokenizer, stop: tuple[str, ...]) -> tuple[int, ...]:
  """Returns the ids whose text holds a stop: sampling may end there.

  A stop of several tokens is cut away in `completion`, after sampling.
  """
  if not stop:
    return ()
  banned = set(tokenizer.banned)
  ids = []
  for candidate in range(tokenizer.vocab_size):
    if candidate in banned:  # it is never sampled, and may be no text
      continue
    text = tokenizer.decode_next([candidate])
    if any(word in text for word in stop):
      ids.append(candidate)
  return tuple(ids)


def ask(subject: Subject, requests: Sequence[Sequence[Request]]) -> list[Reply]:
  """Returns a model's reply to the requests of each item, one sample each; nothing is stored."""
  # Batches come in the order of their lengths: answers are put in their places.
  answers: list[list[Any]] = [[None] * len(item_requests) for item_requests in requests]
  cut = [0] * len(requests)
  rows = subject.rows(enumerate(requests))
  for number, batch in enumerate(subject.plan(rows)):
    batch_answers = subject.answer(batch, number)
    for entry, answer in zip(batch.entries, batch_answers, strict=True):
      if isinstance(answer, Logp):
        answers[entry.item][entry.request] = answer
      else:
        # A reply holds a tuple of completions for each `Generate`, here of the one sample.
        answers[entry.item][entry.request] = (answer,)
      cut[entry.item] += entry.cut
  replies = []
  for item_answers, item_cut in zip(answers, cut, strict=True):
    replies.append(Reply(tuple(item_answers), item_cut))
  return replies
