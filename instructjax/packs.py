"""Packing inside a compiled function: episodes of any lengths, in rows as long as the longest.

An episode of P + R tokens at most is mostly padding. Here the real tokens of several episodes stand
in one row, each episode a segment of its own, and R places of the row are for response tokens. So a
packed row has the shape of an episode's row, a full-length episode fills one, and logits and losses
see [.., R] as before. The rows are computed in parts of a few at a time, of which only those that
hold something are computed (`steps.rows_of_parts`, `steps.gradients_of_parts`): one compiled
program does for all lengths.

On a mesh every shard of the batch packs its own episodes, and no episode leaves its device.

Dimensions: B episodes, n of them a shard, P prompt, R response, T = P + R; N parts of Q rows, q of
them a shard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from instructjax import sharding
from instructjax.types import Array, Bool, Experience, Int, PyTree, Scalar, Valid


@struct.dataclass
class Part:
  """What stands in packed rows; episodes are counted within their shard."""

  valid: Int[Array, "*N Q T"]  # the segment of each position, and 0 for padding
  episode: Int[Array, "*N Q T"]
  column: Int[Array, "*N Q T"]  # in the row of the episode
  # Of each place for a response token:
  holds: Bool[Array, "*N Q R"]
  response_episode: Int[Array, "*N Q R"]
  response_column: Int[Array, "*N Q R"]  # in the response of the episode
  before: Int[Array, "*N Q R"]  # the position of the token before it, whose state predicts it


@struct.dataclass
class Layout:
  """Where the episodes of a batch stand in packed rows."""

  parts: Part  # [N, ...]
  count: Int[Array, ""]  # the parts that hold anything; they are the first
  # Of each episode, within its shard:
  row: Int[Array, " B"]
  shift: Int[Array, " B"]  # its columns lie this far to the right of where they were
  place: Int[Array, " B"]  # of its first response token


def rows_at_once(
  episodes: int,
  length: int,
  *,
  rows: int = 0,
  micro: int = 1,
  learnt: bool = True,
) -> int:
  """Returns q, the rows that a device computes at once, for its `episodes` of a minibatch.

  `learnt` is whether they are learnt from, or else scored alone.

  That is `rows`, or what makes `sharding.positions_at_once`, and at most a micro-batch of
  `episodes / micro` rows. Where up to twice as many divide the episodes, it is these: episodes of
  full length, which fill a row each, then leave no row empty.
  """
  wanted = rows or math.ceil(sharding.positions_at_once(learnt=learnt) / length)
  most = max(1, episodes // micro)
  if wanted >= most:
    return most
  for divisor in range(wanted, min(2 * wanted, most) + 1):
    if not rows and episodes % divisor == 0:
      return divisor
  return wanted


def lay_out(
  valid: Valid,
  mask: Bool[Array, "B R"],
  rows: int,
) -> Layout:
  """Chooses a place for every episode, from its real tokens and the marks of its response.

  `rows` is q. A response counts up to its last mark. It may be a position longer than the real
  tokens, as where a score is paid after the end.
  """
  if not sharding.is_sharded():
    parts, count, places = _lay_out_shard(valid, mask, rows=rows)
    return Layout(parts, count, *places)
  split = sharding.spec("batch")
  split_parts = sharding.spec(None, "batch")
  lay_out_shards = jax.shard_map(
    partial(_lay_out_shard, rows=rows, axes=sharding.mesh_axes("batch")),
    in_specs=(split, split),
    out_specs=(split_parts, jax.P(), split),
  )
  parts, count, places = lay_out_shards(valid, mask)
  return Layout(parts, count, *places)


@partial(jax.jit, static_argnames=("rows", "axes"))
def _lay_out_shard(
  valid: Array,
  mask: Array,
  *,
  rows: int,
  axes: tuple[str, ...] = (),
) -> tuple[Part, Array, tuple[Array, Array, Array]]:
  """The parts, their count and (row, shift, place) of the n episodes of one shard.

  `axes` are those of the mesh that split a batch.
  """
  n, T = valid.shape
  R = mask.shape[1]
  first, length = _spans(valid, T - R)
  response = _extent(mask)

  # The longest come first, by what they take most of: positions, or places for response tokens.
  size = jnp.maximum(length * R, response * T)
  order = jnp.argsort(-size, stable=True).astype(jnp.int32)
  length_by_rank, response_by_rank = length[order], response[order]
  N = math.ceil(n / rows)
  row, start, place = _fit(length_by_rank, response_by_rank, N * rows, T, R)

  # Each position belongs to the episode of the last start before it.
  rank = _last_mark(row, start, N * rows, T)
  offset = jnp.arange(T, dtype=jnp.int32) - start[rank]
  inside = (offset >= 0) & (offset < length_by_rank[rank]) & (row[rank] == _numbers(N * rows))
  episode = jnp.where(inside, order[rank], 0)
  column = jnp.where(inside, first[order][rank] + offset, 0)
  segment = jnp.where(inside & (valid[episode, column] > 0), rank + 1, 0)

  response_rank = _last_mark(row, place, N * rows, R)
  token = jnp.arange(R, dtype=jnp.int32) - place[response_rank]
  holds = (token >= 0) & (token < response_by_rank[response_rank])
  holds &= row[response_rank] == _numbers(N * rows)
  response_episode = jnp.where(holds, order[response_rank], 0)
  response_column = jnp.where(holds, token, 0)
  # The state before the first response token is that of the last column of the prompt.
  shift_by_rank = start - first[order]
  before = shift_by_rank[response_rank] + (T - R - 1) + token
  before = jnp.where(holds, before, 0)

  part = Part(
    valid=segment,
    episode=episode,
    column=column,
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
  places = jax.tree.map(lambda x: x[rank_of_episode], (row, shift_by_rank, place))
  return parts, count, places


def _spans(valid: Array, prompt: int) -> tuple[Array, Array]:
  """Returns (first column, columns) of each row, from its first real token to its last.

  The last column of a prompt always counts, as the state before the first response token is there.
  """
  columns = jnp.arange(valid.shape[1], dtype=jnp.int32)
  real = (valid > 0) | (columns == prompt - 1)
  first = jnp.min(jnp.where(real, columns, valid.shape[1]), axis=1)
  return first, _extent(real) - first


def _extent(mask: Array) -> Array:
  """Returns how many columns a row has up to its last True."""
  columns = jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32)
  return jnp.max(jnp.where(mask, columns, 0), axis=1)


def _numbers(rows: int) -> Array:
  return jnp.arange(rows, dtype=jnp.int32)[:, None]


def _fit(
  length: Array,
  response: Array,
  rows: int,
  T: int,
  R: int,
) -> tuple[Array, Array, Array]:
  """Returns (row, first position, first place for a response token) of each episode.

  Each goes into the first row that has room for it, which is a new one where no other has.
  """
  # Zeros of these arrays, and not new ones, vary over the mesh as the arrays do.
  zero = 0 * length[0]

  def put(used: tuple[Array, Array], episode: tuple[Array, Array]):
    positions, places = used
    episode_length, episode_response = episode
    has_room = (positions + episode_length <= T) & (places + episode_response <= R)
    row = jnp.argmax(has_room).astype(jnp.int32)
    start, place = positions[row], places[row]
    used = (positions.at[row].add(episode_length), places.at[row].add(episode_response))
    return used, (row, start, place)

  empty = jnp.zeros(rows, jnp.int32) + zero
  _, where = jax.lax.scan(put, (empty, empty), (length, response))
  return where


def _last_mark(row: Array, column: Array, rows: int, columns: int) -> Array:
  """Returns the rank of the episode that begins last before or at each position, else 0."""
  ranks = jnp.arange(row.shape[0], dtype=jnp.int32)
  marks = jnp.zeros((rows, columns), jnp.int32) + 0 * row[0]
  # The episodes of a row stand in the order of their ranks. What begins beyond a row is dropped.
  marks = marks.at[row, column].max(ranks, mode="drop")
  return jax.lax.cummax(marks, axis=1)


# Into packed rows and back


@struct.dataclass
class Rows:
  """Rows of episodes as models read them."""

  tokens: Int[Array, "B T"]
  valid: Bool[Array, "B T"] | Int[Array, "B T"]
  mask: Bool[Array, "B R"]
  # The column of the token before each response token; None where responses end the rows.
  before: Int[Array, "B R"] | None = None


def rows_of(part: Part, tokens: Int[Array, "B T"], mask: Bool[Array, "B R"]) -> Rows:
  """Returns the packed rows of a part."""
  return Rows(
    tokens=take_tokens(part, tokens),
    valid=part.valid,
    mask=take_responses(part, mask),
    before=part.before,
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
    before=part.before,
    ref_logp=ref_logp,
  )


def take_tokens(part: Part, x: PyTree) -> PyTree:
  """[B, T, ...] -> [Q, T, ...]: what belongs to each position of the rows, and 0 in padding."""
  return _take(part.valid > 0, part.episode, part.column, x)


def take_responses(part: Part, x: PyTree) -> PyTree:
  """[B, R, ...] -> [Q, R, ...]: what belongs to each response token of the rows, else 0."""
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


def give_tokens(layout: Layout, x: PyTree, valid: Valid) -> PyTree:
  """[N, Q, T, ...] -> [B, T, ...]: what was computed of each real token, and 0 in padding."""

  def give_shard(row: Array, shift: Array, valid: Array, x: Array) -> Array:
    columns = jnp.arange(valid.shape[1], dtype=jnp.int32) + shift[:, None]
    return _at(x, row, columns, valid > 0)

  return jax.tree.map(partial(_give, give_shard, layout.row, layout.shift, valid), x)


def give_responses(layout: Layout, x: PyTree, mask: Bool[Array, "B R"]) -> PyTree:
  """[N, Q, R, ...] -> [B, R, ...]: what was computed of each response token, else 0."""

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


def useful(layout: Layout, valid: Valid) -> Scalar:
  """Returns the share of the computed positions that hold real tokens."""
  _, rows, length = layout.parts.valid.shape
  computed = (layout.count * rows * length).astype(jnp.float32)
  return jnp.sum(valid > 0).astype(jnp.float32) / computed


def deal(length: Int[Array, " B"], shards: int) -> Int[Array, " B"]:
  """Returns an order of episodes in which the shards of a batch have about equally many tokens.

  The longest are dealt first, one to each shard, and the next ones in the opposite direction.
  """
  longest_first = jnp.argsort(-length, stable=True).astype(jnp.int32)
  rounds = longest_first.reshape(-1, shards)
  backward = jnp.arange(rounds.shape[0])[:, None] % 2 == 1
  rounds = jnp.where(backward, rounds[:, ::-1], rounds)
  return rounds.T.reshape(-1)
