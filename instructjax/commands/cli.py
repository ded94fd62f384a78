"""The command line: `instructjax COMMAND --config=... --workdir=...`.  Whatever is slow is imported
by the command.

Exit codes: 0 success, 2 an error that the user can mend, 130 Ctrl-C, 143 SIGTERM (128 + 15, as a
shell counts).  On SIGTERM (a preemption) a stage finishes its step and saves; a launcher that
sees 143 runs the same command again to go on.

Several processes (a TPU pod, Slurm): the same command in each with `--distributed`, and a
`--workdir` that all of them see. Where JAX does not find the others by itself:
`--distributed=HOST:PORT,PROCESSES,INDEX`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import UserError

STAGES = {
  "pretrain": "train on plain text",
  "sft": "fine-tune on demonstrations",
  "rl_init": "the model that PPO starts from: demonstrations and pretraining text",
  "reward": "train a reward model on ranked completions",
  "ppo": "PPO-ptx against a reward model",
  "bestofn": "keep the best of n samples under a reward model",
  "sample": "sample responses",
}
Fields = Sequence[tuple[str, str]]  # of the configuration, that the command line sets
MODEL = {"ppo": "rl_init"}  # the field that --model sets, where it is not model.source


def parser() -> argparse.ArgumentParser:
  """All commands and their options."""
  from instructjax import label, plan
  from instructjax.commands import data, tokenizer
  from instructjax.commands import evals as evals
  from instructjax.system import processes

  top = argparse.ArgumentParser(
    prog="instructjax",
    description="InstructGPT in JAX: SFT, reward models, PPO-ptx.",
    allow_abbrev=False,
    epilog="Try: instructjax quickstart",
  )
  commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
  add = lambda name, text: commands.add_parser(
    name, help=text, description=text, allow_abbrev=False
  )
  for name, text in STAGES.items():
    command = add(name, text)
    command.add_argument(
      "--config", default=name, metavar="FILE[:PRESET]", help=f"default {name}: configs/{name}.py"
    )
    command.add_argument(
      "--workdir", default=f"runs/{name}", help=f"default runs/{name}; run again to go on with it"
    )
    what = "a run directory, a model folder, a .gguf file, a hub id or file.py:function"
    if name == "sample":
      command.add_argument(
        "--model", action="append", metavar="[NAME=]MODEL", help=f"{what}; repeated for several"
      )
    else:
      command.add_argument("--model", help=what)
    _writer(command)
    processes.argument(command)
    command.epilog = (
      "Any field: --config.optimizer.lr=1e-5; the fields stand in the configuration file."
    )
  _quickstart(add("quickstart", "the whole method on a real model and human ratings, in minutes"))
  report = add("report", "one HTML page from a run directory")
  report.add_argument("--workdir", required=True)
  evals.arguments(add)
  _export(add("export", "a trained model as a folder that transformers and vLLM open"))
  _bench(add("bench", "how fast a stage runs, on random weights"))
  plan.arguments(
    add(
      "plan",
      "does a stage fit a TPU or GPU pod, and how fast could it be: compiled ahead of time, never "
      "run",
    )
  )
  data.arguments(
    add("data", "check, clean, count and compare data files, or write the quickstart's")
  )
  label.arguments(
    add("label", "a page on this machine where people write demonstrations, rate and rank outputs")
  )
  tokenizer.arguments(
    add("tokenizer", "train a SentencePiece tokenizer, or check one against a model and texts")
  )
  return top


def _quickstart(command: argparse.ArgumentParser) -> None:
  command.add_argument("--fast", action="store_true", help="smaller, at most three minutes")
  command.add_argument("--seed", type=int)
  command.add_argument("--workdir", help="default runs/quickstart, or runs/quickstart-fast")
  command.add_argument(
    "--model", help="another model than SmolLM2-135M: a folder, a .gguf file or a hub id"
  )
  command.add_argument("--config", metavar="FILE[:PRESET]", help="default quickstart:full")
  _writer(command)


def _writer(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--writer", action="append", default=[], choices=["tensorboard", "wandb"], help="besides JSONL"
  )


def _export(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--model", required=True, help="the directory of a run, a .gguf file or a model folder"
  )
  command.add_argument("--out", required=True, metavar="FOLDER")
  command.add_argument(
    "--weights",
    default="",
    choices=["ema", "raw"],
    help="of PPO; default the average where there is one",
  )
  command.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  command.add_argument("--tokenizer", default="", help="another than the model's own")


def _bench(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--stage", required=True, choices=["sft", "reward", "rollout", "ppo", "eval"]
  )
  command.add_argument("--shape", default="gpt-5m", help="gpt-5m or smollm2-135m")
  sizes = (
    "batch",
    "prompt",
    "response",
    "length",
    "completions",
    "epochs",
    "minibatches",
    "ptx",
    "unroll",
    "repeats",
  )
  for name in sizes:
    command.add_argument(f"--{name}", type=int)
  command.add_argument("--top", type=int, help="sft: train only this many blocks from the top")
  command.add_argument(
    "--lora", type=int, metavar="RANK", help="sft and ppo: train an adapter of this rank"
  )
  command.add_argument(
    "--text", metavar="SOURCE", help="sft: documents that are tokenised and packed while it runs"
  )
  command.add_argument("--tokenizer", help='of --text; default "bytes"')
  command.add_argument("--dtype", choices=["float32", "bfloat16"])
  command.add_argument("--frozen-dtype", choices=["float32", "bfloat16"])
  command.add_argument("--remat", choices=["none", "blocks", "dots"])
  command.add_argument("--json", action="store_true", help="print one JSON object")


def stage(args: argparse.Namespace, fields: Fields) -> None:
  from instructjax.settings import reading

  config = reading.load(args.config)
  if config.stage != args.command:
    raise UserError(f"--config={args.config} is for stage '{config.stage}', not '{args.command}'")
  given = args.model if isinstance(args.model, list) else [args.model] if args.model else []
  model = [(MODEL.get(args.command, "model.source"), ",".join(given))] if given else []
  config = opened(args, [*model, *fields])
  from instructjax.stages import common, generate, ppo, sample, selection

  run: dict[str, Callable[..., None]] = {
    "pretrain": common.supervised,
    "sft": selection.supervised,
    "rl_init": common.supervised,
    "reward": common.reward_model,
    "ppo": ppo.reinforce,
    "bestofn": generate.best_of_n,
    "sample": sample.sample,
  }
  run[args.command](config, Path(args.workdir), tuple(args.writer))


def quickstart(args: argparse.Namespace, fields: Fields) -> None:
  args.config = args.config or ("quickstart:fast" if args.fast else "quickstart:full")
  named = {"seed": args.seed, "model": args.model}
  given = [(name, str(value)) for name, value in named.items() if value is not None]
  config = opened(args, [*given, *fields])
  from instructjax.quickstart import main

  workdir = args.workdir or f"runs/quickstart{'-fast' if args.fast else ''}"
  main(config, workdir, tuple(args.writer))


def report(args: argparse.Namespace, fields: Fields) -> None:
  from instructjax.runs import report

  print(report.write(Path(args.workdir)))


def evaluation(args: argparse.Namespace, fields: Fields) -> None:

  from instructjax.commands import evals

  evals.run(args, lambda: opened(args, fields))


def export(args: argparse.Namespace, fields: Fields) -> None:
  prepare()
  from instructjax.stages.export import export

  print(
    export(args.model, args.out, weights=args.weights, dtype=args.dtype, tokenizer=args.tokenizer)
  )


def bench(args: argparse.Namespace, fields: Fields) -> None:
  prepare()
  if args.stage == "eval":
    from instructjax.evals import speed

    speed.main(args.shape, args.dtype or "float32", args.length or 8192, args.repeats or 5)
    return
  from instructjax.plan.bench import Bench, main

  names = set(vars(args)) - {"command", "json"}
  main(
    Bench(**{name: getattr(args, name) for name in names if getattr(args, name) is not None}),
    as_json=args.json,
  )


def plan(args: argparse.Namespace, fields: Fields) -> None:
  from instructjax import plan
  from instructjax.settings import reading

  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a plan needs no device, and takes none
  plan.main(args, reading.override(reading.load(args.config), fields))


def data(args: argparse.Namespace, fields: Fields) -> None:
  from instructjax.commands import data

  data.run(args)


def label(args: argparse.Namespace, fields: Fields) -> None:
  from instructjax import label

  label.main(args)


def tokenizer(args: argparse.Namespace, fields: Fields) -> None:
  from instructjax.commands import tokenizer

  tokenizer.main(args)


def opened(args: argparse.Namespace, fields: Fields) -> Any:
  """The configuration of --config with these fields; JAX is ready then, and --distributed has its
  other processes.
  """
  from instructjax.settings import reading
  from instructjax.system import processes

  config = reading.override(reading.load(args.config), fields)
  prepare()
  if getattr(args, "distributed", None):
    processes.join(args.distributed)
  return config


def prepare() -> None:
  """Keeps compiled programs in the user's cache, so that the second run starts at once."""
  import logging

  import jax

  from instructjax.system.download import cache_folder

  logging.getLogger("absl").setLevel(logging.ERROR)
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit code."""
  from instructjax.settings import reading

  args, rest = parser().parse_known_args(arguments)
  commands = {
    "quickstart": quickstart,
    "report": report,
    "export": export,
    "bench": bench,
    "plan": plan,
    "data": data,
    "label": label,
    "eval": evaluation,
    "lm_eval": evaluation,
    "card": evaluation,
    "baseline": evaluation,
    "tokenizer": tokenizer,
  }
  try:
    fields = reading.assignments(rest)
    if fields and "config" not in args:
      raise UserError(f"--config.{fields[0][0]}: this command reads no configuration; leave it out")
    commands.get(args.command, stage)(args, fields)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt as stop:
    print(str(stop) or "stopped", file=sys.stderr)
    return 128 + getattr(stop, "number", 2)  # of the signal; 2 is SIGINT
  return 0


def start() -> int:
  """The `instructjax` command: `main` with memory in pages of 2 MiB, which glibc takes from its
  environment only.

  On a CPU a fifth of a training step would otherwise go to touching pages of 4 KiB for the first
  time.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    wide = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wide)
  return main()


if __name__ == "__main__":
  sys.exit(start())
