"""Who computes the attention of whole rows; the choice is made here and nowhere else.

    "xla"     `blocks.attention`: the reference, on every platform and for every shape
    "splash"  the blockwise Pallas kernel for TPUs; interpreted, and slow, on a CPU
    "cudnn"   cuDNN's flash attention for NVIDIA GPUs, bfloat16 operands only
    "auto"    where the shapes allow, the kernel of the platform that the function is compiled for; XLA elsewhere

The kernels never hold the scores [B, H, T, T].  They attend within segments, and padding is a segment of its own: a real token
sees what the reference shows it, a padded one sees padding, so that no row is without keys.
Decoding with a cache is XLA's: it has one query a row.

Dimensions: B rows, T tokens, H heads, K key/value heads, C head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import blocks
from instructjax.types import Array, Float, Int, Valid

KINDS = ("auto", "xla", "splash", "cudnn")
BLOCKS = (512, 256, 128)  # lengths of the tiles of splash: the first that divides T
Mix = Callable[..., Float[Array, "B T H C"]]  # (q, k, v, valid)


def causal(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B K T C"],
  v: Float[Array, "B K T C"],
  valid: Valid,
  *,
  dtype: str,
  kind: str,
) -> Float[Array, "B T H C"]:
  """Attention of every token to the real ones of its segment up to itself.

  Raises UserError where `kind` names a kernel that cannot take these shapes.
  """
  return chosen(kind, q.shape[1], q.shape[3], dtype)(q, k, v, valid)


def chosen(kind: str, length: int, width: int, dtype: str) -> Mix:
  """The function for rows of `length` tokens and heads of `width`."""
  xla = partial(reference, dtype=dtype)
  refused = {"splash": _splash_refuses(length, width), "cudnn": _cudnn_refuses(length, width, dtype)}
  if refused.get(kind):
    raise UserError(f"attention={kind!r} {refused[kind]}; or choose 'auto', which falls back to XLA")
  match kind:
    case "xla":
      return xla
    case "splash":
      return by_platform(partial(splash, dtype=dtype), cpu=partial(splash, dtype=dtype, interpret=True))
    case "cudnn":
      return cudnn
  kernels = {} if refused["splash"] else {"tpu": partial(splash, dtype=dtype)}
  if has_cudnn() and not refused["cudnn"]:
    kernels["cuda"] = cudnn
  return by_platform(xla, **kernels)


def by_platform(default: Mix, **others: Mix) -> Mix:
  """Chooses when the function is lowered: the platform is that of its arguments, which may be a TPU that is not there."""
  if not others:
    return default
  return lambda *arrays: jax.lax.platform_dependent(*arrays, **others, default=default)


def has_cudnn() -> bool:
  """Whether this process runs on an NVIDIA GPU: cuDNN's attention cannot even be traced elsewhere."""
  return jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version


def _splash_refuses(length: int, width: int) -> str:
  if length % BLOCKS[-1]:
    return f"needs rows of a multiple of {BLOCKS[-1]} tokens, got {length}: pad them"
  return f"needs heads of a multiple of 64, got {width}" if width % 64 else ""


def _cudnn_refuses(length: int, width: int, dtype: str) -> str:
  if dtype != "bfloat16":
    return f"needs dtype 'bfloat16', got {dtype!r}"
  if length % 2:
    return f"needs rows of an even number of tokens, got {length}: pad them"
  return f"needs heads of a multiple of 8 up to 128, got {width}" if width % 8 or width > 128 else ""


def reference(q: Array, k: Array, v: Array, valid: Valid, *, dtype: str) -> Float[Array, "B T H C"]:
  """The same numbers from XLA, with all scores at once."""
  return blocks.attention(q, k, v, blocks.causal_mask(valid), dtype)


def splash(q: Array, k: Array, v: Array, valid: Valid, *, dtype: str, interpret: bool = False) -> Array:
  """The Pallas kernel, each device on its own rows and heads."""

  def local(q, k, v, segments):
    T, heads = q.shape[1], q.shape[2]
    block = next(size for size in BLOCKS if T % size == 0)
    sizes = pallas.BlockSizes(
      block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
      block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    masks = pallas.MultiHeadMask([pallas.CausalMask((T, T))] * heads)
    kernel = pallas.make_splash_mha_single_device(masks, block_sizes=sizes, interpret=interpret)
    row = lambda q, k, v, ids: kernel(q, k, v, segment_ids=pallas.SegmentIds(ids, ids))
    q = (q * q.shape[-1] ** -0.5).astype(dtype)
    mixed: Any = jax.vmap(row)(jnp.swapaxes(q, 1, 2), k.astype(dtype), v.astype(dtype), segments)
    return jnp.swapaxes(mixed, 1, 2).astype(jnp.float32)

  return _on_each_device(local, q, k, v, valid)


def cudnn(q: Array, k: Array, v: Array, valid: Valid) -> Array:
  """cuDNN's flash attention, each device on its own rows and heads."""

  def local(q, k, v, segments):
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    same = segments[:, None, :, None] == segments[:, None, None, :]
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    mixed = jax.nn.dot_product_attention(q, k, v, mask=same, is_causal=True, implementation="cudnn")
    return mixed.astype(jnp.float32)

  return _on_each_device(local, q, k, v, valid)


def _on_each_device(local: Callable, q: Array, k: Array, v: Array, valid: Valid) -> Array:
  """`local(q, k, v, segments)` under the mesh; key heads that are not split as the queries are repeated first."""
  segments: Int[Array, "B T"] = valid.astype(jnp.int32)
  if not sharding.is_sharded():
    return local(q, k, v, segments)
  k, v = (blocks.like_queries(x, q) for x in (k, v))
  rows, _, heads, _ = jax.typeof(q).sharding.spec
  whole, keys = jax.P(rows, None, heads, None), jax.P(rows, heads, None, None)
  inside = jax.shard_map(local, in_specs=(whole, keys, keys, jax.P(rows, None)), out_specs=whole, check_vma=False)
  return inside(q, k, v, segments)
