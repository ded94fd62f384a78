"""A trained model as a folder that `transformers`, and what serves its models, open: `instructjax
export`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from instructjax import models
from instructjax.data.tokens import carry, chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.models import lora
from instructjax.runs import origin
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.origin import Origin
from instructjax.settings.subjects import LoadedModelSettings
from instructjax.stages import trainable
from instructjax.types import Params

WEIGHTS = ("", "ema", "raw")
SUPPRESSED = 1000  # ids; generation_config.json names no more of them than this
PLAIN = LoadedModelSettings(dtype="float32", remat="none")


def export(
  source: str, folder: str | Path, *, weights: str = "", dtype: str = "float32", tokenizer: str = ""
) -> Path:
  """Writes the model of a source (a run, a folder, a .gguf file, a hub id) and its tokenizer; an
  adapter is merged.

  `weights` chooses between the average ("ema") and the last weights ("raw") of a PPO run; "" is
  what the next stage would get: the average where there is one.  A reward model becomes a
  sequence classifier with one label. Raises UserError for an unfinished run, weights that it
  does not have, a Python model, and a folder that is in use.
  """
  folder = Path(folder)
  if folder.exists() and (
    not folder.is_dir() or origin.is_run(str(folder)) or folder.resolve() == Path(source).resolve()
  ):
    raise UserError(
      f"--out={folder}: this is a file, a run or the model itself; name a folder of its own"
    )
  is_reward = origin.kind_of(source) == "reward"
  settings = dataclasses.replace(PLAIN, tokenizer=tokenizer)
  model = (
    origin.open_reward_model(source, settings)
    if is_reward
    else origin.open_model(source, settings, 0)
  )
  config = origin.model_config(source, model.about)
  params = lora.merge(chosen(source, model, weights))
  special = special_ids(model.tokenizer)
  if model.head is None:
    models.save(folder, config, params, dtype=dtype, extra=special)
  else:
    pad = special.pop("pad_token_id")
    models.save_reward(
      folder, config, params, model.head, pad_token_id=pad, dtype=dtype, extra=special
    )
  if jax.process_index() == 0:
    carry.write(model.about["tokenizer"], model.tokenizer, folder, context=config.context)
    if model.about.get("template"):  # the one that it was trained with
      (folder / chat.JINJA).write_text(model.about["template"]["text"], "utf-8")
    if model.head is None:
      generation = generation_config(model.tokenizer, special)
      (folder / "generation_config.json").write_text(
        json.dumps(generation, indent=2) + "\n", "utf-8"
      )
  return folder


def chosen(source: str, model: Origin, weights: str) -> Params:
  """The parameters that `weights` asks for.  Raises UserError where the run has no such ones."""
  if weights not in WEIGHTS:
    raise UserError(f"--weights={weights}: choose ema or raw")
  last = Checkpoints(Path(source) / "checkpoints" / "ppo")
  leaves = last.leaves() if last.latest() is not None else {}
  averaged = any(name.startswith("ema/policy/") for name in leaves)
  if weights == "ema" and not averaged:
    raise UserError(
      f"{source}: holds no average; leave --weights away, or train PPO with config.ppo.ema_decay"
    )
  if weights != "raw" or not averaged:
    return model.params
  table: dict[str, Any] = origin.abstract(model.lm.table)
  raw = "params/policy"
  if "adapter" in model.about:
    return model.params | last.part(
      raw, {"adapter": origin.abstract(lora.table(model.lm.table, model.about["adapter"]))}
    )
  if f"{raw}/embed/tokens" in leaves:
    return last.part(raw, table)
  depth = leaves[f"{raw}/blocks/q/w"][0]  # only the top blocks were trained
  top = lambda leaf: jax.ShapeDtypeStruct(
    (depth, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding
  )
  trained = {name: part for name, part in table.items() if name != "embed"}
  return trainable.joined(
    model.params, last.part(raw, trained | {"blocks": jax.tree.map(top, table["blocks"])})
  )


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
  """eos, bos and pad for config.json.  Every text ends with an eos, so any other id may fill up a
  row.
  """
  eos = list(tokenizer.eos)
  pad = next(i for i in (*tokenizer.banned, *range(len(eos) + 1)) if i not in eos)
  return {
    "eos_token_id": eos if len(eos) > 1 else eos[0],
    "bos_token_id": tokenizer.bos[0] if tokenizer.bos else None,
    "pad_token_id": pad,
  }


def generation_config(tokenizer: Tokenizer, special: dict[str, Any]) -> dict[str, Any]:
  """Plain sampling at temperature 1 from the ids that our sampler draws, ended by the same ids."""
  never = (
    {"suppress_tokens": list(tokenizer.banned)} if 0 < len(tokenizer.banned) <= SUPPRESSED else {}
  )
  return {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **special, **never}
