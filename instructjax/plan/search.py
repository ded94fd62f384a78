"""Meshes and micro-batches for a topology: every one that divides, by arithmetic, the fastest that
fits first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from instructjax.errors import UserError
from instructjax.plan import aot, chips, estimate, programs
from instructjax.plan.chips import Pod
from instructjax.settings import PPOSettings, replaced

Build = Callable[..., list[programs.Program]]  # (config, mesh=...)
MOST = 64  # micro-batches


def with_micro(
  config: programs.Settings, count: int, mesh: Mapping[str, int]
) -> tuple[programs.Settings, str]:
  """(the settings with so many micro-batches, the options that say so).

  PPO's own rows may be too few for `count`.
  """
  changes = {"micro": count}
  if isinstance(config, PPOSettings):
    episodes = config.batch // config.ppo.minibatches
    rows = max(episodes // (mesh["data"] * mesh["fsdp"]), 1)
    changes = {"ppo.micro": min(count, rows), "ppo.ptx_micro": count}
  options = " ".join(f"--config.{name}={value}" for name, value in changes.items())
  return replaced(config, changes), options


def possible(
  config: programs.Settings, where: Pod, shape: str, judge: str
) -> Iterator[dict[str, int]]:
  """Meshes over all devices that divide the batch, the heads and the widths."""
  for mesh in chips.meshes(where):
    try:
      with aot.on(where, mesh, False):
        programs.check(config, shape, judge)
    except UserError:
      continue
    yield mesh


def tried(
  config: programs.Settings, where: Pod, mesh: Mapping[str, int], build: Build
) -> dict[str, Any]:
  """One mesh with as few micro-batches as fit: its seconds a step of the run, and its largest
  program.
  """
  n, peak, total, fits = 1, 0.0, 0.0, False
  with aot.on(where, mesh, False):
    made = build(config)
    peak = float(max(sum(estimate.shares(program).values()) for program in made))
    room = peak <= where.chip.memory
    while room:  # the programs that train, until they fit
      peak, total, fits = _sum([one for one in made if one.updates], where, mesh)
      if fits or n >= MOST:
        break
      try:
        made = build(with_micro(config, 2 * n, mesh)[0])
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
  config: programs.Settings,
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
