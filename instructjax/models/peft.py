"""Adapters in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`, out and in.

PEFT stores a as [R, I] and b as [O, R], whatever the layout of the matrix.  Where the file joins several of our products in
one matrix (GPT-2's c_attn) their adapters become one of the sum of their ranks, with blocks in b: the same function.
Dimensions: I inputs and O outputs of a product, R the rank.
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
from instructjax.models import hf, lora
from instructjax.models.lora import Adapter
from instructjax.types import Leaf, Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Settings of PEFT that change what is computed, with the values under which it is what ours computes.
DEMANDED = {
  "peft_type": ("LORA",), "use_dora": (False,), "bias": ("none",), "lora_bias": (False,), "modules_to_save": (None, []),
  "layers_to_transform": (None, []), "trainable_token_indices": (None,), "target_parameters": (None, []),
}  # fmt: skip


def is_adapter(folder: str | Path) -> bool:
  """Whether a folder holds an adapter of PEFT."""
  return (Path(folder) / CONFIG).is_file()


def base(folder: str | Path) -> str:
  """Where the model is that an adapter belongs to.  Raises UserError where the adapter does not say."""
  found = _config(Path(folder)).get("base_model_name_or_path")
  if not found:
    raise UserError(f"{Path(folder) / CONFIG}: 'base_model_name_or_path' is empty; write the base model's folder there")
  return found


# --- writing ---


def save(folder: str | Path, config: hf.Config, adapter: dict[str, Adapter], base: str = "") -> None:
  """Writes an adapter that `peft.PeftModel.from_pretrained` opens on the base model; `base` is where that one is.

  With several processes each takes part and the first one writes.  Raises UserError where the disk does not take it.
  """
  from safetensors import SafetensorError, numpy

  host = {name: sharding.fetch(one) for name, one in adapter.items()}
  tensors, ranks, alphas = {}, {}, {}
  table = hf.table(config)
  modules = _modules(config)
  short = _short(list(modules))
  for module, names in modules.items():
    mine = [name for name in names if name in host]
    if not mine:
      continue
    if len({host[name].scale for name in mine}) > 1:
      raise UserError(f"{folder}: the adapters of {', '.join(mine)} are one in this layout and have unlike scales")
    for i in range(config.depth):
      a, b = _join(host, names, table, i)
      tensors |= {f"{PREFIX}{module.format(i)}.lora_{side}.weight": x for side, x in (("A", a), ("B", b))}
    ranks[short[module]] = sum(host[name].a.shape[-1] for name in mine)
    alphas[short[module]] = host[mine[0]].scale * ranks[short[module]]
  first = next(iter(ranks))
  about = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
    "r": ranks[first], "lora_alpha": alphas[first], "lora_dropout": 0.0, "bias": "none", "target_modules": list(ranks),
    "fan_in_fan_out": not any(t.turned for t in hf.tensors(config) if t.leaves[0] == "blocks/o/w"),
    "rank_pattern": {name: rank for name, rank in ranks.items() if rank != ranks[first]},
    "alpha_pattern": {name: alpha for name, alpha in alphas.items() if alpha != alphas[first]},
  }  # fmt: skip
  if jax.process_index():
    return
  folder = Path(folder)
  own = {"format": "pt", "ranks": json.dumps({name: one.a.shape[-1] for name, one in host.items()})}
  try:
    folder.mkdir(parents=True, exist_ok=True)
    numpy.save_file(tensors, folder / WEIGHTS, metadata=own)
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
  except (OSError, SafetensorError) as error:
    raise UserError(f"{folder}: the adapter could not be written ({error}); make room or choose another") from error


def _modules(config: hf.Config) -> dict[str, tuple[str, ...]]:
  """The matrices of the blocks in the file ("{}" stands for the layer), with the products that each one joins."""
  matrices = [t for t in hf.tensors(config) if t.leaves[0].startswith("blocks/") and t.leaves[0].endswith("/w")]
  return {t.name.removesuffix(".weight"): tuple(leaf.split("/")[1] for leaf in t.leaves) for t in matrices}


def _short(modules: list[str]) -> dict[str, str]:
  """What PEFT's configuration calls each matrix: its last name, or the last two where one would be ambiguous (c_proj)."""
  last = [module.rpartition(".")[2] for module in modules]
  return {m: name if last.count(name) == 1 else m.rpartition("{}.")[2] for m, name in zip(modules, last, strict=True)}


def _outputs(leaf: Leaf, name: str) -> int:
  return math.prod(leaf.shape[1 + lora.INPUTS.get(name, 1) :])


def _join(host: dict[str, Adapter], names: tuple[str, ...], table: Params, i: int) -> tuple[np.ndarray, np.ndarray]:
  """(a [R, I], b [O, R]) of one matrix in layer i; rows of b that belong to a product without adapter are 0."""
  mine = [name for name in names if name in host]
  a = [host[name].a[i].reshape(-1, host[name].a.shape[-1]).T for name in mine]
  b = np.zeros((sum(_outputs(table["blocks"][name]["w"], name) for name in names), sum(map(len, a))), np.float32)
  row = column = 0
  for name in names:
    size = _outputs(table["blocks"][name]["w"], name)
    if name in host:
      rank = host[name].b.shape[1]
      b[row : row + size, column : column + rank] = host[name].b[i].reshape(rank, size).T
      column += rank
    row += size
  return np.ascontiguousarray(np.concatenate(a), np.float32), b


