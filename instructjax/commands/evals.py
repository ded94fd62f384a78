"""`instructjax eval`, `lm_eval`, `card` and `baseline`: their options and what they do.  Slow
imports wait till then.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.system import processes

SUITES: dict[str, str] = {  # of evaluations: the module that holds `open_suite`
  "nlp": "instructjax.evals.nlp",
  "truthfulqa": "instructjax.evals.truthfulqa",
  "preference": "instructjax.evals.preference",
  "toxicity": "instructjax.evals.toxicity",
  "bias": "instructjax.evals.bias",
  "hallucination": "instructjax.evals.hallucination",
  "behaviours": "instructjax.evals.behaviours",
}
Config = Any  # ml_collections.ConfigDict


def arguments(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
  """The commands and their options; `add` makes a command of a name and what it is for."""
  _eval(add("eval", "the paper's evaluations of any set of models, side by side"))
  _harness(add("lm_eval", "tasks of EleutherAI's lm-evaluation-harness on a model"))
  _card(add("card", "a model card out of a run and its evaluation"))
  _baseline(
    add(
      "baseline",
      "what the paper compares with: a prefix chosen by a reward, a mixture of public tasks",
    )
  )


def _eval(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--models",
    required=True,
    action="append",
    metavar="NAME=SOURCE,...",
    help="base=MODEL,sft=runs/sft",
  )
  command.add_argument(
    "--suite", required=True, action="append", metavar="SUITE,...", help=", ".join(SUITES)
  )
  command.add_argument(
    "--config", default="eval", metavar="FILE[:PRESET]", help="default eval: configs/eval.py"
  )
  command.add_argument(
    "--workdir", default="runs/eval", help="default runs/eval; run again to go on, or to add models"
  )
  processes.argument(command)
  command.epilog = (
    "Any field: --config.baseline=sft; docs/evaluation.md says what each suite needs."
  )


def _harness(command: argparse.ArgumentParser) -> None:
  command.add_argument("--model", required=True, metavar="SOURCE", help="as for `instructjax eval`")
  command.add_argument(
    "--tasks", required=True, metavar="TASK,...", help="`lm_eval ls tasks` lists them"
  )
  command.add_argument("--include", default="", metavar="FOLDER", help="tasks of your own")
  command.add_argument("--shots", type=int, help="default the task's own")
  command.add_argument("--limit", type=int, default=0, help="the first documents of each task only")
  command.add_argument(
    "--config", default="eval", metavar="FILE[:PRESET]", help="default eval: configs/eval.py"
  )
  command.add_argument("--workdir", default="runs/lm_eval", help="default runs/lm_eval")


def _card(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--model", required=True, metavar="RUN", help="the directory of a finished run"
  )
  command.add_argument(
    "--eval", required=True, metavar="FOLDER", help="the --workdir of `instructjax eval`"
  )
  command.add_argument("--name", required=True, help="what the model is called there")
  command.add_argument("--out", default="model_card.md", metavar="FILE")


def _baseline(command: argparse.ArgumentParser) -> None:
  actions = command.add_subparsers(dest="action", required=True, metavar="{prefix,mixture}")
  act = lambda name, text: actions.add_parser(name, help=text, description=text, allow_abbrev=False)
  prefix = act("prefix", "the few-shot prefix whose answers score highest on validation prompts")
  prefix.add_argument(
    "--model", required=True, help="the base model: a folder, a .gguf file, a hub id or a run"
  )
  prefix.add_argument(
    "--candidates",
    required=True,
    metavar="FILE,FILE",
    help="texts that are put before every prompt",
  )
  prefix.add_argument("--prompts", required=True, metavar="FILE", help="validation prompts")
  prefix.add_argument(
    "--reward", required=True, help="runs/reward or any other reward: docs/rewards.md"
  )
  prefix.add_argument(
    "--out", required=True, metavar="FILE", help="the best one; FILE.json has the scores of all"
  )
  prefix.add_argument(
    "--config",
    default="eval",
    metavar="FILE[:PRESET]",
    help="default eval; samples as config.preference",
  )
  mixture = act(
    "mixture", "public tasks as instructions, several wordings each: demonstrations for sft:flan"
  )
  mixture.add_argument(
    "--sources", required=True, help="tfds:squad, tfds:glue/sst2, ..., files of demonstrations"
  )
  mixture.add_argument("--out", required=True, metavar="FILE")
  mixture.add_argument(
    "--examples",
    type=int,
    default=0,
    metavar="N",
    help="in all, without repeats; default all, capped",
  )
  mixture.add_argument(
    "--cap",
    type=int,
    default=30_000,
    help="a task counts as at most this many; default 30000, 0 for none",
  )
  mixture.add_argument("--folder", help="where TFDS data sets were prepared; default TFDS's own")
  mixture.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace, opened: Callable[[], Config]) -> None:
  """The command; `opened` gives the configuration of --config.  Raises UserError for whatever a
  user can mend.
  """
  {"eval": evaluate, "lm_eval": harness, "card": card, "baseline": baseline}[args.command](
    args, opened
  )


def evaluate(args: argparse.Namespace, opened: Callable[[], Config]) -> None:
  models = named_models(args.models)
  names = list(dict.fromkeys(name.strip() for text in args.suite for name in text.split(",")))
  for name in names:
    if name not in SUITES:
      raise UserError(f"--suite={name}: no such suite; there are {', '.join(SUITES)}")
  config = opened()
  from instructjax.evals import run

  modules = {name: import_module(place) for name, place in SUITES.items()}
  draws = {name: module.draw for name, module in modules.items() if hasattr(module, "draw")}
  run.main(
    config, Path(args.workdir), models, {name: modules[name].open_suite for name in names}, draws
  )


def named_models(given: Sequence[str]) -> dict[str, str]:
  """{name: source} of `--models name=source,name=source`.  Raises UserError for anything else and a
  name that stands twice.
  """
  found: dict[str, str] = {}
  for part in (part.strip() for text in given for part in text.split(",")):
    name, sign, source = part.partition("=")
    if not name or not sign:
      raise UserError(
        f"--models: {part!r}: write NAME=SOURCE, for example base=PATH_OR_HUB_ID,sft=runs/sft"
      )
    if name in found:
      raise UserError(f"--models: the name {name!r} stands twice: {found[name]} and {source}")
    found[name] = source
  return found


def harness(args: argparse.Namespace, opened: Callable[[], Config]) -> None:
  config = opened()
  from instructjax.evals import harness

  tasks = [task.strip() for task in args.tasks.split(",")]
  options = {"shots": args.shots, "limit": args.limit, "include": args.include}
  harness.main(config, args.model, tasks, Path(args.workdir), **options)


def card(args: argparse.Namespace, opened: Callable[[], Config]) -> None:
  from instructjax.evals import card

  print(card.write(Path(args.model), Path(args.eval), args.name, Path(args.out)))


def baseline(args: argparse.Namespace, opened: Callable[[], Config]) -> None:
  if args.action == "mixture":
    from instructjax.data.public import public_tasks

    print(
      public_tasks.write(
        args.sources,
        args.out,
        examples=args.examples,
        cap=args.cap,
        seed=args.seed,
        folder=args.folder,
      )
    )
    return
  config = opened()
  from instructjax.evals import baselines

  files = [file.strip() for file in args.candidates.split(",")]
  print(baselines.prefix(config, args.model, files, args.prompts, args.reward, Path(args.out)))
