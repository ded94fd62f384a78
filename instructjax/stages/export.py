"""`instructjax export`: a trained model as a folder that `transformers` and vLLM open."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from instructjax import models
from instructjax.data.tokens import carry, chat, tokenizers
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError, naming
from instructjax.models import lora
from instructjax.runs import origin
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.origin import Origin
from instructjax.settings.subjects import LoadedModelSettings
from instructjax.stages import trainable
from instructjax.system import jsons, places
from instructjax.types import Params

WEIGHTS = ("", "ema", "raw")
SUPPRESSED = 1000  # ids; generation_config.json names no more of them than this
PLAIN = LoadedModelSettings(dtype="float32", remat="none")


def export(
  source: str, folder: str | Path, *, weights: str = "", dtype: str = "float32", tokenizer: str = ""
) -> Path:
  """Writes the model of a source and its tokenizer into a folder; an adapter is merged.

  A source is a run, a model folder, a .gguf file or a hub id.

  `weights` chooses between the average ("ema") and the last weights ("raw") of a PPO run; "" is
  what the next stage would get: the average where there is one. A reward model becomes a
  sequence classifier with one label.

  Raises UserError for an unfinished run, weights that it does not have, a Python model, and a
  folder that is in use.
  """
  folder = Path(folder)
  check_free(folder, source)
  if tokenizer:
    with naming("--tokenizer", tokenizer):
      tokenizers.by_reference(tokenizer)
  settings = dataclasses.replace(PLAIN, tokenizer=tokenizer)
  if origin.kind_of(source) == "reward":
    model = origin.open_reward_model(source, settings)
  else:
    model = origin.open_model(source, settings, 0)
  # Public formats hold models of public families only; a Python model is refused here.
  config = origin.model_config(source, model.about)
  params = lora.merge(choose_weights(source, model, weights))
  special = special_ids(model.tokenizer)
  if model.head is None:
    models.save(folder, config, params, dtype=dtype, extra=special)
  else:
    # A sequence classifier finds the last real token by the padding id of its configuration.
    pad = special.pop("pad_token_id")
    models.save_reward(
      folder, config, params, model.head, pad_token_id=pad, dtype=dtype, extra=special
    )
  if jax.process_index() == 0:
    write_tokenizer(folder, model, special, config.context)
  return folder


def check_free(folder: Path, source: str) -> None:
  """Raises UserError where the folder is a file, a run, or the model itself."""
  if not folder.exists():
    return
  is_source = folder.resolve() == Path(source).resolve()
  if not folder.is_dir() or origin.is_run(str(folder)) or is_source:
    raise UserError(
      f"--out={folder}: this is a file, a run or the model itself; name a folder of its own"
    )


def write_tokenizer(folder: Path, model: Origin, special: dict[str, Any], context: int) -> None:
  """Writes the tokenizer, the chat template that the model was trained with, and how to sample."""
  carry.write(model.about["tokenizer"], model.tokenizer, folder, context=context)
  template = model.about.get("template")
  if template:
    (folder / chat.JINJA).write_text(template["text"], "utf-8")
  if model.head is None:
    jsons.write(folder / "generation_config.json", generation_config(model.tokenizer, special))


def choose_weights(source: str, model: Origin, weights: str) -> Params:
  """The parameters that `weights` asks for.  Raises UserError where the run does not have them."""
  if weights not in WEIGHTS:
    raise UserError(f"--weights={weights}: choose ema or raw")
  last = Checkpoints(places.directory(source) / "checkpoints" / "ppo")
  leaves = last.leaves() if last.latest() is not None else {}
  has_average = any(name.startswith("ema/policy/") for name in leaves)
  if weights == "ema" and not has_average:
    raise UserError(
      f"{source}: holds no average; leave --weights away, or train PPO with config.ppo.ema_decay"
    )
  # A finished run holds the average already, as the model for the next stage.
  if weights != "raw" or not has_average:
    return model.params
  return last_weights(model, last, leaves)


def last_weights(model: Origin, last: Checkpoints, leaves: Mapping[str, Any]) -> Params:
  """The last weights of a PPO run, whatever part of the model it trained."""
  table: dict[str, Any] = origin.abstract(model.lm.table)
  name = "params/policy"
  if "adapter" in model.about:
    adapter = origin.abstract(lora.table(model.lm.table, model.about["adapter"]))
    return model.params | last.part(name, {"adapter": adapter})
  if f"{name}/embed/tokens" in leaves:
    return last.part(name, table)
  # Only the top blocks were trained: the checkpoint holds fewer blocks than the model has.
  depth = leaves[f"{name}/blocks/q/w"][0]

  def top_blocks(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((depth, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)

  like = {part: tree for part, tree in table.items() if part != "embed"}
  like["blocks"] = jax.tree.map(top_blocks, table["blocks"])
  return trainable.joined(model.params, last.part(name, like))


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
  """The ids of eos, bos and pad for config.json.

  Every text ends with an eos, so any other id may fill up a row.
  """
  eos = list(tokenizer.eos)
  candidates = (*tokenizer.banned, *range(len(eos) + 1))
  pad = next(token for token in candidates if token not in eos)
  return {
    "eos_token_id": eos if len(eos) > 1 else eos[0],
    "bos_token_id": tokenizer.bos[0] if tokenizer.bos else None,
    "pad_token_id": pad,
  }


def generation_config(tokenizer: Tokenizer, special: dict[str, Any]) -> dict[str, Any]:
  """Plain sampling at temperature 1 from the ids that our sampler draws, ended by the same ids."""
  config = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **special}
  # Tokens that our sampler never draws; a list of thousands would only slow others down.
  if 0 < len(tokenizer.banned) <= SUPPRESSED:
    config["suppress_tokens"] = list(tokenizer.banned)
  return config
