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
  """A model with its weights.

  `tokenizer` is what `data.tokenizers.load` opens: the metadata of a GGUF file, or a folder.
  """

  lm: LM
  params: Params
  config: GPTConfig | LlamaConfig
  tokenizer: dict[str, Any] | Path


# "name" or "owner/name".
HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"
# How the name of the token embedding ends: GPT-2, GPT-NeoX, Llama and its like, GGUF.
EMBEDDINGS = (
  "wte.weight",
  "embed_in.weight",
  "embed_tokens.weight",
  "token_embd.weight",
)


# --- building and loading ---


def build(config: GPTConfig | LlamaConfig) -> LM:
  """Returns the language model of a configuration of either family.

  Example:
    >>> config = models.GPTConfig(vocab_size=8, context=16, width=8, depth=1, heads=2)
    >>> lm = models.build(config)
    >>> params = lm.init(jax.random.key(0))
    >>> print(lm.hidden(params, tokens, valid).shape)
    (2, 5, 8)
  """
  if isinstance(config, GPTConfig):
    return gpt.gpt(config)
  return llama.llama(config)


def load(source: str | Path, **changes: Any) -> Loaded:
  """Loads a model from a .gguf file, a Hugging Face folder or a hub id ("owner/name").

  A model of the hub is fetched into the hub's cache. `changes` replace settings of the
  configuration that leave the weights as they are: dtype, dropout, remat, attention ...

  Raises:
    UserError: where there is no such model, it cannot be read, or a change is of an unknown setting
      or of one that changes a shape.

  Example:
    >>> import tempfile
    >>> config = models.GPTConfig(vocab_size=8, context=16, width=8, depth=1, heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   models.save(folder, config, params)
    ...   loaded = models.load(folder, dtype="bfloat16")
    >>> print(loaded.lm.vocab_size, loaded.config.dtype)
    8 bfloat16
  """
  path = Path(source)
  if path.is_file():
    if path.suffix != ".gguf":
      raise UserError(
        f"{path}: a model is a .gguf file, a folder with config.json, or a hub id, not "
        f"'{path.suffix}'"
      )
    config, params, tokenizer = gguf.load(path)
  else:
    tokenizer = path if path.is_dir() else fetch(str(source))
    config, params = hf.load(tokenizer)
  config = override(config, changes)
  return Loaded(build(config), params, config, tokenizer)


def override(
  config: GPTConfig | LlamaConfig,
  overrides: dict[str, Any],
) -> GPTConfig | LlamaConfig:
  """Returns the configuration with some settings replaced.

  Raises:
    UserError: for an unknown setting, and for one that changes the shape of a weight.

  Example:
    >>> config = models.GPTConfig(vocab_size=8, context=16, width=8, depth=1, heads=2)
    >>> print(models.override(config, {"dropout": 0.1}).dropout)
    0.1
    >>> models.override(config, {"widht": 16})
    Traceback (most recent call last):
      ...
    instructjax.errors.UserError: a model has no setting 'widht': did you mean 'width'?
  """
  settings = [field.name for field in dataclasses.fields(config)]
  for name in overrides:
    if name not in settings:
      near = difflib.get_close_matches(name, settings, 1)
      hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(settings)}"
      raise UserError(f"a model has no setting '{name}': {hint}")
  # Each change is tried alone, so that the error can name it.
  for name, value in overrides.items():
    changed = dataclasses.replace(config, **{name: value})
    if _shapes(changed) != _shapes(config):
      raise UserError(
        f"'{name}' is {getattr(config, name)} in the weights and cannot be set to {value}: "
        "leave it, or load another model"
      )
  return dataclasses.replace(config, **overrides)


def _shapes(config: GPTConfig | LlamaConfig) -> dict[str, Any]:
  """Returns the shape of every parameter, as a tree."""
  return jax.tree.map(lambda leaf: leaf.shape, weights.table(config))


