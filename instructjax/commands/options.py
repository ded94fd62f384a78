"""The options that several commands have, and what happens before a command that uses JAX."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.system import accelerators, hub, processes

Fields = Sequence[tuple[str, str]]  # of the settings, which the command line sets
WRITERS = ("tensorboard", "wandb")


def whole(low: int, high: int = 10**9) -> Callable[[str], int]:
  """The type of an option that is a whole number from `low` to `high`."""

  def convert(text: str) -> int:
    # Python refuses numbers of some thousand digits, which are out of every range.
    if not re.fullmatch(r"[+-]?[0-9]{1,30}", text) or not low <= int(text) <= high:
      raise argparse.ArgumentTypeError(f"{text[:40]}: a whole number from {low:,} to {high:,}")
    return int(text)

  return convert


def number(low: float, high: float) -> Callable[[str], float]:
  """The type of an option that is a number from `low` to `high`."""

  def convert(text: str) -> float:
    try:
      value = float(text)
    except ValueError:
      value = math.nan
    # No comparison with NaN holds.
    if not low <= value <= high:
      raise argparse.ArgumentTypeError(f"{text[:40]}: a number from {low:g} to {high:g}")
    return value

  return convert


SEED = whole(0, 2**32 - 1)  # as config.seed


def add_writer(command: argparse.ArgumentParser) -> None:
  """Adds `--writer`."""
  help_text = "where metrics go besides metrics.jsonl"
  command.add_argument("--writer", action="append", default=[], choices=WRITERS, help=help_text)


def add_distributed(command: argparse.ArgumentParser) -> None:
  """Adds `--distributed`."""
  processes.argument(command)


def add_push(command: argparse.ArgumentParser) -> None:
  """Adds `--push-to-hub` and `--private`."""
  command.add_argument(
    "--push-to-hub",
    default="",
    metavar="OWNER/NAME",
    help="upload it to the Hugging Face hub, with the token of HF_TOKEN or `hf auth login`",
  )
  command.add_argument("--private", action="store_true", help="make the model of the hub private")


def check_push(args: argparse.Namespace) -> None:
  """Checks `--push-to-hub` before any work is done.

  Raises:
    UserError: where nothing could be uploaded, and for --private without it.
  """
  if args.push_to_hub:
    hub.check(args.push_to_hub)
  elif args.private:
    raise UserError("--private says how --push-to-hub makes a model: give --push-to-hub=OWNER/NAME")


def push(args: argparse.Namespace, path: Path) -> None:
  """Uploads what a command has written, where `--push-to-hub` asks for it, and prints where."""
  if args.push_to_hub:
    print(hub.push(path, args.push_to_hub, private=args.private))


def open_settings(args: argparse.Namespace, fields: Fields) -> Any:
  """The settings of --config with these fields; JAX is ready then, and has its other processes."""
  from instructjax import settings

  opened = settings.override(settings.load(args.config), fields)
  prepare_jax()
  if getattr(args, "distributed", None):
    processes.join(args.distributed)
  # After the processes have met: this may start JAX.
  accelerators.warn_if_unseen()
  return opened


def join_others(args: argparse.Namespace) -> bool:
  """Joins the other processes of a command that one does for all; returns whether this is that one.

  Without --distributed there are no others.
  """
  if not args.distributed:
    return True
  import jax

  processes.join(args.distributed)
  return jax.process_index() == 0


def prepare_jax() -> None:
  """Keeps compiled programs in the user's cache, so that the second run starts at once."""
  import logging

  import jax

  from instructjax.system.download import cache_folder

  # Orbax logs through absl, with a traceback for each failure; what matters of it is in the errors.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
