"""Reads safetensors folders, of one file or several with an index, into parameters."""

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

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# The types of numbers that can be read, by their names in safetensors.
DTYPES = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
}


class Entry(NamedTuple):
  """Where a tensor is in a folder."""

  file: Path
  dtype: str  # a name of safetensors, such as "BF16"
  shape: tuple[int, ...]
  start: int  # bytes of the file before the tensor


def load(folder: str | Path) -> tuple[Config, Params]:
  """Returns (config, float32 parameters), placed on the mesh where one is set.

  Raises:
    UserError: for a missing or malformed file, another family or an unknown variant of one, a
      missing or misshapen tensor, and a tensor that the model has no place for.
  """
  folder = Path(folder)
  path = folder / configs.CONFIG
  raw = configs.read_json(path)
  if is_classifier(raw):
    raise UserError(
      f"{folder}: holds a reward model (a sequence classifier); a language model is needed"
    )
  config = configs.parse(raw, path)
  wanted = (*tensors.body(config), *tensors.head(config))
  return config, fill(folder, config, wanted, index(folder))


def is_classifier(raw: configs.Raw) -> bool:
  """Returns whether a `config.json` describes a sequence classifier."""
  architectures = raw.get("architectures") or ()
  return any("SequenceClassification" in str(name) for name in architectures)


def fill(
  folder: Path,
  config: Config,
  wanted: tuple[Tensor, ...],
  entries: dict[str, Entry],
) -> Params:
  """Returns the parameters in the tensors that are wanted.

  Any other tensor of the folder must be one that changes nothing.

  Raises:
    UserError: for a missing or misshapen tensor, and one that the model has no place for.
  """
  rename = renaming(entries, config)
  used = set()

  def read(name: str) -> np.ndarray:
    name_in_folder = rename(name)
    if name_in_folder not in entries:
      raise UserError(
        f"{folder}: no tensor '{name_in_folder}' in its safetensors; the folder is incomplete or "
        "of another model"
      )
    used.add(name_in_folder)
    return view(name_in_folder, entries[name_in_folder])

  params = weights.fill(config, wanted, read, folder)
  # A tied model may store its embedding a second time.
  copies = {rename("lm_head.weight"), rename("embed_out.weight")} if config.tied else set()
  unused = [name for name in entries if name not in used | copies]
  unused = [name for name in unused if not tensors.IGNORED.fullmatch(name)]
  if unused:
    listed = ", ".join(f"'{name}'" for name in unused[:3])
    if len(unused) > 3:
      listed += f" and {len(unused) - 3} more"
    raise UserError(
      f"{folder}: a model of type '{config.model_type}' has no place for its tensors {listed}; "
      "without them it would be another"
    )
  return params


def renaming(entries: dict[str, Entry], config: Config) -> Callable[[str], str]:
  """Returns a function from our names of tensors to those of the folder.

  A folder may lack the prefix of its family (a model saved without its unembedding), or its model
  may be part of one that also sees pictures. The first tensor of the body shows which it is.
  """
  prefix = tensors.prefix(config)
  first = tensors.body(config)[0].name.removeprefix(prefix)
  for outer in ("", "language_model."):
    for inner in (prefix, f"{prefix}language_model.", ""):
      if outer + inner + first in entries:
        return _renaming(entries, prefix, outer, inner)
  # Nothing fits: `fill` will report the tensor that is missing, by our name.
  return lambda name: name


def _renaming(
  entries: dict[str, Entry],
  prefix: str,
  outer: str,
  inner: str,
) -> Callable[[str], str]:
  """Returns a function that puts `inner` for the prefix of a name, and `outer` before it."""

  def rename(name: str) -> str:
    if name.startswith(prefix):
      name = inner + name.removeprefix(prefix)
    if outer + name in entries:
      return outer + name
    # A folder of GPT-NeoX may call the unembedding as the other families do.
    return outer + name.replace("embed_out.", "lm_head.")

  return rename


# --- the files ---


def index(folder: Path) -> dict[str, Entry]:
  """Returns every tensor of a folder by its name.

  Raises:
    UserError: where there are none, or a file is cut short.
  """
  if (folder / INDEX).is_file():
    file_by_tensor = configs.read_json(folder / INDEX).get("weight_map")
    if not isinstance(file_by_tensor, dict):
      raise UserError(f"{folder / INDEX}: no 'weight_map'; fetch it again")
    files = sorted(set(file_by_tensor.values()))
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
  """Returns the tensors of a file.

  A file starts with eight bytes that hold the length of a JSON object. The object says where each
  tensor lies in what follows it.

  Raises:
    UserError: for a file that is not so, or ends early.
  """
  entries = {}
  end_of_tensors = 0
  try:
    size = file.stat().st_size
    with file.open("rb") as stream:
      length = int.from_bytes(stream.read(8), "little")
      # A damaged length may be huge.
      content = json.loads(stream.read(min(length, size)))
    content.pop("__metadata__", None)
    data_start = 8 + length
    for name, description in content.items():
      start, end = description["data_offsets"]
      shape = tuple(description["shape"])
      entries[name] = Entry(file, description["dtype"], shape, data_start + start)
      end_of_tensors = max(end_of_tensors, end)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error
  needed = data_start + end_of_tensors
  if needed != size:
    raise UserError(
      f"{file}: not a readable safetensors file ({size} bytes, {needed} are needed); fetch it again"
    )
  return entries


def view(name: str, entry: Entry) -> np.ndarray:
  """Returns a tensor as a view of its file: the disk reads only what is used of it.

  Raises:
    UserError: for quantised numbers.
  """
  if entry.dtype not in DTYPES:
    raise UserError(
      f"{entry.file}: tensor '{name}' is of type {entry.dtype}; numbers of {', '.join(DTYPES)} can "
      "be read: take the checkpoint that is not quantised"
    )
  dtype = jnp.dtype(DTYPES[entry.dtype])
  # No memory can be mapped for an empty tensor.
  if not math.prod(entry.shape):
    return np.zeros(entry.shape, dtype)
  return np.memmap(entry.file, dtype, "r", entry.start, entry.shape)
