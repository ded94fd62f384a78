"""The names of the tensors of each public family, and which parameters they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable

from instructjax.models.gpt import GPTConfig
from instructjax.models.llama import LlamaConfig
from instructjax.models.weights import Config, Tensor

# Where the tensors of the body of a model stand in the files of its language model.
PREFIX = {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}  # all others: "model."
UNEMBEDDING = {"gpt_neox": "embed_out"}  # all others: "lm_head"

# Tensors that change nothing: masks and tables of frequencies of older files, and the picture part
# of Gemma 3.
IGNORED = re.compile(
  r"(.*\.)?attn\.(masked_)?bias|.*\.attention\.(masked_)?bias|.*rotary_emb\.\w+|(model\.)?(vision_tower|multi_modal_projector)\..*"
)


def body(c: Config) -> tuple[Tensor, ...]:
  """Every tensor of a model but the unembedding, in the order of its layers."""
  found = (
    {"gpt2": gpt2, "gpt_neox": gpt_neox, "phi": phi}[c.model_type]()
    if isinstance(c, GPTConfig)
    else llama(c)
  )
  return tuple(tensor._replace(name=prefix(c) + tensor.name) for tensor in found)


def prefix(c: Config) -> str:
  """What stands before the names of the body of a model."""
  return PREFIX.get(c.model_type, "model.")


def head(c: Config) -> tuple[Tensor, ...]:
  """The tensors of the unembedding; none where it is tied."""
  if c.tied:
    return ()
  name = UNEMBEDDING.get(c.model_type, "lm_head")
  biased = isinstance(c, GPTConfig) and c.head_bias
  bias = (Tensor(f"{name}.bias", ("head/b",)),) if biased else ()
  return (Tensor(f"{name}.weight", ("head/w",), turned=True), *bias)


def gpt2() -> Iterable[Tensor]:
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
  fused = "layers.{}.attention.query_key_value"
  yield Tensor("embed_in.weight", ("embed/tokens",))
  yield from norm("layers.{}.input_layernorm", "blocks/attn_norm")
  yield Tensor(
    f"{fused}.weight", ("blocks/q/w", "blocks/k/w", "blocks/v/w"), turned=True, by_head=True
  )
  yield Tensor(f"{fused}.bias", ("blocks/q/b", "blocks/k/b", "blocks/v/b"), by_head=True)
  yield from linear("layers.{}.attention.dense", "blocks/o")
  yield from norm("layers.{}.post_attention_layernorm", "blocks/mlp_norm")
  yield from linear("layers.{}.mlp.dense_h_to_4h", "blocks/up")
  yield from linear("layers.{}.mlp.dense_4h_to_h", "blocks/down")
  yield from norm("final_layer_norm", "norm")


def phi() -> Iterable[Tensor]:
  yield Tensor("embed_tokens.weight", ("embed/tokens",))
  yield from norm("layers.{}.input_layernorm", "blocks/attn_norm")
  for name in ("q", "k", "v"):
    yield from linear(f"layers.{{}}.self_attn.{name}_proj", f"blocks/{name}")
  yield from linear("layers.{}.self_attn.dense", "blocks/o")
  yield from linear("layers.{}.mlp.fc1", "blocks/up")
  yield from linear("layers.{}.mlp.fc2", "blocks/down")
  yield from norm("final_layernorm", "norm")


def llama(c: LlamaConfig) -> Iterable[Tensor]:
  """Llama and the many that follow its names."""
  layer = "layers.{}."
  yield Tensor("embed_tokens.weight", ("embed/tokens",))
  yield from norm(f"{layer}input_layernorm", "blocks/attn_norm", bias=False)
  if c.model_type == "phi3":
    yield Tensor(
      f"{layer}self_attn.qkv_proj.weight", ("blocks/q/w", "blocks/k/w", "blocks/v/w"), turned=True
    )
  else:
    for name in ("q", "k", "v"):
      yield from linear(f"{layer}self_attn.{name}_proj", f"blocks/{name}", bias=c.qkv_bias)
  if c.qk_norm:
    yield from norm(f"{layer}self_attn.q_norm", "blocks/q_norm", bias=False)
    yield from norm(f"{layer}self_attn.k_norm", "blocks/k_norm", bias=False)
  yield from linear(f"{layer}self_attn.o_proj", "blocks/o", bias=c.o_bias)
  if c.post_norm:
    yield from norm(f"{layer}post_attention_layernorm", "blocks/attn_post", bias=False)
    yield from norm(f"{layer}pre_feedforward_layernorm", "blocks/mlp_norm", bias=False)
    yield from norm(f"{layer}post_feedforward_layernorm", "blocks/mlp_post", bias=False)
  else:
    yield from norm(f"{layer}post_attention_layernorm", "blocks/mlp_norm", bias=False)
  if c.model_type == "phi3":
    yield Tensor(f"{layer}mlp.gate_up_proj.weight", ("blocks/gate/w", "blocks/up/w"), turned=True)
  else:
    yield from linear(f"{layer}mlp.gate_proj", "blocks/gate", bias=c.mlp_bias)
    yield from linear(f"{layer}mlp.up_proj", "blocks/up", bias=c.mlp_bias)
  yield from linear(f"{layer}mlp.down_proj", "blocks/down", bias=c.mlp_bias)
  yield from norm("norm", "norm", bias=False)


def norm(name: str, leaf: str, *, bias: bool = True) -> Iterable[Tensor]:
  yield Tensor(f"{name}.weight", (f"{leaf}/scale",))
  if bias:
    yield Tensor(f"{name}.bias", (f"{leaf}/bias",))


def linear(name: str, leaf: str, *, bias: bool = True) -> Iterable[Tensor]:
  """A torch Linear."""
  yield Tensor(f"{name}.weight", (f"{leaf}/w",), turned=True)
  if bias:
    yield Tensor(f"{name}.bias", (f"{leaf}/b",))


def conv(name: str, leaf: str) -> Iterable[Tensor]:
  """GPT-2's Conv1D, whose matrix is [I, O]."""
  yield Tensor(f"{name}.weight", (f"{leaf}/w",))
  yield Tensor(f"{name}.bias", (f"{leaf}/b",))
