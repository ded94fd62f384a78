"""Writes parameters into safetensors folders that `transformers` opens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructjax.errors import UserError
from instructjax.models import lora, weights
from instructjax.models.hf import rendering, tensors
from instructjax.models.hf.configs import CONFIG, Raw
from instructjax.models.hf.reading import INDEX, SINGLE
from instructjax.models.weights import Config, Tensor
from instructjax.system import jsons
from instructjax.types import Params

DTYPES = ("float32", "bfloat16")
SHARD_BYTES = 5 * 2**30  # as `transformers` splits large models
Shard = list[tuple[Tensor, int]]  # the tensors of one file, each with its layer


def save(
  folder: str | Path,
  config: Config,
  params: Params,
  *,
  dtype: str = "float32",
  shard_bytes: int = SHARD_BYTES,
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Writes a language model as numbers of `dtype`.

  Each file has at most `shard_bytes`, or one tensor. `extra` are keys for `config.json`, such as
  eos_token_id. Frozen blocks (`lower`) are joined to those above them, and an adapter is merged.

  Raises:
    UserError: for parameters of another shape, a setting that the family has no words for, and
      where the disk does not take the files.

  Example:
    >>> import os, tempfile
    >>> config = models.GPTConfig(vocab_size=8, context=16, width=8, depth=1, heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   models.save(folder, config, params)
    ...   print(sorted(os.listdir(folder)))
    ['config.json', 'model.safetensors']
  """
  raw = rendering.render(config, dtype) | dict(extra or {})
  wanted = (*tensors.body(config), *tensors.head(config))
  write(folder, config, wanted, params, raw, dtype, shard_bytes)


def write(
  folder: str | Path,
  config: Config,
  wanted: tuple[Tensor, ...],
  params: Params,
  raw: Raw,
  dtype: str,
  shard_bytes: int,
  texts: Mapping[str, str] | None = None,
) -> None:
  """Writes tensors, `texts` by the names of their files, and `config.json`, which comes last.

  Every file is complete before it gets its name. With several processes each takes part and the
  first one writes.

  Raises:
    UserError: as `save` does.
  """
  from safetensors import SafetensorError, numpy

  if dtype not in DTYPES:
    raise UserError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
  folder = Path(folder)
  texts = dict(texts or {})
  params = lora.merge(params)
  weights.check(config, wanted, params)
  itemsize = jnp.dtype(dtype).itemsize
  shards = _split_into_shards(config, wanted, params, shard_bytes, itemsize)
  names = _file_names(len(shards))
  is_writer = jax.process_index() == 0
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, shard in zip(names, shards, strict=True):
      # To take an array off the devices is collective: every process must do it.
      content = _shard_content(shard, params, dtype)
      if is_writer:
        part = _part(folder / name)
        # Some versions of `transformers` refuse a file without a format in its metadata.
        numpy.save_file(content, part, metadata={"format": "pt"})
        # safetensors makes files that only their owner may read.
        part.chmod(0o644)
      # The next shard must not be made beside this one.
      del content
    if not is_writer:
      return
    for name, text in texts.items():
      _part(folder / name).write_text(text, "utf-8")
    # A single file needs no index.
    index = None
    if len(names) > 1:
      index = _index(names, shards, params, dtype)
    _finish(folder, (*names, *texts), raw, index)
  except (OSError, SafetensorError) as error:
    # Leave nothing that is incomplete; files of an earlier model stay as they were.
    for name in (*names, *texts, INDEX, CONFIG):
      _part(folder / name).unlink(missing_ok=True)
    raise UserError(
      f"{folder}: the model could not be written ({error}); make room or choose another folder"
    ) from error


# --- shards ---


def _split_into_shards(
  config: Config,
  wanted: tuple[Tensor, ...],
  params: Params,
  limit: int,
  itemsize: int,
) -> list[Shard]:
  """Returns the tensors with their layers, for files of at most `limit` bytes."""
  shards: list[Shard] = [[]]
  size = 0
  for tensor in wanted:
    layers = config.depth if tensor.stacked else 1
    # All layers of a tensor are of one size.
    tensor_bytes = itemsize * _count_numbers(tensor.leaves, params) // layers
    for layer in range(layers):
      if shards[-1] and size + tensor_bytes > limit:
        shards.append([])
        size = 0
      shards[-1].append((tensor, layer))
      size += tensor_bytes
  return shards


def _count_numbers(leaves: tuple[str, ...] | set[str], params: Params) -> int:
  """Returns how many numbers the given parameters have together."""
  total = 0
  for leaf in leaves:
    for array in weights.stacks(leaf, params):
      total += math.prod(array.shape)
  return total


def _file_names(count: int) -> list[str]:
  """Returns the names of the files of a model, as `transformers` gives them."""
  if count == 1:
    return [SINGLE]
  return [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]


def _shard_content(shard: Shard, params: Params, dtype: str) -> dict[str, np.ndarray]:
  """Returns the tensors of one file by their names."""
  content = {}
  for tensor, layer in shard:
    array = weights.extract(tensor, layer, params)
    content[tensor.name.format(layer)] = array.astype(dtype)
  return content


def _index(names: list[str], shards: list[Shard], params: Params, dtype: str) -> Raw:
  """Returns the content of the index, which says in which file each tensor is."""
  file_by_tensor = {}
  leaves: set[str] = set()
  for name, shard in zip(names, shards, strict=True):
    for tensor, layer in shard:
      file_by_tensor[tensor.name.format(layer)] = name
      leaves |= set(tensor.leaves)
  total_size = jnp.dtype(dtype).itemsize * _count_numbers(leaves, params)
  return {"metadata": {"total_size": total_size}, "weight_map": file_by_tensor}


# --- files ---


def _part(path: Path) -> Path:
  """Returns the name that a file has until it is complete."""
  return path.with_name(f".{path.name}.part")


def _finish(folder: Path, names: tuple[str, ...], raw: Raw, index: Raw | None) -> None:
  """Gives the written files their names, and writes the index and `config.json`.

  The files of an earlier model in the folder are removed.
  """
  for name in names:
    _part(folder / name).replace(folder / name)
  # An earlier model may have had more files, which an index would not name.
  for stale in folder.glob("model*.safetensors"):
    if stale.name not in names:
      stale.unlink()
  if index:
    _write_json(folder / INDEX, index)
  else:
    (folder / INDEX).unlink(missing_ok=True)
  _write_json(folder / CONFIG, raw)


def _write_json(path: Path, value: Raw) -> None:
  text = jsons.text(value, indent=2, ascii_only=True) + "\n"
  _part(path).write_text(text, "utf-8")
  _part(path).replace(path)
