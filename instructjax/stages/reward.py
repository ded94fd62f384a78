"""The reward stage: ranked completions, and the bias that gives demonstrations the mean score 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import losses, reward, sharding, steps
from instructjax.data.batches import corpora, pipeline
from instructjax.data.batches.mixture import Mixture, Rows
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.runs import origin, writers
from instructjax.runs.loop import Evaluate
from instructjax.settings.reward import RewardSettings
from instructjax.stages import running, stems, trainable
from instructjax.stages.wiring import (
  Part,
  Stage,
  batch_shards,
  learning_rate,
  optimizer,
  require_multiple,
  rows_of,
  whole_on_each_device,
)
from instructjax.system import keys
from instructjax.types import LM, Comparisons, Params, TrainState


def wire(
  settings: RewardSettings,
  lm: LM,
  calls: int,
  completions: int,
  *,
  adapter_goes_on: bool = False,
) -> Stage:
  """The stage on a model: `reward.reward_step` on prompts with up to `completions` texts each.

  Raises UserError where the batch does not divide over the mesh, or rows are longer than the
  context.
  """
  require_multiple(
    settings.batch, settings.micro * batch_shards(), "config.batch", "config.micro x devices"
  )
  length = settings.data.prompt + settings.data.response
  origin.fits(lm, length, "config.data.prompt + config.data.response")
  rate = learning_rate(settings.optimizer, calls)
  tx = optimizer(settings.optimizer, lm, calls)
  step_settings = reward.RewardConfig(
    micro=settings.micro, dropout=settings.model.dropout > 0, pairs=settings.pairs
  )

  def init(key: Any, params: Params) -> tuple[TrainState, Params]:
    parts = trainable.split(
      lm, params, keys.key_for(key, "adapter"), settings, adapter_goes_on=adapter_goes_on
    )
    model = reward.init(keys.key_for(key, "head"), lm, parts.trained)
    # A head is a vector: splitting it would save nothing.
    model |= {"head": whole_on_each_device(model["head"])}
    return steps.new_state(key, model, tx), parts.trunk

  def step(state: TrainState, trunk: Params, batch: dict[str, Comparisons]) -> Any:
    before = state.step
    state, metrics = reward.reward_step(
      state, trunk, batch["comparisons"], lm=lm, tx=tx, cfg=step_settings
    )
    return state, metrics | {"lr": rate(before)}

  def train_comparisons(state: TrainState, trunk: Params, comparisons: Comparisons) -> Any:
    return step(state, trunk, {"comparisons": comparisons})

  shape = (settings.batch, completions, length)
  stem = None
  if settings.data.stems:
    width, dtype = stems.stem_type(lm, settings.model.dtype)
    stem = rows_of((*shape, width), dtype)
  batch = Comparisons(
    rows_of(shape, jnp.int32), rows_of(shape, jnp.bool_), rows_of(shape[:2], jnp.int32), stem
  )
  tokens = settings.batch * completions * length
  part = Part("reward", train_comparisons, ("comparisons",), "state", tokens=tokens, updates=1)
  return Stage("reward", init, step, {"comparisons": batch}, (part,), calls)


# --- data ---


def draw_comparisons(
  settings: RewardSettings, rows: Rows, pad: pipeline.Pad
) -> Callable[[int], Any]:
  """Batches of comparisons, where `config.data.together` neighbours are drawn as one.

  Two neighbours may rank the same texts by opposite instructions. In one batch, what makes a text
  good in itself cancels out of their gradients, and the instruction remains.

  Raises UserError where the comparisons do not divide into neighbours, or are a mixture.
  """
  together = settings.data.together
  seed = keys.seed_for(settings.seed, "comparisons")
  if together == 1:
    mine = sharding.local_rows(settings.batch)
    return pipeline.stream(rows, pad, size=settings.batch, seed=seed, mine=mine)
  if isinstance(rows, Mixture):
    raise UserError(
      f"config.data.together={together}: a mixture draws from its sources in turn, so there are no "
      "neighbours; give one source, or files with commas between"
    )
  require_multiple(len(rows), together, "the number of comparisons", "config.data.together")
  neighbours = [rows[first : first + together] for first in range(0, len(rows), together)]

  def pad_neighbours(parts: Sequence[Sequence]) -> Any:
    return pad([row for part in parts for row in part])

  size = settings.batch // together
  mine = sharding.local_rows(size)
  return pipeline.stream(neighbours, pad_neighbours, size=size, seed=seed, mine=mine)


def demonstration_rows(
  settings: RewardSettings,
  records: Sequence,
  tokenizer: Tokenizer,
  template: chat.Template | None,
  counts: corpora.CountsBySource,
) -> list[pipeline.Row]:
  """The demonstrations that are to score 0 on average."""
  data, name = settings.data, settings.data.demonstrations
  # The score is read at an end of text, as that of a sampled response is (`reward.closed`).
  return corpora.demonstrations(data, records, tokenizer, template, name, counts, end_cut=True)


# --- measures ---


def held_out_accuracy(
  lm: LM, trunk: Params, groups: Sequence, pad: Callable, multiple: int, size: int = 8
) -> Evaluate:
  """A function of the state: the share of held-out pairs that are ordered as the labeler did."""
  size = running.rows_for(size, multiple)

  @jax.jit
  def count_pairs(trunk: Params, params: Params, batch: Comparisons) -> Any:
    scores = reward.score_comparisons(lm, reward.join(trunk, params), batch)
    counts = losses.ranking_accuracy(scores, batch.rank, distinct=reward.distinct(batch))
    return jax.tree.map(jnp.sum, counts)

  def evaluate(state: TrainState) -> dict[str, Any]:
    correct = total = 0.0
    for batch, real in pipeline.once(groups, pad, size=size):
      # The last batch is filled up with prompts that were counted before; rank 0 is no completion.
      counted = (np.arange(size) < real)[:, None]
      batch = dataclasses.replace(batch, rank=batch.rank * counted)
      right, pairs = count_pairs(trunk, state.params, sharding.place_batch(batch))
      correct += float(right)
      total += float(pairs)
    return {"eval/accuracy": correct / max(total, 1.0)}

  return evaluate


def mean_score(
  lm: LM, params: Params, rows: Sequence, length: int, multiple: int, size: int = 16
) -> jax.Array:
  """The mean score of demonstrations."""
  size = running.rows_for(size, multiple)
  score = jax.jit(partial(reward.score, lm))
  pad = partial(pipeline.pad_demonstrations, length=length)
  scores = []
  for batch, real in pipeline.once(rows, pad, size=size):
    on_devices = sharding.place_batch(batch)
    scores.append(sharding.fetch(score(params, on_devices.tokens, on_devices.valid))[:real])
  return jnp.float32(np.concatenate(scores).mean())


# --- the command ---


def run(settings: RewardSettings, workdir: Path, sinks: tuple[str, ...] = ()) -> None:
  """Trains the reward model, fits its bias, and leaves it.

  Raises UserError for whatever is wrong with the settings, the data or the model, before
  anything is written.
  """
  source, data = settings.model.source, settings.data
  with running.devices(settings.mesh) as shards:
    require_multiple(
      settings.batch, settings.micro * shards, "config.batch", "config.micro x devices"
    )
    sources = corpora.read(data, "comparisons", "comparison")
    held_out = corpora.read_one(data, "valid", "comparison") if data.valid else []
    demonstrations = []
    if data.demonstrations:
      demonstrations = corpora.read_one(data, "demonstrations", "demonstration")
    model = running.open_policy(source, settings.model, settings.seed)
    length = data.prompt + data.response
    origin.fits(model.lm, length, "config.data.prompt + config.data.response")
    model, template = running.with_template(data.template, model)
    tokenizer = model.tokenizer
    counts: corpora.CountsBySource = {}

    def groups_of(records: Sequence, name: str) -> list[pipeline.Group]:
      return corpora.comparisons(data, records, tokenizer, template, name, counts)

    groups = corpora.rows(sources, lambda part: groups_of(part.records, part.source))
    valid = groups_of(held_out, data.valid)
    shown = demonstration_rows(settings, demonstrations, tokenizer, template, counts)
    # Prompts with fewer completions than the most are padded; a padded one has rank 0.
    completions = max(len(record.completions) for record in [*corpora.records(sources), *held_out])
    pad = partial(pipeline.pad_comparisons, k=completions, length=length)
    calls = settings.steps or corpora.batches_in(
      settings.epochs, len(groups), settings.batch, "config.epochs"
    )
    stage = wire(
      settings,
      model.lm,
      calls,
      completions,
      adapter_goes_on=trainable.goes_on(model, settings),
    )
    about = trainable.about_trained(model, source, settings)
    state, trunk = running.start(stage, settings.seed, model.params)
    model = model._replace(params={})  # they are donated with the state
    rows, pad_rows = groups, pad
    if data.stems:
      rows, pad_rows = stems.kept_rows(model.lm, trunk, groups, pad, settings.model.dtype)
    draw = draw_comparisons(settings, rows, pad_rows)
    evaluate = None
    if valid:
      multiple = shards * settings.micro
      evaluate = held_out_accuracy(model.lm, trunk, valid, pad, multiple)
    prints = running.fingerprints(
      comparisons=corpora.records(sources), valid=held_out, demonstrations=demonstrations
    )
    training = running.Training(
      stage,
      state,
      trunk,
      lambda number: {"comparisons": draw(number)},
      about,
      prints,
      evaluate,
      settings.evaluate_every,
    )
    del state  # the first step takes it over
    with running.open_run(settings, workdir, sinks, prints) as writer:
      writers.note(workdir, rows=corpora.facts(counts))
      final = running.train(settings, workdir, writer, training)
      params = final.params
      # Eq. 1 does not see the bias: it is fitted last, and the value network inherits it.
      if shown:
        whole = reward.join(trunk, params)
        params = reward.fit_bias(params, mean_score(model.lm, whole, shown, length, shards))
      body = running.whole_model(settings.top, source, settings.model, settings.seed, params["lm"])
      left = {"lm": body, "head": params["head"]}
      origin.finish(workdir, int(final.iteration), left, about, "reward")
