"""Which model it was that answered under a name.

A source is recognised without opening it, and a run directory notes the models that answered.
An evaluation, or a run that samples, may be stopped and continued days later. These functions make
sure that all answers under one name come from the same weights after the same prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from instructjax import models
from instructjax.errors import UserError
from instructjax.runs import origin, writers
from instructjax.system import jsons, places
from instructjax.system.places import AnyPath

DIGITS = 16  # of a digest
END = 1 << 16  # bytes at the end of a file, where weights that were trained again differ

# What a manifest says of a model: source, weights, parameters, files, and perhaps prefix.
Facts = Mapping[str, Any]


def digest(source: str) -> str:
  """A hash by which a source is recognised without reading its weights; "" where it is not here.

  A run is known by its manifest, which says when it began, a Python function by its file, and a
  hub id by the commit in the hub's cache (40 digits). Any other folder or file is known by the
  names, sizes and ends of its files.
  """
  location = source
  if origin.is_python(source):
    location, _, _ = source.rpartition(":")
  if places.is_address(location):
    with places.reaching(places.directory(location)):
      return _manifest_digest(places.directory(location))  # nothing but runs is read there
  path = Path(location)
  if not source or not path.exists():
    return models.revision(source)
  if manifest_digest := _manifest_digest(path):
    return manifest_digest
  if path.is_dir():
    # In an order that does not depend on the file system.
    files = sorted(file for file in path.rglob("*") if file.is_file())
  else:
    files = [path]
  ends = [(str(file.relative_to(path)), *_size_and_end(file)) for file in files]
  # Manifests hold these digests, so their form may not change.
  text = jsons.text([ends])
  return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _manifest_digest(folder: AnyPath) -> str:
  """A hash of the manifest of a run; "" where there is none."""
  manifest = folder / "manifest.json"
  if not manifest.is_file():
    return ""
  return hashlib.sha256(manifest.read_bytes()).hexdigest()[:DIGITS]


def _size_and_end(file: Path) -> tuple[int, str]:
  """The size of a file in bytes and a hash of its last END bytes."""
  size = file.stat().st_size
  with file.open("rb") as content:
    content.seek(max(size - END, 0))
    return size, hashlib.sha256(content.read()).hexdigest()


def _without_prefix(source: str) -> str:
  """The source of the model itself; `#prefix=...` behind it is read before every prompt."""
  return source.partition("#")[0]


def about(source: str, opened: origin.Origin) -> dict[str, Any]:
  """The facts that a manifest holds about a model that was opened."""
  leaves = jax.tree.leaves(opened.params)
  return {
    "source": source,
    "weights": origin.fingerprint(opened.params),
    "parameters": sum(leaf.size for leaf in leaves),
    "files": digest(_without_prefix(source)),
  }


def noted(workdir: AnyPath) -> dict[str, dict[str, Any]]:
  """The facts in the manifest of a directory about the models that answered, by name."""
  return writers.read_manifest(workdir).get("models", {})


def doubtful(before: Facts | None, source: str) -> bool:
  """Returns whether the noted model may be another than the one that lies at a source now.

  It must then be opened and compared. A model that has not answered yet is not in doubt.
  """
  if before is None:
    return False
  files = digest(_without_prefix(source))
  return before["source"] != source or before.get("files") != files


def compare(workdir: AnyPath, name: str, now: Facts) -> None:
  """Checks a model against the one that has answered under the same name.

  Raises:
    UserError: where it has other weights, or follows another prefix.
  """
  before = noted(workdir).get(name)
  if before is None:
    return
  # An earlier version did not note the prefix. Where it had one, it counts as the same.
  notes_prefix = "prefix" in before or "#" not in before["source"]
  prefix_before = before.get("prefix") if notes_prefix else now.get("prefix")

  differences = []
  if before["weights"] != now["weights"]:
    differences.append("other weights")
  if prefix_before != now.get("prefix"):
    differences.append("another prefix")
  for difference in differences:  # the first one is enough
    raise UserError(
      f"{name}={now['source']} has {difference} than the {name}={before['source']} that answered "
      f"in {workdir} before; give it another name, or name another --workdir"
    )
