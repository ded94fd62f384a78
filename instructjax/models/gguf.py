"""Reads a Llama model out of a GGUF file: quantised weights become float32, one tensor at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from instructjax.errors import UserError
from instructjax.models import llama, weights
from instructjax.models.weights import Source
from instructjax.types import Params


def load(path: str | Path) -> tuple[llama.LlamaConfig, Params, dict[str, Any]]:
  """(config, float32 parameters, metadata of the file under its own keys).

  Raises UserError for a file that is not GGUF, another architecture, and a missing or misshapen tensor.
  """
  import gguf

  path = Path(path)
  try:
    reader = gguf.GGUFReader(path)
  except (ValueError, OSError, IndexError) as error:
    raise UserError(f"{path}: not a readable GGUF file ({error}); fetch it again") from error
  metadata = {name: field.contents() for name, field in reader.fields.items()}
  tensors = {tensor.name: tensor for tensor in reader.tensors}

  def read(name: str) -> np.ndarray:
    if name not in tensors:
      raise UserError(f"{path}: no tensor '{name}'; the file is incomplete or of another architecture")
    return gguf.dequantize(tensors[name].data, tensors[name].tensor_type)

  config = read_config(metadata, tied="output.weight" not in tensors, path=path)
  return config, weights.fill(llama.table(config), sources(config), read, path), metadata


def read_config(metadata: dict[str, Any], *, tied: bool, path: Path) -> llama.LlamaConfig:
  """The sizes from the metadata.  Raises UserError for another architecture or a missing key."""
  if metadata.get("general.architecture") != "llama":
    raise UserError(f"{path}: architecture {metadata.get('general.architecture')!r}; only 'llama' is read from GGUF")

  def field(key: str, default: Any = None) -> Any:
    value = metadata.get(f"llama.{key}", default)
    if value is None:
      raise UserError(f"{path}: no key 'llama.{key}' in the metadata; the file is incomplete")
    return value

  heads = field("attention.head_count")
  return llama.LlamaConfig(
    vocab_size=field("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())) or None),
    context=field("context_length"),
    width=field("embedding_length"),
    depth=field("block_count"),
    heads=heads,
    kv_heads=field("attention.head_count_kv", heads),
    mlp=field("feed_forward_length"),
    rope_base=float(field("rope.freq_base", 10_000.0)),
    norm_eps=float(str(np.float32(field("attention.layer_norm_rms_epsilon")))),  # 1e-5, not 9.99999974e-6
    tied=tied,
  )


def half_split(heads: int, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Rows of each head from (x_0, x_half, x_1, ...), which GGUF rotates as neighbours, to first and second half."""
  x = x.reshape(heads, -1, 2, x.shape[-1]).swapaxes(1, 2)
  return weights.transposed(x.reshape(-1, x.shape[-1]), shape)


def sources(c: llama.LlamaConfig) -> dict[str, Source]:
  """The tensor of every parameter."""
  turned = weights.transposed
  return {
    "embed/tokens": Source("token_embd.weight", weights.as_is),
    "blocks/attn_norm/scale": Source("blk.{}.attn_norm.weight", weights.as_is),
    "blocks/q/w": Source("blk.{}.attn_q.weight", partial(half_split, c.heads)),
    "blocks/k/w": Source("blk.{}.attn_k.weight", partial(half_split, c.kv_heads)),
    "blocks/v/w": Source("blk.{}.attn_v.weight", turned),
    "blocks/o/w": Source("blk.{}.attn_output.weight", turned),
    "blocks/mlp_norm/scale": Source("blk.{}.ffn_norm.weight", weights.as_is),
    "blocks/gate/w": Source("blk.{}.ffn_gate.weight", turned),
    "blocks/up/w": Source("blk.{}.ffn_up.weight", turned),
    "blocks/down/w": Source("blk.{}.ffn_down.weight", turned),
    "norm/scale": Source("output_norm.weight", weights.as_is),
    "head/w": Source("output.weight", turned),
  }
