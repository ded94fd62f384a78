"""Responses to prompts from an open model, in the order of the prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
import numpy as np

from instructjax import compiler, rewards, rollout, sharding
from instructjax.data.batches import buckets, pipeline
from instructjax.data.records.records import Prompt
from instructjax.data.tokens import chat
from instructjax.rollout import Sampling
from instructjax.runs import origin
from instructjax.runs.origin import Origin
from instructjax.runs.progress import progressing
from instructjax.settings.sampling import BestOfNSettings, PromptData, SampleSettings
from instructjax.types import Array, Key, Prompts, Rollout

# Batches whose prompts are sorted by length together; a stopped run goes on after the last such
# group.
SORTED = 8
Drawn = tuple[Rollout, dict[str, rewards.Scores]]  # the responses to one prompt, and their scores


def draw_responses(
  settings: BestOfNSettings | SampleSettings,
  model: Origin,
  template: chat.Template | None,
  prompts: Sequence[Prompt],
  rewards_by_group: Mapping[str, Sequence[rewards.Reward]],
  *,
  temperature: float,
  key: Key[Array, ""],
  start: int = 0,
  name: str,
) -> Iterator[Drawn]:
  """Yields, for each prompt from number `start` on, its n responses and their scores.

  The scores are those of each group of rewards that is not empty; NaN is one that abstains.

  `start` is a multiple of SORTED batches, batch i draws with fold_in(key, i), and `name` stands
  before the progress. Everything is checked at the call, before the first draw.

  Raises UserError for prompts that are too long.
  """
  data, draw_settings = settings.data, settings.sampling
  length = data.prompt + draw_settings.response
  origin.fits(model.lm, length, "config.data.prompt + config.sampling.response")
  rows = pipeline.prompts(
    prompts, model.tokenizer, prompt=data.prompt, name=data.prompts, template=template
  )
  # A prompt is read once for all its responses, where the prompts of a batch divide over the
  # devices; otherwise each response has a row of its own.
  shards = settings.mesh.data * settings.mesh.fsdp
  responses_a_row = settings.n if settings.batch % shards == 0 else 1
  rows_a_prompt = settings.n // responses_a_row
  sampling = Sampling(
    response=draw_settings.response,
    temperature=temperature,
    top_k=draw_settings.top_k,
    top_p=draw_settings.top_p,
    whole=draw_settings.whole,
    weights=draw_settings.weights,
    cache=draw_settings.cache,
    slots=draw_settings.slots,
    halvings=draw_settings.halvings,
    n=responses_a_row,
    eos=model.tokenizer.eos,
    banned=model.tokenizer.banned,
  )
  sample = partial(rollout.sample, model.lm, cfg=sampling)
  draw = compiler.jit(sample, settings.mesh.compiler)
  lengths = buckets.lengths(data.prompt, data.buckets)
  group_size = SORTED * settings.batch

  def batches() -> Iterator[tuple[int, Prompts, list[int]]]:
    """Yields (number of the batch, its prompts, which prompts these are)."""
    for begin in range(start, len(rows), group_size):
      group = rows[begin : begin + group_size]
      in_group = buckets.once(group, pipeline.pad_prompts, size=settings.batch, lengths=lengths)
      for number, (padded, places) in enumerate(in_group, begin // settings.batch):
        yield number, padded, [begin + place for place in places]

  def score(rows: Rollout, on_host: Rollout, numbers: Sequence[int]) -> dict[str, rewards.Scores]:
    # Every response of a prompt is scored with the prompt.
    asked = [prompts[number] for number in numbers for _ in range(settings.n)]
    texts, fields = [prompt.prompt for prompt in asked], rewards.fields_of(asked)
    scores = {}
    for group, sources in rewards_by_group.items():
      if sources:
        scores[group] = rewards.score_rollout(
          sources, rows, on_host, texts, model.tokenizer, fields
        )
    return scores

  def results() -> Iterator[tuple[list[int], list[Drawn]]]:
    done = start
    with progressing(name, start, len(rows)) as progress:
      for number, padded, numbers in batches():
        repeated = jax.tree.map(lambda x: np.repeat(x, rows_a_prompt, axis=0), padded)
        responses = draw(
          model.params, sharding.place_batch(repeated), jax.random.fold_in(key, number)
        )
        on_host = sharding.fetch(responses)
        scored = (on_host, score(responses, on_host, numbers))
        done += len(numbers)
        progress.show(done, {})
        each_prompt = [_rows_of(scored, at * settings.n, settings.n) for at in range(len(numbers))]
        yield [number - start for number in numbers], each_prompt

  return buckets.in_order(results())


def as_completion(response: str, data: PromptData) -> str:
  """A response as the completion of a record, before which a stage puts the separator again.

  A chat has no separator.
  """
  return response if data.template else response.removeprefix(data.separator)


def _rows_of(scored: Drawn, begin: int, count: int) -> Drawn:
  return jax.tree.map(lambda array: array[begin : begin + count], scored)
