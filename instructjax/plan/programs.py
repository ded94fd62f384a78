"""The programs of a stage on shapes: the stage as it is wired for a run, without any arrays.

Everything here runs inside a mesh (`jax.set_mesh`, or `use_abstract_mesh` where there are no
devices at all). Shardings flow through the types: the state is what `Stage.init` makes of
sharded parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import compiler, models, rollout, sharding
from instructjax.data.batches import pipeline
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.rollout import Sampling
from instructjax.runs import origin
from instructjax.runs.description import ModelConfig
from instructjax.settings import (
  DPOSettings,
  EpisodeSettings,
  GRPOSettings,
  PPOSettings,
  RewardSettings,
)
from instructjax.settings.subjects import AnyModelSettings
from instructjax.settings.supervised import SupervisedSettings
from instructjax.stages import dpo, grpo, ppo, pretrain_sft, reward
from instructjax.stages.wiring import Part, Stage, key_of, shape_of
from instructjax.types import LM, Cache, Leaf, Params, PyTree, TrainState

# The paper's numbers of records (Table 6), from which epochs become steps.
RECORDS = {"sft": 12_725, "rl_init": 12_725, "reward": 33_207, "dpo": 33_207}
Settings = SupervisedSettings | RewardSettings | PPOSettings | GRPOSettings | DPOSettings
# A name of `origin.SHAPES`, or the configuration of another model.
Shape = str | ModelConfig


class Program(NamedTuple):
  """One compiled function of a stage, with the shapes of its arguments.

  kinds        which share of memory each leaf of the arguments belongs to
  outputs      the shardings of what it gives, where they are pinned
  donate       whether the first argument is donated
  calls        how often the whole run calls it
  tokens       tokens that a call trains on or makes
  updates      optimizer updates of a call
  part         the part of the stage that it is
  cache_bytes  bytes of the key/value cache on one device
  width        bytes of an operand of a matrix product
  options      the user's options for the compiler
  """

  name: str
  function: Callable
  arguments: tuple
  kinds: tuple[PyTree, ...]
  outputs: PyTree | None
  donate: bool
  calls: int
  tokens: int
  part: Part
  updates: int = 0
  cache_bytes: int = 0
  width: int = 4
  options: str = ""


# --- models ---


def language_model(shape: Shape, settings: AnyModelSettings, remat: str = "") -> LM:
  """A model of a shape under the settings of a stage; `remat` stands in the place of theirs."""
  config = origin.SHAPES[shape] if isinstance(shape, str) else shape
  changes = {
    "dtype": settings.dtype,
    "stream": settings.stream,
    "remat": remat or settings.remat,
    "unroll": settings.unroll,
    "sequence": settings.sequence,
    "attention": settings.attention,
    "dropout": settings.dropout,
  }
  return models.build(dataclasses.replace(config, **changes))


def parameters(lm: LM) -> Params:
  """The shapes of the parameters, split as a run splits them, on any mesh."""

  def parameter(leaf: Leaf) -> jax.ShapeDtypeStruct:
    return shape_of(leaf.shape, jnp.float32, *leaf.axes)

  return jax.tree.map(parameter, lm.table, is_leaf=lambda x: isinstance(x, Leaf))


def scalar_head(lm: LM) -> Params:
  """The shapes of the head of a reward model."""
  return {"w": shape_of((lm.width,), jnp.float32, None), "b": shape_of((), jnp.float32)}


# --- stages ---


class Planned(NamedTuple):
  """A stage on shapes: its wiring and the shapes of what it starts from."""

  stage: Stage
  models: tuple[Params, ...]
  policy: LM

  def start(self) -> tuple[TrainState, PyTree]:
    """The shapes of the state and of what is frozen, as a run makes them."""
    return jax.eval_shape(self.stage.init, key_of(), *self.models)


def steps_of(
  settings: SupervisedSettings | RewardSettings | DPOSettings, records: int | None, rows: int
) -> int:
  """Optimizer steps of a run: as configured, or epochs over the paper's number of records."""
  count = records or RECORDS.get(settings.stage, 0)
  return settings.steps or max(pipeline.batches_for(settings.epochs, count, max(rows, 1)), 1)


def plan_stage(
  settings: Settings,
  shape: Shape,
  reward_shape: Shape,
  *,
  records: int | None = None,
  completions: int = 9,
  remat: str = "",
) -> Planned:
  """The stage of a configuration under the mesh that is set.

  `reward_shape` is the shape of PPO's reward and value networks. Where it is the policy's, both are
  taken to have the same base, whose untrained trunk is held once.

  Raises UserError where batch, heads or widths do not divide over the mesh.
  """
  policy = language_model(shape, settings.model, remat)
  # Which ids end a response does not change a shape.
  end = (policy.vocab_size - 1,)
  tokenizer = Tokenizer(lambda text: [], lambda ids: "", policy.vocab_size, end, (), (), "planned")
  if isinstance(settings, GRPOSettings):
    experiment = grpo.experiment_of(settings, policy, ppo.sampling_of(settings, tokenizer))
    return Planned(grpo.wire(settings, experiment), (parameters(policy),), policy)
  if isinstance(settings, PPOSettings):
    reward_lm = language_model(reward_shape, settings.model, remat)
    sampling = ppo.sampling_of(settings, tokenizer)
    experiment = ppo.experiment_of(settings, policy, reward_lm, sampling)
    stage = ppo.wire(settings, experiment, shares_trunk=shape == reward_shape)
    judge = ppo.without_head(parameters(reward_lm))
    return Planned(stage, (parameters(policy), judge, scalar_head(reward_lm)), policy)
  if isinstance(settings, DPOSettings):
    calls = steps_of(settings, records, settings.batch)
    layout = reward.planned_layout(settings, completions, learnt=True)
    stage = dpo.wire(settings, policy, calls, layout)
    return Planned(stage, (parameters(policy),), policy)
  if isinstance(settings, RewardSettings):
    calls = steps_of(settings, records, settings.batch)
    stage = reward.wire(settings, policy, calls, reward.planned_layout(settings, completions))
    return Planned(stage, (parameters(policy),), policy)
  demonstrations = settings.batch - pretrain_sft.text_rows(settings)
  calls = steps_of(settings, records, demonstrations or settings.batch)
  stage = pretrain_sft.wire(settings, policy, calls, window=planned_window(settings))
  return Planned(stage, (parameters(policy),), policy)


