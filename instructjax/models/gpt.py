"""Models of LayerNorm and biases: GPT-2 and GPT-3 with learned positions (Radford et al. 2019;
Brown et al. 2020), and by configuration GPT-NeoX and Pythia (Black et al. 2022; rotary
positions, parallel blocks) and Phi (one norm a block).

Dimensions: B rows, T tokens, D width, F hidden units of the MLP, H heads, C head width, L
layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from instructjax.models import blocks, rope, transformer
from instructjax.types import LM, Array, Float, Int, Leaf, Params, PyTree


@dataclass(frozen=True)
class GPTConfig:
  """Sizes and settings; the defaults are GPT-2's.

  `dtype` is the operands' of matrix products, `remat` what the backward pass recomputes,
  `unroll` the layers a scan step, `attention` who computes it (`models.attention`). `dropout` is
  the paper's residual dropout: on the output of attention and of the MLP before each is added
  (App. C.1).
  """

  vocab_size: int
  context: int
  width: int
  depth: int
  heads: int
  norm_eps: float = 1e-5
  tied: bool = True  # the unembedding is the embedding
  dropout: float = 0.0
  dtype: str = "float32"
  remat: str = "none"
  unroll: int = 1
  sequence: bool = False
  attention: str = "auto"
  model_type: str = (
    "gpt2"  # the public family, as `models.hf` reads and writes it; nothing is computed from it
  )
  mlp: int = 0  # hidden units; 0 is four times the width
  activation: str = "gelu_tanh"  # of `blocks.ACTIVATIONS`
  rotary: int = (
    0  # features of each head that are turned by their position; 0: positions are learned
  )
  rope_base: float = 10_000.0
  parallel: bool = False  # attention and MLP of a block read the same input
  one_norm: bool = False  # and through one norm
  head_bias: bool = False  # of an untied unembedding


def _gpt2(depth: int, width: int, heads: int) -> GPTConfig:
  return GPTConfig(vocab_size=50_257, context=1024, width=width, depth=depth, heads=heads)


def _gpt3(depth: int, width: int, heads: int) -> GPTConfig:
  return GPTConfig(vocab_size=50_257, context=2048, width=width, depth=depth, heads=heads)


GPT2 = {
  "124M": _gpt2(12, 768, 12),
  "355M": _gpt2(24, 1024, 16),
  "774M": _gpt2(36, 1280, 20),
  "1.5B": _gpt2(48, 1600, 25),
}
# Brown et al. 2020, Table 2.1, with two rows mended: 16 heads of 128 make the width 2048 of XL (the
# table says 24), and 40 heads of 128 make 5120 (the table says 5140).  InstructGPT's "6B" is the
# model of 6.7B.  All layers are dense: the pattern of GPT-3's sparse ones was not published.
GPT3 = {
  "125M": _gpt3(12, 768, 12),
  "350M": _gpt3(24, 1024, 16),
  "760M": _gpt3(24, 1536, 16),
  "1.3B": _gpt3(24, 2048, 16),
  "2.7B": _gpt3(32, 2560, 32),
  "6B": _gpt3(32, 4096, 32),
  "6.7B": _gpt3(32, 4096, 32),
  "13B": _gpt3(40, 5120, 40),
  "175B": _gpt3(96, 12_288, 96),
}
GPT_5M = GPTConfig(vocab_size=8192, context=1024, width=256, depth=4, heads=4)


def table(c: GPTConfig) -> PyTree[Leaf]:
  """Every parameter.  Normal(0, .02), projections into the residual stream / sqrt(2L), as GPT-2."""
  C, F = c.width // c.heads, c.mlp or 4 * c.width
  normal = transformer.normal(0.02)
  residual = transformer.normal(0.02 / (2 * c.depth) ** 0.5)
  layer = lambda shape, axes, init: Leaf((c.depth, *shape), ("layers", *axes), init)
  zeros = lambda shape, axes: layer(shape, axes, transformer.zeros)
  norm = {"scale": layer((c.width,), (None,), transformer.ones), "bias": zeros((c.width,), (None,))}
  heads = {
    "w": layer((c.width, c.heads, C), ("embed", "heads", None), normal),
    "b": zeros((c.heads, C), ("heads", None)),
  }
  parameters = {
    "embed": {
      "tokens": Leaf((c.vocab_size, c.width), ("vocab", "embed"), normal),
      **({} if c.rotary else {"positions": Leaf((c.context, c.width), (None, "embed"), normal)}),
    },
    "blocks": {
      "attn_norm": norm,
      "q": heads,
      "k": heads,
      "v": heads,
      "o": {
        "w": layer((c.heads, C, c.width), ("heads", None, "embed"), residual),
        "b": zeros((c.width,), (None,)),
      },
      **({} if c.one_norm else {"mlp_norm": norm}),
      "up": {"w": layer((c.width, F), ("embed", "mlp"), normal), "b": zeros((F,), ("mlp",))},
      "down": {
        "w": layer((F, c.width), ("mlp", "embed"), residual),
        "b": zeros((c.width,), (None,)),
      },
    },
    "norm": {
      "scale": Leaf((c.width,), (None,), transformer.ones),
      "bias": Leaf((c.width,), (None,), transformer.zeros),
    },
  }
  if not c.tied:
    bias = {"b": Leaf((c.vocab_size,), ("vocab",), transformer.zeros)} if c.head_bias else {}
    parameters["head"] = {"w": Leaf((c.width, c.vocab_size), ("embed", "vocab"), normal), **bias}
  return parameters


def mlp(dtype: str, activation: str, p: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """down(act(up x))."""
  return blocks.linear(
    p["down"], blocks.ACTIVATIONS[activation](blocks.linear(p["up"], x, dtype)), dtype
  )


def embed(p: Params, tokens: Int[Array, "B T"], at: Int[Array, "B T"]) -> Float[Array, "B T D"]:
  """The embedding of the token, plus that of its position where positions are learned."""
  x = blocks.lookup(p["tokens"], tokens)
  return x + blocks.lookup(p["positions"], at) if "positions" in p else x


def gpt(config: GPTConfig) -> LM:
  """The language model.  Raises UserError when the heads do not divide the width, or for an unknown
  activation.
  """
  c = config
  transformer.check(c.width, c.heads, c.heads)
  transformer.check_choice("activation", c.activation, blocks.ACTIVATIONS)
  return transformer.build(
    transformer.Family(
      vocab_size=c.vocab_size,
      context=c.context,
      width=c.width,
      depth=c.depth,
      kv_heads=c.heads,
      head_width=c.width // c.heads,
      dropout=c.dropout,
      dtype=c.dtype,
      remat=c.remat,
      unroll=c.unroll,
      sequence=c.sequence,
      attention=c.attention,
      table=table(c),
      norm=partial(blocks.layer_norm, eps=c.norm_eps),
      mlp=partial(mlp, c.dtype, c.activation),
      embed=embed,
      kinds=(transformer.Kind(0, rope.frequencies(c.rotary, c.rope_base)),),
      parallel=c.parallel,
    )
  )
