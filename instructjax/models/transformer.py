"""A decoder-only transformer from the parts of a family: `gpt` and `llama` differ in their parts
alone.

    x = embed(tokens);   x += attention(norm(x));   x += mlp(norm(x));   hidden = norm(x)

In parallel blocks (GPT-J, GPT-NeoX) both halves read the same x.  Where the parameters hold
`attn_post` and `mlp_post`, these norms stand on each half before it is added (Gemma 2); `q_norm`
and `k_norm` stand on every head (Qwen 3, Gemma 3).

Training scans over layers stacked in one array, `unroll` at a time; layers that differ in their
window or their rotary frequencies are told their number in a list of such kinds.  Decoding
unrolls them over per-layer caches updated in place.

Dimensions: B rows, T tokens, S cache positions, t new positions, D width, V vocabulary, K
key/value heads, C head width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import attention, blocks, freeze, lora
from instructjax.types import LM, Array, Bool, Cache, Float, Int, Key, Leaf, Params, PyTree, Valid

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "blocks", "dots")


class Kind(NamedTuple):
  """What may differ from layer to layer: the window of attention (0: none) and the frequencies of
  the rotation.

  All kinds of a model have equally many frequencies: none without rotary positions, zeros for a
  layer that has no positions.
  """

  window: int
  frequency: np.ndarray  # [F] float32


UNROTATED = Kind(0, np.zeros(0, np.float32))


class Family(NamedTuple):
  """The sizes and the parts of one model.

  `remat` is "none", "blocks" or "dots" (keeps matrix products); `unroll` is how many layers a
  step of the scan holds; `sequence` splits what is kept between blocks along the sequence over
  the mesh's `model` axis; `attention` is one of `attention.KINDS`.  Layer i is of kind
  `kinds[pattern[i]]`.
  """

  vocab_size: int
  context: int
  width: int
  depth: int
  kv_heads: int
  head_width: int
  dropout: float
  dtype: str
  remat: str
  unroll: int
  sequence: bool
  attention: str
  table: PyTree[Leaf]
  norm: Callable[[Params, Array], Array]
  mlp: Callable[[Params, Array], Array]  # [B, T, D] -> [B, T, D]
  embed: Callable[[Params, Array, Array], Array]  # (embed, tokens, positions) -> [B, T, D]
  kinds: tuple[Kind, ...] = (UNROTATED,)
  pattern: tuple[int, ...] = ()  # () where all layers are of the first kind
  parallel: bool = False
  scale: float | None = None  # of the scores; None: 1 / sqrt(C)
  softcap: float = 0.0  # of the scores
  logit_softcap: float = 0.0


def normal(stddev: float) -> Callable[[Key[Array, ""], tuple[int, ...]], Array]:
  """An initialiser: independent Normal(0, stddev^2)."""
  return lambda key, shape: stddev * jax.random.normal(key, shape, jnp.float32)


def ones(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
  return jnp.ones(shape, jnp.float32)


def zeros(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
  return jnp.zeros(shape, jnp.float32)


def check(width: int, heads: int, kv_heads: int, head_width: int = 0) -> None:
  """Raises UserError when the heads do not divide the width (where that gives theirs), or the key
  heads the heads.
  """
  if (not head_width and width % heads) or heads % kv_heads:
    raise UserError(
      f"width {width}, heads {heads}, kv_heads {kv_heads}: heads must divide the width and "
      "kv_heads the heads"
    )


def check_choice(name: str, value: str, known: Collection[str]) -> None:
  """Raises UserError for a value that is none of those known."""
  if value not in known:
    raise UserError(f"{name} is {value!r}: choose one of {', '.join(known)}")


def build(family: Family) -> LM:
  """The language model as pure functions.

  Raises UserError for an unknown `dtype`, `remat` or `attention`, an `unroll` below 1, and an
  impossible rate of dropout.
  """
  f = family
  kinds = (
    ("dtype", f.dtype, DTYPES),
    ("remat", f.remat, REMAT),
    ("attention", f.attention, attention.KINDS),
  )
  for name, value, known in kinds:
    check_choice(name, value, known)
  if f.unroll < 1:
    raise UserError(f"unroll is {f.unroll}: choose 1 or more layers a step of the scan")
  if not 0 <= f.dropout < 1:
    raise UserError(f"dropout is {f.dropout}: choose a rate from 0 up to, but not including, 1")
  return LM(
    f.vocab_size,
    f.context,
    f.width,
    f.depth,
    f.table,
    partial(init, f.table),
    partial(stem, f),
    partial(hidden, f),
    partial(logits, f),
    partial(unstack, f),
    partial(init_cache, f),
    partial(decode, f),
  )


def init(table: PyTree[Leaf], key: Key[Array, ""]) -> Params:
  """Initial parameters, float32: every leaf draws from a key of its own."""
  leaves, tree = jax.tree.flatten(table)
  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(
    tree, [leaf.init(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
  )


def attend(
  f: Family,
  p: Params,
  x: Float[Array, "B T D"],
  at: Int[Array, "B T"],
  frequency: Array | np.ndarray,
  mix: Callable[[Array, Array, Array], Array],
) -> Float[Array, "B T D"]:
  """The attention half of a block; `mix` takes queries [B, T, H, C], keys and values [B, K, T, C]."""
  x = f.norm(p["attn_norm"], x)
  q, k, v = (blocks.linear(p[name], x, f.dtype) for name in ("q", "k", "v"))
  if "q_norm" in p:
    q, k = f.norm(p["q_norm"], q), f.norm(p["k_norm"], k)
  q, k = blocks.rotate(q, at, frequency), blocks.rotate(k, at, frequency)
  mixed = mix(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))
  y = blocks.linear(p["o"], mixed, f.dtype, contract=2)
  return f.norm(p["attn_post"], y) if "attn_post" in p else y


def transform(f: Family, p: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """The MLP half of a block; a parallel block may have one norm for both halves."""
  y = f.mlp(p, f.norm(p["mlp_norm"] if "mlp_norm" in p else p["attn_norm"], x))
  return f.norm(p["mlp_post"], y) if "mlp_post" in p else y


def add_halves(
  f: Family,
  p: Params,
  x: Float[Array, "B T D"],
  attended: Float[Array, "B T D"],
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
  """x with both halves of a block added.  Dropout stands at two places: on each half before it is
  added (App. C.1).
  """
  keys = (None, None) if key is None else jax.random.split(key)
  y = x + blocks.dropout(keys[0], attended, f.dropout)
  return y + blocks.dropout(keys[1], transform(f, p, x if f.parallel else y), f.dropout)


def block(
  f: Family,
  x: Float[Array, "B T D"],
  layer: tuple[Params, Key[Array, ""] | None, Int[Array, ""] | None],
  at: Array,
  mix: Callable,
) -> tuple[Float[Array, "B T D"], None]:
  """One layer as the body of a scan: its parameters, its key and, where layers differ, the number
  of its kind.
  """
  p, key, kind = layer
  frequency = (
    f.kinds[0].frequency if kind is None else jnp.asarray([k.frequency for k in f.kinds])[kind]
  )
  here = lambda q, k, v: mix(q, k, v, which=0 if kind is None else kind)
  return add_halves(f, p, x, attend(f, p, x, at, frequency, here), key), None


def run(
  f: Family,
  layers: Params,
  x: Float[Array, "B T D"],
  valid: Valid,
  key: Key[Array, ""] | None = None,
  *,
  first: int = 0,
) -> Float[Array, "B T D"]:
  """x through stacked layers, the lowest of which is number `first` of the model."""
  rule = attention.Rule(f.scale, f.softcap, tuple(kind.window for kind in f.kinds))
  mix = partial(attention.causal, valid=valid, dtype=f.dtype, kind=f.attention, rule=rule)
  body = partial(block, f, at=blocks.positions(valid), mix=mix)
  if f.sequence:
    body = partial(split_stream, body)
  if f.remat != "none":
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if f.remat == "dots" else None
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
  depth = jax.tree.leaves(layers)[0].shape[0]
  keys = None if key is None else jax.random.split(key, depth)
  kinds = jnp.asarray(f.pattern[first : first + depth], jnp.int32) if len(f.kinds) > 1 else None
  stack = (layers, keys, kinds)
  if not f.sequence:
    return jax.lax.scan(body, x, stack, unroll=min(f.unroll, depth))[0]
  x, _ = jax.lax.scan(body, along_sequence(x), stack, unroll=min(f.unroll, depth))
  return sharding.reshard(x, "batch", None, None)


def along_sequence(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """x split along the sequence too, over the mesh's `model` axis, where that divides it."""
  spec = sharding.fit(x.shape, ("batch", "sequence", None))
  return x if spec is None else jax.sharding.reshard(x, spec)


