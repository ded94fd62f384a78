"""The files of a run directory: config.json, manifest.json, metrics.jsonl, samples.jsonl and
draws.jsonl.

Metrics may also go to TensorBoard or Weights & Biases.  With several processes only the first
one writes.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib
import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from instructjax.errors import UserError
from instructjax.system.atomic import replace

Scalars = Mapping[str, float]
PACKAGES = ("instructjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


# Fields that may change when a run goes on: they change no number but for the order of sums.
FREE = ("mesh", "checkpoint_every", "keep", "best", "log_every", "evaluate_every")


class Writer(NamedTuple):
  """Where a stage leaves its numbers.

  metrics(step, stage, scalars)   one line of metrics.jsonl; a number that is not finite becomes null
  samples(rows)                   lines of samples.jsonl
  rewind(stage, step)             drops what the stage wrote after `step`: it will be written again
  """

  metrics: Callable[[int, str, Scalars], None]
  samples: Callable[[Iterable[Mapping[str, Any]]], None]
  rewind: Callable[[str, int], None]


Sink = Callable[[int, str, Scalars], None]
DRAWS = "draws.jsonl"  # of a run that samples: from here it goes on
SILENT = Writer(lambda step, stage, scalars: None, lambda rows: None, lambda stage, step: None)


@contextlib.contextmanager
def open_run(
  workdir: str | Path, config: Mapping[str, Any], *, seed: int = 0, sinks: tuple[str, ...] = ()
) -> Iterator[Writer]:
  """A run directory, new or to be continued; `sinks` may name "tensorboard" and "wandb".

  Raises UserError where the directory cannot be written, holds a run with another configuration,
  or a package for a sink is missing.
  """
  workdir = Path(workdir)
  if jax.process_index() > 0:
    yield SILENT
    return
  config = json.loads(json.dumps(config))
  _same(workdir, config)
  with contextlib.ExitStack() as stack:
    extra = [stack.enter_context(SINKS[name](workdir, config)) for name in sinks]
    with _writable(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
      _whole(workdir / "config.json", config)
    note(workdir, **manifest(seed))
    yield _writer(workdir, extra)


def fingerprint(config: Mapping[str, Any]) -> str:
  """A hash of the settings that make a run what it is."""
  text = json.dumps(
    {name: value for name, value in config.items() if name not in FREE}, sort_keys=True
  )
  return hashlib.sha256(text.encode()).hexdigest()


def note(workdir: str | Path, **facts: Any) -> None:
  """Adds facts to manifest.json, the fingerprints of the data for one."""
  if jax.process_index() > 0:
    return
  path = Path(workdir) / "manifest.json"
  with _writable(path):
    known = json.loads(path.read_text()) if path.is_file() else {}
    _whole(path, known | facts)


def manifest(seed: int) -> dict[str, Any]:
  """Versions, device and seed."""
  return {
    "seed": seed,
    "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "python": platform.python_version(),
    "system": f"{platform.system()} {platform.machine()}",
    "versions": {name: _version(name) for name in PACKAGES},
    "device": jax.devices()[0].device_kind,
    "backend": jax.default_backend(),
    "devices": jax.device_count(),
    "processes": jax.process_count(),
  }


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"


def _writer(workdir: Path, sinks: list[Sink]) -> Writer:
  def metrics(step: int, stage: str, scalars: Scalars) -> None:
    values = {name: float(value) for name, value in scalars.items()}
    row = {"step": step, "stage": stage} | {
      k: v if math.isfinite(v) else None for k, v in values.items()
    }
    append(workdir / "metrics.jsonl", [row])
    for sink in sinks:
      sink(step, stage, values)

  def rewind(stage: str, step: int) -> None:
    path = workdir / "metrics.jsonl"
    if not path.is_file():
      return
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and not _after(line, stage, step)]
    if len(kept) < len(lines):
      with _writable(path):
        replace(path, "".join(kept))

  return Writer(metrics, lambda rows: append(workdir / "samples.jsonl", rows), rewind)


def _after(line: str, stage: str, step: int) -> bool:
  """Whether a line was written by `stage` after `step`, or is only the beginning of a line."""
  try:
    row = json.loads(line)
  except ValueError:
    return True
  return row["stage"] == stage and row["step"] > step


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Adds lines, in the first process."""
  if jax.process_index() > 0:
    return
  text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  with _writable(path), path.open("a", encoding="utf-8") as file:
    file.write(text)


