"""One command in several processes (a TPU pod, Slurm): its option, and joining the others."""

from __future__ import annotations

import argparse

from instructjax.errors import UserError


def argument(command: argparse.ArgumentParser) -> None:
  """Adds `--distributed`."""
  command.add_argument(
    "--distributed",
    nargs="?",
    const="auto",  # the value of the option without a value
    metavar="HOST:PORT,PROCESSES,INDEX",
    help="this is one of several processes; without a value JAX finds the others (TPU pods, Slurm)",
  )


def join(value: str) -> None:
  """Joins the other processes, once.

  Args:
    value: The value of --distributed: "auto", or HOST:PORT of the first process, the number of
      processes and the index of this one.

  Raises:
    UserError: the value is malformed, or the others cannot be reached.
  """
  import jax

  if jax.distributed.is_initialized():
    return
  # With None JAX asks the environment (TPU metadata, Slurm, Open MPI).
  address, count, index = None, None, None
  if value != "auto":
    address, *numbers = value.split(",")
    valid = len(numbers) == 2 and all(number.isdecimal() for number in numbers)
    if ":" not in address or not valid:
      raise UserError(
        f"--distributed={value}: give HOST:PORT,PROCESSES,INDEX, for example localhost:1234,2,0"
      )
    count, index = int(numbers[0]), int(numbers[1])
  try:
    jax.distributed.initialize(address, count, index)
  except (ValueError, RuntimeError) as error:
    raise UserError(f"--distributed: {error}; give HOST:PORT,PROCESSES,INDEX") from error
