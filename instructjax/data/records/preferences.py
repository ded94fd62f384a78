"""Which completion of a comparison is better than which: by its ranks, or by its pairs.

Dimensions: K completions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from instructjax.data.records.schemas import Comparison


def weights(record: Comparison) -> Float[np.ndarray, "K K"]:
  """Returns how much it counts that i is better than j; 0 for ties and for what was not compared.

  Pairs that ranks order count 1.
  """
  if not record.pairs:
    return of_ranks(record.ranks)
  k = len(record.completions)
  matrix = np.zeros((k, k))
  for pair in record.pairs:
    better, worse = int(pair[0]), int(pair[1])
    matrix[better, worse] = pair[2] if len(pair) == 3 else 1.0
  return matrix


def of_ranks(ranks: Sequence[int]) -> Float[np.ndarray, "K K"]:
  """Returns 1 where the rank of i is better than that of j, and 0 elsewhere."""
  rank = np.asarray(ranks)
  return (rank[:, None] < rank[None, :]).astype(float)


def compared(record: Comparison) -> Bool[np.ndarray, "K K"]:
  """Returns which completions were compared with each other; by ranks, all of them are."""
  k = len(record.completions)
  if not record.pairs:
    return ~np.eye(k, dtype=bool)
  matrix = np.zeros((k, k), bool)
  for pair in record.pairs:
    i, j = int(pair[0]), int(pair[1])
    matrix[i, j] = matrix[j, i] = True
  return matrix


def signs(record: Comparison) -> Float[np.ndarray, "K K"]:
  """Returns 1 where i is better than j, -1 where it is worse, and 0 where neither is."""
  better = weights(record) > 0
  return better.astype(float) - better.T


def ranks_of_pairs(k: int, pairs: Sequence[Sequence[float]]) -> list[int] | None:
  """Returns the ranks that say the same as labels of pairs, or None where no ranks do.

  They do where every two completions were compared and no label contradicts another one: where a
  is better than b and b than c, a is better than c, and ties are ties of all that is better and
  worse.
  """
  record = Comparison("", ("",) * k, (), pairs=tuple(tuple(pair) for pair in pairs))
  if (compared(record) | np.eye(k, dtype=bool)).all() and not _has_weights(pairs):
    better = weights(record) > 0
    # A completion is better than as many as those with a worse rank.
    wins = better.sum(axis=1)
    levels = sorted(set(wins.tolist()), reverse=True)
    ranks = [levels.index(count) + 1 for count in wins.tolist()]
    if ((of_ranks(ranks) > 0) == better).all():
      return ranks
  return None


def _has_weights(pairs: Sequence[Sequence[float]]) -> bool:
  """Returns whether some pair counts more or less than another one."""
  return any(len(pair) == 3 and pair[2] not in (0, 1) for pair in pairs)
