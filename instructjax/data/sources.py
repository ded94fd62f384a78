"""Where records come from: a JSONL file, a prepared TFDS data set, or a file of a data set on the hub."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from instructjax.data import records
from instructjax.data.records import Spelling, native
from instructjax.errors import UserError


def load(source: str | Path, kind: str, spelling: Spelling = native, *, folder: str | None = None) -> list:
  """The records of one kind that a source holds.

    path/to/file.jsonl[.gz]           a file on this machine
    tfds:NAME[/CONFIG][@SPLIT]        a TFDS data set that was prepared under `folder` (or TFDS's own default)
    hub:OWNER/NAME/path/file.jsonl    a JSONL file of a hub data set

  Raises UserError where the source cannot be read and for every bad record.
  """
  text = str(source)
  if text.startswith("tfds:"):
    name, _, split = text.removeprefix("tfds:").partition("@")
    return tfds(name, kind, spelling, split=split or "train", folder=folder)
  if text.startswith("hub:"):
    return hub(text.removeprefix("hub:"), kind, spelling)
  return records.read(source, kind, spelling)


def tfds(name: str, kind: str, spelling: Spelling = native, *, split: str = "train", folder: str | None = None) -> list:
  """A TFDS data set through its random-access reader, which needs no TensorFlow.

  It must be prepared as array_record or parquet (`download_and_prepare(file_format="array_record")`).
  """
  try:
    datasets = importlib.import_module("tensorflow_datasets")
  except ImportError:
    raise UserError(f"tfds:{name}: tensorflow-datasets is not installed; run pip install 'instructjax[tfds]'") from None
  try:
    rows = datasets.data_source(name, split=split, data_dir=folder, download=False)
  except (ValueError, KeyError, OSError, AssertionError, NotImplementedError, ImportError) as error:
    raise UserError(
      f"tfds:{name}@{split}: cannot be opened ({_first_line(error)}); prepare it first with "
      "download_and_prepare(file_format='array_record') under the folder given"
    ) from error
  return records.parse(map(plain, rows), kind, spelling, name=f"tfds:{name}@{split}")


def hub(path: str, kind: str, spelling: Spelling = native) -> list:
  """A JSONL file of a data set on the hub: OWNER/NAME/path/file.jsonl.  It stays in the hub's own cache."""
  from huggingface_hub import hf_hub_download

  owner, _, rest = path.partition("/")
  name, _, file = rest.partition("/")
  if not file:
    raise UserError(f"hub:{path}: give OWNER/NAME/path/file.jsonl, the data set and the file in it")
  try:
    local = hf_hub_download(f"{owner}/{name}", file, repo_type="dataset")
  except (OSError, ValueError) as error:
    raise UserError(
      f"hub:{path}: cannot be fetched ({_first_line(error)}); check the name and the network or give a file"
    ) from error
  return records.read(local, kind, spelling)


def plain(value: Any) -> Any:
  """Python values out of what a data set returns: bytes become text, arrays lists."""
  if isinstance(value, dict):
    return {key: plain(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [plain(one) for one in value]
  if hasattr(value, "tolist"):
    return plain(value.tolist())
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
