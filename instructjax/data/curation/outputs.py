"""What several models answered to a prompt, and which of the answers people are to rank."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Output(NamedTuple):
  """A response, its source, and its scores by the name of the reward.

  The source says how the response was sampled: `model`, `temperature` and `seed`.
  """

  text: str
  source: Mapping[str, Any]
  scores: Mapping[str, float] = {}


def choose(groups: Sequence[Sequence[Output]], k: int, lot: str) -> list[Output]:
  """Returns at most k different outputs of a prompt, in a random order.

  Each group, which is a model as a rule, gives as many of them as the others, as far as there are
  enough. Outputs are different if more than the white space around them is; an empty one is never
  taken. `lot` is the seed. It decides the order, which group gives one more if k does not divide,
  and which group an output is credited to that several groups hold.
  """
  rng = random.Random(lot)
  output_by_text: dict[str, Output] = {}
  # In each turn every group that still has an output gives one.
  for turn in itertools.zip_longest(*groups):
    candidates = [output for output in turn if output is not None]
    rng.shuffle(candidates)
    for output in candidates:
      text = output.text.strip()
      if text:
        output_by_text.setdefault(text, output)
  chosen = list(output_by_text.values())[:k]
  # The order of the turns would tell which models were at work.
  rng.shuffle(chosen)
  return chosen
