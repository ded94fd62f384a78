"""`instructjax bench`: how fast a stage runs, on random weights."""

from __future__ import annotations

import argparse

from instructjax.commands.options import Fields, prepare_jax

NUMBERS = (
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


def arguments(command: argparse.ArgumentParser) -> None:
  """The options of `instructjax bench`."""
  stages = ["sft", "reward", "rollout", "ppo", "eval"]
  command.add_argument("--stage", required=True, choices=stages)
  command.add_argument("--shape", default="gpt-5m", help="gpt-5m or smollm2-135m")
  for name in NUMBERS:
    command.add_argument(f"--{name}", type=int)
  command.add_argument("--top", type=int, help="sft: train only this many blocks from the top")
  adapter = "sft and ppo: train an adapter of this rank"
  command.add_argument("--lora", type=int, metavar="RANK", help=adapter)
  text = "sft: documents that are tokenised and packed while it runs"
  command.add_argument("--text", metavar="SOURCE", help=text)
  command.add_argument("--tokenizer", help='of --text; default "bytes"')
  command.add_argument("--dtype", choices=["float32", "bfloat16"])
  command.add_argument("--frozen-dtype", choices=["float32", "bfloat16"])
  command.add_argument("--remat", choices=["none", "blocks", "dots"])
  command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Measures a stage and prints a table, or one JSON object."""
  prepare_jax()
  if args.stage == "eval":
    from instructjax.evals import speed

    speed.main(args.shape, args.dtype or "float32", args.length or 8192, args.repeats or 5)
    return
  from instructjax.plan import bench

  options = {
    name: value
    for name, value in vars(args).items()
    if name not in ("command", "json") and value is not None
  }
  bench.main(bench.Bench(**options), as_json=args.json)
