"""The command line: `instructjax COMMAND --config=... --workdir=...`.  Whatever is slow is imported by the command.

Exit codes: 0 success, 2 an error that the user can mend, 130 Ctrl-C, 143 SIGTERM (128 + 15, as a shell counts).  On SIGTERM
(a preemption) a stage finishes its step and saves; a launcher that sees 143 runs the same command again to go on.

Several processes (a TPU pod, Slurm): the same command in each with `--distributed`, and a `--workdir` that all of them see.
Where JAX does not find the others by itself: `--distributed=HOST:PORT,PROCESSES,INDEX`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
SUITES: dict[str, str] = {  # of evaluations: the module that holds `open_suite`
  "nlp": "instructjax.evals.nlp",
  "truthfulqa": "instructjax.evals.truthfulqa",
  "preference": "instructjax.evals.preference",
  "toxicity": "instructjax.evals.toxicity",
  "bias": "instructjax.evals.bias",
  "hallucination": "instructjax.evals.hallucination",
  "behaviours": "instructjax.evals.behaviours",
}
MODEL = {"ppo": "rl_init"}  # the field that --model sets, where it is not model.source


def parser() -> argparse.ArgumentParser:
  """All commands and their options."""
  from instructjax.data.commands import arguments as data_arguments
  from instructjax.evals.commands import arguments as baseline_arguments
  from instructjax.label import arguments as label_arguments
  from instructjax.tokenizer import arguments as tokenizer_arguments

  top = argparse.ArgumentParser(
    prog="instructjax", description="InstructGPT in JAX: SFT, reward models, PPO-ptx.", allow_abbrev=False,
    epilog="Try: instructjax quickstart",
  )  # fmt: skip
  commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
  add = lambda name, text: commands.add_parser(name, help=text, description=text, allow_abbrev=False)
  for name, text in STAGES.items():
    command = add(name, text)
    command.add_argument("--config", default=name, metavar="FILE[:PRESET]", help=f"default {name}: configs/{name}.py")
    command.add_argument("--workdir", default=f"runs/{name}", help=f"default runs/{name}; run again to go on with it")
    what = "a run directory, a model folder, a .gguf file, a hub id or file.py:function"
    if name == "sample":
      command.add_argument("--model", action="append", metavar="[NAME=]MODEL", help=f"{what}; repeated for several")
    else:
      command.add_argument("--model", help=what)
    _writer(command)
    _distributed(command)
    command.epilog = "Any field: --config.optimizer.lr=1e-5; the fields stand in the configuration file."
  _quickstart(add("quickstart", "the whole method on a real model and human ratings, in minutes"))
  report = add("report", "one HTML page from a run directory")
  report.add_argument("--workdir", required=True)
  _eval(add("eval", "the paper's evaluations of any set of models, side by side"))
  _harness(add("lm_eval", "tasks of EleutherAI's lm-evaluation-harness on a model"))
  _card(add("card", "a model card out of a run and its evaluation"))
  baseline_arguments(add("baseline", "what the paper compares with: a prefix chosen by a reward, a mixture of public tasks"))
  _export(add("export", "a trained model as a folder that transformers and vLLM open"))
  _bench(add("bench", "how fast a stage runs, on random weights"))
  _plan(add("plan", "does a stage fit a TPU or GPU pod, and how fast could it be: compiled ahead of time, never run"))
  data_arguments(add("data", "check, clean, count and compare data files, or write the quickstart's"))
  label_arguments(add("label", "a page on this machine where people write demonstrations, rate and rank outputs"))
  tokenizer_arguments(add("tokenizer", "train a SentencePiece tokenizer, or check one against a model and texts"))
  return top


def _quickstart(command: argparse.ArgumentParser) -> None:
  command.add_argument("--fast", action="store_true", help="smaller, at most three minutes")
  command.add_argument("--seed", type=int)
  command.add_argument("--workdir", help="default runs/quickstart, or runs/quickstart-fast")
  command.add_argument("--model", help="another model than SmolLM2-135M: a folder, a .gguf file or a hub id")
  command.add_argument("--config", metavar="FILE[:PRESET]", help="default quickstart:full")
  _writer(command)


def _writer(command: argparse.ArgumentParser) -> None:
  command.add_argument("--writer", action="append", default=[], choices=["tensorboard", "wandb"], help="besides JSONL")


def _eval(command: argparse.ArgumentParser) -> None:
  command.add_argument("--models", required=True, action="append", metavar="NAME=SOURCE,...", help="base=MODEL,sft=runs/sft")
  command.add_argument("--suite", required=True, action="append", metavar="SUITE,...", help=", ".join(SUITES))
  command.add_argument("--config", default="eval", metavar="FILE[:PRESET]", help="default eval: configs/eval.py")
  command.add_argument("--workdir", default="runs/eval", help="default runs/eval; run again to go on, or to add models")
  _distributed(command)
  command.epilog = "Any field: --config.baseline=sft; docs/evaluation.md says what each suite needs."


def _harness(command: argparse.ArgumentParser) -> None:
  command.add_argument("--model", required=True, metavar="SOURCE", help="as for `instructjax eval`")
  command.add_argument("--tasks", required=True, metavar="TASK,...", help="`lm_eval ls tasks` lists them")
  command.add_argument("--include", default="", metavar="FOLDER", help="tasks of your own")
  command.add_argument("--shots", type=int, help="default the task's own")
  command.add_argument("--limit", type=int, default=0, help="the first documents of each task only")
  command.add_argument("--config", default="eval", metavar="FILE[:PRESET]", help="default eval: configs/eval.py")
  command.add_argument("--workdir", default="runs/lm_eval", help="default runs/lm_eval")


def _card(command: argparse.ArgumentParser) -> None:
  command.add_argument("--model", required=True, metavar="RUN", help="the directory of a finished run")
  command.add_argument("--eval", required=True, metavar="FOLDER", help="the --workdir of `instructjax eval`")
  command.add_argument("--name", required=True, help="what the model is called there")
  command.add_argument("--out", default="model_card.md", metavar="FILE")


def _distributed(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--distributed", nargs="?", const="auto", metavar="HOST:PORT,PROCESSES,INDEX",
    help="this is one of several processes; without a value JAX finds the others (TPU pods, Slurm)",
  )  # fmt: skip


def _export(command: argparse.ArgumentParser) -> None:
  command.add_argument("--model", required=True, help="the directory of a run, a .gguf file or a model folder")
  command.add_argument("--out", required=True, metavar="FOLDER")
  command.add_argument("--weights", default="", choices=["ema", "raw"], help="of PPO; default the average where there is one")
  command.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  command.add_argument("--tokenizer", default="", help="another than the model's own")


def _bench(command: argparse.ArgumentParser) -> None:
  command.add_argument("--stage", required=True, choices=["sft", "reward", "rollout", "ppo", "eval"])
  command.add_argument("--shape", default="gpt-5m", help="gpt-5m or smollm2-135m")
  sizes = "batch", "prompt", "response", "length", "completions", "epochs", "minibatches", "ptx", "unroll", "repeats"
  for name in sizes:
    command.add_argument(f"--{name}", type=int)
  command.add_argument("--top", type=int, help="sft: train only this many blocks from the top")
  command.add_argument("--lora", type=int, metavar="RANK", help="sft and ppo: train an adapter of this rank")
  command.add_argument("--text", metavar="SOURCE", help="sft: documents that are tokenised and packed while it runs")
  command.add_argument("--tokenizer", help='of --text; default "bytes"')
  command.add_argument("--dtype", choices=["float32", "bfloat16"])
  command.add_argument("--frozen-dtype", choices=["float32", "bfloat16"])
  command.add_argument("--remat", choices=["none", "blocks", "dots"])
  command.add_argument("--json", action="store_true", help="print one JSON object")


def _plan(command: argparse.ArgumentParser) -> None:
  command.add_argument("--config", required=True, metavar="FILE[:PRESET]", help="pretrain, sft, rl_init, reward or ppo")
  command.add_argument("--topology", required=True, help="v4, v5e, v5p, v6e, tpu7x: v5p:8x8x16; GPUs by arithmetic: h100:8")
  command.add_argument("--mesh", default="", help="data=1,fsdp=64,model=16; the product is the number of devices")
  command.add_argument("--slices", type=int, default=1, help="of that topology; data lies across them")
  command.add_argument("--policy", help="a shape such as 175B, where the configuration names none")
  command.add_argument("--reward", help="shape of the reward and value networks of PPO; default 6B, the paper's")
  command.add_argument("--records", type=int, help="rows of data, for the steps of an epoch; default the paper's")
  command.add_argument("--completions", type=int, default=9, help="of a prompt of the reward model; default 9")
  command.add_argument("--search", action="store_true", help="tries the meshes of the topology, the best first")
  command.add_argument("--top", type=int, default=3, help="meshes that a search compiles; default 3")
  command.add_argument("--arithmetic", action="store_true", help="ask no compiler")
  command.add_argument("--json", action="store_true", help="print one JSON object")


def assignments(rest: Sequence[str]) -> list[tuple[str, str]]:
  """`--config.a.b=v` or `--config.a.b v` as (a.b, v).  Raises UserError for anything else."""
  found, words = [], list(rest)
  while words:
    word = words.pop(0)
    if not word.startswith("--config."):
      raise UserError(f"{word}: no such option; add --help to see those there are")
    name, sign, value = word.removeprefix("--config.").partition("=")
    if not sign and (not words or words[0].startswith("--")):
      raise UserError(f"{word}: give a value, {word}=VALUE")
    found.append((name, value if sign else words.pop(0)))
  return found


def stage(args: argparse.Namespace, rest: Sequence[str]) -> None:
  from instructjax import settings

  config = settings.load(args.config)
  if config.get("stage") != args.command:
    raise UserError(f"--config={args.config} is for stage '{config.get('stage')}', not '{args.command}'")
  given = args.model if isinstance(args.model, list) else [args.model] if args.model else []
  model = [(MODEL.get(args.command, "model.source"), ",".join(given))] if given else []
  config = settings.override(config, [*model, *assignments(rest)])
  prepare()
  if args.distributed:
    join(args.distributed)
  from instructjax import generate, reinforce, sample, selection, stages

  run: dict[str, Callable[..., None]] = {
    "pretrain": stages.supervised, "sft": selection.supervised, "rl_init": stages.supervised,
    "reward": stages.reward_model, "ppo": reinforce.reinforce, "bestofn": generate.best_of_n, "sample": sample.sample,
  }  # fmt: skip
  run[args.command](config, Path(args.workdir), tuple(args.writer))


def evaluate(args: argparse.Namespace, rest: Sequence[str]) -> None:
  from importlib import import_module

  from instructjax import settings

  config = settings.override(settings.load(args.config), assignments(rest))
  models = named_models(args.models)
  names = list(dict.fromkeys(name.strip() for text in args.suite for name in text.split(",")))
  for name in names:
    if name not in SUITES:
      raise UserError(f"--suite={name}: no such suite; there are {', '.join(SUITES)}")
  prepare()
  if args.distributed:
    join(args.distributed)
  from instructjax.evals import run

  run.main(config, Path(args.workdir), models, {name: import_module(SUITES[name]).open_suite for name in names})


def baseline(args: argparse.Namespace, rest: Sequence[str]) -> None:
  from instructjax.evals import commands

  def config():
    from instructjax import settings

    found = settings.override(settings.load(args.config), assignments(rest))
    prepare()
    return found

  if args.action == "mixture":
    assignments(rest)
  commands.run(args, config)


def harness(args: argparse.Namespace, rest: Sequence[str]) -> None:
  from instructjax import settings

  config = settings.override(settings.load(args.config), assignments(rest))
  prepare()
  from instructjax.evals import harness

  tasks = [task.strip() for task in args.tasks.split(",")]
  options = {"shots": args.shots, "limit": args.limit, "include": args.include}
  harness.main(config, args.model, tasks, Path(args.workdir), **options)


def card(args: argparse.Namespace, rest: Sequence[str]) -> None:
  assignments(rest)
  from instructjax.evals import card

  print(card.write(Path(args.model), Path(args.eval), args.name, Path(args.out)))


def named_models(given: Sequence[str]) -> dict[str, str]:
  """{name: source} of `--models name=source,name=source`.  Raises UserError for anything else and a name that stands twice."""
  found: dict[str, str] = {}
  for part in (part.strip() for text in given for part in text.split(",")):
    name, sign, source = part.partition("=")
    if not name or not sign:
      raise UserError(f"--models: {part!r}: write NAME=SOURCE, for example base=PATH_OR_HUB_ID,sft=runs/sft")
    if name in found:
      raise UserError(f"--models: the name {name!r} stands twice: {found[name]} and {source}")
    found[name] = source
  return found


def quickstart(args: argparse.Namespace, rest: Sequence[str]) -> None:
  from instructjax import settings

  config = settings.load(args.config or ("quickstart:fast" if args.fast else "quickstart:full"))
  named = {"seed": args.seed, "model": args.model}
  given = [(name, str(value)) for name, value in named.items() if value is not None]
  config = settings.override(config, [*given, *assignments(rest)])
  prepare()
  from instructjax.quickstart import Quickstart, main

  workdir = args.workdir or f"runs/quickstart{'-fast' if args.fast else ''}"
  main(Quickstart(**config.to_dict()), workdir, tuple(args.writer))


def report(args: argparse.Namespace, rest: Sequence[str]) -> None:
  assignments(rest)
  from instructjax import report

  print(report.write(Path(args.workdir)))


def export(args: argparse.Namespace, rest: Sequence[str]) -> None:
  assignments(rest)
  prepare()
  from instructjax.export import export

  print(export(args.model, args.out, weights=args.weights, dtype=args.dtype, tokenizer=args.tokenizer))


def bench(args: argparse.Namespace, rest: Sequence[str]) -> None:
  assignments(rest)
  prepare()
  if args.stage == "eval":
    from instructjax.evals import speed

    speed.main(args.shape, args.dtype or "float32", args.length or 8192, args.repeats or 5)
    return
  from instructjax.bench import Bench, main

  names = set(vars(args)) - {"command", "json"}
  main(Bench(**{name: getattr(args, name) for name in names if getattr(args, name) is not None}), as_json=args.json)


def plan(args: argparse.Namespace, rest: Sequence[str]) -> None:
  from instructjax import settings

  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a plan needs no device, and takes none
  config = settings.override(settings.load(args.config), assignments(rest))
  from instructjax.plan import Options, main

  names = set(vars(args)) - {"command", "json", "config"}
  preset = args.config.partition(":")[2]
  main(config, preset, Options(**{name: getattr(args, name) for name in names}), as_json=args.json)


def data(args: argparse.Namespace, rest: Sequence[str]) -> None:
  assignments(rest)
  from instructjax.data import commands

  def open_tokenizer(reference: str):
    from instructjax import origin  # imports JAX

    return origin.open_tokenizer(reference)

  commands.run(args, open_tokenizer)


def label(args: argparse.Namespace, rest: Sequence[str]) -> None:
  assignments(rest)
  from instructjax import label

  label.main(args)


def tokenizer(args: argparse.Namespace, rest: Sequence[str]) -> None:
  assignments(rest)
  from instructjax import tokenizer

  tokenizer.main(args)


def prepare() -> None:
  """Keeps compiled programs in the user's cache, so that the second run starts at once."""
  import logging

  import jax

  from instructjax.data.download import cache_folder

  logging.getLogger("absl").setLevel(logging.ERROR)
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))


