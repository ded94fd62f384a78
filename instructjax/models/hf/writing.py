"""Parameters into safetensors folders that `transformers` opens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from instructjax.errors import UserError
from instructjax.models import lora, weights
from instructjax.models.hf import configs, tensors
from instructjax.models.hf.configs import CONFIG, Raw
from instructjax.models.hf.reading import INDEX, SINGLE
from instructjax.models.weights import Config, Tensor
from instructjax.types import Params

DTYPES = ("float32", "bfloat16")
SHARD_BYTES = 5 * 2**30


def save(
  folder: str | Path,
  config: Config,
  params: Params,
  *,
  dtype: str = "float32",
  shard_bytes: int = SHARD_BYTES,
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Writes a language model: numbers of `dtype`, in files of at most `shard_bytes` (or one tensor)
  each.

  `extra` are keys for `config.json`, such as eos_token_id.  Frozen blocks (`lower`) are joined
  to those above them, an adapter is merged. Raises UserError for parameters of another shape, a
  setting that the family has no words for, and where the disk does not take them.
  """
  raw = configs.render(config, dtype) | dict(extra or {})
  write(
    folder, config, (*tensors.body(config), *tensors.head(config)), params, raw, dtype, shard_bytes
  )


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

  Every file is complete before it gets its name.  With several processes each takes part and the
  first one writes.
  """
  from safetensors import SafetensorError, numpy

  if dtype not in DTYPES:
    raise UserError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
  folder, texts = Path(folder), dict(texts or {})
  params = lora.merge(params)
  weights.check(config, wanted, params)
  shards = list(_shards(config, wanted, params, shard_bytes, jnp.dtype(dtype).itemsize))
  names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
  names = names if len(shards) > 1 else [SINGLE]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, shard in zip(names, shards, strict=True):
      content = {
        tensor.name.format(i): weights.extract(tensor, i, params).astype(dtype)
        for tensor, i in shard
      }
      if jax.process_index() == 0:
        numpy.save_file(content, _part(folder / name), metadata={"format": "pt"})
        _part(folder / name).chmod(0o644)
      del content
    if jax.process_index():
      return
    for name, text in texts.items():
      _part(folder / name).write_text(text, "utf-8")
    _finish(folder, (*names, *texts), raw, _weight_map(names, shards, params, dtype))
  except (OSError, SafetensorError) as error:
    for name in (*names, *texts, INDEX, CONFIG):
      _part(folder / name).unlink(missing_ok=True)
    raise UserError(
      f"{folder}: the model could not be written ({error}); make room or choose another folder"
    ) from error


def _part(path: Path) -> Path:
  return path.with_name(f".{path.name}.part")


def _weight_map(
  names: list[str], shards: list[list[tuple[Tensor, int]]], params: Params, dtype: str
) -> Raw | None:
  """The content of the index; None for one file."""
  if len(names) == 1:
    return None
  where = {
    tensor.name.format(i): name
    for name, shard in zip(names, shards, strict=True)
    for tensor, i in shard
  }
  leaves = {leaf for shard in shards for tensor, _ in shard for leaf in tensor.leaves}
  numbers = sum(math.prod(x.shape) for leaf in leaves for x in weights.stacks(leaf, params))
  return {"metadata": {"total_size": jnp.dtype(dtype).itemsize * numbers}, "weight_map": where}


def _finish(folder: Path, names: tuple[str, ...], raw: Raw, index: Raw | None) -> None:
  """Gives the written files their names, removes those of an earlier model, and writes the index
  and `config.json`.
  """
  for name in names:
    _part(folder / name).replace(folder / name)
  for stale in folder.glob("model*.safetensors"):
    if stale.name not in names:
      stale.unlink()
  if index:
    _write(folder / INDEX, index)
  else:
    (folder / INDEX).unlink(missing_ok=True)
  _write(folder / CONFIG, raw)


def _write(path: Path, value: Raw) -> None:
  _part(path).write_text(json.dumps(value, indent=2) + "\n", "utf-8")
  _part(path).replace(path)


def _shards(
  config: Config, wanted: tuple[Tensor, ...], params: Params, limit: int, itemsize: int
) -> Iterator[list[tuple[Tensor, int]]]:
  """The tensors with their layers, in files of at most `limit` bytes."""
  shard, size = [], 0
  for tensor in wanted:
    count = config.depth if tensor.stacked else 1
    numbers = sum(
      math.prod(x.shape) for name in tensor.leaves for x in weights.stacks(name, params)
    )
    each = itemsize * numbers // count
    for i in range(count):
      if shard and size + each > limit:
        yield shard
        shard, size = [], 0
      shard.append((tensor, i))
      size += each
  yield shard
