"""LoRA: a frozen matrix W and a trained product of low rank beside it (Hu et al. 2021).

    y = x W + s (x a) b,        s = alpha / rank

A model with an adapter is `base | {"adapter": {"q": Adapter, ...}}`. Without that key it is the
base again, so one frozen base serves as reference, policy, reward and value model. W + s a b is
never formed while training.

Dimensions: L layers, I inputs and O outputs of a product (one axis or more), R the rank.
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

# How many axes of a matrix are summed over, where that is not 1: `o` takes heads and features.
INPUTS = {"o": 2}


@dataclass(frozen=True)
class Lora:
  """The settings of an adapter."""

  rank: int
  alpha: float = 16.0
  targets: tuple[str, ...] | str = "all"  # names of products, or "all" that the blocks have


@struct.dataclass
class Adapter:
  """The low-rank product beside one matrix: of all layers, or without the axis L of one layer.

  In a table of parameters the two fields hold a `Leaf` instead of an array.
  """

  a: Any  # [L, I, R]
  b: Any  # [L, R, O]
  scale: float = struct.field(pytree_node=False, default=1.0)


# --- making adapters ---


def products(table: Params) -> list[str]:
  """Returns the names of the products of a model's blocks; empty for a model without blocks."""
  parts = table.get("blocks", {})
  return [name for name, p in parts.items() if isinstance(p, dict) and "w" in p]


def sizes(table: Params, lora: Lora) -> dict[str, dict[str, Any]]:
  """Returns rank and scale of each adapter, in the order of the model.

  A checkpoint stores these numbers about its adapters.

  Raises:
    UserError: for a rank below 1, and for targets that the model does not have.
  """
  available = products(table)
  targets = available if lora.targets == "all" else lora.targets
  if lora.rank < 1:
    raise UserError(
      f"the rank of an adapter is {lora.rank}: choose 1 or more, or 0 in config.lora.rank for none"
    )
  unknown = [name for name in targets if name not in available]
  if unknown or not targets:
    named = ", ".join(unknown) if targets else "none"
    raise UserError(
      f"lora.targets names {named}: this model has {', '.join(available) or 'no blocks to adapt'}"
    )
  size = {"rank": lora.rank, "scale": lora.alpha / lora.rank}
  return {name: dict(size) for name in available if name in targets}


def table(base: Params, sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, Adapter]:
  """Returns the leaves of an adapter for the model with the table `base`.

  `a` is drawn from U(-1/sqrt(I), 1/sqrt(I)) as in PEFT, and `b` is 0, so that a new adapter
  changes nothing.
  """
  adapters = {}
  for name, size in sizes.items():
    matrix = base["blocks"][name]["w"]
    adapters[name] = _leaves(matrix, INPUTS.get(name, 1), **size)
  return adapters


def _leaves(matrix: Leaf, inputs: int, rank: int, scale: float) -> Adapter:
  """Returns the leaves of the adapter beside a stacked matrix with `inputs` axes of inputs."""
  # The first axis counts the layers.
  cut = 1 + inputs
  inputs_of_product = math.prod(matrix.shape[1:cut])
  bound = 1 / math.sqrt(inputs_of_product)

  def draw(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

  def zeros(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    return jnp.zeros(shape, jnp.float32)

  # The rank is whole on every device; the other axes lie as those of the matrix.
  a = Leaf(
    shape=(*matrix.shape[:cut], rank),
    axes=(*matrix.axes[:cut], None),
    init=draw,
  )
  b = Leaf(
    shape=(matrix.shape[0], rank, *matrix.shape[cut:]),
    axes=(matrix.axes[0], None, *matrix.axes[cut:]),
    init=zeros,
  )
  return Adapter(a, b, scale)


def init(
  key: Key[Array, ""],
  base: Params,
  sizes: Mapping[str, Mapping[str, Any]],
) -> dict[str, Adapter]:
  """Draws a new adapter for the model with the table `base`, on the mesh where one is set."""
  leaves, tree = jax.tree.flatten(table(base, sizes))

  def draw(key: Key[Array, ""]) -> list[Array]:
    keys = jax.random.split(key, len(leaves))
    arrays = []
    for leaf, own_key in zip(leaves, keys, strict=True):
      array = leaf.init(own_key, leaf.shape)
      partition = sharding.fit(leaf.shape, leaf.axes)
      # In the compiled function every device makes its own part alone. The type says so too, and
      # `jax.eval_shape` gives shapes that are split as the arrays are.
      arrays.append(array if partition is None else jax.sharding.reshard(array, partition))
    return arrays

  return jax.tree.unflatten(tree, jax.jit(draw)(key))


def describe(adapters: Mapping[str, Adapter]) -> dict[str, dict[str, Any]]:
  """Returns the `sizes` of adapters that exist."""
  described = {}
  for name, adapter in adapters.items():
    rank = adapter.a.shape[-1]
    described[name] = {"rank": rank, "scale": adapter.scale}
  return described


# --- adapters in a model ---


def attach(params: Params) -> Params:
  """Returns the stacked blocks of a model, with the adapter of each product beside its matrix."""
  blocks = dict(params["blocks"])
  for name, adapter in params.get("adapter", {}).items():
    blocks[name] = blocks[name] | {"lora": adapter}
  return blocks


def without(params: Params) -> Params:
  """Returns the model with its adapter off."""
  return {name: part for name, part in params.items() if name != "adapter"}


def merge(params: Params) -> Params:
  """Returns the model with W + s a b in the place of W, and no adapter.

  A model without an adapter is returned as it is.
  """
  if "adapter" not in params:
    return params
  merged = without(params)
  merged["blocks"] = {name: fold(p, layers=1) for name, p in attach(params).items()}
  return merged


def fold(p: Params, *, layers: int = 0) -> Params:
  """Returns one product with its adapter added to its matrix.

  The sum is made in float32 and then cast to the type of the matrix. `layers` is 1 where the first
  axis counts them. What is no product, or has no adapter, is returned as it is.
  """
  if "lora" not in p:
    return p
  w = p["w"]
  adapter = p["lora"]
  partition = jax.typeof(w).sharding.spec if sharding.is_sharded() else None
  rank_axes = (adapter.a.ndim - 1,), (layers,)
  layer_axes = tuple(range(layers))
  ab = jax.lax.dot_general(
    adapter.a,
    adapter.b,
    (rank_axes, (layer_axes, layer_axes)),
    preferred_element_type=jnp.float32,
    out_sharding=partition,
  )
  folded = dict(p)
  del folded["lora"]
  # Both terms are added in float32; a matrix in bfloat16 is rounded once, at the end.
  total = w + adapter.scale * ab
  folded["w"] = total.astype(w.dtype)
  return folded
