"""What both kinds of model are made of: matrix products, norms, dropout, positions and attention.

The residual stream, norms and softmax are float32.  Matrix products take operands of the compute
dtype and accumulate in float32.  A weight stored in bfloat16 (a frozen trunk) is multiplied in
bfloat16 whatever the compute dtype.

Dimensions: B rows, T queries, S keys, D width, H heads, K key/value heads, G = H / K queries a
key head, C head width, N = B * T, I inputs and O outputs of a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import sharding
from instructjax.types import Array, Bool, Float, Int, Key, Params, Valid

MASKED = -1e30  # a masked attention score: finite, so that a row without keys has no NaN
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "silu": jax.nn.silu,
  "gelu": partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": partial(jax.nn.gelu, approximate=True),  # the tanh form of Hendrycks & Gimpel 2016
  "relu": jax.nn.relu,
}


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def matmul(
  x: Float[Array, "N I"], w: Float[Array, "J O"], dtype: str, out: jax.P | None, axis: int = 0
) -> Array:
  """x w, or x w^T where `axis` is 1: operands of `dtype`, accumulated in float32, partitioned as
  `out`; gradients too.
  """
  return _dot(x, w, dtype, ((1,), (axis,)), out)


def _dot(a: Array, b: Array, dtype: str, contract: tuple, out: jax.P | None) -> Array:
  a, b = a.astype(dtype), b.astype(dtype)
  return jax.lax.dot_general(
    a, b, (contract, ((), ())), preferred_element_type=jnp.float32, out_sharding=out
  )


def _matmul_forward(x, w, dtype, out, axis):
  return _dot(x, w, dtype, ((1,), (axis,)), out), (x, w)


def _matmul_backward(dtype, out, axis, saved, g):
  x, w = saved
  dx = _dot(g, w, dtype, ((1,), (1 - axis,)), _like(x))
  dw = _dot(*((x, g) if axis == 0 else (g, x)), dtype, ((0,), (0,)), _like(w))
  return dx.astype(x.dtype), dw.astype(w.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def _like(x: Array) -> jax.P | None:
  """The partition of an array, to be asked for; None without a mesh."""
  return _partition(x) if sharding.is_sharded() else None


def _partition(x: Array) -> jax.P:
  """How an array lies on the mesh; called only where a mesh is set."""
  return jax.typeof(x).sharding.spec


def linear(p: Params, x: Array, dtype: str, *, contract: int = 1) -> Array:
  """x w + b over the last `contract` axes of x and the first of w, plus the low-rank product beside
  it (`models.lora`).
  """
  y = product(p["w"], x, dtype, contract)
  if "lora" in p:
    one = p["lora"]
    y = y + one.scale * product(one.b, product(one.a, x, dtype, contract), dtype)
  return y + p["b"] if "b" in p else y


def product(w: Array, x: Array, dtype: str, contract: int = 1) -> Array:
  """x w over the last `contract` axes of x and the first of w.

  The leading axes are flattened: on a CPU the gradient of a weight is twice as fast from [N, I]
  as from [B, T, I]. The weight is flattened before it is gathered: where a reshape stands
  between the sum of a gradient and its scatter, the TPU compiler sums all of it on every device.
  """
  dtype = "bfloat16" if w.dtype == jnp.bfloat16 else dtype
  lead, inner = x.shape[: x.ndim - contract], w.shape[contract:]
  rows, columns = _flat(x, len(lead)), sharding.gather(_flat(w, contract))
  if not sharding.is_sharded():
    return matmul(rows, columns, dtype, None).reshape(*lead, *inner)
  y = matmul(rows, columns, dtype, jax.P(_partition(rows)[0], _partition(columns)[1]))
  split = jax.P(*_partition(x)[: len(lead)], _partition(columns)[1], *[None] * (len(inner) - 1))
  return jax.lax.reshape(y, (*lead, *inner), out_sharding=split)


def unembed(w: Float[Array, "V D"], x: Float[Array, "*B D"], dtype: str) -> Float[Array, "*B V"]:
  """x w^T with a tied embedding; the transpose is never formed, which would cost more than the
  product on a CPU.
  """
  w = sharding.gather(w)
  dtype = "bfloat16" if w.dtype == jnp.bfloat16 else dtype
  rows = _flat(x, x.ndim - 1)
  if not sharding.is_sharded():
    return matmul(rows, w, dtype, None, 1).reshape(*x.shape[:-1], w.shape[0])
  vocab = _partition(w)[0]
  y = matmul(rows, w, dtype, jax.P(_partition(rows)[0], vocab), 1)
  return jax.lax.reshape(
    y, (*x.shape[:-1], w.shape[0]), out_sharding=jax.P(*_partition(x)[:-1], vocab)
  )


def _flat(x: Array, lead: int) -> Array:
  """The first `lead` axes as one and the others as one; each keeps the partition of its first axis."""
  shape = math.prod(x.shape[:lead]), math.prod(x.shape[lead:])
  if not sharding.is_sharded():
    return x.reshape(shape)
  along = _partition(x)
  return jax.lax.reshape(x, shape, out_sharding=jax.P(along[0] if lead else None, along[lead]))


def rms_norm(
  p: Params, x: Float[Array, "B T *D"], eps: float, offset: float = 0.0
) -> Float[Array, "B T *D"]:
  """(offset + scale) * x / sqrt(mean(x^2) + eps) over the last axis   (Zhang & Sennrich 2019;
  Gemma's offset is 1).
  """
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * (offset + p["scale"])


def layer_norm(p: Params, x: Float[Array, "B T D"], eps: float) -> Float[Array, "B T D"]:
  """scale * (x - mean) / sqrt(var + eps) + bias   (Ba et al. 2016)."""
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def dropout(
  key: Key[Array, ""] | None, x: Float[Array, "B T D"], rate: float
) -> Float[Array, "B T D"]:
  """Zeroes a share `rate` of x and divides the rest by 1 - rate; the identity without a key."""
  if key is None or rate == 0:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=_like(x))
  return jnp.where(keep, x / (1 - rate), 0)


def lookup(w: Float[Array, "V D"], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
  """Rows of an embedding in float32; an id beyond the table reads its last row."""
  rows = (
    sharding.gather(w).at[ids].get(mode="clip", out_sharding=sharding.spec("batch", None, None))
  )
  return rows.astype(jnp.float32)


def positions(valid: Valid) -> Int[Array, "B T"]:
  """How many real tokens of the same segment stand before each token, wherever the padding is.

  Packed segments are runs of one number.
  """
  real = (valid > 0).astype(jnp.int32)
  count = jnp.cumsum(real, axis=1)
  if valid.dtype != jnp.bool_:
    starts = jnp.concatenate(
      [jnp.ones_like(valid[:, :1], bool), valid[:, 1:] != valid[:, :-1]], axis=1
    )
    count = count - jax.lax.cummax(jnp.where(starts, count - real, 0), axis=1)
  return jnp.maximum(count - 1, 0)


def rotate(
  x: Float[Array, "B T H C"], at: Int[Array, "B T"], frequency: Float[Array, " F"] | np.ndarray
) -> Float[Array, "B T H C"]:
  """Rotary positions (Su et al. 2021): the pair (x_i, x_{i + F}), i < F, turns by the angle t
  frequency_i.

  Features from 2F on stay as they are; so do all of them where there is no frequency, or all are 0.
  """
  half = frequency.shape[0]
  if not half:
    return x
  angle = at[:, :, None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def softcapped(x: Array, cap: float) -> Array:
  """cap * tanh(x / cap); x itself where the cap is 0   (Gemma 2)."""
  return cap * jnp.tanh(x / cap) if cap else x


def causal_mask(valid: Valid, window: Int[Array, ""] | int = 0) -> Bool[Array, "B T T"]:
  """True where the key is real, not after the query, in the same segment, and among the last
  `window` columns (0: all).
  """
  at = jnp.arange(valid.shape[1])
  mask = (at[None, :] <= at[:, None]) & (valid > 0)[:, None, :]
  if not isinstance(window, int) or window:
    mask = mask & (at[:, None] - at[None, :] < window)
  return mask if valid.dtype == jnp.bool_ else mask & (valid[:, None, :] == valid[:, :, None])


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
  """softmax(softcap(scale q k^T)) v; each key head serves G queries.  The scale is 1 / sqrt(C)
  where none is given.
  """
  q = (q * (q.shape[-1] ** -0.5 if scale is None else scale)).astype(dtype)
  k, v = k.astype(dtype), v.astype(dtype)
  k, v = like_queries(k, q), like_queries(v, q)
  groups = (*q.shape[:2], k.shape[1], q.shape[2] // k.shape[1], q.shape[3])
  split = jax.P(*_partition(q)[:3], None, None) if sharding.is_sharded() else None
  grouped = jax.lax.reshape(q, groups, out_sharding=split)
  scores = softcapped(_product("btkgc,bksc->bkgts", grouped, k), softcap)
  weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(dtype)
  mixed = _product("bkgts,bksc->btkgc", weights, v)
  return jax.lax.reshape(mixed, q.shape, out_sharding=_like(q))


def _product(equation: str, a: Array, b: Array) -> Array:
  """A batched product accumulated in float32; XLA has none of bfloat16 operands on a CPU, so they
  are widened there.
  """
  wide = lambda a, b: jnp.einsum(equation, a.astype(jnp.float32), b.astype(jnp.float32))
  narrow = lambda a, b: jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)
  return (
    jax.lax.platform_dependent(a, b, cpu=wide, default=narrow)
    if a.dtype == jnp.bfloat16
    else wide(a, b)
  )


def like_queries(x: Float[Array, "B K S C"], q: Float[Array, "B T H C"]) -> Float[Array, "B _ S C"]:
  """Where queries are split over devices and key heads are not, every key head once for each query,
  split as they are.
  """
  if not sharding.is_sharded() or _partition(q)[2] == _partition(x)[1]:
    return x
  B, K, S, C = x.shape
  x = jnp.broadcast_to(x[:, :, None], (B, K, q.shape[2] // K, S, C)).reshape(B, q.shape[2], S, C)
  rows, _, heads, _ = _partition(q)
  return jax.sharding.reshard(x, jax.P(rows, heads, None, None))
