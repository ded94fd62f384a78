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
    "--apply_chat_template",
    action="store_true",
    help="prompts become chats in the model's own template",
  )
  command.add_argument(
    "--fewshot_as_multiturn",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="with --apply_chat_template, each exemplar is two turns of the chat",
  )
  command.add_argument("--system_instruction", default="", metavar="TEXT", help="precedes a prompt")
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
      chats=args.apply_chat_template,
      multiturn=args.fewshot_as_multiturn,
      system=args.system_instruction,
    )
