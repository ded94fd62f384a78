"""Reads a model from a GGUF file: quantised weights become float32, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructjax.errors import UserError
from instructjax.models import checks, gguf_layout, weights
from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig
from instructjax.models.weights import Config, Stored, Tensor
from instructjax.settings.fields import LARGEST, Limits
from instructjax.system.plain_json import shown
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
  path = Path(path)
  reader = opened(path)
  metadata = contents(reader, path)
  tensors_by_name = {tensor.name: tensor for tensor in reader.tensors}
  used = set()

  def find(name: str) -> Stored:
    if name not in tensors_by_name:
      raise UserError(
        f"{path}: no tensor '{name}'; the file is incomplete or of another architecture"
      )
    used.add(name)
    return _stored(path, tensors_by_name[name])

  # A file without an unembedding uses the embedding for both.
  tied = "output.weight" not in tensors_by_name
  config = read_config(metadata, tied=tied, path=path)
  params = weights.fill(config, tuple(tensors(config)), find)
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
    file: Any = np.memmap(path, mode="r")
    gguf_layout.check(memoryview(file))
    return gguf.GGUFReader(path)
  # KeyError: a key that occurs twice.
  except (ValueError, OSError, IndexError, KeyError) as error:
    raise UserError(f"{path}: not a readable GGUF file ({error}); fetch it again") from error


def contents(reader: Any, path: Path) -> Metadata:
  """Returns the metadata of an opened file by their keys.

  Raises:
    UserError: for a text that is not UTF-8.
  """
  metadata = {}
  for name, field in reader.fields.items():
    try:
      metadata[name] = field.contents()
    except ValueError as error:
      raise UserError(f"{path}: '{name}' cannot be read ({error}); fetch it again") from None
  return metadata


def _stored(path: Path, tensor: Any) -> Stored:
  """Returns a tensor of the reader for `weights.fill`."""
  import gguf

  place = f"{path}: tensor '{tensor.name}'"

  def read() -> np.ndarray:
    # Only this tensor is read from the disk.
    try:
      return gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
      raise UserError(
        f"{place} is of type {tensor.tensor_type.name}, which cannot be read; take a file of "
        "another quantisation"
      ) from None

  return Stored(place, _shape(tensor), read)


def _shape(tensor: Any) -> tuple[int, ...]:
  """Returns the shape of a tensor in the order of numpy; GGUF lists the fastest axis first."""
  sizes = [int(size) for size in tensor.shape]
  return tuple(reversed(sizes))


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor by its name, in the order of numpy.

  Raises:
    UserError: where the file is not GGUF.
  """
  return {tensor.name: _shape(tensor) for tensor in opened(path).tensors}


# --- the configuration ---


def configuration(path: Path) -> Config:
  """Returns the configuration of a file, whose tensors are not read.

  Raises:
    UserError: as `load` does for the metadata of a file.
  """
  reader = opened(path)
  names = [tensor.name for tensor in reader.tensors]
  return read_config(contents(reader, path), tied="output.weight" not in names, path=path)


