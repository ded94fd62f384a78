"""Reads `config.json` of each public family; `rendering` writes it.

Dropout, dtype, remat, unroll, sequence and attention are settings of a run, not of the weights:
reading leaves their defaults.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.models import checks
from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig
from instructjax.models.weights import Config
from instructjax.settings.fields import LARGEST, Limits
from instructjax.system import plain_json
from instructjax.system.plain_json import shown

Raw = dict[str, Any]  # the content of config.json
CONFIG = "config.json"

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

# What a family means where its config.json says nothing: the defaults of its class in
# `transformers`. First those that several families share.
_LAYER_NORM = {
  "layer_norm_eps": 1e-5,
  "tie_word_embeddings": False,
}
_RMS_NORM = {
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "hidden_act": "silu",
  "rope_theta": 10_000.0,
}
_GEMMA = {
  **_RMS_NORM,
  "tie_word_embeddings": True,
  "head_dim": 256,
}
_GEMMA_WITH_WINDOWS = {
  **_GEMMA,
  "sliding_window": 4096,
  "query_pre_attn_scalar": 256,
  "hidden_activation": "gelu_pytorch_tanh",
}
DEFAULTS: dict[str, Raw] = {
  "gpt2": {
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "activation_function": "gelu_new",
  },
  "gpt_neox": {
    **_LAYER_NORM,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
  },
  "phi": {
    **_LAYER_NORM,
    "hidden_act": "gelu_new",
    "partial_rotary_factor": 0.5,
  },
  "llama": _RMS_NORM,
  "smollm3": {
    **_RMS_NORM,
    "tie_word_embeddings": True,
    "rope_theta": 2_000_000.0,
    "no_rope_layer_interval": 4,
  },
  "mistral": {
    **_RMS_NORM,
    "sliding_window": 4096,
  },
  "qwen2": {
    **_RMS_NORM,
    "sliding_window": 4096,
    "max_window_layers": 28,
  },
  "qwen3": {
    **_RMS_NORM,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "head_dim": 128,
  },
  "gemma": {
    **_GEMMA,
    "hidden_act": "gelu_pytorch_tanh",
  },
  "gemma2": {
    **_GEMMA_WITH_WINDOWS,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "sliding_window_pattern": 2,
  },
  "gemma3_text": {
    **_GEMMA_WITH_WINDOWS,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
  },
  "phi3": {
    **_RMS_NORM,
    "rms_norm_eps": 1e-5,
  },
}
# Keys whose null does not mean "the default" but "none".
MAY_BE_NULL = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")

# What every model of a family has.
FEATURES: dict[str, dict[str, Any]] = {
  "qwen2": {"qkv_bias": True},
  "qwen3": {"qk_norm": True},
  "gemma": {"norm_offset": 1.0, "embed_scaled": True},
  "gemma2": {"norm_offset": 1.0, "embed_scaled": True, "post_norm": True},
  "gemma3_text": {
    "norm_offset": 1.0,
    "embed_scaled": True,
    "post_norm": True,
    "qk_norm": True,
  },
}

# The public names of activations, and ours.
ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "relu": "relu",
}
# The public names of layers, and their letters in `LlamaConfig.pattern`.
LETTERS = {"full_attention": "G", "sliding_attention": "L"}


def read_json(path: Path) -> Raw:
  """Returns the JSON object in a file.

  Raises:
    UserError: where there is none.
  """
  return plain_json.read_object(path, "give the folder of a saved model", "fetch it again")


def parse(raw: Raw, path: Path) -> Config:
  """Returns the configuration that the content of `config.json` describes.

  Of a Gemma 3 that also sees pictures, it is the configuration of the language model.

  Raises:
    UserError: for a missing or malformed key, another family, or a variant that would be computed
      differently.
  """
  if raw.get("model_type") == "gemma3":
    raw = _language_part(raw, path)
  kind = raw.get("model_type")
  if not isinstance(kind, str) or kind not in CLASSES:
    raise UserError(
      f"{path}: model_type is {shown(kind)}; the families that can be read are {', '.join(CLASSES)}"
    )
  _demand(
    raw,
    path,
    quantization_config=(None,),
    use_bidirectional_attention=(False, None),
  )
  # A null says nothing, with few exceptions.
  stated = {key: value for key, value in raw.items() if value is not None or key in MAY_BE_NULL}
  filled = DEFAULTS[kind] | stated
  parsers = {"gpt2": _parse_gpt2, "gpt_neox": _parse_neox, "phi": _parse_phi}
  parse_family = parsers.get(kind, _parse_llama)
  config = parse_family(filled, path)
  checks.heads(config, path)
  return config


def _language_part(raw: Raw, path: Path) -> Raw:
  """Returns the part of a Gemma 3 with pictures that describes its language model."""
  part = {}
  # The outer object says whether the unembedding is tied, unless the inner one does.
  if "tie_word_embeddings" in raw:
    part["tie_word_embeddings"] = raw["tie_word_embeddings"]
  part |= checks.mapping(raw.get("text_config"), "text_config", path)
  part["model_type"] = "gemma3_text"
  return part


# --- checked values ---


def _size(
  raw: Raw,
  key: str,
  path: Path,
  default: int | None = None,
  high: int = LARGEST,
) -> int:
  """Returns a positive whole number."""
  return checks.size(raw.get(key, default), key, path, high)


def _number(raw: Raw, key: str, path: Path, limits: Limits) -> float:
  """Returns a number within limits."""
  return checks.number(raw.get(key), key, path, limits)


def _flag(raw: Raw, key: str, path: Path) -> bool:
  """Returns true or false; a key that is left out is false."""
  return checks.flag(raw.get(key, False), key, path)


def _demand(raw: Raw, path: Path, **allowed: tuple[Any, ...]) -> None:
  """Checks that each key is absent or has one of the values that our model computes."""
  for key, values in allowed.items():
    if key not in raw:
      continue
    # To Python 1 is True and 1.0 is 1, but the file means something else.
    if not any(raw[key] == value and type(raw[key]) is type(value) for value in values):
      raise UserError(
        f"{path}: '{key}' is {shown(raw[key])}; this variant is not implemented (only "
        f"{values[0]!r} is)"
      )


def _activation(raw: Raw, key: str, path: Path) -> str:
  """Returns our name of an activation."""
  _demand(raw, path, **{key: tuple(ACTIVATIONS)})
  return ACTIVATIONS[raw[key]]


# --- GPT-2, GPT-NeoX and Phi ---


def _parse_gpt2(raw: Raw, path: Path) -> GPTConfig:
  _demand(
    raw,
    path,
    scale_attn_weights=(True,),
    scale_attn_by_inverse_layer_idx=(False,),
    add_cross_attention=(False,),
  )
  width = _size(raw, "n_embd", path)
  hidden_units = _size(raw, "n_inner", path, default=4 * width)
  return GPTConfig(
    vocab_size=_size(raw, "vocab_size", path),
    context=_size(raw, "n_positions", path),
    width=width,
    depth=_size(raw, "n_layer", path, high=checks.DEEPEST),
    heads=_size(raw, "n_head", path),
    norm_eps=_number(raw, "layer_norm_epsilon", path, checks.EPSILON),
    tied=_flag(raw, "tie_word_embeddings", path),
    # In our configurations 0 stands for the usual value, here and below.
    mlp=0 if hidden_units == 4 * width else hidden_units,
    activation=_activation(raw, "activation_function", path),
  )


def _parse_neox(raw: Raw, path: Path) -> GPTConfig:
  _demand(raw, path, attention_bias=(True,))
  common = _rotary_gpt(raw, path, share_key="rotary_pct", base_key="rotary_emb_base")
  return GPTConfig(**common, parallel=_flag(raw, "use_parallel_residual", path))


def _parse_phi(raw: Raw, path: Path) -> GPTConfig:
  heads = raw.get("num_attention_heads")
  _demand(
    raw,
    path,
    qk_layernorm=(False,),
    num_key_value_heads=(heads,),
    tie_word_embeddings=(False,),
  )
  common = _rotary_gpt(raw, path, share_key="partial_rotary_factor", base_key="rope_theta")
  return GPTConfig(**common, parallel=True, one_norm=True, head_bias=True)


def _rotary_gpt(
  raw: Raw,
  path: Path,
  *,
  share_key: str,
  base_key: str,
) -> dict[str, Any]:
  """Returns the settings that GPT-NeoX and Phi have in common.

  The two name the share of rotated features and the base of the rotation differently. Newer files
  have both under "rope_parameters".
  """
  width = _size(raw, "hidden_size", path)
  heads = _size(raw, "num_attention_heads", path)
  newer = checks.mapping(raw.get("rope_parameters"), "rope_parameters", path)
  older = checks.mapping(raw.get("rope_scaling"), "rope_scaling", path)
  rope = newer or older
  _demand(rope, path, rope_type=("default",), type=("default",))
  hidden_units = _size(raw, "intermediate_size", path)
  shares = {share_key: rope.get("partial_rotary_factor", raw[share_key])}
  share = _number(shares, share_key, path, checks.SHARE)
  bases = {base_key: rope.get("rope_theta", raw.get(base_key, 10_000.0))}
  return {
    "vocab_size": _size(raw, "vocab_size", path),
    "context": _size(raw, "max_position_embeddings", path),
    "width": width,
    "depth": _size(raw, "num_hidden_layers", path, high=checks.DEEPEST),
    "heads": heads,
    "norm_eps": _number(raw, "layer_norm_eps", path, checks.EPSILON),
    "tied": _flag(raw, "tie_word_embeddings", path),
    "model_type": raw["model_type"],
    "mlp": 0 if hidden_units == 4 * width else hidden_units,
    "activation": _activation(raw, "hidden_act", path),
    "rotary": _rotary(width // heads, share, share_key, path),
    "rope_base": _number(bases, base_key, path, checks.BASE),
  }


def _rotary(head_width: int, share: float, key: str, path: Path) -> int:
  """Returns how many features of a head are rotated, which is an even number of them."""
  rotary = int(head_width * share)
  if rotary < 2 or rotary % 2:
    raise UserError(
      f"{path}: '{key}' is {share:g}, which rotates {rotary} of the {head_width} features of a "
      "head; features rotate in pairs"
    )
  return rotary


# --- Llama and all that follow its names ---


def _parse_llama(raw: Raw, path: Path) -> LlamaConfig:
  kind = raw["model_type"]
  width = _size(raw, "hidden_size", path)
  heads = _size(raw, "num_attention_heads", path)
  head_width = _size(raw, "head_dim", path, default=width // heads)
  depth = _size(raw, "num_hidden_layers", path, high=checks.DEEPEST)
  if kind == "gemma":
    # Its first files say "gelu" and mean the tanh form.
    tanh_form = "gelu_pytorch_tanh"
    _demand(raw, path, hidden_act=(tanh_form, "gelu"), hidden_activation=(tanh_form,))
    raw = {**raw, "hidden_act": tanh_form}
  # Families whose classes do not read these keys may still have them in their files.
  reads_attention_bias = kind not in ("mistral", "qwen2", "phi3")
  attention_bias = reads_attention_bias and _flag(raw, "attention_bias", path)
  mlp_bias = kind in ("llama", "smollm3") and _flag(raw, "mlp_bias", path)
  query_width = head_width
  if kind in ("gemma2", "gemma3_text"):
    query_width = _size(raw, "query_pre_attn_scalar", path)
  # A family whose defaults have "hidden_activation" reads that key.
  has_new_key = "hidden_activation" in DEFAULTS[kind]
  activation_key = "hidden_activation" if has_new_key else "hidden_act"
  letters = _letters(raw, depth, path)
  config = LlamaConfig(
    vocab_size=_size(raw, "vocab_size", path),
    context=_size(raw, "max_position_embeddings", path),
    width=width,
    depth=depth,
    heads=heads,
    kv_heads=_size(raw, "num_key_value_heads", path, default=heads),
    mlp=_size(raw, "intermediate_size", path),
    norm_eps=_number(raw, "rms_norm_eps", path, checks.EPSILON),
    tied=_flag(raw, "tie_word_embeddings", path),
    model_type=kind,
    head_width=0 if head_width * heads == width else head_width,
    activation=_activation(raw, activation_key, path),
    qkv_bias=attention_bias,
    o_bias=attention_bias,
    mlp_bias=mlp_bias,
    query_width=0 if query_width == head_width else query_width,
    softcap=_cap(raw, "attn_logit_softcapping", path),
    logit_softcap=_cap(raw, "final_logit_softcapping", path),
    pattern=cycle(letters),
    window=_size(raw, "sliding_window", path) if "L" in letters else 0,
    **_rope(raw, head_width, path),
  )
  return dataclasses.replace(config, **FEATURES.get(kind, {}))


def _cap(raw: Raw, key: str, path: Path) -> float:
  """Returns the soft cap of scores; 0, null and what is left out are none."""
  value = raw.get(key)
  return 0.0 if value is None else checks.number(value, key, path, checks.CAP)


def _letters(raw: Raw, depth: int, path: Path) -> str:
  """Returns the letter of each layer (`LlamaConfig.pattern`)."""
  kind = raw["model_type"]
  window = raw.get("sliding_window")
  all_full = "G" * depth
  if kind == "smollm3":
    return _rotated_letters(raw, depth, path)
  if kind in ("mistral", "phi3"):
    return "L" * depth if window else all_full
  if kind in ("qwen2", "qwen3"):
    if not window or not _flag(raw, "use_sliding_window", path):
      return all_full
    # The lower layers attend to everything.
    full_layers = checks.number(
      raw["max_window_layers"], "max_window_layers", path, Limits(low=0, high=LARGEST)
    )
    default = ["G" if i < full_layers else "L" for i in range(depth)]
  elif kind in ("gemma2", "gemma3_text"):
    # The last layer of each cycle attends to everything.
    period = _size(raw, "sliding_window_pattern", path)
    default = ["G" if (i + 1) % period == 0 else "L" for i in range(depth)]
  else:
    return all_full
  # Newer files name the type of each layer.
  names = checks.items(raw.get("layer_types"), "layer_types", path)
  has_unknown = any(name not in tuple(LETTERS) for name in names)
  if has_unknown or (names and len(names) != depth):
    raise UserError(
      f"{path}: 'layer_types' is {shown(names)}; give {' or '.join(LETTERS)} for each "
      f"of {depth} layers"
    )
  return "".join([LETTERS[name] for name in names] or default)


def _rotated_letters(raw: Raw, depth: int, path: Path) -> str:
  """Returns the letters of a SmolLM3, of which some layers have no positions."""
  _demand(raw, path, use_sliding_window=(False,))
  # In spite of its name, 1 means that a layer is rotated.
  is_rotated = checks.items(raw.get("no_rope_layers"), "no_rope_layers", path)
  if not is_rotated:
    interval = _size(raw, "no_rope_layer_interval", path)
    is_rotated = [min((i + 1) % interval, 1) for i in range(depth)]
  if len(is_rotated) < depth or any(value not in (0, 1) for value in is_rotated):
    raise UserError(
      f"{path}: 'no_rope_layers' is {shown(is_rotated)}; give 0 or 1 for each of {depth} layers"
    )
  return "".join("G" if rotated else "N" for rotated in is_rotated[:depth])


def cycle(letters: str) -> str:
  """Returns the shortest beginning that repeats to the whole."""
  for length in range(1, len(letters)):
    repeated = letters[:length] * len(letters)
    if repeated[: len(letters)] == letters:
      return letters[:length]
  return letters


def _rope(raw: Raw, head_width: int, path: Path) -> dict[str, Any]:
  """Returns the settings of the rotation.

  Newer files have them under "rope_parameters"; older ones have "rope_theta" and "rope_scaling".
  """
  rope = checks.mapping(raw.get("rope_parameters"), "rope_parameters", path)
  settings: dict[str, Any] = {}
  if raw["model_type"] == "gemma3_text":
    # It has one rotation for each kind of layer.
    local = checks.mapping(rope.get("sliding_attention"), "sliding_attention", path)
    _demand(local, path, rope_type=("default",))
    local_base = local.get("rope_theta", raw["rope_local_base_freq"])
    settings["local_rope_base"] = checks.number(
      local_base, "rope_local_base_freq", path, checks.BASE
    )
    rope = checks.mapping(rope.get("full_attention"), "full_attention", path)
  rope = _with_rope_type(rope)
  # Where a file has both, the older words win.
  rope |= _with_rope_type(checks.mapping(raw.get("rope_scaling"), "rope_scaling", path))
  scaling = rope.get("rope_type", "default")
  if scaling not in ("default", "linear", "llama3"):
    raise UserError(
      f"{path}: 'rope_type' is {shown(scaling)}; this variant is not implemented (default, linear "
      "and llama3 are)"
    )
  base = rope.get("rope_theta", raw["rope_theta"])
  settings["rope_base"] = checks.number(base, "rope_theta", path, checks.BASE)
  share_key = "partial_rotary_factor"
  share = rope.get(share_key, raw.get(share_key, 1.0))
  share = checks.number(share, share_key, path, checks.SHARE)
  rotary = _rotary(head_width, share, share_key, path)
  # 0, which is the default, means that all features are rotated.
  if rotary != head_width:
    settings["rotary"] = rotary
  if scaling != "default":
    settings["rope_scaling"] = scaling
    settings["rope_factor"] = _number(rope, "factor", path, checks.FACTOR)
  if scaling == "llama3":
    low = _number(rope, "low_freq_factor", path, checks.FACTOR)
    # The frequencies in between are those from `low` to `high`.
    high = _number(rope, "high_freq_factor", path, Limits(above=low, high=1e9))
    settings["rope_low"] = low
    settings["rope_high"] = high
    settings["rope_context"] = _size(rope, "original_max_position_embeddings", path)
  return settings


def _with_rope_type(scaling: Raw) -> Raw:
  """Returns a copy that has its type under "rope_type"; older files call it "type"."""
  scaling = dict(scaling)
  if "type" in scaling and "rope_type" not in scaling:
    scaling["rope_type"] = scaling["type"]
  return scaling
