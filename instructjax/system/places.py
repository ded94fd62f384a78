"""Places of run directories: a folder of this machine, or an address in a bucket.

`gs://bucket/run` is the only kind of address. It is opened with etils, whose paths have the methods
of `pathlib`, so whoever gets a path from here need not care which of the two it is. What an object
store cannot do is solved elsewhere, once each: files that appear whole (`atomic`), files of lines
that grow (`growing`) and a directory with one writer (`lock`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from instructjax.errors import UserError

AnyPath = Path | epath.Path  # a path of this machine, or of an object in a bucket

# The scheme of the addresses that runs are written to. Orbax knows it as that of an object store,
# where a file says that a checkpoint is complete.
SCHEME = "gs"

# What opens an address: etils with the first, and Orbax with the second.
PACKAGES = ("gcsfs", "google.cloud.storage")


def scheme(place: object) -> str:
  """The scheme of an address; "" for a path of this machine.

  `gs:/bucket/run` is an address too, because this is what a `Path` makes of `gs://bucket/run`. A
  single letter before the colon is a drive.
  """
  name, colon, _ = str(place).partition(":/")
  is_scheme = bool(colon) and len(name) > 1 and name.replace("+", "").isalnum()
  return name if is_scheme else ""


def is_address(place: object) -> bool:
  """Returns whether a place is an address in a bucket, as `directory` takes it."""
  return scheme(place) == SCHEME


def require_local(place: object, option: str) -> None:
  """Checks that a place to write to is a path; `option` says who names it.

  Raises:
    UserError: it is an address, such as that of a bucket.
  """
  if name := scheme(place):
    raise UserError(
      f"{option}={place}: this is written to directories of this machine, and {name}:// is none; "
      "give a path, or mount the bucket and give its path"
    )


def directory(place: str | AnyPath) -> AnyPath:
  """The path of a run directory, on this machine or in a bucket.

  Nothing is opened. The path of an address is one of etils, which has the methods of a `Path`.

  Raises:
    UserError: for an address that runs are not written to, and where a package is missing that
      opens it.
  """
  name = scheme(place)
  if not name:
    return Path(place)
  if name != SCHEME:
    raise UserError(
      f"{place}: runs are written to directories of this machine and to gs:// buckets, and "
      f"{name}:// is neither; give a path, or mount the bucket and give its path"
    )
  missing = [package for package in PACKAGES if not _is_installed(package)]
  if missing:
    raise UserError(
      f"{place}: {' and '.join(missing)} open buckets and are not installed; run pip install "
      "'instructjax[gcs]', or mount the bucket and give its path"
    )
  see_all_writers()
  _, _, rest = str(place).partition(":/")
  return epath.Path(f"{name}://{rest.lstrip('/')}")


def see_all_writers() -> None:
  """Keeps the client of buckets from remembering what is in a folder; called before its first use.

  Tensorstore and other processes write into the same folders, and the client would not notice.
  """
  import fsspec.config

  fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def _is_installed(package: str) -> bool:
  try:
    return importlib.util.find_spec(package) is not None
  except ModuleNotFoundError:  # a package around it is missing
    return False


def absolute(place: str | AnyPath) -> AnyPath:
  """The path of a run directory from any working directory.  Raises as `directory` does."""
  path = directory(place)
  # The path of an address is absolute, and etils would put the working directory before it.
  return path.absolute() if isinstance(path, Path) else path


def remove(folder: AnyPath) -> None:
  """Removes a folder with all that is in it, as far as that goes."""
  if isinstance(folder, Path):
    shutil.rmtree(folder, ignore_errors=True)
  else:
    folder.rmtree(missing_ok=True)


@contextlib.contextmanager
def reaching(path: AnyPath) -> Iterator[None]:
  """Turns whatever the client of a bucket raises into a UserError, for a path in a bucket.

  Raises:
    FileNotFoundError: the body raises it; nothing is wrong with the bucket.
    UserError: the bucket cannot be read or written.
  """
  try:
    yield
  except (UserError, FileNotFoundError):
    raise
  except Exception as error:
    # The errors of these clients have no type in common.
    if not is_address(path):
      raise
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise UserError(
      f"{path}: cannot be reached ({lines[0][:200]}); check the name, your rights, the network and "
      "the login (gcloud auth application-default login), then run the same command again"
    ) from error


@contextlib.contextmanager
def filling(folder: AnyPath) -> Iterator[Path]:
  """Yields a folder of this machine whose files stand in `folder` in the end.

  Programs that write to paths of this machine only can thus write into a bucket.

  Raises:
    OSError: the folder cannot be made.
    UserError: the bucket does not take the files.
  """
  if isinstance(folder, Path):
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    return
  with tempfile.TemporaryDirectory() as temporary:
    yield Path(temporary)
    with reaching(folder):
      for file in sorted(Path(temporary).iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
