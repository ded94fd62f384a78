"""The collectives of a compiled program, read in its HLO text: kind, mesh axes, how often and how
many bytes.

An operation in the body of a loop counts as often as the loop runs, where its condition compares
with a constant.  The TPU compiler cuts one collective into several fusions that share a channel:
they are counted once.  What goes from slice to slice it writes as pairs of a send and a receive
through the host, which name the collective that they are a part of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_BETWEEN_SLICES = re.compile(
  r"= \((.*), u32\[\], token\[\]\) recv\(.*_xla_megascale_transfer_type=\"(\w+)\""
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_ARRAY = re.compile(r"(pred|bf16|f16|f32|f64|[su]\d+|f8\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
  """All operations of one kind over the same axes in one call: `bytes` is the payload, whole along
  these axes.
  """

  kind: str
  axes: tuple[str, ...]
  count: float
  bytes: float


def size(text: str, last: bool = False) -> int:
  """Bytes of the arrays of a type, or of its last one: the scalars behind it are the state of what
  is under way.
  """
  found = _ARRAY.findall(text)
  arrays = [
    math.prod(int(n) for n in dims.split(",") if n)
    * BYTES.get(dtype, int(re.sub(r"\D", "", dtype[:3]) or 8) // 8 or 1)
    for dtype, dims in ([one for one in found if one[1]] or found if last else found)
  ]
  return (arrays[-1] if last else sum(arrays)) if arrays else 0


def group(line: str) -> list[int]:
  """The first group of devices of an operation, as positions in the mesh."""
  if found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
    shape = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
    names = re.findall(r"'([^']+)'", found[2])
    ids = np.arange(math.prod(shape.values())).reshape(tuple(shape.values()))
    return ids[tuple(slice(None) if name in names else 0 for name in shape)].ravel().tolist()
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
    out, shape, turn = (
      [int(n) for n in part.split(",")] if part else None for part in found.groups()
    )
    ids = np.arange(math.prod(shape or [])).reshape(shape or [])
    return (ids.transpose(turn) if turn else ids).reshape(out or [])[0].tolist()
  if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
    return [int(n) for n in found[1].split(",") if n]
  if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
    return [int(found[1]), int(found[2])]
  return []


def axes(devices: Sequence[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
  """The mesh axes along which a group of devices lies."""
  if not devices:
    return tuple(name for name, n in mesh.items() if n > 1)
  at = np.array(np.unravel_index(np.array(devices), tuple(mesh.values())))
  return tuple(name for name, row in zip(mesh, at) if len(set(row.tolist())) > 1)


def computations(text: str) -> dict[str, list[str]]:
  """The lines of every computation by its name; the entry is under ""."""
  found: dict[str, list[str]] = {}
  lines: list[str] = []
  for line in text.splitlines():
    if line.endswith("{") and not line.startswith(" ") and (match := _COMPUTATION.match(line)):
      lines = found.setdefault("" if line.startswith("ENTRY") else match[1], [])
    elif line.startswith(" "):
      lines.append(line)
  return found


def trips(condition: Sequence[str]) -> int:
  """How often a loop runs: the constant that its condition compares with; 1 where there is none."""
  found = [
    int(n) for line in condition for n in re.findall(r"= [su]\d+\[\]\S* constant\((\d+)\)", line)
  ]
  return max(found, default=1)


def frequencies(found: Mapping[str, Sequence[str]]) -> dict[str, float]:
  """How often each computation runs in one call of the program."""
  often: dict[str, float] = {}

  def visit(name: str, times: float) -> None:
    if name not in found or often.get(name, 0) >= times:
      return
    often[name] = times
    for line in found[name]:
      loop = re.search(r"condition=%?([\w.-]+), body=%?([\w.-]+)", line)
      if loop:
        n = trips(found.get(loop[1], []))
        visit(loop[1], times * n)
        visit(loop[2], times * n)
        continue
      for called in re.findall(r"(?:calls|to_apply|called_computations=\{)=?%?([\w.-]+)", line):
        visit(called, times)
      for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
        for called in branches.split(","):
          visit(called.strip().lstrip("%"), times)

  visit("", 1.0)
  return often


def between_slices(received: str, transfer: str, mesh: Mapping[str, int]) -> tuple[str, int]:
  """(kind, payload) of a receive from other slices, which lie along data: what each device holds
  after its own slice's part.
  """
  kind = transfer.lower().replace("_", "-")
  payload = size(received) * (mesh["data"] if kind == "reduce-scatter" else 1)
  return (kind if kind in KINDS else "collective-permute"), payload


def read(text: str, mesh: Mapping[str, int]) -> list[Collective]:
  """The collectives of a module, the largest first.  `mesh` gives the size of each axis in order."""
  found = computations(text)
  often = frequencies(found)
  seen: dict[tuple, tuple[str, tuple[str, ...], float, float]] = {}
  for name, lines in found.items():
    for i, line in enumerate(lines):
      if name not in often:
        continue
      if match := _BETWEEN_SLICES.search(line):
        kind, payload = between_slices(match[1], match[2], mesh)
        seen[name, i] = (kind, ("data",), often[name], often[name] * payload)
        continue
      match = _OPERATION.search(line)
      if not match:
        continue
      kind, where = match[2], group(line)
      payload = size(match[1], last=bool(match[3]) and kind != "all-reduce")
      if name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
      elif kind == "reduce-scatter":
        payload *= max(len(where), 1)
      channel = re.search(r"channel_id=(\d+)", line)
      key = (match[2], channel[1]) if channel else (name, i)
      entry = (kind, axes(where, mesh), often[name], often[name] * payload)
      if key not in seen or seen[key][3] < entry[3]:
        seen[key] = entry
  total: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = {}
  for kind, along, times, payload in seen.values():
    count, bytes_ = total.get((kind, along), (0.0, 0.0))
    total[kind, along] = count + times, bytes_ + payload
  made = [Collective(kind, along, *value) for (kind, along), value in total.items() if along]
  return sorted(made, key=lambda c: -c.bytes)
