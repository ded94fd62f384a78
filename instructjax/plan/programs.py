"""The programs of a stage on abstract values: the package's own steps, with shapes and shardings
and no arrays.

Everything here runs inside a mesh (`jax.set_mesh`, or `use_abstract_mesh` where there are no
devices at all). Shardings flow through the types: the state of the optimizer is what `tx.init`
makes of the sharded parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from instructjax import models, optim, ppo, reward, sft, sharding
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.models import freeze, lora
from instructjax.runs import origin
from instructjax.runs.origin import Origin
from instructjax.stages import common, trainable
from instructjax.stages import ppo as ppo_stage
from instructjax.types import (
  LM,
  Comparisons,
  Demonstrations,
  Frozen,
  Params,
  Prompts,
  PyTree,
  Rollout,
  TrainState,
)

Config = Any  # ml_collections.ConfigDict
# The paper's numbers of records (Table 6), from which epochs become steps, and the most completions
# a prompt has.
RECORDS = {"sft": 12_725, "rl_init": 12_725, "reward": 33_207}
SHAPES = {"1.3b": "1.3B", "6b": "6B", "175b": "175B"}  # of the presets that name no shape


class Program(NamedTuple):
  """One compiled function of a stage.

  `weights` marks the leaves of `arguments` that are parameters, `kinds` names the share of
  memory that each of the arguments belongs to; the first one is donated where `donate`.  `trips`
  is the bound of its while loops, `updates` the optimizer updates in a call, `calls` how often
  the whole run calls it, `tokens` how many tokens a call trains on or makes.
  """

  name: str
  function: Callable
  arguments: tuple
  kinds: tuple[PyTree, ...]
  outputs: PyTree | None
  donate: bool
  calls: int
  tokens: int
  updates: int = 0
  trips: int = 1
  cache_bytes: int = 0
  width: int = 4  # bytes of an operand of a matrix product


def shape_of(config: Config, preset: str, given: str | None, what: str = "policy") -> str:
  """The name of a shape of `origin.SHAPES`.  Raises UserError where nothing says which, or there is
  no such shape.
  """
  name = given or config.model.shape or (SHAPES.get(preset, preset) if what == "policy" else "")
  known = {shape.lower(): shape for shape in origin.SHAPES}
  if name.lower() not in known:
    raise UserError(f"--{what}={name or '(none)'}: choose a shape among {', '.join(origin.SHAPES)}")
  return known[name.lower()]


def language_model(shape: str, config: Config, **changes: Any) -> LM:
  settings = {
    name: getattr(config.model, name)
    for name in ("dtype", "remat", "unroll", "sequence", "attention", "dropout")
  } | changes
  return models.build(dataclasses.replace(origin.SHAPES[shape], **settings))


# --- abstract values ---


def struct(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
  """A ShapeDtypeStruct in the place of an array, split over the mesh by the logical names of its
  axes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return jax.ShapeDtypeStruct(
    shape, dtype, sharding=NamedSharding(mesh, sharding.fit(shape, axes) or jax.P())
  )


def rows(shape: tuple[int, ...], dtype: Any) -> Any:
  """An array of a batch, its first axis split."""
  return struct(shape, dtype, "batch", *[None] * (len(shape) - 1))


def parameters(lm: LM) -> Params:
  return jax.tree.map(lambda leaf: struct(leaf.shape, jnp.float32, *leaf.axes), lm.table)


def key() -> Any:
  return struct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)


def state_of(
  params: Params, tx: optax.GradientTransformation, ema: Params | None, kl: bool
) -> TrainState:
  """What `steps.init_state` makes, without making it."""
  scalar = partial(struct, ())
  return TrainState(
    step=scalar(jnp.int32),
    iteration=scalar(jnp.int32),
    key=key(),
    params=params,
    opt_state=jax.eval_shape(tx.init, params),
    ema=ema,
    kl_coef=scalar(jnp.float32) if kl else None,
  )


def reward_parameters(lm: LM, trained: Params) -> Params:
  body = {name: leaf for name, leaf in trained.items() if name != "head"}
  return {
    "lm": body,
    "head": {"w": struct((lm.width,), jnp.float32, None), "b": struct((), jnp.float32)},
  }


def parts(c: Config, lm: LM) -> tuple[Params, Params, Params]:
  """(trunk, start, trained) of `trainable.part`, without making them."""
  if not c.lora.rank:
    trunk, trained = jax.eval_shape(
      partial(freeze.split, top=c.top, dtype=c.trunk_dtype), parameters(lm)
    )
    return trunk, trained, trained
  leaves = lora.table(lm.table, trainable.lora_sizes(c, lm))
  adapter = jax.tree.map(lambda leaf: struct(leaf.shape, jnp.float32, *leaf.axes), leaves)
  return (
    jax.eval_shape(partial(freeze.base, dtype=c.trunk_dtype), parameters(lm)),
    {},
    {"adapter": adapter},
  )


