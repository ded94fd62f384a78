"""Reads and writes adapters in the layout of PEFT: `adapter_config.json` and safetensors.

PEFT stores a as [R, I] and b as [O, R], whatever the layout of the matrix. Where the file joins
several of our products in one matrix (GPT-2's c_attn), their adapters become one, whose rank is the
sum of their ranks. Its a stacks the rows of theirs, and its b holds theirs as blocks with zeros
around them, so that it is the same function.

Dimensions: I inputs and O outputs of a product, R the rank.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import checks, lora, weights
from instructjax.models.hf import tensors
from instructjax.models.lora import Adapter
from instructjax.models.weights import Config, Tensor
from instructjax.settings.fields import Limits
from instructjax.system import jsons, places, plain_json
from instructjax.system.places import AnyPath
from instructjax.system.plain_json import shown
from instructjax.types import Leaf, Params

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names of all tensors
# Settings of PEFT that change what is computed, with the values under which it is what ours
# computes.
DEMANDED = {
  "peft_type": ("LORA",),
  "use_dora": (False,),
  "bias": ("none",),
  "lora_bias": (False,),
  "modules_to_save": (None, []),
  "layers_to_transform": (None, []),
  "trainable_token_indices": (None,),
  "target_parameters": (None, []),
}
PART_OF_NAME = re.compile(r"[\w.]+")
ALPHA = Limits(low=-1e9, high=1e9)
Pair = tuple[np.ndarray, np.ndarray]  # (a, b) of one matrix in one layer


def is_adapter(folder: str | Path) -> bool:
  """Returns whether a folder holds an adapter of PEFT."""
  return (Path(folder) / CONFIG).is_file()


def base(folder: str | Path) -> str:
  """Returns where the model is that an adapter belongs to: a folder or a hub id.

  Raises:
    UserError: where the adapter does not say.
  """
  model = _read_config(Path(folder)).get("base_model_name_or_path")
  if not model or not isinstance(model, str):
    raise UserError(
      f"{Path(folder) / CONFIG}: 'base_model_name_or_path' is {shown(model)}; write the base "
      "model's folder there"
    )
  return model


# --- the matrices of a file ---


def _modules(config: Config) -> dict[str, Tensor]:
  """Returns the matrices of the blocks by the name of their module; "{}" stands for the layer."""
  modules = {}
  for tensor in tensors.body(config):
    if tensor.stacked and tensor.leaves[0].endswith("/w"):
      modules[tensor.name.removesuffix(".weight")] = tensor
  return modules


def _product_names(tensor: Tensor) -> list[str]:
  """Returns the names of the products that a matrix of the file joins."""
  return [leaf.split("/")[1] for leaf in tensor.leaves]


def _short_names(modules: list[str]) -> dict[str, str]:
  """Returns what PEFT's configuration calls each matrix.

  That is the last part of its name, or what follows the layer where that part is ambiguous (GPT-2
  has two c_proj).
  """
  last_parts = [module.rpartition(".")[2] for module in modules]
  short_names = {}
  for module, last_part in zip(modules, last_parts, strict=True):
    is_unique = last_parts.count(last_part) == 1
    short_names[module] = last_part if is_unique else module.rpartition("{}.")[2]
  return short_names


def _input_shape(name: str, leaf: Leaf) -> tuple[int, ...]:
  """Returns the axes of a product's inputs in one layer."""
  return leaf.shape[1 : 1 + lora.INPUTS.get(name, 1)]


def _output_shape(name: str, leaf: Leaf) -> tuple[int, ...]:
  """Returns the axes of a product's outputs in one layer."""
  return leaf.shape[1 + lora.INPUTS.get(name, 1) :]


def _outputs(tensor: Tensor) -> Tensor:
  """Returns how the file orders the outputs of a matrix, as a tensor for b.

  b^T is a matrix with R inputs and the outputs of the product.
  """
  return tensor._replace(leaves=("b/w",) * len(tensor.leaves), turned=True)


# --- writing ---


