"""Where the model of a stage comes from, and how a finished stage leaves its own for the next one.

A source is
  - "": random weights of a named shape,
  - the directory of a finished run,
  - a Python function that returns a model (`python_models`),
  - a folder with an adapter of PEFT, or
  - whatever `models.load` opens: a folder of safetensors, a .gguf file, a hub id.

A finished run holds its whole model in `checkpoints/final`, or an adapter and the name of the base
that it belongs to. The checkpoint says which kind of model it is, "policy" or "reward", and
describes it (`description`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from instructjax import models, sharding
from instructjax.data.tokens import chat, tokenizers, vocabulary
from instructjax.data.tokens.tokenizers import BYTES, Tokenizer
from instructjax.errors import UserError, naming
from instructjax.models import gpt, llama, lora, peft
from instructjax.runs.checkpoint import Checkpoints, load_params
from instructjax.runs.description import (
  FAMILIES,
  ModelConfig,
  adapted,
  describe,
  fingerprint,
  lasting_reference,
  model_config,
)
from instructjax.runs.python_models import call_python, is_python, lasting_source
from instructjax.settings.subjects import AnyModelSettings
from instructjax.system import keys, places
from instructjax.system.places import AnyPath
from instructjax.types import LM, Leaf, Params, PyTree

Config = Any  # ml_collections.ConfigDict
Overrides = Mapping[str, Any]  # fields of a model's configuration that the user's settings replace

# Settings that change how a model computes, but not what its parameters are. They replace the
# fields of the configuration with which it was saved.
REWARD_OVERRIDES = ("dtype", "stream", "remat", "unroll", "sequence", "attention")
POLICY_OVERRIDES = (*REWARD_OVERRIDES, "dropout")

# Shapes of models with random weights, by the name that `config.model.shape` takes.
SHAPES: dict[str, ModelConfig] = {
  "tiny": gpt.GPTConfig(vocab_size=257, context=256, width=32, depth=2, heads=4),
  "gpt-5m": gpt.GPT_5M,
  **{f"gpt2-{name}": config for name, config in gpt.GPT2.items()},
  **gpt.GPT3,
  "SmolLM2-135M": llama.SMOLLM2_135M,
  "Llama-3-8B": llama.LLAMA3_8B,
  "Llama-3.1-8B": llama.LLAMA31_8B,
  "Qwen2.5-7B": llama.QWEN25_7B,
}


class Origin(NamedTuple):
  """A model to start from: its float32 parameters and the tokenizer that belongs to them.

  `about` is the description from which a later stage builds the model again. `head` is the scalar
  head of a reward model. Where the parameters hold an `adapter`, they also hold its base, and
  `about` has the sizes of the one and the source of the other.
  """

  lm: LM
  params: Params
  tokenizer: Tokenizer
  about: dict[str, Any]
  head: Params | None = None


# --- opening ---


def open_model(source: str, settings: AnyModelSettings, seed: int) -> Origin:
  """Opens the language model of a source under `config.model`.

  The settings are shape (for random weights), tokenizer, dtype, stream, remat, unroll, sequence,
  attention and dropout. A tokenizer that they name takes the place of the model's own.

  Raises:
    UserError: for an unknown shape or source, and where the tokenizer does not fit the model.
  """
  overrides = {name: getattr(settings, name) for name in POLICY_OVERRIDES}
  if is_run(source):
    origin = open_run(places.directory(source), overrides, "policy")
    return _with_tokenizer(origin, settings.tokenizer)
  _require_run_or_path(source)
  if is_python(source):
    return open_python(source, settings.tokenizer)
  if source and peft.is_adapter(source):
    return _open_peft_adapter(source, settings, seed)
  if source:
    return _open_public_model(source, overrides, settings.tokenizer)
  return _open_random_model(settings, overrides, seed)


def _open_peft_adapter(source: str, settings: AnyModelSettings, seed: int) -> Origin:
  """The model of an adapter of PEFT.

  The base itself may come with an adapter. That one is merged into the weights first, because a
  model has one adapter at most.
  """
  base_source = peft.base(source)
  base = open_model(base_source, settings, seed)
  adapter = peft.load(source, model_config(source, base.about))
  about = adapted(base.about, base_source, base.params, lora.describe(adapter))
  params = {**lora.merge(base.params), "adapter": adapter}
  return base._replace(params=params, about=about)


def _open_public_model(source: str, overrides: Overrides, tokenizer_reference: str) -> Origin:
  """The model of a file, a folder or a hub id that `models.load` opens."""
  loaded = models.load(source, **overrides)
  lm = loaded.lm
  chosen = tokenizer_reference
  if not tokenizer_reference:
    tokenizer_reference = reference(loaded.tokenizer, source)
  params = sharding.place(loaded.params, sharding.shardings(lm.table))
  about = describe(loaded.config, tokenizer_reference)
  tokenizer = _choose_tokenizer(chosen, tokenizer_reference, lm)
  return Origin(lm, params, tokenizer, about)


def _open_random_model(settings: AnyModelSettings, overrides: Overrides, seed: int) -> Origin:
  """A model of a named shape with random weights; the settings take no other shape.

  Raises:
    UserError: where no tokenizer is named.
  """
  shape = settings.shape
  config = dataclasses.replace(SHAPES[shape], **overrides)
  # The tiny shape is for trying things out, and its vocabulary is that of the bytes.
  default_tokenizer = BYTES if shape == "tiny" else ""
  tokenizer_reference = settings.tokenizer or default_tokenizer
  if not tokenizer_reference:
    raise UserError(
      "config.model.tokenizer is empty: a model with random weights needs a tokenizer; give a "
      f"tokenizer.json, a SentencePiece .model or '{BYTES}'"
    )
  lm = models.build(config)
  params = random_params(lm, seed)
  about = describe(config, tokenizer_reference)
  tokenizer = _choose_tokenizer(settings.tokenizer, default_tokenizer, lm)
  return Origin(lm, params, tokenizer, about)


def open_python(source: str, tokenizer: str) -> Origin:
  """Opens the model that a Python function returns, with the tokenizer of a reference or its own.

  Raises:
    UserError: as `call_python` does, and where neither names a tokenizer.
  """
  lm, params, own_tokenizer = call_python(source)
  tokenizer_reference = tokenizer or own_tokenizer
  if not tokenizer_reference:
    raise UserError(
      f"{source}: names no tokenizer: return (lm, params, tokenizer) or set "
      "config.model.tokenizer: a folder, a tokenizer.json, a SentencePiece .model or "
      f"'{BYTES}'"
    )
  about = {
    "family": "python",
    "source": lasting_source(source),
    "tokenizer": lasting_reference(tokenizer_reference),
  }
  params = sharding.place(params, sharding.shardings(lm.table))
  return Origin(lm, params, _choose_tokenizer(tokenizer, own_tokenizer, lm), about)


def open_reward_model(
  source: str, settings: AnyModelSettings, opened: Origin | None = None
) -> Origin:
  """Opens the reward model of a finished run or of a folder (`models.save_reward`).

  Such a folder holds a sequence classifier with one label. `opened` is a model that is open
  already, such as the policy: where the reward model is an adapter of the same base, the base is
  not read again.

  Raises:
    UserError: for anything else.
  """
  overrides: dict[str, Any] = {name: getattr(settings, name) for name in REWARD_OVERRIDES}
  overrides["dropout"] = 0.0  # a score is not a matter of chance
  if is_run(source):
    return open_run(places.directory(source), overrides, "reward", opened)
  _require_run_or_path(source)
  if not source or not (Path(source) / "config.json").is_file():
    raise UserError(
      f"reward model {source!r}: not the directory of a finished `instructjax reward` run, nor the "
      "folder of a sequence classifier; give the --workdir of the one or the path of the other"
    )
  config, params, head = models.load_reward(source)
  config = models.override(config, overrides)
  lm = models.build(config)
  about = describe(config, source)
  return Origin(lm, params, _open_tokenizer(source, lm), about, sharding.replicate(head))


def configuration(source: str, option: str) -> tuple[str, ModelConfig]:
  """Returns a short name and the configuration of a model, whose weights are not read.

  `source` is a name of `SHAPES` in any case, the directory of a finished run, a model folder, a
  config.json, a .gguf file, or a hub id with its owner. `option` stands for it in the messages.

  Raises:
    UserError: for anything else, for a run of a Python model, and where the hub cannot be reached.
  """
  for name, config in SHAPES.items():
    if name.lower() == source.lower():
      return name, config
  with naming(option, source):
    if is_run(source):
      about = finished(places.directory(source))
      return Path(source).name, model_config(source, about)
    _require_run_or_path(source)
    path = Path(source)
    if not path.exists() and "/" not in source:
      raise UserError(
        f"no such shape or file; choose a shape among {', '.join(SHAPES)}, or give a run, a "
        "config.json, a model folder, a .gguf file or a hub id as owner/name"
      )
    config = models.configuration(source)
  # A config.json is named for its folder.
  named = path.absolute().parent if path.name == "config.json" else path
  return named.name, config


def fits(lm: LM, length: int, name: str) -> None:
  """Checks that rows of `length` tokens fit the model; `name` stands for them in the message.

  Raises:
    UserError: where they do not.
  """
  if length > lm.context:
    raise UserError(
      f"{name} is {length} tokens, the model's context is {lm.context}; lower it in config.data"
    )


# --- what a finished run left ---


def is_run(source: str) -> bool:
  """Returns whether a source is the directory of a run."""
  if not source:
    return False
  # Another source may look like an address, such as python:/folder/file.py:function.
  place = places.directory(source) if places.is_address(source) else Path(source)
  folder = place / "checkpoints"
  with places.reaching(folder):
    return folder.is_dir()


def _require_run_or_path(source: str) -> None:
  """Raises UserError for an address in a bucket where there is no run: only runs are read there."""
  if places.is_address(source):
    raise UserError(
      f"{source}: there is no run; models of other kinds are read from this machine, so copy the "
      "folder here, or mount the bucket and give its path"
    )


def _final(workdir: AnyPath, keep: int = 2) -> Checkpoints:
  """The checkpoint that a finished run leaves for the next stage."""
  return Checkpoints(workdir / "checkpoints" / "final", keep=keep)


def kind_of(source: str) -> str:
  """The kind of model that a finished run left, "policy" or "reward".

  It is "policy" for every other source, because public files hold language models.
  """
  if not is_run(source):
    return "policy"
  final = _final(places.directory(source))
  return final.extra()["kind"] if final.latest() is not None else "policy"


def finish(
  workdir: AnyPath,
  step: int,
  params: PyTree,
  about: Mapping[str, Any],
  kind: str,
) -> None:
  """Leaves the model of a stage for the next one; `kind` is "policy" or "reward".

  Raises:
    UserError: where a weight is not finite, and where the disk does not take it.
  """
  final = _final(workdir, keep=1)  # a run that goes on replaces what it left before
  final.save(step, {"params": params}, {"kind": kind, "model": about})
  final.wait()


def has_left_model(workdir: AnyPath, step: int) -> bool:
  """Returns whether the model that a run left at this step is there."""
  return _final(workdir).latest() == step


def finished(workdir: AnyPath, kind: str = "") -> dict[str, Any]:
  """The description of the model that a run left, of any kind where `kind` is empty.

  Raises:
    UserError: where the run is not finished, or left a model of another kind.
  """
  final = _final(workdir)
  if final.latest() is None:
    raise UserError(f"{workdir}: this run is not finished; run its command again to complete it")
  extra = final.extra()
  if kind and extra["kind"] != kind:
    raise UserError(
      f"{workdir}: this run left a {extra['kind']} model, a {kind} model is needed; give the "
      "directory of another run"
    )
  return extra["model"]


def open_run(
  workdir: AnyPath,
  changes: Overrides,
  kind: str,
  opened: Origin | None = None,
) -> Origin:
  """Opens the model that a finished stage left, with some fields of its configuration changed.

  Raises:
    UserError: where the stage is not finished, where it left the other kind of model, and where
      the base of its adapter is missing or has changed.
  """
  about = finished(workdir, kind)
  if about["family"] == "python":
    lm, _, _ = call_python(about["source"])  # the run has parameters of its own
  else:
    config = FAMILIES[about["family"]](**about["config"])
    lm = models.build(dataclasses.replace(config, **changes))

  # A run that trained an adapter saved it alone; the rest of the parameters are those of its base.
  saved_table = abstract(lm.table)
  base: Params = {}
  if "adapter" in about:
    saved_table = {"adapter": abstract(lora.table(lm.table, about["adapter"]))}
    base = open_base(about["base"], workdir, lm, opened)
  tokenizer = ended(_open_tokenizer(about["tokenizer"], lm), about)

  folder = _final(workdir).folder
  if kind == "policy":
    params = load_params(folder, saved_table)
    return Origin(lm, {**base, **params}, tokenizer, about)

  # A reward model has a scalar head, replicated on the mesh, in the place of the language
  # model's own head over the vocabulary.
  trunk = {name: part for name, part in saved_table.items() if name != "head"}
  params = load_params(folder, {"lm": trunk, "head": _abstract_head(lm)})
  whole_trunk = {**base, **params["lm"]}
  return Origin(lm, whole_trunk, tokenizer, about, params["head"])


def _abstract_head(lm: LM) -> Params:
  """Shapes and sharding of a scalar head: a weight for each unit of the trunk, and a bias."""
  replicated = None
  if sharding.is_sharded():
    replicated = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.P())

  def leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated)

  return {"w": leaf(lm.width), "b": leaf()}


def open_base(
  base: Mapping[str, str],
  workdir: AnyPath,
  lm: LM,
  opened: Origin | None = None,
) -> Params:
  """Reads the whole model that an adapter belongs to, or takes that of `opened` if it is the same.

  `base` is the `about["base"]` of the adapter, `workdir` the run that holds it.

  Raises:
    UserError: where the base is not there any more, or has changed since.
  """
  # The reward model of PPO is often an adapter of the same base as the policy.
  if opened is not None and opened.about.get("base") == base:
    return lora.without(opened.params)
  source = base["source"]
  try:
    params = _base_params(source)
  except UserError as error:
    raise UserError(f"{workdir}: holds an adapter; its base cannot be opened: {error}") from error
  weights = fingerprint(params)
  if weights != base["fingerprint"]:
    raise UserError(
      f"{workdir}: holds an adapter of {source}, which has other weights now ({weights[:8]}, then "
      f"{base['fingerprint'][:8]}): put the old ones back, or train the adapter again"
    )
  return sharding.place(lora.merge(params), sharding.shardings(lm.table))


def _base_params(source: str) -> Params:
  """The parameters of the base of an adapter, as its fingerprint was taken: nothing is merged."""
  if is_run(source):
    return open_run(places.directory(source), {}, "policy").params
  if peft.is_adapter(source):
    loaded = models.load(peft.base(source))
    return {**loaded.params, "adapter": peft.load(source, loaded.config)}
  return models.load(source).params


# --- building ---


def abstract(table: PyTree[Leaf]) -> PyTree[jax.ShapeDtypeStruct]:
  """Float32 leaves with the shapes and shardings of a table; nothing is allocated."""

  def abstract_leaf(leaf: Leaf) -> jax.ShapeDtypeStruct:
    spec = sharding.fit(leaf.shape, leaf.axes)
    named_sharding = None
    if spec is not None:  # a mesh is set
      named_sharding = sharding.named(spec)
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=named_sharding)

  return jax.tree.map(abstract_leaf, table, is_leaf=lambda x: isinstance(x, Leaf))


def random_params(lm: LM, seed: int) -> Params:
  """Initial weights of a model; with a mesh every device makes its own part of them."""
  key = keys.run_key(seed, "weights")
  if not sharding.is_sharded():
    return lm.init(key)
  return jax.jit(lm.init, out_shardings=sharding.shardings(lm.table))(key)


# --- tokenizers and chat templates ---


def _open_tokenizer(reference: str, lm: LM) -> Tokenizer:
  """The tokenizer of a reference, which is a model's own one.

  Raises:
    UserError: where it has more ids than the model has rows in its vocabulary.
  """
  return tokenizers.fit(tokenizers.by_reference(reference), lm.vocab_size)


def _choose_tokenizer(chosen: str, own: str, lm: LM) -> Tokenizer:
  """The tokenizer that the settings choose, or where they choose none the model's own.

  Raises:
    UserError: as `_open_tokenizer` does; it names the setting where that is to blame.
  """
  if not chosen:
    return _open_tokenizer(own, lm)
  with naming("config.model.tokenizer", chosen):
    return _open_tokenizer(chosen, lm)


def _with_tokenizer(origin: Origin, reference: str) -> Origin:
  """The origin with the tokenizer of a reference, or as it is where the reference is empty."""
  if not reference:
    return origin
  about = dict(origin.about)
  for name in ("eos", "banned"):  # ids of the tokenizer that is replaced
    about.pop(name, None)
  about["tokenizer"] = lasting_reference(reference)
  tokenizer = _choose_tokenizer(reference, "", origin.lm)
  return origin._replace(tokenizer=tokenizer, about=about)


def ended(tokenizer: Tokenizer, about: Mapping[str, Any]) -> Tokenizer:
  """The tokenizer of a run that chose where its responses end, for example at a new line.

  The ids that end a response or are never sampled are then no part of its text.
  """
  if "eos" not in about:
    return tokenizer
  silent = {*about["eos"], *about["banned"]}
  return vocabulary.silenced(tokenizer, silent)._replace(
    eos=tuple(about["eos"]),
    banned=tuple(about["banned"]),
  )


def reference(tokenizer: Any, source: str) -> str:
  """The reference of the tokenizer of a loaded model: its path, or the .gguf file it stands in."""
  is_gguf_metadata = isinstance(tokenizer, Mapping)
  return source if is_gguf_metadata else str(tokenizer)


def chat_template(
  name: str, about: Mapping[str, Any], tokenizer: Tokenizer
) -> chat.Template | None:
  """The template of `config.data.template`.

  `name` is "" for plain text, "chat" for the model's own template, or the path of a file. The own
  template of a run is the one that it was trained with, else that of its tokenizer.

  Raises:
    UserError: where the model has no template, and for one that cannot be used.
  """
  if not name:
    return None
  tokenizer_reference = about["tokenizer"]
  tokenizer_template, special_tokens = _tokenizer_template(tokenizer_reference)
  if name != chat.OWN:
    # A template from a file may name the special tokens of the tokenizer, so it needs them too.
    return chat.load(name, chat.read(name), special_tokens, tokenizer)

  text = about["template"]["text"] if about.get("template") else tokenizer_template
  if not text:
    raise UserError(
      f"config.data.template='{chat.OWN}': the tokenizer {tokenizer_reference} has no chat "
      "template; give a .jinja file, or '' for plain text"
    )
  title = f"the chat template of {tokenizer_reference}"
  return chat.load(title, text, special_tokens, tokenizer)


def natural_template(
  source: str, about: Mapping[str, Any], tokenizer: Tokenizer
) -> chat.Template | None:
  """The template of a model that is asked in the way in which it was trained.

  It is that of a run's training, and None where the run was trained on plain text, whatever its
  tokenizer holds. For any other source it is the tokenizer's own, and None where that has none.

  Raises:
    UserError: where the template cannot be used.
  """
  if is_run(source):
    has_template = bool(about.get("template"))
  else:
    has_template = bool(_tokenizer_template(about["tokenizer"])[0])
  if not has_template:
    return None
  try:
    return chat_template(chat.OWN, about, tokenizer)
  except UserError as problem:
    raise UserError(f"{problem}; config.template='' asks in plain text") from None


def _tokenizer_template(tokenizer_reference: str) -> tuple[str | None, dict[str, str]]:
  """The template of a tokenizer, and its special tokens by the names that templates use."""
  if tokenizer_reference == BYTES:
    return None, {}
  return chat.find(tokenizers.source(tokenizer_reference))


def template_of(about: Mapping[str, Any]) -> str:
  """The fingerprint of the template that a model was trained with; "" is plain text."""
  template = about.get("template") or {}
  return template.get("fingerprint", "")
