"""Reads safetensors folders, of one file or several with an index, into parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from instructjax.errors import UserError
from instructjax.models import checks, weights
from instructjax.models.hf import configs, tensors
from instructjax.models.weights import Config, Stored, Tensor
from instructjax.system import plain_json
from instructjax.types import Params

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_AXIS = 2**40
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
  architectures = raw.get("architectures")
  if not isinstance(architectures, list):
    return False
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

  def find(name: str) -> Stored:
    name_in_folder = rename(name)
    if name_in_folder not in entries:
      raise UserError(
        f"{folder}: no tensor '{name_in_folder}' in its safetensors; the folder is incomplete or "
        "of another model"
      )
    used.add(name_in_folder)
    return stored(name_in_folder, entries[name_in_folder])

  params = weights.fill(config, wanted, find)
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
  if not (folder / INDEX).is_file():
    if (folder / SINGLE).is_file():
      return header(folder / SINGLE)
    raise UserError(
      f"{folder}: holds neither {SINGLE} nor {INDEX}; save the model in the safetensors format "
      "(in transformers: model.save_pretrained(folder))"
    )
  file_by_tensor = _weight_map(folder / INDEX)
  entries: dict[str, Entry] = {}
  for file in sorted(set(file_by_tensor.values())):
    for name, entry in header(folder / file).items():
      # Of two tensors under one name only one could be loaded.
      if name in entries:
        raise UserError(
          f"{folder}: tensor '{name}' is in {entries[name].file.name} and in {file}; fetch both "
          "again"
        )
      entries[name] = entry
  for name, file in file_by_tensor.items():
    if name not in entries or entries[name].file.name != file:
      raise UserError(f"{folder / INDEX}: tensor '{name}' is not in {file}; fetch the folder again")
  return entries


def _weight_map(path: Path) -> dict[str, str]:
  """Returns the file of each tensor that an index names."""
  raw = plain_json.read_object(path, "fetch it again", "fetch it again")
  file_by_tensor = checks.mapping(raw.get("weight_map"), "weight_map", path)
  if not file_by_tensor:
    raise UserError(f"{path}: no 'weight_map'; fetch it again")
  for name, file in file_by_tensor.items():
    # A path could lead out of the folder.
    if not isinstance(file, str) or file in ("", ".", "..") or Path(file).name != file:
      raise UserError(
        f"{path}: 'weight_map' has {plain_json.shown(file)} for tensor '{name}'; it must be the "
        "name of a file in the folder"
      )
  return file_by_tensor


def header(file: Path) -> dict[str, Entry]:
  """Returns the tensors of a file.

  A file starts with eight bytes that hold the length of a JSON object. The object says where each
  tensor lies in what follows it. The parser of the safetensors package checks all of it: that
  each tensor is as long as its shape and type say, and that the tensors fill the file without a
  gap or an overlap.

  Raises:
    UserError: for a file that is not so, or ends early.
  """
  from safetensors import SafetensorError, safe_open

  try:
    # It maps the file and reads no numbers.
    with safe_open(file, "numpy"):
      pass
    with file.open("rb") as stream:
      length = int.from_bytes(stream.read(8), "little")
      content = stream.read(length)
  except (OSError, ValueError, SafetensorError) as error:
    raise UserError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error
  descriptions = plain_json.parse(content, str(file), "fetch it again")
  descriptions.pop("__metadata__", None)
  data_start = 8 + length
  entries = {}
  for name, description in descriptions.items():
    start, _ = description["data_offsets"]
    shape = tuple(description["shape"])
    # An empty tensor may claim any other axis, and numpy cannot even say so.
    if max(shape, default=0) > LARGEST_AXIS:
      raise UserError(f"{file}: tensor '{name}' has shape {shape}; fetch it again")
    entries[name] = Entry(file, description["dtype"], shape, data_start + start)
  return entries


def stored(name: str, entry: Entry) -> Stored:
  """Returns a tensor of a folder for `weights.fill`."""
  return Stored(f"{entry.file}: tensor '{name}'", entry.shape, lambda: view(name, entry))


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
