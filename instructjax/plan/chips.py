"""Chips and topologies: the public figures of one device, and the pods that exist."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from instructjax import sharding
from instructjax.errors import UserError


class Chip(NamedTuple):
  """The public figures of one device.

  A tpu7x chip is two devices, which share its memory, links and network. A v4 or v5p chip is one.
  """

  flops: float  # bf16 FLOP/s, dense
  memory: float  # bytes
  bandwidth: float  # bytes/s of the memory
  # Bytes/s to the neighbours: the sum over all links in one direction, which is half of what
  # vendors print as bidirectional. What is predicted from it is a bound.
  link: float
  far: float  # bytes/s between slices, or between nodes of `near` GPUs
  dims: int  # of a topology; 0 for GPUs
  near: int = 0  # GPUs of a node; 0 for TPUs
  devices: int = 1  # of a chip
  largest: int = 0  # chips of the largest slice; 0: there is no limit
  cycle: int = 0  # FLOP of all matrix units in a cycle; 0 for GPUs

  @property
  def clock(self) -> float:
    """Cycles/s, as the peak and the matrix units give them: 1.5 GHz for a v5e."""
    return self.flops / self.cycle


GiB = 1024**3

# Sources.
#
# TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, the tables of key specifications,
# read in November 2026. Links of a chip, bidirectional: 400 (v5e), 1200 (v5p), 800 (v6e) and 1200
# GB/s (tpu7x). v4 has 6 links of 50 GB/s (Jouppi et al. 2023, arXiv 2304.01433), with which the
# bisection of 24 TB/s that is printed there agrees. Network of a chip: 50 (v5p) and 100 Gb/s (v6e,
# tpu7x), and 2 x 100 Gb/s for the 8 chips of a v5e host. That of v4 is not printed, and taken to be
# v5p's.
#
# GPUs: NVIDIA's data sheets of H100 SXM and H200 SXM. 1,979 TFLOP/s are with sparsity, and half of
# them dense; NVLink has 900 GB/s in both directions; 400 Gb/s a GPU between nodes, as in a DGX.
#
# Matrix units: the same pages and Jouppi et al. 2023. A v4 and a v5p are two cores of four units of
# 128 x 128, a v5e one such core; v6e and a device of tpu7x have units of 256 x 256.
UNIT_128 = 2 * 128**2  # FLOP of a unit in a cycle
UNIT_256 = 2 * 256**2
CHIPS: dict[str, Chip] = {
  "v4": Chip(275e12, 32 * GiB, 1200e9, 300e9, 6.25e9, 3, largest=4096, cycle=8 * UNIT_128),
  "v5e": Chip(197e12, 16 * GiB, 819e9, 200e9, 3.125e9, 2, largest=256, cycle=4 * UNIT_128),
  "v5p": Chip(459e12, 95 * GiB, 2765e9, 600e9, 6.25e9, 3, largest=6144, cycle=8 * UNIT_128),
  "v6e": Chip(918e12, 32 * GiB, 1638e9, 400e9, 12.5e9, 2, largest=256, cycle=4 * UNIT_256),
  "tpu7x": Chip(
    1153.5e12, 96 * GiB, 3690e9, 300e9, 6.25e9, 3, devices=2, largest=9216, cycle=4 * UNIT_256
  ),
  "h100": Chip(989.5e12, 80e9, 3350e9, 450e9, 50e9, 0, near=8),
  "h200": Chip(989.5e12, 141e9, 4800e9, 450e9, 50e9, 0, near=8),
}


# Shapes of a slice, whichever side is named first.
#
# v5e and v6e: the tables of the same pages. v4, v5p and tpu7x: cubes of 4 x 4 x 4 chips that are
# joined in any way (v5p's table says that it has most of these, not all), or a part of one cube,
# whose sides are 1, 2 or 4. The tables have fewer of these parts, and not the same ones for each
# kind, so all of them pass here.
FLAT_SHAPES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
PART_SIDES = (1, 2, 4)
CUBE_SIDE = 4


class Pod(NamedTuple):
  """A topology: `shape` chips of one kind in each of `slices` slices."""

  kind: str
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]

  @property
  def chips(self) -> int:
    return math.prod(self.shape) * self.slices

  @property
  def devices(self) -> int:
    return self.chips * self.chip.devices

  @property
  def name(self) -> str:
    """The name of one slice, such as `v5p:8x8x16`."""
    sides = "x".join(map(str, self.shape))
    return f"{self.kind}:{sides}"


# Topologies from the command line


def pod(text: str, slices: int = 1) -> Pod:
  """Reads a topology such as `v5p:8x8x16` or `h100:8`.

  Raises:
    UserError: for an unknown chip, with the nearest name, and for a shape that the chip does not
      come in, with the nearest shapes.
  """
  kind, _, shape = text.lower().partition(":")
  if kind not in CHIPS:
    close = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"--topology={text}: unknown chip '{kind}'; {hint}known are {', '.join(CHIPS)}")
  sides = _sides(text, kind, shape)
  if slices < 1:
    raise UserError(f"--slices={slices}: choose 1 or more")

  topology = Pod(kind, sides, slices)
  chips = math.prod(sides)
  largest = topology.chip.largest
  if largest and chips > largest:
    raise UserError(
      f"--topology={text}: {chips} chips, the largest slice of {kind} has {largest}; take several, "
      "--slices=N"
    )
  if not exists(topology):
    nearest_names = " or ".join(neighbour.name for neighbour in neighbours(topology))
    raise UserError(
      f"--topology={text}: {kind} has no slice of {chips} chips in this shape; the nearest: "
      f"{nearest_names}"
    )
  return topology


def _sides(text: str, kind: str, shape: str) -> tuple[int, ...]:
  """Reads `8x8x16`; raises UserError unless the chip has so many dimensions."""
  dims = CHIPS[kind].dims or 1
  sides = shape.split("x")
  is_a_shape = all(re.fullmatch(r"\d+", side) and side != "0" for side in sides)
  if not is_a_shape or len(sides) != dims:
    example = {1: "8", 2: "4x4", 3: "4x4x8"}[dims]
    plural = "s" if dims > 1 else ""
    raise UserError(
      f"--topology={text}: {kind} has {dims} dimension{plural}; write {kind}:{example}"
    )
  return tuple(int(side) for side in sides)


def exists(topology: Pod) -> bool:
  """Whether slices of this shape can be had. GPUs can be had in any number."""
  sides = topology.shape
  dims = topology.chip.dims
  if dims == 0:
    return True
  if dims == 3:
    part_of_a_cube = all(side in PART_SIDES for side in sides)
    whole_cubes = all(side % CUBE_SIDE == 0 for side in sides)
    return part_of_a_cube or whole_cubes
  return tuple(sorted(sides)) in FLAT_SHAPES


def neighbours(topology: Pod, count: int = 2) -> list[Pod]:
  """Returns the slices that can be had whose sides differ least, by factors."""
  sides = sorted(topology.shape)
  shapes: set[tuple[int, ...]] = set(FLAT_SHAPES)
  if topology.chip.dims == 3:
    parts = itertools.product(PART_SIDES, repeat=3)
    cubes = itertools.product(*[_near_multiples(side) for side in sides])
    # The order of the sides says nothing, so each shape is tried once.
    shapes = {tuple(sorted(shape)) for shape in (*parts, *cubes)}

  def distance(shape: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    # The shape itself breaks ties.
    return _distance(shape, sides), shape

  nearest_pods = []
  for shape in sorted(shapes, key=distance):
    candidate = Pod(topology.kind, shape)
    if exists(candidate):
      nearest_pods.append(candidate)
  return nearest_pods[:count]


def _near_multiples(side: int) -> range:
  """The multiples of a cube's side from below a side to above it."""
  cubes = side // CUBE_SIDE
  lowest = max(cubes - 1, 1)
  return range(lowest * CUBE_SIDE, (cubes + 2) * CUBE_SIDE, CUBE_SIDE)


