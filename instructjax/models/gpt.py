"""Models with LayerNorm and biases: GPT-2 and GPT-3, and by configuration GPT-NeoX and Phi.

GPT-2 and GPT-3 have learned positions (Radford et al. 2019; Brown et al. 2020). GPT-NeoX and Pythia
have rotary positions and parallel blocks (Black et al. 2022), and Phi has one norm a block.

Dimensions: B rows, T tokens, D width, F hidden units of the MLP, H heads, C head width, L layers,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from instructjax.models import blocks, rope, transformer
from instructjax.types import LM, Array, Float, Int, Leaf, Params, PyTree


@dataclass(frozen=True)
class GPTConfig:
  """Sizes and settings of a model; the defaults are GPT-2's."""

  vocab_size: int
  context: int
  width: int
  depth: int
  heads: int
  norm_eps: float = 1e-5
  tied: bool = True  # the unembedding is the embedding
  # Residual dropout as in the paper: on the output of attention and of the MLP, before each is
  # added (Ouyang et al. 2022, App. C.1).
  dropout: float = 0.0
  dtype: str = "float32"  # of the operands of matrix products
  stream: str = "float32"  # of the residual stream and what is added to it
  remat: str = "none"  # what the backward pass keeps, one of `transformer.REMAT`
  unroll: int = 1  # layers in one step of the scan
  sequence: bool = False  # splits what is kept between blocks along the sequence
  attention: str = "auto"  # who computes it, one of `attention.KINDS`
  # The public family, as `models.hf` reads and writes it; nothing is computed from it.
  model_type: str = "gpt2"
  mlp: int = 0  # hidden units; 0 means four times the width
  activation: str = "gelu_tanh"  # of `blocks.ACTIVATIONS`
  # Features of each head that are rotated by their position; 0 means that positions are learned.
  rotary: int = 0
  rope_base: float = 10_000.0
  parallel: bool = False  # attention and MLP of a block read the same input
  one_norm: bool = False  # and read it through one norm
  head_bias: bool = False  # of an untied unembedding


# --- the published sizes ---


def _gpt2(depth: int, width: int, heads: int) -> GPTConfig:
  return GPTConfig(
    vocab_size=50_257,
    context=1024,
    width=width,
    depth=depth,
    heads=heads,
  )


def _gpt3(depth: int, width: int, heads: int) -> GPTConfig:
  return GPTConfig(
    vocab_size=50_257,
    context=2048,
    width=width,
    depth=depth,
    heads=heads,
  )


GPT2 = {
  "124M": _gpt2(12, 768, 12),
  "355M": _gpt2(24, 1024, 16),
  "774M": _gpt2(36, 1280, 20),
  "1.5B": _gpt2(48, 1600, 25),
}
# Brown et al. 2020, Table 2.1, with two rows corrected: 16 heads of 128 make the width 2048 of XL
# (the table says 24), and 40 heads of 128 make 5120 (the table says 5140). InstructGPT's "6B" is
# the model of 6.7B. All layers are dense: the pattern of GPT-3's sparse layers was not published.
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
# A model that trains on a laptop.
GPT_5M = GPTConfig(
  vocab_size=8192,
  context=1024,
  width=256,
  depth=4,
  heads=4,
)


# --- parameters ---


