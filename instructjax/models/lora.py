"""LoRA: a frozen matrix W and a trained product of low rank beside it (Hu et al. 2021).

    y = x W + s (x a) b,        s = alpha / rank

A model with an adapter is `base | {"adapter": {"q": Adapter, ...}}`; without that key it is the
base again, so one frozen base serves as reference, policy, reward and value model.  W + s a b is
never formed while training. Dimensions: L layers, I inputs and O outputs of a product (one axis
or more), R the rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.types import Array, Key, Leaf, Params

INPUTS = {"o": 2}  # axes of a matrix that are summed over; 1 where nothing is said


@dataclass(frozen=True)
class Lora:
  """Settings: `targets` are names of products, or "all" that the blocks have."""

  rank: int
  alpha: float = 16.0
  targets: tuple[str, ...] | str = "all"


@struct.dataclass
class Adapter:
  """The low-rank product beside one matrix, in all layers or (without the axis L) in one; in a
  table, its leaves.
  """

  a: Any  # [L, I, R]
  b: Any  # [L, R, O]
  scale: float = struct.field(pytree_node=False, default=1.0)


def products(table: Params) -> list[str]:
  """The names of the products of a model's blocks."""
  return [name for name, p in table.get("blocks", {}).items() if isinstance(p, dict) and "w" in p]


def sizes(table: Params, lora: Lora) -> dict[str, dict[str, Any]]:
  """Rank and scale of each adapter, in the order of the model: what a checkpoint says about them.

  Raises UserError for a rank below 1 and for targets that the model has not.
  """
  known = products(table)
  targets = known if lora.targets == "all" else lora.targets
  if lora.rank < 1:
    raise UserError(
      f"the rank of an adapter is {lora.rank}: choose 1 or more, or 0 in config.lora.rank for none"
    )
  if not targets or (unknown := [name for name in targets if name not in known]):
    found = ", ".join(unknown) if targets else "none"
    raise UserError(
      f"lora.targets names {found}: this model has {', '.join(known) or 'no blocks to adapt'}"
    )
  return {
    name: {"rank": lora.rank, "scale": lora.alpha / lora.rank} for name in known if name in targets
  }


def table(base: Params, sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, Adapter]:
  """The leaves of an adapter: `a` ~ U(-1/sqrt(I), 1/sqrt(I)) as PEFT draws it, `b` = 0, so that
  nothing changes at first.
  """

  def one(name: str, rank: int, scale: float) -> Adapter:
    w = base["blocks"][name]["w"]
    cut = 1 + INPUTS.get(name, 1)
    bound = 1 / math.sqrt(math.prod(w.shape[1:cut]))
    draw = lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
    zeros = lambda key, shape: jnp.zeros(shape, jnp.float32)
    return Adapter(
      Leaf((*w.shape[:cut], rank), (*w.axes[:cut], None), draw),
      Leaf((w.shape[0], rank, *w.shape[cut:]), (w.axes[0], None, *w.axes[cut:]), zeros),
      scale,
    )

  return {name: one(name, **size) for name, size in sizes.items()}


def init(
  key: Key[Array, ""], base: Params, sizes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Adapter]:
  """A new adapter for the model of a table, on the mesh where one is set."""
  leaves, tree = jax.tree.flatten(table(base, sizes))
  draw = lambda key: [
    leaf.init(k, leaf.shape) for k, leaf in zip(jax.random.split(key, len(leaves)), leaves)
  ]
  where = (
    [sharding.fit(leaf.shape, leaf.axes) for leaf in leaves] if sharding.is_sharded() else None
  )
  return jax.tree.unflatten(tree, jax.jit(draw, out_shardings=where)(key))


def describe(adapter: Mapping[str, Adapter]) -> dict[str, dict[str, Any]]:
  """`sizes` of an adapter that is there."""
  return {name: {"rank": one.a.shape[-1], "scale": one.scale} for name, one in adapter.items()}


def attach(params: Params) -> Params:
  """The stacked blocks of a model, the adapter of each product beside its matrix."""
  blocks, adapter = params["blocks"], params.get("adapter", {})
  return blocks | {name: blocks[name] | {"lora": one} for name, one in adapter.items()}


def without(params: Params) -> Params:
  """The model with its adapter off."""
  return {name: part for name, part in params.items() if name != "adapter"}


def merge(params: Params) -> Params:
  """The model with W + s a b in the place of W, no adapter; a model without one is returned as it
  is.
  """
  if "adapter" not in params:
    return params
  return without(params) | {
    "blocks": {name: fold(p, layers=1) for name, p in attach(params).items()}
  }


def fold(p: Params, *, layers: int = 0) -> Params:
  """One product with its adapter added to its matrix, in float32 and then in the type of the
  matrix.

  `layers` is 1 where the first axis counts them.  What is no product, or has no adapter, is
  returned as it is.
  """
  if "lora" not in p:
    return p
  w, one = p["w"], p["lora"]
  batch = tuple(range(layers))
  where = jax.typeof(w).sharding.spec if sharding.is_sharded() else None
  contract = ((one.a.ndim - 1,), (layers,)), (batch, batch)
  ab = jax.lax.dot_general(
    one.a, one.b, contract, preferred_element_type=jnp.float32, out_sharding=where
  )
  return {name: x for name, x in p.items() if name != "lora"} | {
    "w": (w + one.scale * ab).astype(w.dtype)
  }
