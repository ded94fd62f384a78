"""Models with RMSNorm, rotary positions and a gated MLP: Llama, and the many that resemble it.

Llama (Touvron et al. 2023) and SmolLM2 need no more than the defaults. By configuration a model
becomes a Mistral, Qwen 2 or 3, Gemma 1 to 3, Phi-3 or SmolLM3.

Dimensions: B rows, T tokens, D width, F hidden units of the MLP, H heads, K key/value heads, C head
width, L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from instructjax.errors import UserError
from instructjax.models import blocks, rope, transformer
from instructjax.types import LM, Array, Float, Int, Leaf, Params, PyTree


@dataclass(frozen=True)
class LlamaConfig:
  """Sizes and settings of a model; the defaults are Llama's.

  `pattern` has a letter for each layer, from the lowest, and starts again at its end: a layer G
  attends to everything before, L to the last `window` tokens, and N is a G without positions.
  Gemma 3 is "LLLLLG".
  """

  vocab_size: int
  context: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  mlp: int  # hidden units
  rope_base: float = 10_000.0
  norm_eps: float = 1e-5
  tied: bool = True  # the unembedding is the embedding
  dropout: float = 0.0  # residual, as in `gpt.GPTConfig`
  dtype: str = "float32"  # of the operands of matrix products
  stream: str = "float32"  # of the residual stream and what is added to it
  remat: str = "none"  # what the backward pass keeps, one of `transformer.REMAT`
  unroll: int = 1  # layers in one step of the scan
  sequence: bool = False  # splits what is kept between blocks along the sequence
  attention: str = "auto"  # who computes it, one of `attention.KINDS`
  # The public family, as `models.hf` reads and writes it; nothing is computed from it.
  model_type: str = "llama"
  head_width: int = 0  # 0 means width / heads
  activation: str = "silu"  # of `blocks.ACTIVATIONS`
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False  # RMSNorm on each head of queries and keys
  post_norm: bool = False  # RMSNorm on each half of a block before it is added
  norm_offset: float = 0.0  # added to the scale of every norm
  embed_scaled: bool = False  # embeddings times sqrt(width)
  # Scores are divided by the square root of this; 0 means the width of a head.
  query_width: int = 0
  softcap: float = 0.0  # of the scores; 0 means none
  logit_softcap: float = 0.0
  pattern: str = "G"
  window: int = 0
  rotary: int = 0  # features of each head that are rotated by their position; 0 means all
  rope_scaling: str = "none"  # of `rope.SCALINGS`, with the numbers that follow
  rope_factor: float = 1.0
  rope_low: float = 1.0
  rope_high: float = 4.0
  rope_context: int = 0
  # Base of the L layers, whose frequencies are then not stretched; 0 means as in other layers.
  local_rope_base: float = 0.0


SMOLLM2_135M = LlamaConfig(
  vocab_size=49_152,
  context=8192,
  width=576,
  depth=30,
  heads=9,
  kv_heads=3,
  mlp=1536,
  rope_base=100_000.0,
)
# Grattafiori et al. 2024, Table 3.
LLAMA3_8B = LlamaConfig(
  vocab_size=128_256,
  context=8192,
  width=4096,
  depth=32,
  heads=32,
  kv_heads=8,
  mlp=14_336,
  rope_base=500_000.0,
  tied=False,
)
# The same sizes, taught to read 16 times as much (section 3.4.2).
LLAMA31_8B = replace(
  LLAMA3_8B,
  context=131_072,
  rope_scaling="llama3",
  rope_factor=8.0,
  rope_context=8192,
)
# The config.json of Qwen/Qwen2.5-7B (Qwen Team 2024, arXiv 2412.15115, Table 1).
QWEN25_7B = LlamaConfig(
  vocab_size=152_064,
  context=131_072,
  width=3584,
  depth=28,
  heads=28,
  kv_heads=4,
  mlp=18_944,
  rope_base=1_000_000.0,
  norm_eps=1e-6,
  tied=False,
  model_type="qwen2",
  qkv_bias=True,
)


# --- parameters ---


def table(config: LlamaConfig) -> PyTree[Leaf]:
  """Returns every parameter: its shape, its logical axes and its initialiser.

  Weights are drawn from Normal(0, 0.02^2); those of projections into the residual stream have a
  standard deviation of 0.02 / sqrt(2L), as in GPT-2.
  """
  depth = config.depth
  D = config.width
  H = config.heads
  K = config.kv_heads
  C = head_width(config)
  F = config.mlp
  normal = transformer.normal(0.02)
  residual = transformer.normal(0.02 / (2 * depth) ** 0.5)
  # With an offset of 1 a scale of 0 makes the norm start as the plain norm.
  initial_scale = transformer.zeros if config.norm_offset else transformer.ones

  def layer(shape: tuple[int, ...], axes: tuple[str | None, ...], init: Any) -> Leaf:
    """Returns a matrix of the blocks, stacked over layers."""
    return Leaf((depth, *shape), ("layers", *axes), init)

  def vector(shape: tuple[int, ...], axes: tuple[str | None, ...], init: Any) -> Leaf:
    """Returns a bias or a scale of the blocks, stacked over layers."""
    return Leaf((depth, *shape), ("layers", *axes), init, decays=False)

  def norm(width: int) -> dict[str, Leaf]:
    return {"scale": vector((width,), (None,), initial_scale)}

  def projection(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: Any,
    *,
    outputs: int,
    biased: bool,
  ) -> dict[str, Leaf]:
    """Returns a matrix, and a bias over its last `outputs` axes where it is `biased`."""
    p = {"w": layer(shape, axes, init)}
    if biased:
      # The width of the model is split over the mesh in a matrix, but not in a bias.
      bias_axes = tuple(None if axis == "embed" else axis for axis in axes[-outputs:])
      p["b"] = vector(shape[-outputs:], bias_axes, transformer.zeros)
    return p

  def heads(count: int, axis: str) -> dict[str, Leaf]:
    shape = (D, count, C)
    axes = ("embed", axis, None)
    return projection(shape, axes, normal, outputs=2, biased=config.qkv_bias)

  output = projection(
    (H, C, D),
    ("heads", None, "embed"),
    residual,
    outputs=1,
    biased=config.o_bias,
  )
  up = projection(
    (D, F),
    ("embed", "mlp"),
    normal,
    outputs=1,
    biased=config.mlp_bias,
  )
  down = projection(
    (F, D),
    ("mlp", "embed"),
    residual,
    outputs=1,
    biased=config.mlp_bias,
  )
  block = {
    "attn_norm": norm(D),
    "q": heads(H, "heads"),
    "k": heads(K, "kv_heads"),
    "v": heads(K, "kv_heads"),
    "o": output,
    "mlp_norm": norm(D),
    "gate": up,
    "up": up,
    "down": down,
  }
  if config.qk_norm:
    block["q_norm"] = norm(C)
    block["k_norm"] = norm(C)
  if config.post_norm:
    block["attn_post"] = norm(D)
    block["mlp_post"] = norm(D)
  parameters = {
    "embed": {"tokens": Leaf((config.vocab_size, D), ("vocab", "embed"), normal)},
    "blocks": block,
    "norm": {"scale": Leaf((D,), (None,), initial_scale, decays=False)},
  }
  if not config.tied:
    parameters["head"] = {"w": Leaf((D, config.vocab_size), ("embed", "vocab"), normal)}
  return parameters


def head_width(config: LlamaConfig) -> int:
  """Returns C, the features of one head, which need not be D / H."""
  return config.head_width or config.width // config.heads


# --- the kinds of layers ---


def kinds(config: LlamaConfig) -> tuple[tuple[transformer.Kind, ...], tuple[int, ...]]:
  """Returns the kinds of layers that the model has, and for each layer the index of its kind.

  Raises:
    UserError: for a pattern of other letters, or with L and no window.
  """
  pattern = config.pattern
  unknown_letters = set(pattern) - set("GLN")
  without_window = "L" in pattern and config.window < 1
  if not pattern or unknown_letters or without_window:
    raise UserError(
      f"pattern is {pattern!r} with window {config.window}: give the letters G, L and N, and a "
      "window of 1 or more with L"
    )
  rotated = config.rotary or head_width(config)
  frequency = rope.stretched(
    rope.frequencies(rotated, config.rope_base),
    config.rope_scaling,
    factor=config.rope_factor,
    low=config.rope_low,
    high=config.rope_high,
    context=config.rope_context,
  )
  local_frequency = frequency
  if config.local_rope_base:
    local_frequency = rope.frequencies(rotated, config.local_rope_base)
  kind_by_letter = {
    "G": transformer.Kind(window=0, frequency=frequency),
    "L": transformer.Kind(window=config.window, frequency=local_frequency),
    "N": transformer.Kind(window=0, frequency=np.zeros_like(frequency)),
  }
  letters = [pattern[i % len(pattern)] for i in range(config.depth)]
  # Only kinds that occur: a model with one kind needs no index in its scan.
  used_letters = sorted(set(letters))
  used_kinds = tuple(kind_by_letter[letter] for letter in used_letters)
  return used_kinds, tuple(used_letters.index(letter) for letter in letters)


# --- the parts of the family ---


def mlp(
  dtype: str,
  activation: str,
  p: Params,
  x: Float[Array, "B T D"],
) -> Float[Array, "B T D"]:
  """Returns down(act(gate x) * up x)   (Shazeer 2020)."""
  gate = blocks.linear(p["gate"], x, dtype)
  up = blocks.linear(p["up"], x, dtype)
  activate = blocks.ACTIVATIONS[activation]
  return blocks.linear(p["down"], activate(gate) * up, dtype)


def embed(
  scale: float,
  p: Params,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
  """Returns token embeddings times a scale; the positions enter later, by rotation."""
  x = blocks.lookup(p["tokens"], tokens)
  return x if scale == 1 else x * scale


def llama(config: LlamaConfig) -> LM:
  """Returns the language model of a configuration.

  Raises:
    UserError: when the heads do not divide, and for an unknown choice or pattern.
  """
  transformer.check(config.width, config.heads, config.kv_heads, config.head_width)
  transformer.check_choice("activation", config.activation, blocks.ACTIVATIONS)
  transformer.check_choice("rope_scaling", config.rope_scaling, rope.SCALINGS)
  used_kinds, kind_of_layer = kinds(config)
  embedding_scale = config.width**0.5 if config.embed_scaled else 1.0
  family = transformer.Family(
    vocab_size=config.vocab_size,
    context=config.context,
    width=config.width,
    depth=config.depth,
    kv_heads=config.kv_heads,
    head_width=head_width(config),
    dropout=config.dropout,
    dtype=config.dtype,
    stream=config.stream,
    remat=config.remat,
    unroll=config.unroll,
    sequence=config.sequence,
    attention=config.attention,
    table=table(config),
    norm=partial(blocks.rms_norm, eps=config.norm_eps, offset=config.norm_offset),
    mlp=partial(mlp, config.dtype, config.activation),
    embed=partial(embed, embedding_scale),
    kinds=used_kinds,
    pattern=kind_of_layer,
    scale=config.query_width**-0.5 if config.query_width else None,
    softcap=config.softcap,
    logit_softcap=config.logit_softcap,
  )
  return transformer.build(family)
