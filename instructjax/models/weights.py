"""Fills a model's parameters from the tensors of a file, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.errors import UserError
from instructjax.types import Leaf, Params, PyTree

Turn = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


class Source(NamedTuple):
  """Where a parameter comes from: its tensor's name ("{}" stands for the layer) and how to turn it to our shape."""

  name: str
  turn: Turn


def as_is(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """The tensor in our order of axes, which may split one of the file's."""
  return x.reshape(shape)


def transposed(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """A matrix stored as [outputs, inputs]."""
  return x.T.reshape(shape)


def fill(table: PyTree[Leaf], sources: dict[str, Source], read: Callable[[str], np.ndarray], file: Path) -> Params:
  """Float32 parameters: `sources` names the tensor of every leaf by its path ("blocks/q/w"), `read` fetches it.

  Raises UserError for a tensor whose size is not the one the configuration asks for.
  """

  def one(source: Source, layer: int, shape: tuple[int, ...], leaf: str) -> np.ndarray:
    name = source.name.format(layer)
    tensor = read(name)
    try:
      return source.turn(tensor, shape)
    except ValueError as error:
      raise UserError(
        f"{file}: tensor '{name}' has shape {tensor.shape} and does not fit '{leaf}' of shape {shape}; "
        "the configuration belongs to another model"
      ) from error

  def leaf(path, leaf: Leaf):
    where = "/".join(key.key for key in path)
    if not where.startswith("blocks/"):
      return jnp.array(one(sources[where], 0, leaf.shape, where), jnp.float32)
    stack = np.empty(leaf.shape, np.float32)
    for i in range(leaf.shape[0]):
      stack[i] = one(sources[where], i, leaf.shape[1:], where)
    return jnp.asarray(stack)

  return jax.tree_util.tree_map_with_path(leaf, table)