def planned_window(settings: SupervisedSettings) -> int | None:
  """The window of the logits of a run on the longest demonstrations."""
  if settings.stage == "pretrain" or settings.loss_on_prompt:
    return None
  return settings.data.response


def check(settings: Settings, shape: Shape, reward_shape: Shape) -> None:
  """Raises UserError where batch, heads or widths do not divide over the mesh that is set."""
  plan_stage(settings, shape, reward_shape)


def build(
  settings: Settings,
  shape: Shape,
  reward_shape: Shape,
  *,
  records: int | None = None,
  completions: int = 9,
  remat: str = "",
) -> list[Program]:
  """The programs of a configuration's stage under the mesh that is set.

  PPO is three programs, as in a run, all of which hold the whole state; `ppo.iteration` is the
  three as one function.

  Raises UserError where batch, heads or widths do not divide over the mesh, and for an option that
  its compiler does not take.
  """
  compiler.check(settings.mesh.compiler)
  planned = plan_stage(
    settings, shape, reward_shape, records=records, completions=completions, remat=remat
  )
  stage = planned.stage
  state, frozen = planned.start()
  # A trunk is part of the model that is trained; the reference and the reward model are others.
  has_reference = isinstance(settings, EpisodeSettings | DPOSettings)
  frozen_kind = "frozen" if has_reference else "params"
  held = (kinds_of_state(state), label(frozen_kind, frozen))
  values = dict(stage.batch)
  programs = []
  for part in stage.parts:
    inputs = tuple(values[name] for name in part.reads)
    trains = part.writes == "state"
    programs.append(
      Program(
        part.name,
        part.function,
        (state, frozen, *inputs),
        (*held, *(label("other", value) for value in inputs)),
        pinned(state) if trains else None,
        donate=trains,
        calls=stage.calls,
        tokens=part.tokens,
        part=part,
        updates=part.updates,
        cache_bytes=cache_bytes(settings, planned.policy) if part.name == "rollout" else 0,
        width=jnp.dtype(settings.model.dtype).itemsize,
        options=settings.mesh.compiler,
      )
    )
    if not trains:
      values[part.writes] = jax.eval_shape(part.function, state, frozen, *inputs)
  return programs


def rollout_sampling(settings: EpisodeSettings) -> Sampling:
  """How many rows are sampled at a time; which ids they have does not matter to a plan."""
  return Sampling(
    response=settings.sampling.response,
    cache=settings.sampling.cache,
    slots=settings.sampling.slots,
    halvings=settings.sampling.halvings,
    n=settings.n,
  )


def cache_bytes(settings: Settings, policy: LM) -> int:
  """Bytes of the key/value cache of a rollout on one device: that of its slots."""
  if not isinstance(settings, EpisodeSettings):
    return 0
  sampling = rollout_sampling(settings)
  shape = rollout.shape_of(sampling, settings.batch, settings.data.prompt)
  slots = sharding.batch_shards() * shape.slots
  columns = shape.prompt + shape.response

  def empty_cache() -> Cache:
    return policy.init_cache(slots, columns, shape.block, sampling.cache == "int8")

  return per_device(jax.eval_shape(empty_cache))


# --- shares of memory ---


def kinds_of_state(state: TrainState) -> TrainState:
  """Which share of memory each leaf of a state belongs to."""
  return dataclasses.replace(
    label("other", state),
    params=label("params", state.params),
    opt_state=label("optimizer", state.opt_state),
    ema=label("ema", state.ema),
  )


def label(kind: str, tree: PyTree) -> PyTree:
  """The same tree with the name of a share of memory in every leaf."""
  return jax.tree.map(lambda _: kind, tree)


def pinned(state: TrainState) -> tuple:
  """The output shardings of `steps.compiled`."""
  return jax.tree.map(lambda x: x.sharding, state), None


def per_device(tree: PyTree) -> int:
  """Bytes of arrays, or of their shapes, on each device."""
  return sum(local_bytes(leaf) for leaf in jax.tree.leaves(tree))


def local_bytes(x: Any) -> int:
  """Bytes on one device of an array, or of a shape that carries its sharding."""
  shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
  # A random key is two words of 32 bits, whatever its type says.
  size = 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
  return int(np.prod(shape, dtype=np.int64)) * size
