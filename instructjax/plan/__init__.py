"""`instructjax plan`: memory, collectives and time of a stage on any pod, from a machine that has
none.

The real steps of the package are traced on abstract values, counted (`counting`), and, where
libtpu is installed, compiled ahead of time for the topology (`aot`).  Nothing is ever allocated
or run: seconds are roofline bounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from instructjax.errors import UserError

Config = Any  # ml_collections.ConfigDict


@dataclass(frozen=True)
class Options:
  """What the command line says besides the configuration."""

  topology: str
  mesh: str = ""
  slices: int = 1
  policy: str | None = None  # a shape, where the configuration names none
  reward: str | None = None  # of the reward and value networks of PPO; the paper's 6B
  records: int | None = None  # rows of data, for the steps of an epoch; the paper's
  completions: int = 9  # of a prompt of the reward model
  arithmetic: bool = False  # asks no compiler
  search: bool = False
  top: int = 3  # meshes that a search compiles


def arguments(command: argparse.ArgumentParser) -> None:
  """The options; all but --config and --json are those of `Options`."""
  command.add_argument(
    "--config", required=True, metavar="FILE[:PRESET]", help="pretrain, sft, rl_init, reward or ppo"
  )
  command.add_argument(
    "--topology",
    required=True,
    help="v4, v5e, v5p, v6e, tpu7x: v5p:8x8x16; GPUs by arithmetic: h100:8",
  )
  command.add_argument(
    "--mesh", default="", help="data=1,fsdp=64,model=16; the product is the number of devices"
  )
  command.add_argument(
    "--slices", type=int, default=1, help="of that topology; data lies across them"
  )
  command.add_argument("--policy", help="a shape such as 175B, where the configuration names none")
  command.add_argument(
    "--reward", help="shape of the reward and value networks of PPO; default 6B, the paper's"
  )
  command.add_argument(
    "--records", type=int, help="rows of data, for the steps of an epoch; default the paper's"
  )
  command.add_argument(
    "--completions", type=int, default=9, help="of a prompt of the reward model; default 9"
  )
  command.add_argument(
    "--search", action="store_true", help="tries the meshes of the topology, the best first"
  )
  command.add_argument(
    "--top", type=int, default=3, help="meshes that a search compiles; default 3"
  )
  command.add_argument("--arithmetic", action="store_true", help="ask no compiler")
  command.add_argument("--json", action="store_true", help="print one JSON object")


def shapes(config: Config, preset: str, options: Options) -> tuple[str, str]:
  """The shapes of the policy and of PPO's reward and value networks (or the first again).  Raises
  UserError.
  """
  from instructjax.plan import programs

  if config.stage not in ("pretrain", "sft", "rl_init", "reward", "ppo"):
    raise UserError(
      f"stage '{config.stage}' has no plan; there are pretrain, sft, rl_init, reward and ppo"
    )
  shape = programs.shape_of(config, preset, options.policy)
  if config.stage != "ppo":
    return shape, shape
  usual = "tiny" if preset in ("", "tiny") else "6B"
  return shape, programs.shape_of(config, preset, options.reward or usual, "reward")


def plan(
  config: Config, preset: str, options: Options, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
  """The report of a stage on a pod under one mesh, as plain data.

  Raises UserError for an unknown topology or shape, and for a mesh that does not divide, with
  one that does.
  """
  from instructjax.plan import aot, chips, estimate, programs, search
  from instructjax.system.download import cache_folder

  where = chips.pod(options.topology, options.slices)
  mesh = chips.mesh(options.mesh, where)
  shape, judge = shapes(config, preset, options)
  build = partial(
    programs.build,
    config,
    shape,
    judge,
    mesh,
    records=options.records,
    completions=options.completions,
  )
  compiling = aot.available() and not options.arithmetic and not where.chip.near
  try:
    with aot.on(where, mesh, False):
      programs.allow(config, shape, judge, mesh)
  except UserError as error:
    works = list(search.possible(config, where, shape, judge))
    near = min(works, key=partial(_away, mesh), default=None)
    none = "; no mesh over this topology works: choose another topology or config.batch"
    hint = f"; a mesh that works: --mesh={chips.written(near)}" if near else none
    raise UserError(f"--mesh={chips.written(mesh)}: {error}{hint}") from error
  folder = cache_folder() / "plans" if compiling else None
  with aot.on(where, mesh, compiling):
    made = build()
    plain = [None] * len(made) if config.model.remat == "none" else build(remat="none")
    rows = [
      estimate.program_report(one, other if one.updates else None, where, mesh, folder, say)
      for one, other in zip(made, plain)
    ]
  hours = sum(row["calls"] * row["seconds"]["step"] for row in rows) / 3600
  return {
    "stage": config.stage,
    "model": shape + (f", reward and value {judge}" if config.stage == "ppo" else ""),
    "topology": where.name,
    "slices": where.slices,
    "devices": where.devices,
    "mesh": mesh,
    "compiled": compiling,
    "why_not": "" if compiling else _why(options, where),
    "programs": rows,
    "fits": all(row["fits"] for row in rows),
    "hours": hours,
    "chip_hours": hours * where.chips,
    "advice": [line for row in rows if (line := estimate.advice(row, config, where))],
  }


def _away(wanted: dict[str, int], mesh: dict[str, int]) -> float:
  import math

  return sum(abs(math.log(mesh[name] / wanted[name])) for name in mesh)


def _why(options: Options, where: Any) -> str:
  if options.arithmetic:
    return "--arithmetic"
  return (
    "no GPU compiler is asked"
    if where.chip.near
    else "libtpu is not installed: pip install 'instructjax[plan]'"
  )


def find(
  config: Config, preset: str, options: Options, say: Callable[[str], None]
) -> dict[str, Any]:
  """Searches the meshes of a topology by arithmetic and compiles the best few."""
  import dataclasses

  from instructjax.plan import chips, programs, search

  where = chips.pod(options.topology, options.slices)
  shape, judge = shapes(config, preset, options)
  build = partial(
    programs.build,
    shape=shape,
    judge=judge,
    records=options.records,
    completions=options.completions,
  )
  meshes = list(search.possible(config, where, shape, judge))
  found = search.search(config, where, meshes, build, say)
  for one in [one for one in found if one["fits"]][: options.top]:
    changed, _ = search.with_micro(config, one["micro"], one["mesh"])
    given = dataclasses.replace(options, mesh=chips.written(one["mesh"]), search=False)
    one["plan"] = plan(changed, preset, given, say)
  return {"stage": config.stage, "topology": where.name, "slices": where.slices, "meshes": found}


def main(args: argparse.Namespace, config: Config) -> None:
  """Prints the plan, or the meshes of a search.  Raises UserError, after that, where nothing fits."""
  from instructjax.plan import page

  options = Options(**{name: getattr(args, name) for name in Options.__dataclass_fields__})
  preset = args.config.partition(":")[2]
  say = (
    (lambda text: None) if args.json else (lambda text: print(text, file=sys.stderr, flush=True))
  )
  result = (find if options.search else plan)(config, preset, options, say)
  if args.json:
    print(json.dumps(result))
  elif options.search:
    page.show_search(result)
  else:
    page.show(result)
  if options.search:
    _some_fit(result, options)
  elif not result["fits"]:
    raise UserError("; ".join(result["advice"]))


def _some_fit(result: dict[str, Any], options: Options) -> None:
  from instructjax.plan import chips, estimate

  if any(one["fits"] for one in result["meshes"]):
    return
  where = chips.pod(options.topology, options.slices)
  least, limit = min(one["peak"] for one in result["meshes"]), estimate.SURE * where.chip.memory
  raise UserError(
    f"--topology={where.name}: none of {len(result['meshes'])} meshes fits; the smallest needs "
    f"{least / 1e9:.1f} GB a device "
    f"of {limit / 1e9:.1f}: try --topology={chips.larger(where, where.devices * least / limit)}"
  )
