"""Reward models as folders of a sequence classifier with one label, which `transformers` opens.

Its head is r = w . h without our bias b.  Where the last norm has a bias beta, b goes into it
exactly in real numbers:

    beta' = beta + b w / |w|^2,   so that   w . (h + b w / |w|^2) = w . h + b

An RMSNorm has none.  There b stands in `config.json` as "score_bias", and a small file of code
in the folder adds it, where `from_pretrained` is told trust_remote_code=True; without it all
scores are lower by b, which no comparison of two texts sees.

Dimensions: D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models.gpt import GPTConfig
from instructjax.models.hf import configs, reading, tensors, writing
from instructjax.models.weights import Config, Tensor
from instructjax.types import Params

BIAS = "score_bias"
SCORE = Tensor("score.weight", ("score/w",), turned=True)
CODE = '''"""A sequence classifier whose score has a bias, which config.json holds as "score_bias"."""

from transformers import {base}


class {name}({base}):
  def forward(self, *args, **kwargs):
    output = super().forward(*args, **kwargs)
    if isinstance(output, tuple):
      raise ValueError("return_dict=False is not supported by this model")
    output.logits = output.logits + self.config.score_bias
    return output
'''


def save_reward(
  folder: str | Path,
  config: Config,
  params: Params,
  head: Params,
  *,
  pad_token_id: int,
  dtype: str = "float32",
  shard_bytes: int = writing.SHARD_BYTES,
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Writes a reward model.  `params` need no unembedding; `head` is {"w": [D], "b": []}.

  `pad_token_id` must be an id that ends no text: `transformers` reads the score at the last
  token that is another. Raises UserError as `save` does, and for a pad id that is not in the
  vocabulary.
  """
  if not 0 <= pad_token_id < config.vocab_size:
    raise UserError(
      f"pad_token_id is {pad_token_id}: choose an id below the vocabulary of {config.vocab_size}"
    )
  w, b = (np.asarray(sharding.fetch(head[name]), np.float32) for name in ("w", "b"))
  trunk = {name: part for name, part in params.items() if name != "head"}
  base = f"{_classifier(config)}ForSequenceClassification"
  raw = configs.render(config, dtype) | dict(extra or {})
  raw |= {
    "architectures": [base],
    "num_labels": 1,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
  }
  raw |= {"pad_token_id": pad_token_id, BIAS: 0.0}
  texts = {}
  if isinstance(config, GPTConfig):
    trunk |= {"norm": trunk["norm"] | {"bias": _with_bias(trunk["norm"]["bias"], w, b)}}
  elif b:
    name = f"Biased{base}"
    raw |= {
      BIAS: float(b),
      "auto_map": {"AutoModelForSequenceClassification": f"score_bias.{name}"},
    }
    texts = {"score_bias.py": CODE.format(base=base, name=name)}
  wanted = (*tensors.body(config), SCORE)
  writing.write(
    folder, config, wanted, trunk | {"score": {"w": w[:, None]}}, raw, dtype, shard_bytes, texts
  )


def _with_bias(beta: Any, w: np.ndarray, b: np.ndarray) -> np.ndarray:
  """The bias of the last norm with that of the head in it."""
  wide = w.astype(np.float64)
  if b and not wide.any():
    raise UserError(
      "the head's weights are all 0 and its bias is not: such a score cannot be written; train it "
      "first"
    )
  return (
    np.asarray(sharding.fetch(beta), np.float64) + (b * wide / (wide @ wide) if b else 0)
  ).astype(np.float32)


def _classifier(config: Config) -> str:
  """The name of the family in the name of its classifier."""
  return {"gemma3_text": "Gemma3Text"}.get(
    config.model_type, configs.CLASSES.get(config.model_type, "")
  )


def load_reward(folder: str | Path) -> tuple[Config, Params, Params]:
  """(config, float32 parameters without an unembedding, head {"w", "b"}) of a sequence classifier
  with one label.

  Raises UserError as `load` does, for a language model, and for a classifier with several labels.
  """
  folder = Path(folder)
  raw = configs.read_json(folder / configs.CONFIG)
  if not reading.is_classifier(raw):
    raise UserError(f"{folder}: holds no reward model (a sequence classifier with one label)")
  config = configs.parse(raw, folder / configs.CONFIG)
  entries = reading.index(folder)
  score = entries.get(SCORE.name)
  if score is None or score.shape != (1, config.width):
    found = "is missing" if score is None else f"has shape {score.shape}"
    raise UserError(
      f"{folder}: tensor '{SCORE.name}' {found}; a reward model has one label, so (1, "
      f"{config.width})"
    )
  w = np.array(reading.view(SCORE.name, entries.pop(SCORE.name)), np.float32)[0]
  params = reading.fill(folder, config, tensors.body(config), entries)
  bias = raw.get(BIAS, 0.0)
  if not isinstance(bias, int | float):
    raise UserError(f"{folder / configs.CONFIG}: '{BIAS}' is {bias!r}; it must be a number")
  return config, params, {"w": jnp.asarray(w), "b": jnp.float32(bias)}
