"""Requests into rows of ids and rows into batches of few shapes: rows of like length together, the
longest first.

A prompt that several rows begin with (the choices of a question, the samples of a prompt) is
read once for a group of them. How large a group is, is chosen for each kind of rows by what the
model has to read.

A plan is a function of the requests, the model's context and the budget alone, so that a run
which goes on makes the same batches again, with the same noise: what it samples is what the
uninterrupted run would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from instructjax.data.batches.pipeline import Row
from instructjax.errors import UserError
from instructjax.evals.tasks import Generate, Likelihood, Request

NARROW = 16  # tokens of the narrowest batch, and the step of the next ones
SHORT = 8  # tokens of the narrowest end of rows that share a prompt
MOST = 32  # rows that share a prompt
# Of the tokens that are read when every row is by itself: sharing a prompt has to save the rest
PAYS = 0.8


class Ask(NamedTuple):
  """One row to compute: the place of its item, its request, which sample of that, and the tokens
  left out at its beginning.
  """

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
  """Groups of rows of one kind, computed together: `size` groups of `fan` rows.

  The rows of a group share their prompt: `width` is that of prompts and `end` that of what
  follows.  Rows that are weighed alone have an `end` of 0, and `width` is that of the whole.
  """

  groups: tuple[tuple[Ask, ...], ...]
  width: int
  end: int
  size: int
  fan: int
  draw: Draw | None

  @property
  def asks(self) -> tuple[Ask, ...]:
    return tuple(ask for group in self.groups for ask in group)


def rounded(number: int, step: int = 1) -> int:
  """The next multiple of an eighth of the power of two below a number, or of `step`: few values, at
  most a ninth in vain.
  """
  step = max(step, 1 << max(number.bit_length() - 4, 0))
  return -(-number // step) * step


def wide(length: int, most: int) -> int:
  """The width for rows of a length."""
  return min(rounded(length, NARROW), most)


def rows(
  requests: Iterable[tuple[int, Sequence[Request]]],
  head: Callable[[str], list[int]],
  encode: Callable[[str], list[int]],
  context: int,
) -> list[Asked]:
  """The rows of the requests of (place of the item, its requests) pairs.

  `head` gives the ids of a prompt, whatever comes before it included, and `encode` those of a
  continuation.  A prompt that does not fit the context loses its beginning.  Raises UserError
  where an answer alone does not fit.
  """
  found: list[Asked] = []
  for item, several in requests:
    for number, request in enumerate(several):
      match request:
        case Generate(prompt, tokens, temperature, stop, n, top_p, top_k):
          ids, cut = _shortened(head(prompt), [], tokens, context)
          draw = Draw(tokens, temperature, stop, top_p, top_k)
          found += [
            (Ask(item, number, sample, Row(ids, len(ids)), cut), draw) for sample in range(n)
          ]
        case Likelihood(before, continuation):
          end = encode(continuation)
          if not end:
            raise UserError(f"a continuation of no tokens: {continuation!r} after {before[-40:]!r}")
          ids, cut = _shortened(head(before), end, len(end), context)
          found.append((Ask(item, number, 0, Row(ids, len(ids) - len(end)), cut), None))
  return found


def _shortened(
  head: list[int], end: list[int], answer: int, context: int
) -> tuple[np.ndarray, int]:
  """(ids that leave room for the answer, how many were left out).  The first id stays: a model may
  expect it there.
  """
  room = context - answer
  if room < 1:
    raise UserError(
      f"an answer of {answer} tokens leaves no room for a prompt in the model's context of "
      f"{context}; ask for fewer tokens"
    )
  cut = max(len(head) - room, 0)
  kept = [*head[:1], *head[1 + cut :]] if cut else head
  return np.asarray([*kept, *end], np.int32), cut


def plan(asked: Sequence[Asked], budget: int, parts: int, most: int) -> list[Batch]:
  """Batches of at most `budget` tokens, answers included, a multiple of `parts` groups each; `most`
  is the model's context.
  """
  found: list[Batch] = []
  for draw in dict.fromkeys(draw for _, draw in asked):  # in the order in which they come
    groups = _by_prompt([ask for ask, kind in asked if kind == draw])
    batches = partial(_batches, draw=draw, budget=budget, parts=parts)
    if draw:
      found += batches(
        groups, _fan(groups, draw.tokens, budget // parts), draw.tokens, most - draw.tokens
      )
      continue
    ends: dict[int, list[tuple[Ask, ...]]] = {}
    for group in groups:
      ends.setdefault(_end(group), []).append(group)
    alone = []
    for end, several in sorted(ends.items(), reverse=True):
      fitting = [group for group in several if group[0].row.start + end <= most]
      fan = _fan(fitting, end, budget // parts)
      found += batches(fitting, fan, end, most - end) if fan > 1 else []
      alone += (
        several if fan == 1 else [group for group in several if group[0].row.start + end > most]
      )
    found += batches(alone, 1, 0, most)
  return found


def _batches(
  groups: Sequence[tuple[Ask, ...]],
  fan: int,
  end: int,
  most: int,
  *,
  draw: Draw | None,
  budget: int,
  parts: int,
) -> Iterator[Batch]:
  """Batches of groups of at most `fan` rows, those with the longest prompts first; no prompt is
  wider than `most`.
  """
  length = lambda group: group[0].row.start if end else len(group[0].row.ids)
  pieces = [group[at : at + fan] for group in groups for at in range(0, len(group), fan)]
  pieces.sort(key=length, reverse=True)  # stable
  at = 0
  while at < len(pieces):
    width = wide(length(pieces[at]), most)
    left = (
      rounded(-(-(len(pieces) - at) // parts)) * parts
    )  # the last batch is hardly larger than it must be
    size = max(min(budget // (fan * (width + end)) // parts * parts, left), parts)
    yield Batch(tuple(pieces[at : at + size]), width, end, size, fan, draw)
    at += size


def _by_prompt(asks: Iterable[Ask]) -> list[tuple[Ask, ...]]:
  """The rows of each prompt."""
  found: dict[bytes, list[Ask]] = {}
  for ask in asks:
    found.setdefault(ask.row.ids[: ask.row.start].tobytes(), []).append(ask)
  return [tuple(group) for group in found.values()]


def _end(group: Sequence[Ask]) -> int:
  """The room for what follows the prompt in the rows of a group."""
  longest = max(len(ask.row.ids) - ask.row.start for ask in group)
  return SHORT if longest <= SHORT else rounded(longest, NARROW)


def _fan(groups: Sequence[tuple[Ask, ...]], end: int, budget: int) -> int:
  """The rows of a group with which the fewest tokens are read; 1 unless it pays.

  `end` tokens follow the prompt in each.  A group with the longest prompt fits the budget of one
  part.
  """
  rows, prompt = (
    np.array(each)
    for each in ([len(group) for group in groups], [group[0].row.start for group in groups])
  )
  alone = sum(rows * prompt) + sum(
    len(ask.row.ids) - ask.row.start or end for group in groups for ask in group
  )
  fitting = budget // (
    rounded(max((group[0].row.start for group in groups), default=0), NARROW) + end
  )
  read = [
    (-(-rows // fan) * (prompt + fan * end)).sum()
    for fan in range(2, min(max(rows, default=1), MOST, fitting) + 1)
  ]
  return 2 + int(np.argmin(read)) if read and min(read) < PAYS * alone else 1
