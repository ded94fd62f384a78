"""Comparisons in packed rows: the prompt of a group once, then each completion as a branch of it.

A group takes as many tokens as its prompt and its completions have, whatever the largest K of the
data is. What the rows of a group begin with in common counts as its prompt: their ids are those of
K separate rows, so the scores are too. Groups are packed as other rows are (`packing`), and the
packed rows of a batch stand in parts, of which a step computes those that hold something.

Dimensions: G packed rows of a part, N parts, L tokens of a packed row, S groups that a packed row
holds at most, K completions, n tokens of a group, m of them that a policy learns, B groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from instructjax import packs, sharding
from instructjax.data.batches import packing
from instructjax.data.batches.pipeline import Group, Host, Row
from instructjax.data.records import preferences
from instructjax.types import Comparisons, Predictions

MULTIPLE = 8  # packed rows have a multiple of so many tokens
SHORT = 0.75  # of the longest rows: rows so much shorter are worth a program of their own


class Learnt(NamedTuple):
  """The tokens of the completions of a group: `types.Predictions` of the group alone."""

  before: Int[np.ndarray, " m"]  # where the token before stands in the run
  token: Int[np.ndarray, " m"]
  completion: Int[np.ndarray, " m"]  # k, from 0 on


class Branches(NamedTuple):
  """The rows of one prompt as one run of tokens."""

  ids: Int[np.ndarray, " n"]
  branch: Int[np.ndarray, " n"]  # 0 is what all rows begin with, k + 1 the rest of row k
  last: Int[np.ndarray, " K"]  # where each row ends
  same: Int[np.ndarray, " K"]  # rows with the same ids have the same number, from 1 on
  ranks: tuple[int, ...]
  ratings: tuple[float, ...] = ()
  learnt: Learnt | None = None  # where a policy learns the completions
  stem: Float[np.ndarray, "n D"] | None = None  # `LM.stem` of the tokens, if computed beforehand
  labels: Float[np.ndarray, "K K"] | None = None  # of pairs, where they are no ranking


class Layout(NamedTuple):
  """The shape of a batch of packed comparisons."""

  rows: int  # G
  parts: int  # N
  length: int  # L
  slots: int  # S
  completions: int  # K
  learnt: int = 0  # tokens of a packed row that a policy learns, at most
  labels: bool = False  # whether the labels of pairs are no ranking, in some group of the data


class Fitting(NamedTuple):
  """A layout, and the most tokens of a group that it is for."""

  longest: int
  layout: Layout


class Slots(NamedTuple):
  """Where each of B groups stands in a batch: its part, row, first column and slot in the row."""

  part: Int[np.ndarray, " B"]
  row: Int[np.ndarray, " B"]
  start: Int[np.ndarray, " B"]
  slot: Int[np.ndarray, " B"]


def of_group(group: Group, *, learnt: bool = False) -> Branches:
  """Returns a group as a prompt and its branches.

  With `learnt` it says which tokens are those of completions. The prompt then ends where the first
  completion starts, because each has all of its tokens in its own branch.
  """
  rows = [row.ids for row in group.rows]
  starts = [row.start for row in group.rows]
  shared = _common_prefix(rows)
  if learnt:
    shared = min(shared, *starts)
  ids = [rows[0][:shared]]
  branch = [np.zeros(shared, np.int32)]
  last = []
  end = shared
  for number, row in enumerate(rows, 1):
    rest = row[shared:]
    end += len(rest)
    ids.append(rest)
    branch.append(np.full(len(rest), number, np.int32))
    # A row that is the beginning of all others ends where the prompt ends.
    last.append(end - 1 if len(rest) else shared - 1)
  texts = [row.tobytes() for row in rows]
  same = [texts.index(text) + 1 for text in texts]
  return Branches(
    ids=np.concatenate(ids),
    branch=np.concatenate(branch),
    last=np.asarray(last, np.int32),
    same=np.asarray(same, np.int32),
    ranks=group.ranks,
    ratings=group.ratings,
    learnt=_learnt(rows, starts, shared) if learnt else None,
    labels=group.labels,
  )


def _learnt(rows: Sequence[np.ndarray], starts: Sequence[int], shared: int) -> Learnt:
  """Returns the tokens of each row from its start on; nothing predicts the first of a row."""
  before, token, completion = [], [], []
  begin = shared  # where the branch of a row begins in the run
  for k, (row, start) in enumerate(zip(rows, starts, strict=True)):
    places = np.arange(max(start, 1), len(row))
    previous = places - 1
    # The token before the first of a branch is the last of the prompt.
    before.append(np.where(previous < shared, previous, previous - shared + begin))
    token.append(row[places])
    completion.append(np.full(len(places), k))
    begin += len(row) - shared
  return Learnt(np.concatenate(before), np.concatenate(token), np.concatenate(completion))


def of_row(row: Row) -> Branches:
  """Returns a single row, which is no comparison, in the form of a group with one completion."""
  return of_group(Group((row,), (1,)))


def _common_prefix(rows: Sequence[np.ndarray]) -> int:
  """Returns the number of tokens that all rows begin with."""
  shortest = min(len(row) for row in rows)
  first = rows[0][:shortest]
  equal = np.ones(shortest, bool)
  for row in rows[1:]:
    equal &= row[:shortest] == first
  return shortest if equal.all() else int(np.argmin(equal))


# --- the shape of a batch ---


def layout(
  groups: Sequence[Branches], batch: int, shards: int, micro: int = 0, *, scored: bool = False
) -> Layout:
  """Returns the layout of batches of `batch` groups, for the longest and the shortest of all.

  `shards` is the number of parts that the mesh splits rows into; see `layout_for` for `micro` and
  `scored`.
  """
  sizes = [len(group.ids) for group in groups]
  shares = [
    len(group.learnt.token) / len(group.ids) for group in groups if group.learnt is not None
  ]
  return layout_for(
    batch,
    shards,
    longest=max(sizes),
    shortest=min(sizes),
    completions=max(len(group.last) for group in groups),
    learnt=max(shares, default=0.0),
    micro=micro,
    scored=scored,
    labels=any(group.labels is not None for group in groups),
  )


def layouts(
  groups: Sequence[Branches], batch: int, shards: int, micro: int = 0
) -> tuple[Fitting, ...]:
  """Returns the layouts of batches: one, or a short one first where few groups are much longer.

  A packed row is as long as the longest group, so a single record of nine completions would make
  every batch of pairs compute longer rows with less in them. The short layout is that of the data
  without their longest groups: at least half of all batches hold none of these, and its rows are
  shorter by a quarter or more. Both are compiled, so there are never more than two.
  """
  sizes = sorted(len(group.ids) for group in groups)
  whole = Fitting(sizes[-1], layout(groups, batch, shards, micro))
  # A process that makes some rows of a batch alone cannot tell which layout the others need.
  if len(sharding.local_rows(batch)) < batch:
    return (whole,)
  # So many of the n groups may be longer: (1 - m / n)^batch is at least a half.
  most = math.floor(len(groups) * (1 - 0.5 ** (1 / batch)))
  limit = sizes[len(sizes) - 1 - most]
  common = [group for group in groups if len(group.ids) <= limit]
  short = Fitting(limit, layout(common, batch, shards, micro))
  return (short, whole) if short.layout.length <= SHORT * whole.layout.length else (whole,)


def fitting(groups: Sequence[Branches], layouts: Sequence[Fitting]) -> Layout:
  """Returns the first of the layouts that holds the groups of a batch."""
  longest = max(len(group.ids) for group in groups)
  return next(layout for most, layout in layouts if longest <= most)


def layout_for(
  batch: int,
  shards: int,
  *,
  longest: int,
  shortest: int,
  completions: int,
  learnt: float = 0.0,
  micro: int = 0,
  scored: bool = False,
  labels: bool = False,
) -> Layout:
  """Returns the layout of batches of `batch` groups of `shortest` to `longest` tokens.

  There are `micro` parts, each of as many rows as a part of `batch` / `micro` groups of the longest
  takes. With 0 it has what `packs.rows_at_once` says for each of the `shards`, for groups that are
  `scored` and not learnt from, or else for those that are.
  `learnt` is the largest share of the tokens of a group that a policy learns, and `labels` says
  whether the labels of pairs of some group are no ranking.
  """
  length = -(-longest // MULTIPLE) * MULTIPLE
  most = -(-batch // shards)  # rows of a device, where every group takes one
  rows = -(-most // micro) if micro else packs.rows_at_once(most, length, learnt=not scored)
  return Layout(
    rows=rows * shards,
    parts=-(-most // rows),
    length=length,
    slots=min(batch, length // shortest),
    completions=completions,
    # No packed row has a larger share than the group with the largest.
    learnt=math.ceil(learnt * length),
    labels=labels,
  )


def of_this_process(layout: Layout) -> Layout:
  """Returns the layout of the rows that this process makes of every batch."""
  return layout._replace(rows=len(sharding.local_rows(layout.rows)))


# --- groups to a batch ---


def slots_of(groups: Sequence[Branches], layout: Layout) -> Slots:
  """Packs groups into a batch of this layout, and returns where each of them stands."""
  sizes = np.asarray([len(group.ids) for group in groups], np.int64)
  places = packing.into_parts(sizes, layout.length, layout.rows)
  taken = np.zeros((layout.parts, layout.rows), np.int64)
  slot = np.zeros(len(groups), np.int64)
  for number, (part, row) in enumerate(zip(places.part, places.row, strict=True)):
    slot[number] = taken[part, row]
    taken[part, row] += 1
  return Slots(places.part, places.row, places.start, slot)


def pack(groups: Sequence[Branches], layout: Layout) -> Comparisons:
  """Packs at most `rows` x `parts` groups into a batch [G, N, ...].

  The rows come first, because a mesh splits a batch along its first axis.

  Raises:
    UserError: if a group is longer than a packed row.
  """
  G, N, L, S, K = layout[:5]
  tokens: Host = np.zeros((G, N, L), np.int32)
  valid: Host = np.zeros((G, N, L), np.int32)
  branch: Host = np.zeros((G, N, L), np.int32)
  last: Host = np.zeros((G, N, S, K), np.int32)
  rank: Host = np.zeros((G, N, S, K), np.int32)
  same: Host = np.zeros((G, N, S, K), np.int32)
  # Either all groups have ratings or none has, and likewise stems.
  rating: Host = np.zeros((G, N, S, K), np.float32) if groups[0].ratings else None
  label: Host = np.zeros((G, N, S, K, K), np.float32) if layout.labels else None
  stem: Host = None
  if groups[0].stem is not None:
    stem = np.zeros((G, N, L, groups[0].stem.shape[1]), groups[0].stem.dtype)
  slots = slots_of(groups, layout)
  for group, part, row, start, slot in zip(groups, *slots, strict=True):
    columns = row, part, slice(start, start + len(group.ids))
    completions = row, part, slot, slice(len(group.last))
    tokens[columns] = group.ids
    valid[columns] = slot + 1
    branch[columns] = group.branch
    last[completions] = start + group.last
    rank[completions] = group.ranks
    same[completions] = group.same
    if label is not None:
      ranked = preferences.of_ranks(group.ranks)
      k = len(group.ranks)
      label[row, part, slot, :k, :k] = ranked if group.labels is None else group.labels
    if rating is not None:
      rating[completions] = group.ratings
    if stem is not None:
      stem[columns] = group.stem
  predictions = _predictions(groups, slots, layout)
  return Comparisons(tokens, valid, branch, last, rank, same, stem, rating, predictions, label)


def _predictions(groups: Sequence[Branches], slots: Slots, layout: Layout) -> Predictions | None:
  """Returns the tokens that a policy learns, or None where the groups do not say which."""
  if groups[0].learnt is None:
    return None
  G, N, _, S, K, M = layout[:6]
  before: Host = np.zeros((G, N, M), np.int32)
  token: Host = np.zeros((G, N, M), np.int32)
  completion: Host = np.full((G, N, M), S * K, np.int32)
  taken = np.zeros((G, N), np.int64)
  for group, part, row, start, slot in zip(groups, *slots, strict=True):
    learnt = group.learnt
    assert learnt is not None, "either all groups say what is learnt or none does"
    first = taken[row, part]
    end = first + len(learnt.token)
    taken[row, part] = end
    places = row, part, slice(first, end)
    before[places] = start + learnt.before
    token[places] = learnt.token
    completion[places] = slot * K + learnt.completion
  return Predictions(before, token, completion)


def unpack(scores: Float[np.ndarray, "G N S K"], slots: Slots) -> Float[np.ndarray, "B K"]:
  """Returns the scores of each group, in the order in which the groups were packed."""
  picked: Any = scores[slots.row, slots.part, slots.slot]
  return picked
