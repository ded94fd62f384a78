"""Other places where metrics may go besides metrics.jsonl: TensorBoard and Weights & Biases.

What opens a sink is a context manager, which closes it at the end of the run.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.errors import UserError
from instructjax.system import jsons, places
from instructjax.system.places import AnyPath

WANDB = "wandb.json"  # holds the id of the run

Config = Mapping[str, Any]  # the settings of a run, as they stand in its config.json
Scalars = Mapping[str, float]  # metrics by name
Rows = Sequence[Mapping[str, Any]]  # of a table, all with the same columns


class Sink(NamedTuple):
  """Functions of a step and the name of its stage.

  scalars(step, stage, metrics)   shows the metrics
  table(step, stage, rows)        shows samples
  """

  scalars: Callable[[int, str, Scalars], None]
  table: Callable[[int, str, Rows], None]


OpenSink = Callable[[AnyPath, Config], contextlib.AbstractContextManager[Sink]]


@contextlib.contextmanager
def tensorboard(workdir: AnyPath, config: Config) -> Iterator[Sink]:
  """Writes event files under `tensorboard/`, with one tag for each stage and metric."""
  tensorboardX = _import_package("tensorboardX", "tensorboard")
  events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

  def show_scalars(step: int, stage: str, scalars: Scalars) -> None:
    for name, value in scalars.items():
      events.add_scalar(f"{stage}/{name}", value, step)

  def show_table(step: int, stage: str, rows: Rows) -> None:
    events.add_text(f"{stage}/samples", markdown(rows), step)

  try:
    yield Sink(show_scalars, show_table)
  finally:
    events.close()


@contextlib.contextmanager
def wandb(workdir: AnyPath, config: Config) -> Iterator[Sink]:
  """Logs to a Weights & Biases run that is named after the directory.

  Its id stays in wandb.json, so that a run that goes on is the same one there too.
  """
  package = _import_package("wandb", "wandb")
  # Its own files stay on this machine; it has a temporary folder for them where none is given.
  own_folder = None if places.is_address(workdir) else str(workdir)
  run = package.init(
    project="instructjax",
    name=workdir.name,
    id=_wandb_id(workdir),
    dir=own_folder,
    config=dict(config),
    resume="allow",
  )

  def show_scalars(step: int, stage: str, scalars: Scalars) -> None:
    row = {f"{stage}/{name}": value for name, value in scalars.items()}
    # A run has several stages that all count from 1, while the step of Weights & Biases may only
    # grow. So the step is a metric of its own.
    row[f"{stage}/step"] = step
    run.log(row)

  def show_table(step: int, stage: str, rows: Rows) -> None:
    columns = list(rows[0])
    table = package.Table(columns=columns, data=[list(row.values()) for row in rows])
    run.log({f"{stage}/samples": table, f"{stage}/step": step})

  try:
    yield Sink(show_scalars, show_table)
  finally:
    run.finish()


def markdown(rows: Rows) -> str:
  """A table in Markdown, as TensorBoard shows it; a line break within a cell is one of HTML."""

  def line(cells: Iterable[Any]) -> str:
    texts = [html.escape(str(cell)) for cell in cells]
    joined = " | ".join(text.replace("|", "&#124;").replace("\n", "<br>") for text in texts)
    return f"| {joined} |"

  head = list(rows[0])
  return "\n".join([line(head), line("---" for _ in head), *(line(row.values()) for row in rows)])


def _wandb_id(workdir: AnyPath) -> str:
  """Returns the id of the run in a directory, which is drawn where it has none."""
  path = workdir / WANDB
  if path.exists():
    remedy = "delete it; Weights & Biases then shows what follows as another run"
    saved_id = jsons.read_object(path, remedy).get("id")
    if not isinstance(saved_id, str) or not saved_id:
      raise UserError(f"{path}: holds no id; {remedy}")
    return saved_id
  new_id = secrets.token_hex(4)
  try:
    jsons.write(path, {"id": new_id})
  except OSError as error:
    raise UserError(
      f"{path}: cannot be written ({error.strerror or error}); free some space or name another "
      "--workdir"
    ) from error
  return new_id


# By the names that --writer takes.
SINKS: dict[str, OpenSink] = {"tensorboard": tensorboard, "wandb": wandb}


def _import_package(name: str, extra: str) -> Any:
  """Imports a package that only a sink needs.

  Raises:
    UserError: where it is not installed; the message names the extra of ours that brings it.
  """
  try:
    return importlib.import_module(name)
  except ImportError:
    python = Path(sys.executable).name
    raise UserError(
      f"--writer={extra} needs the package {name}: "
      f"run `{python} -m pip install 'instructjax[{extra}]'`"
    ) from None
