"""`config.json` of each public family, in and out.

Dropout, dtype, remat, unroll, sequence and attention are settings of a run, not of the weights:
reading leaves their defaults.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig
from instructjax.models.weights import Config

Raw = dict[str, Any]
CONFIG = "config.json"
RUN = ("dropout", "dtype", "remat", "unroll", "sequence", "attention")

# The name of each family in the names of its classes.
CLASSES = {
  "gpt2": "GPT2",
  "gpt_neox": "GPTNeoX",
  "phi": "Phi",
  "llama": "Llama",
  "smollm3": "SmolLM3",
  "mistral": "Mistral",
  "qwen2": "Qwen2",
  "qwen3": "Qwen3",
  "gemma": "Gemma",
  "gemma2": "Gemma2",
  "gemma3_text": "Gemma3",
  "phi3": "Phi3",
}

# What a family means where its config.json is silent.
_LAYER = {"layer_norm_eps": 1e-5, "tie_word_embeddings": False}
_RMS = {
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "hidden_act": "silu",
  "rope_theta": 10_000.0,
}
_GEMMA = _RMS | {
  "tie_word_embeddings": True,
  "head_dim": 256,
  "sliding_window": 4096,
  "query_pre_attn_scalar": 256,
}
DEFAULTS: dict[str, Raw] = {
  "gpt2": {
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "activation_function": "gelu_new",
  },
  "gpt_neox": _LAYER | {"hidden_act": "gelu", "rotary_pct": 0.25, "use_parallel_residual": True},
  "phi": _LAYER | {"hidden_act": "gelu_new", "partial_rotary_factor": 0.5},
  "llama": _RMS,
  "smollm3": _RMS
  | {"tie_word_embeddings": True, "rope_theta": 2_000_000.0, "no_rope_layer_interval": 4},
  "mistral": _RMS | {"sliding_window": 4096},
  "qwen2": _RMS | {"sliding_window": 4096, "max_window_layers": 28},
  "qwen3": _RMS | {"sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
  "gemma": _RMS | {"tie_word_embeddings": True, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh"},
  "gemma2": _GEMMA
  | {
    "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "sliding_window_pattern": 2,
  },
  "gemma3_text": _GEMMA
  | {
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
  },
  "phi3": _RMS | {"rms_norm_eps": 1e-5},
}

# What every model of a family has.
FEATURES: dict[str, dict[str, Any]] = {
  "qwen2": {"qkv_bias": True},
  "qwen3": {"qk_norm": True},
  "gemma": {"norm_offset": 1.0, "embed_scaled": True},
  "gemma2": {"norm_offset": 1.0, "embed_scaled": True, "post_norm": True},
  "gemma3_text": {"norm_offset": 1.0, "embed_scaled": True, "post_norm": True, "qk_norm": True},
}

ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "relu": "relu",
}
LETTERS = {"full_attention": "G", "sliding_attention": "L"}


# --- reading ---


def read_json(path: Path) -> Raw:
  """The object in a file.  Raises UserError where there is none."""
  try:
    value = json.loads(path.read_text("utf-8"))
  except OSError as error:
    raise UserError(
      f"{path}: cannot be read ({error.strerror}); give the folder of a saved model"
    ) from error
  except ValueError as error:
    raise UserError(f"{path}: malformed JSON ({error}); fetch it again") from error
  if not isinstance(value, dict):
    raise UserError(f"{path}: holds no JSON object; fetch it again")
  return value


def parse(raw: Raw, path: Path) -> Config:
  """The configuration out of the content of `config.json`; of a Gemma 3 with pictures, that of its
  language model.

  Raises UserError for a missing or malformed key, another family, or a variant that would be
  computed differently.
  """
  if raw.get("model_type") == "gemma3":
    text = raw.get("text_config")
    tied = (
      {"tie_word_embeddings": raw["tie_word_embeddings"]} if "tie_word_embeddings" in raw else {}
    )
    raw = tied | (text if isinstance(text, dict) else {}) | {"model_type": "gemma3_text"}
  kind = raw.get("model_type")
  if kind not in CLASSES:
    raise UserError(
      f"{path}: model_type is {kind!r}; the families that can be read are {', '.join(CLASSES)}"
    )
  _demand(raw, path, quantization_config=(None,), use_bidirectional_attention=(False, None))
  raw = DEFAULTS[kind] | {
    key: value for key, value in raw.items() if value is not None or key in _MAY_BE_NONE
  }
  return {"gpt2": _gpt2, "gpt_neox": _neox, "phi": _phi}.get(kind, _llama)(raw, path)


# Keys whose null is not a silence but says "none".
_MAY_BE_NONE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


def _size(raw: Raw, key: str, path: Path) -> int:
  value = raw.get(key)
  if not isinstance(value, int) or value < 1:
    raise UserError(f"{path}: '{key}' is {value!r}; it must be a positive whole number")
  return value


def _number(raw: Raw, key: str, path: Path) -> float:
  value = raw.get(key)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise UserError(f"{path}: '{key}' is {value!r}; it must be a number")
  return float(value)


def _demand(raw: Raw, path: Path, **allowed: tuple[Any, ...]) -> None:
  """Each key must be absent or have one of the values that our model computes."""
  for key, values in allowed.items():
    if key in raw and raw[key] not in values:
      raise UserError(
        f"{path}: '{key}' is {raw[key]!r}; this variant is not implemented (only {values[0]!r} is)"
      )


def _activation(raw: Raw, key: str, path: Path) -> str:
  _demand(raw, path, **{key: tuple(ACTIVATIONS)})
  return ACTIVATIONS[raw[key]]


def _gpt2(raw: Raw, path: Path) -> GPTConfig:
  _demand(
    raw,
    path,
    scale_attn_weights=(True,),
    scale_attn_by_inverse_layer_idx=(False,),
    add_cross_attention=(False,),
  )
  width = _size(raw, "n_embd", path)
  inner = _size({"n_inner": 4 * width} | raw, "n_inner", path)
  return GPTConfig(
    vocab_size=_size(raw, "vocab_size", path),
    context=_size(raw, "n_positions", path),
    width=width,
    depth=_size(raw, "n_layer", path),
    heads=_size(raw, "n_head", path),
    norm_eps=_number(raw, "layer_norm_epsilon", path),
    tied=bool(raw["tie_word_embeddings"]),
    mlp=0 if inner == 4 * width else inner,
    activation=_activation(raw, "activation_function", path),
  )


def _rotary_gpt(raw: Raw, path: Path, share: str, base: str) -> dict[str, Any]:
  """What GPT-NeoX and Phi name alike."""
  width, heads = _size(raw, "hidden_size", path), _size(raw, "num_attention_heads", path)
  rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
  _demand(rope, path, rope_type=("default",), type=("default",))
  inner = _size(raw, "intermediate_size", path)
  return {
    "vocab_size": _size(raw, "vocab_size", path),
    "context": _size(raw, "max_position_embeddings", path),
    "width": width,
    "depth": _size(raw, "num_hidden_layers", path),
    "heads": heads,
    "norm_eps": _number(raw, "layer_norm_eps", path),
    "tied": bool(raw["tie_word_embeddings"]),
    "model_type": raw["model_type"],
    "mlp": 0 if inner == 4 * width else inner,
    "activation": _activation(raw, "hidden_act", path),
    "rotary": int(
      width
      // heads
      * _number(raw | {share: rope.get("partial_rotary_factor", raw[share])}, share, path)
    ),
    "rope_base": float(rope.get("rope_theta", raw.get(base, 10_000.0))),
  }


def _neox(raw: Raw, path: Path) -> GPTConfig:
  _demand(raw, path, attention_bias=(True,))
  common = _rotary_gpt(raw, path, "rotary_pct", "rotary_emb_base")
  return GPTConfig(**common, parallel=bool(raw["use_parallel_residual"]))


def _phi(raw: Raw, path: Path) -> GPTConfig:
  heads = (raw.get("num_attention_heads"),)
  _demand(raw, path, qk_layernorm=(False,), num_key_value_heads=heads, tie_word_embeddings=(False,))
  common = _rotary_gpt(raw, path, "partial_rotary_factor", "rope_theta")
  return GPTConfig(**common, parallel=True, one_norm=True, head_bias=True)


def _llama(raw: Raw, path: Path) -> LlamaConfig:
  """Llama and all that follow its names."""
  kind = raw["model_type"]
  width, heads = _size(raw, "hidden_size", path), _size(raw, "num_attention_heads", path)
  head_width = _size({"head_dim": width // heads} | raw, "head_dim", path)
  depth = _size(raw, "num_hidden_layers", path)
  if kind == "gemma":  # its first files say "gelu" and mean the tanh form
    _demand(
      raw, path, hidden_act=("gelu_pytorch_tanh", "gelu"), hidden_activation=("gelu_pytorch_tanh",)
    )
    raw = raw | {"hidden_act": "gelu_pytorch_tanh"}
  biased = kind not in ("mistral", "qwen2", "phi3") and bool(raw.get("attention_bias"))
  query = (
    _size(raw, "query_pre_attn_scalar", path) if kind in ("gemma2", "gemma3_text") else head_width
  )
  letters = _letters(raw, depth, path)
  config = LlamaConfig(
    vocab_size=_size(raw, "vocab_size", path),
    context=_size(raw, "max_position_embeddings", path),
    width=width,
    depth=depth,
    heads=heads,
    kv_heads=_size({"num_key_value_heads": heads} | raw, "num_key_value_heads", path),
    mlp=_size(raw, "intermediate_size", path),
    norm_eps=_number(raw, "rms_norm_eps", path),
    tied=bool(raw["tie_word_embeddings"]),
    model_type=kind,
    head_width=0 if head_width * heads == width else head_width,
    activation=_activation(
      raw, "hidden_activation" if "hidden_activation" in DEFAULTS[kind] else "hidden_act", path
    ),
    query_width=0 if query == head_width else query,
    softcap=float(raw.get("attn_logit_softcapping") or 0.0),
    logit_softcap=float(raw.get("final_logit_softcapping") or 0.0),
    pattern=cycle(letters),
    window=_size(raw, "sliding_window", path) if "L" in letters else 0,
    **_rope(raw, head_width, path),
  )
  features: dict[str, Any] = {"qkv_bias": biased, "o_bias": biased}
  features["mlp_bias"] = kind in ("llama", "smollm3") and bool(raw.get("mlp_bias"))
  return dataclasses.replace(config, **features | FEATURES.get(kind, {}))


def _letters(raw: Raw, depth: int, path: Path) -> str:
  """The letter of each layer (`LlamaConfig.pattern`)."""
  kind = raw["model_type"]
  window = raw.get("sliding_window")
  if kind == "smollm3":
    _demand(raw, path, use_sliding_window=(False,))
    turned = raw.get("no_rope_layers") or [
      (i + 1) % raw["no_rope_layer_interval"] for i in range(depth)
    ]
    return "".join("G" if turns else "N" for turns in turned[:depth])
  if kind in ("mistral", "phi3"):
    return ("L" if window else "G") * depth
  if kind in ("qwen2", "qwen3"):
    if not window or not raw.get("use_sliding_window"):
      return "G" * depth
    default = ["G" if i < raw["max_window_layers"] else "L" for i in range(depth)]
  elif kind in ("gemma2", "gemma3_text"):
    default = ["L" if (i + 1) % raw["sliding_window_pattern"] else "G" for i in range(depth)]
  else:
    return "G" * depth
  named = raw.get("layer_types") or []
  if set(named) - set(LETTERS) or (named and len(named) != depth):
    raise UserError(
      f"{path}: 'layer_types' is {named!r}; give {' or '.join(LETTERS)} for each of {depth} layers"
    )
  return "".join([LETTERS[name] for name in named] or default)


def cycle(letters: str) -> str:
  """The shortest beginning that repeats to the whole."""
  for n in range(1, len(letters)):
    if (letters[:n] * len(letters))[: len(letters)] == letters:
      return letters[:n]
  return letters


def _rope(raw: Raw, head_width: int, path: Path) -> dict[str, Any]:
  """The settings of the rotation.  Newer files say `rope_parameters`, older ones `rope_theta` and
  `rope_scaling`.
  """
  rope = raw.get("rope_parameters") or {}
  local: dict[str, Any] = {}
  if raw["model_type"] == "gemma3_text":
    local = rope.get("sliding_attention") or {}
    _demand(local, path, rope_type=("default",))
    local = {"local_rope_base": float(local.get("rope_theta", raw["rope_local_base_freq"]))}
    rope = rope.get("full_attention") or {}
  for scaled in (
    rope,
    raw.get("rope_scaling") or {},
  ):  # an older file's stands above, and names its type otherwise
    named = {"rope_type": scaled["type"]} if "type" in scaled and "rope_type" not in scaled else {}
    rope = rope | scaled | named
  scaling = rope.get("rope_type", "default")
  if scaling not in ("default", "linear", "llama3"):
    raise UserError(
      f"{path}: 'rope_type' is {scaling!r}; this variant is not implemented (default, linear and "
      "llama3 are)"
    )
  share = float(rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)))
  found: dict[str, Any] = {"rope_base": float(rope.get("rope_theta", raw["rope_theta"])), **local}
  if int(head_width * share) != head_width:
    found["rotary"] = int(head_width * share)
  if scaling != "default":
    found |= {"rope_scaling": scaling, "rope_factor": _number(rope, "factor", path)}
  if scaling == "llama3":
    found["rope_low"] = _number(rope, "low_freq_factor", path)
    found["rope_high"] = _number(rope, "high_freq_factor", path)
    found["rope_context"] = _size(rope, "original_max_position_embeddings", path)
  return found


# --- writing ---


def render(config: Config, dtype: str) -> Raw:
  """The content of `config.json`.  Raises UserError where the family has no words for a setting."""
  c = config
  if c.model_type not in CLASSES:
    raise UserError(f"model_type is {c.model_type!r}: choose one of {', '.join(CLASSES)}")
  architecture = (
    "GPT2LMHeadModel" if c.model_type == "gpt2" else f"{CLASSES[c.model_type]}ForCausalLM"
  )
  raw = {
    "model_type": c.model_type,
    "architectures": [architecture],
    "vocab_size": c.vocab_size,
    "tie_word_embeddings": c.tied,
    "dtype": dtype,
    "torch_dtype": dtype,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
  }
  raw |= _render_gpt(c) if isinstance(c, GPTConfig) else _render_llama(c)
  back = parse(raw, Path(CONFIG))
  lost = [
    f"{f.name}={getattr(c, f.name)!r}"
    for f in dataclasses.fields(c)
    if f.name not in RUN and getattr(c, f.name) != getattr(back, f.name, None)
  ]
  if lost:
    raise UserError(
      f"a model of type '{c.model_type}' cannot have {', '.join(lost)}: set another model_type"
    )
  return raw


def _render_gpt(c: GPTConfig) -> Raw:
  name = {"gelu_tanh": "gelu_new"}.get(c.activation, c.activation)
  if c.model_type == "gpt2":
    return {
      "n_positions": c.context,
      "n_embd": c.width,
      "n_layer": c.depth,
      "n_head": c.heads,
      "n_inner": c.mlp or None,
      "activation_function": name,
      "layer_norm_epsilon": c.norm_eps,
      "resid_pdrop": c.dropout,
      "embd_pdrop": 0.0,
      "attn_pdrop": 0.0,
    }
  share = c.rotary / (c.width // c.heads)
  common = {
    "max_position_embeddings": c.context,
    "hidden_size": c.width,
    "num_hidden_layers": c.depth,
    "num_attention_heads": c.heads,
    "intermediate_size": c.mlp or 4 * c.width,
    "hidden_act": name,
    "layer_norm_eps": c.norm_eps,
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": c.rope_base,
      "partial_rotary_factor": share,
    },
    "attention_dropout": 0.0,
  }
  if c.model_type == "phi":
    phi = {
      "partial_rotary_factor": share,
      "rope_theta": c.rope_base,
      "qk_layernorm": False,
      "resid_pdrop": c.dropout,
    }
    return common | phi | {"num_key_value_heads": c.heads}
  return common | {
    "rotary_pct": share,
    "rotary_emb_base": c.rope_base,
    "use_parallel_residual": c.parallel,
    "attention_bias": True,
    "hidden_dropout": c.dropout,
  }


def _render_llama(c: LlamaConfig) -> Raw:
  kind, head_width = c.model_type, c.head_width or c.width // c.heads
  names = {"gelu_tanh": "gelu_pytorch_tanh"}
  letters = (c.pattern * c.depth)[: c.depth]
  raw: Raw = {
    "max_position_embeddings": c.context,
    "hidden_size": c.width,
    "num_hidden_layers": c.depth,
    "num_attention_heads": c.heads,
    "num_key_value_heads": c.kv_heads,
    "head_dim": head_width,
    "intermediate_size": c.mlp,
    "hidden_act": names.get(c.activation, c.activation),
    "rms_norm_eps": c.norm_eps,
    "attention_dropout": 0.0,
  }
  raw |= _render_rope(c, head_width)
  if kind in ("llama", "smollm3"):
    raw |= {"attention_bias": c.o_bias, "mlp_bias": c.mlp_bias}
  if kind in ("qwen3", "gemma", "gemma2", "gemma3_text"):
    raw |= {"attention_bias": c.o_bias}
  if kind in ("gemma2", "gemma3_text"):
    raw |= {
      "hidden_activation": raw.pop("hidden_act"),
      "query_pre_attn_scalar": c.query_width or head_width,
    }
    raw |= {
      "attn_logit_softcapping": c.softcap or None,
      "final_logit_softcapping": c.logit_softcap or None,
    }
  if kind == "smollm3":
    raw |= {
      "no_rope_layers": [int(letter != "N") for letter in letters],
      "use_sliding_window": False,
    }
  if kind in ("mistral", "phi3"):
    raw |= {"sliding_window": c.window or None}
  if kind in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
    words = {letter: word for word, letter in LETTERS.items()}
    raw |= {
      "layer_types": [words.get(letter, letter) for letter in letters],
      "sliding_window": c.window or None,
    }
  if kind in ("qwen2", "qwen3"):
    full = len(letters) - len(letters.lstrip("G"))
    raw |= {"use_sliding_window": "L" in letters, "max_window_layers": full}
  if kind == "gemma3_text":
    raw |= {"sliding_window_pattern": len(c.pattern)}
  return raw


def _render_rope(c: LlamaConfig, head_width: int) -> Raw:
  rope: Raw = {
    "rope_type": "default" if c.rope_scaling == "none" else c.rope_scaling,
    "rope_theta": c.rope_base,
  }
  if c.rope_scaling != "none":
    rope["factor"] = c.rope_factor
  if c.rope_scaling == "llama3":
    rope |= {"low_freq_factor": c.rope_low, "high_freq_factor": c.rope_high}
    rope["original_max_position_embeddings"] = c.rope_context
  share = {"partial_rotary_factor": c.rotary / head_width} if c.rotary else {}
  older: Raw = {"rope_theta": c.rope_base, **share}
  if c.rope_scaling != "none":
    older["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
  if c.model_type != "gemma3_text":
    return older | {"rope_parameters": rope | share}
  local = {"rope_type": "default", "rope_theta": c.local_rope_base}
  both = {"full_attention": rope, "sliding_attention": local}
  return older | {"rope_local_base_freq": c.local_rope_base, "rope_parameters": both}
