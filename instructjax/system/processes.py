"""One command in several processes (a TPU pod, Slurm): the option that says so, and how a process
finds the others.
"""

from __future__ import annotations

import argparse

from instructjax.errors import UserError


def argument(command: argparse.ArgumentParser) -> None:
  """Adds `--distributed`."""
  command.add_argument(
    "--distributed",
    nargs="?",
    const="auto",
    metavar="HOST:PORT,PROCESSES,INDEX",
    help="this is one of several processes; without a value JAX finds the others (TPU pods, Slurm)",
  )


def join(processes: str) -> None:
  """Joins the other processes, once.  Raises UserError for a malformed option and where they cannot
  be reached.
  """
  import jax

  if jax.distributed.is_initialized():
    return
  host, count, index = None, None, None
  if processes != "auto":
    host, *numbers = processes.split(",")
    if ":" not in host or len(numbers) != 2 or not all(number.isdigit() for number in numbers):
      raise UserError(
        f"--distributed={processes}: give HOST:PORT,PROCESSES,INDEX, for example localhost:1234,2,0"
      )
    count, index = (int(number) for number in numbers)
  try:
    jax.distributed.initialize(host, count, index)
  except (ValueError, RuntimeError) as error:
    raise UserError(f"--distributed: {error}; give HOST:PORT,PROCESSES,INDEX") from error
