"""How long the quickstart will take on this machine, from measurements of a second.

Nearly all of its time goes into two things: XLA compiles programs, and the CPU computes, mostly
matrix products. Both are timed here on a small scale and compared with the machine on which the
whole was timed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from instructjax.settings.fields import replaced
from instructjax.settings.quickstart import QUICKSTART, QuickstartSettings
from instructjax.types import Array

# The product that is timed: the MLP of a block of SmolLM2-135M on a part of a batch.
ROWS, INPUTS, OUTPUTS = 512, 576, 1536
# The seconds over which the product is repeated.
WINDOW = 0.3
# The layers of the program whose compilation is timed.
LAYERS = 12


class Speed(NamedTuple):
  """How fast a machine is.

  compiling   seconds that the small program takes to compile
  products    matrix products in bfloat16, in GFLOP a second
  """

  compiling: float
  products: float


class Whole(NamedTuple):
  """The seconds of a whole run on the machine of REFERENCE, alone on it.

  compiling   in XLA and in tracing
  products    in everything else, most of it matrix products
  """

  compiling: float
  products: float


# Two cores of an Intel Xeon with AMX. `python -m instructjax.quickstart.duration` prints the speed
# of a machine; the seconds of the whole runs are those of docs/quickstart.md. What they compile was
# measured on another day, when this machine compiled the small program in .21 s and all of them in
# 166 s.
REFERENCE = Speed(compiling=0.16, products=1240.0)
WHOLE: Mapping[str, Whole] = {
  "full": Whole(compiling=126.0, products=844.0),
  "fast": Whole(compiling=126.0, products=247.0),
}


def minutes(settings: QuickstartSettings) -> float | None:
  """Returns the minutes that a run takes here; None for settings that were never timed."""
  for name, preset in QUICKSTART.items():
    timed = replaced(preset, {"seed": settings.seed, "model": settings.model})
    if settings == timed:
      return estimate(WHOLE[name], measure()) / 60
  return None


def estimate(whole: Whole, here: Speed) -> float:
  """Returns the seconds of a run on a machine of another speed than REFERENCE."""
  compiling = whole.compiling * here.compiling / REFERENCE.compiling
  return compiling + whole.products * REFERENCE.products / here.products


def measure() -> Speed:
  """Times this machine, in about a second."""
  # The first compilation starts the compiler, so a trivial one goes before.
  seconds_to_compile(layers=1)
  return Speed(seconds_to_compile(LAYERS), products_a_second())


def seconds_to_compile(layers: int) -> float:
  """Returns how long XLA takes to compile a program of so many small layers."""

  def program(x: Array) -> Array:
    for layer in range(layers):
      # Each layer is another one, so that none is compiled once for all.
      x = jnp.tanh(x @ x.T + layer) * jax.nn.softmax(x * layer, axis=-1)
    return jnp.sort(x, axis=-1)

  lowered = jax.jit(program).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32))
  begun = time.perf_counter()
  lowered.compile()
  return time.perf_counter() - begun


def products_a_second() -> float:
  """Returns the GFLOP a second of products of matrices in bfloat16, by all cores."""
  rows = jnp.ones((ROWS, INPUTS), jnp.bfloat16)
  weights = jnp.ones((INPUTS, OUTPUTS), jnp.bfloat16)
  multiply = jax.jit(
    lambda rows, weights: jnp.matmul(rows, weights, preferred_element_type="float32")
  )
  jax.block_until_ready(multiply(rows, weights))
  count = 0
  begun = time.perf_counter()
  while time.perf_counter() - begun < WINDOW:
    jax.block_until_ready(multiply(rows, weights))
    count += 1
  elapsed = time.perf_counter() - begun
  return 2 * ROWS * INPUTS * OUTPUTS * count / elapsed / 1e9


if __name__ == "__main__":
  print(measure())
