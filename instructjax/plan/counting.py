"""What a program costs, read off its jaxpr: FLOPs, bytes that matrix products touch, and
collectives.

XLA's own `cost_analysis` counts the body of a loop once; here a scan counts `length` times and a
while loop as often as the program's bound.  Types carry shardings, so the share of one device is
exact: a product that is not split over an axis is counted on each device along it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

# What passes a weight on as it is, perhaps cast, moved or cut.
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
}


@dataclasses.dataclass
class Cost:
  """Of one call; all but `flops` are of one device.  `collectives` maps (kind, mesh axes) to
  (count, payload bytes).

  `weight_width` is the bytes of a weight that is gathered: the compiler casts to the compute
  dtype before it gathers.
  """

  weight_width: int = 4
  flops: float = 0.0
  device_flops: float = 0.0
  product_bytes: float = 0.0
  weight_bytes: float = 0.0
  collectives: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )

  def collective(self, kind: str, axes: Sequence[str], times: float, size: float) -> None:
    count, total = self.collectives.get((kind, tuple(axes)), (0.0, 0.0))
    self.collectives[kind, tuple(axes)] = count + times, total + times * size


def local_shape(aval: Any) -> tuple[int, ...]:
  """The part of an array on one device."""
  sharding = getattr(aval, "sharding", None)
  return aval.shape if sharding is None or sharding.mesh.empty else sharding.shard_shape(aval.shape)


def local_bytes(aval: Any) -> int:
  size = getattr(getattr(aval, "dtype", None), "itemsize", 0)
  return math.prod(local_shape(aval)) * size if hasattr(aval, "shape") else 0


def axes_of(aval: Any, dim: int) -> tuple[str, ...]:
  """The mesh axes of more than one device along one dimension of an array."""
  sharding = getattr(aval, "sharding", None)
  if sharding is None or sharding.mesh.empty:
    return ()
  entry = sharding.spec[dim]
  names = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
  return tuple(name for name in names if sharding.mesh.shape[name] > 1)


def all_axes(aval: Any) -> Counter[str]:
  return Counter(name for dim in range(len(aval.shape)) for name in axes_of(aval, dim))


def inner(eqn: Any) -> Iterator[tuple[Any, int]]:
  """The jaxprs of an equation and the number of its inputs that stand before theirs."""
  name, params = eqn.primitive.name, eqn.params
  if (
    name == "cond"
  ):  # the last branch is the default of `platform_dependent`: what runs on an accelerator
    yield params["branches"][-1], 1
  elif name == "while":
    yield params["body_jaxpr"], params["cond_nconsts"]
  else:
    for value in params.values():
      if hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
        yield value, 0
        return


def opened(jaxpr: Any) -> Any:
  return getattr(jaxpr, "jaxpr", jaxpr)


def count(jaxpr: Any, weights: Sequence[bool], trips: int, weight_width: int = 4) -> Cost:
  """The cost of a closed jaxpr; `weights` marks its inputs that are parameters, `trips` bounds its
  while loops.
  """
  cost = Cost(weight_width)
  _walk(opened(jaxpr), list(weights), 1.0, trips, cost)
  return cost


def _walk(jaxpr: Any, weights: Sequence[bool], times: float, trips: int, cost: Cost) -> list[bool]:
  marked = {v for v, weight in zip(jaxpr.invars, weights) if weight}
  is_weight = lambda v: not hasattr(v, "val") and v in marked
  lookups = _lookups(jaxpr)
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == "dot_general":
      _product(eqn, [is_weight(v) for v in eqn.invars], times, cost)
    elif name == "reshard" and eqn.outvars[0] not in lookups:
      _reshard(eqn, times, cost, is_weight(eqn.invars[0]))
    elif name == "scatter-add" and eqn.invars[2] in lookups:
      cost.collective("all-reduce", lookups[eqn.invars[2]], times, local_bytes(eqn.outvars[0].aval))
    if name in CARRIES and is_weight(eqn.invars[0]):
      marked |= set(eqn.outvars)
    for body, skip in inner(eqn):
      often = eqn.params["length"] if name == "scan" else trips if name == "while" else 1
      flags = [is_weight(v) for v in eqn.invars[skip:]]
      out = _walk(opened(body), flags, times * often, trips, cost)
      marked |= {
        v for v, weight in zip(eqn.outvars, out) if weight and len(out) == len(eqn.outvars)
      }
  return [is_weight(v) for v in jaxpr.outvars]


def _product(eqn: Any, weights: Sequence[bool], times: float, cost: Cost) -> None:
  (left, right), _ = eqn.params["dimension_numbers"]
  a, b = (v.aval for v in eqn.invars)
  out = eqn.outvars[0].aval
  depth = math.prod(a.shape[dim] for dim in left)
  shares = [min(local_shape(a)[i], local_shape(b)[j]) for i, j in zip(left, right)]
  cost.flops += times * 2 * math.prod(out.shape) * depth
  cost.device_flops += times * 2 * math.prod(local_shape(out)) * math.prod(shares)
  cost.product_bytes += times * sum(local_bytes(x) for x in (a, b, out))
  cost.weight_bytes += times * sum(
    local_bytes(v.aval) for v, weight in zip(eqn.invars, weights) if weight
  )
  reduced = [name for dim in left for name in axes_of(a, dim)]
  if reduced:  # a gradient that is then stored along fsdp is scattered as it is summed
    cost.collective(
      "reduce-scatter" if "fsdp" in reduced else "all-reduce", reduced, times, local_bytes(out)
    )


def _reshard(eqn: Any, times: float, cost: Cost, weight: bool) -> None:
  before, after = eqn.invars[0].aval, eqn.outvars[0].aval
  gone = [name for name in all_axes(before) if name not in all_axes(after)]
  if gone:
    width = cost.weight_width if weight and after.dtype.itemsize == 4 else after.dtype.itemsize
    cost.collective("all-gather", gone, times, local_bytes(after) * width / after.dtype.itemsize)


def _lookups(jaxpr: Any) -> dict[Any, list[str]]:
  """Arrays that stand whole in the jaxpr and never on a device: rows made whole only to be added
  into a table, or looked up only to be split.  The compiler splits both along the batch.  With
  each, the axes that it was split over.
  """
  readers: dict[Any, list[Any]] = {}
  for eqn in jaxpr.eqns:
    for v in eqn.invars:
      if not hasattr(v, "val"):
        readers.setdefault(v, []).append(eqn)
  found: dict[Any, list[str]] = {}
  for eqn in jaxpr.eqns:
    out, read = (
      eqn.outvars[0] if eqn.outvars else None,
      readers.get(eqn.outvars[0] if eqn.outvars else None, []),
    )
    if len(read) != 1 or out in jaxpr.outvars:
      continue
    name, reader = eqn.primitive.name, read[0].primitive.name
    if name == "reshard" and reader == "scatter-add" and read[0].invars[2] is out:
      found[out] = list(all_axes(eqn.invars[0].aval))
    elif name == "gather" and reader == "reshard":
      found[out] = list(all_axes(read[0].outvars[0].aval))
  return found


# --- memory ---

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
  """Bytes that one device needs besides the arguments: the most that is live at once.

  Results of elementwise equations that only elementwise equations read once are taken to be
  fused away.  A donated input gives its memory to the results made after its last use.
  """
  jaxpr = opened(jaxpr)
  last, uses = _lifetimes(jaxpr)
  fused = _fuse(jaxpr, last, uses) | set(_lookups(jaxpr))
  donated = list(donated) + [False] * (len(jaxpr.invars) - len(donated))
  sizes = {v: local_bytes(v.aval) for v, own in zip(jaxpr.invars, donated) if own}
  live, most, base = sum(sizes.values()), 0, sum(sizes.values())
  dying: dict[int, list[Any]] = {}
  for v, at in last.items():
    dying.setdefault(at, []).append(v)
  for at, eqn in enumerate(jaxpr.eqns):
    ends = [v for v in dying.get(at, []) if v in sizes]
    gone = sum(sizes[v] for v in ends)
    made = {
      v: 0 if v in fused or eqn.primitive.name in FREE else local_bytes(v.aval) for v in eqn.outvars
    }
    new = sum(made.values())
    within = max((_inside(eqn, body, skip, ends) for body, skip in inner(eqn)), default=0)
    reuses = eqn.primitive.name not in OPAQUE or within
    most = max(most, live - (min(gone, new) if reuses else 0) + max(new, 0) + within)
    live += new - gone
    sizes |= made
    for v in ends:
      sizes.pop(v)
  return max(most - base, 0)


def _inside(eqn: Any, body: Any, skip: int, ends: Sequence[Any]) -> int:
  """What the body of an equation needs beyond its results, which the equation itself accounts for."""
  jaxpr = opened(body)
  if eqn.primitive.name not in ("scan", "while"):
    results = sum(local_bytes(v.aval) for v in jaxpr.outvars if hasattr(v, "aval"))
    return max(peak(jaxpr) - results, 0)
  fixed, carried = _loop(eqn, jaxpr)
  owned = [fixed <= i < fixed + carried for i in range(len(jaxpr.invars))]
  return peak(jaxpr, owned)


def _loop(eqn: Any, body: Any) -> tuple[int, int]:
  """(constants, carried values) of a loop.  Those of a scan are told from its sliced arrays by
  rank: the names of its parameters differ between versions of JAX.
  """
  if eqn.primitive.name == "while":
    fixed = eqn.params["body_nconsts"]
    return fixed, len(body.invars) - fixed
  whole = lambda outside, inside: sum(
    a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True)
  )
  carried = whole(eqn.outvars, body.outvars)
  return whole(eqn.invars, body.invars) - carried, carried


def _lifetimes(jaxpr: Any) -> tuple[dict[Any, int], Counter]:
  last, uses = {}, Counter()
  for at, eqn in enumerate(jaxpr.eqns):
    for v in eqn.invars:
      if not hasattr(v, "val"):
        last[v] = at
        uses[v] += 1
    for v in eqn.outvars:
      last.setdefault(v, at)
  for v in jaxpr.outvars:
    if not hasattr(v, "val"):
      last[v] = len(jaxpr.eqns)
  return last, uses


def _stays(eqn: Any) -> bool:
  """A reshard to where the array lies already."""
  return eqn.primitive.name == "reshard" and all_axes(eqn.invars[0].aval) == all_axes(
    eqn.outvars[0].aval
  )


def _fuse(jaxpr: Any, last: dict[Any, int], uses: Counter) -> set[Any]:
  """Results that never stand in memory; what they are made of lives until they are read."""
  plain = lambda eqn: eqn.primitive.name not in OPAQUE and not list(inner(eqn))
  fused: set[Any] = set()
  for at in range(len(jaxpr.eqns) - 1, -1, -1):
    eqn = jaxpr.eqns[at]
    if (not plain(eqn) and not _stays(eqn)) or len(eqn.outvars) != 1:
      continue
    out = eqn.outvars[0]
    reader = last[out]
    free = eqn.primitive.name in FREE or _stays(eqn)
    if free or (uses[out] == 1 and reader < len(jaxpr.eqns) and plain(jaxpr.eqns[reader])):
      fused.add(out)
      for v in eqn.invars:
        if not hasattr(v, "val"):
          last[v] = max(last[v], reader)
  return fused
