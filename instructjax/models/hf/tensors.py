"""The names of the tensors of each public family, and which parameters they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable

from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig
from instructjax.models.weights import Config, Tensor

# What stands before the tensors of the body of a model in the files of its language model.
PREFIX = {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}  # all others: "model."
UNEMBEDDING = {"gpt_neox": "embed_out"}  # all others: "lm_head"

# Tensors that change nothing.
IGNORED = re.compile(
  "|".join(
    [
      # The causal masks of older files.
      r"(.*\.)?attn\.(masked_)?bias",
      r".*\.attention\.(masked_)?bias",
      # The tables of rotary frequencies of older files.
      r".*rotary_emb\.\w+",
      # The part of a Gemma 3 that sees pictures.
      r"(model\.)?(vision_tower|multi_modal_projector)\..*",
    ]
  )
)


def body(config: Config) -> tuple[Tensor, ...]:
  """Returns every tensor of a model but the unembedding, in the order of its layers."""
  if isinstance(config, LlamaConfig):
    family = llama(config)
  elif config.model_type == "gpt2":
    family = gpt2()
  else:
    family = {"gpt_neox": gpt_neox, "phi": phi}[config.model_type]()
  start = prefix(config)
  return tuple(tensor._replace(name=start + tensor.name) for tensor in family)


def prefix(config: Config) -> str:
  """Returns what stands before the names of the body of a model."""
  return PREFIX.get(config.model_type, "model.")


def head(config: Config) -> tuple[Tensor, ...]:
  """Returns the tensors of the unembedding; there are none where it is tied."""
  if config.tied:
    return ()
  name = UNEMBEDDING.get(config.model_type, "lm_head")
  weight = Tensor(f"{name}.weight", ("head/w",), turned=True)
  if isinstance(config, GPTConfig) and config.head_bias:
    return weight, Tensor(f"{name}.bias", ("head/b",))
  return (weight,)


# --- the families ---


def gpt2() -> Iterable[Tensor]:
  """Yields the tensors of GPT-2, whose matrices are [I, O]."""
  yield Tensor("wte.weight", ("embed/tokens",))
  yield Tensor("wpe.weight", ("embed/positions",))
  yield from norm("h.{}.ln_1", "blocks/attn_norm")
  yield Tensor("h.{}.attn.c_attn.weight", ("blocks/q/w", "blocks/k/w", "blocks/v/w"))
  yield Tensor("h.{}.attn.c_attn.bias", ("blocks/q/b", "blocks/k/b", "blocks/v/b"))
  yield from conv("h.{}.attn.c_proj", "blocks/o")
  yield from norm("h.{}.ln_2", "blocks/mlp_norm")
  yield from conv("h.{}.mlp.c_fc", "blocks/up")
  yield from conv("h.{}.mlp.c_proj", "blocks/down")
  yield from norm("ln_f", "norm")


def gpt_neox() -> Iterable[Tensor]:
  """Yields the tensors of GPT-NeoX, which joins queries, keys and values head by head."""
  fused = "layers.{}.attention.query_key_value"
  matrices = ("blocks/q/w", "blocks/k/w", "blocks/v/w")
  biases = ("blocks/q/b", "blocks/k/b", "blocks/v/b")
  yield Tensor("embed_in.weight", ("embed/tokens",))
  yield from norm("layers.{}.input_layernorm", "blocks/attn_norm")
  yield Tensor(f"{fused}.weight", matrices, turned=True, by_head=True)
  yield Tensor(f"{fused}.bias", biases, by_head=True)
  yield from linear("layers.{}.attention.dense", "blocks/o")
  yield from norm("layers.{}.post_attention_layernorm", "blocks/mlp_norm")
  yield from linear("layers.{}.mlp.dense_h_to_4h", "blocks/up")
  yield from linear("layers.{}.mlp.dense_4h_to_h", "blocks/down")
  yield from norm("final_layer_norm", "norm")


def phi() -> Iterable[Tensor]:
  """Yields the tensors of Phi, which has one norm a block."""
  yield Tensor("embed_tokens.weight", ("embed/tokens",))
  yield from norm("layers.{}.input_layernorm", "blocks/attn_norm")
  for name in ("q", "k", "v"):
    yield from linear(f"layers.{{}}.self_attn.{name}_proj", f"blocks/{name}")
  yield from linear("layers.{}.self_attn.dense", "blocks/o")
  yield from linear("layers.{}.mlp.fc1", "blocks/up")
  yield from linear("layers.{}.mlp.fc2", "blocks/down")
  yield from norm("final_layernorm", "norm")


def llama(config: LlamaConfig) -> Iterable[Tensor]:
  """Yields the tensors of Llama and the many families that follow its names."""
  layer = "layers.{}."
  # Phi-3 has these names too, but joins queries, keys and values, and the two halves of the MLP.
  is_fused = config.model_type == "phi3"
  yield Tensor("embed_tokens.weight", ("embed/tokens",))
  yield from norm(f"{layer}input_layernorm", "blocks/attn_norm", bias=False)
  if is_fused:
    matrices = ("blocks/q/w", "blocks/k/w", "blocks/v/w")
    yield Tensor(f"{layer}self_attn.qkv_proj.weight", matrices, turned=True)
  else:
    for name in ("q", "k", "v"):
      yield from linear(f"{layer}self_attn.{name}_proj", f"blocks/{name}", bias=config.qkv_bias)
  if config.qk_norm:
    yield from norm(f"{layer}self_attn.q_norm", "blocks/q_norm", bias=False)
    yield from norm(f"{layer}self_attn.k_norm", "blocks/k_norm", bias=False)
  yield from linear(f"{layer}self_attn.o_proj", "blocks/o", bias=config.o_bias)
  # With norms after both halves (Gemma 2), "post_attention" names the one after attention; in all
  # other families it names the one before the MLP.
  if config.post_norm:
    yield from norm(f"{layer}post_attention_layernorm", "blocks/attn_post", bias=False)
    yield from norm(f"{layer}pre_feedforward_layernorm", "blocks/mlp_norm", bias=False)
    yield from norm(f"{layer}post_feedforward_layernorm", "blocks/mlp_post", bias=False)
  else:
    yield from norm(f"{layer}post_attention_layernorm", "blocks/mlp_norm", bias=False)
  if is_fused:
    matrices = ("blocks/gate/w", "blocks/up/w")
    yield Tensor(f"{layer}mlp.gate_up_proj.weight", matrices, turned=True)
  else:
    yield from linear(f"{layer}mlp.gate_proj", "blocks/gate", bias=config.mlp_bias)
    yield from linear(f"{layer}mlp.up_proj", "blocks/up", bias=config.mlp_bias)
  yield from linear(f"{layer}mlp.down_proj", "blocks/down", bias=config.mlp_bias)
  yield from norm("norm", "norm", bias=False)


# --- the parts of a family ---


def norm(
  name: str,
  leaf: str,
  *,
  bias: bool = True,
) -> Iterable[Tensor]:
  """Yields the tensors of a LayerNorm, or without `bias` of an RMSNorm."""
  yield Tensor(f"{name}.weight", (f"{leaf}/scale",))
  if bias:
    yield Tensor(f"{name}.bias", (f"{leaf}/bias",))


def linear(
  name: str,
  leaf: str,
  *,
  bias: bool = True,
) -> Iterable[Tensor]:
  """Yields the tensors of a torch Linear, whose matrix is [O, I]."""
  yield Tensor(f"{name}.weight", (f"{leaf}/w",), turned=True)
  if bias:
    yield Tensor(f"{name}.bias", (f"{leaf}/b",))


def conv(name: str, leaf: str) -> Iterable[Tensor]:
  """Yields the tensors of GPT-2's Conv1D, whose matrix is [I, O]."""
  yield Tensor(f"{name}.weight", (f"{leaf}/w",))
  yield Tensor(f"{name}.bias", (f"{leaf}/b",))
