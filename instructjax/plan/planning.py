"""`instructjax plan`: memory, collectives and time of a stage on a pod that is not there.

The stage is the one that a run wires. It is traced on shapes, counted (`counting`), and, where
libtpu is installed, compiled ahead of time for the topology (`aot`). Nothing is ever allocated
or run: seconds are roofline bounds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from instructjax.errors import UserError
from instructjax.plan import aot, chips, estimate, programs, search, trips
from instructjax.settings import AnySettings, PPOSettings
from instructjax.system.download import cache_folder

PLANNED = ("pretrain", "sft", "rl_init", "reward", "ppo", "grpo", "dpo")


@dataclass(frozen=True)
class Options:
  """What the command line says besides the settings of the stage."""

  topology: str
  mesh: str = ""
  slices: int = 1
  policy: str | None = None  # a shape in the place of the one that the settings name
  reward: str | None = (
    None  # the shape of PPO's reward and value networks; by default the paper's 6B
  )
  records: int | None = None  # rows of data, for the steps of an epoch; by default the paper's
  completions: int = 9  # of a prompt of the reward model
  arithmetic: bool = False  # asks no compiler
  search: bool = False
  top: int = 3  # meshes that a search compiles
  lengths: str = "full"  # the source of the lengths that are planned beside the full ones


def require_planned(settings: AnySettings) -> programs.Settings:
  """Returns the settings of a stage that can be planned.  Raises UserError for another one's."""
  if not isinstance(settings, programs.Settings):
    raise UserError(f"stage '{settings.stage}' has no plan; there are {', '.join(PLANNED)}")
  return settings


def shapes(settings: programs.Settings, options: Options) -> tuple[str, str]:
  """The shapes of the policy and of PPO's reward and value networks (or the first again).

  Raises UserError for an unknown shape.
  """
  shape = programs.named_shape(options.policy or settings.model.shape, "--policy")
  if not isinstance(settings, PPOSettings):
    return shape, shape
  usual = "tiny" if shape == "tiny" else "6B"
  return shape, programs.named_shape(options.reward or usual, "--reward")


def plan(
  config: AnySettings, options: Options, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
  """The report of a stage on a pod under one mesh, as plain data.

  Raises UserError for a stage that has no plan, for an unknown topology or shape, for a mesh that
  does not divide, with one that does, and for lengths that cannot be drawn.
  """
  settings = require_planned(config)
  batches = []
  if options.lengths != "full":
    batches = trips.batches_of(settings, options.lengths, options.completions)
  pod = chips.pod(options.topology, options.slices)
  mesh = chips.mesh(options.mesh, pod)
  shape, reward_shape = shapes(settings, options)
  compiling = aot.available() and not options.arithmetic and not pod.chip.near
  require_mesh(settings, pod, mesh, shape, reward_shape)
  folder = cache_folder() / "plans" if compiling else None
  build = partial(
    programs.build,
    settings,
    shape,
    reward_shape,
    records=options.records,
    completions=options.completions,
  )
  with aot.on(pod, mesh, compiling):
    built = build()
    # What is computed again in the backward pass is no useful work: it is counted without that.
    plain = built if settings.model.remat == "none" else build(remat="none")
    rows = []
    for program, without_remat in zip(built, plain, strict=True):
      useful = without_remat if program.updates and plain is not built else None
      at_lengths = trips.expected(settings, program.part, batches) if batches else None
      row = estimate.program_report(program, useful, pod, mesh, folder, say, at_lengths)
      rows.append(row)
  hours = sum(row["calls"] * row["seconds"]["step"] for row in rows) / 3600
  advice = (estimate.advice(row, settings, pod) for row in rows)
  networks = f", reward and value {reward_shape}" if isinstance(settings, PPOSettings) else ""
  return {
    "stage": settings.stage,
    "model": shape + networks,
    "topology": pod.name,
    "slices": pod.slices,
    "devices": pod.devices,
    "mesh": mesh,
    "lengths": options.lengths,
    "compiled": compiling,
    "why_not": "" if compiling else why_not_compiled(options, pod),
    "programs": rows,
    "fits": all(row["fits"] for row in rows),
    "hours": hours,
    "chip_hours": hours * pod.chips,
    "advice": [line for line in advice if line],
  }


def require_mesh(
  settings: programs.Settings, pod: chips.Pod, mesh: dict[str, int], shape: str, reward_shape: str
) -> None:
  """Raises UserError for a mesh that does not divide, with the nearest one that does."""
  try:
    with aot.on(pod, mesh, False):
      programs.check(settings, shape, reward_shape)
  except UserError as error:
    working = list(search.possible(settings, pod, shape, reward_shape))
    nearest = min(working, key=partial(distance, mesh), default=None)
    hint = "; no mesh over this topology works: choose another topology or config.batch"
    if nearest is not None:
      hint = f"; a mesh that works: --mesh={chips.written(nearest)}"
    raise UserError(f"--mesh={chips.written(mesh)}: {error}{hint}") from error


def distance(wanted: dict[str, int], mesh: dict[str, int]) -> float:
  """How far a mesh is from the wanted one, in factors of its axes."""
  return sum(abs(math.log(mesh[name] / wanted[name])) for name in mesh)


def why_not_compiled(options: Options, pod: chips.Pod) -> str:
  """The reason for a plan by arithmetic alone."""
  if options.arithmetic:
    return "--arithmetic"
  if pod.chip.near:
    return "no GPU compiler is asked"
  return "libtpu is not installed: pip install 'instructjax[plan]'"


def find_meshes(
  config: AnySettings, options: Options, say: Callable[[str], None]
) -> dict[str, Any]:
  """The meshes of a topology by arithmetic, of which the best few are compiled too.

  Raises UserError for a stage that has no plan, and for an unknown topology or shape.
  """
  settings = require_planned(config)
  pod = chips.pod(options.topology, options.slices)
  shape, reward_shape = shapes(settings, options)

  def build(changed: programs.Settings) -> list[programs.Program]:
    return programs.build(
      changed,
      shape,
      reward_shape,
      records=options.records,
      completions=options.completions,
    )

  meshes = list(search.possible(settings, pod, shape, reward_shape))
  rows = search.search(settings, pod, meshes, build, say)
  fitting = [row for row in rows if row["fits"]]
  for row in fitting[: options.top]:
    changed, _ = search.with_micro(settings, row["micro"], row["mesh"])
    with_mesh = dataclasses.replace(options, mesh=chips.written(row["mesh"]), search=False)
    row["plan"] = plan(changed, with_mesh, say)
  return {
    "stage": settings.stage,
    "topology": pod.name,
    "slices": pod.slices,
    "meshes": rows,
  }


def require_a_fit(result: dict[str, Any], options: Options) -> None:
  """Raises UserError where no mesh of a search fits, with a topology that may."""
  if any(row["fits"] for row in result["meshes"]):
    return
  pod = chips.pod(options.topology, options.slices)
  least = min(row["peak"] for row in result["meshes"])
  limit = estimate.SURE * pod.chip.memory
  larger = chips.larger(pod, pod.devices * least / limit)
  raise UserError(
    f"--topology={pod.name}: none of {len(result['meshes'])} meshes fits; the smallest needs "
    f"{least / 1e9:.1f} GB a device of {limit / 1e9:.1f}: try --topology={larger}"
  )
