"""Eight-bit integers for what decoding reads again in every step: weights, keys and values.

    x  ~  q * scale,     scale = max |x| / 127,     q = round(x / scale)

The maximum is taken over the numbers that share a scale: those of one output of a matrix, or the
features of one key head at one position. It is symmetric (0 stays 0), and each number is off by at
most scale / 2. The scale of a matrix's output stands outside of the sum over its inputs, so a
product is made with the integers, in the type of the activations, and scaled afterwards.

Only the sampler does this (`rollout.Sampling`). Log-probabilities, losses and gradients are those
of the weights themselves.

Dimensions: I inputs and O outputs of a product (one axis or more).
"""

from __future__ import annotations

import jax.numpy as jnp

from instructjax.models import lora
from instructjax.types import Array, Params

LARGEST = 127  # -128 is not used, so that the range is symmetric


def quantise(
  x: Array,
  axes: tuple[int, ...],
) -> tuple[Array, Array]:
  """Returns x as integers, and the scale of each group of numbers: those along `axes`.

  The scale has the axes of x, with a length of 1 along `axes`. That of zeros alone is 1.
  """
  x = x.astype(jnp.float32)
  largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
  scale = jnp.where(largest > 0, largest / LARGEST, 1)
  return jnp.round(x / scale).astype(jnp.int8), scale


def matrix(
  w: Array,
  inputs: int,
) -> Params:
  """Returns a matrix whose first `inputs` axes are summed over: `w` as integers, `scale` [O]."""
  axes = tuple(range(inputs))
  q, scale = quantise(w, axes)
  return {"w": q, "scale": jnp.squeeze(scale, axes)}


def layer(p: Params) -> Params:
  """Returns the parameters of one layer with the matrices of its products as integers.

  Biases, norms and adapters stay as they are.
  """
  quantised = {}
  for name, part in p.items():
    is_product = "w" in part
    quantised[name] = part | matrix(part["w"], lora.INPUTS.get(name, 1)) if is_product else part
  return quantised


def unembedding(params: Params) -> Params:
  """Returns the head of an untied model, or a copy of the embedding, as integers.

  They stand under "head" and under "unembed", as `LM.logits` expects them. Tokens are still looked
  up in the embedding itself.
  """
  if "head" in params:
    return {"head": params["head"] | matrix(params["head"]["w"], 1)}
  # A row of the embedding is an output: its inputs come last.
  q, scale = quantise(params["embed"]["tokens"], (1,))
  return {"unembed": {"w": q, "scale": jnp.squeeze(scale, 1)}}
