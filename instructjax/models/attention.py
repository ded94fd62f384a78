"""Who computes the attention of whole rows; the choice is made here and nowhere else.

    "xla"     `blocks.attention`: the reference, on every platform and for every shape
    "splash"  the blockwise Pallas kernel for TPUs; interpreted, and slow, on a CPU
    "cudnn"   cuDNN's flash attention for NVIDIA GPUs, bfloat16 operands only
    "auto"    where the shapes allow, the kernel of the platform that the function is compiled for; XLA elsewhere

The kernels never hold the scores [B, H, T, T].  They attend within segments, and padding is a
segment of its own: a real token sees what the reference shows it, a padded one sees padding, so
that no row is without keys. Windows are counted in columns of the row.  Decoding with a cache is
XLA's: it has one query a row.

Dimensions: B rows, T tokens, H heads, K key/value heads, C head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import blocks
from instructjax.types import Array, Float, Int, Valid

KINDS = ("auto", "xla", "splash", "cudnn")
BLOCKS = (512, 256, 128)  # lengths of the tiles of splash: the first that divides T
Mix = Callable[..., Float[Array, "B T H C"]]  # (q, k, v, valid, which window)


class Rule(NamedTuple):
  """How scores are made: softcap(scale q k^T), each query on the last `window` columns up to its
  own (0: on all).

  Layers may have different windows: `windows` lists them, and a layer is told which is its own.
  """

  scale: float | None = None  # None: 1 / sqrt(C)
  softcap: float = 0.0  # 0: none
  windows: tuple[int, ...] = (0,)


PLAIN = Rule()


def causal(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B K T C"],
  v: Float[Array, "B K T C"],
  valid: Valid,
  which: Int[Array, ""] | int,
  *,
  dtype: str,
  kind: str,
  rule: Rule,
) -> Float[Array, "B T H C"]:
  """Attention of every token to the real ones of its segment up to itself, within window number
  `which` of the rule.

  Raises UserError where `kind` names a kernel that cannot take these shapes.
  """
  windows = tuple(0 if window >= q.shape[1] else window for window in rule.windows)
  if len(set(windows)) == 1:
    windows, which = windows[:1], 0
  mix = chosen(kind, q.shape[1], q.shape[3], dtype, rule._replace(windows=windows))
  return mix(q, k, v, valid, jnp.int32(which))


def chosen(kind: str, length: int, width: int, dtype: str, rule: Rule = PLAIN) -> Mix:
  """The function for rows of `length` tokens and heads of `width`."""
  xla, tpu = partial(reference, dtype=dtype, rule=rule), partial(splash, dtype=dtype, rule=rule)
  refused = {
    "splash": _splash_refuses(length, width),
    "cudnn": _cudnn_refuses(length, width, dtype, rule),
  }
  if refused.get(kind):
    raise UserError(
      f"attention={kind!r} {refused[kind]}; or choose 'auto', which falls back to XLA"
    )
  match kind:
    case "xla":
      return xla
    case "splash":
      return by_platform(tpu, cpu=partial(tpu, interpret=True))
    case "cudnn":
      return partial(cudnn, rule=rule)
  kernels = {} if refused["splash"] else {"tpu": tpu}
  if has_cudnn() and not refused["cudnn"]:
    kernels["cuda"] = partial(cudnn, rule=rule)
  return by_platform(xla, **kernels)


def by_platform(default: Mix, **others: Mix) -> Mix:
  """Chooses when the function is lowered: the platform is that of its arguments, which may be a TPU
  that is not there.
  """
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


def _cudnn_refuses(length: int, width: int, dtype: str, rule: Rule) -> str:
  if rule.softcap:
    return "has no soft cap on its scores, which this model asks for"
  if dtype != "bfloat16":
    return f"needs dtype 'bfloat16', got {dtype!r}"
  if length % 2:
    return f"needs rows of an even number of tokens, got {length}: pad them"
  return (
    f"needs heads of a multiple of 8 up to 128, got {width}" if width % 8 or width > 128 else ""
  )


def reference(
  q: Array,
  k: Array,
  v: Array,
  valid: Valid,
  which: Array | int = 0,
  *,
  dtype: str,
  rule: Rule = PLAIN,
) -> Float[Array, "B T H C"]:
  """The same numbers from XLA, with all scores at once."""
  mask = blocks.causal_mask(valid, _window(rule, which, q.shape[1]))
  return blocks.attention(q, k, v, mask, dtype, scale=rule.scale, softcap=rule.softcap)


def _window(rule: Rule, which: Array | int, length: int) -> Array | int:
  """The window of a layer: a number where all layers have the same, else one read out when the
  program runs.
  """
  if len(rule.windows) == 1:
    return rule.windows[0]
  return jnp.asarray([window or length for window in rule.windows], jnp.int32)[which]


def splash(
  q: Array,
  k: Array,
  v: Array,
  valid: Valid,
  which: Array | int = 0,
  *,
  dtype: str,
  rule: Rule = PLAIN,
  interpret: bool = False,
) -> Array:
  """The Pallas kernel, each device on its own rows and heads; one kernel for each window."""

  def windowed(window: int, q, k, v, segments):
    T, heads = q.shape[1], q.shape[2]
    block = next(size for size in BLOCKS if T % size == 0)
    sizes = pallas.BlockSizes(
      block_q=block,
      block_kv=block,
      block_kv_compute=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      block_q_dq=block,
      block_kv_dq=block,
    )
    mask = pallas.LocalMask((T, T), (window - 1, 0), 0) if window else pallas.CausalMask((T, T))
    kernel = pallas.make_splash_mha_single_device(
      pallas.MultiHeadMask([mask] * heads),
      block_sizes=sizes,
      attn_logits_soft_cap=rule.softcap or None,
      interpret=interpret,
    )
    row = lambda q, k, v, ids: kernel(q, k, v, segment_ids=pallas.SegmentIds(ids, ids))
    q = (q * (q.shape[-1] ** -0.5 if rule.scale is None else rule.scale)).astype(dtype)
    mixed: Any = jax.vmap(row)(jnp.swapaxes(q, 1, 2), k.astype(dtype), v.astype(dtype), segments)
    return jnp.swapaxes(mixed, 1, 2).astype(jnp.float32)

  kernels = [partial(windowed, window) for window in rule.windows]
  local = lambda which, *arrays: (
    jax.lax.switch(which, kernels, *arrays) if len(kernels) > 1 else kernels[0](*arrays)
  )
  return _on_each_device(local, q, k, v, valid, which)


def cudnn(
  q: Array, k: Array, v: Array, valid: Valid, which: Array | int = 0, *, rule: Rule = PLAIN
) -> Float[Array, "B T H C"]:
  """cuDNN's flash attention, each device on its own rows and heads."""

  def local(which, q, k, v, segments):
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    seen = segments[:, None, :, None] == segments[:, None, None, :]
    if rule.windows != (0,):
      at = jnp.arange(q.shape[1])
      seen = seen & (at[:, None] - at[None, :] < _window(rule, which, q.shape[1]))
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    mixed = jax.nn.dot_product_attention(
      q, k, v, mask=seen, is_causal=True, scale=rule.scale, implementation="cudnn"
    )
    return mixed.astype(jnp.float32)

  return _on_each_device(local, q, k, v, valid, which)


def _on_each_device(
  local: Callable, q: Array, k: Array, v: Array, valid: Valid, which: Array | int
) -> Array:
  """`local(which, q, k, v, segments)` under the mesh; key heads that are not split as the queries
  are repeated first.
  """
  segments: Int[Array, "B T"] = valid.astype(jnp.int32)
  which = jnp.int32(which)
  if not sharding.is_sharded():
    return local(which, q, k, v, segments)
  k, v = (blocks.like_queries(x, q) for x in (k, v))
  rows, _, heads, _ = jax.typeof(q).sharding.spec
  whole, keys = jax.P(rows, None, heads, None), jax.P(rows, heads, None, None)
  specs = (jax.P(), whole, keys, keys, jax.P(rows, None))
  return jax.shard_map(local, in_specs=specs, out_specs=whole, check_vma=False)(
    which, q, k, v, segments
  )
