"""One process at a time for a directory.

Two commands in one directory would write into the same files, and each would sweep away what the
other is about to finish. The lock is a file in the directory that says who holds it. The operating
system holds the lock itself and gives it up when the process ends, however it ends; where a file
system cannot do that, the file alone counts, and one of a process that has died is passed over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.system import jsons

NAME = ".lock"  # of the file in the directory

# What a file system says that has no locks.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

# The directories that this process holds, each with the number of its holders: a command holds
# its directory, and so does what it calls.
_holders: dict[Path, int] = {}


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
  """Keeps every other process out of a directory, which is made where it is missing.

  A directory that was made here, and is empty in the end, is removed again.

  Raises:
    UserError: another process holds the directory.
    OSError: the directory cannot be written.
  """
  place = folder.resolve()
  if place in _holders:
    _holders[place] += 1
    try:
      yield
    finally:
      _holders[place] -= 1
    return
  new_folders = _missing_folders(place)
  place.mkdir(parents=True, exist_ok=True)
  try:
    descriptor = _acquire(folder, place / NAME)
    _holders[place] = 1
    try:
      yield
    finally:
      del _holders[place]
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


def _acquire(folder: Path, path: Path) -> int:
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


def _lock(folder: Path, path: Path, descriptor: int) -> None:
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


def _holder(path: Path) -> dict[str, Any] | None:
  """Returns {pid, host} of the process that a lock file names, or None."""
  try:
    holder = json.loads(path.read_text(encoding="utf-8"))
    return {"pid": int(holder["pid"]), "host": str(holder["host"])}
  except (OSError, ValueError, TypeError, KeyError):
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


def _refusal(folder: Path, path: Path, holder: dict[str, Any] | None) -> str:
  """Returns the message for whoever comes second."""
  name = "another process"
  if holder is not None:
    name = f"process {holder['pid']} on {holder['host']}"
  return (
    f"{folder}: {name} is writing here; wait until it ends, or name another --workdir (if it has "
    f"ended, delete {path})"
  )
