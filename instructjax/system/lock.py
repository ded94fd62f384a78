"""One process at a time for a directory.

Two commands in one directory would write into the same files, and each would sweep away what the
other is about to finish. The lock is a file in the directory that says who holds it. The operating
system holds the lock itself and gives it up when the process ends, however it ends; where a file
system cannot do that, the file alone counts, and one of a process that has died is passed over.

A bucket has no locks, and a process that is killed leaves its file there. So the holder writes the
file anew every `BEAT` seconds, and whoever comes second watches it: a file that does not change for
`BEATS` times as long is that of a dead process. Two that start in the same second are not told
apart.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from instructjax.errors import UserError
from instructjax.system import jsons, places
from instructjax.system.places import AnyPath

NAME = ".lock"  # of the file in the directory

BEAT = 20.0  # seconds between two writes of the file in a bucket
BEATS = 3  # that a holder misses when it is dead

# What a file system says that has no locks.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

# The directories that this process holds, each with the number of its holders: a command holds
# its directory, and so does what it calls.
_holders: dict[AnyPath, int] = {}


@contextlib.contextmanager
def holding(folder: AnyPath) -> Iterator[None]:
  """Keeps every other process out of a directory, which is made where it is missing.

  A directory that was made here, and is empty in the end, is removed again.

  Raises:
    UserError: another process holds the directory, or the bucket cannot be written.
    OSError: the directory cannot be written.
  """
  place = folder.resolve() if isinstance(folder, Path) else folder
  if place in _holders:
    _holders[place] += 1
    try:
      yield
    finally:
      _holders[place] -= 1
    return
  lock = _locked(folder, place) if isinstance(place, Path) else _beating(place)
  with lock:
    _holders[place] = 1
    try:
      yield
    finally:
      del _holders[place]


# --- on a disk ---


@contextlib.contextmanager
def _locked(folder: AnyPath, place: Path) -> Iterator[None]:
  """Holds a directory of this machine; `folder` is what messages call it."""
  new_folders = _missing_folders(place)
  place.mkdir(parents=True, exist_ok=True)
  try:
    descriptor = _acquire(folder, place / NAME)
    try:
      yield
    finally:
      # The file goes first: whoever opens it after that finds that it is no longer there.
      with contextlib.suppress(OSError):
        (place / NAME).unlink()
      os.close(descriptor)
  finally:
    for new_folder in new_folders:
      with contextlib.suppress(OSError):  # it is not empty
        new_folder.rmdir()


def _missing_folders(place: Path) -> list[Path]:
  """Returns the folders of a path that do not exist, the innermost first."""
  return [folder for folder in (place, *place.parents) if not folder.exists()]


def _acquire(folder: AnyPath, path: Path) -> int:
  """Returns the descriptor of the locked file.

  Raises:
    UserError: another process holds it.
  """
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      _lock(folder, path, descriptor)
      # The holder before may have removed the file between our opening and our locking it.
      if _is_at(path, descriptor):
        os.ftruncate(descriptor, 0)
        content = jsons.text({"pid": os.getpid(), "host": socket.gethostname()})
        os.pwrite(descriptor, content.encode(), 0)
        return descriptor
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)


def _lock(folder: AnyPath, path: Path, descriptor: int) -> None:
  """Locks an open file, or raises UserError where another process holds it."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return
  except OSError as error:
    if error.errno not in WITHOUT_LOCKS:
      raise UserError(_refusal(folder, path, _holder(path))) from error
  # Here the file system has no locks, and the content of the file has to do.
  holder = _holder(path)
  if holder is not None and not _has_died(holder):
    raise UserError(_refusal(folder, path, holder))


def _is_at(path: Path, descriptor: int) -> bool:
  """Returns whether an open file is still the one of this path."""
  try:
    return os.path.samestat(path.stat(), os.fstat(descriptor))
  except FileNotFoundError:
    return False


# --- in a bucket ---


@contextlib.contextmanager
def _beating(place: epath.Path) -> Iterator[None]:
  """Holds a directory in a bucket."""
  path = place / NAME
  _wait_for_silence(place, path)
  _write_beat(path, 0)
  ended = threading.Event()

  def beat() -> None:
    number = 0
    while not ended.wait(BEAT):
      number += 1
      # A bucket that is out of reach for a moment is no reason to stop: the next beat may arrive.
      with contextlib.suppress(Exception):
        _write_beat(path, number)

  # It does not keep a process alive whose run has ended in another way.
  thread = threading.Thread(target=beat, name="lock", daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    # A file that stays is that of a process without beats, for which the next one does not wait
    # longer than for any dead one.
    with contextlib.suppress(Exception):
      path.unlink(missing_ok=True)


def _write_beat(path: epath.Path, number: int) -> None:
  holder = {"pid": os.getpid(), "host": socket.gethostname(), "beat": number}
  with places.reaching(path):
    path.write_bytes(jsons.text(holder).encode())


def _wait_for_silence(place: epath.Path, path: epath.Path) -> None:
  """Returns when no living process holds a directory in a bucket.

  Raises:
    UserError: another process holds it, or the bucket cannot be read.
  """
  before = _read_beat(path)
  if before is None:
    return
  holder = _parse_holder(before)
  if holder is not None and _has_died(holder):
    return
  print(
    f"note: {path} was left by another process; waiting {BEAT * BEATS:.0f} s to see whether it "
    "still runs",
    file=sys.stderr,
    flush=True,
  )
  for _ in range(BEATS):
    time.sleep(BEAT)
    now = _read_beat(path)
    if now is None:
      return
    if now != before:
      raise UserError(_refusal(place, path, _parse_holder(now)))


def _read_beat(path: epath.Path) -> bytes | None:
  """The content of a lock file in a bucket; None where there is none."""
  with places.reaching(path), contextlib.suppress(FileNotFoundError):
    return path.read_bytes()
  return None


# --- the holder ---


def _holder(path: Path) -> dict[str, Any] | None:
  """Returns {pid, host} of the process that a lock file names, or None."""
  try:
    return _parse_holder(path.read_bytes())
  except OSError:
    return None


def _parse_holder(content: bytes) -> dict[str, Any] | None:
  """Returns {pid, host} of the process that the content of a lock file names, or None."""
  try:
    holder = json.loads(content)
    return {"pid": int(holder["pid"]), "host": str(holder["host"])}
  except (ValueError, TypeError, KeyError):
    return None  # its holder has not written it yet


def _has_died(holder: dict[str, Any]) -> bool:
  """Returns whether a holder was a process of this machine that has ended."""
  if holder["host"] != socket.gethostname():
    return False
  try:
    os.kill(holder["pid"], 0)  # sends nothing
  except ProcessLookupError:
    return True
  except OSError:
    return False  # it is there, and belongs to another user
  return holder["pid"] == os.getpid()  # the number was given anew, to this process


def _refusal(folder: AnyPath, path: AnyPath, holder: dict[str, Any] | None) -> str:
  """Returns the message for whoever comes second."""
  name = "another process"
  if holder is not None:
    name = f"process {holder['pid']} on {holder['host']}"
  return (
    f"{folder}: {name} is writing here; wait until it ends, or name another --workdir (if it has "
    f"ended, delete {path})"
  )
