"""Writes the content of `config.json` for each public family; `configs` reads it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.models.gpt import GPTConfig
from instructjax.models.hf import configs
from instructjax.models.hf.configs import CLASSES, CONFIG, LETTERS, Raw
from instructjax.models.llama import LlamaConfig
from instructjax.models.weights import Config

# Settings of a run, which are not part of a saved model.
RUN = ("dropout", "dtype", "stream", "remat", "unroll", "sequence", "attention")


def render(config: Config, dtype: str) -> Raw:
  """Returns the content of `config.json` for weights that are stored in `dtype`.

  Raises:
    UserError: where the family has no words for a setting.
  """
  kind = config.model_type
  if kind not in CLASSES:
    raise UserError(f"model_type is {kind!r}: choose one of {', '.join(CLASSES)}")
  architecture = f"{CLASSES[kind]}ForCausalLM"
  if kind == "gpt2":
    architecture = "GPT2LMHeadModel"
  raw = {
    "model_type": kind,
    "architectures": [architecture],
    "vocab_size": config.vocab_size,
    "tie_word_embeddings": config.tied,
    # Newer versions of `transformers` read the first name, older ones the second.
    "dtype": dtype,
    "torch_dtype": dtype,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
  }
  if isinstance(config, GPTConfig):
    raw |= _render_gpt(config)
  else:
    raw |= _render_llama(config)
  _check_that_nothing_is_lost(config, raw)
  return raw


def _check_that_nothing_is_lost(config: Config, raw: Raw) -> None:
  """Reads the content back, and raises UserError where that is another configuration."""
  read_back = configs.parse(raw, Path(CONFIG))
  lost = []
  for field in dataclasses.fields(config):
    value: Any = getattr(config, field.name)
    if field.name not in RUN and value != getattr(read_back, field.name, None):
      lost.append(f"{field.name}={value!r}")
  if lost:
    raise UserError(
      f"a model of type '{config.model_type}' cannot have {', '.join(lost)}: set another model_type"
    )


# --- GPT-2, GPT-NeoX and Phi ---


def _render_gpt(config: GPTConfig) -> Raw:
  public_names = {"gelu_tanh": "gelu_new"}
  activation = public_names.get(config.activation, config.activation)
  if config.model_type == "gpt2":
    return {
      "n_positions": config.context,
      "n_embd": config.width,
      "n_layer": config.depth,
      "n_head": config.heads,
      "n_inner": config.mlp or None,
      "activation_function": activation,
      "layer_norm_epsilon": config.norm_eps,
      "resid_pdrop": config.dropout,
      "embd_pdrop": 0.0,
      "attn_pdrop": 0.0,
    }
  # The share of the features of each head that are rotated.
  share = config.rotary / (config.width // config.heads)
  raw: Raw = {
    "max_position_embeddings": config.context,
    "hidden_size": config.width,
    "num_hidden_layers": config.depth,
    "num_attention_heads": config.heads,
    "intermediate_size": config.mlp or 4 * config.width,
    "hidden_act": activation,
    "layer_norm_eps": config.norm_eps,
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": config.rope_base,
      "partial_rotary_factor": share,
    },
    "attention_dropout": 0.0,
  }
  # Older versions of `transformers` do not read "rope_parameters", so its numbers are repeated.
  if config.model_type == "phi":
    raw |= {
      "partial_rotary_factor": share,
      "rope_theta": config.rope_base,
      "qk_layernorm": False,
      "resid_pdrop": config.dropout,
      "num_key_value_heads": config.heads,
    }
  else:
    raw |= {
      "rotary_pct": share,
      "rotary_emb_base": config.rope_base,
      "use_parallel_residual": config.parallel,
      "attention_bias": True,
      "hidden_dropout": config.dropout,
    }
  return raw


# --- Llama and all that follow its names ---


def _render_llama(config: LlamaConfig) -> Raw:
  kind = config.model_type
  head_width = config.head_width or config.width // config.heads
  public_names = {"gelu_tanh": "gelu_pytorch_tanh"}
  raw: Raw = {
    "max_position_embeddings": config.context,
    "hidden_size": config.width,
    "num_hidden_layers": config.depth,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": head_width,
    "intermediate_size": config.mlp,
    "hidden_act": public_names.get(config.activation, config.activation),
    "rms_norm_eps": config.norm_eps,
    "attention_dropout": 0.0,
  }
  raw |= _render_rope(config, head_width)
  # Every family gets the keys that its class reads, and no others.
  if kind in ("llama", "smollm3"):
    raw["attention_bias"] = config.o_bias
    raw["mlp_bias"] = config.mlp_bias
  if kind in ("qwen3", "gemma", "gemma2", "gemma3_text"):
    raw["attention_bias"] = config.o_bias
  if kind in ("gemma2", "gemma3_text"):
    raw["hidden_activation"] = raw.pop("hidden_act")
    raw["query_pre_attn_scalar"] = config.query_width or head_width
    raw["attn_logit_softcapping"] = config.softcap or None
    raw["final_logit_softcapping"] = config.logit_softcap or None
  return raw | _render_layers(config)


def _render_layers(config: LlamaConfig) -> Raw:
  """Returns the keys that say what differs from layer to layer: windows and positions."""
  kind = config.model_type
  letters = (config.pattern * config.depth)[: config.depth]
  window = config.window or None
  raw: Raw = {}
  if kind == "smollm3":
    # In spite of its name, 1 means that a layer is rotated.
    raw["no_rope_layers"] = [int(letter != "N") for letter in letters]
    raw["use_sliding_window"] = False
  if kind in ("mistral", "phi3"):
    raw["sliding_window"] = window
  if kind in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
    names = {letter: name for name, letter in LETTERS.items()}
    # An unknown letter stays, and reading it back reports the pattern.
    raw["layer_types"] = [names.get(letter, letter) for letter in letters]
    raw["sliding_window"] = window
  if kind in ("qwen2", "qwen3"):
    # The number of layers before the first one with a window.
    full_layers = len(letters) - len(letters.lstrip("G"))
    raw["use_sliding_window"] = "L" in letters
    raw["max_window_layers"] = full_layers
  if kind == "gemma3_text":
    raw["sliding_window_pattern"] = len(config.pattern)
  return raw


def _render_rope(config: LlamaConfig, head_width: int) -> Raw:
  """Returns the settings of the rotation, in the words of newer and of older files."""
  is_scaled = config.rope_scaling != "none"
  rope: Raw = {
    "rope_type": config.rope_scaling if is_scaled else "default",
    "rope_theta": config.rope_base,
  }
  if is_scaled:
    rope["factor"] = config.rope_factor
  if config.rope_scaling == "llama3":
    rope["low_freq_factor"] = config.rope_low
    rope["high_freq_factor"] = config.rope_high
    rope["original_max_position_embeddings"] = config.rope_context
  share = {"partial_rotary_factor": config.rotary / head_width} if config.rotary else {}
  raw: Raw = {"rope_theta": config.rope_base, **share}
  if is_scaled:
    raw["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
  if config.model_type == "gemma3_text":
    # It has one rotation for each kind of layer.
    raw["rope_local_base_freq"] = config.local_rope_base
    raw["rope_parameters"] = {
      "full_attention": rope,
      "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_base},
    }
  else:
    raw["rope_parameters"] = rope | share
  return raw
