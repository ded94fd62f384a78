"""`instructjax baseline`: what the paper compares with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def arguments(command: argparse.ArgumentParser) -> None:
  """The actions and their options."""
  actions = command.add_subparsers(dest="action", required=True, metavar="{prefix,mixture}")
  act = lambda name, text: actions.add_parser(name, help=text, description=text, allow_abbrev=False)
  prefix = act("prefix", "the few-shot prefix whose answers score highest on validation prompts")
  prefix.add_argument("--model", required=True, help="the base model: a folder, a .gguf file, a hub id or a run")
  prefix.add_argument("--candidates", required=True, metavar="FILE,FILE", help="texts that are put before every prompt")
  prefix.add_argument("--prompts", required=True, metavar="FILE", help="validation prompts")
  prefix.add_argument("--reward", required=True, help="runs/reward or any other reward: docs/rewards.md")
  prefix.add_argument("--out", required=True, metavar="FILE", help="the best one; FILE.json has the scores of all")
  prefix.add_argument("--config", default="eval", metavar="FILE[:PRESET]", help="default eval; samples as config.preference")
  mixture = act("mixture", "public tasks as instructions, several wordings each: demonstrations for sft:flan")
  mixture.add_argument("--sources", required=True, help="tfds:squad, tfds:glue/sst2, ..., files of demonstrations")
  mixture.add_argument("--out", required=True, metavar="FILE")
  mixture.add_argument("--examples", type=int, default=0, metavar="N", help="in all, without repeats; default all, capped")
  mixture.add_argument("--cap", type=int, default=30_000, help="a task counts as at most this many; default 30000, 0 for none")
  mixture.add_argument("--folder", help="where TFDS data sets were prepared; default TFDS's own")
  mixture.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace, config: Callable[[], Any]) -> None:
  """The action; `config` opens --config."""
  if args.action == "mixture":
    from instructjax.data import public_tasks

    print(public_tasks.write(args.sources, args.out, examples=args.examples, cap=args.cap, seed=args.seed, folder=args.folder))
    return
  c = config()
  from instructjax.evals import baselines

  files = [file.strip() for file in args.candidates.split(",")]
  print(baselines.prefix(c, args.model, files, args.prompts, args.reward, Path(args.out)))