def embedding_rows(source: str | Path) -> int:
  """Returns how many rows the token embedding of a model has, without reading its weights.

  `source` is what `load` opens.

  Raises:
    UserError: as `load` does.

  Example:
    >>> import tempfile
    >>> config = models.GPTConfig(vocab_size=8, context=16, width=8, depth=1, heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   models.save(folder, config, params)
    ...   print(models.embedding_rows(folder))
    8
  """
  path = Path(source)
  if path.is_file():
    shapes = gguf.shapes(path)
  else:
    path = path if path.is_dir() else fetch(str(source))
    shapes = {name: entry.shape for name, entry in hf.index(path).items()}
  for name, shape in shapes.items():
    if name.endswith(EMBEDDINGS):
      return shape[0]
  raise UserError(
    f"{path}: no token embedding among its tensors; it is of a family that cannot be read"
  )


def configuration(source: str | Path) -> GPTConfig | LlamaConfig:
  """Returns the configuration of a model, without reading its weights.

  `source` is what `load` opens, or the path of a config.json. Of a hub id the configuration alone
  is fetched.

  Raises:
    UserError: as `load` does.

  Example:
    >>> import tempfile
    >>> config = models.GPTConfig(vocab_size=8, context=16, width=8, depth=1, heads=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   models.save(folder, config, params)
    ...   print(models.configuration(folder).width)
    8
  """
  path = Path(source)
  if path.suffix == ".gguf" and path.is_file():
    return gguf.configuration(path)
  if path.suffix == ".json" and path.is_file():
    return hf.parse(hf.read_json(path), path)
  folder = path if path.is_dir() else fetch(str(source), CONFIGURATION)
  file = folder / "config.json"
  return hf.parse(hf.read_json(file), file)


# --- the Hugging Face hub ---

# The files of a model that are fetched, and those of its configuration alone.
MODEL = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model")
CONFIGURATION = ("config.json",)


def fetch(name: str, files: tuple[str, ...] = MODEL) -> Path:
  """Returns the folder of a model of the hub, which is fetched unless it is in the hub's cache.

  `files` are the patterns of those that are fetched.

  Raises:
    UserError: for a name that cannot be a hub id, an unknown or private model, and where the hub
      cannot be reached.

  Example:
    >>> models.fetch("no such/model")
    Traceback (most recent call last):
      ...
    instructjax.errors.UserError: no such/model: no such file or folder; give ...
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
    folder = huggingface_hub.snapshot_download(
      name,
      allow_patterns=list(files),
      # These are the same weights again, under other names.
      ignore_patterns=["consolidated*", "*/*"],
    )
  except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
    raise UserError(
      f"{name}: no such file or folder, and the hub has no model of that name that you may read: "
      "check the spelling, or log in with `hf auth login` for a private one"
    ) from error
  except (OSError, ValueError) as error:
    # The first line says what failed; what follows is advice for programmers.
    reason = str(error).strip().partition("\n")[0]
    raise UserError(
      f"{name}: no such file or folder, and the hub cannot be reached ({reason}): connect to the "
      "network and run again, or give the path of a .gguf file or model folder that you have"
    ) from error
  return Path(folder)


def revision(name: str) -> str:
  """Returns the commit of a hub id in the hub's cache; "" where none is there.

  It is the one that `fetch` opens, unless the hub has a newer one.

  Example:
    >>> models.revision("owner/not-in-the-cache")
    ''
  """
  if not re.fullmatch(HUB_ID, name):
    return ""
  try:
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
  except (ImportError, ValueError):  # ValueError: a name that the hub does not have
    return ""
  # The hub's cache has a folder for each commit. Where there is no file, `cached` is no path.
  return Path(cached).parent.name if isinstance(cached, str) else ""


__all__ = [
  "GPTConfig",
  "LlamaConfig",
  "Loaded",
  "build",
  "configuration",
  "embedding_rows",
  "fetch",
  "load",
  "load_reward",
  "override",
  "revision",
  "save",
  "save_reward",
]
