"""Language models as pure functions, and their weights in public formats."""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax

from instructjax.errors import UserError
from instructjax.models import gguf, gpt, hf, llama, weights
from instructjax.models.gpt import GPTConfig
from instructjax.models.hf import load_reward, save, save_reward
from instructjax.models.llama import LlamaConfig
from instructjax.types import LM, Params


class Loaded(NamedTuple):
  """A model with its weights.  `tokenizer` is what `data.tokenizers.load` opens: GGUF metadata or a
  folder.
  """

  lm: LM
  params: Params
  config: GPTConfig | LlamaConfig
  tokenizer: dict[str, Any] | Path


HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
EMBEDDINGS = ("wte.weight", "embed_in.weight", "embed_tokens.weight", "token_embd.weight")


def embedding_rows(source: str | Path) -> int:
  """Rows of the token embedding of what `load` opens, read without its weights.  Raises UserError
  as `load` does.
  """
  path = Path(source)
  if path.is_file():
    shapes = gguf.shapes(path)
  else:
    path = path if path.is_dir() else fetch(str(source))
    shapes = {name: entry.shape for name, entry in hf.index(path).items()}
  found = next((shape[0] for name, shape in shapes.items() if name.endswith(EMBEDDINGS)), None)
  if found is None:
    raise UserError(
      f"{path}: no token embedding among its tensors; it is of a family that cannot be read"
    )
  return found


def build(config: GPTConfig | LlamaConfig) -> LM:
  """The language model of a configuration of either family."""
  return gpt.gpt(config) if isinstance(config, GPTConfig) else llama.llama(config)


def load(source: str | Path, **overrides: Any) -> Loaded:
  """A model from a .gguf file, a Hugging Face folder or a hub id ("owner/name"), which is fetched
  into the hub's cache.

  `overrides` replace settings of the configuration that leave the weights as they are: dtype,
  dropout, remat, attention ... Raises UserError where there is no such model, it cannot be read,
  or an override is unknown or changes a shape.
  """
  path = Path(source)
  if path.is_file():
    if path.suffix != ".gguf":
      raise UserError(
        f"{path}: a model is a .gguf file, a folder with config.json, or a hub id, not "
        f"'{path.suffix}'"
      )
    config, params, metadata = gguf.load(path)
    config = override(config, overrides)
    return Loaded(build(config), params, config, metadata)
  folder = path if path.is_dir() else fetch(str(source))
  config, params = hf.load(folder)
  config = override(config, overrides)
  return Loaded(build(config), params, config, folder)


def override(config: GPTConfig | LlamaConfig, overrides: dict[str, Any]) -> GPTConfig | LlamaConfig:
  """The configuration with some fields replaced.  Raises UserError for an unknown one or one that
  changes a weight.
  """
  known = [field.name for field in dataclasses.fields(config)]
  for name in overrides:
    if name not in known:
      near = difflib.get_close_matches(name, known, 1)
      hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
      raise UserError(f"a model has no setting '{name}': {hint}")
  new = dataclasses.replace(config, **overrides)
  for name, value in overrides.items():
    if _shapes(dataclasses.replace(config, **{name: value})) != _shapes(config):
      raise UserError(
        f"'{name}' is {getattr(config, name)} in the weights and cannot be set to {value}: "
        "leave it, or load another model"
      )
  return new


def _shapes(config: GPTConfig | LlamaConfig) -> dict[str, Any]:
  return jax.tree.map(lambda leaf: leaf.shape, weights.table(config))


def fetch(name: str) -> Path:
  """The folder of a model of the Hugging Face hub, fetched where it is not yet in the hub's cache.

  Raises UserError for a name that cannot be one, an unknown or private model, and where the hub
  is out of reach.
  """
  if not re.fullmatch(HUB_ID, name) or name.endswith(".gguf"):
    raise UserError(
      f"{name}: no such file or folder; give a .gguf file, a model folder or a hub id such as "
      "owner/name"
    )
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as error:
    raise UserError(
      f"{name}: no such file or folder, and no huggingface_hub to fetch it: pip install "
      "huggingface_hub"
    ) from error
  try:
    wanted = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model"]
    spare = ["consolidated*", "*/*"]  # the same weights again, under other names
    return Path(
      huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=spare)
    )
  except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
    raise UserError(
      f"{name}: no such file or folder, and the hub has no model of that name that you may read: "
      "check the spelling, "
      "or log in with `hf auth login` for a private one"
    ) from error
  except (OSError, ValueError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise UserError(
      f"{name}: no such file or folder, and the hub cannot be reached ({reason}): connect to the "
      "network and run "
      "again, or give the path of a .gguf file or model folder that you have"
    ) from error


def revision(name: str) -> str:
  """The commit of a hub id in the hub's cache, which `fetch` opens where the hub has no newer one;
  "" where none is there.
  """
  if not re.fullmatch(HUB_ID, name):
    return ""
  try:
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(name, "config.json")
  except (ImportError, ValueError):  # ValueError: a name that the hub does not have
    return ""
  return Path(found).parent.name if isinstance(found, str) else ""


__all__ = [
  "GPTConfig",
  "LlamaConfig",
  "Loaded",
  "build",
  "embedding_rows",
  "fetch",
  "load",
  "load_reward",
  "override",
  "revision",
  "save",
  "save_reward",
]
