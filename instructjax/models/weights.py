"""Fills a model's parameters from the tensors of a file, and makes such tensors from parameters.

A file has one tensor for each layer, where a parameter is one array that is stacked over layers,
and it may hold several parameters in one tensor. `hf` and `gguf` describe the tensors of their
formats as a list of `Tensor`, and this module does the rest. Each tensor goes to its place on the
devices before the next one is read, so that the host never holds a second copy of the model.

Dimensions: I inputs and O outputs of a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import gpt, llama
from instructjax.types import Array, Leaf, Params, PyTree

Config = gpt.GPTConfig | llama.LlamaConfig
Shape = tuple[int, ...]


class Stored(NamedTuple):
  """A tensor as a file has it. Nothing but its description is read until `read` is called."""

  place: str  # the file and the name, which begin an error
  shape: Shape
  read: Callable[[], np.ndarray]


Find = Callable[[str], Stored]  # returns a tensor by its name


class Tensor(NamedTuple):
  """A tensor of a file, and the parameters that it joins along its outputs.

  A matrix is [I, O], as GPT-2's Conv1D stores it, or `turned` to [O, I], as a torch Linear does.
  """

  name: str  # in the file; "{}" stands for the number of the layer
  leaves: tuple[str, ...]  # paths of the parameters, such as "blocks/q/w"
  turned: bool = False
  by_head: bool = False  # joins the parts of each head before those of the next (GPT-NeoX)
  # The two features of a head that rotate together lie side by side (Llama in GGUF). Ours lie half
  # a head apart.
  paired: bool = False
  shift: float = 0.0  # what the file adds to the parameter (Gemma's norms in GGUF)

  @property
  def stacked(self) -> bool:
    """Whether the file has such a tensor for every layer."""
    return self.leaves[0].startswith("blocks/")


def table(config: Config) -> PyTree[Leaf]:
  """Returns the parameters of a model of either family."""
  if isinstance(config, gpt.GPTConfig):
    return gpt.table(config)
  return llama.table(config)


def layout(config: Config) -> dict[str, Leaf]:
  """Returns every parameter by its path, such as "blocks/q/w"."""
  leaves = jax.tree_util.tree_leaves_with_path(table(config))
  leaf_by_path = {}
  for path, leaf in leaves:
    name = "/".join(key.key for key in path)
    leaf_by_path[name] = leaf
  return leaf_by_path


# --- the shapes of tensors and parameters ---


def flat_shape(leaf: str, shape: Shape) -> Shape:
  """Returns the shape that a parameter of one layer has in a file, before a matrix is turned.

  A matrix is [I, O] there, where ours may have several axes of inputs or outputs (heads and
  features). All other parameters have one axis.
  """
  if leaf.startswith("embed/"):
    return shape
  if not leaf.endswith("/w"):
    return (math.prod(shape),)
  # The output of attention sums over two axes: heads and the features of each head.
  input_axes = 2 if leaf == "blocks/o/w" else 1
  inputs = math.prod(shape[:input_axes])
  outputs = math.prod(shape[input_axes:])
  return inputs, outputs


def _flat_shapes(tensor: Tensor, shapes: list[Shape]) -> list[Shape]:
  """Returns `flat_shape` of each parameter in a tensor."""
  flat = []
  for name, shape in zip(tensor.leaves, shapes, strict=True):
    flat.append(flat_shape(name, shape))
  return flat


def file_shape(tensor: Tensor, shapes: list[Shape]) -> Shape:
  """Returns the shape of a tensor whose parameters have the given shapes in one layer."""
  flat = _flat_shapes(tensor, shapes)
  outputs = sum(shape[-1] for shape in flat)
  joined = (*flat[0][:-1], outputs)
  return joined[::-1] if tensor.turned else joined


def pieces(tensor: Tensor, x: np.ndarray, shapes: list[Shape]) -> list[np.ndarray]:
  """Returns the parameters in a tensor of the file, in our order of axes.

  They are views of the tensor wherever numpy can make one, so that nothing is read yet.
  """
  x = x.T if tensor.turned else x
  if tensor.by_head:
    # The outputs are heads, the parts of each head, and the features of each part.
    heads, width = shapes[0][-2:]
    count = len(shapes)
    x = x.reshape(*x.shape[:-1], heads, count, width)
    parts = [x[..., i, :] for i in range(count)]
  else:
    outputs = [shape[-1] for shape in _flat_shapes(tensor, shapes)]
    ends = np.cumsum(outputs)
    parts = np.split(x, ends[:-1], axis=-1)
  if tensor.paired:
    heads, width = shapes[0][-2:]
    parts = [_unpair(part, heads, width) for part in parts]
  return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _unpair(part: np.ndarray, heads: int, width: int) -> np.ndarray:
  """Moves the pairs of features that rotate together from side by side to half a head apart."""
  pairs = part.reshape(*part.shape[:-1], heads, width // 2, 2)
  return pairs.swapaxes(-1, -2)


def join(tensor: Tensor, parts: list[np.ndarray]) -> np.ndarray:
  """Returns the tensor of the file from the parameters of one layer: the inverse of `pieces`."""
  if tensor.by_head:
    joined = np.stack(parts, axis=-2)
    # Heads, parts and features become one axis of outputs.
    joined = joined.reshape(*joined.shape[:-3], -1)
  else:
    shapes = _flat_shapes(tensor, [part.shape for part in parts])
    flat = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
    # A single part is not copied.
    if len(flat) > 1:
      joined = np.concatenate(flat, axis=-1)
    else:
      joined = flat[0]
  return np.ascontiguousarray(joined.T if tensor.turned else joined)


# --- from tensors to parameters ---


def fill(config: Config, tensors: tuple[Tensor, ...], find: Find) -> Params:
  """Returns float32 parameters, placed on the mesh where one is set.

  `find` returns a tensor of the file by its name there. Beside the parameters one tensor is in
  memory at a time, and of that only what this process's devices hold.

  Raises:
    UserError: for a tensor whose shape is not the one that the configuration asks for, and for
      numbers that are not finite.
  """
  leaves = layout(config)
  # All shapes are compared first: a configuration that belongs to a larger model must not take
  # the memory of that model.
  for tensor in tensors:
    _check_shapes(config, tensor, leaves, find)
  arrays: dict[str, Array] = {}
  for tensor in tensors:
    own_leaves = [leaves[name] for name in tensor.leaves]
    load = _load_stacked if tensor.stacked else _load_single
    parameters = load(config, tensor, own_leaves, find)
    arrays |= dict(zip(tensor.leaves, parameters, strict=True))
  return nest(arrays)


def _check_shapes(config: Config, tensor: Tensor, leaves: dict[str, Leaf], find: Find) -> None:
  """Compares a tensor, in every layer, with the shape that the configuration asks for."""
  first_axis = 1 if tensor.stacked else 0
  shapes = [leaves[name].shape[first_axis:] for name in tensor.leaves]
  expected = file_shape(tensor, shapes)
  for layer in range(config.depth if tensor.stacked else 1):
    stored = find(tensor.name.format(layer))
    if stored.shape != expected:
      raise UserError(
        f"{stored.place} has shape {stored.shape}, but its configuration asks for {expected}: "
        "they belong to different models"
      )


def _load_single(
  config: Config,
  tensor: Tensor,
  leaves: list[Leaf],
  find: Find,
) -> list[Array]:
  """Returns the parameters of a tensor that a file has once, such as the embedding."""
  shapes = [leaf.shape for leaf in leaves]
  stored = find(tensor.name)
  arrays = []
  for leaf, part in zip(leaves, pieces(tensor, stored.read(), shapes), strict=True):
    partition = sharding.fit(leaf.shape, leaf.axes)
    arrays.append(_place(part, partition, tensor.shift, stored.place))
  return arrays


def _load_stacked(
  config: Config,
  tensor: Tensor,
  leaves: list[Leaf],
  find: Find,
) -> list[Array]:
  """Returns the stacked parameters of a tensor that a file has for every layer."""
  shapes = [leaf.shape[1:] for leaf in leaves]
  partitions = [sharding.fit(leaf.shape, leaf.axes) for leaf in leaves]
  stacks: list[Array] = []
  for leaf, partition in zip(leaves, partitions, strict=True):
    stacks.append(_empty(leaf.shape, partition))
  for layer in range(config.depth):
    stored = find(tensor.name.format(layer))
    parts = pieces(tensor, stored.read(), shapes)
    for j, (part, partition) in enumerate(zip(parts, partitions, strict=True)):
      # One layer is a stack of depth 1: it has the axes of the whole.
      on_devices = _place(part[None], partition, tensor.shift, stored.place)
      stacks[j] = _write(stacks[j], on_devices, jnp.int32(layer))
    # Wait, or the host would run ahead and hold many layers at once.
    jax.block_until_ready(stacks)
  return stacks


def nest(leaves: dict[str, Any]) -> Params:
  """Returns a tree of dicts from leaves by their paths, such as "blocks/q/w"."""
  tree: Params = {}
  for path, leaf in leaves.items():
    *above, name = path.split("/")
    node = tree
    for key in above:
      node = node.setdefault(key, {})
    node[name] = leaf
  return tree


@partial(jax.jit, static_argnums=(0, 1))
def _empty(shape: Shape, partition: jax.P | None) -> Array:
  """Returns zeros of which each device makes its own part."""
  return jnp.zeros(shape, jnp.float32, out_sharding=partition)


@partial(jax.jit, donate_argnums=0)
def _write(stack: Array, part: Array, layer: Array) -> Array:
  """Writes one layer into a stack, in place."""
  return jax.lax.dynamic_update_slice_in_dim(stack, part, layer, axis=0)


def finite(x: np.ndarray, place: str) -> np.ndarray:
  """Returns a float32 copy of a tensor of a file.

  Raises:
    UserError: where a number is not finite, or is larger than float32 holds.
  """
  # What float32 cannot hold becomes infinite, which the check reports.
  with np.errstate(over="ignore", invalid="ignore"):
    # This must be a copy: JAX may keep the array, and `x` may be a view of a file.
    numbers = np.array(x, np.float32, order="C")
  is_finite = np.isfinite(numbers)
  if not is_finite.all():
    count = numbers.size - int(is_finite.sum())
    raise UserError(
      f"{place}: {count} of {numbers.size} numbers are NaN, infinite or beyond float32; the model "
      "that was saved had diverged, or the file is damaged: take another"
    )
  return numbers


def _place(part: np.ndarray, partition: jax.P | None, shift: float, place: str) -> Array:
  """Puts a part of a tensor on the devices in float32; each device gets only what it holds."""

  def cut(index: Any) -> np.ndarray:
    x = finite(part[index], place)
    return x - np.float32(shift) if shift else x

  if partition is None:
    return jnp.asarray(cut(...))
  devices = jax.sharding.NamedSharding(jax.sharding.get_mesh(), partition)
  return jax.make_array_from_callback(part.shape, devices, cut)


# --- from parameters to tensors ---


def stacks(name: str, params: Params) -> list[Any]:
  """Returns the arrays of a parameter, from the lowest layers up.

  There is one array, or two in a model of which lower layers are frozen (`freeze.split`), or none
  where the parameter is missing.
  """
  first, *rest = name.split("/")
  places = ("lower", "blocks") if first == "blocks" else (first,)
  arrays = []
  for place in places:
    value: Any = params.get(place)
    # Follow the path as far as it goes; None says that it leads nowhere.
    for key in rest:
      value = value.get(key) if isinstance(value, dict) else None
    if value is not None:
      arrays.append(value)
  return arrays


def extract(tensor: Tensor, layer: int, params: Params) -> np.ndarray:
  """Returns a tensor of the file in float32; `layer` is ignored where the tensor is not stacked."""
  parts = []
  for name in tensor.leaves:
    arrays = stacks(name, params)
    array = _layer_of(arrays, layer) if tensor.stacked else arrays[0]
    whole = np.asarray(sharding.replicate(array))
    parts.append(whole.astype(np.float32))
  return join(tensor, parts)


def _layer_of(stacks: list[Any], layer: int) -> Any:
  """Returns one layer of a parameter whose stacks follow each other."""
  for stack in stacks:
    if layer < stack.shape[0]:
      return stack[layer]
    layer -= stack.shape[0]
  raise IndexError(f"the layer is {layer} above the highest one")


def check(config: Config, tensors: tuple[Tensor, ...], params: Params) -> None:
  """Checks that parameters are those which the tensors of a file can hold.

  Raises:
    UserError: where a parameter is missing, has another shape than the configuration says, or
      belongs to no tensor.
  """
  names = {name for tensor in tensors for name in tensor.leaves}
  for name, leaf in layout(config).items():
    if name not in names:
      continue
    arrays = stacks(name, params)
    if not arrays:
      state = "is missing"
    else:
      # Of a parameter without layers this is simply the shape of its one array.
      depth = sum(x.shape[0] for x in arrays)
      shape = (depth, *arrays[0].shape[1:])
      if shape == leaf.shape:
        continue
      state = f"has shape {shape}"
    raise UserError(
      f"parameter '{name}' {state}, but the configuration asks for {leaf.shape}: save it with "
      "its own"
    )
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    first, *rest = (key.key for key in path)
    # Frozen lower blocks are written with those above them.
    if first == "lower":
      first = "blocks"
    name = "/".join([first, *rest])
    if name not in names:
      raise UserError(f"parameter '{name}' is none of the configuration's: save it with its own")
