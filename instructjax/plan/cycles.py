"""How long a compiled program takes, by the compiler's own estimates.

The TPU compiler writes into its HLO how many cycles it expects of nearly every operation, in the
order in which they run. This file walks through that schedule:

- The core computes one operation after the other, each for its cycles.
- A collective that the core waits for takes its time on the links (`links`). One that is started
  and ended later is under way while the core computes; the core waits at its end for what is left.
- What is fetched ahead into fast memory is under way in the same way, at the memory's rate.
- A loop takes its trips times what one trip takes.

Kernels written in Pallas have no estimate. Those of attention are counted by their products, at
the share KERNEL_SHARE of the peak; others count nothing, and their number is reported.

This is a prediction and no bound: the compiler may be wrong in both directions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from instructjax.plan import collectives, links
from instructjax.plan.chips import Pod
from instructjax.plan.collectives import Operation

# `%name = TYPE opcode(`.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLS = re.compile(r"calls=%?([\w.-]+)")
_OPERANDS = re.compile(r"%([\w.-]+)")

# What a step of attention multiplies: matrices of T x T x C for each head. The kernels are those of
# `jax.experimental.pallas.ops.tpu.splash_attention`; "dkv" makes the gradient of the queries too
# where it is fused.
PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 5}
# The share of the peak at which such a kernel computes. It is an assumption, and no measurement.
KERNEL_SHARE = 0.5
CAUSAL = 0.5  # the share of the scores that is computed, where later tokens are hidden

# What is under way while other operations run, and how its end is called.
STARTS = {
  "all-gather-start": "all-gather-done",
  "all-reduce-start": "all-reduce-done",
  "collective-permute-start": "collective-permute-done",
  "copy-start": "copy-done",
  "slice-start": "slice-done",
  "recv": "recv-done",
  "async-start": "async-done",
}


class Machine(NamedTuple):
  """The rates of one device."""

  clock: float  # cycles/s
  flops: float  # FLOP/s at the peak
  bandwidth: float  # bytes/s of the memory
  # The seconds of a collective on its links: of its kind, the positions of the devices of a group
  # in the mesh (none stands for all), and its bytes. "between slices" is a kind too.
  seconds: Callable[[str, Sequence[int], float], float]


class Prediction(NamedTuple):
  """Seconds of one call on one device, by what the core does."""

  compute: float = 0.0  # operations with an estimate of the compiler
  kernels: float = 0.0  # attention, by its products
  links: float = 0.0  # waiting for collectives
  memory: float = 0.0  # waiting for what is fetched ahead
  unknown: float = 0.0  # kernels that count nothing: their number, and no seconds

  @property
  def total(self) -> float:
    return self.compute + self.kernels + self.links + self.memory

  def as_row(self) -> dict[str, float]:
    """Returns the prediction as plain data for a report."""
    return self._asdict() | {"step": self.total}

  def plus(self, other: Prediction, times: float = 1.0) -> Prediction:
    """The sum with another one that runs so many times."""
    return Prediction(*(a + times * b for a, b in zip(self, other, strict=True)))


def machine(topology: Pod, places: Sequence[links.Place]) -> Machine:
  """Returns the rates of a device of a slice; `places` are as `links.timed` takes them."""
  chip = topology.chip
  return Machine(chip.clock, chip.flops, chip.bandwidth, links.timed(topology, places))


class Program(NamedTuple):
  """A compiled module, as its schedule is walked through."""

  lines_by_name: Mapping[str, Sequence[str]]
  trips_by_loop: Mapping[str, float]
  mesh: Mapping[str, int]
  machine: Machine


def predict(
  text: str,
  mesh: Mapping[str, int],
  trips_by_loop: Mapping[str, float],
  machine: Machine,
) -> Prediction:
  """Returns the seconds of one call of a module; the rest is as for `collectives.read`."""
  program = Program(collectives.computations(text), trips_by_loop, mesh, machine)
  done: dict[str, Prediction] = {}
  return _of_computation("", program, done)


class _Clock:
  """The time within one computation, and what is under way."""

  def __init__(self) -> None:
    self.spent = Prediction()
    # When the links and the memory's engine have done all that was asked of them.
    self.free = {"links": 0.0, "memory": 0.0}
    # Maps the name of what was started to (where it runs, when it ends).
    self.ends: dict[str, tuple[str, float]] = {}

  @property
  def now(self) -> float:
    return self.spent.total

  def start(self, name: str, where: str, seconds: float) -> None:
    """Puts work behind what is under way already."""
    self.free[where] = max(self.free[where], self.now) + seconds
    self.ends[name] = (where, self.free[where])

  def wait(self, name: str) -> None:
    """Waits for the end of what was started; for what was started elsewhere there is none."""
    where, end = self.ends.pop(name, ("links", 0.0))
    self._until(where, end)

  def drain(self) -> None:
    """Waits for the links: what a trip starts for the next one cannot take longer than a trip."""
    self._until("links", self.free["links"])

  def _until(self, where: str, end: float) -> None:
    waited = max(end - self.now, 0.0)
    self.spent = self.spent._replace(**{where: getattr(self.spent, where) + waited})


def _of_computation(name: str, program: Program, done: dict[str, Prediction]) -> Prediction:
  """The seconds of one run of a computation."""
  if name in done:
    return done[name]
  clock = _Clock()
  types: dict[str, str] = {}
  for line in program.lines_by_name.get(name, ()):
    match = _INSTRUCTION.match(line)
    if match:
      types[match[1]] = match[2]
      _run(line, match[1], match[3], types, program, clock, done)
  clock.drain()
  done[name] = clock.spent
  return clock.spent


def _run(
  line: str,
  name: str,
  opcode: str,
  types: Mapping[str, str],
  program: Program,
  clock: _Clock,
  done: dict[str, Prediction],
) -> None:
  """Adds one instruction to the time."""
  machine = program.machine
  loop = collectives.loop_of(line, program.lines_by_name, program.trips_by_loop)
  if loop is not None:
    body, condition, trips = loop
    trip = _of_computation(body, program, done).plus(_of_computation(condition, program, done))
    clock.spent = clock.spent.plus(trip, trips)
    return
  branches = collectives.branches_of(line)
  if branches:
    runs = [_of_computation(branch, program, done) for branch in branches]
    clock.spent = clock.spent.plus(max(runs, key=lambda run: run.total))
    return
  cycles = _CYCLES.search(line)
  if opcode == "call" and cycles is None:
    for callee in collectives.callees_of(line):
      clock.spent = clock.spent.plus(_of_computation(callee, program, done))
    return

  if opcode in STARTS.values():
    clock.wait(_operand(line))
    return
  if opcode == "fusion":
    _fusion(line, cycles, program, clock)
    return
  operation = collectives.operation(line, "", 1.0, program.mesh)
  if operation is not None:
    seconds = _on_links(operation, line, machine)
    clock.start(name, "links", seconds)
    if opcode not in STARTS:
      clock.wait(name)
    return
  if opcode in STARTS:
    # The type of a fetch has its result, then what it reads, of the same size.
    fetched = collectives.size(types[name]) / 2
    clock.start(name, "memory", fetched / machine.bandwidth)
    return
  if "tpu_custom_call" in line:
    clock.spent = clock.spent.plus(_kernel(line, name, types, machine))
    return
  if cycles is not None:
    _compute(cycles, machine, clock)


def _fusion(line: str, cycles: re.Match | None, program: Program, clock: _Clock) -> None:
  """A fusion: it computes, or is a collective, or its start or its end."""
  callee = _CALLS.search(line)
  callee_name = callee[1] if callee else ""
  inner = program.lines_by_name.get(callee_name, ())
  starts = any('"AsyncCollectiveStart"' in inner_line for inner_line in inner)
  ends = any('"AsyncCollectiveDone"' in inner_line for inner_line in inner)
  for inner_line in inner:
    operation = collectives.operation(inner_line, callee_name, 1.0, program.mesh)
    if operation is None:
      continue
    channel = str(collectives.channel(inner_line))
    if ends:
      clock.wait(channel)
    elif starts:
      clock.start(channel, "links", _on_links(operation, inner_line, program.machine))
    elif cycles is None:
      # The core waits for what is no part of a computation.
      clock.start(channel, "links", _on_links(operation, inner_line, program.machine))
      clock.wait(channel)
    elif channel not in clock.ends:
      # A product that carries a collective of its own with it.
      clock.start(channel, "links", _on_links(operation, inner_line, program.machine))
  if cycles is not None:
    _compute(cycles, program.machine, clock)


def _compute(cycles: re.Match, machine: Machine, clock: _Clock) -> None:
  seconds = int(cycles[1]) / machine.clock
  clock.spent = clock.spent._replace(compute=clock.spent.compute + seconds)


def _on_links(operation: Operation, line: str, machine: Machine) -> float:
  if "slices" in operation.axes:
    return machine.seconds("between slices", (), operation.bytes)
  return machine.seconds(operation.kind, collectives.group(line), operation.bytes)


def _operand(line: str) -> str:
  """The name of the first operand of an instruction, "" where there is none."""
  _, _, operands = line.partition(" = ")
  names = _OPERANDS.findall(operands)
  return names[0] if names else ""


def _kernel(line: str, name: str, types: Mapping[str, str], machine: Machine) -> Prediction:
  """A kernel of attention by its products; another one is counted as unknown."""
  products = next((n for prefix, n in PRODUCTS.items() if name.startswith(prefix)), None)
  if products is None:
    return Prediction(unknown=1.0)
  operands = _OPERANDS.findall(line.partition(" = ")[2].partition("custom_call_target")[0])
  shapes = collectives.shapes(types[name])
  for operand in operands:
    shapes.extend(collectives.shapes(types.get(operand, "")))
  # The queries are the largest array of three dimensions and more: [..., heads, T, C].
  queries = max((shape for shape in shapes if len(shape) >= 3), key=math.prod, default=(0, 0, 0))
  *heads, length, width = queries
  flops = CAUSAL * products * 2 * math.prod(heads) * length**2 * width
  return Prediction(kernels=flops / (KERNEL_SHARE * machine.flops))
