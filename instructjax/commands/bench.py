"""`instructjax bench`: how fast a stage runs, on random weights."""

from __future__ import annotations

import argparse
import dataclasses
from typing import get_args

from instructjax.commands.options import Fields, prepare_jax, whole
from instructjax.settings.subjects import Remat
from instructjax.system import accelerators

# Options that are a number and whose name says what it counts (`plan.bench.Bench`).
NUMBERS = (
  "batch",
  "prompt",
  "response",
  "length",
  "completions",
  "n",
  "epochs",
  "minibatches",
  "ptx",
  "unroll",
  "repeats",
)
LEAST = {"completions": 2, "n": 2, "ptx": 0}  # the least of a number; of all others it is 1
DTYPES = ("float32", "bfloat16")


def arguments(command: argparse.ArgumentParser) -> None:
  """The options of `instructjax bench`.

  They have no defaults here, so that `run` can leave out those that were not given.
  """
  # Evaluations are no stage of training; `evals.speed` times them.
  stages = ["sft", "reward", "rollout", "ppo", "dpo", "grpo", "eval"]
  command.add_argument("--stage", required=True, choices=stages)
  command.add_argument("--shape", default="gpt-5m", help="gpt-5m or smollm2-135m")
  for name in NUMBERS:
    command.add_argument(f"--{name}", type=whole(LEAST.get(name, 1)))
  top = "sft, reward, ppo, dpo and grpo: train only this many blocks from the top"
  command.add_argument("--top", type=whole(0), help=top)
  adapter = "sft, reward, ppo, dpo and grpo: train an adapter of this rank"
  command.add_argument("--lora", type=whole(0), metavar="RANK", help=adapter)
  text = "sft: documents that are tokenised and packed while it runs"
  command.add_argument("--text", metavar="SOURCE", help=text)
  command.add_argument("--tokenizer", help='of --text; default "bytes"')
  lengths = "of prompts and responses: full, uniform, paper, or a file of JSON lines; default full"
  command.add_argument("--lengths", metavar="SOURCE", help=lengths)
  command.add_argument("--dtype", choices=DTYPES)
  command.add_argument("--frozen-dtype", choices=DTYPES)
  command.add_argument("--remat", choices=get_args(Remat))
  command.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Measures a stage and prints a table, or one JSON object."""
  prepare_jax()
  accelerators.warn_if_unseen()
  # Both are imported late: they load JAX, which the other commands need not wait for.
  if args.stage == "eval":
    from instructjax.evals import speed

    dtype = args.dtype or "float32"
    budget = args.length or 8192  # tokens of a batch
    repeats = args.repeats or 5
    speed.main(args.shape, dtype, budget, repeats)
    return
  from instructjax.plan import bench

  # Every field of `Bench` is an option of the same name.
  options = {}
  for field in dataclasses.fields(bench.Bench):
    value = getattr(args, field.name)
    if value is not None:
      options[field.name] = value
  bench.main(bench.Bench(**options), as_json=args.json)
