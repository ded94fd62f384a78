"""The mesh and the one table that says which logical axis of an array lies along which axis of the
mesh.

Three mesh axes: `data` splits the batch; `fsdp` splits the batch and the stored parameters;
`model` splits heads, hidden units of the MLP and the vocabulary.  All are explicit: the sharding
of an array is part of its type, and a function that needs one asks for it by logical names.
Without a mesh every helper here is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from instructjax.errors import UserError
from instructjax.types import Array, Leaf, PyTree

AXES = ("data", "fsdp", "model")
RULES: dict[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "embed": ("fsdp",),
  "heads": ("model",),
  "kv_heads": ("model",),
  "mlp": ("model",),
  "vocab": ("model",),
  "sequence": ("model",),
  "layers": (),
}
# Axes that are kept whole on every device when the mesh does not divide them (GPT's 50,257 ids; a
# few key heads).
MAY_BE_WHOLE = ("kv_heads", "vocab", "sequence")


def make_mesh(data: int = 1, fsdp: int = 1, model: int = 1) -> Mesh:
  """A mesh of explicit axes over the first data * fsdp * model devices.

  Raises UserError when there are fewer devices than that.
  """
  wanted, found = data * fsdp * model, len(jax.devices())
  if min(data, fsdp, model) < 1 or wanted > found:
    raise UserError(
      f"mesh data={data} fsdp={fsdp} model={model} needs {wanted} devices and {found} are there: "
      f"choose three positive numbers whose product is at most {found}"
    )
  devices = jax.devices()[:wanted]
  return jax.make_mesh(
    (data, fsdp, model), AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices
  )


def is_sharded() -> bool:
  """Whether a mesh is set (`jax.set_mesh`)."""
  return not jax.sharding.get_abstract_mesh().empty


def spec(*axes: str | None) -> jax.P | None:
  """The partition of an array whose axes have these logical names; None when no mesh is set."""
  return jax.P(*[_along(axis) for axis in axes]) if is_sharded() else None


def fit(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> jax.P | None:
  """`spec` for a shape: an axis of MAY_BE_WHOLE that the mesh does not divide is kept whole.

  Raises UserError where another axis does not divide.
  """
  if not is_sharded():
    return None
  sizes = dict(jax.sharding.get_abstract_mesh().shape)
  entries = []
  for size, axis in zip(shape, axes, strict=True):
    along = _along(axis)
    parts = int(np.prod([sizes[name] for name in RULES[axis]])) if axis else 1
    if size % parts and axis in MAY_BE_WHOLE:
      along = None
    elif size % parts:
      raise UserError(
        f"axis '{axis}' of length {size} (shape {shape}) does not divide over {parts} devices "
        f"({' x '.join(f'{name}={sizes[name]}' for name in RULES[axis or ''])}): choose a mesh "
        "whose parts divide it"
      )
    entries.append(along)
  return jax.P(*entries)


def _along(axis: str | None) -> str | tuple[str, ...] | None:
  names = RULES[axis] if axis else ()
  return None if not names else names[0] if len(names) == 1 else names


def shardings(table: PyTree[Leaf]) -> PyTree:
  """The partition of every leaf of a table of parameters, for `place` or for `out_shardings`."""
  return jax.tree.map(lambda leaf: fit(leaf.shape, leaf.axes), table)


def place(tree: PyTree, specs: PyTree) -> PyTree:
  """Puts arrays on the mesh by a tree of partitions (`shardings`); the identity when no mesh is
  set.
  """
  if not is_sharded():
    return tree
  return jax.tree.map(lambda x, p: _put(x, NamedSharding(jax.sharding.get_mesh(), p)), tree, specs)


def replicate(tree: PyTree) -> PyTree:
  """A whole copy of every array on every device."""
  return place(tree, jax.tree.map(lambda x: jax.P(), tree))


def place_batch(tree: PyTree) -> PyTree:
  """Splits the first axis of every array over the devices.

  With several processes each passes the whole batch and places the rows of its own devices,
  wherever these lie in the mesh.  Raises UserError when the rows do not divide.
  """
  if not is_sharded():
    return tree
  mesh = jax.sharding.get_mesh()

  return jax.tree.map(
    lambda x: _put(x, NamedSharding(mesh, fit(x.shape[:1], ("batch",)) or jax.P())), tree
  )


def local_rows(size: int) -> list[int]:
  """The rows of a batch of `size` that lie on devices of this process, in order; all of them
  without a mesh.
  """
  if not is_sharded():
    return list(range(size))
  where = NamedSharding(jax.sharding.get_mesh(), fit((size,), ("batch",)) or jax.P())
  parts = where.addressable_devices_indices_map((size,)).values()
  return sorted({at for part in parts if part for at in range(size)[part[0]]})


def place_rows(tree: PyTree) -> PyTree:
  """`place_batch` where each process passes only its `local_rows`."""
  if jax.process_count() == 1 or not is_sharded():
    return place_batch(tree)
  where = NamedSharding(jax.sharding.get_mesh(), jax.P(RULES["batch"]))
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, np.asarray(x)), tree)


def _put(x: Any, where: NamedSharding) -> Array:
  """`jax.device_put`; with several processes that all hold x, each puts its part and nothing is
  sent or compared.
  """
  if jax.process_count() == 1 or not getattr(x, "is_fully_addressable", True):
    return jax.device_put(x, where)
  host = np.asarray(x)
  return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def fetch(tree: PyTree) -> PyTree:
  """The whole arrays on the host; with several processes on each of them."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)


def reshard(x: Array, *axes: str | None) -> Array:
  """`x` moved to the partition of these logical axes; the identity when no mesh is set."""
  return jax.sharding.reshard(x, spec(*axes)) if is_sharded() else x


def repeat(tree: PyTree, n: int) -> PyTree:
  """Every row n times in a row, on the device where it is: [B, ...] -> [B*n, ...]."""

  def each(x: Array) -> Array:
    many = jnp.broadcast_to(x[:, None], (x.shape[0], n, *x.shape[1:]))
    spec = jax.typeof(x).sharding.spec if is_sharded() else None
    return jax.lax.reshape(many, (x.shape[0] * n, *x.shape[1:]), out_sharding=spec)

  return tree if n == 1 else jax.tree.map(each, tree)


def repeat_cache(cache: PyTree, n: int, init: Callable[[int], PyTree], rows: int) -> PyTree:
  """`repeat` of a cache of so many rows; `init` makes an empty one.

  What is no larger for more rows has none and stays as it is (the next index).

  Raises UserError for an array whose rows are not its first axis.
  """

  def each(x: Array, wanted: jax.ShapeDtypeStruct) -> Array:
    if wanted.shape == x.shape:
      return x
    if x.shape[0] != rows or wanted.shape != (rows * n, *x.shape[1:]):
      raise UserError(
        f"init_cache makes an array {x.shape} for {rows} rows and {wanted.shape} for {rows * n}: "
        "rows must be the first axis"
      )
    return repeat(x, n)

  return cache if n == 1 else jax.tree.map(each, cache, jax.eval_shape(partial(init, rows * n)))


def gather(w: Array) -> Array:
  """A parameter made whole along `fsdp` just before its use; the transpose scatters the sum of its
  gradient.
  """
  if not is_sharded():
    return w
  without = jax.P(*[None if entry == "fsdp" else entry for entry in jax.typeof(w).sharding.spec])
  return jax.sharding.reshard(w, without)
