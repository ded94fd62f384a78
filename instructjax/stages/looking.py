"""What PPO and GRPO show of a run: samples of iterations, and answers to held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from instructjax import ppo, rewards, sharding
from instructjax.data.batches import corpora, pipeline
from instructjax.data.records.records import Prompt
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.runs import writers
from instructjax.runs.hooks import Hook
from instructjax.runs.loop import Evaluate
from instructjax.settings.grpo import EpisodeSettings
from instructjax.system import keys
from instructjax.types import Array, Float, Frozen, Params, Prompts, Rollout, TrainState


class HeldOut(NamedTuple):
  """Held-out prompts, and what scores the responses to them.

  rows      the prompts as the model reads them
  records   the same as they were read
  sources   the rewards that PPO is paid by; none where that is the reward model
  gold      a second sum of rewards, which judges and is never trained on; none where it is empty
  """

  rows: Sequence[pipeline.Row]
  records: Sequence[Prompt]
  sources: Sequence[rewards.Reward]
  gold: Sequence[rewards.Reward]


def read_held_out(
  settings: EpisodeSettings,
  records: Sequence[Prompt],
  tokenizer: Tokenizer,
  template: chat.Template | None,
  counts: corpora.CountsBySource,
  sources: Sequence[rewards.Reward],
  gold: Sequence[rewards.Reward],
) -> HeldOut:
  """The prompts of config.data.valid as rows.

  Raises:
    UserError: for prompts that cannot be used, as for those of training.
  """
  part = corpora.Part(1.0, settings.data.valid, records)
  rows, kept = corpora.prompts(settings.data, part, tokenizer, template, counts)
  return HeldOut(rows, kept, sources, gold)


def evaluate(
  settings: EpisodeSettings,
  experiment: ppo.PPO,
  frozen: Frozen,
  tokenizer: Tokenizer,
  held_out: HeldOut,
) -> Evaluate:
  """A function of the state: score, KL, length and gold score of a response to each prompt.

  Responses are sampled as episodes are. Their keys do not depend on the step, so that evaluations
  differ by the weights and not by the draw. The means are over responses: `eval/score` before any
  penalty, `eval/kl` in nats by the log-probabilities of the sampler, `eval/length` in tokens,
  `eval/ended` the share that ended by itself. A score is unknown where rewards abstain from all.
  """

  @jax.jit
  def draw(params: Params, frozen: Frozen, prompts: Prompts, key: Any) -> Rollout:
    return ppo.rollout(params, frozen, prompts, key, experiment)

  @jax.jit
  def own_scores(frozen: Frozen, rows: Rollout) -> Float[Array, " B"]:
    return ppo.score(frozen, rows, experiment)

  kl_of = jax.jit(partial(ppo.sampled_kl, ppo=experiment))
  pad = partial(pipeline.pad_prompts, length=settings.data.prompt)
  size = rows_together(settings, len(held_out.rows))

  def measure(state: TrainState) -> dict[str, float | None]:
    parts: dict[str, list[np.ndarray]] = {}

    def add(name: str, values: Any) -> None:
      parts.setdefault(name, []).append(np.asarray(values, np.float64))

    for number, (padded, real) in enumerate(pipeline.once(held_out.rows, pad, size=size)):
      key = keys.run_key(settings.seed, "evaluation", number)
      rows = draw(state.params, frozen, sharding.place_batch(padded), key)
      on_host = sharding.fetch(rows)
      asked = held_out.records[number * size : number * size + real]
      score = partial(score_by, rows=rows, on_host=on_host, asked=asked, tokenizer=tokenizer)
      if held_out.sources:
        add("eval/score", score(held_out.sources))
      else:
        add("eval/score", sharding.fetch(own_scores(frozen, rows))[:real])
      if held_out.gold:
        add("eval/gold", score(held_out.gold))
      add("eval/kl", sharding.fetch(kl_of(frozen, rows))[:real])
      add("eval/length", on_host.mask[:real].sum(axis=1))
      add("eval/ended", on_host.ended[:real])
    return {name: known_mean(np.concatenate(values)) for name, values in parts.items()}

  return measure


def rows_together(settings: EpisodeSettings, prompts: int) -> int:
  """The prompts that are answered at once: at most a batch, and whole micro-batches of it."""
  unit = settings.ppo.minibatches * settings.ppo.micro * sharding.batch_shards()
  return min(settings.batch, unit * math.ceil(prompts / unit))


def known_mean(values: np.ndarray) -> float | None:
  """The mean of what is not NaN; None where nothing is."""
  known = values[~np.isnan(values)]
  return float(known.mean()) if len(known) else None


def score_by(
  sources: Sequence[rewards.Reward],
  *,
  rows: Rollout,
  on_host: Rollout,
  asked: Sequence[Prompt],
  tokenizer: Tokenizer,
) -> np.ndarray:
  """The weighted sum of rewards of the first responses, NaN where one abstains."""
  texts, fields = [prompt.prompt for prompt in asked], rewards.fields_of(asked)
  scores = rewards.score_rollout(sources, rows, on_host, texts, tokenizer, fields)
  return rewards.total(sources, scores)


# What was sampled last: the responses and their scores, and where a reward abstained its mark is
# False.
Latest = Callable[[], tuple[Rollout, Float[Array, " B"], Any]]


def sampler(
  settings: EpisodeSettings,
  experiment: ppo.PPO,
  frozen: Frozen,
  by_ids: Mapping[bytes, Prompt],
  tokenizer: Tokenizer,
  latest: Latest,
  writer: writers.Writer,
) -> Hook | None:
  """Writes the first responses of an iteration, as it trained on them; None where none are wanted.

  A row has `iteration`, `prompt`, `response`, `score` (null where a reward abstained) and `kl`, in
  nats by the log-probabilities of the sampler.
  """
  if not settings.sample_every:
    return None
  kl_of = jax.jit(partial(ppo.sampled_kl, ppo=experiment))

  def write(iteration: int, metrics: Mapping[str, float], state: TrainState) -> str:
    rows, scores, scored = latest()
    count = min(settings.samples, settings.batch)
    kl = sharding.fetch(kl_of(frozen, rows))[:count]
    on_host = sharding.fetch(rows)
    values = np.asarray(sharding.fetch(scores), np.float64)[:count]
    has_score = np.ones(count, bool) if scored is None else sharding.fetch(scored)[:count]
    if jax.process_index() > 0:
      return ""
    prompts = prompts_of(on_host, by_ids)
    responses = rewards.responses(tokenizer, on_host)
    samples = [
      {
        "prompt": prompts[row].prompt,
        "response": responses[row],
        "score": round(float(values[row]), 4) if has_score[row] else None,
        "kl": round(float(kl[row]), 4),
      }
      for row in range(count)
    ]
    writer.table(iteration, settings.stage, samples)
    return ""

  return Hook("samples", settings.sample_every, write)


def prompts_of(on_host: Rollout, by_ids: Mapping[bytes, Prompt]) -> list[Prompt]:
  """The record of the prompt of each row.

  They are looked up by ids: decoding ids need not give the text that was encoded.
  """
  width = on_host.tokens.shape[1] - on_host.mask.shape[1]
  prompts = []
  for ids, valid in zip(on_host.tokens[:, :width], on_host.valid[:, :width], strict=True):
    prompts.append(by_ids[ids[valid].tobytes()])
  return prompts
