"""Files that exist complete or not at all, whenever the program ends."""

from __future__ import annotations

from pathlib import Path


def replace(path: Path, content: str | bytes) -> None:
  """Writes a file beside its place, then moves it there; a text is written as UTF-8.

  Raises:
    OSError: the file could not be written. An old file in its place is untouched then.
  """
  if isinstance(content, str):
    content = content.encode()
  part = path.with_name(path.name + ".part")
  try:
    part.write_bytes(content)
    # A rename within a folder is atomic.
    part.replace(path)
  except OSError:
    part.unlink(missing_ok=True)
    raise
