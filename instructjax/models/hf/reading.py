"""Safetensors folders, one file or several with an index, into parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from instructjax.errors import UserError
from instructjax.models import weights
from instructjax.models.hf import configs, tensors
from instructjax.models.weights import Config, Tensor
from instructjax.types import Params

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Entry(NamedTuple):
  """Where a tensor lies: `start` counts the bytes of the file before it."""

  file: Path
  dtype: str
  shape: tuple[int, ...]
  start: int


def load(folder: str | Path) -> tuple[Config, Params]:
  """(config, float32 parameters), placed on the mesh where one is set.

  Raises UserError for a missing or malformed file, another family or an unknown variant of one,
  a missing or misshapen tensor, and a tensor that the model has no place for.
  """
  folder = Path(folder)
  raw = configs.read_json(folder / configs.CONFIG)
  if is_classifier(raw):
    raise UserError(
      f"{folder}: holds a reward model (a sequence classifier); a language model is needed"
    )
  config = configs.parse(raw, folder / configs.CONFIG)
  return config, fill(folder, config, (*tensors.body(config), *tensors.head(config)), index(folder))


def is_classifier(raw: configs.Raw) -> bool:
  return any("SequenceClassification" in str(name) for name in raw.get("architectures") or ())


def fill(
  folder: Path, config: Config, wanted: tuple[Tensor, ...], entries: dict[str, Entry]
) -> Params:
  """The parameters in the tensors that are wanted; any other tensor of the folder must be one that
  changes nothing.
  """
  rename, used = renaming(entries, config), set()

  def read(name: str) -> np.ndarray:
    found = rename(name)
    if found not in entries:
      raise UserError(
        f"{folder}: no tensor '{found}' in its safetensors; the folder is incomplete or of another "
        "model"
      )
    used.add(found)
    return view(found, entries[found])

  params = weights.fill(config, wanted, read, folder)
  spare = {rename("lm_head.weight"), rename("embed_out.weight")} if config.tied else set()
  left = [
    name for name in entries if name not in used | spare and not tensors.IGNORED.fullmatch(name)
  ]
  if left:
    shown = ", ".join(f"'{name}'" for name in left[:3]) + (
      f" and {len(left) - 3} more" if len(left) > 3 else ""
    )
    raise UserError(
      f"{folder}: a model of type '{config.model_type}' has no place for its tensors {shown}; "
      "without them it would be another"
    )
  return params


def renaming(entries: dict[str, Entry], config: Config) -> Callable[[str], str]:
  """From our names to those of the folder, which may lack the prefix or stand within a model that
  also sees pictures.
  """
  prefix = tensors.prefix(config)
  first = tensors.body(config)[0].name.removeprefix(prefix)
  for outer in ("", "language_model."):
    for inner in (prefix, f"{prefix}language_model.", ""):
      if outer + inner + first in entries:

        def rename(name: str, outer: str = outer, inner: str = inner) -> str:
          name = inner + name.removeprefix(prefix) if name.startswith(prefix) else name
          return (
            outer + name
            if outer + name in entries
            else outer + name.replace("embed_out.", "lm_head.")
          )

        return rename
  return lambda name: name


def index(folder: Path) -> dict[str, Entry]:
  """Every tensor of a folder.  Raises UserError where there are none, or a file is cut short."""
  if (folder / INDEX).is_file():
    where = configs.read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict):
      raise UserError(f"{folder / INDEX}: no 'weight_map'; fetch it again")
    files = sorted(set(where.values()))
  elif (folder / SINGLE).is_file():
    files = [SINGLE]
  else:
    raise UserError(
      f"{folder}: holds neither {SINGLE} nor {INDEX}; save the model in the safetensors format "
      "(in transformers: model.save_pretrained(folder))"
    )
  entries: dict[str, Entry] = {}
  for file in files:
    entries |= header(folder / file)
  return entries


def header(file: Path) -> dict[str, Entry]:
  """The tensors of a file: eight bytes with the length of a JSON object, which says where each lies
  in what follows it.

  Raises UserError for a file that is not so, or ends early.
  """
  try:
    size = file.stat().st_size
    with file.open("rb") as stream:
      length = int.from_bytes(stream.read(8), "little")
      content = json.loads(stream.read(min(length, size)))
    content.pop("__metadata__", None)
    found = {
      name: Entry(
        file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
      )
      for name, entry in content.items()
    }
    end = 8 + length + max((entry["data_offsets"][1] for entry in content.values()), default=0)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error
  if end != size:
    raise UserError(
      f"{file}: not a readable safetensors file ({size} bytes, {end} are needed); fetch it again"
    )
  return found


def view(name: str, entry: Entry) -> np.ndarray:
  """A tensor as a view of its file: what is read of it is what is used.  Raises UserError for
  quantised numbers.
  """
  if entry.dtype not in DTYPES:
    raise UserError(
      f"{entry.file}: tensor '{name}' is of type {entry.dtype}; numbers of {', '.join(DTYPES)} can "
      "be read: "
      "take the checkpoint that is not quantised"
    )
  dtype = jnp.dtype(DTYPES[entry.dtype])
  if not math.prod(entry.shape):
    return np.zeros(entry.shape, dtype)
  return np.memmap(entry.file, dtype, "r", entry.start, entry.shape)
