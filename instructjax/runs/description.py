"""What a run says about the model that it left, so that a later stage can build it again.

The description is a JSON object in the checkpoint `final` of a run, and `Origin.about` in memory:

  family      "gpt" or "llama", or "python" for a model that a user's function returns
  config      the fields of the configuration, for the two families
  source      `file.py:function` or `package.module:function`, for a Python model
  tokenizer   the reference that opens its tokenizer (`tokenizers.by_reference`)
  template    text and fingerprint of the chat template that it was trained with, if any
  eos, banned ids that end a response and ids that are never sampled, where a run chose its own
  adapter     the sizes of the adapter, where the run trained one
  base        source and fingerprint of the model that the adapter belongs to
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructjax.data.tokens.tokenizers import BYTES
from instructjax.errors import UserError
from instructjax.models import gpt, llama
from instructjax.runs import writers
from instructjax.runs.checkpoint import flatten, sums
from instructjax.system import places
from instructjax.types import Params

ModelConfig = gpt.GPTConfig | llama.LlamaConfig

# The families whose configuration a description holds; a Python model has none.
FAMILIES: dict[str, type] = {
  "gpt": gpt.GPTConfig,
  "llama": llama.LlamaConfig,
}


def describe(config: ModelConfig, tokenizer: str) -> dict[str, Any]:
  """The description of a model of the two families with the tokenizer of a reference."""
  family = "gpt" if isinstance(config, gpt.GPTConfig) else "llama"
  return {
    "family": family,
    "config": dataclasses.asdict(config),
    "tokenizer": lasting_reference(tokenizer),
  }


def model_config(name: str, about: Mapping[str, Any]) -> ModelConfig:
  """The configuration of a described model; `name` stands in the message.

  Raises:
    UserError: for a Python model, which no public format can hold.
  """
  if about["family"] not in FAMILIES:
    raise UserError(
      f"{name}: this is a Python model, and the public formats hold models of public families only"
    )
  return FAMILIES[about["family"]](**about["config"])


def adapted(
  about: Mapping[str, Any],
  source: str,
  base: Params,
  sizes: Mapping[str, Any],
) -> dict[str, Any]:
  """The description of a base model with an adapter of these sizes.

  The adapter is saved without its base. So the description says where the base is, and holds the
  fingerprint by which a base that has changed since is recognised.
  """
  is_here = places.is_address(source) or Path(source).exists()
  location = str(places.absolute(source)) if is_here else source  # a hub id stays as it is
  base_facts = {"source": location, "fingerprint": fingerprint(base)}
  return {**about, "adapter": sizes, "base": base_facts}


def fingerprint(params: Params) -> str:
  """A hash of the bits of all parameters, the same on every mesh, as hexadecimal digits."""
  return writers.fingerprint(sums(flatten(params)))


def lasting_reference(tokenizer: str) -> str:
  """The reference of a tokenizer in a form that is read from any working directory."""
  path = Path(tokenizer)
  is_file = tokenizer != BYTES and path.exists()  # a folder may have the name "bytes"
  return str(path.absolute()) if is_file else tokenizer
