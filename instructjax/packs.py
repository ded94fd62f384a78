"""Packing inside a compiled function: episodes of any lengths, in rows that have little padding.

An episode of P + R tokens at most is mostly padding. Here the real tokens of several episodes stand
in one row, each episode a segment of its own, and a part of the row's places is for response
tokens. With one response to a prompt, a packed row has the shape of an episode's row, a full-length
episode fills one, and logits and losses see [.., R] as before. Where several responses to a prompt
follow each other, they are branches of one segment (`types.Branch`): the prompt stands in the row
once for all of them. The rows are computed in parts of a few at a time, of which only those that
hold something are computed (`steps.rows_of_parts`, `steps.gradients_of_parts`): one compiled
program does for all lengths.

On a mesh every shard of the batch packs its own episodes, and no episode leaves its device.

Dimensions: B episodes, n of them a shard, P prompt, R response, T = P + R; N parts of Q rows, q of
them a shard, each of W positions with places for A response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from instructjax import sharding
from instructjax.types import Array, Bool, Branch, Experience, Int, PyTree, Scalar, Valid


class Form(NamedTuple):
  """The form of packed rows: what they have room for.

  prompt     the columns of a prompt, P
  response   the columns of a response, R
  together   how many responses to one prompt follow each other
  positions  those of a packed row, W
  """

  prompt: int
  response: int
  together: int
  positions: int

  @property
  def places(self) -> int:
    """A: in the share that responses have of the tokens of a prompt and all of its responses."""
    responses = self.together * self.response
    return math.ceil(self.positions * responses / (self.prompt + responses))

  def most_rows(self, episodes: int) -> int:
    """Returns the rows that episodes take, at most: all of them have full length."""
    groups = episodes // self.together
    responses = self.together * self.response
    whole = min(self.positions // (self.prompt + responses), self.places // responses)
    if whole:
      return math.ceil(groups / whole)
    fit = min((self.positions - self.prompt) // self.response, self.places // self.response)
    return groups * math.ceil(self.together / fit)


def form_of(prompt: int, response: int, together: int = 1, groups: int = 1) -> Form:
  """Returns the form of packed rows for prompts that have `together` responses each.

  A row is as long as an episode, or where prompts are shared, as what a device computes at once,
  but no longer than all of the `groups` that a device has of a minibatch.
  """
  positions = prompt + response
  if together > 1:
    all_groups = groups * (prompt + together * response)
    positions = max(positions, min(sharding.positions_at_once(learnt=True), all_groups))
  return Form(prompt, response, together, positions)


@struct.dataclass
class Part:
  """What stands in packed rows; episodes are counted within their shard."""

  valid: Int[Array, "*N Q W"]  # the segment of each position, and 0 for padding
  episode: Int[Array, "*N Q W"]  # in a shared prompt, the first of its episodes
  column: Int[Array, "*N Q W"]  # in the row of the episode
  branch: Int[Array, "*N Q W"] | None  # as `types.Branch`; None where no prompt is shared
  # Of each place for a response token:
  holds: Bool[Array, "*N Q A"]
  response_episode: Int[Array, "*N Q A"]
  response_column: Int[Array, "*N Q A"]  # in the response of the episode
  before: Int[Array, "*N Q A"]  # the position of the token before it, whose state predicts it


@struct.dataclass
class Layout:
  """Where the episodes of a batch stand in packed rows."""

  parts: Part  # [N, ...]
  count: Int[Array, ""]  # the parts that hold anything; they are the first
  # Of each episode, within its shard:
  row: Int[Array, " B"]
  prompt_shift: Int[Array, " B"]  # columns of its prompt lie this far to the right
  shift: Int[Array, " B"]  # and those of its response
  place: Int[Array, " B"]  # of its first response token


def rows_at_once(
  most: int,
  length: int,
  *,
  rows: int = 0,
  micro: int = 1,
  learnt: bool = True,
) -> int:
  """Returns q, the rows that a device computes at once, for a minibatch that takes `most` rows.

  `learnt` is whether they are learnt from, or else scored alone.

  That is `rows`, or what makes `sharding.positions_at_once`, and at most a micro-batch of
  `most / micro` rows. Where up to twice as many divide `most`, it is these: episodes of full
  length, which fill a row each, then leave no row empty.
  """
  wanted = rows or math.ceil(sharding.positions_at_once(learnt=learnt) / length)
  limit = max(1, most // micro)
  if wanted >= limit:
    return limit
  for divisor in range(wanted, min(2 * wanted, limit) + 1):
    if not rows and most % divisor == 0:
      return divisor
  return wanted


def lay_out(
  tokens: Int[Array, "B T"],
  valid: Valid,
  mask: Bool[Array, "B R"],
  rows: int,
  form: Form,
) -> Layout:
  """Chooses a place for every episode, from its real tokens and the marks of its response.

  `rows` is q. A response counts up to its last mark. It may be a position longer than the real
  tokens, as where a score is paid after the end. Of episodes that stand together, one shares the
  prompt of the episode before it if it has the same one and they stand in one row.
  """
  if not sharding.is_sharded():
    parts, count, places = _lay_out_shard(tokens, valid, mask, rows=rows, form=form)
    return Layout(parts, count, *places)
  split = sharding.spec("batch")
  split_parts = sharding.spec(None, "batch")
  lay_out_shards = jax.shard_map(
    partial(_lay_out_shard, rows=rows, form=form, axes=sharding.mesh_axes("batch")),
    in_specs=(split, split, split),
    out_specs=(split_parts, jax.P(), split),
  )
  parts, count, places = lay_out_shards(tokens, valid, mask)
  return Layout(parts, count, *places)


class Piece(NamedTuple):
  """What an episode takes of a row, or where it stands; each field holds a number an episode."""

  prompt: Array
  response: Array
  place: Array


@partial(jax.jit, static_argnames=("rows", "form", "axes"))
def _lay_out_shard(
  tokens: Array,
  valid: Array,
  mask: Array,
  *,
  rows: int,
  form: Form,
  axes: tuple[str, ...] = (),
) -> tuple[Part, Array, tuple[Array, ...]]:
  """The parts, their count and (row, prompt_shift, shift, place) of the n episodes of one shard.

  `axes` are those of the mesh that split a batch.
  """
  n, _ = valid.shape
  P, together, W, A = form.prompt, form.together, form.positions, form.places
  first = _first_column(valid, P)
  sizes = Piece(prompt=P - first, response=_extent(valid[:, P:] > 0), place=_extent(mask))

  # The longest come first, by what they take most of: positions, or places for response tokens.
  # Episodes of one prompt stay next to each other.
  groups = jax.tree.map(lambda size: size.reshape(-1, together).sum(axis=1), sizes)
  length = sizes.prompt[::together] + groups.response
  group_order = jnp.argsort(-jnp.maximum(length * A, groups.place * W), stable=True)
  order = rows_of_groups(group_order, together)
  by_rank = jax.tree.map(lambda size: size[order], sizes)
  shares = _shares_prompt(tokens, valid, P, together)[order]
  # As many as where each episode fills a row, even if no prompt is shared.
  N = math.ceil(n / rows)
  row, begins, start = _fit(by_rank, shares, N * rows, W, A)

  # Each position belongs to the piece that begins last before it: a prompt, or a response.
  ranks = jnp.arange(n, dtype=jnp.int32)
  beyond = jnp.where(begins, start.prompt, W)  # a prompt that stands there already has no mark
  piece = _last_mark(
    jnp.concatenate([row, row]),
    jnp.concatenate([beyond, start.response]),
    jnp.concatenate([2 * ranks, 2 * ranks + 1]),
    N * rows,
    W,
  )
  rank, in_response = piece // 2, piece % 2 == 1
  position = jnp.arange(W, dtype=jnp.int32)
  offset = position - jnp.where(in_response, start.response[rank], start.prompt[rank])
  size = jnp.where(in_response, by_rank.response[rank], by_rank.prompt[rank])
  inside = (offset >= 0) & (offset < size) & (row[rank] == _numbers(N * rows))
  from_column = jnp.where(in_response, P, first[order][rank])
  episode = jnp.where(inside, order[rank], 0)
  column = jnp.where(inside, from_column + offset, 0)
  # A segment has the number of the episode that its prompt began with.
  begun = jax.lax.cummax(jnp.where(begins, ranks, 0))
  is_real = inside & (valid[episode, column] > 0)
  segment = jnp.where(is_real, begun[rank] + 1, 0)
  branch = None
  if together > 1:
    branch = jnp.where(is_real & in_response, rank + 1, 0)

  response_rank = _last_mark(row, start.place, ranks, N * rows, A)
  token = jnp.arange(A, dtype=jnp.int32) - start.place[response_rank]
  holds = (token >= 0) & (token < by_rank.place[response_rank])
  holds &= row[response_rank] == _numbers(N * rows)
  response_episode = jnp.where(holds, order[response_rank], 0)
  response_column = jnp.where(holds, token, 0)
  # The state before the first response token is that of the last column of the prompt.
  prompt_end = (start.prompt + by_rank.prompt - 1)[response_rank]
  before = jnp.where(token == 0, prompt_end, start.response[response_rank] + token - 1)
  before = jnp.where(holds, before, 0)

  part = Part(
    valid=segment,
    episode=episode,
    column=column,
    branch=branch,
    holds=holds,
    response_episode=response_episode,
    response_column=response_column,
    before=before,
  )
  parts = jax.tree.map(lambda x: x.reshape(N, rows, *x.shape[1:]), part)
  count = (jnp.max(row) // rows + 1).astype(jnp.int32)
  if axes:
    # Shards compute in step, each as many parts as the fullest of them.
    count = jax.lax.pmax(count, axes)
  rank_of_episode = jnp.argsort(order).astype(jnp.int32)
  where = (row, start.prompt - first[order], start.response - P, start.place)
  places = jax.tree.map(lambda x: x[rank_of_episode], where)
  return parts, count, places


def _first_column(valid: Array, prompt: int) -> Array:
  """Returns the first real column of each prompt.

  The last column of a prompt always counts, as the state before the first response token is there.
  """
  columns = jnp.arange(prompt, dtype=jnp.int32)
  real = (valid[:, :prompt] > 0) | (columns == prompt - 1)
  return jnp.min(jnp.where(real, columns, prompt), axis=1)


def _shares_prompt(tokens: Array, valid: Array, prompt: int, together: int) -> Array:
  """Returns whether each episode has the prompt of the one before it, within its group."""
  prompts = jnp.where(valid[:, :prompt] > 0, tokens[:, :prompt], -1)
  same = jnp.all(prompts == jnp.roll(prompts, 1, axis=0), axis=1)
  is_first = jnp.arange(tokens.shape[0]) % together == 0
  return same & ~is_first


def _extent(mask: Array) -> Array:
  """Returns how many columns a row has up to its last True."""
  columns = jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)
  return jnp.max(jnp.where(mask, columns, 0), axis=1)


def _numbers(rows: int) -> Array:
  return jnp.arange(rows, dtype=jnp.int32)[:, None]


def _fit(
  sizes: Piece,
  shares: Array,
  rows: int,
  W: int,
  A: int,
) -> tuple[Array, Array, Piece]:
  """Returns (row, whether its prompt begins there, where it starts) of each episode.

  One that shares a prompt stands behind the episode before it, if there is room. Else it goes into
  the first row that has room for it and its prompt, which is a new one where no other has.
  """
  # Zeros of these arrays, and not new ones, vary over the mesh as the arrays do.
  zero = 0 * sizes.prompt[0]

  def put(filled: tuple[Array, ...], episode: tuple[Piece, Array]):
    positions, places, last_row, last_prompt = filled
    size, share = episode
    enough = places + size.place <= A
    goes_on = share & enough[last_row] & (positions[last_row] + size.response <= W)
    has_room = enough & (positions + size.prompt + size.response <= W)
    row = jnp.where(goes_on, last_row, jnp.argmax(has_room).astype(jnp.int32))
    prompt = jnp.where(goes_on, last_prompt, positions[row])
    response = positions[row] + jnp.where(goes_on, 0, size.prompt)
    start = Piece(prompt, response, places[row])
    filled = (
      positions.at[row].set(response + size.response),
      places.at[row].add(size.place),
      row,
      prompt,
    )
    return filled, (row, ~goes_on, start)

  empty = jnp.zeros(rows, jnp.int32) + zero
  _, where = jax.lax.scan(put, (empty, empty, zero, zero), (sizes, shares))
  return where


def _last_mark(row: Array, column: Array, number: Array, rows: int, columns: int) -> Array:
  """Returns the number of what begins last before or at each position, else 0."""
  marks = jnp.zeros((rows, columns), jnp.int32) + 0 * row[0]
  # What stands in a row has rising numbers. What begins beyond a row is dropped.
  marks = marks.at[row, column].max(number, mode="drop")
  return jax.lax.cummax(marks, axis=1)


# Into packed rows and back


@struct.dataclass
class Rows:
  """Rows of episodes as models read them."""

  tokens: Int[Array, "B T"]
  valid: Bool[Array, "B T"] | Int[Array, "B T"]
  mask: Bool[Array, "B R"]
  # Of packed rows: the response tokens, the column before each, and where they share prompts.
  targets: Int[Array, "B R"] | None = None
  before: Int[Array, "B R"] | None = None
  branch: Branch | None = None


def rows_of(part: Part, tokens: Int[Array, "B T"], mask: Bool[Array, "B R"]) -> Rows:
  """Returns the packed rows of a part."""
  return Rows(
    tokens=take_tokens(part, tokens),
    valid=part.valid,
    mask=take_responses(part, mask),
    targets=take_responses(part, response_tokens(tokens, mask)),
    before=part.before,
    branch=part.branch,
  )


def experience(part: Part, exp: Experience) -> Experience:
  """Returns the packed rows of a part, with everything that the update holds fixed."""
  tokens, stem, value_stem = take_tokens(part, (exp.tokens, exp.stem, exp.value_stem))
  held = (exp.mask, exp.value_mask, exp.logp, exp.value, exp.advantage, exp.target, exp.ref_logp)
  mask, value_mask, logp, value, advantage, target, ref_logp = take_responses(part, held)
  return Experience(
    tokens=tokens,
    valid=part.valid,
    mask=mask,
    value_mask=value_mask,
    logp=logp,
    value=value,
    advantage=advantage,
    target=target,
    stem=stem,
    value_stem=value_stem,
    targets=take_responses(part, response_tokens(exp.tokens, exp.mask)),
    before=part.before,
    branch=part.branch,
    ref_logp=ref_logp,
  )


def response_tokens(tokens: Int[Array, "B T"], mask: Bool[Array, "B R"]) -> Int[Array, "B R"]:
  """Returns the columns of the responses."""
  return tokens[:, -mask.shape[1] :]


def take_tokens(part: Part, x: PyTree) -> PyTree:
  """[B, T, ...] -> [Q, W, ...]: what belongs to each position of the rows, and 0 in padding."""
  return _take(part.valid > 0, part.episode, part.column, x)


def take_responses(part: Part, x: PyTree) -> PyTree:
  """[B, R, ...] -> [Q, A, ...]: what belongs to each response token of the rows, else 0."""
  return _take(part.holds, part.response_episode, part.response_column, x)


def _take(holds: Array, episode: Array, column: Array, x: PyTree) -> PyTree:
  def take_shard(holds: Array, episode: Array, column: Array, x: Array) -> Array:
    values = x[episode, column]
    return jnp.where(_like(holds, values), values, jnp.zeros((), x.dtype))

  def take(leaf: Array) -> Array:
    return sharding.on_each_device(take_shard, sharding.spec("batch"), holds, episode, column, leaf)

  return jax.tree.map(take, x)


def _like(mask: Array, x: Array) -> Array:
  """A mask with as many axes as x."""
  return mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))


def give_tokens(layout: Layout, x: PyTree, valid: Valid, response: int) -> PyTree:
  """[N, Q, W, ...] -> [B, T, ...]: what was computed of each real token, and 0 in padding.

  The last `response` columns are those of responses.
  """
  prompt = valid.shape[1] - response

  def give_shard(row: Array, prompt_shift: Array, shift: Array, valid: Array, x: Array) -> Array:
    column = jnp.arange(valid.shape[1], dtype=jnp.int32)
    shifts = jnp.where(column < prompt, prompt_shift[:, None], shift[:, None])
    return _at(x, row, column + shifts, valid > 0)

  places = (layout.row, layout.prompt_shift, layout.shift)
  return jax.tree.map(partial(_give, give_shard, *places, valid), x)


def give_responses(layout: Layout, x: PyTree, mask: Bool[Array, "B R"]) -> PyTree:
  """[N, Q, A, ...] -> [B, R, ...]: what was computed of each response token, else 0."""

  def give_shard(row: Array, place: Array, mask: Array, x: Array) -> Array:
    columns = jnp.arange(mask.shape[1], dtype=jnp.int32) + place[:, None]
    return _at(x, row, columns, mask)

  return jax.tree.map(partial(_give, give_shard, layout.row, layout.place, mask), x)


def _give(give_shard: Callable, *arrays: Array) -> Array:
  """Calls a function on the shards of a batch, which gives a row an episode."""
  return sharding.on_each_device(give_shard, sharding.spec("batch"), *arrays)


def _at(x: Array, row: Array, columns: Array, holds: Array) -> Array:
  """The values of packed rows [N, q, ...] at the columns of each episode's row, else 0."""
  rows = x.reshape(-1, *x.shape[2:])
  values = rows[row[:, None], jnp.clip(columns, 0, x.shape[2] - 1)]
  return jnp.where(_like(holds, values), values, jnp.zeros((), x.dtype))