def split_stream(
  body: Callable,
  x: Float[Array, "B T D"],
  layer: tuple[Params, Key[Array, ""] | None, Int[Array, ""] | None],
) -> tuple[Float[Array, "B T D"], None]:
  """A block whose input and output, which the backward pass keeps, are split along the sequence;
  inside they are whole.
  """
  x, _ = body(sharding.reshard(x, "batch", None, None), layer)
  return along_sequence(x), None


def stem(
  f: Family, params: Params, tokens: Int[Array, "B T"], valid: Valid
) -> Float[Array, "B T D"]:
  """Embeddings carried through `lower`, whose gradient stops here.

  Raises UserError for rows longer than the context.
  """
  if tokens.shape[1] > f.context:
    raise UserError(
      f"rows of {tokens.shape[1]} tokens do not fit the model's context of {f.context}: shorten "
      "the rows"
    )
  x = f.embed(params["embed"], tokens, blocks.positions(valid))
  return jax.lax.stop_gradient(run(f, params["lower"], x, valid)) if "lower" in params else x


def hidden(
  f: Family,
  params: Params,
  tokens: Int[Array, "B T"],
  valid: Valid,
  *,
  stem: Float[Array, "B T D"] | None = None,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
  """Hidden states after the final norm."""
  x = globals()["stem"](f, params, tokens, valid) if stem is None else stem.astype(jnp.float32)
  below = f.depth - jax.tree.leaves(params["blocks"])[0].shape[0]
  return f.norm(params["norm"], run(f, lora.attach(params), x, valid, key, first=below))


def logits(f: Family, params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
  """The unembedding: `head` where there is one, else the token embedding."""
  if "head" in params:
    return blocks.softcapped(blocks.linear(params["head"], hidden, f.dtype), f.logit_softcap)
  tied = params["unembed"]["w"] if "unembed" in params else params["embed"]["tokens"]
  return blocks.softcapped(blocks.unembed(tied, hidden, f.dtype), f.logit_softcap)


def unstack(f: Family, params: Params, *, whole: bool = True) -> Params:
  """Parameters for decoding: a dict a layer, weights cast to the compute dtype.

  `whole` makes them whole along fsdp, once; else each is made whole when it is used, in every
  step.  An adapter is added to float32 matrices; beside those of bfloat16 it stays apart, for
  their rounding would swallow what is small against them.
  """
  stacks = [params["lower"]] if "lower" in params else []
  stacks.append(lora.attach(params))
  layers = tuple(
    jax.tree.map(lambda w, i=i: w[i], stack)
    for stack in stacks
    for i in range(jax.tree.leaves(stack)[0].shape[0])
  )
  rest = {name: leaf for name, leaf in params.items() if name not in ("lower", "blocks", "adapter")}
  if "head" not in params:
    rest["unembed"] = {"w": params["embed"]["tokens"]}
  if f.dtype == "float32":
    apart = lambda p: "lora" in p and p["w"].dtype != jnp.float32
    layers = tuple(
      {name: p if apart(p) else lora.fold(p) for name, p in layer.items()} for layer in layers
    )
  found = freeze.cast(rest | {"layers": layers}, f.dtype)
  return jax.tree.map(sharding.gather, found) if whole else found


def init_cache(f: Family, batch: int, length: int) -> Cache:
  """An empty cache of `length` positions: keys and values [B, K, S, C] of every layer, real
  positions, next index.

  Raises UserError for more positions than the context.
  """
  if length > f.context:
    raise UserError(
      f"{length} positions do not fit the model's context of {f.context}: shorten the prompts or "
      "the responses"
    )
  shape, axes = (batch, f.kv_heads, length, f.head_width), ("batch", "kv_heads", None, None)
  empty = lambda: tuple(
    jnp.zeros(shape, f.dtype, out_sharding=sharding.fit(shape, axes)) for _ in range(f.depth)
  )
  valid = jnp.zeros(
    (batch, length), bool, out_sharding=sharding.fit((batch, length), ("batch", None))
  )
  return {"keys": empty(), "values": empty(), "valid": valid, "index": jnp.int32(0)}


def decode(
  f: Family, params: Params, tokens: Int[Array, "B t"], valid: Bool[Array, "B t"], cache: Cache
) -> tuple[Float[Array, "B t D"], Cache]:
  """Appends t positions to the cache; every new position attends to the real ones up to itself,
  within its window.
  """
  index, t = cache["index"], tokens.shape[1]
  seen = jax.lax.dynamic_update_slice(cache["valid"], valid, (0, index))
  count = jnp.sum(cache["valid"], axis=1, keepdims=True, dtype=jnp.int32) + jnp.cumsum(
    valid, axis=1, dtype=jnp.int32
  )
  at = jnp.maximum(count - 1, 0)
  before = (
    index + jnp.arange(t)[:, None] - jnp.arange(seen.shape[1])
  )  # columns from the key to the query
  causal = seen[:, None, :] & (before >= 0)
  x = f.embed(params["embed"], tokens, at)
  keys, values = list(cache["keys"]), list(cache["values"])
  for i, p in enumerate(params["layers"]):
    kind = f.kinds[f.pattern[i] if f.pattern else 0]
    mask = causal & (before < kind.window) if kind.window else causal

    def mix(q, k, v, i=i, mask=mask):
      place = lambda old, new: jax.lax.dynamic_update_slice(
        old, new.astype(old.dtype), (0, 0, index, 0)
      )
      keys[i], values[i] = place(keys[i], k), place(values[i], v)
      return blocks.attention(
        q, keys[i], values[i], mask, f.dtype, scale=f.scale, softcap=f.softcap
      )

    x = add_halves(f, p, x, attend(f, p, x, at, kind.frequency, mix))
  cache = {"keys": tuple(keys), "values": tuple(values), "valid": seen, "index": index + t}
  return f.norm(params["norm"], x), cache