def demonstrations(size: int, length: int) -> Demonstrations:
  real = rows((size, length), jnp.bool_)
  return Demonstrations(rows((size, length), jnp.int32), real, real)


def state_kinds(state: TrainState) -> TrainState:
  """Which share of memory each leaf of a state belongs to."""
  return dataclasses.replace(
    all_of("other", state),
    params=all_of("params", state.params),
    opt_state=all_of("optimizer", state.opt_state),
    ema=all_of("ema", state.ema),
  )


def all_of(kind: str, tree: PyTree) -> PyTree:
  return jax.tree.map(lambda _: kind, tree)


# --- the stages ---


def check(c: Config, mesh: dict[str, int], stage: str) -> None:
  """The divisibility that the stages ask for.  Raises UserError."""
  parts = mesh["data"] * mesh["fsdp"]
  where = f"data x fsdp ({parts})"
  if stage != "ppo":
    common.divides(c.batch, c.micro * parts, "config.batch", f"micro-batches ({c.micro}) x {where}")
    return
  common.divides(c.batch, c.ppo.minibatches, "config.batch", "config.ppo.minibatches")
  small = c.batch // c.ppo.minibatches
  common.divides(
    small, c.ppo.micro * parts, "a minibatch", f"config.ppo.micro ({c.ppo.micro}) x {where}"
  )
  if c.ppo.ptx_coef:
    by = f"config.ppo.ptx_micro ({c.ppo.ptx_micro}) x {where}"
    common.divides(c.ptx_ratio * small, c.ppo.ptx_micro * parts, "a minibatch of text", by)


