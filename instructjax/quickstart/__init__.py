"""The whole method on real input: SmolLM2-135M and sentences whose tone people rated.

It runs the stages of the package one after the other (`recipe`), each in its own directory, and
measures what they left (`evaluation`). WORKDIR gets:

  data/           the records, as JSONL files
  models/NAME/    the base model and a run for each stage, with the whole model that it left
  metrics.jsonl   the metrics of all stages, under the names of the runs
  seconds.json    the seconds of each stage
  results.json, samples.jsonl, report.html
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from instructjax.data.records.records import fingerprint
from instructjax.plan import meter
from instructjax.quickstart import data, evaluation, examples, tables, telling
from instructjax.quickstart.models import leave_base, one_line, open_trained
from instructjax.quickstart.recipe import data_folder, model_folder, runs
from instructjax.runs import report, writers
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.report import files, verdict
from instructjax.settings.fields import to_dict
from instructjax.settings.quickstart import FAST, QuickstartSettings
from instructjax.stages import running
from instructjax.system import jsons, memory, places

# The name that notebooks use.
Quickstart = QuickstartSettings
# A file of WORKDIR: {part: seconds}.
SECONDS = "seconds.json"

__all__ = ["FAST", "Quickstart", "main", "one_line"]


def main(settings: Quickstart, workdir: str | Path, sinks: tuple[str, ...] = ()) -> Path:
  """Runs everything, prints the tables, and returns the path of the report.

  Run again with the same directory and settings, it goes on where it stopped: a finished stage is
  passed over, and an interrupted one continues from its last checkpoint. `sinks` are where the
  stages send their metrics besides.

  Raises:
    UserError: the model cannot be fetched, or the directory holds a run with other settings.
  """
  places.require_local(workdir, "--workdir")
  workdir = Path(workdir)
  begun = time.perf_counter()
  stage_runs = runs(settings, workdir)
  names = list(stage_runs)
  telling.begin(settings, workdir)
  # This directory has no stage of its own, so the sinks belong to those of the runs.
  with writers.open_run(workdir, to_dict(settings), seed=settings.seed):
    with timed(workdir, "set-up"):
      set_up(settings, workdir)
    # From here on the directory belongs to these settings: other ones are refused.
    gather_metrics(workdir, names)
    example_of = examples.teller(settings, workdir)
    for name, stage_run in stage_runs.items():
      folder = model_folder(workdir, name)
      if not is_finished(folder):
        with timed(workdir, name):
          watch = running.Watch(meter.seconds_at_peak)
          stage_run.run(stage_run.settings, folder, sinks, watch)
        gather_metrics(workdir, names)
      sentence = telling.learnt(name, writers.rows(folder / "metrics.jsonl"))
      print("\n".join([sentence, *example_of(name)]), flush=True)
    # Only the evaluation opens the models: each stage holds those that it needs, and no others.
    with timed(workdir, "evaluation"):
      trained = open_trained(settings, workdir)
      measured = evaluation.evaluate(settings, trained, data_folder(workdir))
      del trained
    writers.keep(workdir / "samples.jsonl", measured.samples)
    gather_metrics(workdir, names, measured.metrics)

  results = dict(measured.results)
  seconds = read_seconds(workdir)
  seconds["total"] = round(sum(seconds.values()), 1)
  results["seconds"] = seconds
  results["wall_s"] = round(time.perf_counter() - begun, 1)  # of this call alone
  results["peak_rss_gb"] = round(memory.peak_gb(), 2)
  results["seed"] = settings.seed
  jsons.write(workdir / "results.json", results)
  report.write(workdir)
  page = workdir / "report.html"
  tables.show(results, page)
  print(f"All measures together: {verdict.headline(files.read(workdir))}.")
  telling.finish(settings, workdir, measured.samples)
  return page


def set_up(settings: Quickstart, workdir: Path) -> None:
  """Leaves the base model and writes the data, once for a directory."""
  # The metrics are written after both for the first time.
  if (workdir / "metrics.jsonl").is_file():
    return
  folder = model_folder(workdir, "base")
  # An interrupted set-up may have left the base of other settings.
  shutil.rmtree(folder, ignore_errors=True)
  tokenizer = leave_base(settings, folder)
  tasks = data.write(settings, data_folder(workdir), tokenizer)
  prints = {"demonstrations": fingerprint(tasks.demonstrations)}
  writers.note(workdir, fingerprints=prints)


def is_finished(folder: Path) -> bool:
  """Returns whether a run has left its model."""
  final = Checkpoints(folder / "checkpoints" / "final")
  return final.latest() is not None


@contextlib.contextmanager
def timed(workdir: Path, name: str) -> Iterator[None]:
  """Adds the seconds of a part to `seconds.json`, over all calls with the same directory."""
  begun = time.perf_counter()
  yield
  # No later stage calls the programs of this one. Compiling them leaves much free memory with the
  # allocator, which the next stage would add to.
  jax.clear_caches()
  memory.release()
  elapsed = time.perf_counter() - begun
  seconds = read_seconds(workdir)
  before = seconds.get(name, 0.0)
  seconds[name] = round(before + elapsed, 1)
  jsons.write(workdir / SECONDS, seconds, indent=None)


def read_seconds(workdir: Path) -> dict[str, float]:
  """Returns the seconds of each part so far."""
  path = workdir / SECONDS
  if not path.is_file():
    return {}
  return jsons.read_object(path, "delete it and run again; the times are then of what follows")


def gather_metrics(workdir: Path, names: list[str], more: Sequence[dict[str, Any]] = ()) -> None:
  """Writes the metrics of all runs into one file, each under the name of its run.

  The stages call themselves "reward" twice and "ppo" twice; the report tells the runs apart. The
  lines of `more` follow.
  """
  rows: list[dict[str, Any]] = []
  for name in names:
    rows_of_run = writers.rows(model_folder(workdir, name) / "metrics.jsonl")
    rows += [row | {"stage": name} for row in rows_of_run]
  writers.keep(workdir / "metrics.jsonl", [*rows, *more])
