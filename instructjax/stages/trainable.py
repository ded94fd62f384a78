"""What a stage trains of a model, the top blocks or an adapter or all of it, and how the whole is
put together again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from instructjax.errors import UserError
from instructjax.models import freeze, lora, peft
from instructjax.runs.origin import Config, Origin, adapted, model_config
from instructjax.types import LM, Array, Key, Params


class Parts(NamedTuple):
  """A model in two parts: `trunk | start` is what a stage starts from, `trunk | trained` what it
  trains, equal at first.

  `about` belongs to the trained model.
  """

  trunk: Params
  start: Params
  trained: Params
  about: dict[str, Any]


def part(origin: Origin, source: str, config: Config, key: Key[Array, ""]) -> Parts:
  """What `config.top` or `config.lora` trains of a model, the rest cast to `config.trunk_dtype`.

  An adapter that is already there goes on where it has the sizes asked for; any other is merged
  into its base first. Raises UserError where both are set, for sizes that do not fit the model,
  and for an adapter of random weights.
  """
  c = config
  if not c.lora.rank:
    trunk, trained = freeze.split(lora.merge(origin.params), c.top, dtype=c.trunk_dtype)
    about = {name: value for name, value in origin.about.items() if name not in ("adapter", "base")}
    return Parts(trunk, trained, trained, about)
  sizes = lora_sizes(c, origin.lm)
  if origin.about.get("adapter") == sizes:
    start = {"adapter": origin.params["adapter"]}
    return Parts(
      freeze.base(lora.without(origin.params), c.trunk_dtype), start, start, origin.about
    )
  if not source:
    raise UserError(
      "config.lora.rank is set and the weights are random: give a model to adapt, --model=..."
    )
  about = adapted(origin.about, source, origin.params, sizes)
  trained = {"adapter": lora.init(key, origin.lm.table, sizes)}
  return Parts(freeze.base(lora.merge(origin.params), c.trunk_dtype), {}, trained, about)


def lora_sizes(config: Config, lm: LM) -> dict[str, Any]:
  """The adapter that `config.lora` asks for.  Raises UserError beside `config.top`, and where the
  model has no such one.
  """
  c = config
  if c.top is not None:
    raise UserError(
      f"config.top={c.top} and config.lora.rank={c.lora.rank}: choose one, the other is none or 0"
    )
  targets = (
    c.lora.targets if c.lora.targets == "all" else tuple(c.lora.targets.replace(" ", "").split(","))
  )
  return lora.sizes(lm.table, lora.Lora(c.lora.rank, c.lora.alpha, targets))


def joined(whole: Params, trained: Params) -> Params:
  """The whole model with its top blocks, norm and head replaced by trained ones (the inverse of
  `freeze.split`).
  """
  top = jax.tree.leaves(trained["blocks"])[0].shape[0]
  blocks = jax.tree.map(
    lambda a, b: jnp.concatenate([a[: a.shape[0] - top], b]), whole["blocks"], trained["blocks"]
  )
  kept = {name: leaf for name, leaf in whole.items() if name != "head" or "head" in trained}
  return kept | trained | {"blocks": blocks}


def save_adapter(folder: Path, adapter: Params, about: Mapping[str, Any]) -> None:
  """An adapter in the layout of PEFT, beside the name of its base."""
  peft.save(folder, model_config(str(folder), about), adapter, about["base"]["source"])
