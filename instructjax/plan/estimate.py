"""From a program to its report: memory, roofline seconds and what bounds them, by arithmetic and by
the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from instructjax.plan import aot, chips, counting
from instructjax.plan.chips import Pod
from instructjax.plan.collectives import Collective
from instructjax.plan.programs import Program, local_bytes

ROOM = 0.97  # of the memory is for the program: the runtime keeps the rest
SURE = 0.85  # of it, where only arithmetic says what the program needs
KINDS = ("params", "optimizer", "ema", "frozen", "other")


def shares(program: Program) -> dict[str, int]:
  """Bytes of the arguments on one device, by what they are."""
  total = dict.fromkeys(KINDS, 0)
  for kind, leaf in zip(
    jax.tree.leaves(program.kinds), jax.tree.leaves(program.arguments), strict=True
  ):
    total[kind] += local_bytes(leaf)
  return total


def arithmetic(program: Program, traced: Any) -> tuple[dict[str, Any], counting.Cost]:
  """Memory and collectives read off the jaxpr: no compiler is asked."""
  kinds = jax.tree.leaves(program.kinds)
  cost = counting.count(
    traced.jaxpr, [kind in ("params", "frozen") for kind in kinds], program.trips, program.width
  )
  donated = [program.donate] * len(jax.tree.leaves(program.arguments[0]))
  temp = counting.peak(traced.jaxpr, donated)
  arguments = sum(shares(program).values())
  moved = [Collective(kind, axes, *value) for (kind, axes), value in cost.collectives.items()]
  return {
    "peak": arguments + temp,
    "arguments": arguments,
    "temp": temp,
    "refused": None,
    "collectives": [
      c._asdict() | {"axes": list(c.axes)} for c in sorted(moved, key=lambda c: -c.bytes)
    ],
  }, cost


def seconds(
  program: Program,
  cost: counting.Cost,
  moved: Sequence[Mapping[str, Any]],
  memory: Mapping[str, int],
  where: Pod,
  mesh: Mapping[str, int],
) -> dict[str, float]:
  """Lower bounds of one call: arithmetic, memory traffic and links, each as if the others were
  free.

  Memory traffic is what matrix products read and write, and, for each optimizer update,
  parameters, moments and average read and written and the gradient read.
  """
  chip = where.chip
  state = memory["params"] + memory["optimizer"] + memory["ema"]
  traffic = cost.product_bytes + program.updates * (2 * state + memory["params"])
  link = sum(
    chips.transfer(where, mesh, one["kind"], tuple(one["axes"]), one["bytes"]) for one in moved
  )
  return {
    "compute": cost.device_flops / chip.flops,
    "memory": traffic / chip.bandwidth,
    "links": link,
  }


def judge(found: dict[str, Any], where: Pod, by_compiler: bool = False) -> dict[str, Any]:
  """Adds whether it fits."""
  limit = found.get("limit") or where.chip.memory * (ROOM if by_compiler else SURE)
  fits = found["peak"] is not None and not found["refused"] and found["peak"] <= limit
  return found | {"limit": limit, "fits": fits}


def program_report(
  program: Program,
  plain: Program | None,
  where: Pod,
  mesh: Mapping[str, int],
  folder: Path | None,
  say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
  """The row of one program.  With a folder for cached reports the compiler is asked too."""
  traced = aot.trace(program)
  by_arithmetic, cost = arithmetic(program, traced)
  useful = cost.flops
  if plain is not None:
    useful = counting.count(aot.trace(plain).jaxpr, [], plain.trips).flops
  compiled = None
  if folder is not None:
    told = partial(say, f"compiling {program.name} for {where.name} ...")
    compiled = judge(aot.report(traced, where, mesh, folder, told), where, True)
  memory = shares(program)
  by_arithmetic = judge(by_arithmetic, where)
  best = compiled if compiled and not compiled["refused"] else by_arithmetic
  bounds = seconds(program, cost, best["collectives"], memory, where, mesh)
  step = max(bounds.values())
  verdict = compiled or by_arithmetic
  apart = None
  if compiled and compiled["peak"]:
    apart = by_arithmetic["peak"] / compiled["peak"] - 1
  return {
    "program": program.name,
    "calls": program.calls,
    "memory": memory | {"kv_cache": program.cache_bytes},
    "arithmetic": by_arithmetic,
    "compiled": compiled,
    "apart": apart,
    "fits": verdict["fits"],
    "flops": cost.flops,
    "model_flops": useful,
    "device_flops": cost.device_flops,
    "weight_bytes": cost.weight_bytes,
    "seconds": bounds | {"step": step},
    "bound": max(bounds, key=lambda name: bounds[name]),
    "mfu": useful / where.devices / where.chip.flops / step if step else 0.0,
    "tokens_per_s": program.tokens / step if step else 0.0,
  }


def advice(row: Mapping[str, Any], config: Any, where: Pod) -> str:
  """What to change where a program does not fit."""
  found = row["compiled"] or row["arithmetic"]
  if row["fits"]:
    return ""
  if found["peak"] is None:
    return f"{row['program']}: the compiler refuses: {found['refused']}"
  need, have = found["peak"] / 1e9, found["limit"] / 1e9
  state = sum(row["memory"][kind] for kind in KINDS) / 1e9
  says = f"{row['program']} needs {need:.1f} GB of {have:.1f}: "
  if state > 0.7 * have:
    larger = chips.larger(where, where.devices * state / (0.7 * have))
    return says + (
      f"its state alone is {state:.1f} GB a device; split it further with more fsdp or model "
      f"(a larger topology, as --topology={larger}), or train fewer blocks with config.top"
    )
  cache = row["memory"]["kv_cache"] / 1e9
  if row["program"] == "rollout":
    return says + (
      f"the KV cache is {cache:.1f} GB and the weights are whole along fsdp; more model, or a "
      "smaller config.batch"
    )
  if config.model.remat != "blocks":
    return says + "keep less for the backward pass with --config.model.remat=blocks"
  if row["program"] == "scoring":
    return (
      says
      + "it holds the logits of all episodes at once; a smaller config.batch or a larger data x fsdp"
    )
  names = (
    "config.ppo.micro and config.ppo.ptx_micro" if row["program"] == "update" else "config.micro"
  )
  return (
    says
    + f"activations are {need - state:.1f} GB; more micro-batches ({names}), more model, or a smaller batch"
  )
