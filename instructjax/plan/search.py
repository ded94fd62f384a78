"""Meshes and micro-batches for a topology: every one that divides, by arithmetic, the fastest that fits first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from instructjax.errors import UserError
from instructjax.plan import aot, chips, counting, estimate, programs
from instructjax.plan.chips import Pod

Config = Any
Build = Callable[[Config, dict[str, int]], list[programs.Program]]


def with_micro(config: Config, n: int) -> tuple[Config, str]:
  """The configuration with n micro-batches everywhere, and the flags that say so."""
  changed = copy.deepcopy(config)
  if config.stage == "ppo":
    changed.ppo.micro = changed.ppo.ptx_micro = n
    return changed, f"--config.ppo.micro={n} --config.ppo.ptx_micro={n}"
  changed.micro = n
  return changed, f"--config.micro={n}"


def possible(config: Config, where: Pod, build: Build) -> Iterator[dict[str, int]]:
  """Meshes over all devices that divide the batch, the heads and the widths."""
  for mesh in chips.meshes(where):
    try:
      programs.check(config, mesh, config.stage)
      with aot.on(where, mesh, False):
        build(config, mesh)
    except (UserError, ValueError):
      continue
    yield mesh


def tried(config: Config, where: Pod, mesh: Mapping[str, int], build: Build) -> dict[str, Any]:
  """One mesh with as few micro-batches as fit: its seconds a step of the run, and its largest program."""
  best: dict[str, Any] = {}
  n = 1
  while True:
    changed, flags = with_micro(config, n)
    try:
      with aot.on(where, mesh, False):
        made = build(changed, dict(mesh))
        total, worst, fits = 0.0, 0.0, True
        for program in sorted(made, key=lambda p: p.name == "rollout"):  # the longest to trace comes last
          state = sum(estimate.shares(program).values())
          if state > where.chip.memory:
            return {"mesh": dict(mesh), "flags": flags, "micro": n, "fits": False, "peak": state, "seconds": None}
          found, cost = estimate.arithmetic(program, aot.trace(program))
          found = estimate.judge(found, where)
          total += max(_seconds(program, cost, found, where, mesh).values())
          worst, fits = max(worst, found["peak"]), fits and found["fits"]
          if not fits:
            break
    except UserError:
      return best
    best = {"mesh": dict(mesh), "flags": flags, "micro": n, "fits": fits, "peak": worst, "seconds": total}
    if fits or n >= 64:
      return best
    n *= 2


def _seconds(program: programs.Program, cost: counting.Cost, found: dict[str, Any], where: Pod, mesh: Mapping[str, int]):
  return estimate.seconds(program, cost, found["collectives"], estimate.shares(program), where, mesh)


def search(
  config: Config, where: Pod, build: Build, say: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
  """Every possible mesh, those that fit first, by seconds and then by memory.

  Raises UserError where no mesh divides the configuration at all.
  """
  found = []
  for mesh in possible(config, where, build):
    say(f"trying {chips.written(mesh)} ...")
    found.append(tried(config, where, mesh, build))
  found = [one for one in found if one]
  if not found:
    raise UserError(
      f"--topology={where.name}: no mesh over {where.devices} devices divides batch, heads and widths of this "
      "configuration; choose another topology or config.batch"
    )
  return sorted(found, key=lambda one: (not one["fits"], one["seconds"] or 1e30, one["peak"]))
