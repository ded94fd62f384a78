"""Where the model of a stage comes from, and how a finished stage is left for the next one.

A source is "" (random weights of a named shape), the directory of a finished run, a Python
function that returns a model (`file.py:function` or `package.module:function`), or whatever
`models.load` opens: a folder of safetensors, a .gguf file, a hub id; or a folder with an adapter
of PEFT.  A finished run holds the whole model in `checkpoints/final`, or an adapter that says
which base it belongs to.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from instructjax import models, sharding
from instructjax.data.tokens import chat, tokenizers
from instructjax.data.tokens.tokenizers import BYTES, Tokenizer
from instructjax.errors import UserError
from instructjax.models import gpt, llama, lora, peft
from instructjax.runs import writers
from instructjax.runs.checkpoint import Checkpoints, flatten, load_params, sums
from instructjax.settings.subjects import AnyModelSettings
from instructjax.system import user_code
from instructjax.types import LM, Leaf, Params, PyTree

Config = Any  # ml_collections.ConfigDict
ModelConfig = gpt.GPTConfig | llama.LlamaConfig
SHAPES: dict[str, ModelConfig] = {
  "tiny": gpt.GPTConfig(vocab_size=257, context=256, width=32, depth=2, heads=4),
  "gpt-5m": gpt.GPT_5M,
  **{f"gpt2-{name}": config for name, config in gpt.GPT2.items()},
  **gpt.GPT3,
}


class Origin(NamedTuple):
  """A model to start from: whole, float32 parameters and the tokenizer that belongs to them.

  `head` is the scalar head where it is a reward model.  `about` lets a later stage build the
  model again.  Where the parameters hold an `adapter`, `about["adapter"]` has its sizes and
  `about["base"]` the source and the fingerprint of the rest.
  """

  lm: LM
  params: Params
  tokenizer: Tokenizer
  about: dict[str, Any]
  head: Params | None = None


def open_model(source: str, settings: AnyModelSettings, seed: int) -> Origin:
  """The language model of a source under `config.model`: shape (for random weights), tokenizer,
  dtype, remat, unroll, sequence, attention, dropout.

  Raises UserError for an unknown shape or source, and where the tokenizer does not fit the model.
  """
  changes = {
    name: getattr(settings, name)
    for name in ("dtype", "remat", "unroll", "sequence", "attention", "dropout")
  }
  if is_run(source):
    origin = open_run(Path(source), changes, "policy")
    return _with_tokenizer(origin, settings.tokenizer)
  if is_python(source):
    return open_python(source, settings.tokenizer)
  if source and peft.is_adapter(source):
    origin = open_model(peft.base(source), settings, seed)
    adapter = peft.load(source, model_config(source, origin.about))
    about = adapted(origin.about, peft.base(source), origin.params, lora.describe(adapter))
    return origin._replace(params=lora.merge(origin.params) | {"adapter": adapter}, about=about)
  if source:
    loaded = models.load(source, **changes)
    config, lm = loaded.config, loaded.lm
    found = settings.tokenizer or reference(loaded.tokenizer, source)
    params = sharding.place(loaded.params, sharding.shardings(lm.table))
  else:
    if settings.shape not in SHAPES:
      raise UserError(
        f"config.model.shape={settings.shape!r}: there is no such shape; known are "
        f"{', '.join(SHAPES)}"
      )
    config = dataclasses.replace(SHAPES[settings.shape], **changes)
    found = settings.tokenizer or (BYTES if settings.shape == "tiny" else "")
    if not found:
      raise UserError(
        "config.model.tokenizer is empty: a model with random weights needs a tokenizer; give a "
        "tokenizer.json, a "
        f"SentencePiece .model or '{BYTES}'"
      )
    lm = models.build(config)
    params = random_params(lm, seed)
  tokenizer = tokenizers.fit(tokenizers.by_reference(found), lm.vocab_size)
  return Origin(lm, params, tokenizer, describe(config, found))


def fits(lm: LM, length: int, what: str) -> None:
  """Raises UserError where rows of `length` tokens do not fit the model."""
  if length > lm.context:
    raise UserError(
      f"{what} is {length} tokens, the model's context is {lm.context}; lower it in config.data"
    )


def open_reward_model(
  source: str, settings: AnyModelSettings, beside: Origin | None = None
) -> Origin:
  """The reward model of a finished run, or of a folder of a sequence classifier with one label
  (`models.save_reward`).

  The base of an adapter is not read again where it is that of `beside`.  Raises UserError for
  anything else.
  """
  changes = {
    name: getattr(settings, name) for name in ("dtype", "remat", "unroll", "sequence", "attention")
  } | {"dropout": 0.0}
  if is_run(source):
    return open_run(Path(source), changes, "reward", beside)
  if not source or not (Path(source) / "config.json").is_file():
    raise UserError(
      f"reward model {source!r}: not the directory of a finished `instructjax reward` run, nor the "
      "folder of a sequence "
      "classifier; give the --workdir of the one or the path of the other"
    )
  config, params, head = models.load_reward(source)
  config = models.override(config, changes)
  lm = models.build(config)
  tokenizer = tokenizers.fit(tokenizers.by_reference(source), lm.vocab_size)
  return Origin(lm, params, tokenizer, describe(config, source), sharding.replicate(head))


def is_run(source: str) -> bool:
  """Whether a source is the directory of a run."""
  return bool(source) and (Path(source) / "checkpoints").is_dir()


def kind_of(source: str) -> str:
  """What a finished run left, "policy" or "reward"; "policy" for any other source."""
  final = Checkpoints(Path(source) / "checkpoints" / "final")
  return final.extra()["kind"] if is_run(source) and final.latest() is not None else "policy"


def open_run(
  workdir: Path, changes: Mapping[str, Any], kind: str, beside: Origin | None = None
) -> Origin:
  """What a finished stage left.  Raises UserError where it is not finished or left the other kind
  of model.
  """
  about = finished(workdir, kind)
  final = Checkpoints(workdir / "checkpoints" / "final")
  if about["family"] == "python":
    lm, _, _ = call_python(about["source"])
  else:
    lm = models.build(dataclasses.replace(_CONFIGS[about["family"]](**about["config"]), **changes))
  table, base = abstract(lm.table), {}
  if "adapter" in about:
    table = {"adapter": abstract(lora.table(lm.table, about["adapter"]))}
    base = open_base(about["base"], workdir, lm, beside)
  tokenizer = ended(
    tokenizers.fit(tokenizers.by_reference(about["tokenizer"]), lm.vocab_size), about
  )
  if kind == "policy":
    return Origin(lm, base | load_params(final.folder, table), tokenizer, about)
  body = {name: part for name, part in table.items() if name != "head"}
  whole = (
    jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.P()) if sharding.is_sharded() else None
  )
  leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole)
  params = load_params(final.folder, {"lm": body, "head": {"w": leaf(lm.width), "b": leaf()}})
  return Origin(lm, base | params["lm"], tokenizer, about, params["head"])


def finished(workdir: Path, kind: str = "") -> dict[str, Any]:
  """What a run says about the model it left; of any kind where none is named.

  Raises UserError where it is not finished or left another kind.
  """
  final = Checkpoints(workdir / "checkpoints" / "final")
  if final.latest() is None:
    raise UserError(f"{workdir}: this run is not finished; run its command again to complete it")
  extra = final.extra()
  if kind and extra["kind"] != kind:
    raise UserError(
      f"{workdir}: this run left a {extra['kind']} model, a {kind} model is needed; give the "
      "directory of another run"
    )
  return extra["model"]


def ended(tokenizer: Tokenizer, about: Mapping[str, Any]) -> Tokenizer:
  """The tokenizer of a run, whose responses may end elsewhere, at a new line for one; that is then
  no part of their text.
  """
  if "eos" not in about:
    return tokenizer
  silent = {*about["eos"], *about["banned"]}
  decode = lambda ids: tokenizer.decode([i for i in ids if int(i) not in silent])
  return tokenizer._replace(decode=decode, eos=tuple(about["eos"]), banned=tuple(about["banned"]))


def finish(workdir: Path, step: int, params: PyTree, about: Mapping[str, Any], kind: str) -> None:
  """Leaves the whole model of a stage for the next one; `kind` is "policy" or "reward"."""
  final = Checkpoints(workdir / "checkpoints" / "final", keep=1)
  final.save(step, {"params": params}, {"kind": kind, "model": about})
  final.wait()


# --- an adapter and its base ---


def adapted(
  about: Mapping[str, Any], source: str, base: Params, sizes: Mapping[str, Any]
) -> dict[str, Any]:
  """What is said about an adapter: its sizes, and where its base is with the fingerprint of that."""
  place = str(Path(source).absolute()) if Path(source).exists() else source
  return {**about, "adapter": sizes, "base": {"source": place, "fingerprint": fingerprint(base)}}


def model_config(what: str, about: Mapping[str, Any]) -> ModelConfig:
  """The configuration of a model of the families here.  Raises UserError for one of Python, which
  has no public format.
  """
  if about["family"] not in _CONFIGS:
    raise UserError(
      f"{what}: this is a Python model, and the public formats hold models of public families only"
    )
  return _CONFIGS[about["family"]](**about["config"])


def fingerprint(params: Params) -> str:
  """Of the bits of all parameters, the same on every mesh."""
  return writers.fingerprint(sums(flatten(params)))


def open_base(
  base: Mapping[str, str], workdir: Path, lm: LM, beside: Origin | None = None
) -> Params:
  """The whole model that an adapter belongs to; that of `beside` where it is the same.

  Raises UserError where it is not there any more or has changed since.
  """
  if beside is not None and beside.about.get("base") == base:
    return lora.without(beside.params)
  source = base["source"]
  try:
    if is_run(source):
      params = open_run(Path(source), {}, "policy").params
    elif peft.is_adapter(source):
      found = models.load(peft.base(source))
      params = found.params | {"adapter": peft.load(source, found.config)}
    else:
      params = models.load(source).params
  except UserError as error:
    raise UserError(f"{workdir}: holds an adapter; its base cannot be opened: {error}") from error
  if fingerprint(params) != base["fingerprint"]:
    raise UserError(
      f"{workdir}: holds an adapter of {source}, which has other weights now "
      f"({fingerprint(params)[:8]}, then "
      f"{base['fingerprint'][:8]}): put the old ones back, or train the adapter again"
    )
  return sharding.place(lora.merge(params), sharding.shardings(lm.table))


# --- building ---

_CONFIGS: dict[str, type] = {"gpt": gpt.GPTConfig, "llama": llama.LlamaConfig}


def describe(config: ModelConfig, tokenizer: str) -> dict[str, Any]:
  """What `open_run` needs to build the model again."""
  family = "gpt" if isinstance(config, gpt.GPTConfig) else "llama"
  return {"family": family, "config": dataclasses.asdict(config), "tokenizer": _lasting(tokenizer)}


def _lasting(tokenizer: str) -> str:
  """A tokenizer's reference as it is read from any working directory."""
  place = Path(tokenizer)
  return str(place.absolute()) if tokenizer != BYTES and place.exists() else tokenizer


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


