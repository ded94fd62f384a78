"""Hugging Face model folders in and out: `config.json` and safetensors, one file or several with an index.

GPT2LMHeadModel and LlamaForCausalLM.  One tensor is in memory at a time beside the parameters.

Dimensions: I inputs and O outputs of a product.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import gpt, llama
from instructjax.types import Leaf, Params, PyTree

Config = gpt.GPTConfig | llama.LlamaConfig
SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


class Tensor(NamedTuple):
  """A tensor of the file: its name ("{}" stands for the layer) and the parameters that it joins along its outputs.

  A matrix is [I, O], as GPT-2's Conv1D stores it, or `turned` to [O, I], as a torch Linear does.
  """

  name: str
  leaves: tuple[str, ...]
  turned: bool = False


GPT_TENSORS = (
  Tensor("transformer.wte.weight", ("embed/tokens",)),
  Tensor("transformer.wpe.weight", ("embed/positions",)),
  Tensor("transformer.h.{}.ln_1.weight", ("blocks/attn_norm/scale",)),
  Tensor("transformer.h.{}.ln_1.bias", ("blocks/attn_norm/bias",)),
  Tensor("transformer.h.{}.attn.c_attn.weight", ("blocks/q/w", "blocks/k/w", "blocks/v/w")),
  Tensor("transformer.h.{}.attn.c_attn.bias", ("blocks/q/b", "blocks/k/b", "blocks/v/b")),
  Tensor("transformer.h.{}.attn.c_proj.weight", ("blocks/o/w",)),
  Tensor("transformer.h.{}.attn.c_proj.bias", ("blocks/o/b",)),
  Tensor("transformer.h.{}.ln_2.weight", ("blocks/mlp_norm/scale",)),
  Tensor("transformer.h.{}.ln_2.bias", ("blocks/mlp_norm/bias",)),
  Tensor("transformer.h.{}.mlp.c_fc.weight", ("blocks/up/w",)),
  Tensor("transformer.h.{}.mlp.c_fc.bias", ("blocks/up/b",)),
  Tensor("transformer.h.{}.mlp.c_proj.weight", ("blocks/down/w",)),
  Tensor("transformer.h.{}.mlp.c_proj.bias", ("blocks/down/b",)),
  Tensor("transformer.ln_f.weight", ("norm/scale",)),
  Tensor("transformer.ln_f.bias", ("norm/bias",)),
)
LLAMA_TENSORS = (
  Tensor("model.embed_tokens.weight", ("embed/tokens",)),
  Tensor("model.layers.{}.input_layernorm.weight", ("blocks/attn_norm/scale",)),
  Tensor("model.layers.{}.self_attn.q_proj.weight", ("blocks/q/w",), turned=True),
  Tensor("model.layers.{}.self_attn.k_proj.weight", ("blocks/k/w",), turned=True),
  Tensor("model.layers.{}.self_attn.v_proj.weight", ("blocks/v/w",), turned=True),
  Tensor("model.layers.{}.self_attn.o_proj.weight", ("blocks/o/w",), turned=True),
  Tensor("model.layers.{}.post_attention_layernorm.weight", ("blocks/mlp_norm/scale",)),
  Tensor("model.layers.{}.mlp.gate_proj.weight", ("blocks/gate/w",), turned=True),
  Tensor("model.layers.{}.mlp.up_proj.weight", ("blocks/up/w",), turned=True),
  Tensor("model.layers.{}.mlp.down_proj.weight", ("blocks/down/w",), turned=True),
  Tensor("model.norm.weight", ("norm/scale",)),
)
HEAD = Tensor("lm_head.weight", ("head/w",), turned=True)


def tensors(config: Config) -> tuple[Tensor, ...]:
  """Every tensor of a model, in the order of its layers."""
  body = GPT_TENSORS if isinstance(config, gpt.GPTConfig) else LLAMA_TENSORS
  return body if config.tied else (*body, HEAD)


def table(config: Config) -> PyTree[Leaf]:
  """The parameters of either family."""
  return gpt.table(config) if isinstance(config, gpt.GPTConfig) else llama.table(config)


def flat_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """A parameter of one layer as the file has it before turning: [I, O] for a matrix, one axis for all others."""
  if leaf.startswith("embed/"):
    return shape
  if not leaf.endswith("/w"):
    return (math.prod(shape),)
  inputs = 2 if leaf == "blocks/o/w" else 1
  return math.prod(shape[:inputs]), math.prod(shape[inputs:])


# --- reading ---


def load(folder: str | Path) -> tuple[Config, Params]:
  """(config, float32 parameters), placed on the mesh where one is set.

  Dropout, dtype, remat, unroll, sequence and attention are settings of a run, not of the weights: they keep their defaults.
  Raises UserError for a missing or malformed file, another architecture, and a missing or misshapen tensor.
  """
  folder = Path(folder)
  config = read_config(folder / CONFIG)
  return config, fill(config, opener(folder), folder)


def fill(config: Config, read: Callable[[str], np.ndarray], folder: Path) -> Params:
  """The parameters: `read` fetches a tensor by name."""
  leaves, tree = jax.tree_util.tree_flatten_with_path(table(config))
  layout = {"/".join(key.key for key in path): leaf for path, leaf in leaves}
  arrays: dict[str, Any] = {}
  for tensor in tensors(config):
    stacks = [np.empty(layout[name].shape, np.float32) for name in tensor.leaves]
    stacked = tensor.leaves[0].startswith("blocks/")
    for i in range(config.depth if stacked else 1):
      parts = [stack[i] if stacked else stack for stack in stacks]
      _take(tensor, read(tensor.name.format(i)), parts, f"{folder}: tensor '{tensor.name.format(i)}'")
    for name, stack in zip(tensor.leaves, stacks, strict=True):
      leaf = layout[name]
      arrays[name] = sharding.place(stack, sharding.fit(leaf.shape, leaf.axes)) if sharding.is_sharded() else stack
  return jax.tree.unflatten(tree, [jnp.asarray(arrays[name]) for name in layout])


def _take(tensor: Tensor, x: np.ndarray, parts: list[np.ndarray], where: str) -> None:
  """Writes one tensor of the file into the parameters of one layer."""
  shapes = [flat_shape(name, part.shape) for name, part in zip(tensor.leaves, parts, strict=True)]
  wanted = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
  wanted = wanted[::-1] if tensor.turned else wanted
  if x.shape != wanted:
    raise UserError(f"{where} has shape {x.shape}, but {CONFIG} asks for {wanted}: they belong to different models")
  x = x.T if tensor.turned else x
  ends = np.cumsum([shape[-1] for shape in shapes])[:-1]
  for part, piece in zip(parts, np.split(x, ends, axis=-1), strict=True):
    part[...] = piece.reshape(part.shape)


def opener(folder: Path) -> Callable[[str], np.ndarray]:
  """A function that fetches a tensor by name from whichever file of the folder holds it."""
  import safetensors

  files = {}

  def open_file(name: str):
    try:
      files[name] = safetensors.safe_open(folder / name, "numpy")
    except (safetensors.SafetensorError, OSError) as error:
      raise UserError(f"{folder / name}: not a readable safetensors file ({error}); fetch it again") from error
    return files[name]

  if (folder / INDEX).is_file():
    where = _json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict):
      raise UserError(f"{folder / INDEX}: no 'weight_map'; fetch it again")
  elif (folder / SINGLE).is_file():
    where = dict.fromkeys(open_file(SINGLE).keys(), SINGLE)
  else:
    raise UserError(
      f"{folder}: holds neither {SINGLE} nor {INDEX}; save the model in the safetensors format "
      "(in transformers: model.save_pretrained(folder))"
    )
  # GPT-2's first checkpoints name their tensors without the prefix.
  bare = "wte.weight" in where
  known = (safetensors.SafetensorError, TypeError)

  def read(name: str) -> np.ndarray:
    name = name.removeprefix("transformer.") if bare else name
    if name not in where:
      raise UserError(f"{folder}: no tensor '{name}' in its safetensors; the folder is incomplete or of another model")
    file = where[name]
    try:
      return (files.get(file) or open_file(file)).get_tensor(name)
    except known as error:
      raise UserError(f"{folder / file}: tensor '{name}' cannot be read ({error}); fetch the file again") from error

  return read


def _json(path: Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text("utf-8"))
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror}); give the folder of a saved model") from error
  except ValueError as error:
    raise UserError(f"{path}: malformed JSON ({error}); fetch it again") from error
  if not isinstance(value, dict):
    raise UserError(f"{path}: holds no JSON object; fetch it again")
  return value


def read_config(path: Path) -> Config:
  """The sizes out of `config.json`.

  Raises UserError for a missing key, another architecture, or a variant of one that would be computed differently.
  """
  raw = _json(path)
  kind = raw.get("model_type")
  if kind not in ("gpt2", "llama"):
    raise UserError(f"{path}: model_type is {kind!r}; only 'gpt2' and 'llama' can be read")
  return (_gpt_config if kind == "gpt2" else _llama_config)(raw, path)


def _size(raw: dict[str, Any], key: str, path: Path) -> int:
  value = raw.get(key)
  if not isinstance(value, int) or value < 1:
    raise UserError(f"{path}: '{key}' is {value!r}; it must be a positive whole number")
  return value


def _demand(raw: dict[str, Any], path: Path, **allowed: tuple[Any, ...]) -> None:
  """Each key must be absent or have one of the values that our model computes."""
  for key, values in allowed.items():
    if key in raw and raw[key] not in values:
      raise UserError(f"{path}: '{key}' is {raw[key]!r}; this variant is not implemented (only {values[0]!r} is)")


def _gpt_config(raw: dict[str, Any], path: Path) -> gpt.GPTConfig:
  width = _size(raw, "n_embd", path)
  _demand(
    raw, path, activation_function=("gelu_new", "gelu_pytorch_tanh"), n_inner=(None, 4 * width),
    scale_attn_weights=(True,), scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False,),
  )  # fmt: skip
  return gpt.GPTConfig(
    vocab_size=_size(raw, "vocab_size", path),
    context=_size(raw, "n_positions", path),
    width=width,
    depth=_size(raw, "n_layer", path),
    heads=_size(raw, "n_head", path),
    norm_eps=float(raw.get("layer_norm_epsilon", 1e-5)),
    tied=bool(raw.get("tie_word_embeddings", True)),
  )


def _llama_config(raw: dict[str, Any], path: Path) -> llama.LlamaConfig:
  width, heads = _size(raw, "hidden_size", path), _size(raw, "num_attention_heads", path)
  rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  _demand(
    raw, path, hidden_act=("silu",), attention_bias=(False,), mlp_bias=(False,), head_dim=(width // heads, None)
  )  # fmt: skip
  _demand(rope, path, rope_type=("default",), type=("default",))
  return llama.LlamaConfig(
    vocab_size=_size(raw, "vocab_size", path),
    context=_size(raw, "max_position_embeddings", path),
    width=width,
    depth=_size(raw, "num_hidden_layers", path),
    heads=heads,
    kv_heads=_size({"num_key_value_heads": heads} | raw, "num_key_value_heads", path),
    mlp=_size(raw, "intermediate_size", path),
    rope_base=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
    norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
    tied=bool(raw.get("tie_word_embeddings", False)),
  )


# --- writing ---


def save(folder: str | Path, config: Config, params: Params, *, shard_bytes: int = 5 * 2**30) -> None:
  """Writes a folder that `transformers` opens: float32, in files of at most `shard_bytes` (or one tensor) each.

  Frozen blocks (`lower`) are joined to those above them.  Every file is complete before it gets its name, and
  `config.json` comes last.  With several processes each takes part and the first one writes.
  Raises UserError for parameters of another shape and where the disk does not take them.
  """
  from safetensors import SafetensorError, numpy

  folder = Path(folder)
  shards = list(_shards(config, shard_bytes))
  names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
  names = names if len(shards) > 1 else [SINGLE]
  _check(config, params)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, shard in zip(names, shards, strict=True):
      content = {tensor.name.format(i): _tensor(tensor, i, params) for tensor, i in shard}
      if jax.process_index() == 0:
        numpy.save_file(content, _part(folder / name), metadata={"format": "pt"})
        _part(folder / name).chmod(0o644)
    if jax.process_index():
      return
    _finish(folder, config, names, shards)
  except (OSError, SafetensorError) as error:
    for name in (*names, INDEX, CONFIG):
      _part(folder / name).unlink(missing_ok=True)
    raise UserError(
      f"{folder}: the model could not be written ({error}); make room or choose another folder"
    ) from error


def _part(path: Path) -> Path:
  return path.with_name(f".{path.name}.part")


def _finish(folder: Path, config: Config, names: list[str], shards: list[list[tuple[Tensor, int]]]) -> None:
  """Gives the written files their names, removes those of an earlier model, and writes the index and `config.json`."""
  for name in names:
    _part(folder / name).replace(folder / name)
  for stale in folder.glob("model*.safetensors"):
    if stale.name not in names:
      stale.unlink()
  if len(names) > 1:
    where = {tensor.name.format(i): name for name, shard in zip(names, shards, strict=True) for tensor, i in shard}
    total = 4 * sum(math.prod(leaf.shape) for leaf in _leaves(config).values())
    _write(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
  else:
    (folder / INDEX).unlink(missing_ok=True)
  _write(folder / CONFIG, write_config(config))


def _write(path: Path, value: dict[str, Any]) -> None:
  _part(path).write_text(json.dumps(value, indent=2) + "\n", "utf-8")
  _part(path).replace(path)


def _leaves(config: Config) -> dict[str, Leaf]:
  leaves = jax.tree_util.tree_leaves_with_path(table(config))
  return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def _check(config: Config, params: Params) -> None:
  """Raises UserError where a parameter is missing or has another shape than the configuration says."""
  for name, leaf in _leaves(config).items():
    arrays = _stacks(name, params)
    shape = (sum(x.shape[0] for x in arrays), *arrays[0].shape[1:]) if arrays else None
    if shape != leaf.shape:
      found = "is missing" if shape is None else f"has shape {shape}"
      raise UserError(f"parameter '{name}' {found}, but the configuration asks for {leaf.shape}: save it with its own")


def _stacks(name: str, params: Params) -> list[Any]:
  """The arrays of a parameter: one, or the frozen lower layers and the ones above."""
  first, *rest = name.split("/")
  found = []
  for part in ("lower", "blocks") if first == "blocks" else (first,):
    value: Any = params.get(part)
    for key in rest:
      value = value.get(key) if isinstance(value, dict) else None
    if value is not None:
      found.append(value)
  return found


def _shards(config: Config, limit: int) -> Iterator[list[tuple[Tensor, int]]]:
  """The tensors with their layers, in files of at most `limit` bytes."""
  layout, shard, size = _leaves(config), [], 0
  for tensor in tensors(config):
    stacked = tensor.leaves[0].startswith("blocks/")
    count = config.depth if stacked else 1
    each = 4 * sum(math.prod(layout[name].shape) for name in tensor.leaves) // count
    for i in range(count):
      if shard and size + each > limit:
        yield shard
        shard, size = [], 0
      shard.append((tensor, i))
      size += each
  yield shard


def _tensor(tensor: Tensor, layer: int, params: Params) -> np.ndarray:
  """One tensor of the file, float32."""
  parts = []
  for name in tensor.leaves:
    array, i = _stacks(name, params)[0], layer
    if name.startswith("blocks/"):
      for stack in _stacks(name, params):
        if i < stack.shape[0]:
          array = stack[i]
          break
        i -= stack.shape[0]
    x = np.asarray(sharding.replicate(array)).astype(np.float32)
    parts.append(x.reshape(flat_shape(name, x.shape)))
  joined = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
  return np.ascontiguousarray(joined.T if tensor.turned else joined)


def write_config(config: Config) -> dict[str, Any]:
  """The content of `config.json`."""
  c = config
  common = {"vocab_size": c.vocab_size, "tie_word_embeddings": c.tied, "dtype": "float32", "torch_dtype": "float32"}
  common |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
  if isinstance(c, gpt.GPTConfig):
    return common | {
      "model_type": "gpt2",
      "architectures": ["GPT2LMHeadModel"],
      "n_positions": c.context,
      "n_embd": c.width,
      "n_layer": c.depth,
      "n_head": c.heads,
      "n_inner": None,
      "activation_function": "gelu_new",
      "layer_norm_epsilon": c.norm_eps,
      "resid_pdrop": c.dropout,
      "embd_pdrop": 0.0,
      "attn_pdrop": 0.0,
    }
  return common | {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": c.context,
    "hidden_size": c.width,
    "num_hidden_layers": c.depth,
    "num_attention_heads": c.heads,
    "num_key_value_heads": c.kv_heads,
    "head_dim": c.width // c.heads,
    "intermediate_size": c.mlp,
    "hidden_act": "silu",
    "rms_norm_eps": c.norm_eps,
    "rope_theta": c.rope_base,
    "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
    "attention_bias": False,
    "mlp_bias": False,
  }
