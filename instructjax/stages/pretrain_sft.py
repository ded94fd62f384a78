"""Pretraining, SFT and the model that PPO starts from: one wiring, told apart by their data."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import packs, sft, sharding, steps
from instructjax.data.batches import corpora, packing, pipeline
from instructjax.data.batches.mixture import Rows
from instructjax.data.records.records import Demonstration
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.runs import origin, writers
from instructjax.runs.loop import Evaluate
from instructjax.settings.supervised import (
  DemonstrationData,
  MixedData,
  PretrainSettings,
  RLInitSettings,
  SFTSettings,
  SupervisedSettings,
)
from instructjax.stages import closing, holding_out, running, stems, trainable
from instructjax.stages.wiring import (
  Part,
  Stage,
  demonstrations_of,
  learning_rate,
  optimizer,
  require_multiple,
  rows_of,
  share_of_real,
)
from instructjax.system import keys
from instructjax.system.places import AnyPath
from instructjax.types import LM, Demonstrations, Params, TrainState


def row_length(settings: SupervisedSettings) -> int:
  """Tokens of a row."""
  if isinstance(settings, PretrainSettings):
    return settings.data.length
  return settings.data.prompt + settings.data.response


def text_rows(settings: SupervisedSettings) -> int:
  """The rows of a batch that are text: all, none, or some."""
  if isinstance(settings, PretrainSettings):
    return settings.batch
  return settings.rows_of_text if isinstance(settings, RLInitSettings) else 0


class PackedRows(NamedTuple):
  """How a packed batch is computed: in `parts`, one after the other, of so many rows each."""

  rows: int  # over all devices
  parts: int  # the most that a batch may need, one row for each demonstration


def packed_rows(settings: SupervisedSettings) -> PackedRows | None:
  """The parts of a batch whose demonstrations are packed; None where they are not, and for text."""
  if isinstance(settings, PretrainSettings) or not settings.data.pack:
    return None
  shards = sharding.batch_shards()
  on_a_device = packs.rows_at_once(
    settings.batch // shards,
    row_length(settings),
    rows=settings.rows_at_once,
    micro=settings.micro,
  )
  rows = on_a_device * shards
  return PackedRows(rows, parts=-(-settings.batch // rows))


def keeps_stems(settings: SupervisedSettings) -> bool:
  return not isinstance(settings, PretrainSettings) and settings.data.stems


def wire(
  settings: SupervisedSettings,
  lm: LM,
  calls: int,
  *,
  window: int | None = None,
  adapter_goes_on: bool = False,
) -> Stage:
  """The stage on a model: `sft.sft_step` on demonstrations, on text, or on both.

  `window` is the most marked tokens of a row, where that is known.

  Raises UserError where the batch does not divide over the mesh, or rows are longer than the
  context.
  """
  length = row_length(settings)
  require_multiple(
    settings.batch,
    settings.micro * sharding.batch_shards(),
    "config.batch",
    "config.micro x devices",
  )
  # Text is marked everywhere, so that its logits are needed at every position.
  with_text = text_rows(settings) > 0
  origin.fits(
    lm, length, "config.data.length" if with_text else "config.data.prompt + config.data.response"
  )
  rate = learning_rate(settings.optimizer, calls)
  tx = optimizer(settings.optimizer, lm, calls)
  packed = packed_rows(settings)
  step_settings = sft.SFTConfig(
    micro=packed.parts if packed else settings.micro,
    packed=packed is not None,
    window=None if with_text else window,
    dropout=settings.model.dropout > 0,
  )
  if isinstance(settings, RLInitSettings):
    step_settings = dataclasses.replace(
      step_settings, text_rows=settings.rows_of_text, text_share=settings.text_share
    )

  def init(key: Any, params: Params) -> tuple[TrainState, Params]:
    parts = trainable.split(
      lm, params, keys.key_for(key, "adapter"), settings, adapter_goes_on=adapter_goes_on
    )
    return steps.new_state(key, parts.trained, tx), parts.trunk

  def step(state: TrainState, trunk: Params, batch: dict[str, Demonstrations]) -> Any:
    before = state.step
    state, metrics = sft.sft_step(state, trunk, batch["rows"], lm=lm, tx=tx, cfg=step_settings)
    return state, metrics | {"lr": rate(before)}

  def train_rows(state: TrainState, trunk: Params, rows: Demonstrations) -> Any:
    return step(state, trunk, {"rows": rows})

  stem = stems.stem_type(lm, settings.model.dtype) if keeps_stems(settings) else None
  size = packed.rows * packed.parts if packed else settings.batch
  part = Part(
    settings.stage,
    train_rows,
    ("rows",),
    "state",
    tokens=settings.batch * length,
    updates=1,
    trips={"parts": packed.parts} if packed else {},
    share=share_of_real("tokens/real", size * length),
  )
  rows = demonstrations_of(size, length, stem)
  if packed:
    # The number of the segment of each token.
    rows = dataclasses.replace(rows, valid=rows_of((size, length), jnp.int32))
  batch = {"rows": rows}
  return Stage(settings.stage, init, step, batch, (part,), calls)


# --- the data of a run ---


class Prepared(NamedTuple):
  """The rows of a run.

  demonstrations, text   rows to draw from
  held_out               rows to evaluate on
  held_out_text          rows of text to evaluate on, beside demonstrations
  window                 the most marked tokens of a row; None where most tokens may be marked
  prints                 fingerprints of the records
  counts                 what was cut or left out, by source
  asked                  the records of the held-out rows, where these are demonstrations
  """

  demonstrations: Rows
  text: Rows
  held_out: Sequence
  held_out_text: Sequence
  window: int | None
  prints: Mapping[str, str]
  counts: corpora.CountsBySource
  asked: Sequence[Demonstration] = ()


class Records(NamedTuple):
  """What the files of a run hold, all of it checked.

  demonstrations, texts     by source
  held_out, held_out_text   of one file each; the text is that of a run on demonstrations
  """

  demonstrations: list
  texts: list
  held_out: list
  held_out_text: list


def read_records(settings: SupervisedSettings) -> Records:
  """Reads the files that the settings name."""
  data = settings.data
  demonstrations, texts = [], []
  if not isinstance(data, DemonstrationData | MixedData):
    texts = corpora.read(data, "text", "text", lazily=data.lazy)
  else:
    demonstrations = corpora.read(data, "demonstrations", "demonstration")
  if isinstance(data, MixedData):
    texts = corpora.read(data, "text", "text", lazily=data.lazy)
  held_out = []
  if data.valid:
    held_out = corpora.read_one(data, "valid", "demonstration" if demonstrations else "text")
  held_out_text = []
  if isinstance(data, MixedData) and data.valid_text:
    held_out_text = corpora.read_one(data, "valid_text", "text")
  return Records(demonstrations, texts, held_out, held_out_text)


def prepare(
  settings: SupervisedSettings,
  sources: Records,
  tokenizer: Tokenizer,
  template: chat.Template | None,
) -> Prepared:
  """Turns records into rows.

  Raises UserError for prompts that are too long, all of them listed.
  """
  demonstrations, texts, held_out, held_out_text = sources
  # Text is cut to the length of the demonstrations beside it: a batch has one length.
  data, length = settings.data, row_length(settings)
  windows, text_print = corpora.texts(data, texts, tokenizer, length)
  prints = running.fingerprints(
    demonstrations=corpora.records(demonstrations), text=text_print, valid=held_out
  )
  if isinstance(settings, PretrainSettings):
    valid = held_out_windows(settings, held_out, tokenizer, data.valid)
    return Prepared([], windows, valid, [], None, prints, {})
  valid_text: list[pipeline.Row] = []
  if isinstance(settings, RLInitSettings):
    prints |= running.fingerprints(valid_text=held_out_text)
    valid_text = held_out_windows(settings, held_out_text, tokenizer, settings.data.valid_text)
  rows_by_source = {}
  counts: corpora.CountsBySource = {}
  held_out_share = settings.data.held_out
  chosen = holding_out.choose(demonstrations, held_out_share, settings.seed)
  training_records: list[Demonstration] = []
  valid = demonstration_rows(settings, held_out, tokenizer, template, data.valid, counts)
  for part in demonstrations:
    rows = demonstration_rows(settings, part.records, tokenizer, template, part.source, counts)
    halves = chosen.halves(part, rows, counts)
    rows_by_source[part.source] = halves.training
    training_records += halves.training_records
    valid += halves.held_out
    held_out = [*held_out, *halves.held_out_records]
  holding_out.say(held_out_share, training_records, held_out)
  window = logits_of_a_row(settings, [row for rows in rows_by_source.values() for row in rows])
  rows = corpora.rows(demonstrations, lambda part: rows_by_source[part.source])
  return Prepared(rows, windows, valid, valid_text, window, prints, counts, held_out)


def demonstration_rows(
  settings: SFTSettings | RLInitSettings,
  records: Sequence,
  tokenizer: Tokenizer,
  template: chat.Template | None,
  name: str,
  counts: corpora.CountsBySource,
) -> list[pipeline.Row]:
  """The rows of demonstrations; with `loss_on_prompt` the whole row is marked.

  Raises UserError for a reply that must not be learnt, where the whole row is.
  """
  if settings.loss_on_prompt:
    marked = [line for line, record in enumerate(records, 1) if has_unlearnt(record)]
    if marked:
      raise UserError(
        f"{name}:{marked[0]}: {len(marked):,} records have a reply of weight 0 or train false, and "
        "config.loss_on_prompt=true learns whole rows; leave it false, or take the marks out"
      )
  rows = corpora.demonstrations(settings.data, records, tokenizer, template, name, counts)
  if settings.loss_on_prompt:
    return [row._replace(start=1, mask=None) for row in rows]
  return rows


def has_unlearnt(record: Demonstration) -> bool:
  """Whether a record marks a reply that must not be learnt."""
  return any(turn.get("train") is False for turn in record.turns or ())


def logits_of_a_row(
  settings: SFTSettings | RLInitSettings, rows: Sequence[pipeline.Row]
) -> int | None:
  """For how many tokens of a row a step computes logits; None for all."""
  length = row_length(settings)
  sizes = np.asarray([len(row.ids) for row in rows], np.int64)
  marked = np.asarray([packing.marked_tokens(row) for row in rows], np.int64)
  if settings.data.pack:
    window = packing.marked_limit(sizes, marked, length)
  else:
    window = max(settings.data.response, int(marked.max(initial=0)))
  return window if window < length - 1 else None


def held_out_windows(
  settings: PretrainSettings | RLInitSettings, records: Sequence, tokenizer: Tokenizer, name: str
) -> list[pipeline.Row]:
  """Held-out text in rows: windows of all documents joined, or each document by itself."""
  length = row_length(settings)
  if not records:
    return []
  if corpora.packs_text(settings.data):
    return pipeline.documents(records, tokenizer, length=length, name=name)
  return pipeline.text(records, tokenizer, length=length, tail=True, name=name)


def count_steps(settings: SupervisedSettings, prepared: Prepared) -> int:
  """The updates of a run: `steps`, or so many epochs of the demonstrations (of the text, alone).

  Raises UserError where there are no rows.
  """
  demonstrations = settings.batch - text_rows(settings)
  # An epoch is counted in demonstrations; the text beside them is drawn as long as they last.
  rows = len(prepared.demonstrations) if demonstrations else len(prepared.text)
  if settings.steps:
    return settings.steps
  size = demonstrations or settings.batch
  return corpora.batches_in(settings.epochs, rows, size, "config.epochs")


def batches_of(
  settings: SupervisedSettings, prepared: Prepared, lm: LM, trunk: Params
) -> Callable[[int], dict[str, Demonstrations]]:
  """Batches of demonstrations and, after them, rows of text; of both the rows of this process.

  Where demonstrations are packed, rows of text come before them. A process then reads all
  demonstrations of a batch: where each of them stands depends on the sizes of all.
  """
  packed = packed_rows(settings)
  if packed:
    return packed_batches(settings, prepared, lm, trunk, packed)
  mine = sharding.local_rows(settings.batch)
  demonstrations = settings.batch - text_rows(settings)
  streams = []
  for purpose, first, size in (
    ("demonstrations", 0, demonstrations),
    ("text", demonstrations, settings.batch - demonstrations),
  ):
    # Demonstrations come first in a batch, so a process may have rows of one kind alone.
    own_rows = [number - first for number in mine if first <= number < first + size]
    if own_rows:
      streams.append(stream_of(settings, prepared, lm, trunk, purpose, size, own_rows))

  def batch(number: int) -> dict[str, Demonstrations]:
    parts = [stream(number) for stream in streams]
    return {"rows": jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)}

  return batch


def packed_batches(
  settings: SupervisedSettings, prepared: Prepared, lm: LM, trunk: Params, packed: PackedRows
) -> Callable[[int], dict[str, Demonstrations]]:
  """Batches whose demonstrations are packed, the same ones in each batch as without packing."""
  texts = text_rows(settings)
  size = settings.batch - texts
  demonstrations = stream_of(
    settings, prepared, lm, trunk, "demonstrations", size, list(range(size))
  )
  text = None
  if texts:
    text = stream_of(settings, prepared, lm, trunk, "text", texts, list(range(texts)))
  mine = np.asarray(sharding.local_rows(packed.rows * packed.parts))

  def batch(number: int) -> dict[str, Demonstrations]:
    rows = packing.pack_batch(
      demonstrations(number),
      rows=packed.rows,
      parts=packed.parts,
      most=prepared.window,
      first=None if text is None else text(number),
    )
    return {"rows": jax.tree.map(lambda array: array[mine], rows)}

  return batch


def stream_of(
  settings: SupervisedSettings,
  prepared: Prepared,
  lm: LM,
  trunk: Params,
  purpose: Literal["demonstrations", "text"],
  size: int,
  mine: Sequence[int],
) -> Callable[[int], Demonstrations]:
  """The rows numbered `mine` of the `size` rows of one kind that each batch has."""
  rows, packs = prepared.demonstrations, False
  if purpose == "text":
    rows, packs = prepared.text, corpora.packs_text(settings.data)
  pad_rows = packing.pad_packed if packs else pipeline.pad_demonstrations
  pad = partial(pad_rows, length=row_length(settings))
  if keeps_stems(settings):
    rows, pad = stems.kept_rows(lm, trunk, rows, pad, settings.model.dtype)
  seed = keys.seed_for(settings.seed, purpose)
  return pipeline.stream(rows, pad, size=size, seed=seed, mine=mine)


def say_useful(settings: SupervisedSettings, prepared: Prepared, batches: int) -> None:
  """Prints how much of a packed batch is tokens, of the first batches, in one process of several.

  Beside it stands the same share without packing.
  """
  packed = packed_rows(settings)
  if not packed or jax.process_index() > 0:
    return
  texts, length = text_rows(settings), row_length(settings)
  size = settings.batch - texts

  def sizes_and_marks(rows: Sequence[pipeline.Row]) -> np.ndarray:
    return np.asarray([(len(row.ids), packing.marked_tokens(row)) for row in rows])

  seed = keys.seed_for(settings.seed, "demonstrations")
  stream = pipeline.stream(prepared.demonstrations, sizes_and_marks, size=size, seed=seed)
  tokens, computed, batches = 0, 0, min(batches, 32)
  for number in range(batches):
    sizes, marked = stream(number).T
    places = packing.into_parts(
      sizes, length, packed.rows, marked=marked, most=prepared.window, taken=texts
    )
    tokens += int(sizes.sum())
    computed += places.count * packed.rows * length
  text_tokens = batches * texts * length  # rows of text are full, or nearly so
  useful = 100 * (tokens + text_tokens) / computed
  unpacked = 100 * (tokens + text_tokens) / (batches * settings.batch * length)
  print(
    f"{settings.batch} rows a batch, {size} of them demonstrations, which are packed: {useful:.0f} "
    f"% of what is computed are tokens (without config.data.pack, {unpacked:.0f} %)",
    file=sys.stderr,
    flush=True,
  )


# --- measures ---


def held_out_nll(
  lm: LM,
  trunk: Params,
  rows: Sequence,
  length: int,
  multiple: int,
  size: int = 16,
  name: str = "eval/nll",
  pack: bool = False,
) -> Evaluate:
  """A function of the state: the negative log-probability of held-out rows, nats a token.

  With `pack` several of them stand in a row, each by itself.
  """
  pad = partial(packing.pad_packed if pack else pipeline.pad_demonstrations, length=length)
  if pack:
    bins = packing.pack(rows, length)
    rows = [bins[number] for number in range(len(bins))]
  size = running.rows_for(min(size, len(rows)), multiple)

  @jax.jit
  def sum_nll(trunk: Params, params: Params, batch: Demonstrations) -> Any:
    return sft.evaluate(trunk | params, batch, lm=lm)

  def evaluate(state: TrainState) -> dict[str, Any]:
    total, count = 0.0, 0.0
    for batch, real in pipeline.once(rows, pad, size=size):
      # The last batch is filled up with rows that were counted before; they carry no mask.
      counted = (np.arange(size) < real)[:, None]
      batch = dataclasses.replace(batch, mask=batch.mask & counted)
      value, tokens = sum_nll(trunk, state.params, sharding.place_batch(batch))
      total += float(value)
      count += float(tokens)
    # Of rows that mark nothing the loss is unknown; 0 would be the best there is.
    return {name: total / count if count else None}

  return evaluate


def with_mixed_nll(evaluate: Evaluate, text_share: float) -> Evaluate:
  """Adds the loss that `rl_init` trains on, of held-out data: both kinds with their shares."""

  def evaluate_both(state: TrainState) -> dict[str, Any]:
    values = dict(evaluate(state))
    demonstrations, text = values["eval/nll"], values["eval/nll_text"]
    mixed = None
    if demonstrations is not None and text is not None:
      mixed = (1 - text_share) * demonstrations + text_share * text
    return values | {"eval/nll_mixed": mixed}

  return evaluate_both


def together(measures: Sequence[Evaluate]) -> Evaluate | None:
  """One function that measures everything; None where nothing is measured."""
  if not measures:
    return None

  def evaluate(state: TrainState) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for measure in measures:
      values |= measure(state)
    return values

  return evaluate


# --- the command ---


class Selection(NamedTuple):
  """How SFT chooses its checkpoint.

  measure   (model, template, trunk, parts of a batch) -> a function of the state
  choose    (last state) -> the state to leave
  prints    fingerprints of what it measures with
  """

  measure: Callable[[origin.Origin, chat.Template | None, Params, int], Evaluate]
  choose: Callable[[TrainState], TrainState]
  prints: Mapping[str, str]


def run(
  settings: SupervisedSettings,
  workdir: AnyPath,
  sinks: tuple[str, ...] = (),
  watch: running.Watch = running.NOBODY,
  selection: Selection | None = None,
) -> None:
  """Trains and leaves the last state, or the one that `selection` chooses.

  Raises UserError for whatever is wrong with the settings, the data or the model, before
  anything is written.
  """
  source = settings.model.source
  with running.devices(settings.mesh) as shards:
    require_multiple(
      settings.batch, settings.micro * shards, "config.batch", "config.micro x devices"
    )
    # Files are read before the model is opened: a wrong line is found in a second.
    sources = read_records(settings)
    model = running.open_policy(source, settings.model, settings.seed)
    origin.fits(model.lm, row_length(settings), "config.data.prompt + config.data.response")
    template = None
    if not isinstance(settings, PretrainSettings):
      model, template = running.with_template(settings.data.template, model)
    prepared = prepare(settings, sources, model.tokenizer, template)
    calls = count_steps(settings, prepared)
    say_useful(settings, prepared, calls)
    stage = wire(
      settings,
      model.lm,
      calls,
      window=prepared.window,
      adapter_goes_on=trainable.goes_on(model, settings),
    )
    about = trainable.about_trained(model, source, settings)
    state, trunk = running.start(stage, settings.seed, model.params)
    # The state holds the trained part now; the whole model would be a second copy.
    model = model._replace(params={})  # they are donated with the state
    # What is measured sees the model without dropout.
    measures = []
    multiple, length = shards * settings.micro, row_length(settings)
    if prepared.held_out:
      # Of pretraining that is text, and of the other stages demonstrations.
      pack = settings.data.pack
      measures.append(held_out_nll(model.lm, trunk, prepared.held_out, length, multiple, pack=pack))
    if prepared.held_out_text:
      rows, name = prepared.held_out_text, "eval/nll_text"
      pack = corpora.packs_text(settings.data)
      measures.append(held_out_nll(model.lm, trunk, rows, length, multiple, name=name, pack=pack))
    answers = None
    if not isinstance(settings, PretrainSettings):
      answers = closing.answers(
        settings, model.lm, model.tokenizer, template, prepared.asked, shards
      )
    prints = dict(prepared.prints)
    if selection is not None:
      measures.append(selection.measure(model, template, trunk, shards))
      prints |= selection.prints
    evaluate = together(measures)
    if isinstance(settings, RLInitSettings) and len(measures) == 2:
      assert evaluate is not None
      evaluate = with_mixed_nll(evaluate, settings.text_share)
    training = running.Training(
      stage,
      state,
      trunk,
      batches_of(settings, prepared, model.lm, trunk),
      about,
      prints,
      evaluate,
      settings.evaluate_every,
    )
    del state  # the first step takes it over
    with running.open_run(settings, workdir, sinks, prints) as writer:
      writers.note(workdir, rows=corpora.facts(prepared.counts))
      final = running.train(settings, workdir, writer, training, watch)
      if selection is not None:
        final = selection.choose(final)
      step = int(final.iteration)
      if answers is not None:
        rows = answers(trunk | final.params)
        closing.leave(workdir, writer, step, settings.stage, rows)
      params = running.whole_model(
        settings.top, source, settings.model, settings.seed, final.params
      )
      running.leave_policy(settings, workdir, step, params, about)
