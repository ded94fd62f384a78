"""Where the model of a stage comes from, and how a finished stage is left for the next one.

A source is "" (random weights of a named shape), the directory of a finished run, or whatever `models.load` opens: a
folder of safetensors, a .gguf file, a hub id.  A finished run holds the whole model in `checkpoints/final`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from instructjax import models, sharding
from instructjax.checkpoint import Checkpoints, load_params
from instructjax.data import tokenizers
from instructjax.data.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.models import gpt, llama
from instructjax.types import LM, Leaf, Params, PyTree

Config = Any  # ml_collections.ConfigDict
ModelConfig = gpt.GPTConfig | llama.LlamaConfig
BYTES = "bytes"  # the tokenizer that needs no file
SHAPES: dict[str, ModelConfig] = {
  "tiny": gpt.GPTConfig(vocab_size=257, context=256, width=32, depth=2, heads=4),
  "gpt-5m": gpt.GPT_5M,
  **{f"gpt2-{name}": config for name, config in gpt.GPT2.items()},
  **gpt.GPT3,
}


class Origin(NamedTuple):
  """A model to start from: whole, float32 parameters and the tokenizer that belongs to them.

  `head` is the scalar head where it is a reward model.  `about` lets a later stage build the model again.
  """

  lm: LM
  params: Params
  tokenizer: Tokenizer
  about: dict[str, Any]
  head: Params | None = None


def open_model(source: str, settings: Config, seed: int) -> Origin:
  """The language model of a source under `config.model`: shape (for random weights), tokenizer, dtype, remat,
  unroll, sequence, attention, dropout.

  Raises UserError for an unknown shape or source, and where the tokenizer does not fit the model.
  """
  changes = {name: settings[name] for name in ("dtype", "remat", "unroll", "sequence", "attention", "dropout")}
  if is_run(source):
    origin = open_run(Path(source), changes, "policy")
    return _with_tokenizer(origin, settings["tokenizer"])
  if source:
    loaded = models.load(source, **changes)
    config, lm = loaded.config, loaded.lm
    found = settings["tokenizer"] or _reference(loaded.tokenizer, source)
    params = sharding.place(loaded.params, sharding.shardings(lm.table))
  else:
    if settings["shape"] not in SHAPES:
      raise UserError(
        f"config.model.shape={settings['shape']!r}: there is no such shape; known are {', '.join(SHAPES)}"
      )
    config = dataclasses.replace(SHAPES[settings["shape"]], **changes)
    found = settings["tokenizer"] or (BYTES if settings["shape"] == "tiny" else "")
    if not found:
      raise UserError(
        "config.model.tokenizer is empty: a model with random weights needs a tokenizer; give a tokenizer.json, a "
        f"SentencePiece .model or '{BYTES}'"
      )
    lm = models.build(config)
    params = random_params(lm, seed)
  tokenizer = tokenizers.fit(open_tokenizer(found), lm.vocab_size)
  return Origin(lm, params, tokenizer, describe(config, found))


def open_reward_model(source: str, settings: Config) -> Origin:
  """The reward model of a finished run, or of a folder of a sequence classifier with one label (`models.save_reward`).

  Raises UserError for anything else.
  """
  changes = {name: settings[name] for name in ("dtype", "remat", "unroll", "sequence", "attention")} | {"dropout": 0.0}
  if is_run(source):
    return open_run(Path(source), changes, "reward")
  if not source or not (Path(source) / "config.json").is_file():
    raise UserError(
      f"reward model {source!r}: not the directory of a finished `instructjax reward` run, nor the folder of a sequence "
      "classifier; give the --workdir of the one or the path of the other"
    )
  config, params, head = models.load_reward(source)
  config = models.override(config, changes)
  lm = models.build(config)
  tokenizer = tokenizers.fit(open_tokenizer(source), lm.vocab_size)
  return Origin(lm, params, tokenizer, describe(config, source), sharding.replicate(head))


def is_run(source: str) -> bool:
  """Whether a source is the directory of a run."""
  return bool(source) and (Path(source) / "checkpoints").is_dir()


def open_run(workdir: Path, changes: Mapping[str, Any], kind: str) -> Origin:
  """What a finished stage left.  Raises UserError where it is not finished or left the other kind of model."""
  final = Checkpoints(workdir / "checkpoints" / "final")
  if final.latest() is None:
    raise UserError(f"{workdir}: this run is not finished; run its command again to complete it")
  extra = final.extra()
  if extra["kind"] != kind:
    raise UserError(
      f"{workdir}: this run left a {extra['kind']} model, a {kind} model is needed; give the directory of another run"
    )
  about = extra["model"]
  config = dataclasses.replace(_CONFIGS[about["family"]](**about["config"]), **changes)
  lm = models.build(config)
  table = abstract(lm.table)
  tokenizer = tokenizers.fit(open_tokenizer(about["tokenizer"]), lm.vocab_size)
  if kind == "policy":
    return Origin(lm, load_params(final.folder, table), tokenizer, about)
  body = {name: part for name, part in table.items() if name != "head"}
  whole = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.P()) if sharding.is_sharded() else None
  leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
  params = load_params(final.folder, {"lm": body, "head": {"w": leaf(lm.width), "b": leaf()}})
  return Origin(lm, params["lm"], tokenizer, about, params["head"])


def finish(workdir: Path, step: int, params: PyTree, about: Mapping[str, Any], kind: str) -> None:
  """Leaves the whole model of a stage for the next one; `kind` is "policy" or "reward"."""
  final = Checkpoints(workdir / "checkpoints" / "final", keep=1)
  final.save(step, {"params": params}, {"kind": kind, "model": about})
  final.wait()


def joined(whole: Params, trained: Params) -> Params:
  """The whole model with its top blocks, norm and head replaced by trained ones (the inverse of `freeze.split`)."""
  top = jax.tree.leaves(trained["blocks"])[0].shape[0]
  blocks = jax.tree.map(lambda a, b: jnp.concatenate([a[: a.shape[0] - top], b]), whole["blocks"], trained["blocks"])
  kept = {name: leaf for name, leaf in whole.items() if name != "head" or "head" in trained}
  return kept | trained | {"blocks": blocks}


# --- building ---

_CONFIGS: dict[str, type] = {"gpt": gpt.GPTConfig, "llama": llama.LlamaConfig}


def describe(config: ModelConfig, tokenizer: str) -> dict[str, Any]:
  """What `open_run` needs to build the model again."""
  family = "gpt" if isinstance(config, gpt.GPTConfig) else "llama"
  place = Path(tokenizer)
  name = str(place.absolute()) if tokenizer != BYTES and place.exists() else tokenizer
  return {"family": family, "config": dataclasses.asdict(config), "tokenizer": name}


def abstract(table: PyTree[Leaf]) -> PyTree[jax.ShapeDtypeStruct]:
  """Float32 leaves with their shardings, nothing allocated."""

  def one(leaf: Leaf) -> jax.ShapeDtypeStruct:
    spec = sharding.fit(leaf.shape, leaf.axes)
    where = None if spec is None else jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=where)

  return jax.tree.map(one, table, is_leaf=lambda x: isinstance(x, Leaf))


def random_params(lm: LM, seed: int) -> Params:
  """Initial weights; with a mesh every device makes its own part."""
  if not sharding.is_sharded():
    return lm.init(jax.random.key(seed))
  return jax.jit(lm.init, out_shardings=sharding.shardings(lm.table))(jax.random.key(seed))


# --- tokenizers ---


def open_tokenizer(reference: str) -> Tokenizer:
  """A tokenizer by its reference: BYTES, a .gguf model, a folder, a tokenizer.json or a SentencePiece .model."""
  if reference == BYTES:
    return byte_tokenizer()
  if reference.endswith(".gguf") and Path(reference).is_file():
    import gguf

    fields = gguf.GGUFReader(reference).fields
    return tokenizers.load({name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")})
  return tokenizers.load(reference)


def byte_tokenizer() -> Tokenizer:
  """Every byte of the UTF-8 text is an id; 256 ends a text."""
  decode = lambda ids: bytes(i for i in ids if i < 256).decode("utf-8", "replace")
  return Tokenizer(lambda text: list(text.encode()), decode, 257, (256,), (), (), BYTES)


def _reference(tokenizer: Any, source: str) -> str:
  """The reference of a loaded model's tokenizer: its path, or the .gguf file whose metadata it is."""
  return source if isinstance(tokenizer, Mapping) else str(tokenizer)


def _with_tokenizer(origin: Origin, reference: str) -> Origin:
  """The origin with another tokenizer, where one is named."""
  if not reference:
    return origin
  tokenizer = tokenizers.fit(open_tokenizer(reference), origin.lm.vocab_size)
  return origin._replace(tokenizer=tokenizer, about=origin.about | {"tokenizer": reference})
