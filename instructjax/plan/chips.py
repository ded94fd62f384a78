"""Chips and topologies: what one device has (public figures of the vendors), and which pods there
are.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from instructjax.errors import UserError


class Chip(NamedTuple):
  """Public figures of one device: bf16 FLOP/s (dense), bytes of memory, memory bytes/s, bytes/s to
  its neighbours.

  `link` is the sum over all links in one direction, half of what vendors print as bidirectional,
  so what is predicted from it is a bound.  `far` is between slices (or between nodes of `near`
  GPUs).  A tpu7x chip is two devices, which share its memory, links and network; a v4 or v5p
  chip is one.
  """

  flops: float
  memory: float
  bandwidth: float
  link: float
  far: float
  dims: int  # of a topology; 0 for GPUs
  near: int = 0
  devices: int = 1  # a chip
  largest: int = 0  # chips of a slice; 0: no end


GiB = 1024**3
# TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, tables of key specifications, read in
# November 2026. Links: bidirectional 400 (v5e), 1200 (v5p), 800 (v6e) and 1200 GB/s (tpu7x) a chip;
# v4: 6 links of 50 GB/s (Jouppi et al. 2023, arXiv 2304.01433), which the bisection of 24 TB/s
# printed there agrees with.  Network: 50 (v5p), 100 (v6e, tpu7x) Gb/s a chip, and 2 x 100 Gb/s for
# the 8 chips of a v5e host; v4's is not printed, and taken to be v5p's. GPUs: NVIDIA's data sheets
# of H100 SXM and H200 SXM: 1,979 TFLOP/s with sparsity, half of it dense; NVLink 900 GB/s in both
# directions; 400 Gb/s a GPU between nodes, as in a DGX.
CHIPS: dict[str, Chip] = {
  "v4": Chip(275e12, 32 * GiB, 1200e9, 300e9, 6.25e9, 3, largest=4096),
  "v5e": Chip(197e12, 16 * GiB, 819e9, 200e9, 3.125e9, 2, largest=256),
  "v5p": Chip(459e12, 95 * GiB, 2765e9, 600e9, 6.25e9, 3, largest=6144),
  "v6e": Chip(918e12, 32 * GiB, 1638e9, 400e9, 12.5e9, 2, largest=256),
  "tpu7x": Chip(1153.5e12, 96 * GiB, 3690e9, 300e9, 6.25e9, 3, devices=2, largest=9216),
  "h100": Chip(989.5e12, 80e9, 3350e9, 450e9, 50e9, 0, near=8),
  "h200": Chip(989.5e12, 141e9, 4800e9, 450e9, 50e9, 0, near=8),
}


# Shapes of a slice, whichever side is named first.  v5e and v6e: the tables of the same pages.  v4,
# v5p and tpu7x: cubes of 4 x 4 x 4 chips joined in any way (v5p's table says that it has most, not
# all, of these), or a part of one cube, whose sides are 1, 2 or 4; of those the tables have fewer,
# and not the same ones for each kind, so all pass here.
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
PARTS = (1, 2, 4)
CUBE = 4


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
    return f"{self.kind}:{'x'.join(map(str, self.shape))}"


def pod(text: str, slices: int = 1) -> Pod:
  """`v5p:8x8x16` or `h100:8`.  Raises UserError for an unknown chip or a shape that it does not
  come in, with the nearest.
  """
  kind, _, rest = text.lower().partition(":")
  if kind not in CHIPS:
    near = difflib.get_close_matches(kind, CHIPS, 1, 0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--topology={text}: unknown chip '{kind}'; {hint}known are {', '.join(CHIPS)}")
  dims = CHIPS[kind].dims or 1
  example = {1: "8", 2: "4x4", 3: "4x4x8"}[dims]
  if (
    not re.fullmatch(r"\d+(x\d+)*", rest) or len(rest.split("x")) != dims or "0" in rest.split("x")
  ):
    raise UserError(
      f"--topology={text}: {kind} has {dims} dimension{'s' * (dims > 1)}; write {kind}:{example}"
    )
  if slices < 1:
    raise UserError(f"--slices={slices}: choose 1 or more")
  found = Pod(kind, tuple(int(n) for n in rest.split("x")), slices)
  most, chips = found.chip.largest, found.chips // slices
  if most and chips > most:
    raise UserError(
      f"--topology={text}: {chips} chips, the largest slice of {kind} has {most}; take several, "
      "--slices=N"
    )
  if not exists(found):
    near = " or ".join(one.name for one in neighbours(found))
    raise UserError(
      f"--topology={text}: {kind} has no slice of {chips} chips in this shape; the nearest: {near}"
    )
  return found


def exists(where: Pod) -> bool:
  """Whether slices of this shape can be had; of GPUs any number."""
  sides = where.shape
  if where.chip.dims == 3:
    return all(n in PARTS for n in sides) or all(n % CUBE == 0 for n in sides)
  return where.chip.dims == 0 or tuple(sorted(sides)) in FLAT


def neighbours(where: Pod, count: int = 2) -> list[Pod]:
  """The slices that can be had whose sides differ least, by factors."""
  sides = sorted(where.shape)
  shapes = set(FLAT)
  if where.chip.dims == 3:
    cubes = [range(max(n // CUBE - 1, 1) * CUBE, (n // CUBE + 2) * CUBE, CUBE) for n in sides]
    shapes = {*itertools.product(PARTS, repeat=3), *itertools.product(*cubes)}
  away = lambda shape: (sum(abs(math.log(a / b)) for a, b in zip(shape, sides, strict=True)), shape)
  found = (
    where._replace(shape=shape, slices=1)
    for shape in sorted({tuple(sorted(shape)) for shape in shapes}, key=away)
  )
  return list(itertools.islice(filter(exists, found), count))


def larger(where: Pod, devices: float) -> str:
  """`v5e:16x16`: a topology of at least so many devices, the shortest dimension doubled again and
  again, and beyond the largest slice the slices: `v5e:16x16 --slices=2`.
  """
  shape, slices, chip = list(where.shape), where.slices, where.chip
  while math.prod(shape) * slices * chip.devices < devices:
    if chip.largest and 2 * math.prod(shape) > chip.largest:
      slices *= 2
    else:
      shape[shape.index(min(shape))] *= 2
  return where._replace(shape=tuple(sorted(shape))).name + (
    f" --slices={slices}" if slices > where.slices else ""
  )


def mesh(text: str, where: Pod) -> dict[str, int]:
  """`data=1,fsdp=256,model=4`, whose product is the number of devices; what is left out is 1, all
  of it empty is fsdp.

  Raises UserError for another product, with the nearest that works.
  """
  sizes = {"data": where.slices, "fsdp": where.devices // where.slices, "model": 1}
  if text:
    sizes = {"data": 1, "fsdp": 1, "model": 1}
    for part in text.split(","):
      name, sign, value = part.partition("=")
      if name not in sizes or not sign or not value.isdigit() or int(value) < 1:
        raise UserError(f"--mesh={text}: '{part}' is none of data=N, fsdp=N, model=N")
      sizes[name] = int(value)
  product = math.prod(sizes.values())
  if product != where.devices:
    near = nearest(sizes, where)
    too = "too small: " if product > where.devices else ""
    raise UserError(
      f"--mesh={text}: {product} devices, "
      f"{where.name}{f' x {where.slices} slices' * (where.slices > 1)} has "
      f"{where.devices} ({too}nearest that works: --mesh={near})"
    )
  if sizes["data"] % where.slices:
    raise UserError(
      f"--mesh: data={sizes['data']} does not divide over --slices={where.slices}; choose a "
      "multiple of it"
    )
  return sizes


def nearest(sizes: Mapping[str, int], where: Pod) -> str:
  """The mesh over all devices whose sizes differ least, by factors."""
  away = lambda m: sum(abs(math.log(m[name] / sizes[name])) for name in sizes)
  return written(min(meshes(where), key=away))


def meshes(where: Pod) -> list[dict[str, int]]:
  """Every mesh over all devices of a pod; slices lie along data."""
  n = where.devices
  divisors = [i for i in range(1, n + 1) if n % i == 0]
  return [
    {"data": data, "fsdp": fsdp, "model": n // data // fsdp}
    for data in divisors
    if data % where.slices == 0
    for fsdp in divisors
    if n % (data * fsdp) == 0
  ]


def written(sizes: Mapping[str, int]) -> str:
  return ",".join(f"{name}={n}" for name, n in sizes.items())


def split(where: Pod, sizes: Mapping[str, int], along: tuple[str, ...]) -> tuple[int, int]:
  """(devices of a collective within one slice or node, how many of those it joins)."""
  total = math.prod(sizes[name] for name in along)
  if where.chip.near:
    ids = np.arange(where.devices).reshape(tuple(sizes.values()))
    group = ids[tuple(slice(None) if name in along else 0 for name in sizes)].ravel()
    near = int((group < where.chip.near).sum())
  else:
    near = total // (where.slices if "data" in along else 1)
  return near, total // near


def transfer(
  where: Pod, sizes: Mapping[str, int], kind: str, along: tuple[str, ...], payload: float
) -> float:
  """Seconds of a collective: a ring over the near devices, then one over the slices or nodes with
  each device's part.

  A ring of n moves (n - 1) / n of what it holds, an all-reduce twice that, a permutation all of it.
  """
  near, far = split(where, sizes, along)
  share = lambda n: 0.0 if n == 1 else 1.0 if kind == "collective-permute" else (n - 1) / n
  turns = 2 if kind == "all-reduce" else 1
  return turns * payload * (share(near) / where.chip.link + share(far) / near / where.chip.far)
