"""Requests into rows of ids and rows into batches of few shapes: rows of like length together, the longest first.

A plan is a function of the requests, the model's context and the budget alone, so that a run which goes on makes the same
batches again, with the same noise: what it samples is what the uninterrupted run would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from instructjax.data.pipeline import Row
from instructjax.errors import UserError
from instructjax.evals.tasks import Generate, Likelihood, Request

NARROW = 16  # tokens of the narrowest batch, and the step of the next ones


class Ask(NamedTuple):
  """One row to compute: the place of its item, its request, which sample of that, and the tokens left out at its beginning."""

  item: int
  request: int
  sample: int
  row: Row
  cut: int


class Draw(NamedTuple):
  """How the rows of a batch are continued; None in its place says that they are weighed."""

  tokens: int
  temperature: float
  stop: tuple[str, ...]
  top_p: float = 1.0
  top_k: int = 0


Asked = tuple[Ask, Draw | None]


class Batch(NamedTuple):
  """Rows of one kind, computed together as `size` rows of `width` tokens (of the prompt, where they are continued)."""

  asks: tuple[Ask, ...]
  width: int
  size: int
  draw: Draw | None


def rounded(number: int, step: int = 1) -> int:
  """The next multiple of an eighth of the power of two below a number, or of `step`: few values, at most a ninth in vain."""
  step = max(step, 1 << max(number.bit_length() - 4, 0))
  return -(-number // step) * step


def wide(length: int, most: int) -> int:
  """The width for rows of a length."""
  return min(rounded(length, NARROW), most)


def rows(
  requests: Iterable[tuple[int, Sequence[Request]]], head: Callable[[str], list[int]], encode: Callable[[str], list[int]],
  context: int,
) -> list[Asked]:  # fmt: skip
  """The rows of the requests of (place of the item, its requests) pairs.

  `head` gives the ids of a prompt, whatever comes before it included, and `encode` those of a continuation.  A prompt that
  does not fit the context loses its beginning.  Raises UserError where an answer alone does not fit.
  """
  found: list[Asked] = []
  for item, several in requests:
    for number, request in enumerate(several):
      match request:
        case Generate(prompt, tokens, temperature, stop, n, top_p, top_k):
          ids, cut = _shortened(head(prompt), [], tokens, context)
          draw = Draw(tokens, temperature, stop, top_p, top_k)
          found += [(Ask(item, number, sample, Row(ids, len(ids)), cut), draw) for sample in range(n)]
        case Likelihood(before, continuation):
          end = encode(continuation)
          if not end:
            raise UserError(f"a continuation of no tokens: {continuation!r} after {before[-40:]!r}")
          ids, cut = _shortened(head(before), end, len(end), context)
          found.append((Ask(item, number, 0, Row(ids, len(ids) - len(end)), cut), None))
  return found


def _shortened(head: list[int], end: list[int], answer: int, context: int) -> tuple[np.ndarray, int]:
  """(ids that leave room for the answer, how many were left out).  The first id stays: a model may expect it there."""
  room = context - answer
  if room < 1:
    raise UserError(
      f"an answer of {answer} tokens leaves no room for a prompt in the model's context of {context}; ask for fewer tokens"
    )
  cut = max(len(head) - room, 0)
  kept = [*head[:1], *head[1 + cut :]] if cut else head
  return np.asarray([*kept, *end], np.int32), cut


def plan(asked: Sequence[Asked], budget: int, parts: int, most: int) -> list[Batch]:
  """Batches of at most `budget` tokens, answers included, a multiple of `parts` rows each; `most` is the model's context."""
  found: list[Batch] = []
  kinds = dict.fromkeys(draw for _, draw in asked)  # in the order in which they come
  for draw in kinds:
    mine = sorted((ask for ask, kind in asked if kind == draw), key=lambda ask: -len(ask.row.ids))  # stable
    answer = draw.tokens if draw else 0
    at = 0
    while at < len(mine):
      width = wide(len(mine[at].row.ids), most - answer)
      left = rounded(-(-(len(mine) - at) // parts)) * parts  # the last batch is hardly larger than it must be
      size = max(min(budget // (width + answer) // parts * parts, left), parts)
      found.append(Batch(tuple(mine[at : at + size]), width, size, draw))
      at += size
  return found