def _distance(sizes: Sequence[int], others: Sequence[int]) -> float:
  """How far two lists of sizes are apart, by factors: twice is as far as half."""
  return sum(abs(math.log(a / b)) for a, b in zip(sizes, others, strict=True))


def larger(topology: Pod, devices: float) -> str:
  """Returns the flags of a topology of at least so many devices, such as `v5e:16x16`.

  The shortest side is doubled again and again. Beyond the largest slice the number of slices is:
  `v5e:16x16 --slices=2`.
  """
  shape = list(topology.shape)
  slices = topology.slices
  chip = topology.chip
  while math.prod(shape) * slices * chip.devices < devices:
    doubled = 2 * math.prod(shape)
    if chip.largest and doubled > chip.largest:
      slices *= 2
    else:
      shortest = shape.index(min(shape))
      shape[shortest] *= 2
  name = topology._replace(shape=tuple(sorted(shape))).name
  if slices == topology.slices:
    return name
  return f"{name} --slices={slices}"


# Meshes


def mesh(text: str, topology: Pod) -> dict[str, int]:
  """Reads a mesh such as `data=1,fsdp=256,model=4`.

  An axis that is left out is 1. An empty text puts all devices of a slice along fsdp.

  Raises:
    UserError: when the product is not the number of devices, with the nearest mesh that works, and
      when the slices do not divide it.
  """
  sizes = _mesh_sizes(text, topology)
  devices = topology.devices
  product = math.prod(sizes.values())
  if product != devices:
    too_small = "too small: " if product > devices else ""
    slices = f" x {topology.slices} slices" if topology.slices > 1 else ""
    raise UserError(
      f"--mesh={text}: {product} devices, {topology.name}{slices} has {devices} "
      f"({too_small}nearest that works: --mesh={nearest(sizes, topology)})"
    )
  if sharding.axis_over_slices(**sizes, slices=topology.slices) is None:
    raise UserError(
      f"--mesh={text}: --slices={topology.slices} lie along data or fsdp, and divide neither "
      f"data={sizes['data']} nor fsdp={sizes['fsdp']} "
      f"(nearest that works: --mesh={nearest(sizes, topology)})"
    )
  return sizes


