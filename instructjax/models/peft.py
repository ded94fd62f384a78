"""Adapters in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`, out and
in.

PEFT stores a as [R, I] and b as [O, R], whatever the layout of the matrix.  Where the file joins
several of our products in one matrix (GPT-2's c_attn) their adapters become one of the sum of
their ranks, with blocks in b: the same function. Dimensions: I inputs and O outputs of a
product, R the rank.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import lora, weights
from instructjax.models.hf import tensors
from instructjax.models.lora import Adapter
from instructjax.models.weights import Config, Tensor
from instructjax.types import Leaf, Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
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


def is_adapter(folder: str | Path) -> bool:
  """Whether a folder holds an adapter of PEFT."""
  return (Path(folder) / CONFIG).is_file()


def base(folder: str | Path) -> str:
  """Where the model is that an adapter belongs to.  Raises UserError where the adapter does not
  say.
  """
  found = _config(Path(folder)).get("base_model_name_or_path")
  if not found:
    raise UserError(
      f"{Path(folder) / CONFIG}: 'base_model_name_or_path' is empty; write the base model's folder "
      "there"
    )
  return found


# --- writing ---


def save(folder: str | Path, config: Config, adapter: dict[str, Adapter], base: str = "") -> None:
  """Writes an adapter that `peft.PeftModel.from_pretrained` opens on the base model; `base` is
  where that one is.

  With several processes each takes part and the first one writes.  Raises UserError where the
  disk does not take it.
  """
  from safetensors import SafetensorError, numpy

  host = {name: sharding.fetch(one) for name, one in adapter.items()}
  content, ranks, alphas = {}, {}, {}
  table = weights.table(config)
  modules = _modules(config)
  short = _short(list(modules))
  for module, tensor in modules.items():
    mine = [name for name in _names(tensor) if name in host]
    if not mine:
      continue
    if len({host[name].scale for name in mine}) > 1:
      raise UserError(
        f"{folder}: the adapters of {', '.join(mine)} are one in this layout and have unlike scales"
      )
    for i in range(config.depth):
      a, b = _join(tensor, host, table, i)
      content |= {
        f"{PREFIX}{module.format(i)}.lora_{side}.weight": x for side, x in (("A", a), ("B", b))
      }
    ranks[short[module]] = sum(host[name].a.shape[-1] for name in mine)
    alphas[short[module]] = host[mine[0]].scale * ranks[short[module]]
  first = next(iter(ranks))
  about = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "inference_mode": True,
    "r": ranks[first],
    "lora_alpha": alphas[first],
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": list(ranks),
    "fan_in_fan_out": not any(tensor.turned for tensor in modules.values()),
    "rank_pattern": {name: rank for name, rank in ranks.items() if rank != ranks[first]},
    "alpha_pattern": {name: alpha for name, alpha in alphas.items() if alpha != alphas[first]},
  }
  if jax.process_index():
    return
  folder = Path(folder)
  own = {"format": "pt", "ranks": json.dumps({name: one.a.shape[-1] for name, one in host.items()})}
  try:
    folder.mkdir(parents=True, exist_ok=True)
    numpy.save_file(content, folder / WEIGHTS, metadata=own)
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
  except (OSError, SafetensorError) as error:
    raise UserError(
      f"{folder}: the adapter could not be written ({error}); make room or choose another"
    ) from error


def _modules(config: Config) -> dict[str, Tensor]:
  """The matrices of the blocks in the file by the name of their module ("{}" stands for the layer)."""
  matrices = [t for t in tensors.body(config) if t.stacked and t.leaves[0].endswith("/w")]
  return {t.name.removesuffix(".weight"): t for t in matrices}


def _names(tensor: Tensor) -> list[str]:
  """The products that a matrix of the file joins."""
  return [leaf.split("/")[1] for leaf in tensor.leaves]


def _short(modules: list[str]) -> dict[str, str]:
  """What PEFT's configuration calls each matrix: its last name, or the last two where one would be
  ambiguous (c_proj).
  """
  last = [module.rpartition(".")[2] for module in modules]
  return {
    m: name if last.count(name) == 1 else m.rpartition("{}.")[2]
    for m, name in zip(modules, last, strict=True)
  }


def _cut(name: str, leaf: Leaf) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """The axes of inputs and those of outputs of a product in one layer."""
  at = 1 + lora.INPUTS.get(name, 1)
  return leaf.shape[1:at], leaf.shape[at:]


def _outputs(tensor: Tensor) -> Tensor:
  """How the file orders the outputs of a matrix: b^T is one with R inputs."""
  return tensor._replace(leaves=("b/w",) * len(tensor.leaves), turned=True)


def _join(
  tensor: Tensor, host: dict[str, Adapter], table: Params, i: int
) -> tuple[np.ndarray, np.ndarray]:
  """(a [R, I], b [O, R]) of one matrix in layer i; rows of b that belong to a product without
  adapter are 0.
  """
  names = _names(tensor)
  a = [host[name].a[i].reshape(-1, host[name].a.shape[-1]).T for name in names if name in host]
  parts, row = [], 0
  for name in names:
    part = np.zeros((sum(map(len, a)), *_cut(name, table["blocks"][name]["w"])[1]), np.float32)
    if name in host:
      rank = host[name].b.shape[1]
      part[row : row + rank] = host[name].b[i]
      row += rank
    parts.append(part)
  return np.ascontiguousarray(np.concatenate(a), np.float32), weights.join(_outputs(tensor), parts)


# --- reading ---


def load(folder: str | Path, config: Config) -> dict[str, Adapter]:
  """The adapter of a folder for a model of this configuration, on the mesh where one is set.

  Where the file joins several products in one matrix, each gets the whole rank, unless the
  adapter was written by `save`. Raises UserError for a variant of LoRA that would be computed
  differently, and for missing or misshapen tensors.
  """
  import safetensors

  folder = Path(folder)
  about, table = _config(folder), weights.table(config)
  try:
    with safetensors.safe_open(folder / WEIGHTS, "numpy") as file:
      names = list(file.keys())
      content = {name.removeprefix(PREFIX): file.get_tensor(name) for name in names}
      ranks = json.loads((file.metadata() or {}).get("ranks", "{}"))
  except (OSError, TypeError, safetensors.SafetensorError) as error:
    raise UserError(
      f"{folder / WEIGHTS}: not a readable safetensors file ({error}); save it again"
    ) from error
  found: dict[str, Adapter] = {}
  for module, tensor in _modules(config).items():
    pairs = [
      [f"{module.format(i)}.lora_{side}.weight" for side in "AB"] for i in range(config.depth)
    ]
    if not any(name in content for pair in pairs for name in pair):
      continue
    parts: dict[str, list] = {}
    rank = 0
    for a, b in pairs:
      if a not in content or b not in content:
        raise UserError(
          f"{folder / WEIGHTS}: no '{a}' with '{b}'; an adapter here covers every layer or none"
        )
      rank = len(content[a])
      for name, pair in _divide(
        tensor, content.pop(a), content.pop(b), table, ranks, folder / WEIGHTS
      ).items():
        parts.setdefault(name, []).append(pair)
    scale = _scale(about, module.format(0), rank)
    for name, layers in parts.items():
      a, b = (np.stack(side).astype(np.float32) for side in zip(*layers, strict=True))
      found[name] = Adapter(a, b, scale)
  if content or not found:
    raise UserError(
      f"{folder / WEIGHTS}: '{next(iter(content), 'nothing')}' belongs to no product of this model"
    )
  leaves = lora.table(table, lora.describe(found))
  return jax.tree.map(jax.numpy.asarray, sharding.place(found, sharding.shardings(leaves)))


def _divide(
  tensor: Tensor, a: np.ndarray, b: np.ndarray, table: Params, ranks: dict[str, int], file: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """The pair of one matrix as pairs of its products, in our shapes."""
  names = _names(tensor)
  axes = [_cut(name, table["blocks"][name]["w"]) for name in names]
  inputs, outputs = math.prod(axes[0][0]), sum(math.prod(out) for _, out in axes)
  if a.shape[1:] != (inputs,) or b.shape != (outputs, len(a)):
    raise UserError(
      f"{file}: the pair of {', '.join(names)} has the shapes {a.shape} and {b.shape}, [R, "
      f"{inputs}] and "
      f"[{outputs}, R] are expected; it belongs to another model"
    )
  mine = [name for name in names if name in ranks]
  apart = len(names) > 1 and bool(mine) and sum(ranks[name] for name in mine) == len(a)
  parts = weights.pieces(_outputs(tensor), b, [(len(a), *out) for _, out in axes])
  found, row = {}, 0
  for name, (into, _), part in zip(names, axes, parts, strict=True):
    rank = ranks.get(name, 0) if apart else len(a)
    if rank:
      found[name] = a[row : row + rank].T.reshape(*into, rank), part[row : row + rank]
    row += rank if apart else 0
  return found


def _scale(about: dict[str, Any], module: str, rank: int) -> float:
  """alpha / rank of a module, or alpha / sqrt(rank) where it was trained so (Kalajdzievski 2023)."""
  patterns = about.get("alpha_pattern") or {}
  named = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
  alpha = named[0] if named else about["lora_alpha"]
  return alpha / (math.sqrt(rank) if about.get("use_rslora") else rank)


def _config(folder: Path) -> dict[str, Any]:
  """`adapter_config.json`.  Raises UserError where it is unreadable or asks for what is not
  computed here.
  """
  path = folder / CONFIG
  try:
    about = json.loads(path.read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(
      f"{path}: cannot be read ({error}); give the folder of a saved adapter"
    ) from error
  for key, values in DEMANDED.items():
    if key in about and about[key] not in values:
      raise UserError(
        f"{path}: '{key}' is {about[key]!r}; this variant is not implemented (only {values[0]!r} "
        "is)"
      )
  if not isinstance(about.get("lora_alpha"), int | float):
    raise UserError(f"{path}: 'lora_alpha' is {about.get('lora_alpha')!r}; a number is expected")
  return about
