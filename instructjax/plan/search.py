"""Meshes and micro-batches for a topology: all that divide, by arithmetic, the fastest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from instructjax.errors import UserError
from instructjax.plan import aot, chips, estimate, programs
from instructjax.plan.chips import Pod
from instructjax.plan.programs import Program, Settings, Shape
from instructjax.settings import GRPOSettings, PPOSettings, replaced
from instructjax.settings.subjects import Remat

Build = Callable[[Settings], list[Program]]
MOST_MICRO_BATCHES = 64
# What the backward pass may keep (`config.model.remat`), tried for so many of the best meshes.
# Arithmetic does not see what "offload" moves to the host.
REMAT: tuple[Remat, ...] = ("none", "dots", "attention", "blocks")
REMAT_MESHES = 3


class Need(NamedTuple):
  """What some programs need on one device."""

  peak: float  # bytes of the largest
  seconds: float  # of one call of each
  fits: bool  # whether all of them do


def with_micro(
  config: Settings,
  count: int,
  mesh: Mapping[str, int],
  remat: str = "",
) -> tuple[Settings, str]:
  """Returns the settings with `count` micro-batches, and the options that set them.

  `remat` takes the place of what the settings say; "" leaves it.
  """
  changes: dict[str, Any] = {"micro": count}
  if isinstance(config, PPOSettings):
    # A micro-batch has at least one row on each device, and the episodes of a minibatch may be too
    # few for `count`. The rows of pretraining text are more.
    episodes = config.episodes // config.ppo.minibatches
    rows = max(episodes // (mesh["data"] * mesh["fsdp"]), 1)
    changes = {"ppo.micro": min(count, rows), "ppo.ptx_micro": count}
  if isinstance(config, GRPOSettings):
    episodes = config.episodes // config.grpo.minibatches
    changes = {"grpo.micro": min(count, max(episodes // (mesh["data"] * mesh["fsdp"]), 1))}
  if remat and remat != config.model.remat:
    changes["model.remat"] = remat
  options = " ".join(f"--config.{name}={value}" for name, value in changes.items())
  return replaced(config, changes), options


def by_layers(config: Settings) -> Settings:
  """Returns the settings of PPO with weights that the sampler gathers a layer at a time."""
  return replaced(config, {"sampling.whole": False})


def possible(
  config: Settings,
  topology: Pod,
  shape: Shape,
  judge: Shape,
) -> Iterator[dict[str, int]]:
  """Yields the meshes over all devices that divide the batch, the heads and the widths.

  `shape` is that of the policy, and `judge` that of PPO's reward and value networks.
  """
  for mesh in chips.meshes(topology):
    try:
      with aot.on(topology, mesh, False):
        programs.check(config, shape, judge)
    except UserError:
      continue
    yield mesh


def try_mesh(
  config: Settings,
  topology: Pod,
  mesh: Mapping[str, int],
  build: Build,
  remat: str = "",
) -> dict[str, Any]:
  """Returns the plan of one mesh, under one choice of `remat`, with as few micro-batches as fit.

  It has the seconds of a step of the run, and the peak of the largest program in bytes.
  """
  n = 1
  whole = True
  with aot.on(topology, mesh, False):
    first, _ = with_micro(config, n, mesh, remat)
    built = build(first)
    arguments = max(sum(estimate.shares(program).values()) for program in built)
    need = Need(float(arguments), 0.0, False)
    # Where the arguments alone are too large, no number of micro-batches helps.
    may_fit = need.peak <= topology.chip.memory

    # First the programs that train: their micro-batches are doubled until they fit.
    while may_fit:
      need = _need([program for program in built if program.updates], topology, mesh)
      if need.fits or n >= MOST_MICRO_BATCHES:
        break
      doubled, _ = with_micro(config, 2 * n, mesh, remat)
      try:
        built = build(doubled)
      except UserError:
        break  # the rows do not divide any further
      n *= 2

    # Then the others, which micro-batches do not change. Where the sampler has no room for all
    # weights of a device's share of `model`, it gathers a layer at a time.
    if need.fits:
      more = _need([program for program in built if not program.updates], topology, mesh)
      if not more.fits and isinstance(config, PPOSettings) and config.sampling.whole:
        whole = False
        by_layer, _ = with_micro(by_layers(config), n, mesh, remat)
        built = build(by_layer)
        more = _need([program for program in built if not program.updates], topology, mesh)
      need = Need(
        peak=max(need.peak, more.peak),
        seconds=need.seconds + more.seconds,
        fits=more.fits,
      )
  _, flags = with_micro(config, n, mesh, remat)
  return {
    "mesh": dict(mesh),
    "flags": flags if whole else f"{flags} --config.sampling.whole=False",
    "micro": n,
    "remat": remat or config.model.remat,
    "whole": whole,
    "fits": need.fits,
    "peak": need.peak,
    "seconds": need.seconds if need.fits else None,
  }


def _need(
  built: list[Program],
  topology: Pod,
  mesh: Mapping[str, int],
) -> Need:
  """What some programs need, by arithmetic."""
  peak = 0.0
  total = 0.0
  fits = True
  for program in built:
    memory, cost = estimate.arithmetic(program, aot.trace(program))
    memory = estimate.with_limit(memory, topology)
    bounds = estimate.seconds(
      program,
      cost,
      memory["collectives"],
      estimate.shares(program),
      topology,
      mesh,
    )
    peak = max(peak, memory["peak"])
    total += max(bounds.values())
    fits = fits and memory["fits"]
  return Need(peak, total, fits)


def search(
  config: Settings,
  topology: Pod,
  meshes: Sequence[dict[str, int]],
  build: Build,
  say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
  """Returns the plans of the meshes: those that fit first, by seconds and then by memory.

  The meshes are compared under the `remat` of the settings; then the best of them are tried with
  the others of REMAT, and the best choice of each mesh stays.

  Raises:
    UserError: where there are no meshes.
  """
  plans = []
  for mesh in meshes:
    say(f"trying {chips.written(mesh)} ...")
    plans.append(try_mesh(config, topology, mesh, build))
  if not plans:
    raise UserError(
      f"--topology={topology.name}: no mesh over {topology.devices} devices divides batch, heads "
      "and widths of this configuration; choose another topology or config.batch"
    )

  def rank(plan: Mapping[str, Any]) -> tuple[bool, float, float]:
    seconds = plan["seconds"] or float("inf")
    return not plan["fits"], seconds, plan["peak"]

  plans.sort(key=rank)
  for i, plan in enumerate(plans[:REMAT_MESHES]):
    choices = [plan]
    for remat in REMAT:
      if remat != config.model.remat:
        say(f"trying {chips.written(plan['mesh'])} with config.model.remat={remat} ...")
        choices.append(try_mesh(config, topology, plan["mesh"], build, remat))
    plans[i] = min(choices, key=rank)
  return sorted(plans, key=rank)
