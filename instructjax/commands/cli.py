"""The command line: `instructjax COMMAND --config=... --workdir=...`.

Whatever is slow to import is imported by the command that needs it.

Exit codes: 0 success, 2 an error that the user can fix, 130 Ctrl-C, 143 SIGTERM (128 + 15, as a
shell counts). On SIGTERM (a preemption) a stage finishes its step, or the part of it that is
running, and saves; a launcher that sees 143 runs the same command again to go on.

Several processes (a TPU pod, Slurm): the same command in each with `--distributed`, and a
`--workdir` that all of them see. Where JAX does not find the others by itself:
`--distributed=HOST:PORT,PROCESSES,INDEX`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import instructjax
from instructjax.errors import UserError
from instructjax.system import interrupts, places

NO_BACKEND = "Unable to initialize backend"  # how JAX begins its error


class Command(NamedTuple):
  """One command: what `--help` says, its options, and what it does with (arguments, fields)."""

  help: str
  arguments: Callable[[argparse.ArgumentParser], None]
  run: Callable[[argparse.Namespace, Sequence[tuple[str, str]]], None]
  settings: str = ""  # whose fields `--help` lists


def all_commands() -> dict[str, Command]:
  """All commands by their names."""
  from instructjax.commands import (
    baseline,
    bench,
    card,
    config,
    data,
    export,
    label,
    lm_eval,
    plan,
    quickstart,
    report,
    rm_cv,
    stages,
    tokenizer,
  )
  from instructjax.commands import eval as evaluation

  table: dict[str, Command] = {}
  for name, text in stages.STAGES.items():
    options = partial(stages.arguments, stage=name)
    table[name] = Command(text, options, stages.run, settings=name)
  table["rm_cv"] = Command(
    "cross-validate reward models over labelers: own labelers against held-out ones",
    rm_cv.arguments,
    rm_cv.run,
    settings="reward",
  )
  table["quickstart"] = Command(
    "the whole method on a real model and human ratings, in minutes",
    quickstart.arguments,
    quickstart.run,
    settings="quickstart",
  )
  table["config"] = Command(
    "every field of a configuration with its value and its sentence",
    config.arguments,
    config.run,
  )
  table["report"] = Command("one HTML page from a run directory", report.arguments, report.run)
  table["eval"] = Command(
    "the paper's evaluations of any set of models, side by side",
    evaluation.arguments,
    evaluation.run,
    settings="eval",
  )
  table["lm_eval"] = Command(
    "tasks of EleutherAI's lm-evaluation-harness on a model", lm_eval.arguments, lm_eval.run
  )
  table["card"] = Command(
    "a model card out of a run and its evaluation",
    card.arguments,
    lambda args, fields: card.run(args),
  )
  table["baseline"] = Command(
    "what the paper compares with: a prefix chosen by a reward, a mixture of public tasks",
    baseline.arguments,
    baseline.run,
  )
  table["export"] = Command(
    "a trained model as a folder that transformers and vLLM open", export.arguments, export.run
  )
  table["bench"] = Command("how fast a stage runs, on random weights", bench.arguments, bench.run)
  table["plan"] = Command(
    "does a stage fit a TPU or GPU pod, and how fast could it be: compiled ahead of time, never "
    "run",
    plan.arguments,
    plan.run,
  )
  table["data"] = Command(
    "check, clean, count and compare data files, or write the quickstart's",
    data.arguments,
    lambda args, fields: data.run(args),
  )
  table["label"] = Command(
    "a page on this machine where people write demonstrations, rate and rank outputs",
    label.arguments,
    lambda args, fields: label.main(args),
  )
  table["tokenizer"] = Command(
    "train a SentencePiece tokenizer, or check one against a model and texts",
    tokenizer.arguments,
    lambda args, fields: tokenizer.main(args),
  )
  return table


def parser(commands: dict[str, Command], words: Sequence[str]) -> argparse.ArgumentParser:
  """The parser of all commands; where `words` ask for help, with the fields of that command."""
  top = argparse.ArgumentParser(
    prog="instructjax",
    description="InstructGPT in JAX: SFT, reward models, PPO-ptx and the paper's evaluations.",
    allow_abbrev=False,
    epilog="Try: instructjax quickstart",
  )
  version = f"instructjax {instructjax.__version__}"
  top.add_argument("--version", action="version", version=version)
  # Each command adds its own options; none of them imports JAX for that.
  subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, command in commands.items():
    subparser = subparsers.add_parser(
      name,
      help=command.help,
      description=command.help,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.arguments(subparser)
    # The list of fields is made only where it is shown: it takes a while.
    if command.settings and words[:1] == [name] and {"-h", "--help"} & {*words}:
      subparser.epilog = fields_of(command.settings)
  return top


def fields_of(settings_name: str) -> str:
  """The fields of a command's settings for its `--help`."""
  from instructjax import settings
  from instructjax.commands import config

  default = settings.preset(settings_name)
  heading = f"fields, --config.NAME=VALUE (values of the default preset of {settings_name}):"
  return f"{heading}\n\n{config.describe(default)}"


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit code."""
  words = list(sys.argv[1:] if arguments is None else arguments)
  try:
    try:
      return main_of(words)
    finally:
      # What Python still holds would otherwise be written at its very end, where nothing could
      # catch the error of an output that is closed.
      sys.stdout.flush()
      sys.stderr.flush()
  except BrokenPipeError:
    return output_closed()


def main_of(words: Sequence[str]) -> int:
  """Runs the command of these words and returns its exit code."""
  with interrupts.arriving() as is_interrupted:
    try:
      commands = all_commands()
      # argparse takes the options that it knows; what is left must be fields of the settings. It
      # ends the program itself, for `--help` and for an option that it does not know.
      args, rest = parser(commands, words).parse_known_args(words)
      return run(commands[args.command], args, rest)
    except KeyboardInterrupt as stop:
      print(str(stop) or "stopped", file=sys.stderr)
      return 128 + getattr(stop, "number", signal.SIGINT)
    except Exception:
      # A library may turn Ctrl-C into an error of its own, while it is imported for one.
      if not is_interrupted():
        raise
      print("stopped", file=sys.stderr)
      return 128 + signal.SIGINT


def run(command: Command, args: argparse.Namespace, rest: Sequence[str]) -> int:
  """Runs a command with its options and its fields, and returns its exit code."""
  try:
    from instructjax import settings

    fields = settings.assignments(rest)
    require_local_output(args)
    if fields and "config" not in args:
      raise UserError(f"--config.{fields[0][0]}: this command reads no configuration; leave it out")
    command.run(args, fields)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except SystemExit as stop:
    if isinstance(stop.__context__, BrokenPipeError):
      raise stop.__context__ from None  # rich has made it of that
    # Only `argparse` may end the program, and it has done so before. Code of a user, or of a
    # package, that ends it here would end a run as if it had succeeded.
    print(f"error: {ended_by(stop)}", file=sys.stderr)
    return 2
  except RuntimeError as error:
    if NO_BACKEND not in str(error):
      raise
    print(f"error: {no_device(error)}", file=sys.stderr)
    return 2
  return 0


def output_closed() -> int:
  """Returns the exit code where the reader has closed the output, as `head` does."""
  # Python must not write to it at the end.
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for stream in (sys.stdout, sys.stderr):
    os.dup2(nowhere, stream.fileno())
  return 128 + 13  # SIGPIPE, which Windows does not name


def require_local_output(args: argparse.Namespace) -> None:
  """Checks that what a command writes to is on this machine; a stage's run may be in a bucket.

  Raises:
    UserError: for an address, such as that of a bucket.
  """
  from instructjax.commands.stages import STAGES

  for option in ("workdir", "out", "db"):
    place = getattr(args, option, None)
    may_be_address = option == "workdir" and args.command in (*STAGES, "report")
    if place is not None and not may_be_address:
      places.require_local(place, f"--{option}")


def ended_by(stop: SystemExit) -> str:
  """The message for code that ended the program, with its place."""
  from instructjax.system import user_code

  place = user_code.innermost(stop, Path.cwd())
  return f"sys.exit() was called at {place}; a run ends by itself, take the call out"


def no_device(error: RuntimeError) -> str:
  """The message where JAX finds no device of the platform that was asked for."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  reason = str(error).strip().partition("\n")[0]
  return f"JAX_PLATFORMS={platforms}: {reason}; set it to cpu, or run where such a device is"


def start() -> int:
  """The `instructjax` command: `main` with memory in pages of 2 MiB.

  On a CPU a fifth of a training step would otherwise go to touching pages of 4 KiB for the first
  time. glibc takes the size of its pages from the environment only, before the program starts.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
    wide = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wide)
  code = main()
  is_distributed = any(word.startswith("--distributed") for word in sys.argv)
  if code == 128 + signal.SIGINT and not is_distributed:
    # Ctrl-C may have left a library half initialised, whose end would then crash. Several
    # processes have to take leave of each other.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


if __name__ == "__main__":
  sys.exit(start())
