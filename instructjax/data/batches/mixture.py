"""Several sources in one stream, each as often as its weight says.

"0.7*a.jsonl + 0.3*tfds:c4" draws seven rows of the first source for every three of the second. The
weights are shares of the rows of a batch, whatever the sizes of the sources; a source without a
weight has weight 1. Every source is shuffled and repeated by itself, so that a small source with a
large weight goes through more epochs. (Files with commas between them are one source, and each of
their rows comes equally often.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from instructjax.data.records import sources
from instructjax.errors import UserError
from instructjax.system import keys

# Anything with `len` and `[i]`: a list, rows that are made when they are asked for, or a Mixture.
Rows = Any
GRAMMAR = "data is written SOURCE, or WEIGHT*SOURCE several times with ' + ' between"
TERM = re.compile(
  # the weight and its star, which may both be missing
  r"(?:([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*\s*)?"
  # the source
  r"(\S.*)",
  re.DOTALL,
)


@dataclass(frozen=True)
class Mixture:
  """Rows of several sources and the weight of each. Its length is that of all sources together."""

  parts: tuple[Rows, ...]
  weights: tuple[float, ...]

  def __len__(self) -> int:
    return sum(map(len, self.parts))


def parse(text: str) -> list[tuple[float, str]]:
  """Returns (weight, source) of each term of a mixture.

  Raises:
    UserError: if a term is empty, or a weight is not above 0.
  """
  if sources.exists(text):  # the name of a file may hold ' + '
    return [(1.0, text)]
  terms = []
  for part in re.split(r"\s\+\s", text):
    term = part.strip()
    match = TERM.fullmatch(term)
    if not match:
      raise UserError(f"{text!r}: one of its sources is empty: {GRAMMAR}")
    weight = float(match[1] or 1)
    if not 0 < weight < float("inf"):
      raise UserError(
        f"{term!r}: the weight is {weight:g} and must be above 0, or leave the source out: "
        f"{GRAMMAR}"
      )
    terms.append((weight, match[2]))
  return terms


def endless(rows: Rows, seed: int) -> Callable[[int], Any]:
  """Returns the function from a place in an endless order to the row there.

  Each source is shuffled anew in each of its epochs, and the sources take turns by their weights.

  Raises:
    UserError: if a source has no rows.
  """
  import grain

  if isinstance(rows, Mixture):
    parts, weights = rows.parts, rows.weights
  else:
    parts, weights = (rows,), (1.0,)
  if not all(map(len, parts)):
    raise UserError("no rows to draw from; give a file that holds records")
  orders = []
  for k, part in enumerate(parts):
    order = grain.MapDataset.source(part).shuffle(seed=_seed_of_part(seed, k))
    orders.append(order.repeat())
  if len(orders) == 1:
    return orders[0].__getitem__
  return grain.MapDataset.mix(orders, weights=weights).__getitem__


def _seed_of_part(seed: int, k: int) -> int:
  """Returns a seed of its own for each source, so that sources of one size differ in order."""
  return keys.seed_for(seed, "source", k)
