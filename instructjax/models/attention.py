"""Chooses who computes the attention of whole rows; the choice is made in this file alone.

    "xla"     `blocks.attention` in blocks of queries, on every platform and for every shape
    "splash"  the blockwise Pallas kernel for TPUs; interpreted, and slow, on a CPU
    "cudnn"   cuDNN's flash attention for NVIDIA GPUs, with bfloat16 operands only
    "auto"    where the shapes allow, the kernel of the platform that the function is compiled for;
              XLA elsewhere

Nobody holds the scores [B, H, T, T] of long rows. The kernels attend within segments, and padding
is a segment of its own: a real token sees what XLA shows it, and a padded token sees padding, so
that no row is without keys. Windows are counted in columns of the row. Decoding with a cache
always uses XLA, because it has few queries a row.

Rows whose segments have branches (`types.Branch`) are for XLA and cuDNN, which take any mask.
Splash knows segments only, so XLA takes its place.

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
from instructjax.types import Array, Bool, Branch, Float, Int, Valid

KINDS = ("auto", "xla", "splash", "cudnn")
TILES = (1024, 512, 256, 128)  # lengths of the tiles of splash: the first that divides T is used
# The longest of them for wide heads, and the most keys whose scores are computed at once. MaxText's
# models for v6e take 2048 for both, with more vector memory than a program has by default (its
# benchmarks/maxtext_trillium_model_configs.py); these compile with the default of every chip.
WIDE_HEAD = 128
WIDE_TILE = 512
KEYS_AT_ONCE = 512
# As there, one kernel computes all gradients. It writes a part of those of the queries for every
# tile of keys, so beyond so many tiles two kernels take its place.
FUSED_TILES = 8
# The name of what the heads have read, by which a backward pass may keep it
# (`transformer.recomputed`).
ATTENDED = "attended"
# Queries of a block for XLA, and the most blocks, because each is compiled by itself.
QUERIES = 64
MOST_BLOCKS = 8
# The most scores that a device holds at once: 256 MB in float32.
SCORES = 1 << 26
# A function of (q, k, v, valid, window_index), and of the branches where there are any.
Mix = Callable[..., Float[Array, "B T H C"]]


class Rule(NamedTuple):
  """How scores are made: softcap(scale q k^T), over the last `window` columns up to the query's.

  Layers may have different windows: `windows` lists them, and every call names one by its index.
  """

  scale: float | None = None  # None means 1 / sqrt(C)
  softcap: float = 0.0  # 0 means no cap
  windows: tuple[int, ...] = (0,)  # a window of 0 means all columns


PLAIN = Rule()


def causal(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B K T C"],
  v: Float[Array, "B K T C"],
  valid: Valid,
  window_index: Int[Array, ""] | int,
  *,
  dtype: str,
  kind: str,
  rule: Rule,
  branch: Branch | None = None,
) -> Float[Array, "B T H C"]:
  """Attends from every token to the real tokens of its segment up to itself, within its window.

  With branches it attends to those of its prompt and its own branch.

  Raises:
    UserError: where `kind` names a kernel that cannot take these shapes.
  """
  length, head_width = q.shape[1], q.shape[3]
  # A window as long as the row hides nothing. Where all layers then agree, none needs an index.
  windows = tuple(0 if window >= length else window for window in rule.windows)
  if len(set(windows)) == 1:
    windows = windows[:1]
    window_index = 0
  rule = rule._replace(windows=windows)
  if branch is None:
    mix = chosen(kind, length, head_width, dtype, rule)
    return mix(q, k, v, valid, jnp.int32(window_index))
  mix = chosen_for_branches(kind, length, head_width, dtype, rule)
  return mix(q, k, v, valid, jnp.int32(window_index), branch)


def chosen(kind: str, length: int, width: int, dtype: str, rule: Rule = PLAIN) -> Mix:
  """Returns the attention function for rows of `length` tokens and heads of `width` features.

  Raises:
    UserError: where `kind` names a kernel that cannot take these shapes.
  """
  xla = partial(in_blocks, dtype=dtype, rule=rule)
  tpu = partial(splash, dtype=dtype, rule=rule)
  obstacles = {
    "splash": _obstacle_to_splash(length, width),
    "cudnn": _obstacle_to_cudnn(length, width, dtype, rule),
  }
  if obstacles.get(kind):
    raise UserError(
      f"attention={kind!r} {obstacles[kind]}; or choose 'auto', which falls back to XLA"
    )
  match kind:
    case "xla":
      return xla
    case "splash":
      # The interpreter is slow; it serves tests.
      return by_platform(tpu, cpu=partial(tpu, interpret=True))
    case "cudnn":
      return partial(cudnn, rule=rule)
  # What remains is "auto": every kernel without an obstacle, for its own platform.
  kernels = {} if obstacles["splash"] else {"tpu": tpu}
  if has_cudnn() and not obstacles["cudnn"]:
    kernels["cuda"] = partial(cudnn, rule=rule)
  return by_platform(xla, **kernels)


def chosen_for_branches(kind: str, length: int, width: int, dtype: str, rule: Rule = PLAIN) -> Mix:
  """Returns the attention function for rows whose segments have branches.

  Raises:
    UserError: where `kind` is "cudnn", which cannot take these shapes.
  """
  if kind == "cudnn":
    return chosen(kind, length, width, dtype, rule)
  xla = partial(in_blocks, dtype=dtype, rule=rule)
  gpu_can = has_cudnn() and not _obstacle_to_cudnn(length, width, dtype, rule)
  if kind == "auto" and gpu_can:
    return by_platform(xla, cuda=partial(cudnn, rule=rule))
  return xla


def by_platform(default: Mix, **mix_by_platform: Mix) -> Mix:
  """Returns a function that chooses by platform when it is lowered.

  The platform is that of the arguments, which may be a TPU that this machine does not have.
  """
  if not mix_by_platform:
    return default

  def mix(*arrays: Array) -> Array:
    return jax.lax.platform_dependent(*arrays, **mix_by_platform, default=default)

  return mix


def has_cudnn() -> bool:
  """Returns whether this process runs on an NVIDIA GPU.

  Elsewhere cuDNN's attention cannot even be traced.
  """
  if jax.default_backend() != "gpu":
    return False
  return "cuda" in jax.devices()[0].client.platform_version


def _obstacle_to_splash(length: int, width: int) -> str:
  """Says why splash cannot take these shapes; "" where it can."""
  smallest = TILES[-1]
  if length % smallest:
    return f"needs rows of a multiple of {smallest} tokens, got {length}: pad them"
  if width % 64:
    return f"needs heads of a multiple of 64, got {width}"
  return ""


def _obstacle_to_cudnn(length: int, width: int, dtype: str, rule: Rule) -> str:
  """Says why cuDNN cannot take these shapes or this rule; "" where it can."""
  if rule.softcap:
    return "has no soft cap on its scores, which this model asks for"
  if dtype != "bfloat16":
    return f"needs dtype 'bfloat16', got {dtype!r}"
  if length % 2:
    return f"needs rows of an even number of tokens, got {length}: pad them"
  if width % 8 or width > 128:
    return f"needs heads of a multiple of 8 up to 128, got {width}"
  return ""


# --- XLA ---


def in_blocks(
  q: Float[Array, "B T H C"],
  k: Float[Array, "B K T C"],
  v: Float[Array, "B K T C"],
  valid: Valid,
  window_index: Array | int = 0,
  branch: Branch | None = None,
  *,
  dtype: str,
  rule: Rule = PLAIN,
) -> Float[Array, "B T H C"]:
  """Computes attention by XLA, for a block of queries at a time.

  A block meets the keys up to its last query and, in a window, from that of its first query on: of
  the scores of a long row, nearly half are never computed.
  """
  length = q.shape[1]
  window = _window(rule, window_index, length)
  k = blocks.like_queries(k, q)
  v = blocks.like_queries(v, q)
  columns = blocks.columns_of(valid, branch)
  size = -(-length // min(-(-length // QUERIES), MOST_BLOCKS))
  mixed = []
  for start in range(0, length, size):
    end = min(start + size, length)
    first_key = 0
    if isinstance(window, int) and window and branch is None:
      first_key = max(0, start - window + 1)
    attend = partial(
      _attend,
      k=k[:, :, first_key:end],
      v=v[:, :, first_key:end],
      keys=blocks.some_columns(columns, first_key, end),
      window=window,
      dtype=dtype,
      rule=rule,
    )
    queries = blocks.some_columns(columns, start, end)
    mixed.append(_by_scores(attend, q[:, start:end], queries, end - first_key))
  return mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=1)


def _attend(
  q: Array,
  queries: blocks.Columns,
  *,
  k: Array,
  v: Array,
  keys: blocks.Columns,
  window: Array | int,
  dtype: str,
  rule: Rule,
) -> Array:
  mask = blocks.visible(queries, keys, window)
  return blocks.attention(q, k, v, mask, dtype, scale=rule.scale, softcap=rule.softcap)


def _by_scores(
  attend: Callable[[Array, blocks.Columns], Array],
  q: Float[Array, "B Q H C"],
  queries: blocks.Columns,
  keys: int,
) -> Float[Array, "B Q H C"]:
  """Attends in a loop, in as many parts as keep the scores of one within `SCORES` on a device.

  The backward pass computes the scores of a part again.
  """
  length = q.shape[1]
  N = _parts_of_queries(q, keys)
  if N == 1:
    return attend(q, queries)

  size = -(-length // N)
  padding = N * size - length

  def cut(x: Array) -> Array:
    """[B, Q, ...] -> [N, B, Q / N, ...], filled up with zeros at the end."""
    x = jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)])
    split = None
    if sharding.is_sharded():
      first, _, *rest = jax.typeof(x).sharding.spec
      split = jax.P(first, None, None, *rest)
    x = jax.lax.reshape(x, (x.shape[0], N, size, *x.shape[2:]), out_sharding=split)
    return jnp.swapaxes(x, 0, 1)

  def body(_: None, part: tuple[Array, blocks.Columns]) -> tuple[None, Array]:
    return None, attend(*part)

  first = queries.first + size * jnp.arange(N)
  parts = blocks.Columns(first, *jax.tree.map(cut, queries[1:]))
  # A scan needs no guard against common subexpressions.
  body = jax.checkpoint(body, prevent_cse=False)
  _, mixed = jax.lax.scan(body, None, (cut(q), parts))
  mixed = jnp.swapaxes(mixed, 0, 1)
  split = jax.typeof(q).sharding.spec if sharding.is_sharded() else None
  rows, _, _, *rest = mixed.shape
  return jax.lax.reshape(mixed, (rows, N * size, *rest), out_sharding=split)[:, :length]


def _parts_of_queries(q: Float[Array, "B Q H C"], keys: int) -> int:
  """Returns the number of parts by which a device holds at most `SCORES` scores at once."""
  shape = q.shape
  if sharding.is_sharded():
    shape = jax.typeof(q).sharding.shard_shape(shape)
  rows, length, heads, _ = shape
  return min(-(-rows * heads * length * keys // SCORES), length)


def _window(rule: Rule, window_index: Array | int, length: int) -> Array | int:
  """Returns the window of a layer: a Python number where all layers share it, else an array.

  An array is read when the program runs, so a window of 0 (all columns) becomes the row's length.
  """
  if len(rule.windows) == 1:
    return rule.windows[0]
  windows = jnp.asarray([window or length for window in rule.windows], jnp.int32)
  return windows[window_index]


# --- Pallas ---


def splash(
  q: Array,
  k: Array,
  v: Array,
  valid: Valid,
  window_index: Array | int = 0,
  *,
  dtype: str,
  rule: Rule = PLAIN,
  interpret: bool = False,
) -> Array:
  """Computes attention by the Pallas kernel, on each device for its own rows and heads.

  The window of a kernel is fixed when it is built, so there is one kernel for each window.
  """

  def attend(
    window: int,
    q: Array,
    k: Array,
    v: Array,
    segments: Int[Array, "B T"],
  ) -> Float[Array, "B T H C"]:
    length, heads, width = q.shape[1:]
    kernel = _splash_kernel(length, heads, width, window, rule.softcap, interpret)

    def attend_row(q: Array, k: Array, v: Array, ids: Int[Array, " T"]) -> Array:
      return kernel(q, k, v, segment_ids=pallas.SegmentIds(ids, ids))

    # The kernel does not scale the scores.
    scale = q.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    q = jnp.swapaxes((q * scale).astype(dtype), 1, 2)
    k = k.astype(dtype)
    v = v.astype(dtype)
    mixed: Any = jax.vmap(attend_row)(q, k, v, segments)
    return jnp.swapaxes(mixed, 1, 2).astype(jnp.float32)

  kernels = [partial(attend, window) for window in rule.windows]

  def attend_locally(window_index: Int[Array, ""], *arrays: Array) -> Array:
    if len(kernels) == 1:
      return kernels[0](*arrays)
    return jax.lax.switch(window_index, kernels, *arrays)

  return _on_each_device(attend_locally, q, k, v, valid, window_index)


def tiles(length: int, width: int) -> pallas.BlockSizes:
  """Returns the tiles of the kernels for rows of `length` tokens and heads of `width` features."""
  longest = TILES[0] if width <= WIDE_HEAD else WIDE_TILE
  tile = next(size for size in TILES if size <= longest and length % size == 0)
  at_once = min(tile, KEYS_AT_ONCE)
  is_fused = length // tile <= FUSED_TILES
  return pallas.BlockSizes(
    block_q=tile,
    block_kv=tile,
    block_kv_compute=at_once,
    block_q_dkv=tile,
    block_kv_dkv=tile,
    block_kv_dkv_compute=at_once,
    block_q_dq=None if is_fused else tile,
    block_kv_dq=None if is_fused else tile,
    use_fused_bwd_kernel=is_fused,
  )


def _splash_kernel(
  length: int,
  heads: int,
  width: int,
  window: int,
  softcap: float,
  interpret: bool,
) -> Callable[..., Any]:
  """Builds the Pallas kernel of one row: q [H, T, C], k and v [K, T, C] -> [H, T, C]."""
  sizes = tiles(length, width)
  if window:
    # The window counts the query itself, the mask counts the columns to its left.
    mask = pallas.LocalMask((length, length), (window - 1, 0), 0)
  else:
    mask = pallas.CausalMask((length, length))
  return pallas.make_splash_mha_single_device(
    pallas.MultiHeadMask([mask] * heads),
    block_sizes=sizes,
    attn_logits_soft_cap=softcap or None,
    residual_checkpoint_name=ATTENDED,
    interpret=interpret,
  )


# --- cuDNN ---


def cudnn(
  q: Array,
  k: Array,
  v: Array,
  valid: Valid,
  window_index: Array | int = 0,
  branch: Branch | None = None,
  *,
  rule: Rule = PLAIN,
) -> Float[Array, "B T H C"]:
  """Computes attention by cuDNN, on each device for its own rows and heads."""

  def attend_locally(
    window_index: Int[Array, ""],
    q: Array,
    k: Array,
    v: Array,
    segments: Int[Array, "B T"],
    *branches: Branch,
  ) -> Array:
    k = jnp.swapaxes(k, 1, 2)
    v = jnp.swapaxes(v, 1, 2)
    seen: Bool[Array, "B 1 T T"] = segments[:, None, :, None] == segments[:, None, None, :]
    column = jnp.arange(q.shape[1])
    distance = column[:, None] - column[None, :]
    window = _window(rule, window_index, q.shape[1])
    for branch in branches:
      # A padded token sees itself, so that no row is without keys.
      visible = blocks.causal_mask(segments, window, branch) | (distance == 0)
      seen = visible[:, None]
    if rule.windows != (0,) and not branches:
      seen = seen & (distance < window)
    mixed = jax.nn.dot_product_attention(
      q.astype(jnp.bfloat16),
      k.astype(jnp.bfloat16),
      v.astype(jnp.bfloat16),
      mask=seen,
      is_causal=True,
      scale=rule.scale,
      implementation="cudnn",
    )
    return mixed.astype(jnp.float32)

  branches = () if branch is None else (branch,)
  return _on_each_device(attend_locally, q, k, v, valid, window_index, *branches)


def _on_each_device(
  attend_locally: Callable,
  q: Array,
  k: Array,
  v: Array,
  valid: Valid,
  window_index: Array | int,
  *branches: Branch,
) -> Array:
  """Runs `attend_locally(window_index, q, k, v, segments, *branches)` on each device of the mesh.

  Key heads that are not split as the queries are get repeated first, so that every device holds
  the keys of its own queries.
  """
  segments: Int[Array, "B T"] = valid.astype(jnp.int32)
  window_index = jnp.int32(window_index)
  if not sharding.is_sharded():
    return attend_locally(window_index, q, k, v, segments, *branches)
  k = blocks.like_queries(k, q)
  v = blocks.like_queries(v, q)
  rows, _, heads, _ = jax.typeof(q).sharding.spec
  query_spec = jax.P(rows, None, heads, None)
  key_spec = jax.P(rows, heads, None, None)
  # The kernels do not say how their results vary over the mesh, hence check_vma=False.
  attend_on_mesh = jax.shard_map(
    attend_locally,
    in_specs=(jax.P(), query_spec, key_spec, key_spec, *[jax.P(rows, None)] * (1 + len(branches))),
    out_specs=query_spec,
    check_vma=False,
  )
  return attend_on_mesh(window_index, q, k, v, segments, *branches)
