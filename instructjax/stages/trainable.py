"""What a stage trains of a model: the top blocks, an adapter, or all of it.

Three rules meet here. With `top` the trunk is the embeddings and the lower blocks. With `lora`
the trunk is the whole base, and the trained part is an adapter. Without either the trunk is
empty. In each case `trunk | trained` is a model again, and the trunk is kept in `trunk_dtype`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from instructjax.errors import UserError, naming
from instructjax.models import freeze, lora, peft
from instructjax.runs.origin import Origin, adapted, model_config
from instructjax.settings import TrainingSettings
from instructjax.settings.subjects import LoraSettings
from instructjax.system.places import AnyPath
from instructjax.types import LM, Array, Key, Params


class Split(NamedTuple):
  """A model in parts: a stage starts from `trunk | start` and trains `trunk | trained`.

  The two are equal at first: a new adapter changes nothing.
  """

  trunk: Params
  start: Params
  trained: Params


def split(
  lm: LM,
  params: Params,
  key: Key[Array, ""],
  settings: TrainingSettings,
  *,
  adapter_goes_on: bool = False,
) -> Split:
  """The parts of a model, on arrays or on shapes.

  `adapter_goes_on` says that the adapter in `params` has the sizes asked for and is trained
  further; any other one is merged into its base first.

  Raises UserError for more blocks than the model has and for an adapter that does not fit it.
  """
  if not settings.lora.rank:
    # An adapter that the model brings becomes part of its weights.
    merged = lora.merge(params)
    with naming("config.top", settings.top):
      trunk, trained = freeze.split(merged, settings.top, dtype=settings.trunk_dtype)
    return Split(trunk, trained, trained)
  # The reference of PPO is `start`: the adapter of `rl_init` where one goes on, else the base
  # alone.
  if adapter_goes_on:
    start = {"adapter": params["adapter"]}
    return Split(freeze.base(lora.without(params), settings.trunk_dtype), start, start)
  adapter = lora.init(key, lm.table, adapter_sizes(settings.lora, lm))
  base = freeze.base(lora.merge(params), settings.trunk_dtype)
  return Split(base, {}, {"adapter": adapter})


def adapter_sizes(settings: LoraSettings, lm: LM) -> dict[str, Any]:
  """The sizes of the adapter that is asked for.

  Raises UserError where the model has no such one.
  """
  targets: tuple[str, ...] | str = settings.targets
  if targets != "all":
    targets = tuple(settings.targets.replace(" ", "").split(","))
  with naming("config.lora.targets", settings.targets):
    return lora.sizes(lm.table, lora.Lora(settings.rank, settings.alpha, targets))


def goes_on(model: Origin, settings: TrainingSettings) -> bool:
  """Returns whether a model brings an adapter of just the sizes asked for."""
  if not settings.lora.rank or "adapter" not in model.about:
    return False
  return model.about["adapter"] == adapter_sizes(settings.lora, model.lm)


def about_trained(model: Origin, source: str, settings: TrainingSettings) -> dict[str, Any]:
  """What is said about the model that a stage trains, so that a later stage can build it again.

  Raises UserError for an adapter of random weights.
  """
  if not settings.lora.rank:
    return {name: value for name, value in model.about.items() if name not in ("adapter", "base")}
  if goes_on(model, settings):
    # The base and the sizes are the same; only the weights of the adapter change.
    return model.about
  if not source:
    raise UserError(
      f"config.lora.rank={settings.lora.rank}: the weights are random; give a model to adapt, "
      "--model=..."
    )
  return adapted(model.about, source, model.params, adapter_sizes(settings.lora, model.lm))


def shares_trunk(policy: Origin, other: Origin, settings: TrainingSettings) -> bool:
  """Returns whether two models have the same trunk, which is then held once.

  Arrays that are one object are not compared; reward models are opened beside the policy for that.
  """
  # Each comparison of arrays waits for the device, so that the structure is looked at first.
  first = _trunk(policy, settings)
  second = _trunk(other, settings)
  if jax.tree.structure(first) != jax.tree.structure(second):
    return False
  for mine, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    if mine is theirs:
      continue
    if mine.shape != theirs.shape or not bool(jnp.array_equal(mine, theirs)):
      return False
  return True


def _trunk(model: Origin, settings: TrainingSettings) -> Params:
  key = jax.random.key(0)  # of an adapter, which is no part of the trunk
  return split(
    model.lm, model.params, key, settings, adapter_goes_on=goes_on(model, settings)
  ).trunk


def joined(whole: Params, trained: Params) -> Params:
  """The whole model with its top blocks, norm and head replaced by trained ones."""
  top = jax.tree.leaves(trained["blocks"])[0].shape[0]

  def replace_top(old: Any, new: Any) -> Array:
    return jnp.concatenate([old[: old.shape[0] - top], new])

  blocks = jax.tree.map(replace_top, whole["blocks"], trained["blocks"])
  # A reward model has lost the unembedding of the model that it started from.
  kept = {name: leaf for name, leaf in whole.items() if name != "head" or "head" in trained}
  return kept | trained | {"blocks": blocks}


def save_adapter(folder: AnyPath, adapter: Params, about: Mapping[str, Any]) -> None:
  """Writes an adapter in the layout of PEFT, with the name of its base."""
  peft.save(folder, model_config(str(folder), about), adapter, about["base"]["source"])
