"""What several models said to a prompt, and which of it people are to rank."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Output(NamedTuple):
  """A response, what drew it (`model`, `temperature`, `seed`), and its scores by the name of the
  reward.
  """

  text: str
  source: Mapping[str, Any]
  scores: Mapping[str, float] = {}


def choose(groups: Sequence[Sequence[Output]], k: int, lot: str) -> list[Output]:
  """At most k different outputs of a prompt, as many of each group as there can be, in a random
  order.

  Outputs are different where more than the white space around them is; an empty one is never
  taken.  `lot` decides the order, who gives one more where k does not divide, and who is said to
  have drawn what several groups drew.
  """
  rng, found = random.Random(lot), {}
  for turn in itertools.zip_longest(*groups):
    drawn = [one for one in turn if one is not None]
    rng.shuffle(drawn)
    for one in drawn:
      if text := one.text.strip():
        found.setdefault(text, one)
  kept = list(found.values())[:k]
  rng.shuffle(kept)
  return kept
