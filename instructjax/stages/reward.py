"""The reward stage: ranked completions, and the bias that gives demonstrations the mean score 0."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import reward, sharding, steps
from instructjax.data.batches import branches, corpora, pipeline
from instructjax.data.records import ordering, places
from instructjax.data.records.records import Comparison, report
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.runs import origin, writers
from instructjax.runs.loop import Evaluate
from instructjax.settings.dpo import DPOSettings
from instructjax.settings.reward import RewardSettings
from instructjax.stages import closing, holding_out, neighbours, running, stems, trainable
from instructjax.stages.wiring import (
  Part,
  Stage,
  learning_rate,
  optimizer,
  require_multiple,
  rows_of,
  share_of_real,
  whole_on_each_device,
)
from instructjax.system import keys
from instructjax.system.places import AnyPath
from instructjax.types import LM, Comparisons, Params, TrainState


def wire(
  settings: RewardSettings,
  lm: LM,
  calls: int,
  layout: branches.Layout,
  *,
  adapter_goes_on: bool = False,
) -> Stage:
  """The stage on a model: `reward.reward_step` on batches of this layout.

  Raises UserError where the batch does not divide over the mesh, or rows are longer than the
  context.
  """
  check_batch(settings, sharding.batch_shards())
  length = settings.data.prompt + settings.data.response
  origin.fits(lm, length, "config.data.prompt + config.data.response")
  rate = learning_rate(settings.optimizer, calls)
  tx = optimizer(settings.optimizer, lm, calls)
  step_settings = reward.RewardConfig(
    dropout=settings.model.dropout > 0,
    pairs=settings.pairs,
    loss=settings.loss,
    centering=settings.centering,
    margin=settings.margin,
    margin_by=settings.margin_by,
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

  stem = stems.stem_type(lm, settings.model.dtype) if settings.data.stems else None
  batch = comparisons_of(layout, stem)
  if settings.margin_by == "rating":
    rating = rows_of(batch.rank.shape, jnp.float32)
    batch = dataclasses.replace(batch, rating=rating)
  part = Part(
    "reward",
    train_comparisons,
    ("comparisons",),
    "state",
    tokens=settings.batch * layout.length,
    updates=1,
    trips={"parts": layout.parts},
    share=share_of_real("tokens", layout.parts * layout.rows * layout.length),
  )
  return Stage("reward", init, step, {"comparisons": batch}, (part,), calls)


def check_batch(settings: RewardSettings | DPOSettings, shards: int) -> None:
  """Raises UserError where a batch does not divide into its parts on each device."""
  parts = max(settings.micro, 1)  # 0 leaves the number of parts to the lengths of the data
  require_multiple(settings.batch, parts * shards, "config.batch", "config.micro x devices")


def planned_layout(
  settings: RewardSettings | DPOSettings, completions: int, learnt: bool = False
) -> branches.Layout:
  """The layout of batches in which every prompt and each of its completions is as long as can be.

  `learnt` is whether a policy learns the completions.
  """
  answers = completions * settings.data.response
  length = settings.data.prompt + answers
  return branches.layout_for(
    settings.batch,
    sharding.batch_shards(),
    longest=length,
    shortest=length,
    completions=completions,
    learnt=answers / length if learnt else 0.0,
    micro=settings.micro,
  )


def comparisons_of(layout: branches.Layout, stem: tuple[int, Any] | None) -> Comparisons:
  """The shapes of a batch of this layout; `stem` is (width, dtype), if rows bring one."""
  rows = (layout.rows, layout.parts)
  ids = rows_of((*rows, layout.length), jnp.int32)
  ranked = rows_of((*rows, layout.slots, layout.completions), jnp.int32)
  activations = None if stem is None else rows_of((*ids.shape, stem[0]), stem[1])
  label = None
  if layout.labels:
    label = rows_of((*ranked.shape, layout.completions), jnp.float32)
  return Comparisons(ids, ids, ids, ranked, ranked, ranked, activations, label=label)


# --- data ---


def with_ratings(
  settings: RewardSettings,
  groups: list[pipeline.Group],
  records: Sequence[Comparison],
  name: str,
) -> list[pipeline.Group]:
  """The groups with the overall rating of each completion, where margins count it.

  Raises UserError where a completion has none.
  """
  if settings.margin_by != "rating":
    return groups
  problems = []
  rated = []
  for number, (group, record) in enumerate(zip(groups, records, strict=True)):
    ratings = [rating["overall"] for rating in record.ratings or () if "overall" in rating]
    if len(ratings) == len(group.rows):
      rated.append(group._replace(ratings=tuple(float(rating) for rating in ratings)))
      continue
    place = places.field(places.of(record, name, number), "ratings")
    problems.append(
      f"{place}: config.margin_by=rating needs the overall rating of every "
      "completion; rate them, or count the margin by rank"
    )
  report(problems)
  return rated


def require_ranks(settings: RewardSettings, groups: Sequence[pipeline.Group], name: str) -> None:
  """Raises UserError where the settings need ranks, and the labels of some pairs are no ranking."""
  by_rank = settings.margin and settings.margin_by == "rank"
  if settings.loss != "best_of_k" and not by_rank:
    return
  setting = "config.loss=best_of_k" if settings.loss == "best_of_k" else "config.margin_by=rank"
  unranked = sum(group.labels is not None for group in groups)
  if unranked:
    raise UserError(
      f"{name}: {unranked} of {len(groups)} comparisons have pairs in place of ranks, and "
      f"{setting} needs ranks; take these comparisons out or choose another setting"
    )


def packing_of(layouts: Sequence[branches.Fitting]) -> pipeline.Pad:
  """The function that makes a batch of the first layout that holds it.

  Of several processes each makes its own rows.
  """

  def pad(groups: Sequence[branches.Branches]) -> Comparisons:
    layout = branches.fitting(groups, layouts)
    return branches.pack(groups, branches.of_this_process(layout))

  return pad


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


def scores_of_groups(
  score_part: Callable[..., Any], groups: Sequence[branches.Branches], shards: int
) -> Callable[..., np.ndarray]:
  """A function of models: the score of each completion of some groups [B, K], in their order.

  `score_part(*models, part)` gives the scores of a part of a packed batch. All groups are packed as
  one batch, whose parts are computed one after the other.
  """
  size = running.rows_for(len(groups), shards)
  layout = branches.layout(groups, size, shards, scored=True)
  slots = branches.slots_of(groups, layout)
  batch = branches.pack(groups, layout)
  used = int(slots.part.max()) + 1
  compiled = jax.jit(score_part)

  def scores_of(*models: Any) -> np.ndarray:
    scores = []
    for number in range(used):
      part = jax.tree.map(lambda x, number=number: x[:, number], batch)
      by_prompt = sharding.fetch(compiled(*models, sharding.place_batch(part)))
      scores.append(np.asarray(by_prompt).reshape(layout.rows, layout.slots, layout.completions))
    return branches.unpack(np.stack(scores, axis=1), slots)

  return scores_of


def reward_scores(
  lm: LM, groups: Sequence[branches.Branches], shards: int
) -> Callable[[Params, Params], np.ndarray]:
  """A function of (trunk, trained part): the reward of each completion [B, K]."""

  def score_part(trunk: Params, params: Params, part: Comparisons) -> Any:
    return reward.score_comparisons(lm, reward.join(trunk, params), part)

  return scores_of_groups(score_part, groups, shards)


class HeldOut(NamedTuple):
  """How a reward model is measured on held-out comparisons.

  evaluate   (state) -> the metrics of the whole set
  report     (last state, gain) -> everything about it, as results.json holds it
  scores     (state) -> the score of each completion [B, K], before any gain
  """

  evaluate: Evaluate
  report: Callable[[TrainState, float], dict[str, Any]]
  scores: Callable[[TrainState], np.ndarray]


def held_out_measures(
  scores_of: Callable[[TrainState], np.ndarray],
  records: Sequence[Comparison],
  groups: Sequence[pipeline.Group],
  training_labelers: Sequence[str],
) -> HeldOut:
  """The measures of `ordering`, while the model is trained and at the end.

  The last evaluation of a run and its report are of one state, whose scores are computed once.
  """
  latest: dict[int, np.ndarray] = {}
  distinct = [group.distinct() for group in groups]

  def scores_at(state: TrainState) -> np.ndarray:
    iteration = int(state.iteration)
    if iteration not in latest:
      scores = scores_of(state)
      latest.clear()
      latest[iteration] = scores
    return latest[iteration]

  def evaluate(state: TrainState) -> dict[str, Any]:
    pairs = ordering.pairs_of(scores_at(state), records, distinct)
    if not np.isfinite(pairs.difference).all():
      return {"eval/accuracy": float("nan")}  # the loop says so, and stops
    accuracy = ordering.accuracy(pairs)
    bins = ordering.reliability(pairs.difference)
    values = {
      "eval/accuracy": accuracy.value,
      "eval/accuracy_low": accuracy.low,
      "eval/accuracy_high": accuracy.high,
      "eval/log_loss": ordering.log_loss(pairs).value,
      "eval/slope": ordering.slope(pairs).value,
    }
    # The scores are finite: what is not has no value, as an accuracy over no pairs.
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return finite | {"eval/ece": ordering.calibration_error(bins)}

  def report_on(state: TrainState, gain: float) -> dict[str, Any]:
    scores = gain * scores_at(state)
    return ordering.measure(scores, records, distinct=distinct, training_labelers=training_labelers)

  return HeldOut(evaluate, report_on, scores_at)


def labelers_of(records: Sequence[Comparison]) -> list[str]:
  """The names of the labelers, each once."""
  return sorted({record.labeler for record in records if record.labeler})


def describe(measured: Mapping[str, Any]) -> str:
  """One line about a reward model on held-out comparisons."""
  accuracy = measured["pair_accuracy"]
  if not accuracy["n"]:
    return "held-out comparisons: every pair ties, so the accuracy is unknown"
  text = (
    f"held-out accuracy {accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f}) "
    f"of {accuracy['n']:,} pairs; chance 0.500"
  )
  longer = measured["references"].get("longer")
  if longer is not None:
    text += f", the longer one wins {longer['value']:.3f}"
  agreed = measured["references"].get("labelers")
  if agreed is not None:
    text += f"; labelers agree on {agreed['value']:.3f}"
  return text


def demonstration_scores(
  lm: LM, params: Params, rows: Sequence[pipeline.Row], shards: int
) -> np.ndarray:
  """The score of each demonstration, under a whole model."""
  groups = [branches.of_row(row) for row in rows]
  return reward_scores(lm, groups, shards)({}, params)[:, 0]


class Normalised(NamedTuple):
  """A reward model on the scale that PPO sees: it scores gain * r + shift.

  params   the model
  gain     1 where the mean alone is normalised
  shift    what is added to gain * r
  about    both scales, as manifest.json holds them
  """

  params: Params
  gain: float
  shift: float
  about: dict[str, Any]


def normalise(kind: str, params: Params, scores: np.ndarray) -> Normalised:
  """Gives demonstrations of these scores the mean 0 and, with "mean_and_std", the deviation 1.

  Raises UserError where all demonstrations score the same and a deviation is asked for.
  """
  mean, std = float(scores.mean()), float(scores.std())
  gain = 1.0
  if kind == "mean_and_std":
    if not std:
      raise UserError(
        f"config.normalise={kind}: the {len(scores)} demonstrations all score {mean:g}, so their "
        "deviation cannot be 1; give more of them, or normalise the mean alone"
      )
    gain = 1 / std
  shift = -gain * mean
  normalised = reward.rescale(params, gain, shift)
  scaled = gain * (scores - mean)
  about = {
    "demonstrations": len(scores),
    "before": {"mean": mean, "std": std, "gain": 1.0, "bias": float(params["head"]["b"])},
    "after": {
      "mean": float(scaled.mean()),
      "std": float(scaled.std()),
      "gain": gain,
      "bias": float(normalised["head"]["b"]),
    },
  }
  return Normalised(normalised, gain, shift, about)


# --- the command ---


def run(
  settings: RewardSettings,
  workdir: AnyPath,
  sinks: tuple[str, ...] = (),
  watch: running.Watch = running.NOBODY,
) -> None:
  """Trains the reward model, fits its bias, and leaves it.

  Raises UserError for whatever is wrong with the settings, the data or the model, before
  anything is written.
  """
  source, data = settings.model.source, settings.data
  with running.devices(settings.mesh) as shards:
    check_batch(settings, shards)
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

    def groups_of(records: Sequence, name: str) -> tuple[list[pipeline.Group], list]:
      return corpora.comparisons(data, records, tokenizer, template, name, counts)

    all_groups: list[branches.Branches] = []

    chosen = holding_out.choose(sources, data.held_out, settings.seed)
    training_records: list[Comparison] = []
    valid: list[pipeline.Group] = []

    def groups_of_source(part: corpora.Part) -> list[branches.Branches]:
      source_groups, kept = groups_of(part.records, part.source)
      require_ranks(settings, source_groups, part.source)
      rated = with_ratings(settings, source_groups, kept, part.source)
      halves = chosen.halves(part, rated, counts)
      training_records.extend(halves.training_records)
      valid.extend(halves.held_out)
      held_out.extend(halves.held_out_records)
      packable = [branches.of_group(group) for group in halves.training]
      all_groups.extend(packable)
      return packable

    groups = corpora.rows(sources, groups_of_source)
    if data.valid:
      valid, held_out = groups_of(held_out, data.valid)
    holding_out.say(data.held_out, training_records, held_out)
    shown = demonstration_rows(settings, demonstrations, tokenizer, template, counts)
    calls = settings.steps or corpora.batches_in(
      settings.epochs, len(groups), settings.batch, "config.epochs"
    )
    layouts = branches.layouts(all_groups, settings.batch, shards, settings.micro)
    stage = wire(
      settings,
      model.lm,
      calls,
      layouts[-1].layout,
      adapter_goes_on=trainable.goes_on(model, settings),
    )
    about = trainable.about_trained(model, source, settings)
    state, trunk = running.start(stage, settings.seed, model.params)
    model = model._replace(params={})  # they are donated with the state
    if data.stems:
      groups = stems.kept_branches(model.lm, trunk, groups, settings.model.dtype)
    draw = neighbours.stream(
      groups,
      packing_of(layouts),
      size=settings.batch,
      together=settings.data.together,
      seed=keys.seed_for(settings.seed, "comparisons"),
      name="comparisons",
    )
    measures = None
    if valid:
      scores_of = reward_scores(model.lm, [branches.of_group(group) for group in valid], shards)
      training_labelers = labelers_of(training_records)
      measures = held_out_measures(
        lambda state: scores_of(trunk, state.params), held_out, valid, training_labelers
      )
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
      None if measures is None else measures.evaluate,
      settings.evaluate_every,
    )
    del state  # the first step takes it over
    with running.open_run(settings, workdir, sinks, prints) as writer:
      writers.note(workdir, rows=corpora.facts(counts))
      final = running.train(settings, workdir, writer, training, watch)
      params, gain, shift = final.params, 1.0, 0.0
      # Eq. 1 does not see the bias: it is fitted last, and the value network inherits it.
      if shown:
        whole = reward.join(trunk, params)
        shown_scores = demonstration_scores(model.lm, whole, shown, shards)
        normalised = normalise(settings.normalise, params, shown_scores)
        params, gain, shift = normalised.params, normalised.gain, normalised.shift
        writers.note(workdir, normalisation=normalised.about)
      if measures is not None:
        measured = measures.report(final, gain)
        writers.keep_results(workdir, {"rm": measured})
        running.show(describe(measured))
        final_scores = gain * measures.scores(final) + shift
        rows = closing.best_and_worst(held_out, final_scores, settings.samples)
        closing.leave(workdir, writer, int(final.iteration), settings.stage, rows)
      elif not held_out:
        running.show(holding_out.offer("reward model"))
      body = running.whole_model(settings.top, source, settings.model, settings.seed, params["lm"])
      model_params = {"lm": body, "head": params["head"]}
      running.leave_model(settings, workdir, int(final.iteration), model_params, about, "reward")
