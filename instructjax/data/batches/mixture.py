"""Several sources in one stream: "0.7*a.jsonl + 0.3*tfds:c4" draws seven rows of the first for
three of the second.

The weights are shares of the rows of a batch, whatever the sizes of the sources; a source
without one has weight 1.  Every source is shuffled and repeated by itself, so a small one with a
large weight is seen in more epochs.  (Files with commas between them are one source, of which
each row is drawn equally often.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructjax.data.records import sources
from instructjax.errors import UserError

# What is reached by number: a list, or rows that are made when they are asked for; or a Mixture of
# such
Rows = Any
GRAMMAR = "data is written SOURCE, or WEIGHT*SOURCE several times with ' + ' between"
TERM = re.compile(
  r"(?:([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*\s*)?(\S.*)", re.DOTALL
)  # weight, source


@dataclass(frozen=True)
class Mixture:
  """Rows of several sources and the weight of each; its length is that of all sources together."""

  parts: tuple[Rows, ...]
  weights: tuple[float, ...]

  def __len__(self) -> int:
    return sum(map(len, self.parts))


def parse(text: str) -> list[tuple[float, str]]:
  """(weight, source) of each term.  Raises UserError where a term is empty or a weight is not above
  0.
  """
  if sources.exists(text):  # a name may hold ' + '
    return [(1.0, text)]
  found = []
  for part in re.split(r"\s\+\s", text):
    term = TERM.fullmatch(part.strip())
    if not term:
      raise UserError(f"{text!r}: one of its sources is empty: {GRAMMAR}")
    weight = float(term[1] or 1)
    if not 0 < weight < float("inf"):
      raise UserError(
        f"{part.strip()!r}: the weight is {weight:g} and must be above 0, or leave the source out: "
        f"{GRAMMAR}"
      )
    found.append((weight, term[2]))
  return found


def endless(rows: Rows, seed: int) -> Callable[[int], Any]:
  """Place in the order -> row.  Each source is shuffled anew in each of its epochs; the sources
  take turns by their weights.

  Raises UserError where a source has no rows.
  """
  import grain

  parts, weights = (rows.parts, rows.weights) if isinstance(rows, Mixture) else ((rows,), (1.0,))
  if not all(map(len, parts)):
    raise UserError("no rows to draw from; give a file that holds records")
  seeds = [
    seed,
    *(int(np.random.SeedSequence((seed, k)).generate_state(1)[0]) for k in range(1, len(parts))),
  ]
  orders = [
    grain.MapDataset.source(part).shuffle(seed=s).repeat()
    for part, s in zip(parts, seeds, strict=True)
  ]
  return (
    orders[0] if len(orders) == 1 else grain.MapDataset.mix(orders, weights=weights)
  ).__getitem__
