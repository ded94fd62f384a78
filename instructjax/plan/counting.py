"""What a program costs, read off its jaxpr.

Costs are FLOPs, the bytes that matrix products touch, collectives, and the memory that is live at
once. XLA's own `cost_analysis` counts the body of a loop once. In this file a scan counts `length`
times, and a while loop as often as its name says: it is traced inside of
`jax.named_scope("trips:NAME")`, and a mapping of names gives the trips. Types carry shardings, so
the share of one device is exact: a product that is not split over an axis is counted on each device
along it.

Jaxprs and their equations have no public types, so they are `Any` here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax.interpreters import partial_eval

# Primitives that pass a weight on as it is, perhaps cast, moved or cut.
CARRIES = {
  "convert_element_type",
  "reshape",
  "reshard",
  "sharding_constraint",
  "transpose",
  "slice",
  "squeeze",
  "dynamic_slice",
  "broadcast_in_dim",
  "copy",
  "copy_p",
  # A weight is rounded to integers by these (`models.int8`).
  "div",
  "round",
}

# The scope of a loop, perhaps within transformations: transpose(jvp(trips:NAME)).
_NAME = re.compile(r"trips:([\w-]+)")

# The scope in which `jax.checkpoint` computes activations once more.
RECOMPUTED = "rematted_computation"


@dataclasses.dataclass
class Cost:
  """The cost of one call. `flops` are of all devices, and the rest is of one of them."""

  # Bytes of an element of a weight that is gathered: the compiler casts weights to the compute
  # dtype before it gathers them.
  weight_width: int = 4
  flops: float = 0.0
  # The part of them that computes activations once more for the backward pass.
  recomputed_flops: float = 0.0
  # The part of `flops` that multiplies activations by activations in each head, as attention does:
  # the scores and the mix. Blocks of queries leave out most of what is hidden from them.
  attention_flops: float = 0.0
  device_flops: float = 0.0
  product_bytes: float = 0.0  # what matrix products read and write
  weight_bytes: float = 0.0  # the part of it that is parameters
  # Maps (kind, mesh axes) to (count, payload in bytes).
  collectives: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )
  # Maps the name of a loop to (its trips in all, what matrix products touch in them, in bytes).
  loops: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

  def bytes_of_a_trip(self, loop: str) -> float | None:
    """Bytes that matrix products touch in one trip of a loop; None where it never runs."""
    trips, touched = self.loops.get(loop, (0.0, 0.0))
    return touched / trips if trips else None

  def collective(
    self,
    kind: str,
    axes: Sequence[str],
    times: float,
    size: float,
  ) -> None:
    """Adds a collective of `size` bytes that runs so many times.

    Two axes that `fsdp` is laid as are named as the one that a user writes.
    """
    names = ["fsdp" if name == "fsdp2" else name for name in axes]
    key = (kind, tuple(dict.fromkeys(names)))
    count, total = self.collectives.get(key, (0.0, 0.0))
    self.collectives[key] = (count + times, total + times * size)


# Arrays and their shardings


def local_shape(aval: Any) -> tuple[int, ...]:
  """Returns the shape of the part of an array on one device.

  Inside of `shard_map` an array is such a part already, and no axis splits it.
  """
  sharding = getattr(aval, "sharding", None)
  if sharding is None or sharding.mesh.empty:
    return aval.shape
  sizes = sharding.mesh.shape
  parts = [math.prod(sizes[name] for name in axes_of(aval, i)) for i in range(len(aval.shape))]
  return tuple(size // count for size, count in zip(aval.shape, parts, strict=True))


def local_bytes(aval: Any) -> int:
  """Returns the bytes of an array on one device; what is no array has none."""
  if not hasattr(aval, "shape"):
    return 0
  dtype = getattr(aval, "dtype", None)
  itemsize = getattr(dtype, "itemsize", 0)
  return math.prod(local_shape(aval)) * itemsize


def axes_of(aval: Any, dim: int) -> tuple[str, ...]:
  """Returns the mesh axes of more than one device along one dimension of an array."""
  sharding = getattr(aval, "sharding", None)
  if sharding is None or sharding.mesh.empty:
    return ()
  entry = sharding.spec.partitions[dim]
  if entry is None:
    return ()
  names = entry if isinstance(entry, tuple) else (entry,)
  return tuple(name for name in names if sharding.mesh.shape[name] > 1)


def all_axes(aval: Any) -> Counter[str]:
  """Returns the mesh axes of more than one device along all dimensions of an array."""
  names: Counter[str] = Counter()
  for dim in range(len(aval.shape)):
    names.update(axes_of(aval, dim))
  return names


def partial_axes(aval: Any) -> tuple[str, ...]:
  """Returns the mesh axes of more than one device along which each device has a part of a sum."""
  sharding = getattr(aval, "sharding", None)
  if sharding is None or sharding.mesh.empty:
    return ()
  sizes = sharding.mesh.shape
  return tuple(name for name in sizes if name in sharding.spec.unreduced and sizes[name] > 1)


# Equations


def inner(eqn: Any) -> Iterator[tuple[Any, int]]:
  """Yields the jaxprs of an equation, each with the number of inputs that are not passed to it."""
  name = eqn.primitive.name
  params = eqn.params
  if name == "cond":
    # The last branch is the default of `platform_dependent`: what runs on an accelerator.
    yield params["branches"][-1], 1
  elif name == "while":
    yield _needed(params["body_jaxpr"]), params["cond_nconsts"]
  else:
    for value in params.values():
      if _is_jaxpr(value):
        yield value, 0
        return


def _is_jaxpr(value: Any) -> bool:
  """Whether a parameter of an equation is a jaxpr, open or closed."""
  return hasattr(opened(value), "eqns")


def opened(jaxpr: Any) -> Any:
  """Returns the open jaxpr of a closed one, or the jaxpr itself."""
  return getattr(jaxpr, "jaxpr", jaxpr)


def _is_literal(v: Any) -> bool:
  """Whether an input of an equation is a constant that stands in it. Others are variables."""
  return hasattr(v, "val")


# FLOPs, bytes and collectives


def count(
  jaxpr: Any,
  weights: Sequence[bool],
  trips: Mapping[str, float],
  weight_width: int = 4,
) -> Cost:
  """Returns the cost of a closed jaxpr.

  `weights` marks its inputs that are parameters, and `trips` says by name how often each while loop
  runs, each time that it is begun.

  Raises:
    ValueError: for a while loop without a name, or with one that `trips` does not have. How often
      it runs depends on data, so nothing else could say it.
  """
  cost = Cost(weight_width)
  needed = _needed(jaxpr)
  kinds = [_Kind(weight) for weight in weights]
  _walk(needed, kinds, 1.0, trips, cost)
  return cost


class _Kind(NamedTuple):
  """What is known of an array: whether it is a weight, and whether it was cast from int8.

  The compiler casts integers while a product reads them, so what it reads is a byte each.
  """

  is_weight: bool = False
  is_int8: bool = False


def _needed(jaxpr: Any) -> Any:
  """Returns a jaxpr without what none of its outputs needs, which never runs.

  The compiler leaves out the gradients of matrices that are not trained, and what no later turn of
  a while loop needs. JAX itself takes the like out of a scan alone.
  """
  # `instantiate` keeps all inputs, so that what is known of them still fits.
  whole = opened(jaxpr)
  needed, _ = partial_eval.dce_jaxpr(whole, [True] * len(whole.outvars), instantiate=True)
  return needed


def _walk(
  jaxpr: Any,
  kinds: Sequence[_Kind],
  times: float,
  trips: Mapping[str, float],
  cost: Cost,
) -> list[_Kind]:
  """Adds the cost of a jaxpr that runs so many times; returns the kinds of its outputs."""
  kind_of_var = dict(zip(jaxpr.invars, kinds))

  def kind(v: Any) -> _Kind:
    return _Kind() if _is_literal(v) else kind_of_var.get(v, _Kind())

  lookups = _lookups(jaxpr)
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == "dot_general":
      _product(eqn, [kind(v) for v in eqn.invars], times, cost)
    elif name == "reshard" and eqn.outvars[0] not in lookups:
      _reshard(eqn, times, cost, kind(eqn.invars[0]).is_weight)
    elif name == "scatter-add" and eqn.invars[2] in lookups:
      # Each device adds its own rows into the table. Then the tables are summed.
      axes = lookups[eqn.invars[2]]
      cost.collective("all-reduce", axes, times, local_bytes(eqn.outvars[0].aval))
    if name == "optimization_barrier":
      kind_of_var.update(zip(eqn.outvars, [kind(v) for v in eqn.invars]))
    elif name in CARRIES:
      passed = kind(eqn.invars[0])
      if name == "convert_element_type" and eqn.invars[0].aval.dtype == "int8":
        passed = passed._replace(is_int8=True)
      kind_of_var[eqn.outvars[0]] = passed

    for body, skip in inner(eqn):
      runs = times * _runs(eqn, trips)
      passed_kinds = [kind(v) for v in eqn.invars[skip:]]
      touched_before = cost.product_bytes
      flops_before, recomputed_before = cost.flops, cost.recomputed_flops
      outputs = _walk(opened(body), passed_kinds, runs, trips, cost)
      if is_recomputed(eqn):
        # What lies in it says nothing of the scope that it lies in.
        cost.recomputed_flops = recomputed_before + cost.flops - flops_before
      if name == "while":
        loop = loop_name(eqn)
        runs_before, touched = cost.loops.get(loop, (0.0, 0.0))
        touched += cost.product_bytes - touched_before
        cost.loops[loop] = (runs_before + runs, touched)
      if len(outputs) == len(eqn.outvars):
        kind_of_var.update(zip(eqn.outvars, outputs))
  return [kind(v) for v in jaxpr.outvars]


def loop_name(eqn: Any) -> str:
  """The name of a while loop, which the innermost scope around it gives; "" where it has none."""
  names = _NAME.findall(str(eqn.source_info.name_stack))
  return names[-1] if names else ""


def is_recomputed(eqn: Any) -> bool:
  """Whether an equation computes activations once more for the backward pass."""
  return RECOMPUTED in str(eqn.source_info.name_stack)


def _runs(eqn: Any, trips: Mapping[str, float]) -> float:
  """How often the body of an equation runs.  Raises ValueError as `count` says."""
  if eqn.primitive.name == "scan":
    return eqn.params["length"]
  if eqn.primitive.name == "while":
    name = loop_name(eqn)
    if name not in trips:
      loop_names = ", ".join(sorted(trips)) or "none"
      what = f"named {name!r}" if name else 'outside of any jax.named_scope("trips:NAME")'
      raise ValueError(
        f"a while loop {what}{_place(eqn)} runs as often as its data say; trips are known of: "
        f"{loop_names}"
      )
    return trips[name]
  return 1


def _place(eqn: Any) -> str:
  """Where an equation stands in the package: " at FILE:LINE"; "" where that is unknown."""
  traceback = eqn.source_info.traceback
  for frame in traceback.frames if traceback else ():
    if "/jax/" not in frame.file_name:
      return f" at {frame.file_name.rpartition('/')[2]}:{frame.line_num}"
  return ""


def _product(
  eqn: Any,
  kinds: Sequence[_Kind],
  times: float,
  cost: Cost,
) -> None:
  """Adds a matrix product: 2 FLOPs for each multiplication with its addition."""
  (left_dims, right_dims), (left_batch, _) = eqn.params["dimension_numbers"]
  left, right = (v.aval for v in eqn.invars)
  result = eqn.outvars[0].aval

  depth = math.prod(left.shape[dim] for dim in left_dims)
  flops = times * 2 * math.prod(result.shape) * depth
  cost.flops += flops
  if is_recomputed(eqn):
    cost.recomputed_flops += flops
  if left_batch and not any(kind.is_weight for kind in kinds):
    cost.attention_flops += flops

  # A contracted dimension is as short as its shorter side: the other one is cut to it.
  local_depth = 1
  for i, j in zip(left_dims, right_dims, strict=True):
    local_depth *= min(local_shape(left)[i], local_shape(right)[j])
  cost.device_flops += times * 2 * math.prod(local_shape(result)) * local_depth

  cost.product_bytes += times * local_bytes(result)
  for aval, kind in zip((left, right), kinds, strict=True):
    size = local_bytes(aval)
    if kind.is_int8:
      size //= aval.dtype.itemsize
    cost.product_bytes += times * size
    if kind.is_weight:
      cost.weight_bytes += times * size

  # A contraction over a split dimension leaves a partial sum on each device.
  reduced = [name for dim in left_dims for name in axes_of(left, dim)]
  # What stays partial, as a gradient does, is summed where it is resharded.
  summed = [name for name in reduced if name not in partial_axes(result)]
  if summed:
    cost.collective("all-reduce", summed, times, local_bytes(result))


def _reshard(eqn: Any, times: float, cost: Cost, is_weight: bool) -> None:
  """Adds the collectives of a reshard.

  There is an all-gather if some axis splits the array before it and not after. Partial sums are
  reduce-scattered along axes that split the sum, and all-reduced along the others.
  """
  before = eqn.invars[0].aval
  after = eqn.outvars[0].aval
  axes_after = all_axes(after)
  summed = [name for name in partial_axes(before) if name not in partial_axes(after)]
  scattered = [name for name in summed if name in axes_after]
  kept_whole = [name for name in summed if name not in axes_after]
  if scattered:
    cost.collective("reduce-scatter", scattered, times, local_bytes(before))
  if kept_whole:
    cost.collective("all-reduce", kept_whole, times, local_bytes(after))
  gathered = [name for name in all_axes(before) if name not in axes_after]
  if not gathered:
    return
  itemsize = after.dtype.itemsize
  width = cost.weight_width if is_weight and itemsize == 4 else itemsize
  payload = local_bytes(after) * width / itemsize
  cost.collective("all-gather", gathered, times, payload)


def _lookups(jaxpr: Any) -> dict[Any, list[str]]:
  """Returns arrays that are whole in the jaxpr and never on a device.

  They are rows that are made whole only to be added into a table, or looked up only to be split.
  The compiler splits both along the batch. Each comes with the axes that it is split over.
  """
  readers: dict[Any, list[Any]] = {}
  for eqn in jaxpr.eqns:
    for v in eqn.invars:
      if not _is_literal(v):
        readers.setdefault(v, []).append(eqn)

  axes_by_array: dict[Any, list[str]] = {}
  for eqn in jaxpr.eqns:
    if not eqn.outvars:
      continue
    result = eqn.outvars[0]
    eqns = readers.get(result, [])
    if len(eqns) != 1 or result in jaxpr.outvars:
      continue
    reader = eqns[0]
    name = eqn.primitive.name
    reader_name = reader.primitive.name
    if name == "reshard" and reader_name == "scatter-add" and reader.invars[2] is result:
      axes_by_array[result] = list(all_axes(eqn.invars[0].aval))
    elif name == "gather" and reader_name == "reshard":
      axes_by_array[result] = list(all_axes(reader.outvars[0].aval))
  return axes_by_array


# Memory

# Primitives whose result needs no memory of its own.
FREE = {
  "broadcast_in_dim",
  "iota",
  "reshape",
  "squeeze",
  "expand_dims",
  "copy_p",
  "rng_bit_generator",
  "random_wrap",
}
# Primitives that are not elementwise: nothing is fused across them.
OPAQUE = {
  "dot_general",
  "scan",
  "while",
  "gather",
  "scatter",
  "scatter-add",
  "sort",
  "concatenate",
  "reshard",
  "argmax",
}


def peak(jaxpr: Any, donated: Sequence[bool] = ()) -> int:
  """Returns the bytes that one device needs besides the arguments: the most that is live at once.

  Results of elementwise equations that only elementwise equations read once are taken to be fused
  away. A donated input gives its memory to the results that are made after its last use.
  """
  jaxpr = opened(jaxpr)
  last_use, uses = _lifetimes(jaxpr)
  fused = _fuse(jaxpr, last_use, uses)  # lengthens some of the lives
  fused |= set(_lookups(jaxpr))

  dying: dict[int, list[Any]] = {}
  for v, position in last_use.items():
    dying.setdefault(position, []).append(v)

  # The live arrays. Arguments that are not donated belong to the caller and are left out.
  sizes = {}
  for v, is_donated in zip(jaxpr.invars, donated):
    if is_donated:
      sizes[v] = local_bytes(v.aval)
  arguments = sum(sizes.values())
  live = arguments
  most = 0

  for position, eqn in enumerate(jaxpr.eqns):
    name = eqn.primitive.name
    ends = [v for v in dying.get(position, []) if v in sizes]
    freed = sum(sizes[v] for v in ends)
    result_sizes = {}
    for v in eqn.outvars:
      needs_memory = v not in fused and name not in FREE
      result_sizes[v] = local_bytes(v.aval) if needs_memory else 0
    new = sum(result_sizes.values())

    bodies = [_inside(eqn, body) for body, _ in inner(eqn)]
    within = max(bodies, default=0)
    # An elementwise equation writes its result over an input that ends with it.
    reuses_inputs = name not in OPAQUE or within
    reused = min(freed, new) if reuses_inputs else 0
    most = max(most, live - reused + new + within)

    live += new - freed
    sizes.update(result_sizes)
    for v in ends:
      del sizes[v]
  return max(most - arguments, 0)


def _inside(eqn: Any, body: Any) -> int:
  """The bytes that the body of an equation needs beyond its results.

  The results are those of the equation, which counts them itself.
  """
  jaxpr = opened(body)
  if eqn.primitive.name in ("scan", "while"):
    # A loop owns what it carries, and may write the next value over the last one.
    constants, carried = _loop(eqn, jaxpr)
    owned = [constants <= i < constants + carried for i in range(len(jaxpr.invars))]
    return peak(jaxpr, owned)
  results = sum(local_bytes(v.aval) for v in jaxpr.outvars if hasattr(v, "aval"))
  return max(peak(jaxpr) - results, 0)


def _loop(eqn: Any, body: Any) -> tuple[int, int]:
  """The numbers of constants and of carried values of a loop.

  Those of a scan are recognised by their rank: an array that is sliced has one axis more outside of
  the loop. The names of its parameters differ between versions of JAX.
  """
  if eqn.primitive.name == "while":
    constants = eqn.params["body_nconsts"]
    return constants, len(body.invars) - constants
  carried = _same_rank(eqn.outvars, body.outvars)
  constants = _same_rank(eqn.invars, body.invars) - carried
  return constants, carried


def _same_rank(outside: Sequence[Any], inside: Sequence[Any]) -> int:
  """How many variables have the same rank outside of a loop and inside: they are not sliced."""
  pairs = zip(outside, inside, strict=True)
  return sum(a.aval.ndim == b.aval.ndim for a, b in pairs)


def _lifetimes(jaxpr: Any) -> tuple[dict[Any, int], Counter]:
  """The position of the last equation that reads each variable, and how often it is read.

  What the jaxpr returns lives past its last equation.
  """
  last_use: dict[Any, int] = {}
  uses: Counter = Counter()
  for position, eqn in enumerate(jaxpr.eqns):
    for v in eqn.invars:
      if not _is_literal(v):
        last_use[v] = position
        uses[v] += 1
    for v in eqn.outvars:
      last_use.setdefault(v, position)  # unless it is read, it dies where it is made
  for v in jaxpr.outvars:
    if not _is_literal(v):
      last_use[v] = len(jaxpr.eqns)
  return last_use, uses


def _stays(eqn: Any) -> bool:
  """Whether an equation is a reshard to where the array lies already."""
  if eqn.primitive.name != "reshard":
    return False
  return all_axes(eqn.invars[0].aval) == all_axes(eqn.outvars[0].aval)


def _is_elementwise(eqn: Any) -> bool:
  """Whether the compiler may fuse an equation with its neighbours."""
  return eqn.primitive.name not in OPAQUE and not list(inner(eqn))


def _fuse(jaxpr: Any, last_use: dict[Any, int], uses: Counter) -> set[Any]:
  """Returns the results that never stand in memory.

  What such a result is made of lives until the result is read, which this writes into `last_use`.
  """
  eqns = jaxpr.eqns
  fused: set[Any] = set()
  # From the end, so that a chain of fused results passes the last use on to its first inputs.
  for eqn in reversed(eqns):
    stays = _stays(eqn)
    if len(eqn.outvars) != 1 or not (stays or _is_elementwise(eqn)):
      continue
    result = eqn.outvars[0]
    reader = last_use[result]
    is_free = stays or eqn.primitive.name in FREE
    is_read_once = uses[result] == 1 and reader < len(eqns)
    if is_free or (is_read_once and _is_elementwise(eqns[reader])):
      fused.add(result)
      for v in eqn.invars:
        if not _is_literal(v):
          last_use[v] = max(last_use[v], reader)
  return fused
