"""What both model families are made of: matrix products, norms, dropout, positions and attention.

The residual stream, norms and softmax are float32.  Matrix products take operands of the compute dtype and accumulate
in float32.  A weight stored in bfloat16 (a frozen trunk) is multiplied in bfloat16 whatever the compute dtype.

Dimensions: B rows, T queries, S keys, D width, H heads, K key/value heads, G = H / K queries a key head, C head width,
N = B * T, I inputs and O outputs of a product.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from instructjax import sharding
from instructjax.types import Array, Bool, Float, Int, Key, Params, Valid

MASKED = -1e30  # a masked attention score: finite, so that a row without keys has no NaN


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(x: Float[Array, "N I"], w: Float[Array, "I O"], dtype: str, out: jax.P | None) -> Float[Array, "N O"]:
  """x w with operands of `dtype`, accumulated in float32, partitioned as `out`; the same holds for its gradients."""
  return _dot(x, w, dtype, ((1,), (0,)), out)


def _dot(a: Array, b: Array, dtype: str, contract: tuple, out: jax.P | None) -> Array:
  a, b = a.astype(dtype), b.astype(dtype)
  return jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=jnp.float32, out_sharding=out)


def _matmul_forward(x, w, dtype, out):
  return _dot(x, w, dtype, ((1,), (0,)), out), (x, w)


def _matmul_backward(dtype, out, saved, g):
  x, w = saved
  dx = _dot(g, w, dtype, ((1,), (1,)), _partition(x))
  dw = _dot(x, g, dtype, ((0,), (0,)), _partition(w))
  return dx.astype(x.dtype), dw.astype(w.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def _partition(x: Array) -> jax.P | None:
  return jax.typeof(x).sharding.spec if sharding.is_sharded() else None


def linear(p: Params, x: Array, dtype: str, *, contract: int = 1) -> Array:
  """x w + b over the last `contract` axes of x and the first of w.

  The leading axes are flattened: on a CPU the gradient of a weight is twice as fast from [N, I] as from [B, T, I].
  """
  w = sharding.gather(p["w"])
  dtype = "bfloat16" if w.dtype == jnp.bfloat16 else dtype
  lead, inner = x.shape[: x.ndim - contract], w.shape[contract:]
  flat = x.reshape(-1, _size(x.shape[x.ndim - contract :])), w.reshape(_size(w.shape[:contract]), -1)
  if not sharding.is_sharded():
    y = matmul(*flat, dtype, None).reshape(*lead, *inner)
  else:
    rows, columns = _partition(x)[: len(lead)], _partition(w)[contract:]
    y = matmul(*flat, dtype, jax.P(_partition(flat[0])[0], _partition(flat[1])[1]))
    y = jax.lax.reshape(y, (*lead, *inner), out_sharding=jax.P(*rows, *columns))
  return y + p["b"] if "b" in p else y


def _size(shape: tuple[int, ...]) -> int:
  size = 1
  for n in shape:
    size *= n
  return size


def rms_norm(p: Params, x: Float[Array, "B T D"], eps: float) -> Float[Array, "B T D"]:
  """scale * x / sqrt(mean(x^2) + eps)   (Zhang & Sennrich 2019)."""
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * p["scale"]


def layer_norm(p: Params, x: Float[Array, "B T D"], eps: float) -> Float[Array, "B T D"]:
  """scale * (x - mean) / sqrt(var + eps) + bias   (Ba et al. 2016)."""
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def dropout(key: Key[Array, ""] | None, x: Float[Array, "B T D"], rate: float) -> Float[Array, "B T D"]:
  """Zeroes a share `rate` of x and divides the rest by 1 - rate; the identity without a key."""
  if key is None or rate == 0:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=_partition(x))
  return jnp.where(keep, x / (1 - rate), 0)


def lookup(w: Float[Array, "V D"], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
  """Rows of an embedding in float32; an id beyond the table reads its last row."""
  rows = sharding.gather(w).at[ids].get(mode="clip", out_sharding=sharding.spec("batch", None, None))
  return rows.astype(jnp.float32)


def positions(valid: Valid) -> Int[Array, "B T"]:
  """How many real tokens of the same segment stand before each token, wherever the padding is.

  Packed segments are runs of one number.
  """
  real = (valid > 0).astype(jnp.int32)
  count = jnp.cumsum(real, axis=1)
  if valid.dtype != jnp.bool_:
    starts = jnp.concatenate([jnp.ones_like(valid[:, :1], bool), valid[:, 1:] != valid[:, :-1]], axis=1)
    count = count - jax.lax.cummax(jnp.where(starts, count - real, 0), axis=1)
  return jnp.maximum(count - 1, 0)


def causal_mask(valid: Valid) -> Bool[Array, "B T T"]:
  """True where the key is real, not after the query, and in the same segment."""
  at = jnp.arange(valid.shape[1])
  mask = (at[None, :] <= at[:, None]) & (valid > 0)[:, None, :]
  return mask if valid.dtype == jnp.bool_ else mask & (valid[:, None, :] == valid[:, :, None])


def attention(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B K S C"],
  v: Float[Array, "B K S C"],
  mask: Bool[Array, "B T S"],
  dtype: str,
) -> Float[Array, "B T H C"]:
  """softmax(q k^T / sqrt(C)) v; each key head serves G queries."""
  q = (q * q.shape[-1] ** -0.5).astype(dtype)
  k, v = k.astype(dtype), v.astype(dtype)
  if sharding.is_sharded() and _partition(q)[2] != _partition(k)[1]:  # queries are split over devices, keys are not
    k, v = (_repeat_heads(x, q) for x in (k, v))
  groups = (*q.shape[:2], k.shape[1], q.shape[2] // k.shape[1], q.shape[3])
  split = jax.P(*_partition(q)[:3], None, None) if sharding.is_sharded() else None
  grouped = jax.lax.reshape(q, groups, out_sharding=split)
  scores = _product("btkgc,bksc->bkgts", grouped, k)
  weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(dtype)
  mixed = _product("bkgts,bksc->btkgc", weights, v)
  return jax.lax.reshape(mixed, q.shape, out_sharding=_partition(q))


def _product(equation: str, a: Array, b: Array) -> Array:
  """A batched product accumulated in float32; XLA has none of bfloat16 operands on a CPU, so they are widened there."""
  wide = lambda a, b: jnp.einsum(equation, a.astype(jnp.float32), b.astype(jnp.float32))
  narrow = lambda a, b: jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)
  return jax.lax.platform_dependent(a, b, cpu=wide, default=narrow) if a.dtype == jnp.bfloat16 else wide(a, b)


def _repeat_heads(x: Float[Array, "B K S C"], q: Float[Array, "B T H C"]) -> Float[Array, "B H S C"]:
  """Every key head once for each of its queries, then split over devices as the queries are."""
  B, K, S, C = x.shape
  x = jnp.broadcast_to(x[:, :, None], (B, K, q.shape[2] // K, S, C)).reshape(B, q.shape[2], S, C)
  rows, _, heads, _ = _partition(q)
  return jax.sharding.reshard(x, jax.P(rows, heads, None, None))
