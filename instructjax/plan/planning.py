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
from typing import Any, NamedTuple

from instructjax.errors import UserError
from instructjax.plan import aot, chips, estimate, programs, search, trips
from instructjax.runs import origin
from instructjax.runs.description import ModelConfig
from instructjax.settings import AnySettings, PPOSettings
from instructjax.system.download import cache_folder

PLANNED = ("pretrain", "sft", "rl_init", "reward", "ppo", "grpo", "dpo")
PAPER_REWARD = "6B"  # the shape of the paper's reward model, for policies of every size


@dataclass(frozen=True)
class Options:
  """What the command line says besides the settings of the stage."""

  topology: str
  mesh: str = ""
  slices: int = 1
  # A model in the place of the one that the settings name, as `origin.configuration` takes it.
  model: str | None = None
  # The model of PPO's reward and value networks. By default it is the paper's 6B for policies that
  # have its vocabulary, and of the policy's own shape for others.
  reward: str | None = None
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


class Models(NamedTuple):
  """The models of a stage: the policy, and PPO's reward and value networks (or the policy again).

  `title` names them in the report.
  """

  policy: ModelConfig
  reward: ModelConfig
  title: str


def models_of(settings: programs.Settings, options: Options) -> Models:
  """The models that the command line and the settings name.

  Raises UserError for a model that there is not, that cannot be read, or, in the place of PPO's
  reward model, has another vocabulary than the policy.
  """
  source = options.model or settings.model.shape
  name, policy = origin.configuration(source, "--model")
  if not isinstance(settings, PPOSettings):
    return Models(policy, policy, name)
  usual_name, usual = origin.configuration(PAPER_REWARD, "--reward")
  if usual.vocab_size != policy.vocab_size:
    usual_name, usual = name, policy
  reward_name, reward = usual_name, usual
  if options.reward:
    reward_name, reward = origin.configuration(options.reward, "--reward")
  if reward.vocab_size != policy.vocab_size:
    raise UserError(
      f"--reward={options.reward}: has {reward.vocab_size} ids, the policy {name} has "
      f"{policy.vocab_size}; a reward model reads what the policy wrote, so choose one with the "
      f"same vocabulary, such as {usual_name}"
    )
  return Models(policy, reward, f"{name}, reward and value {reward_name}")


def plan(
  config: AnySettings, options: Options, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
  """The report of a stage on a pod under one mesh, as plain data.

  Raises UserError for a stage that has no plan, for an unknown topology or model, for a mesh that
  does not divide, with one that does, and for lengths that cannot be drawn.
  """
  settings = require_planned(config)
  batches = []
  if options.lengths != "full":
    batches = trips.batches_of(settings, options.lengths, options.completions)
  pod = chips.pod(options.topology, options.slices)
  mesh = chips.mesh(options.mesh, pod)
  models = models_of(settings, options)
  compiling = aot.available() and not options.arithmetic and not pod.chip.near
  require_mesh(settings, pod, mesh, models)
  folder = cache_folder() / "plans" if compiling else None
  build = partial(
    programs.build,
    settings,
    models.policy,
    models.reward,
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
  predicted_hours = None
  if all(row["predicted"]["by"] for row in rows):
    predicted_hours = sum(row["calls"] * row["predicted"]["step"] for row in rows) / 3600
  advice = (estimate.advice(row, settings, pod) for row in rows)
  return {
    "stage": settings.stage,
    "model": models.title,
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
    "predicted_hours": predicted_hours,
    "chip_hours": hours * pod.chips,
    "advice": [line for line in advice if line],
  }


def require_mesh(
  settings: programs.Settings, pod: chips.Pod, mesh: dict[str, int], models: Models
) -> None:
  """Raises UserError for a mesh that does not divide, with the nearest one that does."""
  try:
    with aot.on(pod, mesh, False):
      programs.check(settings, models.policy, models.reward)
  except UserError as error:
    working = list(search.possible(settings, pod, models.policy, models.reward))
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

  Raises UserError for a stage that has no plan, and for an unknown topology or model.
  """
  settings = require_planned(config)
  pod = chips.pod(options.topology, options.slices)
  models = models_of(settings, options)

  def build(changed: programs.Settings) -> list[programs.Program]:
    return programs.build(
      changed,
      models.policy,
      models.reward,
      records=options.records,
      completions=options.completions,
    )

  meshes = list(search.possible(settings, pod, models.policy, models.reward))
  rows = search.search(settings, pod, meshes, build, say)
  fitting = [row for row in rows if row["fits"]]
  for row in fitting[: options.top]:
    changed, _ = search.with_micro(settings, row["micro"], row["mesh"], row["remat"])
    if not row["whole"]:
      changed = search.by_layers(changed)
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
