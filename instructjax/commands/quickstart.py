"""`instructjax quickstart`: the whole method on a real model and human ratings, in minutes."""

from __future__ import annotations

import argparse

from instructjax.commands.options import SEED, Fields, add_writer, open_settings


def arguments(command: argparse.ArgumentParser) -> None:
  """The options of `instructjax quickstart`."""
  command.add_argument(
    "--fast", action="store_true", help="smaller: minutes, and too little to learn much"
  )
  command.add_argument("--seed", type=SEED)
  command.add_argument("--workdir", help="default runs/quickstart, or runs/quickstart-fast")
  command.add_argument(
    "--model", help="another model than SmolLM2-135M: a folder, a .gguf file or a hub id"
  )
  command.add_argument("--config", metavar="NAME[:PRESET]", help="default quickstart:full")
  add_writer(command)


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Runs the quickstart."""
  preset = "fast" if args.fast else "full"
  args.config = args.config or f"quickstart:{preset}"
  # --seed and --model are short for the fields of these names.
  options = {"seed": args.seed, "model": args.model}
  named = [(name, str(value)) for name, value in options.items() if value is not None]
  config = open_settings(args, [*named, *fields])
  from instructjax import quickstart
  from instructjax.runs import writers

  workdir = args.workdir or f"runs/quickstart{'-fast' if args.fast else ''}"
  with writers.holding(workdir):
    quickstart.main(config, workdir, tuple(args.writer))
