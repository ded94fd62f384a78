"""`instructjax lm_eval`: tasks of EleutherAI's lm-evaluation-harness on a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from instructjax.commands.options import Fields, open_settings, whole


def arguments(command: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
  command.add_argument("--model", required=True, metavar="SOURCE", help="as for `instructjax eval`")
  command.add_argument(
    "--tasks",
    required=True,
    metavar="TASK,...",
    help="`lm_eval ls tasks` lists them",
  )
  command.add_argument("--include", default="", metavar="FOLDER", help="tasks of your own")
  command.add_argument("--shots", type=whole(0, 1000), help="default the task's own")
  command.add_argument(
    "--limit", type=whole(0), default=0, help="the first documents of each task only"
  )
  command.add_argument(
    "--config",
    default="eval",
    metavar="FILE[:PRESET]",
    help="default eval: configs/eval.py",
  )
  command.add_argument("--workdir", default="runs/lm_eval", help="default runs/lm_eval")


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Runs the command.

  Args:
    args: its options.
    fields: the fields of the configuration that the command line sets.

  Raises:
    UserError: for whatever a user can fix.
  """
  # The settings are those of `instructjax eval`; the suites in them are not read.
  config = open_settings(args, fields)
  from instructjax.evals import harness  # slow to import
  from instructjax.runs import writers

  with writers.holding(args.workdir):
    harness.main(
      config,
      args.model,
      [task.strip() for task in args.tasks.split(",")],
      Path(args.workdir),
      shots=args.shots,
      limit=args.limit,
      include=args.include,
    )
