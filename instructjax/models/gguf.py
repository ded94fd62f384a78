"""Reads a model out of a GGUF file: quantised weights become float32, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from instructjax.errors import UserError
from instructjax.models import weights
from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig
from instructjax.models.weights import Config, Tensor
from instructjax.types import Params

# Our name of each architecture, and what all its models have.
ARCHITECTURES: dict[str, dict[str, Any]] = {
  "llama": {"model_type": "llama"},
  "qwen2": {"model_type": "qwen2", "qkv_bias": True},
  "qwen3": {"model_type": "qwen3", "qk_norm": True},
  "gemma": {
    "model_type": "gemma",
    "norm_offset": 1.0,
    "embed_scaled": True,
    "activation": "gelu_tanh",
  },
  "gemma2": {
    "model_type": "gemma2",
    "norm_offset": 1.0,
    "embed_scaled": True,
    "activation": "gelu_tanh",
    "post_norm": True,
    "pattern": "LG",
  },
  "gpt2": {"model_type": "gpt2"},
  "gptneox": {"model_type": "gpt_neox", "activation": "gelu"},
}
GPTS = ("gpt2", "gptneox")


def load(path: str | Path) -> tuple[Config, Params, dict[str, Any]]:
  """(config, float32 parameters, metadata of the file under its own keys).

  Raises UserError for a file that is not GGUF, another architecture, a missing or misshapen
  tensor, and a tensor that the model has no place for.
  """
  import gguf

  path = Path(path)
  reader = opened(path)
  metadata = {name: field.contents() for name, field in reader.fields.items()}
  held = {tensor.name: tensor for tensor in reader.tensors}
  used = set()

  def read(name: str) -> np.ndarray:
    if name not in held:
      raise UserError(
        f"{path}: no tensor '{name}'; the file is incomplete or of another architecture"
      )
    used.add(name)
    return gguf.dequantize(held[name].data, held[name].tensor_type)

  config = read_config(metadata, tied="output.weight" not in held, path=path)
  params = weights.fill(config, tuple(tensors(config)), read, path)
  if left := sorted(set(held) - used):
    raise UserError(
      f"{path}: holds tensor '{left[0]}', which is not implemented; without it, it would be "
      "another model"
    )
  return config, params, metadata


def opened(path: Path) -> Any:
  """The reader of a file.  Raises UserError where it is not GGUF."""
  import gguf

  try:
    return gguf.GGUFReader(path)
  except (ValueError, OSError, IndexError) as error:
    raise UserError(f"{path}: not a readable GGUF file ({error}); fetch it again") from error


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
  """The shape of every tensor, rows first.  Raises UserError where the file is not GGUF."""
  return {
    tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in opened(path).tensors
  }


def read_config(metadata: dict[str, Any], *, tied: bool, path: Path) -> Config:
  """The sizes from the metadata.  Raises UserError for another architecture, a missing key or an
  unknown variant.
  """
  kind = metadata.get("general.architecture")
  if kind not in ARCHITECTURES:
    raise UserError(
      f"{path}: architecture {kind!r}; those read from GGUF are {', '.join(ARCHITECTURES)}"
    )

  def field(key: str, default: Any = None) -> Any:
    value = metadata.get(f"{kind}.{key}", default)
    if value is None:
      raise UserError(f"{path}: no key '{kind}.{key}' in the metadata; the file is incomplete")
    return value

  width, heads = field("embedding_length"), field("attention.head_count")
  common: dict[str, Any] = {
    "vocab_size": field("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())) or None),
    "context": field("context_length"),
    "width": width,
    "depth": field("block_count"),
    "heads": heads,
    "tied": tied,
    **ARCHITECTURES[kind],
  }
  mlp, base = field("feed_forward_length"), decimal(field("rope.freq_base", 10_000.0))
  if field("rope.scaling.type", "none") not in ("none", "linear"):
    raise UserError(
      f"{path}: '{kind}.rope.scaling.type' is {field('rope.scaling.type')!r}; only linear is "
      "implemented"
    )
  if kind in GPTS:
    common |= {
      "norm_eps": decimal(field("attention.layer_norm_epsilon")),
      "mlp": 0 if mlp == 4 * width else mlp,
    }
    if kind == "gpt2":
      return GPTConfig(**common)
    turned = field("rope.dimension_count")
    return GPTConfig(
      **common, rotary=turned, rope_base=base, parallel=bool(field("use_parallel_residual", True))
    )
  head = field("attention.key_length", width // heads)
  turned = field("rope.dimension_count", head)
  if kind == "gemma2":
    common |= {
      "window": field("attention.sliding_window", 4096),
      "softcap": decimal(field("attn_logit_softcapping", 50.0)),
    }
    common |= {"logit_softcap": decimal(field("final_logit_softcapping", 30.0))}
    common |= {
      "query_width": width // heads if common["depth"] == 46 else 0
    }  # the largest, which the file does not tell
  elif metadata.get(f"{kind}.attention.sliding_window"):
    common |= {"window": field("attention.sliding_window"), "pattern": "L"}
  if field("rope.scaling.type", "none") == "linear":
    common |= {"rope_scaling": "linear", "rope_factor": decimal(field("rope.scaling.factor"))}
  return LlamaConfig(
    **common,
    kv_heads=field("attention.head_count_kv", heads),
    mlp=mlp,
    rope_base=base,
    norm_eps=decimal(field("attention.layer_norm_rms_epsilon")),
    head_width=0 if head * heads == width else head,
    rotary=0 if turned == head else turned,
  )


def decimal(x: float) -> float:
  """A float32 of the file as it was written: 1e-5, not 9.99999974e-6."""
  return float(str(np.float32(x)))


def tensors(c: Config) -> Iterable[Tensor]:
  """Every tensor; matrices are [O, I] in all architectures."""
  block = "blk.{}."
  if isinstance(c, GPTConfig):
    kinds, shift = (("scale", "weight"), ("bias", "bias")), 0.0
    biases = {"attn_output", "ffn_up", "ffn_down"}
  else:
    kinds, shift = (("scale", "weight"),), c.norm_offset
    biases = {"attn_q", "attn_k", "attn_v"} if c.qkv_bias else set()
  products = {"attn_output": "o", "ffn_up": "up", "ffn_down": "down"}
  norms = {
    f"{block}attn_norm": "blocks/attn_norm",
    f"{block}ffn_norm": "blocks/mlp_norm",
    "output_norm": "norm",
  }
  yield Tensor("token_embd.weight", ("embed/tokens",))
  if isinstance(c, GPTConfig):
    for part, suffix in (("w", "weight"), ("b", "bias")):
      joined = tuple(f"blocks/{name}/{part}" for name in ("q", "k", "v"))
      yield Tensor(f"{block}attn_qkv.{suffix}", joined, turned=part == "w")
    if not c.rotary:
      yield Tensor("position_embd.weight", ("embed/positions",))
  else:
    products |= {"attn_q": "q", "attn_k": "k", "attn_v": "v", "ffn_gate": "gate"}
    if c.qk_norm:
      norms |= {f"{block}attn_q_norm": "blocks/q_norm", f"{block}attn_k_norm": "blocks/k_norm"}
    if c.post_norm:
      norms |= {
        f"{block}post_attention_norm": "blocks/attn_post",
        f"{block}post_ffw_norm": "blocks/mlp_post",
      }
  for name, leaf in norms.items():
    for ours, theirs in kinds:
      yield Tensor(f"{name}.{theirs}", (f"{leaf}/{ours}",), shift=shift)
  for name, leaf in products.items():
    paired = c.model_type == "llama" and name in ("attn_q", "attn_k")
    yield Tensor(f"{block}{name}.weight", (f"blocks/{leaf}/w",), turned=True, paired=paired)
    if name in biases:
      yield Tensor(f"{block}{name}.bias", (f"blocks/{leaf}/b",))
  if not c.tied:
    yield Tensor("output.weight", ("head/w",), turned=True)
