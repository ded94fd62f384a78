"""`instructjax report`: one HTML page from a run directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from instructjax.commands.options import Fields


def arguments(command: argparse.ArgumentParser) -> None:
  """The options of `instructjax report`."""
  command.add_argument("--workdir", required=True)


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Writes the page and prints its path."""
  from instructjax.runs import report

  print(report.write(Path(args.workdir)))