def keep(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Leaves a file with just these lines, in the first process."""
  if jax.process_index() > 0:
    return
  with _writable(path):
    replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def rows(path: Path) -> list[dict[str, Any]]:
  """The lines of a file up to the first that is not whole; none where there is no file."""
  found = []
  with contextlib.suppress(FileNotFoundError, ValueError), path.open(encoding="utf-8") as file:
    for line in file:
      if not line.endswith("\n"):
        break
      found.append(json.loads(line))
  return found


def _whole(path: Path, value: Any) -> None:
  replace(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{path}: cannot be written ({error.strerror or error}); free some space or name another "
      "--workdir, then run the same command again"
    ) from error


def _same(workdir: Path, config: Mapping[str, Any]) -> None:
  """Raises UserError where the directory holds the metrics, draws or checkpoints of a run with
  other settings.
  """
  path = workdir / "config.json"
  begun = any((workdir / name).exists() for name in ("metrics.jsonl", DRAWS, "checkpoints"))
  if not (begun and path.is_file()):
    return
  try:
    before = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: cannot be read ({error}); name another --workdir") from None
  fixed = lambda settings: {name: value for name, value in settings.items() if name not in FREE}
  for key, old, new in _differences(fixed(before), fixed(config)):
    raise UserError(
      f"{workdir} holds a run with {key}={old!r}, this one has {key}={new!r}: name another "
      "--workdir, or use the "
      "settings of that run to go on with it"
    )


def _differences(old: Any, new: Any, place: str = "config") -> Iterator[tuple[str, Any, Any]]:
  if not (isinstance(old, dict) and isinstance(new, dict)):
    if old != new:
      yield place, old, new
    return
  for key in sorted(old.keys() | new.keys()):
    yield from _differences(old.get(key), new.get(key), f"{place}.{key}")


# --- sinks ---


@contextlib.contextmanager
def tensorboard(workdir: Path, config: Mapping[str, Any]) -> Iterator[Sink]:
  """Event files under `tensorboard/`, one tag for each stage and metric."""
  events = _package("tensorboardX", "tensorboard").SummaryWriter(str(workdir / "tensorboard"))

  def sink(step: int, stage: str, scalars: Scalars) -> None:
    for name, value in scalars.items():
      events.add_scalar(f"{stage}/{name}", value, step)

  try:
    yield sink
  finally:
    events.close()


@contextlib.contextmanager
def wandb(workdir: Path, config: Mapping[str, Any]) -> Iterator[Sink]:
  """A Weights & Biases run named after the directory."""
  package = _package("wandb", "wandb")
  run = package.init(
    project="instructjax", name=workdir.name, dir=str(workdir), config=dict(config), resume="allow"
  )

  def sink(step: int, stage: str, scalars: Scalars) -> None:
    run.log({f"{stage}/{name}": value for name, value in scalars.items()} | {f"{stage}/step": step})

  try:
    yield sink
  finally:
    run.finish()


SINKS: dict[str, Callable[[Path, Mapping[str, Any]], contextlib.AbstractContextManager[Sink]]] = {
  "tensorboard": tensorboard,
  "wandb": wandb,
}


def _package(name: str, extra: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError:
    raise UserError(
      f"--writer={extra} needs the package {name}: run `{Path(sys.executable).name} -m pip install "
      f"'instructjax[{extra}]'`"
    ) from None
