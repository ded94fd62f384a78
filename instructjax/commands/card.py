"""`instructjax card`: a model card made from a run and its evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path

from instructjax.commands.options import add_push, check_push, push


def arguments(command: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
  command.add_argument(
    "--model",
    required=True,
    metavar="RUN",
    help="the directory of a finished run",
  )
  command.add_argument(
    "--eval",
    required=True,
    metavar="FOLDER",
    help="the --workdir of `instructjax eval`",
  )
  command.add_argument("--name", required=True, help="what the model is called there")
  command.add_argument("--out", default="model_card.md", metavar="FILE")
  add_push(command)


def run(args: argparse.Namespace) -> None:
  """Runs the command.

  Raises:
    UserError: for whatever a user can fix.
  """
  check_push(args)
  from instructjax.evals import card  # slow to import

  file = card.write(Path(args.model), Path(args.eval), args.name, Path(args.out))
  print(file)
  push(args, file)
