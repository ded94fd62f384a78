"""Files that exist complete or not at all, whenever the program or the machine ends."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from instructjax.system import places
from instructjax.system.places import AnyPath


def replace(path: AnyPath, content: str | bytes) -> None:
  """Writes a file beside its place, then moves it there; a text is written as UTF-8.

  Raises:
    OSError: the file could not be written. An old file in its place is untouched then.
  """
  if isinstance(content, str):
    content = content.encode()
  with replacing(path) as file:
    file.write(content)


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[BinaryIO]:
  """Opens a file beside its place, which moves there when all of it is written.

  In a bucket, where an object appears when all of it has arrived, the file is gathered in memory.

  Raises:
    OSError: the file could not be written. An old file in its place is untouched then, as after
      any other exception.
    UserError: the bucket could not be written.
  """
  if not isinstance(path, Path):
    gathered = io.BytesIO()
    yield gathered
    with places.reaching(path):
      path.write_bytes(gathered.getvalue())
    return
  part = path.with_name(path.name + ".part")
  try:
    with part.open("wb") as file:
      yield file
      file.flush()
      # The content must be on the disk before the name is: a machine that loses its power in
      # between would otherwise leave an empty file under the right name.
      os.fsync(file.fileno())
    # A rename within a folder is atomic.
    part.replace(path)
  except BaseException:
    part.unlink(missing_ok=True)
    raise
  _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
  """Brings the names of a folder onto the disk, where the file system can do that."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
