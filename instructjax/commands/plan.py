"""`instructjax plan`: does a stage fit a TPU or GPU pod, and how fast could it be?"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from instructjax.commands.options import Fields, whole
from instructjax.errors import UserError
from instructjax.system import jsons


def arguments(command: argparse.ArgumentParser) -> None:
  """The options of `instructjax plan`; most are those of `planning.Options`."""
  stages = "pretrain, sft, rl_init, reward, ppo or dpo"
  command.add_argument("--config", required=True, metavar="NAME[:PRESET]", help=stages)
  topologies = "v4, v5e, v5p, v6e, tpu7x: v5p:8x8x16; GPUs by arithmetic: h100:8"
  command.add_argument("--topology", required=True, help=topologies)
  mesh = "data=1,fsdp=64,model=16; the product is the number of devices"
  command.add_argument("--mesh", default="", help=mesh)
  slices = "slices of that topology; data or else fsdp lies across them"
  command.add_argument("--slices", type=whole(1, 100_000), default=1, help=slices)
  model = "in the place of config.model.shape: 175B, Llama-3-8B, a config.json, a run, a hub id"
  command.add_argument("--model", help=model)
  networks = "PPO's reward and value networks; default 6B for its vocabulary, else the policy's"
  command.add_argument("--reward", help=networks)
  records = "rows of data, for the steps of an epoch; default the paper's"
  command.add_argument("--records", type=whole(1), help=records)
  completions = "of a prompt of the reward model or DPO; default 9"
  command.add_argument("--completions", type=whole(2, 1000), default=9, help=completions)
  search = "tries the meshes of the topology, the best first"
  command.add_argument("--search", action="store_true", help=search)
  top = "meshes that a search compiles; default 3"
  command.add_argument("--top", type=whole(1, 1000), default=3, help=top)
  lengths = "full, uniform, paper, or a file: costs at these lengths too; default full"
  command.add_argument("--lengths", default="full", metavar="SOURCE", help=lengths)
  command.add_argument("--arithmetic", action="store_true", help="ask no compiler")
  command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Prints the plan, or the meshes of a search.

  Raises UserError, after that, where nothing fits.
  """
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a plan needs no device, and takes none
  from instructjax import settings
  from instructjax.plan import page, planning

  config = settings.override(settings.load(args.config), fields)
  # Options of the same names carry what the command line says besides the settings.
  names = [field.name for field in dataclasses.fields(planning.Options)]
  options = planning.Options(**{name: getattr(args, name) for name in names})

  def say(text: str) -> None:
    if not args.json:
      print(text, file=sys.stderr, flush=True)

  if options.search:
    result = planning.find_meshes(config, options, say)
  else:
    result = planning.plan(config, options, say)
  if args.json:
    print(jsons.text_with_nulls(result))
  elif options.search:
    page.show_search(result)
  else:
    page.show(result)
  # The tables are printed first: they show by how much it does not fit.
  if options.search:
    planning.require_a_fit(result, options)
  elif not result["fits"]:
    raise UserError("; ".join(result["advice"]))