def read_config(metadata: Metadata, *, tied: bool, path: Path) -> Config:
  """Returns the configuration that the metadata describe.

  Raises:
    UserError: for another architecture, a missing key or an unknown variant.
  """
  architecture = metadata.get("general.architecture")
  if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
    raise UserError(
      f"{path}: architecture {shown(architecture)}; those read from GGUF are "
      f"{', '.join(ARCHITECTURES)}"
    )
  fields = Fields(metadata, architecture, path)
  # Not every file says how large the vocabulary is, but all of them list it.
  tokens = checks.items(metadata.get("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens", path)
  common: dict[str, Any] = {
    "vocab_size": fields.size("vocab_size", len(tokens) or None),
    "context": fields.size("context_length"),
    "width": fields.size("embedding_length"),
    "depth": fields.size("block_count", high=checks.DEEPEST),
    "heads": fields.size("attention.head_count"),
    "tied": tied,
    **ARCHITECTURES[architecture],
  }
  read_family = _gpt_config if architecture in GPTS else _llama_config
  config = read_family(fields, common)
  checks.heads(config, path)
  return config


class Fields(NamedTuple):
  """The metadata of a file under the names of its architecture, checked as they are read."""

  metadata: Metadata
  architecture: str
  path: Path

  def value(self, key: str, default: Any = None) -> Any:
    """Returns a value as it is in the file.

    Raises:
      UserError: where there is neither a value nor a default.
    """
    value = self.metadata.get(self.name(key), default)
    if value is None:
      raise UserError(f"{self.path}: no key '{self.name(key)}' in the metadata; it is incomplete")
    return value

  def name(self, key: str) -> str:
    return f"{self.architecture}.{key}"

  def has(self, key: str) -> bool:
    return bool(self.metadata.get(self.name(key)))

  def size(self, key: str, default: int | None = None, high: int = LARGEST) -> int:
    """Returns a whole number from 1 to `high`."""
    return checks.size(self.value(key, default), self.name(key), self.path, high)

  def number(self, key: str, limits: Limits, default: float | None = None) -> float:
    """Returns a number within limits, as it was written before it became a float32."""
    value = checks.number(self.value(key, default), self.name(key), self.path, limits)
    return decimal(value)


def _gpt_config(fields: Fields, common: dict[str, Any]) -> GPTConfig:
  """Returns the configuration of a GPT-2 or GPT-NeoX."""
  mlp = fields.size("feed_forward_length")
  common["norm_eps"] = fields.number("attention.layer_norm_epsilon", checks.EPSILON)
  common["mlp"] = 0 if mlp == 4 * common["width"] else mlp
  if fields.architecture == "gpt2":
    return GPTConfig(**common)
  parallel = fields.value("use_parallel_residual", True)
  return GPTConfig(
    **common,
    rotary=fields.size("rope.dimension_count"),
    rope_base=fields.number("rope.freq_base", checks.BASE, 10_000.0),
    parallel=checks.flag(parallel, fields.name("use_parallel_residual"), fields.path),
  )


def _llama_config(fields: Fields, common: dict[str, Any]) -> LlamaConfig:
  """Returns the configuration of a Llama or one of its like."""
  width = common["width"]
  heads = common["heads"]
  window_key = "attention.sliding_window"
  if fields.architecture == "gemma2":
    common["window"] = fields.size(window_key, 4096)
    common["softcap"] = fields.number("attn_logit_softcapping", checks.CAP, 50.0)
    common["logit_softcap"] = fields.number("final_logit_softcapping", checks.CAP, 30.0)
    # The file does not say by which width the scores are scaled.
    is_largest = common["depth"] == DEPTH_OF_GEMMA2_27B
    common["query_width"] = width // heads if is_largest else 0
  elif fields.has(window_key):
    common["window"] = fields.size(window_key)
    common["pattern"] = "L"
  scaling = fields.value("rope.scaling.type", "none")
  if scaling not in ("none", "linear"):
    raise UserError(
      f"{fields.path}: '{fields.name('rope.scaling.type')}' is {shown(scaling)}; only linear is "
      "implemented"
    )
  if scaling == "linear":
    common["rope_scaling"] = "linear"
    common["rope_factor"] = fields.number("rope.scaling.factor", checks.FACTOR)
  head_width = fields.size("attention.key_length", width // heads)
  rotary = fields.size("rope.dimension_count", head_width)
  # In our configurations 0 stands for the usual value.
  return LlamaConfig(
    **common,
    kv_heads=fields.size("attention.head_count_kv", heads),
    mlp=fields.size("feed_forward_length"),
    rope_base=fields.number("rope.freq_base", checks.BASE, 10_000.0),
    norm_eps=fields.number("attention.layer_norm_rms_epsilon", checks.EPSILON),
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
