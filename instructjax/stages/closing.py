"""What SFT, DPO and the reward model leave in samples.jsonl at the end of a run.

A policy answers a few held-out prompts, beside the answer that people wrote or preferred. A reward
model shows which completion of a few held-out prompts it scores highest and lowest. A run that
holds nothing out leaves no samples: answers to prompts that it has learnt would look too good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from instructjax import compiler, rewards, rollout, sharding
from instructjax.data.batches import pipeline
from instructjax.data.batches.counts import Counts
from instructjax.data.records.records import Comparison, Demonstration, Prompt
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.rollout import Sampling
from instructjax.runs import writers
from instructjax.settings.dpo import DPOSettings
from instructjax.settings.supervised import RLInitSettings, SFTSettings
from instructjax.stages import running
from instructjax.system import keys
from instructjax.system.places import AnyPath
from instructjax.types import LM, Params

Row = Mapping[str, Any]
# The rows of a policy, given its parameters.
Answers = Callable[[Params], list[Row]]


def answers(
  settings: SFTSettings | RLInitSettings | DPOSettings,
  lm: LM,
  tokenizer: Tokenizer,
  template: chat.Template | None,
  records: Sequence[Demonstration | Comparison],
  shards: int,
) -> Answers:
  """Returns a function of a policy's parameters, which samples an answer to held-out prompts.

  The answers are sampled at temperature 1, as episodes of PPO are. A row has `prompt`, `response`
  and `reference`, the answer of people (None where their labels name no best one). There is no row
  where `records` is empty or config.samples is 0.
  """
  # A prompt that is too long was left out of what is measured too.
  counts = Counts()
  prompts = pipeline.prompts(
    [Prompt(record.prompt, turns=record.turns) for record in records],
    tokenizer,
    prompt=settings.data.prompt,
    template=template,
    long="drop",
    counts=counts,
  )[: settings.samples]
  asked = counts.kept(list(records))[: settings.samples]
  if not prompts:
    return lambda params: []
  sampling = Sampling(
    settings.data.response,
    # Weights that are gathered layer by layer fit wherever the training did.
    whole=False,
    # A few rows: fewer programs to compile are worth more than fewer idle rows.
    halvings=0,
    eos=tokenizer.eos,
    banned=tokenizer.banned,
  )
  sample = compiler.jit(partial(rollout.sample, lm, cfg=sampling), settings.mesh.compiler)
  pad = partial(pipeline.pad_prompts, length=settings.data.prompt)
  size = running.rows_for(len(prompts), shards)

  def rows_of(params: Params) -> list[Row]:
    batch, count = next(pipeline.once(prompts, pad, size=size))
    key = keys.run_key(settings.seed, "samples")
    on_host = sharding.fetch(sample(params, sharding.place_batch(batch), key))
    texts = rewards.responses(tokenizer, on_host)[:count]
    return [
      {"prompt": record.prompt, "response": text, "reference": reference_of(record)}
      for record, text in zip(asked, texts, strict=True)
    ]

  return rows_of


def reference_of(record: Demonstration | Comparison) -> str | None:
  """Returns the answer that people wrote, or the first of those that they ranked highest."""
  if isinstance(record, Demonstration):
    return record.completion
  if record.pairs:
    return None
  return record.completions[record.ranks.index(min(record.ranks))]


def best_and_worst(
  records: Sequence[Comparison], scores: np.ndarray, count: int
) -> list[dict[str, Any]]:
  """Returns the completions of the first prompts that a reward model scores highest and lowest.

  `scores` [B, K] has a row for each record, in which what follows its completions counts for
  nothing. `ranks` are those of the labeler, 1 is best, and None where labels are no ranking.
  """
  rows = []
  for record, row_scores in zip(records[:count], scores[:count], strict=True):
    of_completions = row_scores[: len(record.completions)]
    places = {"highest": int(of_completions.argmax()), "lowest": int(of_completions.argmin())}
    rows.append(
      {
        "prompt": record.prompt,
        "responses": {name: record.completions[place] for name, place in places.items()},
        "scores": {name: round(float(of_completions[k]), 4) for name, k in places.items()},
        "ranks": {
          name: None if record.pairs else record.ranks[place] for name, place in places.items()
        },
      }
    )
  return rows


def leave(
  workdir: AnyPath, writer: writers.Writer, step: int, stage: str, rows: Sequence[Row]
) -> None:
  """Leaves the samples of the end of a run in the place of those that it left before.

  A run may come to its end twice: it was killed before it said that it is finished, or a hook had
  stopped it.
  """
  if rows:
    writers.keep(workdir / "samples.jsonl", [])
    writer.table(step, stage, rows)
