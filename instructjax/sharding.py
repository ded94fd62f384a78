"""The mesh, and the one table of which logical axis of an array lies along which axis of the mesh.

The mesh has three axes. `data` splits the batch; `fsdp` splits the batch and the stored parameters;
`model` splits heads, the hidden units of the MLP and the vocabulary. All are explicit: the sharding
of an array is part of its type, and a function that needs a sharding asks for it by logical names.
Without a mesh every function of this file is the identity.

On some topologies `fsdp` is laid as two axes, `fsdp` and `fsdp2`, each along links of its own
(`parts_of_fsdp`). A user writes fsdp=64, whatever it is laid as.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from instructjax.errors import UserError
from instructjax.types import Array, Int, Leaf, PyTree

# From the outermost to the innermost: neighbours along `model` talk most.
AXES = ("data", "fsdp", "model")
# The inner one of two axes that `fsdp` is laid as, and the axes of a mesh that has it.
INNER = "fsdp2"
WITH_INNER = ("data", "fsdp", INNER, "model")
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
# Logical axes that are whole on every device where the mesh does not divide them: the 50,257 ids of
# GPT, or a few key heads.
MAY_BE_WHOLE = ("kv_heads", "vocab", "sequence")


def make_mesh(
  data: int = 1,
  fsdp: int = 1,
  model: int = 1,
  devices: Sequence[Any] | None = None,
  inner: int = 0,
) -> Mesh:
  """Returns a mesh of explicit axes over the first data * fsdp * model devices.

  On TPUs the axes follow the links, and two axes may share a side of the topology. Slices of TPUs
  lie along one axis (`axis_over_slices`). CPUs keep their order, and so do GPUs, host after host,
  so that the inner axes stay within a host for as long as they can.

  `devices` are by default those that are there; a plan gives those of a topology that is not.
  `inner` is how much of `fsdp` a second axis takes, by default what the topology asks for
  (`parts_of_fsdp`).

  Raises:
    UserError: when there are fewer devices than that, or when they make no such mesh.
  """
  shape = (data, fsdp, model)
  size = math.prod(shape)
  available = jax.devices() if devices is None else devices
  if min(shape) < 1 or size > len(available):
    raise UserError(
      f"mesh data={data} fsdp={fsdp} model={model} needs {size} devices and {len(available)} are "
      f"there: choose three positive numbers whose product is at most {len(available)}"
    )
  used = available[:size]
  platform = used[0].platform
  if platform == "tpu":
    grid = _grid_of_tpus(shape, used, len(available), inner)
  elif platform == "gpu":
    # JAX numbers GPUs host after host, yet it lists them process after process.
    numbered = sorted(used, key=lambda device: (_slice_of(device), device.id))
    grid = np.array(numbered).reshape(shape)
  else:
    grid = np.array(used).reshape(shape)
  # A grid of TPUs may have `fsdp` in two parts already; that of other devices has it in one.
  if grid.ndim == len(AXES) and inner > 1:
    grid = grid.reshape(data, fsdp // inner, inner, model)
  axes = AXES if grid.ndim == len(AXES) else WITH_INNER
  return Mesh(grid, axes, axis_types=_explicit(axes))


def abstract_mesh(data: int = 1, fsdp: int = 1, model: int = 1) -> AbstractMesh:
  """Returns a mesh without devices, on which arrays have the types that they have in a run."""
  return AbstractMesh((data, fsdp, model), AXES, axis_types=_explicit(AXES))


def _explicit(axes: Sequence[str]) -> tuple[AxisType, ...]:
  """The types of the axes of a mesh: shardings along them are a part of an array's type."""
  return (AxisType.Explicit,) * len(axes)


def axis_over_slices(data: int, fsdp: int, model: int, slices: int) -> str | None:
  """Returns the axis along which the slices of a mesh lie; None where there can be none.

  The network between slices is slow, so this is the outermost axis that they divide, `data` or
  else `fsdp`. It is never `model`, along which every layer talks.
  """
  sizes = {"data": data, "fsdp": fsdp, "model": model}
  for name in RULES["batch"]:
    if sizes[name] % slices == 0:
      return name
  return None


