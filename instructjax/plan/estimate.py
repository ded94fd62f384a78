"""From a program to its report: memory, seconds by the roofline, and what bounds them.

Memory and collectives come from arithmetic on the jaxpr, and from the compiler where it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from instructjax.plan import aot, chips, counting, published
from instructjax.plan.chips import Pod
from instructjax.plan.collectives import Collective
from instructjax.plan.programs import Program, local_bytes

# The share of a device's memory that a program may have: the runtime keeps the rest.
ROOM = 0.97
# The same where only arithmetic gives the need of a program, which is then less certain.
SURE = 0.85
# The share of the limit above which the state of training is too large, whatever the activations.
STATE_SHARE = 0.7

# The name of the sampler's loop over tokens (`rollout.sample`).
DECODE_STEP = "steps"

# What the arguments of a program are.
KINDS = ("params", "optimizer", "ema", "frozen", "other")


def shares(program: Program) -> dict[str, int]:
  """Returns the bytes of the arguments on one device, by what they are."""
  bytes_by_kind = dict.fromkeys(KINDS, 0)
  kinds = jax.tree.leaves(program.kinds)
  arguments = jax.tree.leaves(program.arguments)
  for kind, argument in zip(kinds, arguments, strict=True):
    bytes_by_kind[kind] += local_bytes(argument)
  return bytes_by_kind


def cost_of(
  program: Program,
  traced: Any,
  trips: Mapping[str, float],
) -> counting.Cost:
  """What a call of a program costs whose loops run so often."""
  kinds = jax.tree.leaves(program.kinds)
  is_weight = [kind in ("params", "frozen") for kind in kinds]
  return counting.count(
    traced.jaxpr,
    is_weight,
    trips,
    program.width,
  )


def rows_of(cost: counting.Cost) -> list[dict[str, Any]]:
  """The collectives of a cost, the largest first."""
  moved = []
  for (kind, axes), (count, payload) in cost.collectives.items():
    moved.append(Collective(kind, axes, count, payload))
  moved.sort(key=lambda collective: -collective.bytes)
  return [collective.as_row() for collective in moved]


def arithmetic(
  program: Program,
  traced: Any,
) -> tuple[dict[str, Any], counting.Cost]:
  """Returns (memory and collectives, cost) at full length, read off the jaxpr.

  No compiler is asked.
  """
  cost = cost_of(program, traced, program.part.trips)
  # The state is the first argument, and the only one that is donated.
  state_leaves = jax.tree.leaves(program.arguments[0])
  temp = counting.peak(traced.jaxpr, [program.donate] * len(state_leaves))
  arguments = sum(shares(program).values())
  result = {
    "peak": arguments + temp,
    "arguments": arguments,
    "temp": temp,
    "refused": None,
    "collectives": rows_of(cost),
  }
  return result, cost


def seconds(
  program: Program,
  cost: counting.Cost,
  moved: Sequence[Mapping[str, Any]],
  memory: Mapping[str, int],
  topology: Pod,
  mesh: Mapping[str, int],
) -> dict[str, float]:
  """Returns lower bounds of one call: compute, memory traffic and links.

  Each is as if the others were free. Memory traffic is what matrix products read and write. Each
  optimizer update also reads and writes parameters, moments and average, and reads the gradient.
  """
  chip = topology.chip
  state = memory["params"] + memory["optimizer"] + memory["ema"]
  gradient = memory["params"]
  traffic = cost.product_bytes + program.updates * (2 * state + gradient)
  links = 0.0
  for collective in moved:
    links += chips.transfer(
      topology,
      mesh,
      collective["kind"],
      tuple(collective["axes"]),
      collective["bytes"],
    )
  return {
    "compute": cost.device_flops / chip.flops,
    "memory": traffic / chip.bandwidth,
    "links": links,
  }


def with_limit(
  memory: dict[str, Any],
  topology: Pod,
  by_compiler: bool = False,
) -> dict[str, Any]:
  """Returns the memory of a program with its limit in bytes and whether it fits."""
  share = ROOM if by_compiler else SURE
  # A compiler that refuses a program may have named its own limit.
  limit = memory.get("limit") or topology.chip.memory * share
  peak = memory["peak"]
  fits = peak is not None and not memory["refused"] and peak <= limit
  return memory | {"limit": limit, "fits": fits}


def program_report(
  program: Program,
  plain: Program | None,
  topology: Pod,
  mesh: Mapping[str, int],
  folder: Path | None,
  say: Callable[[str], None] = lambda text: None,
  trips_at_lengths: Mapping[str, float] | None = None,
) -> dict[str, Any]:
  """Returns the row of one program.

  `plain` is the same program without rematerialisation, whose FLOPs are the useful ones. With a
  `folder` for cached reports the compiler is asked too. All of it is at full length; where
  `trips_at_lengths` says how often the loops run at others, `at_lengths` has what differs there.
  """
  traced = aot.trace(program)
  by_arithmetic, cost = arithmetic(program, traced)
  by_arithmetic = with_limit(by_arithmetic, topology)
  # Recomputing activations is work, but not work of the model: MFU leaves it out.
  model_flops = cost.flops
  if plain is not None:
    plain_traced = aot.trace(plain)
    model_flops = counting.count(plain_traced.jaxpr, [], plain.part.trips).flops

  compiled = None
  error_of_arithmetic = None
  if folder is not None:
    announce = partial(say, f"compiling {program.name} for {topology.name} ...")
    compiled = aot.report(
      traced, topology, mesh, folder, program.part.trips, announce, program.options
    )
    compiled = with_limit(compiled, topology, by_compiler=True)
    if compiled["peak"]:
      error_of_arithmetic = by_arithmetic["peak"] / compiled["peak"] - 1

  # A program that the compiler refuses has no collectives to read.
  memory = shares(program)
  if compiled and not compiled["refused"]:
    moved = compiled["collectives"]
    bounds = seconds(program, cost, moved, memory, *chips.in_slices(topology, mesh))
  else:
    bounds = seconds(program, cost, by_arithmetic["collectives"], memory, topology, mesh)
  # The slowest of the three bounds the step, and the others hide behind it.
  bound = max(bounds, key=lambda name: bounds[name])
  step = bounds[bound]
  verdict = compiled or by_arithmetic
  predicted = prediction(bounds, compiled, topology)
  predicted["mfu"] = share_of_peak(model_flops, topology, predicted["step"])
  at_lengths = None
  if trips_at_lengths is not None:
    at_lengths = report_at_lengths(program, traced, trips_at_lengths, topology, mesh)
  return {
    "program": program.name,
    "calls": program.calls,
    "memory": memory | {"kv_cache": program.cache_bytes},
    "arithmetic": by_arithmetic,
    "compiled": compiled,
    "apart": error_of_arithmetic,
    "fits": verdict["fits"],
    "flops": cost.flops,
    "model_flops": model_flops,
    "device_flops": cost.device_flops,
    "weight_bytes": cost.weight_bytes,
    "decode_step_bytes": cost.bytes_of_a_trip(DECODE_STEP),
    "seconds": bounds | {"step": step},
    "bound": bound,
    "mfu": share_of_peak(model_flops, topology, step),
    "predicted": predicted,
    "attention_flops": cost.attention_flops,
    "tokens_per_s": program.tokens / step if step else 0.0,
    "at_lengths": at_lengths,
  }


def share_of_peak(flops: float, topology: Pod, step: float) -> float:
  """The share of the peak of all devices at which so many FLOPs of a call are computed."""
  return flops / topology.devices / topology.chip.flops / step if step else 0.0


def prediction(
  bounds: Mapping[str, float],
  compiled: Mapping[str, Any] | None,
  topology: Pod,
) -> dict[str, Any]:
  """Returns what a call is expected to take, in seconds, and from what that follows.

  A compiled program has the compiler's cycles (`cycles`). For GPUs, which are never compiled, the
  bounds are divided by shares of the peaks (`published.GPU_SHARES`), and the largest counts. A TPU
  by arithmetic alone has no prediction.
  """
  if compiled and compiled.get("predicted"):
    return {**compiled["predicted"], "by": "cycles"}
  if topology.chip.near:
    shares_of_bounds = published.GPU_SHARES
    parts = {name: bounds[name] / shares_of_bounds[name] for name in bounds}
    return {**parts, "step": max(parts.values()), "by": "shares"}
  return {"step": 0.0, "by": ""}


def report_at_lengths(
  program: Program,
  traced: Any,
  trips: Mapping[str, float],
  topology: Pod,
  mesh: Mapping[str, int],
) -> dict[str, Any]:
  """What a program costs whose loops run so often, by arithmetic alone."""
  cost = cost_of(program, traced, trips)
  bounds = seconds(program, cost, rows_of(cost), shares(program), topology, mesh)
  return {
    "trips": dict(trips),
    "flops": cost.flops,
    "decode_step_bytes": cost.bytes_of_a_trip(DECODE_STEP),
    "seconds": bounds | {"step": max(bounds.values())},
  }


def advice(row: Mapping[str, Any], config: Any, topology: Pod) -> str:
  """Returns what to change where a program does not fit, and "" where it fits."""
  if row["fits"]:
    return ""
  name = row["program"]
  memory = row["compiled"] or row["arithmetic"]
  if memory["peak"] is None:
    return f"{name}: the compiler refuses: {memory['refused']}"

  # All in GB of one device.
  need = memory["peak"] / 1e9
  limit = memory["limit"] / 1e9
  state = sum(row["memory"][kind] for kind in KINDS) / 1e9
  cache = row["memory"]["kv_cache"] / 1e9
  shortage = f"{name} needs {need:.1f} GB of {limit:.1f}: "

  # The largest part comes first: what is proposed for a smaller one would not be enough.
  largest_state = STATE_SHARE * limit
  if state > largest_state:
    enough = chips.larger(topology, topology.devices * state / largest_state)
    return shortage + (
      f"its state alone is {state:.1f} GB a device; split it further with more fsdp or model "
      f"(a larger topology, as --topology={enough}), or train fewer blocks with config.top"
    )
  if name == "rollout":
    return shortage + (
      f"the KV cache is {cache:.1f} GB and the weights are whole along fsdp; more model, or a "
      "smaller config.batch"
    )
  # The rollout has no backward pass, so the next advice is for the other programs.
  if config.model.remat not in ("blocks", "offload"):
    return shortage + "keep less for the backward pass with --config.model.remat=blocks"
  if name == "scoring":
    return shortage + (
      "it holds the logits of the packed rows that it scores at once; fewer of them with "
      "config.ppo.rows_at_once or config.ppo.micro, or more model"
    )
  fields = "config.micro"
  if name == "update":
    fields = "config.ppo.micro and config.ppo.ptx_micro"
  return shortage + (
    f"activations are {need - state:.1f} GB; more micro-batches ({fields}), more model, or a "
    "smaller batch"
  )
