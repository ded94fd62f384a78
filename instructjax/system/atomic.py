"""Files that are there whole or not at all, whenever the program ends."""

from __future__ import annotations

from pathlib import Path


def replace(path: Path, content: str | bytes) -> None:
  """Writes a file beside its place (text as UTF-8) and moves it there.  Raises OSError, and leaves
  the old file then.
  """
  part = path.with_name(path.name + ".part")
  try:
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)
  except OSError:
    part.unlink(missing_ok=True)
    raise
