"""What a stage of training is: one wiring that the command runs, and that others plan or time.

A `Stage` is made of pure functions. They work on arrays, and under `jax.eval_shape` on shapes,
so that what is planned for a pod and what is timed on a laptop is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from instructjax import optim, returns, sharding
from instructjax.errors import UserError
from instructjax.models import decay
from instructjax.settings.method import MissingEosSettings
from instructjax.settings.subjects import OptimizerSettings
from instructjax.types import LM, Demonstrations, Metrics, Params, PyTree, TrainState


class Part(NamedTuple):
  """One program of a step, as it may be compiled apart from the others.

  name        what it does
  function    (state, frozen, *inputs) -> output
  reads       the names of its inputs: of a batch, or what an earlier part writes
  writes      the name of its output; "state" where it trains
  tokens      tokens that a call trains on or makes
  updates     optimizer updates of a call
  trips       how often each of its while loops runs, by name, where all rows are full length
  share       of the metrics of a step: how much of a call with rows of full length was real tokens
  """

  name: str
  function: Callable[..., Any]
  reads: tuple[str, ...]
  writes: str
  tokens: int
  updates: int = 0
  trips: Mapping[str, float] = MappingProxyType({})
  share: Callable[[Mapping[str, float]], float] = lambda metrics: 1.0


class Stage(NamedTuple):
  """A stage of training, wired once.

  name        "sft", "reward", ...
  init        (key, *parameters of the models) -> (state, what is frozen)
  step        (state, frozen, batch) -> (state, metrics); it is compiled with its state donated
  batch       the shapes of one batch over all devices, by name
  parts       the step as programs that may be compiled apart, in their order
  calls       how often a run calls the step
  """

  name: str
  init: Callable[..., tuple[TrainState, PyTree]]
  step: Callable[[TrainState, PyTree, dict[str, Any]], tuple[TrainState, Metrics]]
  batch: dict[str, PyTree]
  parts: tuple[Part, ...]
  calls: int


def share_of_real(name: str, positions: int) -> Callable[[Mapping[str, float]], float]:
  """A function of the metrics of a step: the tokens that one of them counts over `positions`."""
  return lambda metrics: metrics[name] / positions


# --- shapes ---


def shape_of(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> Any:
  """A shape in the place of an array, split over the mesh by the logical names of its axes."""
  spec = sharding.fit(shape, axes)
  where = None if spec is None else sharding.named(spec)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def rows_of(shape: tuple[int, ...], dtype: Any) -> Any:
  """An array of a batch that is not there, its first axis split over the devices."""
  return shape_of(shape, dtype, "batch", *[None] * (len(shape) - 1))


def demonstrations_of(
  size: int, length: int, stem: tuple[int, Any] | None = None
) -> Demonstrations:
  """The shapes of `size` rows of `length` tokens; `stem` is (width, dtype), if rows bring one."""
  real = rows_of((size, length), jnp.bool_)
  activations = None if stem is None else rows_of((size, length, stem[0]), stem[1])
  return Demonstrations(rows_of((size, length), jnp.int32), real, real, activations)


def key_of() -> Any:
  """The shape of a random key."""
  return shape_of((), jax.eval_shape(lambda: jax.random.key(0)).dtype)


def whole_on_each_device(tree: Params) -> Params:
  """The same arrays, or shapes, with a whole copy on every device."""
  return jax.tree.map(lambda x: sharding.reshard(x, *[None] * x.ndim), tree)


# --- the optimizer that settings describe ---


def learning_rate(settings: OptimizerSettings, updates: int, held: int = 1) -> optim.Schedule:
  """The learning rate over so many updates.

  `held` is the number of updates during which the rate stays the same: PPO counts iterations.
  """
  # The rate falls from the end of the warm-up to its last update.
  last = settings.decay or max(updates // held, 1)
  falling = max(last - settings.warmup, 1)
  match settings.schedule:
    # The defaults are the ends of the schedules in their papers: a tenth (App. C.1), and zero.
    case "cosine":
      final = 0.1 if settings.final is None else settings.final
      rate = optim.cosine(settings.lr, falling, final=final)
    case "linear":
      final = 0.0 if settings.final is None else settings.final
      rate = optim.linear(settings.lr, falling, final=final)
    # A warm-up of no updates that begins at the peak is a constant.
    case "constant":
      rate = optim.warmup_constant(settings.lr, 0, start=1.0)
  if settings.warmup:
    # PPO warms up from a tenth of its peak (App. C.4); Brown et al. 2020 warm up from zero.
    start = 0.1 if settings.start is None else settings.start
    rate = optim.warmed_up(rate, settings.lr, settings.warmup, start=start)
  return optim.held(rate, held) if held > 1 else rate


def optimizer(
  settings: OptimizerSettings, lm: LM, updates: int, held: int = 1
) -> optax.GradientTransformation:
  """AdamW with that learning rate, for the parameters of a model."""
  return optim.adamw(
    learning_rate(settings, updates, held),
    b1=settings.b1,
    b2=settings.b2,
    eps=settings.eps,
    eps_mode=settings.eps_mode,
    weight_decay=settings.weight_decay,
    decays=partial(decay.decaying, lm),
    clip=settings.clip,
  )


# --- what becomes of a score ---


def missing_eos(settings: MissingEosSettings) -> Callable:
  """What becomes of the score of a response that did not end."""
  value = 1.0 if settings.value is None else settings.value
  match settings.kind:
    case "replace":
      return partial(returns.replace_missing_eos, value=value)
    case "subtract":
      return partial(returns.penalise_missing_eos, penalty=value)
    case "keep":
      return lambda score, ended: score


# --- what a mesh asks of a batch ---


def require_multiple(rows: int, parts: int, name: str, by: str) -> None:
  """Raises UserError where `rows` do not divide into `parts`."""
  if parts < 1 or rows < 1 or rows % parts:
    raise UserError(f"{name}={rows} does not divide by {by}={parts}; choose a multiple of it")
