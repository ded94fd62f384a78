"""Reads a model from a GGUF file: quantised weights become float32, one tensor at a time."""

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

Metadata = dict[str, Any]

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
GPTS = ("gpt2", "gptneox")  # the architectures of `gpt`; all others are of `llama`
# The largest Gemma 2 (27B) has this depth, and it alone divides its scores by sqrt(D / H).
DEPTH_OF_GEMMA2_27B = 46


# --- the file ---


def load(path: str | Path) -> tuple[Config, Params, Metadata]:
  """Returns (config, float32 parameters, metadata of the file under its own keys).

  Raises:
    UserError: for a file that is not GGUF, another architecture, a missing or misshapen tensor, and
      a tensor that the model has no place for.
  """
  import gguf

  path = Path(path)
  reader = opened(path)
  metadata = {name: field.contents() for name, field in reader.fields.items()}
  tensors_by_name = {tensor.name: tensor for tensor in reader.tensors}
  used = set()

  def read(name: str) -> np.ndarray:
    if name not in tensors_by_name:
      raise UserError(
        f"{path}: no tensor '{name}'; the file is incomplete or of another architecture"
      )
    used.add(name)
    # Only this tensor is read from the disk.
    tensor = tensors_by_name[name]
    return gguf.dequantize(tensor.data, tensor.tensor_type)

  # A file without an unembedding uses the embedding for both.
  tied = "output.weight" not in tensors_by_name
  config = read_config(metadata, tied=tied, path=path)
  params = weights.fill(config, tuple(tensors(config)), read, path)
  unused = sorted(set(tensors_by_name) - used)
  if unused:
    raise UserError(
      f"{path}: holds tensor '{unused[0]}', which is not implemented; without it, it would be "
      "another model"
    )
  return config, params, metadata


