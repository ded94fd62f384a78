"""Which model it was that answered: what is known of a source without opening it, and what a run
directory keeps of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from instructjax import models
from instructjax.errors import UserError
from instructjax.runs import origin

END = 1 << 16  # bytes at the end of a file, where weights that were trained again differ


def digest(source: str) -> str:
  """Of what lies at a source: of a run its manifest, which says when it began; of another folder or
  file the names, sizes and ends of its files; of a Python function its file; of a hub id the
  commit in the hub's cache.  "" where none is here.
  """
  place = Path(source.rpartition(":")[0] if origin.is_python(source) else source)
  if not source or not place.exists():
    return models.revision(source)
  manifest = place / "manifest.json"
  if manifest.is_file():
    return hashlib.sha256(manifest.read_bytes()).hexdigest()
  files = sorted(one for one in place.rglob("*") if one.is_file()) if place.is_dir() else [place]
  ends = [(str(one.relative_to(place)), *_end(one)) for one in files]
  return hashlib.sha256(json.dumps([ends], ensure_ascii=False).encode()).hexdigest()[:16]


def _end(file: Path) -> tuple[int, str]:
  size = file.stat().st_size
  with file.open("rb") as content:
    content.seek(max(size - END, 0))
    return size, hashlib.sha256(content.read()).hexdigest()


def about(source: str, opened: origin.Origin) -> dict[str, Any]:
  """What a manifest says of a model that was opened."""
  count = sum(leaf.size for leaf in jax.tree.leaves(opened.params))
  files = digest(source.partition("#")[0])
  return {
    "source": source,
    "weights": origin.fingerprint(opened.params),
    "parameters": count,
    "files": files,
  }


def noted(workdir: Path) -> dict[str, dict[str, Any]]:
  """{name: source, weights, files ...} of the models that have answered in a directory, from its
  manifest.
  """
  path = workdir / "manifest.json"
  return json.loads(path.read_text()).get("models", {}) if path.is_file() else {}


def doubtful(before: Mapping[str, Any] | None, source: str) -> bool:
  """Whether the model that is noted may not be the one that lies at a source now: it must be opened
  and compared.
  """
  return before is not None and (before["source"], before.get("files")) != (
    source,
    digest(source.partition("#")[0]),
  )


def compare(workdir: Path, name: str, now: Mapping[str, Any]) -> None:
  """Raises UserError where another model has answered under this name, or the same one after
  another prefix.
  """
  before = noted(workdir).get(name)
  if before is None:
    return
  told = (
    before if "prefix" in before or "#" not in before["source"] else now
  )  # an earlier version did not note it
  same = {
    "other weights": before["weights"] == now["weights"],
    "another prefix": told.get("prefix") == now.get("prefix"),
  }
  for other in (what for what, found in same.items() if not found):
    raise UserError(
      f"{name}={now['source']} has {other} than the {name}={before['source']} that answered in "
      f"{workdir} before; give "
      "it another name, or name another --workdir"
    )
