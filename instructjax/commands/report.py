"""`instructjax report`: one HTML page from a run directory."""

from __future__ import annotations

import argparse

from instructjax.commands.options import Fields
from instructjax.system import places


def arguments(command: argparse.ArgumentParser) -> None:
  """The options of `instructjax report`."""
  command.add_argument("--workdir", required=True)


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Writes the page and prints its path."""
  from instructjax.runs import report

  print(report.write(places.directory(args.workdir)))
