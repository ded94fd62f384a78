"""The commands that run one stage: those that train, bestofn and sample."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from instructjax.commands.options import (
  Fields,
  add_distributed,
  add_writer,
  open_settings,
  whole,
)
from instructjax.errors import UserError, naming
from instructjax.runs import TRAINING
from instructjax.system import places

STAGES = {
  "pretrain": "train on plain text",
  "sft": "fine-tune on demonstrations",
  "rl_init": "the model that PPO starts from: demonstrations and pretraining text",
  "reward": "train a reward model on ranked completions",
  "ppo": "PPO-ptx against a reward model",
  "grpo": "a policy from rewards, compared within groups of responses",
  "dpo": "a policy from ranked completions, without a reward model",
  "bestofn": "keep the best of n samples under a reward model",
  "sample": "sample responses",
}
# The field that --model sets, where it is not model.source.
MODEL_FIELD = {"ppo": "rl_init", "grpo": "rl_init"}


def arguments(command: argparse.ArgumentParser, stage: str) -> None:
  """The options of a stage."""
  command.add_argument(
    "--config",
    default=stage,
    metavar="NAME[:PRESET]",
    help=f"default {stage}; a preset ({stage}:1.3b) or a file with get_config()",
  )
  command.add_argument(
    "--workdir",
    default=f"runs/{stage}",
    help=f"default runs/{stage}; run the same command again to go on with it",
  )
  source = "a run directory, a model folder, a .gguf file, a hub id or file.py:function"
  if stage == "sample":
    command.add_argument(
      "--model", action="append", metavar="[NAME=]MODEL", help=f"{source}; repeated for several"
    )
    command.add_argument(
      "--format",
      choices=("alpaca_eval", "arena_hard", "mt_bench"),
      help="answers to the benchmark's own question file (--config.data.prompts), all of it, as "
      "its own program reads them",
    )
  else:
    command.add_argument("--model", help=source)
  if stage in TRAINING:
    command.add_argument(
      "--unless-finished",
      action="store_true",
      help="end at once where a run of these settings is finished in --workdir; the data are not "
      "read again",
    )
    command.add_argument(
      "--hook",
      metavar="FILE.py:FUNCTION",
      help="a function of yours that is called with (step, metrics, state), and may stop the run",
    )
    command.add_argument(
      "--hook-every",
      type=whole(1),
      default=1,
      metavar="STEPS",
      help="the steps between its calls; default 1",
    )
    command.add_argument(
      "--profile",
      metavar="START:STEPS",
      help="a trace of these steps for XProf and TensorBoard, in WORKDIR/profile",
    )
  add_writer(command)
  add_distributed(command)


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Runs the stage of a command.

  Raises UserError where the configuration is that of another one.
  """
  from instructjax import settings

  # The stage is compared before anything slow is imported.
  config = settings.load(args.config)
  if config.stage != args.command:
    raise UserError(f"--config={args.config} is for stage '{config.stage}', not '{args.command}'")
  sources = args.model if isinstance(args.model, list) else [args.model] if args.model else []
  # --model is short for the field that says where the model is from.
  model = []
  if sources:
    model = [(MODEL_FIELD.get(args.command, "model.source"), ",".join(sources))]
  # A benchmark is answered as a whole, unless the command line says otherwise.
  benchmark = [("format", args.format), ("prompts", "0")] if getattr(args, "format", None) else []
  config = open_settings(args, [*model, *benchmark, *fields])
  from instructjax.runs import writers

  stage = stage_of("benchmarks" if getattr(config, "format", "") else args.command)
  # A second command in the directory is refused before it opens models.
  workdir = places.directory(args.workdir)
  with writers.holding(workdir):
    if getattr(args, "unless_finished", False):
      from instructjax.stages import running

      if running.is_finished(config, workdir, has_hook=bool(args.hook)):
        return
    stage(config, workdir, tuple(args.writer), *watching(args))


def watching(args: argparse.Namespace) -> list[Any]:
  """Who looks on while a stage trains; nothing for a stage that draws samples."""
  if args.command not in TRAINING:
    return []
  from instructjax.plan import meter
  from instructjax.runs import hooks
  from instructjax.runs import profile as profiles
  from instructjax.stages import running

  hook = None
  if args.hook:
    with naming("--hook", args.hook):
      hook = hooks.open_hook(args.hook, args.hook_every)
  profile = None
  if args.profile is not None:
    profile = profiles.read(args.profile, places.directory(args.workdir) / "profile")
  return [running.Watch(meter.seconds_at_peak, hook, profile)]


def stage_of(name: str) -> Callable[..., None]:
  """The function (settings, workdir, sinks) of a stage.  Only its own module is imported."""
  match name:
    case "pretrain" | "rl_init":
      from instructjax.stages import pretrain_sft

      return pretrain_sft.run
    case "sft":
      from instructjax.stages import selection

      return selection.run
    case "reward":
      from instructjax.stages import reward

      return reward.run
    case "ppo":
      from instructjax.stages import ppo

      return ppo.run
    case "grpo":
      from instructjax.stages import grpo

      return grpo.run
    case "dpo":
      from instructjax.stages import dpo

      return dpo.run
    case "bestofn":
      from instructjax.stages import bestofn

      return bestofn.run
    case "benchmarks":
      from instructjax.stages import benchmarks

      return benchmarks.run
    case _:
      from instructjax.stages import sample

      return sample.run
