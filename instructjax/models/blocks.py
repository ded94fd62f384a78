"""The operations of both kinds of model: products, norms, dropout, positions and attention.

Norms and softmax are float32, and so is the residual stream, unless a model asks for bfloat16
(`transformer.Family.stream`). Matrix products take operands of the compute dtype and accumulate in
float32; the product of rows that are bfloat16 is rounded to it, and where a product is summed over
devices, so is the sum. A weight that is stored in bfloat16 (a frozen trunk) is multiplied in
bfloat16 whatever the compute dtype.

Dimensions: B rows, T queries, S keys, D width, H heads, K key/value heads, G = H / K queries for
each key head, C head width, F rotary frequencies, V vocabulary, N = B * T, I inputs and O outputs
of a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import sharding
from instructjax.types import Array, Bool, Branch, Float, Int, Key, Params, Valid

FLOAT32 = jnp.dtype(jnp.float32)
MASKED = -1e30  # a masked attention score: finite, so that a row without keys has no NaN
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "silu": jax.nn.silu,
  "gelu": partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": partial(jax.nn.gelu, approximate=True),  # the tanh form of Hendrycks & Gimpel 2016
  "relu": jax.nn.relu,
}


# --- matrix products ---


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def matmul(
  x: Float[Array, "N I"],
  w: Float[Array, "J O"] | Int[Array, "J O"],
  dtype: str,
  out: jax.P | None,
  axis: int = 0,
  stored: jax.P | None = None,
) -> Array:
  """Returns x w, or x w^T where `axis` is 1 and w is [O, I], partitioned as `out`.

  The operands, which may be integers, are cast to `dtype` and the product is accumulated in
  float32. It is bfloat16 where x is, and else float32. By a custom derivative the same holds for
  the gradients: each of them is partitioned as its operand and has its type. On a mesh w lies in
  parts, as `stored` says, and is gathered here; its gradient is scattered as it is summed.
  """
  contract = ((1,), (axis,))
  return _dot(x, sharding.gather(w), dtype, contract, out, _result_type(x))


def _result_type(x: Array) -> jnp.dtype:
  """Returns the type of a product of rows: bfloat16 where they are, else float32."""
  return jnp.dtype(jnp.bfloat16 if x.dtype == jnp.bfloat16 else jnp.float32)


def _dot(
  a: Array,
  b: Array,
  dtype: str,
  contract: tuple[tuple[int], tuple[int]],
  out: jax.P | None,
  result: jnp.dtype = FLOAT32,
) -> Array:
  """Returns the product of two matrices over the axes `contract`, in the type `result`."""
  no_batch = ((), ())
  return jax.lax.dot_general(
    a.astype(dtype),
    b.astype(dtype),
    (contract, no_batch),
    preferred_element_type=result,
    out_sharding=out,
  )


def _matmul_forward(x, w, dtype, out, axis, stored):
  """Returns the product, and the operands for the backward pass."""
  contract = ((1,), (axis,))
  w = sharding.gather(w)
  return _dot(x, w, dtype, contract, out, _result_type(x)), (x, w)


def _matmul_backward(dtype, out, axis, stored, saved, g):
  """Returns the gradients of both operands from g, the gradient of the product [N, O]."""
  x, w = saved
  over_outputs = ((1,), (1 - axis,))
  dx = _dot(g, w, dtype, over_outputs, _like(x), _result_type(x))
  # The gradient has the axes of w: [I, O], or [O, I] where w was transposed.
  left, right = (x, g) if axis == 0 else (g, x)
  if stored is None:
    dw = _over_rows(left, right, dtype, None)
  else:
    own = sharding.unreduced(_partition(w), _partition(x)[0])
    # It is rounded to the type of the weight before it is summed over devices, as that is sent.
    dw = sharding.scatter(_over_rows(left, right, dtype, own).astype(w.dtype), stored)
  return dx.astype(x.dtype), dw.astype(w.dtype)


def _over_rows(
  a: Float[Array, "N A"],
  b: Float[Array, "N B"],
  dtype: str,
  out: jax.P | None,
) -> Float[Array, "A B"]:
  """Returns a^T b, in float32."""
  if dtype != "bfloat16" or sharding.is_sharded() or not sharding.is_on_cpu():
    over_rows = ((0,), (0,))
    return _dot(a, b, dtype, over_rows, out)
  # XLA multiplies bfloat16 in the units of a CPU (AMX) only along rows of the first matrix. As it
  # would undo a plain transpose, the numbers are laid out as a vector in between: two to three
  # times as fast, on an Intel Xeon, as a product that XLA widens to float32.
  count, width = a.shape
  transposed = a.astype(dtype).T.reshape(width * count)
  rows = jax.lax.optimization_barrier(transposed).reshape(width, count)
  along_rows = ((1,), (0,))
  return jax.lax.optimization_barrier(_dot(rows, b, dtype, along_rows, out))


matmul.defvjp(_matmul_forward, _matmul_backward)


def _like(x: Array) -> jax.P | None:
  """Returns the partition of an array, for `out_sharding`; None without a mesh."""
  return _partition(x) if sharding.is_sharded() else None


def _partition(x: Array) -> jax.P:
  """Returns how an array lies on the mesh; must be called only where a mesh is set."""
  return jax.typeof(x).sharding.spec


def linear(p: Params, x: Array, dtype: str, *, contract: int = 1) -> Array:
  """Returns x w + b over the last `contract` axes of x and the first of w.

  Where an adapter lies beside the matrix, its low-rank product is added (`models.lora`). Where w
  is integers, their product is scaled (`models.int8`). The result is bfloat16 where x is.
  """
  y = product(p["w"], x, dtype, contract)
  if "scale" in p:
    y = y * sharding.gather(p["scale"])
  if "lora" in p:
    adapter = p["lora"]
    inner = product(adapter.a, x, dtype, contract)
    low_rank = product(adapter.b, inner, dtype)
    y = y + adapter.scale * low_rank
  if "b" in p:
    y = y + p["b"]
  return y.astype(_result_type(x))


def product(w: Array, x: Array, dtype: str, contract: int = 1) -> Array:
  """Returns x w over the last `contract` axes of x and the first of w.

  The leading axes are flattened: on a CPU the gradient of a weight is twice as fast from [N, I]
  as from [B, T, I]. The weight is flattened before it is gathered: no reshape then stands between
  the sum of a gradient and its scatter.
  """
  dtype = "bfloat16" if w.dtype == jnp.bfloat16 else dtype
  lead = x.shape[: x.ndim - contract]
  outputs = w.shape[contract:]
  rows = _flat(x, len(lead))
  columns = _flat(w, contract)
  if w.dtype == jnp.int8:
    columns, rows = wait_for(sharding.gather(columns), rows)
  if not sharding.is_sharded():
    return matmul(rows, columns, dtype, None).reshape(*lead, *outputs)
  along_rows = _partition(rows)[0]
  stored = _partition(columns)
  along_columns = sharding.whole(stored)[1]
  y = matmul(rows, columns, dtype, jax.P(along_rows, along_columns), 0, stored)
  # Of the outputs only the first axis may be split (the heads of a query).
  inner = [None] * (len(outputs) - 1)
  split = jax.P(*_partition(x)[: len(lead)], along_columns, *inner)
  return jax.lax.reshape(y, (*lead, *outputs), out_sharding=split)


def unembed(
  p: Params,
  x: Float[Array, "*B D"],
  dtype: str,
) -> Float[Array, "*B V"]:
  """Returns x w^T, for an embedding w [V, D] that is tied to the unembedding.

  The transpose is never formed: on a CPU that would cost more than the product. Where w is
  integers, their product is scaled, as in `linear`.
  """
  y = _product_with_transpose(p["w"], x, dtype)
  return y * p["scale"] if "scale" in p else y


def _product_with_transpose(
  w: Array,
  x: Float[Array, "*B D"],
  dtype: str,
) -> Float[Array, "*B V"]:
  """Returns x w^T over the last axes of both."""
  dtype = "bfloat16" if w.dtype == jnp.bfloat16 else dtype
  rows = _flat(x, x.ndim - 1)
  if w.dtype == jnp.int8:
    w, rows = wait_for(sharding.gather(w), rows)
  shape = (*x.shape[:-1], w.shape[0])
  if not sharding.is_sharded():
    return matmul(rows, w, dtype, None, 1).reshape(shape)
  stored = _partition(w)
  along_vocab = sharding.whole(stored)[0]
  along_rows = _partition(rows)[0]
  y = matmul(rows, w, dtype, jax.P(along_rows, along_vocab), 1, stored)
  split = jax.P(*_partition(x)[:-1], along_vocab)
  return jax.lax.reshape(y, shape, out_sharding=split)


def wait_for(w: Array, x: Array) -> tuple[Array, Array]:
  """Returns both arrays as they are, but w no earlier than x is there.

  A compiler may move what does not change in a loop to before it, such as integers cast to the type
  of a product. Every step would then read the cast copy, which is what integers shall save.
  """
  return jax.lax.optimization_barrier((w, x))


def _flat(x: Array, lead: int) -> Array:
  """Returns x as a matrix: its first `lead` axes become one, the others become the second.

  Each of the two keeps the partition of its first axis.
  """
  first = math.prod(x.shape[:lead])
  second = math.prod(x.shape[lead:])
  shape = (first, second)
  if not sharding.is_sharded():
    return x.reshape(shape)
  along = _partition(x)
  split = jax.P(along[0] if lead else None, along[lead])
  return jax.lax.reshape(x, shape, out_sharding=split)


# --- norms, dropout, embeddings ---


def rms_norm(
  p: Params,
  x: Float[Array, "B T *D"],
  eps: float,
  offset: float = 0.0,
) -> Float[Array, "B T *D"]:
  """Returns (offset + scale) * x / sqrt(mean(x^2) + eps) over the last axis, in float32.

  The norm is that of Zhang & Sennrich 2019; Gemma's offset is 1.
  """
  x = x.astype(jnp.float32)
  mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
  normed = x * jax.lax.rsqrt(mean_square + eps)
  return normed * (offset + p["scale"])


def layer_norm(
  p: Params,
  x: Float[Array, "B T D"],
  eps: float,
) -> Float[Array, "B T D"]:
  """Returns scale * (x - mean) / sqrt(var + eps) + bias, in float32   (Ba et al. 2016)."""
  x = x.astype(jnp.float32)
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(x * x, axis=-1, keepdims=True)
  normed = x * jax.lax.rsqrt(variance + eps)
  return normed * p["scale"] + p["bias"]


def dropout(
  key: Key[Array, ""] | None,
  x: Float[Array, "B T D"],
  rate: float,
) -> Float[Array, "B T D"]:
  """Zeroes a share `rate` of x and divides the rest by 1 - rate; the identity without a key."""
  if key is None or rate == 0:
    return x
  # The mask is split as x is, so that every device draws its own part.
  keep = jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape, out_sharding=_like(x))
  return jnp.where(keep, x / (1 - rate), 0)


def lookup(
  w: Float[Array, "V D"],
  ids: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
  """Returns rows of an embedding in float32; an id beyond the table reads its last row."""
  split = sharding.spec("batch", None, None)
  table = sharding.gather(w)
  rows = table.at[ids].get(mode="clip", out_sharding=split)
  return rows.astype(jnp.float32)


# --- positions ---


def positions(valid: Valid, branch: Branch | None = None) -> Int[Array, "B T"]:
  """Counts the real tokens of the same segment before each token, wherever the padding is.

  Packed segments are runs of one number in `valid`. Where a segment has branches, the tokens of its
  other branches do not count: a branch goes on from the end of its prompt.
  """
  real = valid > 0
  if branch is None:
    count = _count_in_segment(real, valid)
  else:
    in_prompt = _count_in_segment(real & (branch == 0), valid)
    in_branch = _count_in_segment(real & (branch > 0), valid, branch)
    count = in_prompt + in_branch
  # Padding before the first real token would be at -1.
  return jnp.maximum(count - 1, 0)


def _count_in_segment(
  marked: Bool[Array, "B T"],
  valid: Valid,
  branch: Branch | None = None,
) -> Int[Array, "B T"]:
  """Counts the marked tokens up to and including each token, in its segment (and its branch)."""
  marks = marked.astype(jnp.int32)
  count = jnp.cumsum(marks, axis=1)
  if valid.dtype == jnp.bool_:
    return count
  changes = valid[:, 1:] != valid[:, :-1]
  if branch is not None:
    changes = changes | (branch[:, 1:] != branch[:, :-1])
  # A segment starts in the first column, whatever is there.
  starts = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
  # From the count in the row, subtract the marked tokens before the segment of each token.
  before_start = jnp.where(starts, count - marks, 0)
  return count - jax.lax.cummax(before_start, axis=1)


class Turns(NamedTuple):
  """The angles by which positions turn the pairs of a head (Su et al. 2021)."""

  cos: Float[Array, "B T F"]
  sin: Float[Array, "B T F"]


def turns(
  positions: Int[Array, "B T"],
  frequency: Float[Array, " F"] | np.ndarray,
) -> Turns:
  """Returns the turn of each pair of features: at position t, the angle t * frequency."""
  angle = positions[:, :, None].astype(jnp.float32) * frequency
  return Turns(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B T H C"], turns: Turns) -> Float[Array, "B T H C"]:
  """Turns the first 2F features of each head: the pair (x_i, x_{i + F}), i < F, by its angle.

  Features from 2F on stay as they are; so do all of them where there is no frequency, or all are 0.
  """
  half = turns.cos.shape[-1]
  if not half:
    return x
  cos = turns.cos[:, :, None]
  sin = turns.sin[:, :, None]
  a = x[..., :half]
  b = x[..., half : 2 * half]
  rest = x[..., 2 * half :]
  turned_a = a * cos - b * sin
  turned_b = b * cos + a * sin
  return jnp.concatenate([turned_a, turned_b, rest], axis=-1)


# --- attention ---


def softcapped(x: Array, cap: float) -> Array:
  """Returns cap * tanh(x / cap), or x itself where the cap is 0   (Gemma 2)."""
  return cap * jnp.tanh(x / cap) if cap else x


def causal_mask(
  valid: Valid,
  window: Int[Array, ""] | int = 0,
  branch: Branch | None = None,
) -> Bool[Array, "B T T"]:
  """Returns a mask [B, query, key] that is True where the query may see the key.

  The key must be real, not after the query, in the same segment, and among the last `window`
  columns up to the query (0 means all). Where there are branches, it must be of the prompt or of
  the query's own branch, and a window counts positions: the other branches are not on the way.
  """
  columns = columns_of(valid, branch)
  return visible(columns, columns, window)


class Columns(NamedTuple):
  """What a mask compares, of T columns that stand side by side in B rows."""

  first: int | Int[Array, ""]  # where they begin
  segment: Valid
  # Where segments have branches:
  branch: Branch | None = None
  position: Int[Array, "B T"] | None = None

  def numbers(self) -> Int[Array, " T"]:
    """The number of each column in the row."""
    return self.first + jnp.arange(self.segment.shape[1])


def columns_of(valid: Valid, branch: Branch | None = None) -> Columns:
  """Returns all columns of rows."""
  if branch is None:
    return Columns(0, valid)
  return Columns(0, valid, branch, positions(valid, branch))


def some_columns(columns: Columns, start: int, end: int) -> Columns:
  """Returns those from `start` to before `end`."""
  segment = columns.segment[:, start:end]
  if columns.branch is None or columns.position is None:
    return Columns(columns.first + start, segment)
  branch = columns.branch[:, start:end]
  return Columns(columns.first + start, segment, branch, columns.position[:, start:end])


def visible(
  queries: Columns,
  keys: Columns,
  window: Int[Array, ""] | int = 0,
) -> Bool[Array, "B Q S"]:
  """Returns where the queries in some columns may see the keys in others (`causal_mask`)."""
  query_column = queries.numbers()[:, None]
  key_column = keys.numbers()[None, :]
  query_segment = queries.segment[:, :, None]
  key_segment = keys.segment[:, None, :]
  mask = (key_column <= query_column) & (key_segment > 0)
  if keys.segment.dtype != jnp.bool_:
    mask = mask & (key_segment == query_segment)
  # Of branches, what lies between in the row is not on the way.
  distance = query_column - key_column
  if queries.branch is not None and keys.branch is not None:
    query_branch = queries.branch[:, :, None]
    key_branch = keys.branch[:, None, :]
    mask = mask & ((key_branch == 0) | (key_branch == query_branch))
  if queries.position is not None and keys.position is not None:
    distance = queries.position[:, :, None] - keys.position[:, None, :]
  # A traced window is compared even where it turns out to hide nothing.
  if not isinstance(window, int) or window:
    mask = mask & (distance < window)
  return mask


def attention(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B K S C"],
  v: Float[Array, "B K S C"],
  mask: Bool[Array, "B T S"],
  dtype: str,
  *,
  scale: float | None = None,
  softcap: float = 0.0,
) -> Float[Array, "B T H C"]:
  """Returns softmax(softcap(scale q k^T)) v, where each key head serves G queries.

  The scale is 1 / sqrt(C) where it is None.
  """
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  q = (q * scale).astype(dtype)
  k = k.astype(dtype)
  v = v.astype(dtype)
  # On a mesh, keys go where their queries are.
  k = like_queries(k, q)
  v = like_queries(v, q)
  # Queries are grouped by their key head, so that keys need not be repeated: [B, T, K, G, C].
  B, T, H, C = q.shape
  K = k.shape[1]
  split = None
  if sharding.is_sharded():
    split = jax.P(*_partition(q)[:3], None, None)
  grouped = jax.lax.reshape(q, (B, T, K, H // K, C), out_sharding=split)
  scores = softcapped(batched_product("btkgc,bksc->bkgts", grouped, k), softcap)
  visible_scores = jnp.where(mask[:, None, None], scores, MASKED)
  # Scores and softmax are float32; only the weights are rounded for their product.
  weights = jax.nn.softmax(visible_scores, axis=-1).astype(dtype)
  mixed = batched_product("bkgts,bksc->btkgc", weights, v)
  return jax.lax.reshape(mixed, q.shape, out_sharding=_like(q))


def batched_product(equation: str, a: Array, b: Array) -> Array:
  """Returns a batched product that is accumulated in float32.

  On a CPU, XLA has no such product of bfloat16 operands, so they are widened there.
  """

  def wide(a: Array, b: Array) -> Array:
    a = a.astype(jnp.float32)
    b = b.astype(jnp.float32)
    return jnp.einsum(equation, a, b)

  def narrow(a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)

  if a.dtype != jnp.bfloat16:
    return wide(a, b)
  return jax.lax.platform_dependent(a, b, cpu=wide, default=narrow)


def like_queries(
  x: Float[Array, "*N B K S _"] | Int[Array, "*N B K S _"],
  q: Float[Array, "B T H _"],
) -> Float[Array, "*N B _ S _"] | Int[Array, "*N B _ S _"]:
  """Repeats key heads once for each query where only the queries are split over devices.

  The repeated heads are split as the queries are, so that each device holds the keys of its own
  queries. Without a mesh, or where both are split alike, x is returned as it is.
  """
  if not sharding.is_sharded():
    return x
  rows, _, heads, _ = _partition(q)
  if heads == _partition(x)[-3]:
    return x
  *lead, K, S, C = x.shape
  H = q.shape[2]
  x = jnp.broadcast_to(x[..., None, :, :], (*lead, K, H // K, S, C))
  x = x.reshape(*lead, H, S, C)
  split = jax.P(*[None] * (len(lead) - 1), rows, heads, None, None)
  return jax.sharding.reshard(x, split)
