"""Where randomness comes from: keys of JAX and seeds of shuffles, each named for its purpose.

`fold_in(key, i)` and `split(key, n)[i]` are the same key, so that two draws which count from the
same key by numbers alone share their random bits sooner or later. Here every draw of a run begins
with the name of what it is for. Only within one purpose do numbers tell draws apart.
"""

from __future__ import annotations

import zlib
from typing import Any, Literal, get_args

import jax
import numpy as np

# What a run draws random numbers for. A new draw needs a new name.
Purpose = Literal[
  # the start of a model
  "weights",
  "adapter",
  "adapter of the reward model",
  "head",
  # a step
  "dropout",
  "responses",
  "minibatches",
  # what is sampled beside the training
  "selection",
  "samples",
  "best of n",
  "ties",
  "evaluation",
  "quickstart answers",
  "benchmark",
  # the order of data
  "demonstrations",
  "text",
  "prompts",
  "comparisons",
  "bucket",
  "source",
]
PURPOSES: tuple[str, ...] = get_args(Purpose)


def _number(purpose: str) -> int:
  """The number of a purpose.  It depends on the name alone, so that a new name changes no draw."""
  return zlib.crc32(purpose.encode())


def key_for(key: Any, purpose: Purpose, *numbers: Any) -> Any:
  """Returns the key of a draw: of its purpose and, within it, of its numbers.

  `key` is the key of the run, which nothing draws from. `numbers` (a step, a batch) may be traced.
  """
  key = jax.random.fold_in(key, _number(purpose))
  for number in numbers:
    key = jax.random.fold_in(key, number)
  return key


def run_key(seed: int, purpose: Purpose, *numbers: Any) -> Any:
  """Returns the key of a draw that a seed alone decides."""
  return key_for(jax.random.key(seed), purpose, *numbers)


def seed_for(seed: int, purpose: Purpose, *numbers: int) -> int:
  """Returns a seed of 32 bits for the order of data, of the run's seed and a purpose.

  A shuffle counts its epochs up from its seed. The seeds of two runs must therefore be far apart:
  otherwise epoch e of seed s + 1 would be epoch e + 1 of seed s.
  """
  # numpy hashes its entropy, so that neighbouring seeds have nothing in common.
  entropy = np.random.SeedSequence((seed, _number(purpose), *numbers))
  return int(entropy.generate_state(1)[0])
