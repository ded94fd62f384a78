"""A model under evaluation: it is opened once and answers the requests of every task, in batches of
few shapes.

A source is what `--model` of every stage takes, or that with a text before every prompt:
SOURCE#prefix=FILE (the paper's prompted GPT-3).  Likelihoods are of the ids that training sees:
a context and its continuation are encoded apart. Dimensions: B rows, T tokens, P prompt tokens,
R response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from instructjax import likelihood, rollout, sharding
from instructjax.data.batches import pipeline
from instructjax.data.batches.pipeline import Row
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.evals import batches
from instructjax.evals.batches import Ask, Asked, Batch
from instructjax.evals.tasks import Answer, Completion, Logp, Request, Said, fingerprint
from instructjax.rollout import Sampling
from instructjax.runs import origin, provenance
from instructjax.types import LM, Params, Prompts

T = TypeVar("T")
Config = Any  # ml_collections.ConfigDict
WINDOW = (
  32  # the fewest positions whose logits are made: a power of two, so that a width has few programs
)


class Subject(NamedTuple):
  """An open model.

  rows      (place of an item, its requests) pairs -> rows of ids
  plan      rows -> batches
  answer    (batch, number of its noise) -> the answers of its rows, in order
  settings  a fingerprint of what changes an answer beside the weights: template, prefix, seed, tokenizer
  """

  about: Mapping[str, Any]
  tokenizer: Tokenizer
  context: int
  rows: Callable[[Sequence[tuple[int, Sequence[Request]]]], list[Asked]]
  plan: Callable[[Sequence[Asked]], list[Batch]]
  answer: Callable[[Batch, int], list[Answer]]
  settings: str


def split(source: str) -> tuple[str, str]:
  """(the model, the file of its prefix or "") of SOURCE or SOURCE#prefix=FILE.  Raises UserError
  for other options.
  """
  model, sign, option = source.partition("#")
  if sign and not option.startswith("prefix="):
    raise UserError(
      f"--models: {source!r}: after # only prefix=FILE is known, a text that is put before every "
      "prompt"
    )
  return model, option.removeprefix("prefix=")


def settings(source: str, config: Config) -> str:
  """The fingerprint of what changes an answer beside the weights."""
  written = config.template not in ("", chat.OWN)
  template = chat.read(config.template) if written else config.template
  named = filter(None, [config.model.tokenizer])  # another than the model's own
  return fingerprint(template, prefix_of(split(source)[1]), config.seed, config.model.dtype, *named)


def open_subject(source: str, config: Config, parts: int) -> Subject:
  """Opens a model.  Raises UserError where the source is none, and where its template cannot be
  used.
  """
  model, file = split(source)
  found = origin.open_model(model, config.model, config.seed)
  template = origin.chat_template(config.template, found.about, found.tokenizer)
  prefix = prefix_of(file)
  about = provenance.about(source, found) | ({"prefix": fingerprint(prefix)} if prefix else {})
  encode = found.tokenizer.encode
  end = (
    encode if template is None else lambda text: encode(text.lstrip())
  )  # a template has its own space before a reply
  head = heads(found.tokenizer, template, prefix)
  context = found.lm.context
  asked = partial(batches.rows, head=head, encode=end, context=context)
  plan = partial(batches.plan, budget=config.tokens, parts=parts, most=context)
  answer = _answers(found.lm, found.params, found.tokenizer, config.seed)
  return Subject(about, found.tokenizer, context, asked, plan, answer, settings(source, config))


def heads(
  tokenizer: Tokenizer, template: chat.Template | None, prefix: str = ""
) -> Callable[[str], list[int]]:
  """A function from a prompt to its ids.  Where nothing stands before a text, it follows an
  end-of-text token, as it does in pretraining.
  """

  @cache
  def head(text: str) -> list[int]:
    text = prefix + text
    if template is not None:
      try:
        return chat.head(template, tokenizer, text, None)
      except chat.ChatError as problem:
        raise UserError(
          f"a prompt of the evaluation cannot be a chat: {problem}; it begins {text[:60]!r}"
        ) from None
    return [*tokenizer.bos, *tokenizer.encode(text)] or [tokenizer.eos[0]]

  return head


def prefix_of(file: str) -> str:
  if not file:
    return ""
  try:
    return Path(file).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"#prefix={file}: cannot be read as UTF-8 text ({error})") from None


def _answers(
  lm: LM, params: Params, tokenizer: Tokenizer, seed: int
) -> Callable[[Batch, int], list[Answer]]:
  weigh = jax.jit(partial(likelihood.continuation, lm), static_argnums=2)
  weigh_ends = jax.jit(partial(likelihood.choices, lm))
  stops = cache(partial(stop_ids, tokenizer))

  @cache
  def sampler(cfg: Sampling):
    return jax.jit(partial(rollout.sample, lm, cfg=cfg))

  def weighed(batch: Batch) -> list[Answer]:
    if not batch.end:
      placed = sharding.place_batch(
        pipeline.pad_demonstrations([ask.row for ask in _filled(batch)], length=batch.width)
      )
      longest = max(len(ask.row.ids) - ask.row.start for ask in batch.asks)
      window = min(max(WINDOW, 1 << (longest - 1).bit_length()), batch.width - 1)
      found = sharding.fetch(weigh(params, placed, window))
    else:
      ends = [Row(ask.row.ids[ask.row.start :], 0) for ask in _filled(batch)]
      after = pipeline.pad_demonstrations(ends, length=batch.end)
      found = sharding.fetch(
        weigh_ends(params, *sharding.place_batch((_prompts(batch), after.tokens, after.mask)))
      )
    return [
      Logp(float(logp), int(tokens), bool(greedy))
      for logp, tokens, greedy in _own(batch, zip(*found, strict=True))
    ]

  def continued(batch: Batch, number: int) -> list[Answer]:
    draw = batch.draw
    assert draw is not None
    eos = (*tokenizer.eos, *stops(draw.stop))
    how = {"n": batch.fan, "top_k": draw.top_k, "top_p": draw.top_p}
    cfg = Sampling(draw.tokens, draw.temperature, eos=eos, banned=tokenizer.banned, **how)
    key = jax.random.fold_in(jax.random.key(seed), number)
    found = sharding.fetch(sampler(cfg)(params, sharding.place_batch(_prompts(batch)), key))
    rows = zip(found.tokens[:, -draw.tokens :], found.mask, found.ended, strict=True)
    return [
      completion(tokenizer, ids[mask], bool(ended), draw.stop)
      for ids, mask, ended in _own(batch, rows)
    ]

  return lambda batch, number: continued(batch, number) if batch.draw else weighed(batch)


def _filled(batch: Batch) -> list[Ask]:
  """The rows of a batch: groups are filled up with their first row, the batch with its first
  groups.
  """
  groups = [batch.groups[at % len(batch.groups)] for at in range(batch.size)]
  return [group[at] if at < len(group) else group[0] for group in groups for at in range(batch.fan)]


def _prompts(batch: Batch) -> Prompts:
  """The prompt of each group."""
  rows = [ask.row for ask in _filled(batch)[:: batch.fan]]
  return pipeline.pad_prompts([Row(row.ids[: row.start], 0) for row in rows], length=batch.width)


def _own(batch: Batch, rows: Iterable[T]) -> list[T]:
  """Of the rows of a batch those that were asked for, in the order of `batch.asks`."""
  each = list(rows)
  return [
    each[at * batch.fan + i] for at, group in enumerate(batch.groups) for i in range(len(group))
  ]


def completion(
  tokenizer: Tokenizer, ids: np.ndarray, ended: bool, stop: tuple[str, ...]
) -> Completion:
  """The text of sampled ids, cut before the first stop."""
  text = tokenizer.decode(ids.tolist())
  found = [at for word in stop if (at := text.find(word)) >= 0]
  return Completion(text[: min(found)] if found else text, len(ids), ended or bool(found))


def stop_ids(tokenizer: Tokenizer, stop: tuple[str, ...]) -> tuple[int, ...]:
  """The ids whose text holds a stop: sampling may end there.  A stop of several tokens is found in
  the text afterwards.
  """
  ids = set(range(tokenizer.vocab_size)) - set(tokenizer.banned)
  return (
    tuple(i for i in sorted(ids) if any(word in tokenizer.decode([i]) for word in stop))
    if stop
    else ()
  )


def heard(subject: Subject, requests: Sequence[Sequence[Request]]) -> list[Said]:
  """What a model says to the requests of several items, one sample each, kept nowhere."""
  found: list[list[Any]] = [[None] * len(several) for several in requests]
  cut = [0] * len(requests)
  for number, batch in enumerate(subject.plan(subject.rows(list(enumerate(requests))))):
    for ask, answer in zip(batch.asks, subject.answer(batch, number), strict=True):
      found[ask.item][ask.request] = answer if isinstance(answer, Logp) else (answer,)
      cut[ask.item] += ask.cut
  return [Said(tuple(answers), lost) for answers, lost in zip(found, cut, strict=True)]
