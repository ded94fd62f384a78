"""What decoding keeps: the keys and values of a layer, in blocks of columns.

A new position may be written into any column. `position` says what a column holds: the place of a
token in its row, or -1 for nothing. A query sees the columns of its own row that hold a position up
to its own, whatever their order. The sampler uses this freedom: all of its rows write into one
column at a time, in turn, although they began at different times (`rollout`).

Keys and values may be kept as integers, with a scale for each head and column (`models.int8`).

A block lies in one piece of memory. Attention reads only the blocks in which some row holds
something, and never has all scores at once.

Dimensions: N blocks, b columns of a block, B rows, t new positions, H heads, K key/value heads,
G = H / K queries for each key head, C head width.
"""

from __future__ import annotations

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
) -> Keys:
  """Writes the keys (or the values) of t columns into those of one layer, from `column` on."""
  if not isinstance(cached, Int8):
    return write(cached, new, column)
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

  This is `blocks.attention`, read block by block: a running maximum of the scores keeps the sum of
  their exponentials in range (Milakov & Gimelshein 2018). A query that sees nothing gets 0.

  Where keys and values are integers, the scales of the keys multiply the scores, and those of the
  values the weights.
  """
  order, count = used
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  q = (q * scale).astype(dtype)
  B, t, H, C = q.shape
  first_block, _ = _keys_of_block(keys, 0, q)
  K = first_block.shape[1]
  split = None
  if sharding.is_sharded():
    split = jax.P(*jax.typeof(q).sharding.spec[:3], None, None)
  grouped = jax.lax.reshape(q, (B, t, K, H // K, C), out_sharding=split)
  grouped = jnp.moveaxis(grouped, 1, 3)  # [B, K, G, t, C]

  def read_block(i, carry):
    largest, total, mixed = carry
    number = order[i]
    k, k_scale = _keys_of_block(keys, number, q)
    v, v_scale = _keys_of_block(values, number, q)
    column_position = _block(position, number)[:, None, :]
    distance = query_position[:, :, None] - column_position
    seen = (column_position != EMPTY) & (distance >= 0)  # [B, t, b]
    if window:
      seen &= distance < window
    seen = seen[:, None, None]
    scores = blocks.batched_product("bkgtc,bksc->bkgts", grouped, k.astype(dtype))
    if k_scale is not None:
      scores = scores * k_scale
    scores = jnp.where(seen, blocks.softcapped(scores, softcap), blocks.MASKED)
    new_largest = jnp.maximum(largest, jnp.max(scores, axis=-1))
    weights = jnp.where(seen, jnp.exp(scores - new_largest[..., None]), 0)
    shrink = jnp.exp(largest - new_largest)
    total = total * shrink + jnp.sum(weights, axis=-1)
    if v_scale is not None:
      weights = weights * v_scale
    new_mixed = blocks.batched_product("bkgts,bksc->bkgtc", weights.astype(dtype), v.astype(dtype))
    return new_largest, total, mixed * shrink[..., None] + new_mixed

  nothing = jnp.zeros_like(grouped, jnp.float32)
  nothing_yet = nothing[..., 0]
  start = (nothing_yet + blocks.MASKED, nothing_yet, nothing)
  # The name is that of the loop where its trips are counted (`plan.counting`).
  with jax.named_scope("trips:blocks"):
    _, total, mixed = jax.lax.fori_loop(0, count, read_block, start)
  smallest = jnp.finfo(jnp.float32).tiny
  mixed = mixed / jnp.maximum(total, smallest)[..., None]
  mixed = jnp.moveaxis(mixed, 3, 1)
  whole = jax.typeof(q).sharding.spec if sharding.is_sharded() else None
  return jax.lax.reshape(mixed, (B, t, H, C), out_sharding=whole)


def _keys_of_block(
  keys: Keys,
  number: Int[Array, ""] | int,
  q: Float[Array, "B t H C"],
) -> tuple[Array, Float[Array, "B _ 1 1 b"] | None]:
  """Returns the keys (or the values) [B, K, b, C] of one block, and their scales if they have any.

  They lie where their queries do, and may be repeated for it.
  """
  if not isinstance(keys, Int8):
    return blocks.like_queries(_block(keys, number), q), None
  integers = blocks.like_queries(_block(keys.q, number), q)
  scale = blocks.like_queries(_block(keys.scale, number), q)
  return integers, jnp.swapaxes(scale, 2, 3)[:, :, None]


def _block(cached: Array, number: Int[Array, ""] | int) -> Array:
  """Returns one block of a cache."""
  return jax.lax.dynamic_index_in_dim(cached, number, axis=0, keepdims=False)