def save(
  folder: str | AnyPath,
  config: Config,
  adapter: dict[str, Adapter],
  base: str = "",
) -> None:
  """Writes an adapter that `peft.PeftModel.from_pretrained` opens on the base model.

  `base` is the folder or hub id of the base model. With several processes each takes part and the
  first one writes.

  Raises:
    UserError: where adapters that the file joins have different scales, and where the disk does not
      take the files.
  """
  from safetensors import SafetensorError, numpy

  # Fetching is collective: every process must do it.
  host = {name: sharding.fetch(part) for name, part in adapter.items()}
  content: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}
  alphas: dict[str, float] = {}
  table = weights.table(config)
  modules = _modules(config)
  short_names = _short_names(list(modules))
  for module, tensor in modules.items():
    adapted = [name for name in _product_names(tensor) if name in host]
    if not adapted:
      continue
    scale = host[adapted[0]].scale
    if any(host[name].scale != scale for name in adapted):
      raise UserError(
        f"{folder}: the adapters of {', '.join(adapted)} are one in this layout and have unlike "
        "scales"
      )
    for i in range(config.depth):
      a, b = _join(tensor, host, table, i)
      content[f"{PREFIX}{module.format(i)}.lora_A.weight"] = a
      content[f"{PREFIX}{module.format(i)}.lora_B.weight"] = b
    # The rank of a joined matrix is the sum of the ranks of its products.
    rank = sum(host[name].a.shape[-1] for name in adapted)
    ranks[short_names[module]] = rank
    # PEFT divides alpha by the rank of the joined matrix.
    alphas[short_names[module]] = scale * rank
  settings = _settings(ranks, alphas, base, modules)
  # Only the first process writes.
  if jax.process_index():
    return
  folder = places.directory(folder)
  # PEFT does not read our metadata. It lets `load` divide a joined matrix as it was before.
  own_ranks = {name: part.a.shape[-1] for name, part in host.items()}
  metadata = {"format": "pt", "ranks": jsons.text(own_ranks, ascii_only=True)}
  try:
    with places.filling(folder) as place:
      numpy.save_file(content, place / WEIGHTS, metadata=metadata)
      text = jsons.text(settings, indent=2, ascii_only=True) + "\n"
      (place / CONFIG).write_text(text, "utf-8")
  except (OSError, SafetensorError) as error:
    raise UserError(
      f"{folder}: the adapter could not be written ({error}); make room or choose another"
    ) from error


def _settings(
  ranks: dict[str, int],
  alphas: dict[str, float],
  base: str,
  modules: dict[str, Tensor],
) -> dict[str, Any]:
  """Returns the content of `adapter_config.json`.

  PEFT has one rank and one alpha, and patterns for the matrices that differ from them.
  """
  first = next(iter(ranks))
  rank = ranks[first]
  alpha = alphas[first]
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "inference_mode": True,
    "r": rank,
    "lora_alpha": alpha,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": list(ranks),
    # Whether the matrices are [I, O], as in GPT-2's Conv1D.
    "fan_in_fan_out": not any(tensor.turned for tensor in modules.values()),
    "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
    "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
  }


def _join(tensor: Tensor, host: dict[str, Adapter], table: Params, layer: int) -> Pair:
  """Returns (a [R, I], b [O, R]) of one matrix in a layer.

  Rows of b that belong to a product without an adapter are 0.
  """
  names = _product_names(tensor)
  a_parts = []
  for name in names:
    if name in host:
      a = host[name].a[layer]
      rank = a.shape[-1]
      a_parts.append(a.reshape(-1, rank).T)
  total_rank = sum(len(part) for part in a_parts)
  b_parts = []
  row = 0
  for name in names:
    outputs = _output_shape(name, table["blocks"][name]["w"])
    part = np.zeros((total_rank, *outputs), np.float32)
    if name in host:
      # The ranks of this product meet its own rows of a, and zeros elsewhere.
      rank = host[name].b.shape[1]
      part[row : row + rank] = host[name].b[layer]
      row += rank
    b_parts.append(part)
  a = np.ascontiguousarray(np.concatenate(a_parts), np.float32)
  return a, weights.join(_outputs(tensor), b_parts)


# --- reading ---


def load(folder: str | Path, config: Config) -> dict[str, Adapter]:
  """Returns the adapter of a folder for a model of this configuration.

  It is placed on the mesh where one is set. Where the file joins several products in one matrix,
  each gets the whole rank, unless the adapter was written by `save`.

  Raises:
    UserError: for a variant of LoRA that would be computed differently, and for missing or
      misshapen tensors.
  """
  folder = Path(folder)
  file = folder / WEIGHTS
  settings = _read_config(folder)
  path = folder / CONFIG
  table = weights.table(config)
  content, ranks = _read_tensors(file)
  adapters: dict[str, Adapter] = {}
  for module, tensor in _modules(config).items():
    pairs = _take_pairs(content, module, config.depth, file)
    if not pairs:
      continue
    pairs_by_product: dict[str, list[Pair]] = {}
    for a, b in pairs:
      divided = _divide(tensor, a, b, table, ranks, file)
      for name, pair in divided.items():
        pairs_by_product.setdefault(name, []).append(pair)
    rank = len(pairs[-1][0])
    scale = _scale(settings, module.format(0), rank, path)
    for name, layers in pairs_by_product.items():
      # Layers are stacked in one array, as in the model.
      a = np.stack([a for a, _ in layers])
      b = np.stack([b for _, b in layers])
      adapters[name] = Adapter(a.astype(np.float32), b.astype(np.float32), scale)
  # Every pair that was used has been taken out of the content.
  if content or not adapters:
    raise UserError(
      f"{file}: '{next(iter(content), 'nothing')}' belongs to no product of this model"
    )
  leaves = lora.table(table, lora.describe(adapters))
  adapters = sharding.place(adapters, sharding.shardings(leaves))
  return jax.tree.map(jax.numpy.asarray, adapters)