def opened(path: Path) -> Any:
  """Returns the reader of a file.

  Raises:
    UserError: where the file is not GGUF.
  """
  import gguf

  try:
    return gguf.GGUFReader(path)
  except (ValueError, OSError, IndexError) as error:
    raise UserError(f"{path}: not a readable GGUF file ({error}); fetch it again") from error


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor by its name, in the order of numpy.

  Raises:
    UserError: where the file is not GGUF.
  """
  shape_by_name = {}
  for tensor in opened(path).tensors:
    # GGUF lists the fastest axis first.
    sizes = [int(size) for size in tensor.shape]
    shape_by_name[tensor.name] = tuple(reversed(sizes))
  return shape_by_name


# --- the configuration ---


def read_config(metadata: Metadata, *, tied: bool, path: Path) -> Config:
  """Returns the configuration that the metadata describe.

  Raises:
    UserError: for another architecture, a missing key or an unknown variant.
  """
  architecture = metadata.get("general.architecture")
  if architecture not in ARCHITECTURES:
    raise UserError(
      f"{path}: architecture {architecture!r}; those read from GGUF are {', '.join(ARCHITECTURES)}"
    )

  def field(key: str, default: Any = None) -> Any:
    value = metadata.get(f"{architecture}.{key}", default)
    if value is None:
      raise UserError(
        f"{path}: no key '{architecture}.{key}' in the metadata; the file is incomplete"
      )
    return value

  scaling = field("rope.scaling.type", "none")
  if scaling not in ("none", "linear"):
    raise UserError(
      f"{path}: '{architecture}.rope.scaling.type' is {scaling!r}; only linear is implemented"
    )
  # Not every file says how large the vocabulary is, but all of them list it.
  listed_tokens = len(metadata.get("tokenizer.ggml.tokens", ())) or None
  common: dict[str, Any] = {
    "vocab_size": field("vocab_size", listed_tokens),
    "context": field("context_length"),
    "width": field("embedding_length"),
    "depth": field("block_count"),
    "heads": field("attention.head_count"),
    "tied": tied,
    **ARCHITECTURES[architecture],
  }
  if architecture in GPTS:
    return _gpt_config(architecture, common, field)
  return _llama_config(architecture, common, field, scaling, metadata)


def _gpt_config(architecture: str, common: dict[str, Any], field: Any) -> GPTConfig:
  """Returns the configuration of a GPT-2 or GPT-NeoX; `field(key, default)` reads the metadata."""
  mlp = field("feed_forward_length")
  common["norm_eps"] = decimal(field("attention.layer_norm_epsilon"))
  common["mlp"] = 0 if mlp == 4 * common["width"] else mlp
  if architecture == "gpt2":
    return GPTConfig(**common)
  return GPTConfig(
    **common,
    rotary=field("rope.dimension_count"),
    rope_base=decimal(field("rope.freq_base", 10_000.0)),
    parallel=bool(field("use_parallel_residual", True)),
  )


def _llama_config(
  architecture: str,
  common: dict[str, Any],
  field: Any,
  scaling: str,
  metadata: Metadata,
) -> LlamaConfig:
  """Returns the configuration of a Llama or one of its like."""
  width = common["width"]
  heads = common["heads"]
  window_key = "attention.sliding_window"
  if architecture == "gemma2":
    common["window"] = field(window_key, 4096)
    common["softcap"] = decimal(field("attn_logit_softcapping", 50.0))
    common["logit_softcap"] = decimal(field("final_logit_softcapping", 30.0))
    # The file does not say by which width the scores are scaled.
    is_largest = common["depth"] == DEPTH_OF_GEMMA2_27B
    common["query_width"] = width // heads if is_largest else 0
  elif metadata.get(f"{architecture}.{window_key}"):
    common["window"] = field(window_key)
    common["pattern"] = "L"
  if scaling == "linear":
    common["rope_scaling"] = "linear"
    common["rope_factor"] = decimal(field("rope.scaling.factor"))
  head_width = field("attention.key_length", width // heads)
  rotary = field("rope.dimension_count", head_width)
  # In our configurations 0 stands for the usual value.
  return LlamaConfig(
    **common,
    kv_heads=field("attention.head_count_kv", heads),
    mlp=field("feed_forward_length"),
    rope_base=decimal(field("rope.freq_base", 10_000.0)),
    norm_eps=decimal(field("attention.layer_norm_rms_epsilon")),
    head_width=0 if head_width * heads == width else head_width,
    rotary=0 if rotary == head_width else rotary,
  )


def decimal(x: float) -> float:
  """Returns a float32 of the file as it was written: 1e-5, not 9.99999974e-6."""
  return float(str(np.float32(x)))


# --- the tensors ---


def tensors(config: Config) -> Iterable[Tensor]:
  """Yields every tensor of a model; matrices are [O, I] in all architectures."""
  yield Tensor("token_embd.weight", ("embed/tokens",))
  if isinstance(config, GPTConfig):
    yield from _gpt_tensors(config)
  else:
    yield from _llama_tensors(config)
  if not config.tied:
    yield Tensor("output.weight", ("head/w",), turned=True)


def _gpt_tensors(config: GPTConfig) -> Iterable[Tensor]:
  """Yields the tensors of GPT-2 and GPT-NeoX between the embedding and the unembedding."""
  if not config.rotary:
    yield Tensor("position_embd.weight", ("embed/positions",))
  norms = {
    "blk.{}.attn_norm": "blocks/attn_norm",
    "blk.{}.ffn_norm": "blocks/mlp_norm",
    "output_norm": "norm",
  }
  for name, leaf in norms.items():
    yield Tensor(f"{name}.weight", (f"{leaf}/scale",))
    yield Tensor(f"{name}.bias", (f"{leaf}/bias",))
  # Queries, keys and values are one matrix.
  for part, suffix in (("w", "weight"), ("b", "bias")):
    leaves = tuple(f"blocks/{name}/{part}" for name in ("q", "k", "v"))
    yield Tensor(f"blk.{{}}.attn_qkv.{suffix}", leaves, turned=part == "w")
  products = {"attn_output": "o", "ffn_up": "up", "ffn_down": "down"}
  for name, leaf in products.items():
    yield Tensor(f"blk.{{}}.{name}.weight", (f"blocks/{leaf}/w",), turned=True)
    yield Tensor(f"blk.{{}}.{name}.bias", (f"blocks/{leaf}/b",))


def _llama_tensors(config: LlamaConfig) -> Iterable[Tensor]:
  """Yields the tensors of Llama and its like between the embedding and the unembedding."""
  norms = {
    "blk.{}.attn_norm": "blocks/attn_norm",
    "blk.{}.ffn_norm": "blocks/mlp_norm",
    "output_norm": "norm",
  }
  if config.qk_norm:
    norms["blk.{}.attn_q_norm"] = "blocks/q_norm"
    norms["blk.{}.attn_k_norm"] = "blocks/k_norm"
  if config.post_norm:
    norms["blk.{}.post_attention_norm"] = "blocks/attn_post"
    norms["blk.{}.post_ffw_norm"] = "blocks/mlp_post"
  for name, leaf in norms.items():
    # GGUF stores Gemma's scales with the offset of 1 in them.
    yield Tensor(f"{name}.weight", (f"{leaf}/scale",), shift=config.norm_offset)
  products = {
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
  }
  biased = ("attn_q", "attn_k", "attn_v") if config.qkv_bias else ()
  for name, leaf in products.items():
    # Files of Llama keep the order of features of Meta's own weights.
    paired = config.model_type == "llama" and name in ("attn_q", "attn_k")
    yield Tensor(f"blk.{{}}.{name}.weight", (f"blocks/{leaf}/w",), turned=True, paired=paired)
    if name in biased:
      yield Tensor(f"blk.{{}}.{name}.bias", (f"blocks/{leaf}/b",))
