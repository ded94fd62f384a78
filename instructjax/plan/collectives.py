"""The collectives of a compiled program, read in its HLO text.

Each has a kind, the mesh axes along which it communicates, how often it runs and how many bytes it
moves, and how often it runs beside computation. Four things make this more than a search for names:

An operation in the body of a loop counts as often as the loop runs, where the condition of the loop
compares with a constant, or the loop has a name whose trips are known (`counting.count`).

The TPU compiler cuts one collective into several fusions that share a channel. They count once.

A collective runs beside computation where it is only started and waited for later. The TPU compiler
writes a fusion that starts it, and fuses steps of it with the products that run meanwhile.

What goes from slice to slice is written as pairs of a send and a receive through the host, which
name the collective that they are a part of. It lies along `slices`, and the rest of the program is
that of one slice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# Bytes of an element. Other types have their bits in their name.
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}

# `= TYPE all-gather-start(`: the type of the result, the kind, and whether it is only started.
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
# The type that is received, and the collective that the transfer between slices is a part of.
_BETWEEN_SLICES = re.compile(
  r"= \((.*), u32\[\], token\[\]\) recv\(.*_xla_megascale_transfer_type=\"(\w+)\""
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_ARRAY = re.compile(r"(pred|bf16|f16|f32|f64|[su]\d+|f8\w*)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")

# The ways in which HLO writes the groups of devices of an operation.
_GROUPS_OF_MESH = re.compile(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}")
_GROUPS_OF_IOTA = re.compile(
  r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?",
)
_GROUPS_OF_LISTS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")

# The ways in which one computation calls another.
_LOOP = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
# The scope that names a loop (`counting`), just before the loop itself: loops inside have it too.
_LOOP_NAME = re.compile(r'op_name="[^"]*trips:([\w-]+)\)*/while"')
_CALLS = re.compile(r"(?:calls|to_apply|called_computations=\{)=?%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONSTANT = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")


class Collective(NamedTuple):
  """All operations of one kind over the same axes in one call of a program."""

  kind: str
  axes: tuple[str, ...]
  count: float
  bytes: float  # the payload of one device, whole along these axes
  beside: float = 0.0  # how many of these run beside computation

  def as_row(self) -> dict[str, Any]:
    """Returns the collective as plain data for a report."""
    return {
      "kind": self.kind,
      "axes": list(self.axes),
      "count": self.count,
      "bytes": self.bytes,
      "beside": self.beside,
    }


class Operation(NamedTuple):
  """One collective operation, with how often it runs and what it moves in all of its runs."""

  kind: str
  axes: tuple[str, ...]
  times: float
  bytes: float


# Parts of an HLO text


def size(text: str, last: bool = False) -> int:
  """Returns the bytes of the arrays of an HLO type, or of its last one.

  The type of an operation under way lists its inputs, then its result. Scalars behind the result
  are the state of the operation and do not count, unless there is nothing else.
  """
  arrays = _ARRAY.findall(text)
  if not last:
    return sum(_array_bytes(dtype, dims) for dtype, dims in arrays)
  with_dims = [array for array in arrays if array[1]]
  candidates = with_dims or arrays
  return _array_bytes(*candidates[-1]) if candidates else 0


def shapes(text: str) -> list[tuple[int, ...]]:
  """Returns the shapes of the arrays of an HLO type."""
  return [tuple(_integers(dims)) for _, dims in _ARRAY.findall(text)]


def _array_bytes(dtype: str, dims: str) -> int:
  """The bytes of one array, from its HLO type such as `bf16` and `4,8`."""
  elements = math.prod(_integers(dims))
  if dtype in BYTES:
    return elements * BYTES[dtype]
  # s32, u8 and f8e4m3fn: the bits are in the name. A type of less than a byte counts as one.
  bits = int(re.sub(r"\D", "", dtype[:3]) or 8)
  return elements * (bits // 8 or 1)


def _integers(text: str) -> list[int]:
  """The numbers of `4,8`; an empty text has none."""
  return [int(number) for number in text.split(",") if number]


def group(line: str) -> list[int]:
  """Returns the first group of devices of an operation, as positions in the mesh."""
  if match := _GROUPS_OF_MESH.search(line):
    return _group_of_mesh(match[1], match[2])
  if match := _GROUPS_OF_IOTA.search(line):
    return _group_of_iota(match[1], match[2], match[3])
  if match := _GROUPS_OF_LISTS.search(line):
    return _integers(match[1])
  if match := _PAIRS.search(line):
    return [int(match[1]), int(match[2])]
  return []


def _group_of_mesh(mesh: str, along: str) -> list[int]:
  """The group of `mesh['a'=2,'b'=4] {'b'}`: all positions along b, and the first of a."""
  sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
  names = re.findall(r"'([^']+)'", along)
  ids = np.arange(math.prod(sizes.values()))
  ids = ids.reshape(tuple(sizes.values()))
  index = tuple(slice(None) if name in names else 0 for name in sizes)
  return ids[index].ravel().tolist()


def _group_of_iota(groups: str, shape: str, permutation: str | None) -> list[int]:
  """The group of `[2,4]<=[4,2]T(1,0)`: 0, 1, ... in a shape, transposed, cut into groups."""
  dims = _integers(shape)
  ids = np.arange(math.prod(dims)).reshape(dims)
  if permutation:
    ids = ids.transpose(_integers(permutation))
  return ids.reshape(_integers(groups))[0].tolist()


def axes(devices: Sequence[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
  """Returns the mesh axes along which a group of devices lies."""
  if not devices:
    # HLO leaves the groups out where all devices take part.
    return tuple(name for name, n in mesh.items() if n > 1)
  coordinates = np.unravel_index(np.array(devices), tuple(mesh.values()))
  names = []
  for name, positions in zip(mesh, coordinates, strict=True):
    if len(set(positions.tolist())) > 1:
      names.append(name)
  return tuple(names)


# How often a computation runs


def computations(text: str) -> dict[str, list[str]]:
  """Returns the lines of every computation by its name; the entry is under ""."""
  lines_by_name: dict[str, list[str]] = {}
  lines: list[str] = []
  for line in text.splitlines():
    if line.startswith(" "):
      lines.append(line)
      continue
    # The header of a computation starts at the margin and ends with a brace.
    header = _COMPUTATION.match(line)
    if header:
      name = "" if line.startswith("ENTRY") else header[1]
      lines = lines_by_name.setdefault(name, [])
  return lines_by_name


def trips(condition: Sequence[str]) -> int:
  """Returns how often a loop runs: the constant that its condition compares with.

  It is 1 where there is no constant.
  """
  constants = []
  for line in condition:
    constants.extend(int(n) for n in _CONSTANT.findall(line))
  return max(constants, default=1)


def loop_of(
  line: str,
  lines_by_name: Mapping[str, Sequence[str]],
  trips_by_loop: Mapping[str, float],
) -> tuple[str, str, float] | None:
  """Returns the body and the condition of a loop and its trips; None for other instructions."""
  loop = _LOOP.search(line)
  if not loop:
    return None
  condition, body = loop.groups()
  name = _LOOP_NAME.search(line)
  if name and name[1] in trips_by_loop:
    return body, condition, trips_by_loop[name[1]]
  return body, condition, trips(lines_by_name.get(condition, []))


def callees_of(line: str) -> list[str]:
  """Returns the computations that an instruction calls, which is neither a loop nor a choice."""
  return _CALLS.findall(line)


def branches_of(line: str) -> list[str]:
  """Returns the computations of which an instruction runs one."""
  names = []
  for branches in _BRANCHES.findall(line):
    names.extend(callee.strip().lstrip("%") for callee in branches.split(","))
  return names


def frequencies(
  lines_by_name: Mapping[str, Sequence[str]],
  trips_by_loop: Mapping[str, float],
) -> dict[str, float]:
  """Returns how often each computation runs in one call of the program.

  `trips_by_loop` has the trips of the loops with a name; those of the others are constants.
  """
  times_by_name: dict[str, float] = {}

  def visit(name: str, times: float) -> None:
    # A computation that is called from several places counts as often as from the busiest.
    if name not in lines_by_name or times_by_name.get(name, 0) >= times:
      return
    times_by_name[name] = times
    for line in lines_by_name[name]:
      loop = loop_of(line, lines_by_name, trips_by_loop)
      if loop is not None:
        body, condition, trips_of_loop = loop
        visit(condition, times * trips_of_loop)
        visit(body, times * trips_of_loop)
        continue
      for callee in (*callees_of(line), *branches_of(line)):
        visit(callee, times)

  visit("", 1.0)
  return times_by_name


# The collectives


def between_slices(
  received: str,
  transfer: str,
  slices: int,
) -> tuple[str, int]:
  """Returns (kind, payload) of a receive from other slices.

  The payload is what each device holds after its own slice's part.
  """
  kind = transfer.lower().replace("_", "-")
  payload = size(received)
  if kind == "reduce-scatter":
    payload *= slices
  if kind not in KINDS:
    kind = "collective-permute"
  return kind, payload


def read(
  text: str,
  mesh: Mapping[str, int],
  trips_by_loop: Mapping[str, float] = MappingProxyType({}),
) -> list[Collective]:
  """Returns the collectives of a module, the largest first.

  `mesh` gives the size of each axis in order, where there are several slices that of one with their
  number (`chips.in_slices`). `trips_by_loop` says how often loops with a name run.
  """
  lines_by_name = computations(text)
  times_by_name = frequencies(lines_by_name, trips_by_loop)
  operations: dict[tuple, Operation] = {}
  for name, lines in lines_by_name.items():
    if name not in times_by_name:
      continue  # nothing calls it
    for number, line in enumerate(lines):
      moved = operation(line, name, times_by_name[name], mesh)
      if moved is None:
        continue
      # Parts of one collective share its channel. The largest of them stands for it.
      key = channel(line) or (name, number)
      if key not in operations or operations[key].bytes < moved.bytes:
        operations[key] = moved
  return _sums(operations, _started(lines_by_name))


def operation(
  line: str,
  computation: str,
  times: float,
  mesh: Mapping[str, int],
) -> Operation | None:
  """Returns the collective operation of a line of a computation that runs so often, if any."""
  if match := _BETWEEN_SLICES.search(line):
    kind, payload = between_slices(match[1], match[2], mesh["slices"])
    return Operation(kind, ("slices",), times, times * payload)
  in_slice = {name: size for name, size in mesh.items() if name != "slices"}
  match = _OPERATION.search(line)
  if not match:
    return None
  result, kind, start = match.groups()
  devices = group(line)
  # An all-reduce that starts has its results alone as its type; the others list their inputs too.
  payload = size(result, last=bool(start) and kind != "all-reduce")
  if computation.startswith("all-reduce-scatter"):
    # The compiler's fusion of an all-reduce with the slice that each device keeps.
    kind = "reduce-scatter"
  elif kind == "reduce-scatter":
    # The result is one device's part of the payload.
    payload *= max(len(devices), 1)
  return Operation(kind, axes(devices, in_slice), times, times * payload)


def _started(lines_by_name: Mapping[str, Sequence[str]]) -> set[tuple[str, str]]:
  """The kinds and channels of the collectives that are started in one place and end in another.

  The TPU compiler starts some in a fusion, which it names `async-collective-start`.
  """
  lines = [(name, line) for name, lines in lines_by_name.items() for line in lines]
  starts = set()
  for _, line in lines:
    if line.lstrip().startswith("%async-collective-start"):
      starts.update(_CALLS.findall(line))
  channels = set()
  for name, line in lines:
    operation = _OPERATION.search(line)
    number = _CHANNEL.search(line)
    if operation and number and (operation[3] or name in starts):
      channels.add((operation[2], number[1]))
  return channels


def channel(line: str) -> tuple[str, str] | None:
  """Returns the kind and channel that the parts of one collective share."""
  match = _OPERATION.search(line)
  number = _CHANNEL.search(line)
  if match is None or number is None:
    return None
  return match[2], number[1]


def _sums(operations: Mapping[tuple, Operation], started: set[tuple[str, str]]) -> list[Collective]:
  """The sums of operations over kinds and axes, the largest first.

  Those whose key is among the `started` run beside computation.
  """
  sums: dict[tuple[str, tuple[str, ...]], Collective] = {}
  for key, (kind, along, times, payload) in operations.items():
    if not along:
      continue  # a group of one device moves nothing
    before = sums.get((kind, along), Collective(kind, along, 0.0, 0.0))
    sums[kind, along] = before._replace(
      count=before.count + times,
      bytes=before.bytes + payload,
      beside=before.beside + (times if key in started else 0.0),
    )
  return sorted(sums.values(), key=lambda collective: -collective.bytes)
