"""The DPO stage: a policy from ranked completions, held to the model that it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import dpo, sharding, steps
from instructjax.data.batches import branches, corpora, pipeline
from instructjax.data.batches.mixture import Rows
from instructjax.data.records.records import Comparison
from instructjax.models import freeze
from instructjax.runs import origin, writers
from instructjax.settings.dpo import DPOSettings
from instructjax.stages import closing, holding_out, reward, running, stems, trainable
from instructjax.stages.wiring import (
  Part,
  Stage,
  learning_rate,
  optimizer,
  rows_of,
  share_of_real,
)
from instructjax.system import keys
from instructjax.system.places import AnyPath
from instructjax.types import LM, Comparisons, Frozen, Params, Predictions, TrainState


def row_length(settings: DPOSettings) -> int:
  """Tokens of a prompt and a completion."""
  return settings.data.prompt + settings.data.response


def step_settings(settings: DPOSettings) -> dpo.DPOConfig:
  """The settings of a step."""
  return dpo.DPOConfig(
    beta=settings.beta,
    dropout=settings.model.dropout > 0,
    pairs=settings.pairs,
  )


def wire(
  settings: DPOSettings,
  lm: LM,
  calls: int,
  layout: branches.Layout,
  *,
  adapter_goes_on: bool = False,
) -> Stage:
  """The stage on a model: `dpo.dpo_step` on batches of this layout.

  Raises UserError where the batch does not divide over the mesh, or rows are longer than the
  context.
  """
  reward.check_batch(settings, sharding.batch_shards())
  length = row_length(settings)
  origin.fits(lm, length, "config.data.prompt + config.data.response")
  rate = learning_rate(settings.optimizer, calls)
  tx = optimizer(settings.optimizer, lm, calls)
  cfg = step_settings(settings)

  def init(key: Any, params: Params) -> tuple[TrainState, Frozen]:
    parts = trainable.split(
      lm, params, keys.key_for(key, "adapter"), settings, adapter_goes_on=adapter_goes_on
    )
    # A copy: the state is donated, and the reference must outlive it.
    trained = jax.tree.map(jnp.copy, parts.trained)
    # With LoRA the reference is the base with its adapter off, or with the one that goes on.
    reference = freeze.cast(parts.start, settings.frozen_dtype)
    return steps.new_state(key, trained, tx), Frozen(parts.trunk, reference, {})

  def step(state: TrainState, frozen: Frozen, batch: dict[str, Comparisons]) -> Any:
    before = state.step
    state, metrics = dpo.dpo_step(state, frozen, batch["comparisons"], lm=lm, tx=tx, cfg=cfg)
    return state, metrics | {"lr": rate(before)}

  def train_comparisons(state: TrainState, frozen: Frozen, comparisons: Comparisons) -> Any:
    return step(state, frozen, {"comparisons": comparisons})

  stem = stems.stem_type(lm, settings.model.dtype) if settings.data.stems else None
  ids = rows_of((layout.rows, layout.parts, layout.learnt), jnp.int32)
  batch = reward.comparisons_of(layout, stem)
  batch = dataclasses.replace(batch, predictions=Predictions(ids, ids, ids))
  part = Part(
    "dpo",
    train_comparisons,
    ("comparisons",),
    "state",
    tokens=settings.batch * layout.length,
    updates=1,
    trips={"parts": layout.parts},
    share=share_of_real("tokens", layout.parts * layout.rows * layout.length),
  )
  return Stage("dpo", init, step, {"comparisons": batch}, (part,), calls)


def packable_groups(groups: Sequence[pipeline.Group]) -> list[branches.Branches]:
  """The groups in packed form, with the tokens that a policy learns."""
  return [branches.of_group(group, learnt=True) for group in groups]


def held_out_rewards(
  lm: LM,
  frozen: Frozen,
  groups: Sequence[branches.Branches],
  shards: int,
  cfg: dpo.DPOConfig,
) -> Callable[[TrainState], np.ndarray]:
  """A function of the state: the implicit rewards [B, K] of held-out comparisons, in order."""

  def score_part(frozen: Frozen, params: Params, part: Comparisons) -> Any:
    return dpo.implicit_reward(lm, params, frozen, part, cfg)

  rewards_of = reward.scores_of_groups(score_part, groups, shards)
  return lambda state: rewards_of(frozen, state.params)


def draw(settings: DPOSettings, rows: Rows, pad: pipeline.Pad) -> Callable[[int], Any]:
  """Batches of comparisons; of each the rows of this process."""
  mine = sharding.local_rows(settings.batch)
  seed = keys.seed_for(settings.seed, "comparisons")
  return pipeline.stream(rows, pad, size=settings.batch, seed=seed, mine=mine)


def run(
  settings: DPOSettings,
  workdir: AnyPath,
  sinks: tuple[str, ...] = (),
  watch: running.Watch = running.NOBODY,
) -> None:
  """Trains the policy and leaves it.

  Raises UserError for whatever is wrong with the settings, the data or the model, before
  anything is written.
  """
  source, data = settings.model.source, settings.data
  with running.devices(settings.mesh) as shards:
    reward.check_batch(settings, shards)
    sources = corpora.read(data, "comparisons", "comparison")
    held_out = corpora.read_one(data, "valid", "comparison") if data.valid else []
    model = running.open_policy(source, settings.model, settings.seed)
    length = row_length(settings)
    origin.fits(model.lm, length, "config.data.prompt + config.data.response")
    model, template = running.with_template(data.template, model)
    tokenizer = model.tokenizer
    counts: corpora.CountsBySource = {}

    def groups_of(records: Sequence, name: str) -> tuple[list[pipeline.Group], list]:
      # A policy must not learn to end where its data were cut.
      return corpora.comparisons(data, records, tokenizer, template, name, counts, end_cut=False)

    all_groups: list[branches.Branches] = []

    chosen = holding_out.choose(sources, data.held_out, settings.seed)
    training_records: list[Comparison] = []
    valid: list[pipeline.Group] = []

    def groups_of_source(part: corpora.Part) -> list[branches.Branches]:
      source_groups, _ = groups_of(part.records, part.source)
      halves = chosen.halves(part, source_groups, counts)
      training_records.extend(halves.training_records)
      valid.extend(halves.held_out)
      held_out.extend(halves.held_out_records)
      packable = packable_groups(halves.training)
      all_groups.extend(packable)
      return packable

    groups = corpora.rows(sources, groups_of_source)
    if data.valid:
      valid, held_out = groups_of(held_out, data.valid)
    holding_out.say(data.held_out, training_records, held_out)
    calls = settings.steps or corpora.batches_in(
      settings.epochs, len(groups), settings.batch, "config.epochs"
    )
    goes_on = trainable.goes_on(model, settings)
    layouts = branches.layouts(all_groups, settings.batch, shards, settings.micro)
    stage = wire(settings, model.lm, calls, layouts[-1].layout, adapter_goes_on=goes_on)
    about = trainable.about_trained(model, source, settings)
    state, frozen = running.start(stage, settings.seed, model.params)
    model = model._replace(params={})  # they are held by the state and by what is frozen
    if data.stems:
      groups = stems.kept_branches(model.lm, frozen.trunk, groups, settings.model.dtype)
    batches = draw(settings, groups, reward.packing_of(layouts))
    measures = None
    if valid:
      cfg = step_settings(settings)
      rewards_of = held_out_rewards(model.lm, frozen, packable_groups(valid), shards, cfg)
      training_labelers = reward.labelers_of(training_records)
      measures = reward.held_out_measures(rewards_of, held_out, valid, training_labelers)
    answers = closing.answers(settings, model.lm, tokenizer, template, held_out, shards)
    prints = running.fingerprints(comparisons=corpora.records(sources), valid=held_out)
    training = running.Training(
      stage,
      state,
      frozen,
      lambda number: {"comparisons": batches(number)},
      about,
      prints,
      None if measures is None else measures.evaluate,
      settings.evaluate_every,
    )
    del state  # the first step takes it over
    with running.open_run(settings, workdir, sinks, prints) as writer:
      writers.note(workdir, rows=corpora.facts(counts))
      final = running.train(settings, workdir, writer, training, watch)
      if measures is not None:
        measured = measures.report(final, 1.0)
        writers.keep_results(workdir, {"dpo": measured})
        running.show(reward.describe(measured))
      step = int(final.iteration)
      rows = answers(frozen.trunk | final.params)
      closing.leave(workdir, writer, step, settings.stage, rows)
      params = running.whole_model(
        settings.top, source, settings.model, settings.seed, final.params
      )
      running.leave_policy(settings, workdir, step, params, about)