def parts_of_fsdp(data: int, fsdp: int, model: int, sides: Sequence[int]) -> tuple[int, int]:
  """Returns the sizes of the two axes that `fsdp` is laid as in a slice; the second may be 1.

  The sizes of the mesh are those in the slice, whose chips are a box of these sides. Where `fsdp`
  takes all of it, a device a chip, and it is a square or has three sides, the TPU compiler has no
  reduce-scatter along it as one axis. It has one along the longest side, and one along the rest
  (docs/scaling.md).
  """
  long = sorted(side for side in sides if side > 1)
  is_square = len(long) == 2 and long[0] == long[1] > 2
  takes_all = fsdp == math.prod(sides) and data * model == 1
  if not takes_all or not (is_square or len(long) == 3):
    return fsdp, 1
  return fsdp // long[-1], long[-1]


def _slice_of(device: Any) -> int:
  """The number of the slice of a device; 0 where devices do not say."""
  return getattr(device, "slice_index", 0)


def _grid_of_tpus(
  shape: tuple[int, int, int], devices: Sequence[Any], available: int, inner: int
) -> np.ndarray:
  """The first TPUs of those that are available in the shape of a mesh, slice by slice.

  It has four axes where `fsdp` is laid as two of them.
  """
  devices_by_slice: dict[int, list[Any]] = {}
  for device in devices:
    devices_by_slice.setdefault(_slice_of(device), []).append(device)
  slices = [devices_by_slice[number] for number in sorted(devices_by_slice)]

  taken = "all" if len(devices) == available else "the first"
  mesh = " ".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
  begin = f"mesh {mesh} takes {taken} {len(devices)} of {available} TPU devices"
  sizes = [len(part) for part in slices]
  if len(set(sizes)) > 1:
    numbers = " and ".join(map(str, sizes))
    raise UserError(
      f"{begin}, which are {numbers} of {len(slices)} slices: choose three numbers whose product "
      f"is {sizes[0]} or takes as many of each slice"
    )
  for part in slices:
    if not _is_box(part):
      works = max(n for n in range(1, len(part)) if _is_box(part[:n]))
      raise UserError(
        f"{begin}, which are no box of the topology: choose three numbers whose product is {works}"
      )

  axis = axis_over_slices(*shape, slices=len(slices))
  if axis is None:
    raise UserError(
      f"{begin} in {len(slices)} slices, which lie along data or fsdp: choose a multiple of "
      f"{len(slices)} for one of these"
    )
  data, fsdp, model = (
    size // len(slices) if name == axis else size for name, size in zip(AXES, shape, strict=True)
  )
  outer, second = fsdp, 1
  # Slices along `fsdp` would send more over their network if it were two axes.
  if axis != "fsdp":
    outer, second = parts_of_fsdp(data, fsdp, model, _sides(slices[0]))
  if inner:
    outer, second = fsdp // inner, inner
  in_slice = (data, outer, second, model) if second > 1 else (data, fsdp, model)
  grids = [_grid_of_slice(in_slice, part) for part in slices]
  return np.concatenate(grids, AXES.index(axis))


def _is_box(devices: Sequence[Any]) -> bool:
  """Whether TPUs fill a box of their topology, with as many cores of every chip."""
  places = {tuple(device.coords) for device in devices}
  cores = {device.core_on_chip for device in devices}
  size = math.prod(_sides(devices))
  return len(places) == size and len(devices) == len(places) * len(cores)


def _sides(devices: Sequence[Any]) -> list[int]:
  """The sides of the box in which TPUs lie."""
  columns = zip(*[device.coords for device in devices], strict=True)
  return [max(column) - min(column) + 1 for column in columns]


