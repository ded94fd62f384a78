"""The files of a run directory: its settings, its manifest, and its files of lines.

config.json holds the settings, manifest.json versions, device, seed and fingerprints of the data.
metrics.jsonl, samples.jsonl and draws.jsonl hold one JSON object a line. Metrics may also go to
TensorBoard or Weights & Biases (`sinks`). With several processes only the first one writes.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from instructjax.errors import UserError
from instructjax.runs.sinks import SINKS, Config, Scalars, Sink
from instructjax.system import growing, jsons, lock, places
from instructjax.system.atomic import replace
from instructjax.system.places import AnyPath

Row = Mapping[str, Any]  # the object of one line

# Packages whose versions the manifest holds.
PACKAGES = ("instructjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

# The layout of config.json. Version 0.1 wrote none, and its settings had other fields.
FORMAT = 2
# Fields that may change when a run goes on. They change no number, except for the order of sums.
FREE = (
  "mesh",
  "checkpoint_every",
  "keep",
  "best",
  "log_every",
  "evaluate_every",
  "sample_every",
  "samples",
)

DRAWS = "draws.jsonl"  # the responses of a run that samples, from which it goes on


class Writer(NamedTuple):
  """Four functions by which a stage leaves its numbers.

  `metrics(step, stage, scalars)` adds a line to metrics.jsonl, where a number that is not finite
  becomes null. `samples(rows)` adds lines to samples.jsonl. `table(step, stage, rows)` does so too,
  with the stage and the step (as `iteration`) in each line, and gives the rows to the sinks.
  `rewind(stage, step)` drops what the stage wrote after `step`, because it will be written again.
  `flush()` brings every line into the directory: those for a bucket wait in memory for their time
  (`system.growing`).
  """

  metrics: Callable[[int, str, Scalars], None]
  samples: Callable[[Iterable[Row]], None]
  table: Callable[[int, str, Sequence[Row]], None]
  rewind: Callable[[str, int], None]
  flush: Callable[[], None]


# The writer of every process but the first.
SILENT = Writer(
  metrics=lambda step, stage, scalars: None,
  samples=lambda rows: None,
  table=lambda step, stage, rows: None,
  rewind=lambda stage, step: None,
  flush=lambda: None,
)


@contextlib.contextmanager
def open_run(
  workdir: str | AnyPath,
  config: Config,
  *,
  seed: int = 0,
  sinks: tuple[str, ...] = (),
) -> Iterator[Writer]:
  """Opens a run directory, new or to be continued; `sinks` may name "tensorboard" and "wandb".

  No other process can open it until the body ends.

  Raises:
    UserError: where the directory cannot be written, where another process writes there, where it
      holds a run with another configuration, or where a package for a sink is missing.
  """
  workdir = places.directory(workdir)
  if jax.process_index() > 0:
    yield SILENT
    return
  with contextlib.ExitStack() as stack:  # closes the sinks when the run ends
    stack.enter_context(holding(workdir))
    check_same_run(workdir, config)
    openings = [SINKS[name](workdir, _as_json(config)) for name in sinks]
    open_sinks = [stack.enter_context(opening) for opening in openings]
    with _writable(workdir):
      jsons.write(workdir / "config.json", _as_json(config))
    note(workdir, **manifest(seed))
    yield _writer(workdir, open_sinks)


@contextlib.contextmanager
def holding(workdir: str | AnyPath) -> Iterator[None]:
  """Keeps every other command out of a run directory, which is made where it is missing.

  Of several processes of one command the first one holds it for all. Within a process it may be
  held again, so a command can hold its directory before it reads anything. In the end, also after
  an error, every line is in the directory.

  Raises:
    UserError: where another process writes there, or where the directory cannot be written.
  """
  folder = places.directory(workdir)
  if jax.process_index() > 0:
    yield
    return
  with contextlib.ExitStack() as stack:
    with _writable(folder):
      stack.enter_context(lock.holding(folder))
    try:
      yield
    except BaseException:
      # What has stopped the run counts more than a bucket that cannot be written.
      try:
        growing.flush(folder)
      except UserError as error:
        print(f"note: {error}; the last lines are lost", file=sys.stderr, flush=True)
      raise
    else:
      growing.flush(folder)
    finally:
      growing.forget(folder)


def fingerprint(config: Config) -> str:
  """A hash of the settings that make a run what it is, as hexadecimal digits."""
  text = jsons.text(_binding(config), ascii_only=True, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _binding(config: Config) -> dict[str, Any]:
  """The settings that may not change when a run goes on."""
  return {name: value for name, value in config.items() if name not in FREE}


def note(workdir: str | AnyPath, **facts: Any) -> None:
  """Adds facts to manifest.json, for example the fingerprints of the data.

  Raises:
    UserError: where the file is damaged or cannot be written.
  """
  if jax.process_index() > 0:
    return
  path = places.directory(workdir) / "manifest.json"
  content = read_manifest(path.parent) | facts
  with _writable(path):
    jsons.write(path, content)


def read_manifest(workdir: AnyPath) -> dict[str, Any]:
  """The facts in manifest.json; none where there is no file.

  Raises:
    UserError: where it is damaged.
  """
  path = workdir / "manifest.json"
  if not path.exists():
    return {}
  remedy = "move it away and run the same command again, which writes it anew"
  return jsons.read_object(path, remedy)


def mark_finished(workdir: AnyPath, stage: str, step: int) -> None:
  """Notes that a stage is finished, after everything else that it leaves is written.

  Raises:
    UserError: where manifest.json is damaged or cannot be written.
  """
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  note(workdir, finished={"stage": stage, "step": step, "at": now})


def finished_step(workdir: AnyPath, config: Config) -> int | None:
  """The step at which a run of these settings is finished; None where it is not.

  The data are not read again: their fingerprints, which config.json holds, are left out.

  Raises:
    UserError: where config.json or manifest.json is damaged.
  """
  path = workdir / "config.json"
  finished = read_manifest(workdir).get("finished")
  if finished is None or not path.is_file():
    return None
  saved_config = jsons.read_object(path, "name another --workdir")
  saved_config.pop("fingerprints", None)
  if _binding(saved_config) != _binding(_as_json(config)):
    return None
  return finished["step"]


def manifest(seed: int) -> dict[str, Any]:
  """The versions, the devices and the seed with which a run starts."""
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


def _writer(workdir: AnyPath, open_sinks: list[Sink]) -> Writer:
  """The writer of the first process."""

  def write_metrics(step: int, stage: str, scalars: Scalars) -> None:
    values = {name: float(value) for name, value in scalars.items()}
    row: dict[str, Any] = {"step": step, "stage": stage}
    for name, value in values.items():
      # JSON has no NaN and no infinity. The sinks get the value as it is.
      row[name] = value if math.isfinite(value) else None
    append(workdir / "metrics.jsonl", [row])
    for sink in open_sinks:
      sink.scalars(step, stage, values)

  def write_samples(rows: Iterable[Row]) -> None:
    append(workdir / "samples.jsonl", rows)

  def write_table(step: int, stage: str, rows: Sequence[Row]) -> None:
    write_samples([{"stage": stage, "iteration": step, **row} for row in rows])
    for sink in open_sinks:
      sink.table(step, stage, rows)

  def rewind(stage: str, step: int) -> None:
    for name, is_after in (("metrics.jsonl", _is_after), ("samples.jsonl", _is_sample_after)):
      path = workdir / name
      growing.flush(path)
      if not path.is_file():
        continue
      with _writable(path):
        content = path.read_bytes().decode(errors="replace")
      lines = content.splitlines(keepends=True)
      remaining = [line for line in lines if not is_after(line, stage, step)]
      if len(remaining) < len(lines):  # else the file is left alone
        _replace(path, "".join(remaining))

  def flush() -> None:
    growing.flush(workdir)

  return Writer(
    metrics=write_metrics, samples=write_samples, table=write_table, rewind=rewind, flush=flush
  )


def _is_after(line: str, stage: str, step: int) -> bool:
  """Returns whether `stage` wrote a line after `step`, or whether the line is not whole."""
  # A line without its end was cut by a crash. It must go even where its JSON is whole, or the next
  # line would be written onto its end.
  if not line.endswith("\n"):
    return True
  try:
    row = json.loads(line)
    # Other stages share the file, as in the quickstart; their lines stay.
    return row["stage"] == stage and row["step"] > step
  except (ValueError, TypeError, KeyError):
    return True


def _is_sample_after(line: str, stage: str, step: int) -> bool:
  """Returns whether `stage` wrote a sample after `step`, or whether the line is not whole."""
  if not line.endswith("\n"):
    return True
  try:
    row = json.loads(line)
  except ValueError:
    return True
  # What no stage of training wrote has no iteration, and stays.
  return isinstance(row, dict) and row.get("stage") == stage and row.get("iteration", 0) > step


def append(path: AnyPath, rows: Iterable[Row]) -> None:
  """Adds lines to a file, in the first process; in a bucket they may wait in memory (`flush`).

  Raises:
    UserError: where the file cannot be written, or a row holds a number that is not finite.
  """
  if jax.process_index() > 0:
    return
  text = _json_lines(path, rows)  # in one piece, so that a crash cuts one line at most
  with _writable(path):
    growing.append(path, text)


def flush(workdir: AnyPath) -> None:
  """Brings every line that waits into a directory, in the first process.

  Raises:
    UserError: where a bucket cannot be written.
  """
  if jax.process_index() == 0:
    growing.flush(workdir)


def keep(path: AnyPath, rows: Iterable[Row]) -> None:
  """Leaves a file with just these lines, in the first process.

  Raises:
    UserError: where the file cannot be written, or a row holds a number that is not finite.
  """
  if jax.process_index() > 0:
    return
  _replace(path, _json_lines(path, rows))


def _replace(path: AnyPath, text: str) -> None:
  """Leaves a file of lines with this content, whatever waits for it."""
  growing.forget(path)
  with _writable(path):
    replace(path, text)


def _json_lines(path: AnyPath, rows: Iterable[Row]) -> str:
  """The lines of a file.

  Raises:
    UserError: where a row holds a number that is not finite. A later run goes on from these lines,
      so nothing may take its place.
  """
  texts = []
  for number, row in enumerate(rows, 1):
    try:
      texts.append(jsons.text(row) + "\n")
    except ValueError as error:
      raise UserError(
        f"{path}: new line {number}: {error}; look at the model or the reward that gave this number"
      ) from error
  return "".join(texts)


def keep_results(workdir: AnyPath, results: Mapping[str, Any]) -> None:
  """Leaves what a stage measured at its end in results.json, in the first process.

  Raises:
    UserError: where the file cannot be written.
  """
  if jax.process_index() > 0:
    return
  path = workdir / "results.json"
  with _writable(path):
    jsons.write(path, results)


def rows(path: AnyPath) -> list[dict[str, Any]]:
  """The lines of a file up to the first that is not whole; none where there is no file."""
  flush(path)
  content = b""
  with contextlib.suppress(FileNotFoundError), places.reaching(path):
    content = path.read_bytes()
  whole_rows = []
  with contextlib.suppress(ValueError):
    for line in content.splitlines(keepends=True):
      row = json.loads(line.decode())
      if not line.endswith(b"\n") or not isinstance(row, dict):
        break
      whole_rows.append(row)
  return whole_rows


@contextlib.contextmanager
def _writable(path: AnyPath) -> Iterator[None]:
  """Turns an error of the disk, or of a bucket, into a UserError that names the path."""
  try:
    with places.reaching(path):
      yield
  except OSError as error:
    raise UserError(
      f"{path}: cannot be written ({error.strerror or error}); free some space or name another "
      "--workdir, then run the same command again"
    ) from error


def _as_json(config: Config) -> dict[str, Any]:
  """The settings as config.json gives them back, where a tuple is a list."""
  return json.loads(jsons.text(config)) | {"format": FORMAT}


def check_same_run(workdir: AnyPath, config: Config) -> None:
  """Checks that a directory with results belongs to a run with these settings.

  Where a run has settings but no metrics, draws or checkpoints yet, the settings may change.

  Raises:
    UserError: where another setting was used, or where config.json cannot be read.
  """
  path = workdir / "config.json"
  results = ("metrics.jsonl", DRAWS, "checkpoints")
  has_results = any((workdir / name).exists() for name in results)
  if not has_results or not path.is_file():
    return  # nothing has been computed with the old settings
  saved_config = jsons.read_object(path, "name another --workdir")
  if saved_config.get("format") != FORMAT:
    raise UserError(
      f"{workdir}: holds a run of another version of InstructJAX, whose settings had other fields, "
      "so "
      "it cannot go on; name another --workdir (a model that it finished is still a --model)"
    )
  differences = _differences(_binding(saved_config), _binding(_as_json(config)))
  for key, old, new in differences:  # the first one is enough
    raise UserError(
      f"{workdir} holds a run with {key}={old!r}, this one has {key}={new!r}: "
      "name another --workdir, or use the settings of that run to go on with it"
    )


def _differences(
  old: Any,
  new: Any,
  place: str = "config",
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (dotted name, old value, new value) of the settings that differ."""
  if not (isinstance(old, dict) and isinstance(new, dict)):
    if old != new:
      yield place, old, new
    return
  # A setting that one side lacks counts as None there.
  for key in sorted(old.keys() | new.keys()):
    yield from _differences(old.get(key), new.get(key), f"{place}.{key}")
