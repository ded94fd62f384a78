"""Demonstrations from a labeler's few-shot prompt: "an instruction, and multiple query/response
pairs" (section 3.2).

K pairs make K examples: each output is the completion once, after the instruction and the other
K - 1 pairs.  Appendix A.3 makes several examples out of one pair by drawing other shots:
`samples` and `shots`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping, Sequence

from instructjax.data.records.records import Demonstration, FewShot
from instructjax.errors import UserError

Pair = Mapping[str, str]


def prompt(instruction: str, shots: Sequence[Pair], query: str) -> str:
  """The instruction, the shots and the open query, an empty line between them."""
  done = [f"Input: {shot['input']}\nOutput: {shot['output']}" for shot in shots]
  return "\n\n".join([instruction, *done, f"Input: {query}\nOutput:"])


def expand(
  record: FewShot, *, shots: int | None = None, samples: int = 1, seed: int = 0
) -> list[Demonstration]:
  """K * samples demonstrations: each pair as the target, `shots` of the others (default all) before
  it in their order.

  The sets of shots of one target differ; where there are fewer than `samples` of them, each
  comes once.  Raises UserError for fewer than no shots or less than one sample.
  """
  others = len(record.pairs) - 1
  count = others if shots is None else min(shots, others)
  if count < 0 or samples < 1:
    raise UserError(f"shots {shots}, samples {samples}: give 0 or more shots and at least 1 sample")
  rng = random.Random(f"{seed}/{record.instruction}")
  about = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
  about = {name: value for name, value in about.items() if name not in ("instruction", "pairs")}
  return [
    Demonstration(prompt(record.instruction, chosen, target["input"]), target["output"], **about)
    for i, target in enumerate(record.pairs)
    for chosen in _sets([*record.pairs[:i], *record.pairs[i + 1 :]], count, samples, rng)
  ]


def _sets(
  pairs: Sequence[Pair], count: int, samples: int, rng: random.Random
) -> list[tuple[Pair, ...]]:
  """At most `samples` different sets of `count` pairs, each in the order of `pairs`."""
  possible = math.comb(len(pairs), count)
  if possible <= max(samples, 1000):
    every = list(itertools.combinations(pairs, count))
    return rng.sample(every, min(samples, possible))
  found: dict[tuple[int, ...], None] = {}
  while len(found) < samples:
    found[tuple(sorted(rng.sample(range(len(pairs)), count)))] = None
  return [tuple(pairs[i] for i in places) for places in found]