def _grid_of_slice(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
  """The TPUs of one slice in a shape whose inner axes talk most."""
  try:
    # So does `jax.make_mesh`, but on other chips than v5e it lets no two axes share a side.
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  except (TypeError, ValueError):
    # JAX 0.10 does not find the factor 7 of a side of 28, and then loses chips or has no axis for
    # them. In the order of their places they are neighbours all the same.
    by_place = sorted(devices, key=lambda device: (*device.coords, device.core_on_chip))
    return np.array(by_place).reshape(shape)


def is_sharded() -> bool:
  """Whether a mesh is set (`jax.set_mesh`)."""
  return not jax.sharding.get_abstract_mesh().empty


def batch_shards() -> int:
  """The number of parts that the mesh splits a batch into; 1 without a mesh."""
  if not is_sharded():
    return 1
  sizes = sizes_of_mesh()
  return math.prod(sizes[name] for name in RULES["batch"])


def sizes_of_mesh() -> dict[str, int]:
  """Returns the devices along each axis of the mesh that is set, as a user writes them."""
  sizes = dict(jax.sharding.get_abstract_mesh().shape)
  return {name: sizes[name] * (sizes.get(INNER, 1) if name == "fsdp" else 1) for name in AXES}


def platform() -> str:
  """The platform of the devices of the mesh, or of this machine's without a mesh.

  It is empty for a mesh without devices, which is of a plan.
  """
  if not is_sharded():
    return jax.default_backend()
  device = jax.sharding.get_abstract_mesh().abstract_device
  return "" if device is None else device.platform


def is_on_cpu() -> bool:
  """Whether the devices of the mesh, or this machine's without a mesh, are CPUs."""
  return platform() == "cpu"


# A device computes packed rows of at least so many positions at once, where a batch has them. A few
# cores are as fast as they get with these: with more where nothing is learnt, and no gradients of
# all weights are added up after each part.
POSITIONS_OF_CPU = 192
SCORED_POSITIONS_OF_CPU = 768
# Of an accelerator, every part gathers the weights that `fsdp` splits. A TPU v5p (459 TFLOP/s,
# 600 GB/s) computes 765 positions of a forward pass meanwhile, of 2 FLOP and 2 bytes a weight.
POSITIONS = 2048


def positions_at_once(*, learnt: bool = True) -> int:
  """How many positions of packed rows a device of the mesh, or of this machine, computes at once.

  `learnt` is whether they are learnt from, or else scored alone.

  With fewer, matrix products and gathered weights are slow; with more, the last part of a batch
  holds more padding.
  """
  if not is_on_cpu():
    return POSITIONS
  return POSITIONS_OF_CPU if learnt else SCORED_POSITIONS_OF_CPU


# Partitions


def spec(*axes: str | None) -> jax.P | None:
  """Returns the partition of an array whose axes have these logical names; None without a mesh."""
  if not is_sharded():
    return None
  return jax.P(*[_mesh_axes(axis) for axis in axes])


def fit(
  shape: tuple[int, ...],
  axes: tuple[str | None, ...],
) -> jax.P | None:
  """Returns `spec(*axes)` for a shape, with the axes whole that may be and do not divide.

  Those axes are in MAY_BE_WHOLE.

  Raises:
    UserError: where another axis does not divide over its devices.
  """
  if not is_sharded():
    return None
  sizes = sizes_of_mesh()
  entries = []
  # An axis without a name, or whose rule is empty, is whole: it lies on one device.
  for length, axis in zip(shape, axes, strict=True):
    names = RULES[axis] if axis else ()
    devices = math.prod(sizes[name] for name in names)
    if length % devices == 0:
      entries.append(_mesh_axes(axis))
    elif axis in MAY_BE_WHOLE:
      entries.append(None)
    else:
      product = " x ".join(f"{name}={sizes[name]}" for name in names)
      raise UserError(
        f"axis '{axis}' of length {length} (shape {shape}) does not divide over {devices} devices "
        f"({product}): choose a mesh whose parts divide it"
      )
  return jax.P(*entries)


def mesh_axes(axis: str | None) -> tuple[str, ...]:
  """Returns the axes of the mesh that is set along which a logical axis lies."""
  names = RULES[axis] if axis else ()
  if "fsdp" not in names or INNER not in jax.sharding.get_abstract_mesh().axis_names:
    return names
  behind = names.index("fsdp") + 1
  return (*names[:behind], INNER, *names[behind:])


def _mesh_axes(axis: str | None) -> str | tuple[str, ...] | None:
  """The entry of a partition for one logical axis."""
  return _entry(mesh_axes(axis))


def _entry(names: tuple[str, ...]) -> str | tuple[str, ...] | None:
  """The entry of a partition for these axes of the mesh, as JAX writes it in types."""
  if not names:
    return None
  return names[0] if len(names) == 1 else names


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """The axes of the mesh in an entry of a partition."""
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else entry


def named(spec: jax.P) -> NamedSharding:
  """A partition on the mesh that is set: on its devices or, where there are none, on its axes.

  A plan has a mesh without devices (`jax.sharding.use_abstract_mesh`).
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return NamedSharding(jax.sharding.get_abstract_mesh(), spec)
  return NamedSharding(mesh, spec)


def shardings(table: PyTree[Leaf]) -> PyTree:
  """Returns the partition of every leaf of a table, for `place` or for `out_shardings`."""
  return jax.tree.map(lambda leaf: fit(leaf.shape, leaf.axes), table)


# Onto the mesh


def place(tree: PyTree, specs: PyTree) -> PyTree:
  """Puts arrays on the mesh by a tree of partitions, such as `shardings` returns."""
  if not is_sharded():
    return tree
  mesh = jax.sharding.get_mesh()

  def place_leaf(x, partition):
    return _put(x, NamedSharding(mesh, partition))

  return jax.tree.map(place_leaf, tree, specs)


def replicate(tree: PyTree) -> PyTree:
  """Puts a whole copy of every array on every device."""
  return place(tree, jax.tree.map(lambda x: jax.P(), tree))


def place_batch(tree: PyTree) -> PyTree:
  """Splits the first axis of every array over the devices.

  With several processes each of them passes the whole batch, and places the rows of its own devices
  wherever these lie in the mesh.

  Raises:
    UserError: when the rows do not divide over the devices.
  """
  if not is_sharded():
    return tree

  def place_leaf(x):
    rows = x.shape[0]
    return _put(x, _batch_sharding(rows))

  return jax.tree.map(place_leaf, tree)


def _batch_sharding(rows: int) -> NamedSharding:
  """The sharding of an array whose first axis holds the rows of a batch."""
  partition = fit((rows,), ("batch",))
  return NamedSharding(jax.sharding.get_mesh(), partition or jax.P())


def local_rows(size: int) -> list[int]:
  """Returns the rows of a batch of `size` that lie on devices of this process, in order.

  Without a mesh that is all of them.
  """
  if not is_sharded():
    return list(range(size))
  slices = _batch_sharding(size).addressable_devices_indices_map((size,))
  rows: set[int] = set()
  # Devices along `model` hold the same rows, so a row may occur several times.
  for index in slices.values():
    if index:
      rows.update(range(size)[index[0]])
  return sorted(rows)


def place_rows(tree: PyTree) -> PyTree:
  """Does what `place_batch` does, where each process passes only its `local_rows`.

  Raises:
    UserError: when the rows do not divide over the devices.
  """
  if jax.process_count() == 1 or not is_sharded():
    return place_batch(tree)
  split_rows = NamedSharding(jax.sharding.get_mesh(), jax.P(mesh_axes("batch")))
  # A process may hold a part that another one holds too and one that it does not, where `model`
  # has three devices and a host four. JAX cannot tell then how many rows there are in all.
  parts = batch_shards()
  own_parts = local_rows(parts)

  def place_leaf(x):
    own = np.asarray(x)
    rows, rest = divmod(len(own), len(own_parts))
    if rest:
      raise UserError(
        f"{len(own)} rows of this process do not divide over its {len(own_parts)} parts of a batch"
      )

    def rows_at(index):
      part = (index[0].start or 0) // rows
      start = own_parts.index(part) * rows
      return own[start : start + rows]

    return jax.make_array_from_callback((rows * parts, *own.shape[1:]), split_rows, rows_at)

  return jax.tree.map(place_leaf, tree)


def _put(x: Any, target: NamedSharding) -> Array:
  """Puts x on the devices of a sharding.

  With several processes that all hold x, each of them puts its own part. `jax.device_put` would
  first compare x between the processes.
  """
  if jax.process_count() == 1 or not getattr(x, "is_fully_addressable", True):
    return jax.device_put(x, target)
  # Each process is asked only for the parts of its own devices.
  host = np.asarray(x)
  return jax.make_array_from_callback(host.shape, target, lambda index: host[index])


def fetch(tree: PyTree) -> PyTree:
  """Returns the whole arrays on the host, in every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  # A run of one process, which is the usual case, needs no import of it.
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(tree, tiled=True)


# Inside a compiled function


def reshard(x: Array, *axes: str | None) -> Array:
  """Moves x to the partition of these logical axes."""
  if not is_sharded():
    return x
  return jax.sharding.reshard(x, spec(*axes))


def repeat(tree: PyTree, n: int) -> PyTree:
  """Repeats every row n times in a row, on the device where it is: [B, ...] -> [B*n, ...]."""
  if n == 1:
    return tree

  def repeat_leaf(x: Array) -> Array:
    rows, *rest = x.shape
    partition = jax.typeof(x).sharding.spec if is_sharded() else None
    copies = jnp.broadcast_to(x[:, None], (rows, n, *rest))
    return jax.lax.reshape(copies, (rows * n, *rest), out_sharding=partition)

  return jax.tree.map(repeat_leaf, tree)


def row_axes(init: Callable[[int], PyTree], rows: int) -> PyTree:
  """Returns which axis of each array of a cache holds the rows; -1 where none does.

  `init` makes an empty cache for a number of rows.

  Raises:
    UserError: when the rows are no single axis of an array.
  """
  many = 64 * rows  # so many that no array which is filled up for few rows passes

  def row_axis(few: jax.ShapeDtypeStruct, more: jax.ShapeDtypeStruct) -> int:
    lengths = list(zip(few.shape, more.shape, strict=True))
    grown = [axis for axis, (length, longer) in enumerate(lengths) if length != longer]
    if not grown:
      return -1
    if len(grown) > 1 or lengths[grown[0]] != (rows, many):
      raise UserError(
        f"init_cache makes an array {few.shape} for {rows} rows and {more.shape} for {many}: one "
        "axis must be that of the rows"
      )
    if is_sharded() and few.sharding.spec[grown[0]] != _mesh_axes("batch"):
      raise UserError(
        f"init_cache makes an array {few.shape} for {rows} rows that is not split along them: on a "
        "mesh rows must be the first axis"
      )
    return grown[0]

  # Shapes only: nothing is allocated.
  small = jax.eval_shape(lambda: init(rows))
  large = jax.eval_shape(lambda: init(many))
  return jax.tree.map(row_axis, small, large)


def repeat_rows(cache: PyTree, axes: PyTree, n: int) -> PyTree:
  """Repeats every row of a cache n times in a row; `axes` are its `row_axes`."""

  def repeat_leaf(x: Array, axis: int) -> Array:
    if axis < 0:
      return x
    return jnp.moveaxis(repeat(jnp.moveaxis(x, axis, 0), n), 0, axis)

  return cache if n == 1 else jax.tree.map(repeat_leaf, cache, axes)


def take_rows(
  cache: PyTree,
  axes: PyTree,
  rows: Int[Array, " S"],
) -> PyTree:
  """Returns the rows of a cache with these numbers, which count the rows of each device from 0."""

  def take_leaf(x: Array, axis: int) -> Array:
    if axis < 0:
      return x
    return on_each_device(partial(jnp.take, axis=axis, mode="clip"), partition(x), x, rows)

  return jax.tree.map(take_leaf, cache, axes)


def put_rows(
  cache: PyTree,
  axes: PyTree,
  group: PyTree,
  rows: Int[Array, " G"],
) -> PyTree:
  """Writes the rows of a smaller cache over those of these numbers, counted on each device from 0.

  A number that is no row of the device leaves its row out. Where another axis of the group is
  shorter (it has fewer columns), its row replaces the beginning.
  """

  def put_leaf(x: Array, axis: int, new: Array) -> Array:
    if axis < 0:
      return x

    def put(x: Array, new: Array, rows: Array) -> Array:
      index: list[Any] = [slice(0, length) for length in new.shape]
      index[axis] = rows
      return x.at[tuple(index)].set(new, mode="drop")

    return on_each_device(put, partition(x), x, new, rows)

  return jax.tree.map(put_leaf, cache, axes, group)


def partition(x: Array) -> jax.P | None:
  """Returns how an array lies on the mesh; None without a mesh."""
  return jax.typeof(x).sharding.spec if is_sharded() else None


def on_each_device(f: Callable, out: PyTree, *args: Array) -> Any:
  """Calls f on every device with its own parts of the arrays, whose results lie as `out` says.

  What f takes, such as the numbers of rows, is that of the device. Nothing moves between devices.
  """
  if not is_sharded():
    return f(*args)
  in_specs = tuple(partition(x) for x in args)
  # f need not say how its results vary over the mesh, hence check_vma=False.
  return jax.shard_map(f, in_specs=in_specs, out_specs=out, check_vma=False)(*args)


def gather(w: Array) -> Array:
  """Makes a parameter whole along `fsdp`, just before it is used, axis by axis.

  The transpose of this stores a gradient in parts, as the parameter is. The gradient of a matrix
  is summed in the same go (`scatter`).
  """
  if not is_sharded():
    return w
  # From the innermost axis on, so that each step joins neighbours.
  for name in reversed(mesh_axes("embed")):
    stored = jax.typeof(w).sharding.spec
    entries = [_without(entry, (name,)) for entry in stored]
    if entries != list(stored):
      w = jax.sharding.reshard(w, jax.P(*entries))
  return w


def whole(stored: jax.P) -> jax.P:
  """Returns the partition of a parameter that is whole along `fsdp`."""
  return jax.P(*[_without(entry, mesh_axes("embed")) for entry in stored])


def _without(entry: str | tuple[str, ...] | None, names: Sequence[str]) -> Any:
  """An entry of a partition without some axes of the mesh."""
  return _entry(tuple(name for name in _names(entry) if name not in names))


def unreduced(whole: jax.P, rows: str | tuple[str, ...] | None) -> jax.P:
  """Returns the partition of a sum over rows of which each device has added up its own alone.

  `whole` is that of the sum, and `rows` the entry of the partition along which the rows lie.
  """
  return jax.P(*whole, unreduced=frozenset(_names(rows)))


def scatter(x: Array, stored: jax.P) -> Array:
  """Sums what each device has added up (`unreduced`), into the parts in which a parameter lies.

  The sum goes along one axis of the mesh after the other, each of which leaves a device less to
  sum: first along `fsdp`, in parts, then along what is left, whole. Where `fsdp` lies along a whole
  topology, the TPU compiler makes a reduce-scatter of each step and an all-reduce of one step.
  """
  left = set(jax.typeof(x).sharding.spec.unreduced)
  later = [name for name in mesh_axes("embed") if any(name in _names(entry) for entry in stored)]
  while later and later[0] in left:
    left.remove(later.pop(0))
    entries = [_without(entry, later) for entry in stored]
    x = jax.sharding.reshard(x, jax.P(*entries, unreduced=frozenset(left)))
  return jax.sharding.reshard(x, stored)