def _mesh_sizes(text: str, topology: Pod) -> dict[str, int]:
  """The sizes that a mesh names, whether or not they fit the topology."""
  if not text:
    return {
      "data": topology.slices,
      "fsdp": topology.devices // topology.slices,
      "model": 1,
    }
  sizes = {"data": 1, "fsdp": 1, "model": 1}
  for part in text.split(","):
    name, _, value = part.partition("=")
    if name not in sizes or not value.isdigit() or int(value) < 1:
      raise UserError(f"--mesh={text}: '{part}' is none of data=N, fsdp=N, model=N")
    sizes[name] = int(value)
  return sizes


def nearest(sizes: Mapping[str, int], topology: Pod) -> str:
  """Returns the mesh over all devices whose sizes differ least, by factors."""
  wanted = list(sizes.values())

  def distance(candidate: Mapping[str, int]) -> float:
    return _distance(list(candidate.values()), wanted)

  return written(min(meshes(topology), key=distance))


def meshes(topology: Pod) -> list[dict[str, int]]:
  """Returns every mesh over all devices of a topology that its slices divide."""
  devices = topology.devices
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  candidates = []
  for data, fsdp in itertools.product(divisors, repeat=2):
    model, rest = divmod(devices, data * fsdp)
    sizes = {"data": data, "fsdp": fsdp, "model": model}
    if rest:
      continue
    if sharding.axis_over_slices(**sizes, slices=topology.slices):
      candidates.append(sizes)
  return candidates


def written(sizes: Mapping[str, int]) -> str:
  """Returns a mesh as its flag has it: `data=1,fsdp=256,model=4`."""
  return ",".join(f"{name}={size}" for name, size in sizes.items())


# Time on the links


def in_slices(topology: Pod, sizes: Mapping[str, int]) -> tuple[Pod, dict[str, int]]:
  """Returns one slice of a topology and the part of a mesh in it, with `slices` as a further axis.

  So the compiler writes a program, in which only what says so goes between slices. Where the mesh
  of a run lays `fsdp` as two axes, so does this.
  """
  axis = sharding.axis_over_slices(**sizes, slices=topology.slices)
  in_slice = {
    name: size // topology.slices if name == axis else size for name, size in sizes.items()
  }
  outer, inner = in_slice["fsdp"], 1
  if not topology.chip.near and axis != "fsdp":
    outer, inner = sharding.parts_of_fsdp(**in_slice, sides=topology.shape)
  two_axes = {sharding.INNER: inner} if inner > 1 else {}
  data, model = in_slice["data"], in_slice["model"]
  laid = {"data": data, "fsdp": outer, **two_axes, "model": model}
  return topology._replace(slices=1), {"slices": topology.slices, **laid}


def split(
  topology: Pod,
  sizes: Mapping[str, int],
  along: tuple[str, ...],
) -> tuple[int, int]:
  """Splits the devices of a collective into near and far.

  Returns:
    How many of them lie in one slice or node, and how many slices or nodes there are. Along the
    `slices` of a compiled program (`in_slices`), each device has another one in each slice.
  """
  total = math.prod(sizes[name] for name in along)
  if topology.chip.near:
    # GPUs are numbered through, node by node. The group of device 0 stands for all.
    ids = np.arange(topology.devices).reshape(tuple(sizes.values()))
    index = tuple(slice(None) if name in along else 0 for name in sizes)
    group = ids[index].ravel()
    near = int((group < topology.chip.near).sum())
  elif "slices" in along:
    near = 1
  elif topology.slices > 1 and sharding.axis_over_slices(**sizes, slices=topology.slices) in along:
    near = total // topology.slices
  else:
    near = total
  return near, total // near


def transfer(
  topology: Pod,
  sizes: Mapping[str, int],
  kind: str,
  along: tuple[str, ...],
  payload: float,
) -> float:
  """Returns the seconds of a collective of `payload` bytes.

  It is taken to be a ring over the near devices, then one over the slices or nodes with each
  device's part.
  """

  def share(n: int) -> float:
    """The part of the payload that a ring of n moves over each link."""
    if n == 1:
      return 0.0
    if kind == "collective-permute":
      return 1.0
    return (n - 1) / n

  chip = topology.chip
  near, far = split(topology, sizes, along)
  seconds_near = share(near) / chip.link
  seconds_far = share(far) / near / chip.far
  # An all-reduce goes round twice: it scatters the sums, then gathers them.
  turns = 2 if kind == "all-reduce" else 1
  return turns * payload * (seconds_near + seconds_far)
