"""A bucket that lies in a folder: `gs://bucket/x` is the file `bucket/x` of it.

It refuses what a bucket refuses. Nothing can be appended to, renamed or moved; an object appears
when all of it is written; a folder is there as long as an object has its name in front, and making
one does nothing. Tensorstore, which has a driver of its own for buckets, gets the one for files.
"""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from etils.epath import gpath


class Bucket(NamedTuple):
  """The folder in which the buckets lie, and the addresses of all objects that etils wrote."""

  root: Path
  writes: list[str]

  def file(self, address: str) -> Path:
    return self.root / address.removeprefix("gs://")


class Backend(NamedTuple):
  """What etils asks of an object store."""

  open: Any
  exists: Any
  isdir: Any
  listdir: Any
  glob: Any
  walk: Any
  makedirs: Any
  mkdir: Any
  rmtree: Any
  remove: Any
  rename: Any
  replace: Any
  copy: Any
  stat: Any


def backend(bucket: Bucket) -> Backend:
  file = lambda path: bucket.file(str(path))

  def is_folder(path) -> bool:
    return file(path).is_dir() and any(part.is_file() for part in file(path).rglob("*"))

  def names(path) -> list[str]:
    if not is_folder(path):
      raise FileNotFoundError(str(path))
    parts = file(path).iterdir()
    return [part.name for part in parts if part.is_file() or is_folder(f"{path}/{part.name}")]

  def matching(pattern) -> list[str]:
    paths = bucket.root.glob(pattern.removeprefix("gs://"))
    addresses = [f"gs://{path.relative_to(bucket.root)}" for path in paths]
    return [address for address in addresses if file(address).is_file() or is_folder(address)]

  def open_object(path, mode):
    if "a" in mode:
      raise NotImplementedError(f"{path}: an object cannot be appended to")
    if "r" in mode:
      content = io.BytesIO(file(path).read_bytes())
    else:
      content = Object(bucket, str(path))
    return content if "b" in mode else io.TextIOWrapper(content, encoding="utf-8")

  def remove_folder(path) -> None:
    if not is_folder(path):
      raise FileNotFoundError(str(path))
    shutil.rmtree(file(path))

  def do_nothing(path, **options) -> None:
    pass

  def refuse(*paths, **options) -> None:
    raise NotImplementedError(f"{paths[0]}: an object store cannot do this")

  return Backend(
    open=open_object,
    exists=lambda path: file(path).is_file() or is_folder(path),
    isdir=is_folder,
    listdir=names,
    glob=matching,
    walk=refuse,
    makedirs=do_nothing,
    mkdir=do_nothing,
    rmtree=remove_folder,
    remove=lambda path: file(path).unlink(),
    rename=refuse,
    replace=refuse,
    copy=refuse,
    stat=refuse,
  )


class Object(io.BytesIO):
  """A file that is an object of the bucket when it is closed."""

  def __init__(self, bucket: Bucket, address: str):
    super().__init__()
    self.bucket, self.address = bucket, address

  def close(self) -> None:
    if not self.closed:
      target = self.bucket.file(self.address)
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(self.getvalue())
      self.bucket.writes.append(self.address)
    super().close()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """`gs://` is in a folder; what needs a package of Google's is left out."""
  from orbax.checkpoint._src.path import gcs_utils

  from instructjax.system import growing, places

  made = Bucket(tmp_path / "buckets", [])

  def kvstore(address):
    return {"driver": "file", "path": str(made.file(address))}

  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", backend(made))
  monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", kvstore)
  flat = SimpleNamespace(hierarchical_namespace_enabled=False)
  monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: flat)
  monkeypatch.setattr(places, "PACKAGES", ())
  monkeypatch.setattr(growing, "_files", {})
  return made
