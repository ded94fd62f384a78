"""Demonstrations from a labeler's few-shot prompt (Ouyang et al. 2022, section 3.2).

Such a prompt is "an instruction, and multiple query/response pairs for that instruction". K pairs
make K examples: each output is the completion once, after the instruction and the other K - 1
pairs. Appendix A.3 makes several examples out of one pair by drawing other shots; that is what
`samples` and `shots` are for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping, Sequence

from instructjax.data.records.records import Demonstration, FewShot
from instructjax.errors import UserError

Pair = Mapping[str, str]  # of an input and its output
# Up to this many sets of shots are listed, which is faster than to draw until enough differ.
LISTED = 1000


def prompt(instruction: str, shots: Sequence[Pair], query: str) -> str:
  """Returns the instruction, the shots and the open query, with an empty line between them."""
  examples = [f"Input: {shot['input']}\nOutput: {shot['output']}" for shot in shots]
  open_query = f"Input: {query}\nOutput:"
  return "\n\n".join([instruction, *examples, open_query])


def expand(
  record: FewShot,
  *,
  shots: int | None = None,
  samples: int = 1,
  seed: int = 0,
) -> list[Demonstration]:
  """Returns K * samples demonstrations, in each of which one pair is the target.

  `shots` of the other pairs (by default all of them) stand before it, in their order. The sets of
  shots of one target differ. If there are fewer than `samples` such sets, each comes once.

  Raises:
    UserError: if `shots` is below 0, or `samples` below 1.
  """
  others = len(record.pairs) - 1
  count = others if shots is None else min(shots, others)
  if count < 0 or samples < 1:
    raise UserError(f"shots {shots}, samples {samples}: give 0 or more shots and at least 1 sample")
  rng = random.Random(f"{seed}/{record.instruction}")
  # The demonstrations keep what the record says about its user, its source and so on.
  about = {}
  for field in dataclasses.fields(record):
    if field.name not in ("instruction", "pairs"):
      about[field.name] = getattr(record, field.name)
  demonstrations = []
  for i, target in enumerate(record.pairs):
    other_pairs = [*record.pairs[:i], *record.pairs[i + 1 :]]
    for chosen in _sets(other_pairs, count, samples, rng):
      text = prompt(record.instruction, chosen, target["input"])
      demonstrations.append(Demonstration(text, target["output"], **about))
  return demonstrations


def _sets(
  pairs: Sequence[Pair],
  count: int,
  samples: int,
  rng: random.Random,
) -> list[tuple[Pair, ...]]:
  """Returns at most `samples` different sets of `count` pairs, each in the order of `pairs`."""
  possible = math.comb(len(pairs), count)
  if possible <= max(samples, LISTED):
    every = list(itertools.combinations(pairs, count))
    return rng.sample(every, min(samples, possible))
  # A dict, unlike a set, keeps the order in which they were drawn.
  chosen: dict[tuple[int, ...], None] = {}
  while len(chosen) < samples:
    places = rng.sample(range(len(pairs)), count)
    chosen[tuple(sorted(places))] = None
  return [tuple(pairs[i] for i in places) for places in chosen]
