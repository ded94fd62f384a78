"""`instructjax rm_cv`: reward models on the labels of some labelers, measured on the others'."""

from __future__ import annotations

import argparse
from pathlib import Path

from instructjax.commands.options import Fields, add_distributed, add_writer, open_settings, whole
from instructjax.errors import UserError

MOST = 1000  # groups, or seeds


def arguments(command: argparse.ArgumentParser) -> None:
  """The options of `instructjax rm_cv`."""
  command.add_argument(
    "--config",
    default="reward",
    metavar="NAME[:PRESET]",
    help="default reward; a preset (reward:6b) or a file with get_config()",
  )
  command.add_argument("--workdir", default="runs/rm_cv", help="default runs/rm_cv")
  command.add_argument("--model", help="the model that every reward model starts from")
  command.add_argument(
    "--groups",
    type=whole(2, MOST),
    default=5,
    help="groups of labelers (default 5, as in the paper)",
  )
  command.add_argument(
    "--seeds",
    type=whole(1, MOST),
    default=3,
    help="reward models a group (default 3, as in the paper)",
  )
  add_writer(command)
  add_distributed(command)


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Runs the cross-validation.

  Raises UserError for another stage's configuration.
  """
  from instructjax import settings

  if settings.load(args.config).stage != "reward":
    raise UserError(f"--config={args.config}: rm_cv trains reward models; give one of reward")
  model = [("model.source", args.model)] if args.model else []
  config = open_settings(args, [*model, *fields])
  from instructjax.stages import cross_validation

  cross_validation.run(config, Path(args.workdir), args.groups, args.seeds, tuple(args.writer))
