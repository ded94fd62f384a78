"""Llama: RMSNorm, rotary positions, grouped-query attention and a gated MLP (Touvron et al. 2023; SmolLM2).

Dimensions: B rows, T tokens, D width, F hidden units of the MLP, H heads, K key/value heads,
C = D / H, L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from instructjax.models import blocks, transformer
from instructjax.types import LM, Array, Float, Int, Leaf, Params, PyTree


@dataclass(frozen=True)
class LlamaConfig:
  """Sizes and settings.

  `dtype` is the operands' of matrix products, `remat` what the backward pass recomputes, `unroll` the layers a scan step,
  `attention` who computes it (`models.attention`).
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


SMOLLM2_135M = LlamaConfig(
  vocab_size=49_152, context=8192, width=576, depth=30, heads=9, kv_heads=3, mlp=1536, rope_base=100_000.0
)


def table(c: LlamaConfig) -> PyTree[Leaf]:
  """Every parameter.  Normal(0, .02), projections into the residual stream / sqrt(2L), as GPT-2."""
  C = c.width // c.heads
  normal = transformer.normal(0.02)
  residual = transformer.normal(0.02 / (2 * c.depth) ** 0.5)
  layer = lambda shape, axes, init: Leaf((c.depth, *shape), ("layers", *axes), init)
  scale = {"scale": layer((c.width,), (None,), transformer.ones)}
  parameters = {
    "embed": {"tokens": Leaf((c.vocab_size, c.width), ("vocab", "embed"), normal)},
    "blocks": {
      "attn_norm": scale,
      "q": {"w": layer((c.width, c.heads, C), ("embed", "heads", None), normal)},
      "k": {"w": layer((c.width, c.kv_heads, C), ("embed", "kv_heads", None), normal)},
      "v": {"w": layer((c.width, c.kv_heads, C), ("embed", "kv_heads", None), normal)},
      "o": {"w": layer((c.heads, C, c.width), ("heads", None, "embed"), residual)},
      "mlp_norm": scale,
      "gate": {"w": layer((c.width, c.mlp), ("embed", "mlp"), normal)},
      "up": {"w": layer((c.width, c.mlp), ("embed", "mlp"), normal)},
      "down": {"w": layer((c.mlp, c.width), ("mlp", "embed"), residual)},
    },
    "norm": {"scale": Leaf((c.width,), (None,), transformer.ones)},
  }
  if not c.tied:
    parameters["head"] = {"w": Leaf((c.width, c.vocab_size), ("embed", "vocab"), normal)}
  return parameters


def rotate(base: float, x: Float[Array, "B T H C"], at: Int[Array, "B T"]) -> Float[Array, "B T H C"]:
  """Rotary positions (Su et al. 2021): the pair (x_i, x_{i + C/2}) turns by the angle t base^(-2i/C)."""
  half = x.shape[-1] // 2
  frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = at[:, :, None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def mlp(dtype: str, p: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """down(silu(gate x) * up x)   (Shazeer 2020)."""
  gate, up = blocks.linear(p["gate"], x, dtype), blocks.linear(p["up"], x, dtype)
  return blocks.linear(p["down"], jax.nn.silu(gate) * up, dtype)


def embed(p: Params, tokens: Int[Array, "B T"], at: Int[Array, "B T"]) -> Float[Array, "B T D"]:
  """Token embeddings; positions enter by rotation."""
  return blocks.lookup(p["tokens"], tokens)


def llama(config: LlamaConfig) -> LM:
  """The language model.  Raises UserError when the heads do not divide."""
  c = config
  transformer.check(c.width, c.heads, c.kv_heads)
  return transformer.build(
    transformer.Family(
      vocab_size=c.vocab_size, context=c.context, width=c.width, depth=c.depth, kv_heads=c.kv_heads,
      head_width=c.width // c.heads, dropout=c.dropout, dtype=c.dtype, remat=c.remat, unroll=c.unroll, sequence=c.sequence,
      attention=c.attention, table=table(c),
      norm=partial(blocks.rms_norm, eps=c.norm_eps), mlp=partial(mlp, c.dtype), embed=embed,
      rotate=partial(rotate, c.rope_base),
    )
  )  # fmt: skip
