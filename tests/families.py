"""One small model of each public family, with every setting that sets it apart."""

from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig

_SIZES = {"vocab_size": 97, "context": 64, "width": 48, "depth": 3, "heads": 4}
_LLAMA = _SIZES | {"kv_heads": 2, "mlp": 80, "norm_eps": 1e-6}
_GEMMA = {
  "activation": "gelu_tanh",
  "norm_offset": 1.0,
  "embed_scaled": True,
  "head_width": 16,
  "tied": True,
}
_LLAMA3 = {
  "rope_scaling": "llama3",
  "rope_factor": 8.0,
  "rope_context": 16,
  "rope_low": 1.0,
  "rope_high": 4.0,
}

FAMILIES = {
  "gpt2": GPTConfig(**_SIZES),
  "gpt2-untied": GPTConfig(**_SIZES, tied=False, mlp=100),
  "gpt_neox": GPTConfig(
    **_SIZES, model_type="gpt_neox", activation="gelu", rotary=6, parallel=True, tied=False
  ),
  "gpt_neox-serial-tied": GPTConfig(
    **_SIZES, model_type="gpt_neox", activation="gelu_tanh", rotary=4, rope_base=5e3, mlp=100
  ),
  "phi": GPTConfig(
    **_SIZES, model_type="phi", rotary=6, parallel=True, one_norm=True, tied=False, head_bias=True
  ),
  "llama": LlamaConfig(**_LLAMA, rope_base=5e4),
  "llama3": LlamaConfig(**_LLAMA, tied=False, rope_base=5e5, **_LLAMA3),
  "llama-biases": LlamaConfig(
    **_LLAMA,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    head_width=16,
    rope_scaling="linear",
    rope_factor=4.0,
  ),
  "smollm3": LlamaConfig(
    **_LLAMA | {"depth": 4}, model_type="smollm3", pattern="GGGN", rope_base=2e6
  ),
  "mistral": LlamaConfig(**_LLAMA, model_type="mistral", pattern="L", window=5, tied=False),
  "qwen2": LlamaConfig(**_LLAMA, model_type="qwen2", qkv_bias=True, rope_base=1e6),
  "qwen2-window": LlamaConfig(
    **_LLAMA, model_type="qwen2", qkv_bias=True, pattern="GLL", window=4, tied=False
  ),
  "qwen3": LlamaConfig(**_LLAMA, model_type="qwen3", qk_norm=True, head_width=16, rope_base=1e6),
  "gemma": LlamaConfig(**_LLAMA, **_GEMMA, model_type="gemma"),
  "gemma2": LlamaConfig(
    **_LLAMA | {"depth": 4},
    **_GEMMA,
    model_type="gemma2",
    post_norm=True,
    softcap=5.0,
    logit_softcap=3.0,
    pattern="LG",
    window=5,
    query_width=24,
  ),
  "gemma3": LlamaConfig(
    **_LLAMA | {"depth": 4},
    **_GEMMA,
    model_type="gemma3_text",
    post_norm=True,
    qk_norm=True,
    pattern="LLG",
    window=5,
    rope_base=1e6,
    local_rope_base=1e4,
    rope_scaling="linear",
    rope_factor=8.0,
    query_width=24,
  ),
  "phi3": LlamaConfig(**_LLAMA, model_type="phi3", pattern="L", window=6, tied=False),
}
