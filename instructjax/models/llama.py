"""Models of RMSNorm, rotary positions and a gated MLP: Llama (Touvron et al. 2023) and SmolLM2, and
by configuration Mistral, Qwen 2 and 3, Gemma 1 to 3, Phi-3 and SmolLM3.

Dimensions: B rows, T tokens, D width, F hidden units of the MLP, H heads, K key/value heads, C
head width, L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from instructjax.errors import UserError
from instructjax.models import blocks, rope, transformer
from instructjax.types import LM, Array, Float, Int, Leaf, Params, PyTree


@dataclass(frozen=True)
class LlamaConfig:
  """Sizes and settings; the defaults are Llama's.

  `dtype` is the operands' of matrix products, `remat` what the backward pass recomputes,
  `unroll` the layers a scan step, `attention` who computes it (`models.attention`).

  `pattern` has a letter for each layer, from the lowest, and starts again at its end: G attends
  to everything before, L to the last `window` tokens, N is G without positions.  Gemma 3 is
  "LLLLLG".
  """

  vocab_size: int
  context: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  mlp: int
  rope_base: float = 10_000.0
  norm_eps: float = 1e-5
  tied: bool = True  # the unembedding is the embedding
  dropout: float = 0.0
  dtype: str = "float32"
  remat: str = "none"
  unroll: int = 1
  sequence: bool = False
  attention: str = "auto"
  model_type: str = (
    "llama"  # the public family, as `models.hf` reads and writes it; nothing is computed from it
  )
  head_width: int = 0  # 0: width / heads
  activation: str = "silu"  # of `blocks.ACTIVATIONS`
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False  # RMSNorm on each head of queries and keys
  post_norm: bool = False  # RMSNorm on each half of a block before it is added
  norm_offset: float = 0.0  # added to the scale of every norm
  embed_scaled: bool = False  # embeddings times sqrt(width)
  query_width: int = 0  # scores are divided by its square root; 0: the width of a head
  softcap: float = 0.0  # of the scores, 0: none
  logit_softcap: float = 0.0
  pattern: str = "G"
  window: int = 0
  rotary: int = 0  # features of each head that are turned by their position; 0: all
  rope_scaling: str = "none"  # of `rope.SCALINGS`, with the numbers that follow
  rope_factor: float = 1.0
  rope_low: float = 1.0
  rope_high: float = 4.0
  rope_context: int = 0
  local_rope_base: float = (
    0.0  # of L layers, whose frequencies are then not stretched; 0: as the others
  )


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


def table(c: LlamaConfig) -> PyTree[Leaf]:
  """Every parameter.  Normal(0, .02), projections into the residual stream / sqrt(2L), as GPT-2."""
  C = head_width(c)
  normal = transformer.normal(0.02)
  residual = transformer.normal(0.02 / (2 * c.depth) ** 0.5)
  layer = lambda shape, axes, init: Leaf((c.depth, *shape), ("layers", *axes), init)
  zeros = lambda shape, axes: layer(shape, axes, transformer.zeros)
  bias = lambda wanted, shape, axes: {"b": zeros(shape, axes)} if wanted else {}
  initial = (
    transformer.zeros if c.norm_offset else transformer.ones
  )  # an offset is 1: the norm starts as the identity's
  norm = lambda name, width, wanted=True: (
    {name: {"scale": layer((width,), (None,), initial)}} if wanted else {}
  )
  heads = lambda count, axis: {
    "w": layer((c.width, count, C), ("embed", axis, None), normal),
    **bias(c.qkv_bias, (count, C), (axis, None)),
  }
  up = {
    "w": layer((c.width, c.mlp), ("embed", "mlp"), normal),
    **bias(c.mlp_bias, (c.mlp,), ("mlp",)),
  }
  parameters = {
    "embed": {"tokens": Leaf((c.vocab_size, c.width), ("vocab", "embed"), normal)},
    "blocks": {
      **norm("attn_norm", c.width),
      "q": heads(c.heads, "heads"),
      "k": heads(c.kv_heads, "kv_heads"),
      "v": heads(c.kv_heads, "kv_heads"),
      **norm("q_norm", C, c.qk_norm),
      **norm("k_norm", C, c.qk_norm),
      "o": {
        "w": layer((c.heads, C, c.width), ("heads", None, "embed"), residual),
        **bias(c.o_bias, (c.width,), (None,)),
      },
      **norm("attn_post", c.width, c.post_norm),
      **norm("mlp_norm", c.width),
      "gate": up,
      "up": up,
      "down": {
        "w": layer((c.mlp, c.width), ("mlp", "embed"), residual),
        **bias(c.mlp_bias, (c.width,), (None,)),
      },
      **norm("mlp_post", c.width, c.post_norm),
    },
    "norm": {"scale": Leaf((c.width,), (None,), initial)},
  }
  if not c.tied:
    parameters["head"] = {"w": Leaf((c.width, c.vocab_size), ("embed", "vocab"), normal)}
  return parameters


def head_width(c: LlamaConfig) -> int:
  """C, which need not be D / H."""
  return c.head_width or c.width // c.heads


def kinds(c: LlamaConfig) -> tuple[tuple[transformer.Kind, ...], tuple[int, ...]]:
  """The kinds of layers there are, and which each layer is.

  Raises UserError for a pattern of other letters, or with L and no window.
  """
  if not c.pattern or set(c.pattern) - set("GLN") or ("L" in c.pattern and c.window < 1):
    raise UserError(
      f"pattern is {c.pattern!r} with window {c.window}: give the letters G, L and N, and a window "
      "of 1 or more with L"
    )
  full = rope.frequencies(c.rotary or head_width(c), c.rope_base)
  numbers = {
    "factor": c.rope_factor,
    "low": c.rope_low,
    "high": c.rope_high,
    "context": c.rope_context,
  }
  wide = rope.stretched(full, c.rope_scaling, **numbers)
  local = (
    rope.frequencies(c.rotary or head_width(c), c.local_rope_base) if c.local_rope_base else wide
  )
  kind = {
    "G": transformer.Kind(0, wide),
    "L": transformer.Kind(c.window, local),
    "N": transformer.Kind(0, np.zeros_like(wide)),
  }
  letters = [c.pattern[i % len(c.pattern)] for i in range(c.depth)]
  found = sorted(set(letters))
  return tuple(kind[letter] for letter in found), tuple(found.index(letter) for letter in letters)


def mlp(dtype: str, activation: str, p: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """down(act(gate x) * up x)   (Shazeer 2020)."""
  gate, up = blocks.linear(p["gate"], x, dtype), blocks.linear(p["up"], x, dtype)
  return blocks.linear(p["down"], blocks.ACTIVATIONS[activation](gate) * up, dtype)


def embed(
  scale: float, p: Params, tokens: Int[Array, "B T"], at: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
  """Token embeddings times a scale; positions enter by rotation."""
  x = blocks.lookup(p["tokens"], tokens)
  return x if scale == 1 else x * scale


def llama(config: LlamaConfig) -> LM:
  """The language model.  Raises UserError when the heads do not divide, and for an unknown choice
  or pattern.
  """
  c = config
  transformer.check(c.width, c.heads, c.kv_heads, c.head_width)
  transformer.check_choice("activation", c.activation, blocks.ACTIVATIONS)
  transformer.check_choice("rope_scaling", c.rope_scaling, rope.SCALINGS)
  found, pattern = kinds(c)
  return transformer.build(
    transformer.Family(
      vocab_size=c.vocab_size,
      context=c.context,
      width=c.width,
      depth=c.depth,
      kv_heads=c.kv_heads,
      head_width=head_width(c),
      dropout=c.dropout,
      dtype=c.dtype,
      remat=c.remat,
      unroll=c.unroll,
      sequence=c.sequence,
      attention=c.attention,
      table=table(c),
      norm=partial(blocks.rms_norm, eps=c.norm_eps, offset=c.norm_offset),
      mlp=partial(mlp, c.dtype, c.activation),
      embed=partial(embed, c.width**0.5 if c.embed_scaled else 1.0),
      kinds=found,
      pattern=pattern,
      scale=c.query_width**-0.5 if c.query_width else None,
      softcap=c.softcap,
      logit_softcap=c.logit_softcap,
    )
  )
