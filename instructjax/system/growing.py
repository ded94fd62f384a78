"""Files of lines that grow: each append is a write on a disk, and waits for its time in a bucket.

An object in a bucket cannot be appended to, only written again as a whole, and a bucket takes about
one write a second of the same object. So the whole file is also held in memory, and it is written
by time: once `SECONDS` have passed, and not before `RESTS` times as long has passed as the last
write took. Writing thus takes 1 % of the time at most, however long the file becomes. Whoever needs
the lines in the bucket asks for that (`flush`). A process that is killed loses the lines since.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path

from instructjax.errors import UserError
from instructjax.system import places
from instructjax.system.places import AnyPath

SECONDS = 30.0  # between two writes of a file, at least
RESTS = 100  # times as long as a write took, at least


@dataclasses.dataclass
class _Growing:
  """The file of an address.

  content     all that the object shall hold
  written     bytes of it that the object holds
  due         the time from which the next append writes the object, by `time.monotonic`
  """

  content: bytearray
  written: int
  due: float


# The files that this process appends to, by their addresses.
_files: dict[str, _Growing] = {}


def append(path: AnyPath, text: str) -> None:
  """Adds a text to the end of a file, as UTF-8; in a bucket it may wait in memory.

  A write into a bucket that fails is said on stderr and tried again by the next appends.

  Raises:
    OSError: the file cannot be written.
    UserError: the file in the bucket cannot be read.
  """
  if isinstance(path, Path):
    with path.open("a", encoding="utf-8") as file:
      file.write(text)
    return
  growing = _files.get(str(path))
  if growing is None:
    content = bytearray(_read(path))
    growing = _Growing(content, len(content), time.monotonic() + SECONDS)
    _files[str(path)] = growing
  growing.content += text.encode()
  if time.monotonic() >= growing.due:
    try:
      _write(path, growing)
    except UserError as error:
      growing.due = time.monotonic() + SECONDS
      print(f"note: {error}; the lines are kept in memory", file=sys.stderr, flush=True)


def flush(folder: AnyPath) -> None:
  """Writes what waits for a file, or for the files of a folder and the folders in it.

  Raises:
    UserError: the bucket cannot be written. What waits goes on waiting.
  """
  for name, growing in list(_files.items()):
    is_within = name == str(folder) or name.startswith(f"{folder}/")
    if is_within and growing.written < len(growing.content):
      _write(places.directory(name), growing)


def forget(folder: AnyPath) -> None:
  """Drops what waits for a file or a folder, because it is written anew or no longer ours."""
  for name in list(_files):
    if name == str(folder) or name.startswith(f"{folder}/"):
      del _files[name]


def _read(path: AnyPath) -> bytes:
  """The content of an object; empty where there is none."""
  with places.reaching(path), contextlib.suppress(FileNotFoundError):
    return path.read_bytes()
  return b""


def _write(path: AnyPath, growing: _Growing) -> None:
  began = time.monotonic()
  with places.reaching(path):
    path.write_bytes(bytes(growing.content))
  now = time.monotonic()
  growing.written = len(growing.content)
  growing.due = now + max(SECONDS, RESTS * (now - began))