# What packing saves, and how shards share it


def useful(layout: Layout) -> Scalar:
  """Returns the share of the computed positions that hold real tokens; a shared prompt is once."""
  segments = layout.parts.valid
  _, rows, length = segments.shape
  computed = (layout.count * rows * length).astype(jnp.float32)
  return jnp.sum(segments > 0).astype(jnp.float32) / computed


def rows_of_groups(groups: Int[Array, " G"], together: int) -> Int[Array, " B"]:
  """Returns the row numbers of groups of `together` rows that follow each other."""
  return (groups[:, None] * together + jnp.arange(together)).reshape(-1).astype(jnp.int32)


def deal(length: Int[Array, " B"], shards: int, together: int = 1) -> Int[Array, " B"]:
  """Returns an order of episodes in which the shards of a batch have about equally many tokens.

  The longest are dealt first, one to each shard, and the next ones in the opposite direction. Of
  `together` episodes that follow each other all go to one shard.
  """
  group_length = length.reshape(-1, together).sum(axis=1)
  longest_first = jnp.argsort(-group_length, stable=True).astype(jnp.int32)
  rounds = longest_first.reshape(-1, shards)
  backward = jnp.arange(rounds.shape[0])[:, None] % 2 == 1
  rounds = jnp.where(backward, rounds[:, ::-1], rounds)
  return rows_of_groups(rounds.T.reshape(-1), together)