def _read_tensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
  """Returns the tensors of a file by their names without PREFIX, and the ranks from `save`."""
  import safetensors

  try:
    with safetensors.safe_open(file, "numpy") as opened:
      names = list(opened.keys())
      stored = {name.removeprefix(PREFIX): opened.get_tensor(name) for name in names}
      metadata = opened.metadata() or {}
  # ValueError: a zero byte in the path. TypeError: numbers that numpy does not have.
  except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
    raise UserError(f"{file}: not a readable safetensors file ({error}); save it again") from error
  content = {}
  for name, x in stored.items():
    content[name] = weights.finite(x, f"{file}: tensor '{name}'")
  raw_ranks = plain_json.parse(metadata.get("ranks", "{}"), f"{file}: 'ranks'", "save it again")
  ranks = {}
  for name, rank in checks.mapping(raw_ranks, "ranks", file).items():
    ranks[name] = checks.size(rank, f"ranks.{name}", file)
  return content, ranks


def _take_pairs(
  content: dict[str, np.ndarray],
  module: str,
  depth: int,
  file: Path,
) -> list[Pair]:
  """Takes the pair of every layer of a matrix out of the content; none where it has no adapter."""
  names = []
  for i in range(depth):
    prefix = module.format(i)
    names.append((f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"))
  if not any(a in content or b in content for a, b in names):
    return []
  pairs = []
  for a, b in names:
    if a not in content or b not in content:
      raise UserError(f"{file}: no '{a}' with '{b}'; an adapter here covers every layer or none")
    pairs.append((content.pop(a), content.pop(b)))
  return pairs


def _divide(
  tensor: Tensor,
  a: np.ndarray,
  b: np.ndarray,
  table: Params,
  ranks: dict[str, int],
  file: Path,
) -> dict[str, Pair]:
  """Returns the pair (a [R, I], b [O, R]) of one matrix as pairs of its products, in our shapes."""
  names = _product_names(tensor)
  matrices = {name: table["blocks"][name]["w"] for name in names}
  input_shapes = [_input_shape(name, leaf) for name, leaf in matrices.items()]
  output_shapes = [_output_shape(name, leaf) for name, leaf in matrices.items()]
  inputs = math.prod(input_shapes[0])
  outputs = sum(math.prod(shape) for shape in output_shapes)
  if a.shape[1:] != (inputs,) or not len(a) or b.shape != (outputs, len(a)):
    raise UserError(
      f"{file}: the pair of {', '.join(names)} has the shapes {a.shape} and {b.shape}, [R, "
      f"{inputs}] and [{outputs}, R] are expected; it belongs to another model"
    )
  # `save` notes the rank of each product. Where they add up to that of the matrix, the matrix is
  # divided into blocks again; otherwise every product gets all of a and its own rows of b.
  own_ranks = [ranks[name] for name in names if name in ranks]
  in_blocks = len(names) > 1 and bool(own_ranks) and sum(own_ranks) == len(a)
  b_shapes: list[weights.Shape] = [(len(a), *shape) for shape in output_shapes]
  b_parts = weights.pieces(_outputs(tensor), b, b_shapes)
  pairs = {}
  row = 0
  for name, input_shape, b_part in zip(names, input_shapes, b_parts, strict=True):
    rank = ranks.get(name, 0) if in_blocks else len(a)
    if rank:
      rows = slice(row, row + rank)
      own_a = a[rows].T.reshape(*input_shape, rank)
      pairs[name] = (own_a, b_part[rows])
    if in_blocks:
      row += rank
  return pairs


def _scale(settings: dict[str, Any], module: str, rank: int, path: Path) -> float:
  """Returns s of a module: alpha / rank, or alpha / sqrt(rank) where it was trained so.

  The square root is rank-stabilised LoRA (Kalajdzievski 2023).
  """
  alpha = settings["lora_alpha"]
  # The first pattern that fits counts, as in PEFT.
  patterns = checks.mapping(settings.get("alpha_pattern"), "alpha_pattern", path)
  for pattern, own_alpha in patterns.items():
    # A pattern of PEFT may be any regular expression, and some take for ever. What it writes
    # itself, and all that is read here, is a part of a name.
    if not PART_OF_NAME.fullmatch(pattern):
      raise UserError(
        f"{path}: 'alpha_pattern' has {shown(pattern)}; only names of modules are implemented"
      )
    if module == pattern or module.endswith(f".{pattern}"):
      alpha = checks.number(own_alpha, f"alpha_pattern.{pattern}", path, ALPHA)
      break
  divisor = math.sqrt(rank) if settings.get("use_rslora") else rank
  return alpha / divisor


def _read_config(folder: Path) -> dict[str, Any]:
  """Returns the content of `adapter_config.json`.

  Raises:
    UserError: where it is unreadable or asks for what is not computed here.
  """
  path = folder / CONFIG
  missing = "give the folder of a saved adapter"
  settings = plain_json.read_object(path, missing, "save it again")
  for key, values in DEMANDED.items():
    if key in settings and settings[key] not in values:
      raise UserError(
        f"{path}: '{key}' is {settings[key]!r}; this variant is not implemented (only "
        f"{values[0]!r} is)"
      )
  checks.number(settings.get("lora_alpha"), "lora_alpha", path, ALPHA)
  checks.flag(settings.get("use_rslora", False), "use_rslora", path)
  return settings
