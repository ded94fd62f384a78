"""`instructjax report`: one HTML page from a run directory."""

from __future__ import annotations

import argparse

from instructjax.commands.options import Fields, add_distributed, join_others
from instructjax.system import places


def arguments(command: argparse.ArgumentParser) -> None:
  """The options of `instructjax report`."""
  command.add_argument("--workdir", required=True)
  add_distributed(command)


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Writes the page and prints its path, in the first of several processes."""
  if not join_others(args):
    return
  from instructjax.runs import report

  print(report.write(places.directory(args.workdir)))
