"""`instructjax baseline`: what the paper compares its models with.

`prefix` selects the few-shot prefix of the prompted GPT-3 by a reward. `mixture` writes public
tasks as instructions, for the models that the paper fine-tunes on FLAN and T0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from instructjax.commands.options import SEED, Fields, open_settings, whole


def arguments(command: argparse.ArgumentParser) -> None:
  """Adds the two actions of the command and their options."""
  actions = command.add_subparsers(dest="action", required=True, metavar="{prefix,mixture}")

  def add_action(name: str, text: str) -> argparse.ArgumentParser:
    return actions.add_parser(name, help=text, description=text, allow_abbrev=False)

  _prefix_arguments(
    add_action("prefix", "the few-shot prefix whose answers score highest on validation prompts")
  )
  _mixture_arguments(
    add_action(
      "mixture",
      "public tasks as instructions, several wordings each: demonstrations for sft:flan",
    )
  )


def _prefix_arguments(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--model",
    required=True,
    help="the base model: a folder, a .gguf file, a hub id or a run",
  )
  command.add_argument(
    "--candidates",
    required=True,
    metavar="FILE,FILE",
    help="texts that are put before every prompt",
  )
  command.add_argument("--prompts", required=True, metavar="FILE", help="validation prompts")
  command.add_argument(
    "--reward",
    required=True,
    help="runs/reward or any other reward: docs/rewards.md",
  )
  command.add_argument(
    "--out",
    required=True,
    metavar="FILE",
    help="the best one; FILE.json has the scores of all",
  )
  command.add_argument(
    "--config",
    default="eval",
    metavar="FILE[:PRESET]",
    help="default eval; samples as config.preference",
  )


def _mixture_arguments(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--sources",
    required=True,
    help="tfds:squad, tfds:glue/sst2, ..., files of demonstrations",
  )
  command.add_argument("--out", required=True, metavar="FILE")
  command.add_argument(
    "--examples",
    type=whole(0),
    default=0,
    metavar="N",
    help="in all, without repeats; default all, capped",
  )
  # FLAN takes at most 30,000 examples of a data set (Wei et al. 2021).
  command.add_argument(
    "--cap",
    type=whole(0),
    default=30_000,
    help="a task counts as at most this many; default 30000, 0 for none",
  )
  command.add_argument("--folder", help="where TFDS data sets were prepared; default TFDS's own")
  command.add_argument("--seed", type=SEED, default=0)


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Runs the command.

  Args:
    args: its options.
    fields: the fields of the configuration that the command line sets, for `prefix`.

  Raises:
    UserError: for whatever a user can fix.
  """
  # The mixture is made of files alone: it needs neither settings nor JAX.
  if args.action == "mixture":
    _write_mixture(args)
    return
  config = open_settings(args, fields)
  from instructjax.evals import baselines  # slow to import

  files = [file.strip() for file in args.candidates.split(",")]
  out = Path(args.out)
  print(baselines.prefix(config, args.model, files, args.prompts, args.reward, out))


def _write_mixture(args: argparse.Namespace) -> None:
  from instructjax.data.public import public_tasks

  report = public_tasks.write(
    args.sources,
    args.out,
    examples=args.examples,
    cap=args.cap,
    seed=args.seed,
    folder=args.folder,
  )
  print(report)