# --- a model that a Python function returns ---


def is_python(source: str) -> bool:
  """Whether a source is `file.py:function` or `package.module:function`."""
  return bool(re.fullmatch(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*", source))


def open_python(source: str, tokenizer: str) -> Origin:
  """The model of a Python function.  Raises UserError for the errors of `call_python`, and without
  a tokenizer.
  """
  lm, params, named = call_python(source)
  found = tokenizer or named
  if not found:
    raise UserError(
      f"{source}: names no tokenizer: return (lm, params, tokenizer) or set "
      "config.model.tokenizer: a folder, a "
      f"tokenizer.json, a SentencePiece .model or '{BYTES}'"
    )
  place, _, name = source.rpartition(":")
  lasting = f"{Path(place).absolute()}:{name}" if place.endswith(".py") else source
  about = {"family": "python", "source": lasting, "tokenizer": _lasting(found)}
  params = sharding.place(params, sharding.shardings(lm.table))
  return Origin(lm, params, tokenizers.fit(tokenizers.by_reference(found), lm.vocab_size), about)


def call_python(source: str) -> tuple[LM, Params, str]:
  """(lm, params, tokenizer reference or "") that the function of a source returns; it is called
  without a mesh.

  Raises UserError as `user_code.find` does, and where it returns something else.
  """
  from flax import nnx

  function, _ = user_code.find(source)
  with jax.set_mesh(Mesh(np.empty((), object), ())), nnx.use_eager_sharding(False):
    found = function()
  if not (isinstance(found, tuple) and len(found) in (2, 3) and isinstance(found[0], LM)):
    raise UserError(
      f"{source}: returned {type(found).__name__}; a model is (lm, params) or (lm, params, "
      "tokenizer), as from_nnx and "
      "from_linen give it"
    )
  return found[0], found[1], str(found[2]) if len(found) == 3 else ""


# --- tokenizers and templates ---


def chat_template(
  name: str, about: Mapping[str, Any], tokenizer: Tokenizer
) -> chat.Template | None:
  """The template of config.data.template: None for "" (plain text), the model's own for "chat", or
  that of a file.

  A run's own is the one that it was trained with.  Raises UserError where there is none, and for
  one that cannot be used.
  """
  if not name:
    return None
  reference = about["tokenizer"]
  text, tokens = (None, {}) if reference == BYTES else chat.find(tokenizers.source(reference))
  if name != chat.OWN:
    return chat.load(name, chat.read(name), tokens, tokenizer)
  text = about["template"]["text"] if about.get("template") else text
  if not text:
    raise UserError(
      f"config.data.template='{chat.OWN}': the tokenizer {reference} has no chat template; give a "
      ".jinja file, or '' for "
      "plain text"
    )
  return chat.load(f"the chat template of {reference}", text, tokens, tokenizer)


def template_of(about: Mapping[str, Any]) -> str:
  """The fingerprint of the template that a model was trained with; "" is plain text."""
  return (about.get("template") or {}).get("fingerprint", "")


def reference(tokenizer: Any, source: str) -> str:
  """The reference of a loaded model's tokenizer: its path, or the .gguf file whose metadata it is."""
  return source if isinstance(tokenizer, Mapping) else str(tokenizer)


def _with_tokenizer(origin: Origin, reference: str) -> Origin:
  """The origin with another tokenizer, where one is named."""
  if not reference:
    return origin
  tokenizer = tokenizers.fit(tokenizers.by_reference(reference), origin.lm.vocab_size)
  about = {
    name: value for name, value in origin.about.items() if name not in ("eos", "banned")
  }  # ids of the other one
  return origin._replace(tokenizer=tokenizer, about=about | {"tokenizer": _lasting(reference)})
