"""What decoding keeps: the keys and values of a layer, in blocks of columns.

A new position may be written into any column. `position` says what a column holds: the place of a
token in its row, or -1 for nothing. A query sees the columns of its own row that hold a position up
to its own, whatever their order. The sampler uses this freedom: all of its rows write into one
column at a time, in turn, although they began at different times (`rollout`).

Keys and values may be kept as integers, with a scale for each head and column (`models.int8`).

A block lies in one piece of memory. Attention reads only the blocks in which some row holds
something, and never has all scores at once; but a CPU reads a short cache whole (`READ_AT_ONCE`).

Dimensions: N blocks, b columns of a block, B rows, t new positions, H heads, K key/value heads,
G = H / K queries for each key head, C head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import blocks, int8
from instructjax.types import Array, Float, Int

# Columns of a block, from the shortest caches to the longest: small blocks are read more exactly,
# large ones in fewer turns.
WIDTHS = ((64, 8), (512, 32))
WIDEST = 128
READ_AT_ONCE = 4  # blocks that a CPU reads for one query, whether they are in use or not
EMPTY = -1  # the position of a column that holds nothing


class Int8(NamedTuple):
  """The keys (or the values) of one layer as integers: a key is q * scale."""

  q: Int[Array, "N B K b C"]
  scale: Float[Array, "N B K b 1"]


Keys = Float[Array, "N B K b C"] | Int8


def check_context(context: int, positions: int) -> None:
  """Checks that a prompt and what follows it fit the context of a model.

  Raises:
    UserError: otherwise. A cache may have more columns than that, as where it is filled up.
  """
  if positions > context:
    raise UserError(
      f"{positions} positions do not fit the model's context of {context}: shorten the prompts or "
      "the responses"
    )


def block_width(length: int) -> int:
  """Returns how many columns a block has in a cache of `length` columns."""
  for longest, width in WIDTHS:
    if length <= longest:
      return width
  return WIDEST


def dtype_of(dtype: str) -> str:
  """Returns the type in which keys and values are kept, for products of operands of `dtype`.

  That is `dtype`, but on a CPU float32. There XLA can write into bfloat16 only by a copy of all of
  it in float32, in every step, and the products of attention are float32 anyway.
  """
  return "float32" if sharding.is_on_cpu() else dtype


def empty_keys(rows: int, length: int, heads: int, width: int, dtype: str, block: int) -> Keys:
  """Returns a cache for the keys (or the values) of one layer, with room for `length` columns.

  With the dtype "int8" it has scales too.
  """
  shape = (-(-length // block), rows, heads, block, width)
  split = sharding.fit(shape, (None, "batch", "kv_heads", None, None))
  keys = jnp.zeros(shape, dtype, out_sharding=split)
  if dtype != "int8":
    return keys
  return Int8(keys, jnp.zeros((*shape[:-1], 1), jnp.float32, out_sharding=split))


def empty_positions(rows: int, length: int, block: int) -> Int[Array, "N B b"]:
  """Returns the positions of an empty cache."""
  shape = (-(-length // block), rows, block)
  split = sharding.fit(shape, (None, "batch", None))
  return jnp.full(shape, EMPTY, jnp.int32, out_sharding=split)


def write_keys(
  cached: Keys,
  new: Float[Array, "B K t C"],
  column: Int[Array, ""],
  dtype: str,
) -> Keys:
  """Writes the keys (or the values) of t columns into those of one layer, from `column` on.

  They are rounded to `dtype`, in which they are multiplied.
  """
  if not isinstance(cached, Int8):
    return write(cached, new.astype(dtype), column)
  q, scale = int8.quantise(new, (3,))
  return Int8(write(cached.q, q, column), write(cached.scale, scale, column))


def write(
  cached: Array,
  new: Array,
  column: Int[Array, ""],
) -> Array:
  """Writes t columns into a cache, from `column` on: [B, ..., t, C] into [N, B, ..., b, C].

  For positions, which have no C, give both an axis of length 1 in its place.
  """
  block = cached.shape[-2]
  t = new.shape[-2]
  new = new.astype(cached.dtype)
  inside = [0] * (cached.ndim - 3)
  if t == 1:
    start = [jnp.int32(i) for i in (column // block, *inside, column % block, 0)]
    return jax.lax.dynamic_update_slice(cached, new[None], start)

  # The columns may begin and end within a block, so the blocks that they touch are read first.
  touched = min(-(-(t + block - 1) // block), cached.shape[0])
  first = jnp.minimum(column // block, cached.shape[0] - touched)
  window = jax.lax.dynamic_slice_in_dim(cached, first, touched, axis=0)
  columns = _unblocked(window)
  columns = jax.lax.dynamic_update_slice_in_dim(columns, new, column - first * block, axis=-2)
  window = _blocked(columns, block)
  return jax.lax.dynamic_update_slice_in_dim(cached, window, first, axis=0)


def _unblocked(window: Array) -> Array:
  """[N, B, ..., b, C] -> [B, ..., N * b, C]."""
  rows_first = jnp.moveaxis(window, 0, -3)
  *lead, count, block, width = rows_first.shape
  shape = (*lead, count * block, width)
  return jax.lax.reshape(rows_first, shape, out_sharding=_lead_split(rows_first, len(shape)))


def _blocked(columns: Array, block: int) -> Array:
  """The inverse of `_unblocked`."""
  *lead, length, width = columns.shape
  shape = (*lead, length // block, block, width)
  split = _lead_split(columns, len(shape))
  return jnp.moveaxis(jax.lax.reshape(columns, shape, out_sharding=split), -3, 0)


def _lead_split(x: Array, ndim: int) -> jax.P | None:
  """The partition that splits the leading axes (rows, heads) as those of x."""
  if not sharding.is_sharded():
    return None
  lead = [entry for entry in jax.typeof(x).sharding.spec if entry is not None]
  return jax.P(*lead, *[None] * (ndim - len(lead)))


def in_use(position: Int[Array, "N B b"]) -> tuple[Int[Array, " N"], Int[Array, ""]]:
  """Returns the numbers of the blocks, those in use first, and how many are in use."""
  used = jnp.any(position != EMPTY, axis=(1, 2))
  used = sharding.reshard(used, None)
  order = jnp.argsort(~used, stable=True).astype(jnp.int32)
  return order, jnp.sum(used, dtype=jnp.int32)


def attend(
  q: Float[Array, "B t H C"],
  keys: Keys,
  values: Keys,
  position: Int[Array, "N B b"],
  query_position: Int[Array, "B t"],
  used: tuple[Int[Array, " N"], Int[Array, ""]],
  dtype: str,
  *,
  window: int = 0,
  scale: float | None = None,
  softcap: float = 0.0,
) -> Float[Array, "B t H C"]:
  """Attends from every new position to the cached ones up to itself, within its window.

  This is `blocks.attention` over the cache. A query that sees nothing gets 0.

  Where keys and values are integers, the scales of the keys multiply the scores, and those of the
  values the weights.
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  q = (q * scale).astype(dtype)
  B, t, H, C = q.shape
  K = _of_blocks(keys, slice(0, 1), q)[0].shape[2]
  split = None
  if sharding.is_sharded():
    split = jax.P(*jax.typeof(q).sharding.spec[:3], None, None)
  grouped = jax.lax.reshape(q, (B, t, K, H // K, C), out_sharding=split)
  grouped = jnp.moveaxis(grouped, 1, 3)  # [B, K, G, t, C]

  def weigh(blocks_read: Blocks) -> Array:
    return _scores(grouped, blocks_read, query_position, dtype, window, softcap)

  def read(which: slice | Int[Array, ""]) -> Blocks:
    return Blocks(_of_blocks(keys, which, q), _of_blocks(values, which, q), _take(position, which))

  # A CPU copies a block before it multiplies it, which costs more than one query for each row can
  # repay: it reads a short cache as it lies there, the empty blocks too.
  is_short = position.shape[0] <= READ_AT_ONCE
  if t == 1 and is_short and sharding.is_on_cpu():
    mixed = _mix_at_once(read(slice(None)), weigh, dtype)
  else:
    mixed = _mix_by_block(read, used, weigh, grouped, dtype)
  mixed = jnp.moveaxis(mixed, 3, 1)
  whole = jax.typeof(q).sharding.spec if sharding.is_sharded() else None
  return jax.lax.reshape(mixed, (B, t, H, C), out_sharding=whole)


class Blocks(NamedTuple):
  """Some blocks of a cache, n of them: keys and values with their scales, if they have any."""

  keys: tuple[Float[Array, "n B K b C"], Float[Array, "n B K 1 1 b"] | None]
  values: tuple[Float[Array, "n B K b C"], Float[Array, "n B K 1 1 b"] | None]
  position: Int[Array, "n B b"]


Weigh = Callable[[Blocks], Float[Array, "n B K G t b"]]


def _scores(
  grouped: Float[Array, "B K G t C"],
  part: Blocks,
  query_position: Int[Array, "B t"],
  dtype: str,
  window: int,
  softcap: float,
) -> Float[Array, "n B K G t b"]:
  """Returns the scores of the columns of some blocks, MASKED where a query does not see one."""
  column_position = part.position[:, :, None, :]
  distance = query_position[:, :, None] - column_position
  seen = (column_position != EMPTY) & (distance >= 0)  # [n, B, t, b]
  if window:
    seen &= distance < window
  k, k_scale = part.keys
  # A product over rows that repeats them for each block takes the keys as they lie in memory.
  queries = jnp.broadcast_to(grouped, (k.shape[0], *grouped.shape))
  scores = blocks.batched_product("nbkgtc,nbksc->nbkgts", queries, k.astype(dtype))
  if k_scale is not None:
    scores = scores * k_scale
  scores = blocks.softcapped(scores, softcap)
  return jnp.where(seen[:, :, None, None], scores, blocks.MASKED)


def _mixed(
  weights: Float[Array, "n B K G t b"],
  part: Blocks,
  dtype: str,
) -> Float[Array, "B K G t C"]:
  """Returns the sum of the values of some blocks, each with its weight."""
  v, v_scale = part.values
  if v_scale is not None:
    weights = weights * v_scale
  mixed = blocks.batched_product("nbkgts,nbksc->nbkgtc", weights.astype(dtype), v.astype(dtype))
  return jnp.sum(mixed, axis=0)


def _exponentials(scores: Array, largest: Array) -> Array:
  """Returns exp(scores - largest), and 0 where a query does not see the column."""
  return jnp.where(scores > blocks.MASKED, jnp.exp(scores - largest), 0)


def _mix_at_once(part: Blocks, weigh: Weigh, dtype: str) -> Float[Array, "B K G t C"]:
  """Reads all blocks of a cache."""
  scores = weigh(part)
  largest = jnp.max(scores, axis=(0, -1))
  weights = _exponentials(scores, largest[..., None])
  total = jnp.sum(weights, axis=(0, -1))
  return _divided(_mixed(weights, part, dtype), total)


def _mix_by_block(
  read: Callable[[Int[Array, ""]], Blocks],
  used: tuple[Int[Array, " N"], Int[Array, ""]],
  weigh: Weigh,
  grouped: Float[Array, "B K G t C"],
  dtype: str,
) -> Float[Array, "B K G t C"]:
  """Reads the blocks in use, one after the other.

  A running maximum of the scores keeps the sum of their exponentials in range (Milakov & Gimelshein
  2018).
  """
  order, count = used

  def read_block(i, carry):
    largest, total, mixed = carry
    part = read(order[i])
    scores = weigh(part)
    new_largest = jnp.maximum(largest, jnp.max(scores, axis=(0, -1)))
    weights = _exponentials(scores, new_largest[..., None])
    shrink = jnp.exp(largest - new_largest)
    total = total * shrink + jnp.sum(weights, axis=(0, -1))
    return new_largest, total, mixed * shrink[..., None] + _mixed(weights, part, dtype)

  nothing = jnp.zeros_like(grouped, jnp.float32)
  nothing_yet = nothing[..., 0]
  start = (nothing_yet + blocks.MASKED, nothing_yet, nothing)
  # The name is that of the loop where its trips are counted (`plan.counting`).
  with jax.named_scope("trips:blocks"):
    _, total, mixed = jax.lax.fori_loop(0, count, read_block, start)
  return _divided(mixed, total)


def _divided(mixed: Array, total: Array) -> Array:
  """Returns a sum by weights divided by the sum of the weights; 0 where that is 0."""
  smallest = jnp.finfo(jnp.float32).tiny
  return mixed / jnp.maximum(total, smallest)[..., None]


def _of_blocks(
  keys: Keys,
  which: slice | Int[Array, ""],
  q: Float[Array, "B t H C"],
) -> tuple[Array, Float[Array, "n B _ 1 1 b"] | None]:
  """Returns the keys (or the values) [n, B, K, b, C] of some blocks, and their scales if any.

  They lie where their queries do, and may be repeated for it.
  """
  if not isinstance(keys, Int8):
    return blocks.like_queries(_take(keys, which), q), None
  integers = blocks.like_queries(_take(keys.q, which), q)
  scale = blocks.like_queries(_take(keys.scale, which), q)
  return integers, jnp.swapaxes(scale, 3, 4)[:, :, :, None]


def _take(cached: Array, which: slice | Int[Array, ""]) -> Array:
  """Returns some blocks of a cache: those of a slice, or the one of a number."""
  if isinstance(which, slice):
    return cached[which]
  return jax.lax.dynamic_slice_in_dim(cached, which, 1, axis=0)