def join(processes: str) -> None:
  """Joins the other processes, once.  Raises UserError for a malformed option and where they cannot be reached."""
  import jax

  if jax.distributed.is_initialized():
    return
  host, count, index = None, None, None
  if processes != "auto":
    host, *numbers = processes.split(",")
    if ":" not in host or len(numbers) != 2 or not all(number.isdigit() for number in numbers):
      raise UserError(f"--distributed={processes}: give HOST:PORT,PROCESSES,INDEX, for example localhost:1234,2,0")
    count, index = (int(number) for number in numbers)
  try:
    jax.distributed.initialize(host, count, index)
  except (ValueError, RuntimeError) as error:
    raise UserError(f"--distributed: {error}; give HOST:PORT,PROCESSES,INDEX") from error


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit code."""
  args, rest = parser().parse_known_args(arguments)
  commands = {
    "quickstart": quickstart, "report": report, "export": export, "bench": bench, "plan": plan, "data": data, "label": label,
    "eval": evaluate, "lm_eval": harness, "card": card, "baseline": baseline, "tokenizer": tokenizer,
  }  # fmt: skip
  try:
    commands.get(args.command, stage)(args, rest)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt as stop:
    print(str(stop) or "stopped", file=sys.stderr)
    return 128 + getattr(stop, "number", 2)  # of the signal; 2 is SIGINT
  return 0


def start() -> int:
  """The `instructjax` command: `main` with memory in pages of 2 MiB, which glibc takes from its environment only.

  On a CPU a fifth of a training step would otherwise go to touching pages of 4 KiB for the first time.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    wide = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wide)
  return main()


if __name__ == "__main__":
  sys.exit(start())
