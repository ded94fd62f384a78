"""Fills a model's parameters from the tensors of a file, and makes these tensors from the
parameters, one at a time.

A file has one tensor for each layer where a parameter is one array stacked over layers, and may
have several parameters in one tensor.  Each tensor goes to its place on the devices before the
next one is read.

Dimensions: I inputs and O outputs of a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import gpt, llama
from instructjax.types import Array, Leaf, Params, PyTree

Config = gpt.GPTConfig | llama.LlamaConfig


class Tensor(NamedTuple):
  """A tensor of a file: its name ("{}" stands for the layer) and the parameters that it joins along
  its outputs.

  A matrix is [I, O], as GPT-2's Conv1D stores it, or `turned` to [O, I], as a torch Linear does.
  `by_head` joins the parts of each head before those of the next (GPT-NeoX).  `paired` heads
  hold the two features that are turned together side by side (Llama in GGUF).  `shift` is what
  the file adds to the parameter (Gemma's norms in GGUF).
  """

  name: str
  leaves: tuple[str, ...]
  turned: bool = False
  by_head: bool = False
  paired: bool = False
  shift: float = 0.0

  @property
  def stacked(self) -> bool:
    return self.leaves[0].startswith("blocks/")


def table(config: Config) -> PyTree[Leaf]:
  """The parameters of a model of either kind."""
  return gpt.table(config) if isinstance(config, gpt.GPTConfig) else llama.table(config)


def layout(config: Config) -> dict[str, Leaf]:
  """Every parameter by its path, such as "blocks/q/w"."""
  leaves = jax.tree_util.tree_leaves_with_path(table(config))
  return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def flat_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """A parameter of one layer as a file has it before turning: [I, O] for a matrix, one axis for all
  others.
  """
  if leaf.startswith("embed/"):
    return shape
  if not leaf.endswith("/w"):
    return (math.prod(shape),)
  inputs = 2 if leaf == "blocks/o/w" else 1
  return math.prod(shape[:inputs]), math.prod(shape[inputs:])


def file_shape(tensor: Tensor, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
  """The shape of a tensor whose parameters have these shapes in one layer."""
  flat = [flat_shape(name, shape) for name, shape in zip(tensor.leaves, shapes, strict=True)]
  joined = (*flat[0][:-1], sum(shape[-1] for shape in flat))
  return joined[::-1] if tensor.turned else joined


def pieces(tensor: Tensor, x: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
  """The parameters in a tensor of the file, in our order of axes: views of it, so that nothing is
  read yet.
  """
  x = x.T if tensor.turned else x
  if tensor.by_head:
    heads, width = shapes[0][-2:]
    x = x.reshape(*x.shape[:-1], heads, len(shapes), width)
    parts = [x[..., i, :] for i in range(len(shapes))]
  else:
    ends = np.cumsum(
      [flat_shape(name, shape)[-1] for name, shape in zip(tensor.leaves, shapes, strict=True)]
    )
    parts = np.split(x, ends[:-1], axis=-1)
  if tensor.paired:
    heads, width = shapes[0][-2:]
    parts = [
      part.reshape(*part.shape[:-1], heads, width // 2, 2).swapaxes(-1, -2) for part in parts
    ]
  return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def join(tensor: Tensor, parts: list[np.ndarray]) -> np.ndarray:
  """The tensor of the file from the parameters of one layer: the inverse of `pieces`."""
  if tensor.by_head:
    joined = np.stack(parts, axis=-2)
    joined = joined.reshape(*joined.shape[:-3], -1)
  else:
    flat = [
      part.reshape(flat_shape(name, part.shape))
      for name, part in zip(tensor.leaves, parts, strict=True)
    ]
    joined = np.concatenate(flat, axis=-1) if len(flat) > 1 else flat[0]
  return np.ascontiguousarray(joined.T if tensor.turned else joined)


def fill(
  config: Config, tensors: tuple[Tensor, ...], read: Callable[[str], np.ndarray], source: Path
) -> Params:
  """Float32 parameters, placed on the mesh where one is set: `read` fetches a tensor, or a view of
  it, by name.

  One tensor is in memory at a time beside the parameters, and of that only what this process's
  devices hold. Raises UserError for a tensor whose shape is not the one the configuration asks
  for.
  """
  leaves, found = layout(config), {}
  for tensor in tensors:
    own = [leaves[name] for name in tensor.leaves]
    shapes = [leaf.shape[1:] if tensor.stacked else leaf.shape for leaf in own]
    specs = [sharding.fit(leaf.shape, leaf.axes) for leaf in own]
    stacks = (
      [_empty(leaf.shape, spec) for leaf, spec in zip(own, specs, strict=True)]
      if tensor.stacked
      else []
    )
    for i in range(config.depth if tensor.stacked else 1):
      name = tensor.name.format(i)
      x = read(name)
      if x.shape != file_shape(tensor, shapes):
        raise UserError(
          f"{source}: tensor '{name}' has shape {x.shape}, but its configuration asks for "
          f"{file_shape(tensor, shapes)}: "
          "they belong to different models"
        )
      parts = pieces(tensor, x, shapes)
      if not tensor.stacked:
        stacks = [_place(part, spec, tensor.shift) for part, spec in zip(parts, specs, strict=True)]
        continue
      for j, (part, spec) in enumerate(zip(parts, specs, strict=True)):
        stacks[j] = _write(stacks[j], _place(part[None], spec, tensor.shift), jnp.int32(i))
      jax.block_until_ready(stacks)
    found |= dict(zip(tensor.leaves, stacks, strict=True))
  return nest(found)


def nest(leaves: dict[str, Any]) -> Params:
  """A tree of dicts from leaves by their paths."""
  tree: Params = {}
  for path, leaf in leaves.items():
    *above, name = path.split("/")
    node = tree
    for key in above:
      node = node.setdefault(key, {})
    node[name] = leaf
  return tree


@partial(jax.jit, static_argnums=(0, 1))
def _empty(shape: tuple[int, ...], spec: jax.P | None) -> Array:
  """Zeros of which each device makes its own part."""
  return jnp.zeros(shape, jnp.float32, out_sharding=spec)


@partial(jax.jit, donate_argnums=0)
def _write(stack: Array, part: Array, layer: Array) -> Array:
  """The stack with one layer written in place."""
  return jax.lax.dynamic_update_slice_in_dim(stack, part, layer, axis=0)


def _place(part: np.ndarray, spec: jax.P | None, shift: float) -> Array:
  """A part of a tensor in float32 on the devices; each is given what it holds."""

  def cut(index):
    x = np.array(
      part[index], np.float32, order="C"
    )  # a copy: JAX may keep it, and `part` may be a file
    return x - np.float32(shift) if shift else x

  if spec is None:
    return jnp.asarray(cut(...))
  where = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)
  return jax.make_array_from_callback(part.shape, where, cut)


def stacks(name: str, params: Params) -> list[Any]:
  """The arrays of a parameter: one, or the frozen lower layers and the ones above."""
  first, *rest = name.split("/")
  found = []
  for part in ("lower", "blocks") if first == "blocks" else (first,):
    value: Any = params.get(part)
    for key in rest:
      value = value.get(key) if isinstance(value, dict) else None
    if value is not None:
      found.append(value)
  return found


def extract(tensor: Tensor, layer: int, params: Params) -> np.ndarray:
  """A tensor of the file, float32, from the parameters."""
  parts = []
  for name in tensor.leaves:
    array, i = stacks(name, params)[0], layer
    for stack in stacks(name, params) if tensor.stacked else ():
      if i < stack.shape[0]:
        array = stack[i]
        break
      i -= stack.shape[0]
    parts.append(np.asarray(sharding.replicate(array)).astype(np.float32))
  return join(tensor, parts)


def check(config: Config, tensors: tuple[Tensor, ...], params: Params) -> None:
  """Raises UserError where a parameter is missing, has another shape than the configuration says,
  or is in no tensor.
  """
  wanted = {name for tensor in tensors for name in tensor.leaves}
  leaves = {name: leaf for name, leaf in layout(config).items() if name in wanted}
  for name, leaf in leaves.items():
    arrays = stacks(name, params)
    shape = (sum(x.shape[0] for x in arrays), *arrays[0].shape[1:]) if arrays else None
    if shape != leaf.shape:
      found = "is missing" if shape is None else f"has shape {shape}"
      raise UserError(
        f"parameter '{name}' {found}, but the configuration asks for {leaf.shape}: save it with "
        "its own"
      )
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    first, *rest = (key.key for key in path)
    name = "/".join(["blocks" if first == "lower" else first, *rest])
    if name not in wanted:
      raise UserError(f"parameter '{name}' is none of the configuration's: save it with its own")