def table(config: GPTConfig) -> PyTree[Leaf]:
  """Returns every parameter: its shape, its logical axes and its initialiser.

  Weights are drawn from Normal(0, 0.02^2); those of projections into the residual stream have a
  standard deviation of 0.02 / sqrt(2L), as in GPT-2.
  """
  depth = config.depth
  D = config.width
  H = config.heads
  C = D // H
  F = config.mlp or 4 * D
  normal = transformer.normal(0.02)
  residual = transformer.normal(0.02 / (2 * depth) ** 0.5)

  def layer(shape: tuple[int, ...], axes: tuple[str | None, ...], init: Any) -> Leaf:
    """Returns a matrix of the blocks, stacked over layers."""
    return Leaf((depth, *shape), ("layers", *axes), init)

  def vector(shape: tuple[int, ...], axes: tuple[str | None, ...], init: Any) -> Leaf:
    """Returns a bias or a scale of the blocks, stacked over layers."""
    return Leaf((depth, *shape), ("layers", *axes), init, decays=False)

  def bias(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Leaf:
    return vector(shape, axes, transformer.zeros)

  norm = {
    "scale": vector((D,), (None,), transformer.ones),
    "bias": bias((D,), (None,)),
  }
  heads = {
    "w": layer((D, H, C), ("embed", "heads", None), normal),
    "b": bias((H, C), ("heads", None)),
  }
  output = {
    "w": layer((H, C, D), ("heads", None, "embed"), residual),
    "b": bias((D,), (None,)),
  }
  up = {
    "w": layer((D, F), ("embed", "mlp"), normal),
    "b": bias((F,), ("mlp",)),
  }
  down = {
    "w": layer((F, D), ("mlp", "embed"), residual),
    "b": bias((D,), (None,)),
  }
  embeddings = {"tokens": Leaf((config.vocab_size, D), ("vocab", "embed"), normal)}
  if not config.rotary:
    embeddings["positions"] = Leaf((config.context, D), (None, "embed"), normal)
  block = {
    "attn_norm": norm,
    "q": heads,
    "k": heads,
    "v": heads,
    "o": output,
    "up": up,
    "down": down,
  }
  if not config.one_norm:
    block["mlp_norm"] = norm
  final_norm = {
    "scale": Leaf((D,), (None,), transformer.ones, decays=False),
    "bias": Leaf((D,), (None,), transformer.zeros, decays=False),
  }
  parameters = {"embed": embeddings, "blocks": block, "norm": final_norm}
  if not config.tied:
    head = {"w": Leaf((D, config.vocab_size), ("embed", "vocab"), normal)}
    if config.head_bias:
      head["b"] = Leaf((config.vocab_size,), ("vocab",), transformer.zeros, decays=False)
    parameters["head"] = head
  return parameters


# --- the parts of the family ---


def mlp(
  dtype: str,
  activation: str,
  p: Params,
  x: Float[Array, "B T D"],
) -> Float[Array, "B T D"]:
  """Returns down(act(up x))."""
  activate = blocks.ACTIVATIONS[activation]
  hidden_units = activate(blocks.linear(p["up"], x, dtype))
  return blocks.linear(p["down"], hidden_units, dtype)


def embed(
  p: Params,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
  """Returns the embedding of each token, plus that of its position where positions are learned."""
  x = blocks.lookup(p["tokens"], tokens)
  if "positions" not in p:
    return x
  return x + blocks.lookup(p["positions"], positions)


def gpt(config: GPTConfig) -> LM:
  """Returns the language model of a configuration.

  Raises:
    UserError: when the heads do not divide the width, and for an unknown choice.
  """
  transformer.check(config.width, config.heads, config.heads)
  transformer.check_choice("activation", config.activation, blocks.ACTIVATIONS)
  # All layers attend to the whole row; without rotary positions there are no frequencies.
  frequency = rope.frequencies(config.rotary, config.rope_base)
  family = transformer.Family(
    vocab_size=config.vocab_size,
    context=config.context,
    width=config.width,
    depth=config.depth,
    kv_heads=config.heads,
    head_width=config.width // config.heads,
    dropout=config.dropout,
    dtype=config.dtype,
    stream=config.stream,
    remat=config.remat,
    unroll=config.unroll,
    sequence=config.sequence,
    attention=config.attention,
    table=table(config),
    norm=partial(blocks.layer_norm, eps=config.norm_eps),
    mlp=partial(mlp, config.dtype, config.activation),
    embed=embed,
    kinds=(transformer.Kind(window=0, frequency=frequency),),
    parallel=config.parallel,
  )
  return transformer.build(family)