def steps_of(c: Config, stage: str, records: int | None, drawn: int) -> int:
  """Optimizer steps of a run: the configured number, or epochs over the paper's number of records."""
  found = records or RECORDS.get(stage, 0)
  return c.steps or max(c.epochs * found // max(drawn, 1), 1)


def supervised(c: Config, lm: LM, records: int | None) -> list[Program]:
  """pretrain, sft and rl_init: one program, `sft.sft_step`."""
  mix = (
    c.batch
    if c.stage == "pretrain"
    else max(round(c.text_share * c.batch), 1)
    if c.stage == "rl_init"
    else 0
  )
  demos = c.batch - mix
  length = c.data.prompt + c.data.response if c.stage != "pretrain" else c.data.length
  origin.fits(lm, length, "a row (prompt + response)")
  count = steps_of(c, c.stage, records, demos or mix)
  tx = common.optimizer(c.optimizer, count)
  trunk, _, trained = parts(c, lm)
  state = state_of(trained, tx, None, False)
  window = None if mix or c.loss_on_prompt or c.data.pack else c.data.response
  cfg = sft.SFTConfig(micro=c.micro, window=window, dropout=c.model.dropout > 0)
  batch = demonstrations(c.batch, length)
  kinds = (state_kinds(state), all_of("params", trunk), all_of("other", batch))
  return [
    Program(
      c.stage,
      partial(sft.sft_step, lm=lm, tx=tx, cfg=cfg),
      (state, trunk, batch),
      kinds,
      pinned(state),
      True,
      calls=count,
      tokens=c.batch * length,
      updates=1,
    )
  ]


def ranking(c: Config, lm: LM, records: int | None, completions: int) -> list[Program]:
  """The reward model: `reward.reward_step` on K completions a prompt."""
  length = c.data.prompt + c.data.response
  origin.fits(lm, length, "a row (prompt + response)")
  count = steps_of(c, "reward", records, c.batch)
  tx = common.optimizer(c.optimizer, count)
  trunk, _, trained = parts(c, lm)
  state = state_of(reward_parameters(lm, trained), tx, None, False)
  cfg = reward.RewardConfig(micro=c.micro, dropout=c.model.dropout > 0, pairs=c.pairs)
  wide = (c.batch, completions, length)
  batch = Comparisons(rows(wide, jnp.int32), rows(wide, jnp.bool_), rows(wide[:2], jnp.int32))
  kinds = (state_kinds(state), all_of("params", trunk), all_of("other", batch))
  return [
    Program(
      "reward",
      partial(reward.reward_step, lm=lm, tx=tx, cfg=cfg),
      (state, trunk, batch),
      kinds,
      pinned(state),
      True,
      calls=count,
      tokens=int(np.prod(wide)),
      updates=1,
    )
  ]


def reinforcement(c: Config, lm: LM, judge: LM) -> list[Program]:
  """PPO in three programs: rollout; scoring (score and credit); update (`improve`).

  All three hold the whole state, as a run does; `ppo.iteration` is the three as one function.
  """
  length = c.data.prompt + c.sampling.response
  for model in (lm, judge):
    origin.fits(model, length, "prompt + response")
  updates = c.ppo.epochs * c.ppo.minibatches
  tx = optim.by_subtree(
    policy=common.optimizer(c.policy_optimizer, c.iterations * updates, updates),
    value=common.optimizer(c.value_optimizer, c.iterations * updates, updates),
  )
  ids = Tokenizer(
    lambda text: [], lambda ids: "", lm.vocab_size, (lm.vocab_size - 1,), (), (), "planned"
  )
  settings = ppo_stage.ppo_settings(c, Origin(lm, {}, ids, {}), judge, tx)
  trunk, ref, trained = parts(c, lm)
  below, body, value = parts(c, judge)
  scorer = reward_parameters(judge, body)
  params = {"policy": trained, "value": reward_parameters(judge, value)}
  state = state_of(params, tx, None if c.ppo.ema_decay is None else {"policy": trained}, True)
  frozen = Frozen(trunk, ref, scorer, below or None)
  prompts = Prompts(
    rows((c.batch, c.data.prompt), jnp.int32), rows((c.batch, c.data.prompt), jnp.bool_)
  )
  text = demonstrations(c.batch * c.ptx_ratio, c.data.length) if c.ppo.ptx_coef else None

  def rollout(state, frozen, prompts):
    return ppo.rollout(state.params, frozen, prompts, ppo.rollout_key(state), settings)

  def scoring(state, frozen, rows):
    policy_stem, reward_stem = ppo.stems(frozen, rows.tokens, rows.valid, settings)
    scores = ppo.score(frozen, rows, settings, reward_stem)
    return ppo.credit(
      state.params, frozen, rows, scores, state.kl_coef, settings, policy_stem, reward_stem
    )[0]

  def update(state, frozen, experience, text):
    return ppo.improve(state, frozen, experience, text, settings)

  responses = c.batch, c.sampling.response
  sampled = Rollout(
    rows((c.batch, length), jnp.int32),
    rows((c.batch, length), jnp.bool_),
    rows(responses, jnp.bool_),
    rows(responses, jnp.float32),
    rows((c.batch,), jnp.bool_),
  )
  experience = jax.eval_shape(scoring, state, frozen, sampled)
  held = state_kinds(state), all_of("frozen", frozen)
  cache = per_device(jax.eval_shape(lambda: lm.init_cache(c.batch, length)))
  made = partial(Program, calls=c.iterations)
  trained = c.ppo.epochs * c.batch * length + (
    0 if text is None else c.ppo.epochs * text.tokens.size
  )
  return [
    made(
      "rollout",
      rollout,
      (state, frozen, prompts),
      (*held, all_of("other", prompts)),
      None,
      False,
      tokens=c.batch * c.sampling.response,
      trips=c.sampling.response - 1,
      cache_bytes=cache,
    ),
    made(
      "scoring",
      scoring,
      (state, frozen, sampled),
      (*held, all_of("other", sampled)),
      None,
      False,
      tokens=c.batch * length,
    ),
    made(
      "update",
      update,
      (state, frozen, experience, text),
      (*held, *(all_of("other", x) for x in (experience, text))),
      pinned(state),
      True,
      tokens=trained,
      updates=updates,
    ),
  ]


def pinned(state: TrainState) -> tuple:
  """The output shardings of `steps.compiled`."""
  return jax.tree.map(lambda x: x.sharding, state), None


def per_device(tree: PyTree) -> int:
  """Bytes of abstract arrays on each device."""
  return sum(local_bytes(leaf) for leaf in jax.tree.leaves(tree))


def local_bytes(x: Any) -> int:
  """Bytes on one device of an abstract value that carries its sharding."""
  shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
  size = 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
  return int(np.prod(shape, dtype=np.int64)) * size


def allow(c: Config, shape: str, judge: str, mesh: dict[str, int]) -> None:
  """Raises UserError where batch, heads or widths do not divide over the mesh that is set."""
  check(c, mesh, c.stage)
  for name in {shape, judge}:
    parameters(language_model(name, c))


def build(
  c: Config,
  shape: str,
  judge: str,
  mesh: dict[str, int],
  *,
  records: int | None,
  completions: int,
  **changes: Any,
) -> list[Program]:
  """The programs of a configuration's stage under the mesh that is set.  Raises UserError where it
  does not divide.
  """
  check(c, mesh, c.stage)
  lm = language_model(shape, c, **changes)
  if c.stage == "ppo":
    made = reinforcement(c, lm, language_model(judge, c, **changes))
  elif c.stage == "reward":
    made = ranking(c, lm, records, completions)
  else:
    made = supervised(c, lm, records)
  return [program._replace(width=jnp.dtype(c.model.dtype).itemsize) for program in made]
