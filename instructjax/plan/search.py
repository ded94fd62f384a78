"""Meshes and micro-batches for a topology: every one that divides, by arithmetic, the fastest that
fits first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from instructjax.errors import UserError
from instructjax.plan import aot, chips, estimate, programs
from instructjax.plan.chips import Pod

Config = Any
Build = Callable[..., list[programs.Program]]  # (config, mesh=...)
MOST = 64  # micro-batches


def with_micro(config: Config, n: int, mesh: Mapping[str, int]) -> tuple[Config, str]:
  """The configuration with n micro-batches, and the flags that say so; PPO's own rows may be too
  few for n.
  """
  changed = copy.deepcopy(config)
  if config.stage == "ppo":
    rows = config.batch // config.ppo.minibatches // (mesh["data"] * mesh["fsdp"])
    changed.ppo.micro, changed.ppo.ptx_micro = min(n, rows), n
    return changed, f"--config.ppo.micro={changed.ppo.micro} --config.ppo.ptx_micro={n}"
  changed.micro = n
  return changed, f"--config.micro={n}"


def possible(config: Config, where: Pod, shape: str, judge: str) -> Iterator[dict[str, int]]:
  """Meshes over all devices that divide the batch, the heads and the widths."""
  for mesh in chips.meshes(where):
    try:
      with aot.on(where, mesh, False):
        programs.allow(config, shape, judge, mesh)
    except UserError:
      continue
    yield mesh


def tried(config: Config, where: Pod, mesh: Mapping[str, int], build: Build) -> dict[str, Any]:
  """One mesh with as few micro-batches as fit: its seconds a step of the run, and its largest
  program.
  """
  n, peak, total, fits = 1, 0.0, 0.0, False
  with aot.on(where, mesh, False):
    made = build(config, mesh=dict(mesh))
    peak = float(max(sum(estimate.shares(program).values()) for program in made))
    room = peak <= where.chip.memory
    while room:  # the programs that train, until they fit
      peak, total, fits = _sum([one for one in made if one.updates], where, mesh)
      if fits or n >= MOST:
        break
      try:
        made = build(with_micro(config, 2 * n, mesh)[0], mesh=dict(mesh))
      except UserError:
        break
      n *= 2
    for one in [one for one in made if not one.updates and fits]:
      more, seconds, fits = _sum([one], where, mesh)
      peak, total = max(peak, more), total + seconds
  flags = with_micro(config, n, mesh)[1]
  return {
    "mesh": dict(mesh),
    "flags": flags,
    "micro": n,
    "fits": fits,
    "peak": peak,
    "seconds": total if fits else None,
  }


def _sum(
  made: list[programs.Program], where: Pod, mesh: Mapping[str, int]
) -> tuple[float, float, bool]:
  """(largest peak, seconds, whether all fit) of some programs."""
  peak, total, fits = 0.0, 0.0, True
  for program in made:
    found, cost = estimate.arithmetic(program, aot.trace(program))
    found = estimate.judge(found, where)
    seconds = estimate.seconds(
      program, cost, found["collectives"], estimate.shares(program), where, mesh
    )
    peak, total, fits = (
      max(peak, found["peak"]),
      total + max(seconds.values()),
      fits and found["fits"],
    )
  return peak, total, fits


def search(
  config: Config,
  where: Pod,
  meshes: Sequence[dict[str, int]],
  build: Build,
  say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
  """The meshes, those that fit first, by seconds and then by memory.  Raises UserError where there
  are none.
  """
  found = []
  for mesh in meshes:
    say(f"trying {chips.written(mesh)} ...")
    found.append(tried(config, where, mesh, build))
  if not found:
    raise UserError(
      f"--topology={where.name}: no mesh over {where.devices} devices divides batch, heads and "
      "widths of this "
      "configuration; choose another topology or config.batch"
    )
  return sorted(found, key=lambda one: (not one["fits"], one["seconds"] or 1e30, one["peak"]))
