"""Reward models as folders of a sequence classifier with one label, which `transformers` opens.

Its head is r = w . h, without our bias b. Where the last norm has a bias beta, b goes into it,
which is exact in real numbers:

    beta' = beta + b w / |w|^2,   so that   w . (h + b w / |w|^2) = w . h + b

An RMSNorm has no bias. There b stands in `config.json` as "score_bias", and a small file of code in
the folder adds it where `from_pretrained` gets trust_remote_code=True. Without that all scores are
lower by b, which changes no comparison of two texts.

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
from instructjax.models import checks, weights
from instructjax.models.gpt import GPTConfig
from instructjax.models.hf import configs, reading, rendering, tensors, writing
from instructjax.models.weights import Config, Tensor
from instructjax.settings.fields import Limits
from instructjax.types import Params

BIAS = "score_bias"
LARGEST = 3e38  # what float32 holds
FLOAT32 = Limits(low=-LARGEST, high=LARGEST)
SCORE = Tensor("score.weight", ("score/w",), turned=True)
CODE_FILE = "score_bias.py"
CODE = '''"""A sequence classifier that adds a bias to its score: "score_bias" in config.json."""

from transformers import {base}


class {name}({base}):
  def forward(self, *args, **kwargs):
    output = super().forward(*args, **kwargs)
    if isinstance(output, tuple):
      raise ValueError("return_dict=False is not supported by this model")
    output.logits = output.logits + self.config.score_bias
    return output
'''


# --- writing ---


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
  """Writes a reward model.

  `params` need no unembedding; `head` is {"w": [D], "b": []}. `pad_token_id` must be an id that
  ends no text, because `transformers` reads the score at the last token that has another id.

  Raises:
    UserError: as `save` does, and for a pad id that is not in the vocabulary.

  Example:
    >>> import os, tempfile
    >>> config = models.LlamaConfig(8, context=16, width=8, depth=1, heads=2, kv_heads=1, mlp=16)
    >>> body = models.build(config).init(jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   models.save_reward(folder, config, body, model["head"], pad_token_id=0)
    ...   print(sorted(os.listdir(folder)))
    ['config.json', 'model.safetensors']
  """
  if not 0 <= pad_token_id < config.vocab_size:
    raise UserError(
      f"pad_token_id is {pad_token_id}: choose an id below the vocabulary of {config.vocab_size}"
    )
  w = np.asarray(sharding.fetch(head["w"]), np.float32)
  b = np.asarray(sharding.fetch(head["b"]), np.float32)
  # A classifier has no unembedding.
  trunk = {name: part for name, part in params.items() if name != "head"}
  architecture = f"{_class_name(config)}ForSequenceClassification"
  raw = rendering.render(config, dtype)
  raw |= dict(extra or {})
  raw |= {
    "architectures": [architecture],
    "num_labels": 1,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "pad_token_id": pad_token_id,
    BIAS: 0.0,
  }
  texts = {}
  # LayerNorm has a bias, RMSNorm has none.
  if isinstance(config, GPTConfig):
    beta = _with_bias(trunk["norm"]["bias"], w, b)
    trunk["norm"] = trunk["norm"] | {"bias": beta}
  elif b:
    name = f"Biased{architecture}"
    raw[BIAS] = float(b)
    module = CODE_FILE.removesuffix(".py")
    raw["auto_map"] = {"AutoModelForSequenceClassification": f"{module}.{name}"}
    texts[CODE_FILE] = CODE.format(base=architecture, name=name)
  trunk["score"] = {"w": w[:, None]}
  writing.write(
    folder,
    config,
    (*tensors.body(config), SCORE),
    trunk,
    raw,
    dtype,
    shard_bytes,
    texts,
  )


def _with_bias(beta: Any, w: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the bias of the last norm [D] with the bias of the head in it.

  The sum is made in float64, and rounded once.
  """
  wide = w.astype(np.float64)
  if b and not wide.any():
    raise UserError(
      "the head's weights are all 0 and its bias is not: such a score cannot be written; train it "
      "first"
    )
  shift = b * wide / (wide @ wide) if b else 0
  shifted = np.asarray(sharding.fetch(beta), np.float64) + shift
  return shifted.astype(np.float32)


def _class_name(config: Config) -> str:
  """Returns the name of the family in the name of its classifier."""
  # Gemma 3 has two classifiers, and "Gemma3" is the one that sees pictures.
  if config.model_type == "gemma3_text":
    return "Gemma3Text"
  return configs.CLASSES.get(config.model_type, "")


# --- reading ---


def load_reward(folder: str | Path) -> tuple[Config, Params, Params]:
  """Returns (config, float32 parameters without an unembedding, head {"w", "b"}).

  The folder holds a sequence classifier with one label.

  Raises:
    UserError: as `load` does, for a language model, and for a classifier with several labels.

  Example:
    >>> import tempfile
    >>> config = models.LlamaConfig(8, context=16, width=8, depth=1, heads=2, kv_heads=1, mlp=16)
    >>> body = models.build(config).init(jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   models.save_reward(folder, config, body, model["head"], pad_token_id=0)
    ...   config, body, head = models.load_reward(folder)
    >>> print(head["w"].shape)
    (8,)
  """
  folder = Path(folder)
  path = folder / configs.CONFIG
  raw = configs.read_json(path)
  if not reading.is_classifier(raw):
    raise UserError(f"{folder}: holds no reward model (a sequence classifier with one label)")
  config = configs.parse(raw, path)
  entries = reading.index(folder)
  # What is taken out of the entries is not reported as a tensor without a place.
  score = entries.pop(SCORE.name, None)
  if score is None or score.shape != (1, config.width):
    state = "is missing" if score is None else f"has shape {score.shape}"
    raise UserError(
      f"{folder}: tensor '{SCORE.name}' {state}; a reward model has one label, so (1, "
      f"{config.width})"
    )
  # The file has w as a matrix [1, D].
  stored = reading.stored(SCORE.name, score)
  w = weights.finite(stored.read(), stored.place)[0]
  params = reading.fill(folder, config, tensors.body(config), entries)
  # Models of others have no bias, and models with a LayerNorm have it in the norm.
  bias = checks.number(raw.get(BIAS, 0.0), BIAS, path, FLOAT32)
  head = {"w": jnp.asarray(w), "b": jnp.float32(bias)}
  return config, params, head