# --- reading ---


def load(folder: str | Path, config: hf.Config) -> dict[str, Adapter]:
  """The adapter of a folder for a model of this configuration, on the mesh where one is set.

  Where the file joins several products in one matrix, each gets the whole rank, unless the adapter was written by `save`.
  Raises UserError for a variant of LoRA that would be computed differently, and for missing or misshapen tensors.
  """
  import safetensors

  folder = Path(folder)
  about, table = _config(folder), hf.table(config)
  try:
    with safetensors.safe_open(folder / WEIGHTS, "numpy") as file:
      names = list(file.keys())
      tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in names}
      ranks = json.loads((file.metadata() or {}).get("ranks", "{}"))
  except (OSError, TypeError, safetensors.SafetensorError) as error:
    raise UserError(f"{folder / WEIGHTS}: not a readable safetensors file ({error}); save it again") from error
  found: dict[str, Adapter] = {}
  for module, names in _modules(config).items():
    pairs = [[f"{module.format(i)}.lora_{side}.weight" for side in "AB"] for i in range(config.depth)]
    if not any(name in tensors for pair in pairs for name in pair):
      continue
    parts: dict[str, list] = {}
    rank = 0
    for a, b in pairs:
      if a not in tensors or b not in tensors:
        raise UserError(f"{folder / WEIGHTS}: no '{a}' with '{b}'; an adapter here covers every layer or none")
      rank = len(tensors[a])
      for name, pair in _divide(tensors.pop(a), tensors.pop(b), names, table, ranks, folder / WEIGHTS).items():
        parts.setdefault(name, []).append(pair)
    scale = _scale(about, module.format(0), rank)
    for name, layers in parts.items():
      a, b = (np.stack(side).astype(np.float32) for side in zip(*layers, strict=True))
      found[name] = Adapter(a, b, scale)
  if tensors or not found:
    raise UserError(f"{folder / WEIGHTS}: '{next(iter(tensors), 'nothing')}' belongs to no product of this model")
  leaves = lora.table(table, lora.describe(found))
  return jax.tree.map(jax.numpy.asarray, sharding.place(found, sharding.shardings(leaves)))


def _divide(
  a: np.ndarray, b: np.ndarray, names: tuple[str, ...], table: Params, ranks: dict[str, int], file: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """The pair of one matrix as pairs of its products, in our shapes."""
  leaves = {name: table["blocks"][name]["w"] for name in names}
  outputs = [_outputs(leaf, name) for name, leaf in leaves.items()]
  inputs = math.prod(leaves[names[0]].shape[1:]) // outputs[0]
  if a.shape[1:] != (inputs,) or b.shape != (sum(outputs), len(a)):
    raise UserError(f"{file}: the pair of {', '.join(names)} has the shapes {a.shape} and {b.shape}, [R, {inputs}] and "
                    f"[{sum(outputs)}, R] are expected; it belongs to another model")  # fmt: skip
  mine = [name for name in names if name in ranks]
  blocks = len(names) > 1 and bool(mine) and sum(ranks[name] for name in mine) == len(a)
  found, row, column = {}, 0, 0
  for (name, leaf), size in zip(leaves.items(), outputs, strict=True):
    cut = 1 + lora.INPUTS.get(name, 1)
    rank = ranks.get(name, 0) if blocks else len(a)
    if rank:
      one, two = a[column : column + rank], b[row : row + size, column : column + rank]
      found[name] = one.T.reshape(*leaf.shape[1:cut], rank), two.T.reshape(rank, *leaf.shape[cut:])
    column, row = column + (rank if blocks else 0), row + size
  return found


def _scale(about: dict[str, Any], module: str, rank: int) -> float:
  """alpha / rank of a module, or alpha / sqrt(rank) where it was trained so (Kalajdzievski 2023)."""
  patterns = about.get("alpha_pattern") or {}
  named = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
  alpha = named[0] if named else about["lora_alpha"]
  return alpha / (math.sqrt(rank) if about.get("use_rslora") else rank)


def _config(folder: Path) -> dict[str, Any]:
  """`adapter_config.json`.  Raises UserError where it is unreadable or asks for what is not computed here."""
  path = folder / CONFIG
  try:
    about = json.loads(path.read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: cannot be read ({error}); give the folder of a saved adapter") from error
  for key, values in DEMANDED.items():
    if key in about and about[key] not in values:
      raise UserError(f"{path}: '{key}' is {about[key]!r}; this variant is not implemented (only {values[0]!r} is)")
  if not isinstance(about.get("lora_alpha"), int | float):
    raise UserError(f"{path}: 'lora_alpha' is {about.get('lora_alpha')!r}; a number is expected")
  return about
