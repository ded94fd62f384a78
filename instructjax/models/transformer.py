"""A decoder-only transformer, built from the parts that a family of models supplies.

    x = embed(tokens);   x += attention(norm(x));   x += mlp(norm(x));   hidden = norm(x)

`gpt` and `llama` share all of this file and differ only in the parts that they pass to it. In
parallel blocks (GPT-J, GPT-NeoX) both halves read the same x. Where the parameters hold
`attn_post` and `mlp_post`, these norms are applied to each half before it is added (Gemma 2);
`q_norm` and `k_norm` are applied to every head (Qwen 3, Gemma 3).

Training scans over layers that are stacked in one array, `unroll` of them at a time. Layers may
differ in their window or their rotary frequencies: the model lists these kinds, and the scan gives
each layer the number of its kind. Decoding unrolls the layers instead, because each of them
updates a cache of its own in place.

Dimensions: B rows, T tokens, S cache positions, t new positions, D width, V vocabulary, H heads,
K key/value heads, C head width, L layers, F rotary frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import attention, blocks, cache, freeze, int8, lora
from instructjax.types import (
  LM,
  Array,
  Bool,
  Branch,
  Cache,
  Float,
  Int,
  Key,
  Leaf,
  Params,
  PyTree,
  Valid,
)

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "attention", "blocks", "offload")
# The name of the residual stream before a block, which may wait in the memory of the host.
STREAM = "stream"


class Kind(NamedTuple):
  """What may differ from layer to layer: the window of attention and the rotary frequencies.

  All kinds of a model have equally many frequencies, so that a scan can index them: none without
  rotary positions, and zeros for a layer that sees no positions.
  """

  window: int  # tokens that a query sees, itself included; 0 means all before it
  frequency: np.ndarray  # [F] float32


UNROTATED = Kind(0, np.zeros(0, np.float32))

Initialiser = Callable[[Key[Array, ""], tuple[int, ...]], Array]
# What a scan over the blocks hands to its body for one layer.
Layer = tuple[
  Params,
  Key[Array, ""] | None,  # for dropout
  Int[Array, ""] | None,  # the number of its kind; None where all layers are of one kind
]


class Family(NamedTuple):
  """The sizes and the parts of one model.

  Layer i is of kind `kinds[pattern[i]]`. `sequence` splits the residual stream along the sequence,
  over the mesh's `model` axis, which saves memory in the backward pass. Each half of a block
  gathers what it reads, and its sums over that axis are scattered.
  """

  vocab_size: int
  context: int
  width: int
  depth: int
  kv_heads: int
  head_width: int
  dropout: float
  dtype: str  # of the operands of matrix products, one of DTYPES
  stream: str  # of the residual stream and what is added to it, one of DTYPES
  remat: str  # one of REMAT, see `recomputed`
  unroll: int  # layers in one step of the scan
  sequence: bool
  attention: str  # one of `attention.KINDS`
  table: PyTree[Leaf]
  norm: Callable[[Params, Array], Array]
  mlp: Callable[[Params, Array], Array]  # [B, T, D] -> [B, T, D]
  embed: Callable[[Params, Array, Array], Array]  # (embed, tokens, positions) -> [B, T, D]
  kinds: tuple[Kind, ...] = (UNROTATED,)
  pattern: tuple[int, ...] = ()  # () where all layers are of the first kind
  parallel: bool = False
  scale: float | None = None  # of the scores; None means 1 / sqrt(C)
  softcap: float = 0.0  # of the scores
  logit_softcap: float = 0.0


# --- initial values and checks, which the families share ---


def normal(stddev: float) -> Initialiser:
  """Returns an initialiser that draws independently from Normal(0, stddev^2)."""

  def draw(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    return stddev * jax.random.normal(key, shape, jnp.float32)

  return draw


def ones(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
  """An initialiser of ones."""
  return jnp.ones(shape, jnp.float32)


def zeros(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
  """An initialiser of zeros."""
  return jnp.zeros(shape, jnp.float32)


def check(width: int, heads: int, kv_heads: int, head_width: int = 0) -> None:
  """Checks that the numbers of heads fit the width and each other.

  Raises:
    UserError: when the heads do not divide the width (unless `head_width` is set, which makes
      the width of a head independent of it), or the key/value heads do not divide the heads.
  """
  undivided_width = not head_width and width % heads
  if undivided_width or heads % kv_heads:
    raise UserError(
      f"width {width}, heads {heads}, kv_heads {kv_heads}: heads must divide the width and "
      "kv_heads the heads"
    )


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
  """Raises UserError when `value` is none of the choices for the setting `name`."""
  if value not in choices:
    raise UserError(f"{name} is {value!r}: choose one of {', '.join(choices)}")


# --- the language model ---


def build(family: Family) -> LM:
  """Returns the language model as pure functions.

  Raises:
    UserError: for an unknown `dtype`, `stream`, `remat` or `attention`, a stream that is narrower
      than the products, an `unroll` below 1, and a dropout rate outside [0, 1).
  """
  check_choice("dtype", family.dtype, DTYPES)
  check_choice("stream", family.stream, DTYPES)
  check_choice("remat", family.remat, REMAT)
  check_choice("attention", family.attention, attention.KINDS)
  if family.stream == "bfloat16" and family.dtype != "bfloat16":
    raise UserError(
      f"stream is 'bfloat16' and dtype {family.dtype!r}: products in float32 would be rounded as "
      "they are added; choose dtype 'bfloat16', or stream 'float32'"
    )
  if family.unroll < 1:
    raise UserError(f"unroll is {family.unroll}: choose 1 or more layers a step of the scan")
  if not 0 <= family.dropout < 1:
    raise UserError(
      f"dropout is {family.dropout}: choose a rate from 0 up to, but not including, 1"
    )
  return LM(
    vocab_size=family.vocab_size,
    context=family.context,
    width=family.width,
    depth=family.depth,
    table=family.table,
    init=partial(init, family.table),
    stem=partial(embed_and_carry, family),
    hidden=partial(hidden, family),
    logits=partial(logits, family),
    unstack=partial(unstack, family),
    init_cache=partial(init_cache, family),
    decode=partial(decode, family),
  )


def init(table: PyTree[Leaf], key: Key[Array, ""]) -> Params:
  """Returns initial parameters in float32, each leaf drawn from a key of its own."""
  leaves, tree = jax.tree.flatten(table)
  keys = jax.random.split(key, len(leaves))
  arrays = []
  for leaf, own_key in zip(leaves, keys, strict=True):
    arrays.append(leaf.init(own_key, leaf.shape))
  return jax.tree.unflatten(tree, arrays)


# --- one block ---


def attend(
  family: Family,
  p: Params,
  x: Float[Array, "B T D"],
  turns: blocks.Turns,
  mix: Callable[[Array, Array, Array], Array],
) -> Float[Array, "B T D"]:
  """Returns the output of the attention half of a block.

  `mix` takes queries [B, T, H, C] and keys and values [B, K, T, C], and returns [B, T, H, C]:
  it is the one step that differs between training and decoding.
  """
  x = gathered(family, family.norm(p["attn_norm"], x).astype(family.stream))
  q = blocks.linear(p["q"], x, family.dtype)
  k = blocks.linear(p["k"], x, family.dtype)
  v = blocks.linear(p["v"], x, family.dtype)
  # Heads are normalised before they are rotated, as in Qwen 3 and Gemma 3.
  if "q_norm" in p:
    q = family.norm(p["q_norm"], q)
    k = family.norm(p["k_norm"], k)
  q = blocks.rotate(q, turns)
  k = blocks.rotate(k, turns)
  # Keys and values have their heads before their positions, as caches do.
  k = jnp.swapaxes(k, 1, 2)
  v = jnp.swapaxes(v, 1, 2)
  mixed = mix(q, k, v).astype(family.stream)
  mixed = checkpoint_name(mixed, attention.ATTENDED)
  y = scattered(family, blocks.linear(p["o"], mixed, family.dtype, contract=2))
  if "attn_post" in p:
    y = family.norm(p["attn_post"], y)
  return y.astype(family.stream)


def transform(
  family: Family,
  p: Params,
  x: Float[Array, "B T D"],
) -> Float[Array, "B T D"]:
  """Returns the output of the MLP half of a block."""
  # A parallel block may have one norm for both halves (Phi).
  norm = p["mlp_norm"] if "mlp_norm" in p else p["attn_norm"]
  normed = family.norm(norm, x).astype(family.stream)
  y = scattered(family, family.mlp(p, gathered(family, normed)))
  if "mlp_post" in p:
    y = family.norm(p["mlp_post"], y)
  return y.astype(family.stream)


def add_halves(
  family: Family,
  p: Params,
  x: Float[Array, "B T D"],
  attended: Float[Array, "B T D"],
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
  """Returns x with both halves of a block added to it.

  Dropout acts at two places: on each half before it is added (Ouyang et al. 2022, App. C.1).
  """
  keys = (None, None) if key is None else jax.random.split(key)
  y = x + blocks.dropout(keys[0], attended, family.dropout)
  mlp_input = x if family.parallel else y
  return y + blocks.dropout(keys[1], transform(family, p, mlp_input), family.dropout)


def block(
  family: Family,
  x: Float[Array, "B T D"],
  layer: Layer,
  turns: Sequence[blocks.Turns],
  mix: Callable,
) -> tuple[Float[Array, "B T D"], None]:
  """Applies one layer to the residual stream, in the form that `jax.lax.scan` asks of its body.

  `turns` has those of each kind of layer.
  """
  p, key, kind = layer
  if kind is None:
    own_turns = turns[0]
    window_index = 0
  else:
    # The number of the kind is traced, so the turns of all kinds are in the program.
    own_turns = jax.tree.map(lambda *of_kinds: jnp.stack(of_kinds)[kind], *turns)
    window_index = kind
  mix = partial(mix, window_index=window_index)
  attended = attend(family, p, x, own_turns, mix)
  return add_halves(family, p, x, attended, key), None


# --- all blocks ---


def run(
  family: Family,
  layers: Params,
  x: Float[Array, "B T D"],
  valid: Valid,
  key: Key[Array, ""] | None = None,
  *,
  branch: Branch | None = None,
  first: int = 0,
) -> Float[Array, "B T D"]:
  """Carries x through stacked layers, the lowest of which is number `first` of the model."""
  rule = attention.Rule(
    scale=family.scale,
    softcap=family.softcap,
    windows=tuple(kind.window for kind in family.kinds),
  )
  mix = partial(
    attention.causal,
    valid=valid,
    dtype=family.dtype,
    kind=family.attention,
    rule=rule,
    branch=branch,
  )
  positions = blocks.positions(valid, branch)
  turns = [blocks.turns(positions, kind.frequency) for kind in family.kinds]
  body = partial(block, family, turns=turns, mix=mix)
  body = recomputed(body, family.remat)

  depth = _depth(layers)
  bits = bits_of(layers)
  keys = None if key is None else jax.random.split(key, depth)
  kinds = None
  if len(family.kinds) > 1:
    own_pattern = family.pattern[first : first + depth]
    kinds = jnp.asarray(own_pattern, jnp.int32)

  def read_and_apply(x, stacked):
    layer, layer_bits, layer_key, layer_kind = stacked
    return body(x, (with_bits(layer, layer_bits), layer_key, layer_kind))

  stack = (layers, bits, keys, kinds)
  unroll = min(family.unroll, depth)
  if not family.sequence:
    x, _ = jax.lax.scan(read_and_apply, x, stack, unroll=unroll)
    return x
  x = along_sequence(x)
  x, _ = jax.lax.scan(read_and_apply, x, stack, unroll=unroll)
  return sharding.reshard(x, "batch", None, None)


def recomputed(body: Callable, remat: str) -> Callable:
  """Returns the body of a scan over blocks, of which the backward pass computes a part again.

  `remat` says what the backward pass keeps of a block beside its input:

      none        all that it needs
      dots        the products with weights, so that only what is cheap is computed again
      attention   what the heads have read; a kernel for TPUs then attends once and not twice
      blocks      nothing
      offload     nothing, and the input waits in the memory of the host
  """
  policies = jax.checkpoint_policies
  match remat:
    case "none":
      return body
    case "dots":
      policy = policies.dots_with_no_batch_dims_saveable
    case "attention":
      policy = policies.save_only_these_names(attention.ATTENDED)
    case "offload":
      body = named_input(body)
      policy = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[STREAM],
        offload_src="device",
        offload_dst="pinned_host",
      )
    case _:
      policy = None
  # A scan already keeps XLA from merging the two forward passes, so `prevent_cse` is not needed.
  return jax.checkpoint(body, prevent_cse=False, policy=policy)


def named_input(body: Callable) -> Callable:
  """Returns a body whose residual stream has the name STREAM, by which it is kept elsewhere."""

  def apply(x: Array, layer: Layer) -> tuple[Array, None]:
    return body(checkpoint_name(x, STREAM), layer)

  return apply


def bits_of(stack: Params) -> PyTree:
  """Returns the bits of stacked bfloat16 matrices as integers on a CPU, and None for other leaves.

  On a CPU XLA cannot slice bfloat16. To take the matrix of one layer it would widen those of all
  layers to float32, in every call. Integers are sliced as they are.
  """

  def bits_of_leaf(w: Array) -> Array | None:
    if w.dtype != jnp.bfloat16 or not sharding.is_on_cpu():
      return None
    return jax.lax.bitcast_convert_type(w, jnp.uint16)

  return jax.tree.map(bits_of_leaf, stack)


def with_bits(layer: Params, bits: PyTree) -> Params:
  """Returns the matrices of one layer, read from their bits where there are any (`bits_of`)."""

  def read(w: Array, own_bits: Array | None) -> Array:
    return w if own_bits is None else _from_bits(own_bits, w)

  return jax.tree.map(read, layer, bits)


@jax.custom_jvp
def _from_bits(bits: Array, w: Array) -> Array:
  """Returns w, computed from its bits alone. A gradient is that of w."""
  return jax.lax.bitcast_convert_type(bits, w.dtype)


@_from_bits.defjvp
def _from_bits_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]):
  """Returns w and the tangent of w: integers have none."""
  _, tangent = tangents
  return _from_bits(*primals), tangent


def _depth(stack: Params) -> int:
  """Returns how many layers are stacked in the blocks of a model."""
  return jax.tree.leaves(stack)[0].shape[0]


def along_sequence(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """Splits x along the sequence too, over the mesh's `model` axis, where that divides it."""
  spec = sharding.fit(x.shape, ("batch", "sequence", None))
  return x if spec is None else jax.sharding.reshard(x, spec)


def gathered(family: Family, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """Returns what a half of a block reads, whole along the sequence."""
  return sharding.reshard(x, "batch", None, None) if family.sequence else x


def scattered(family: Family, y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """Returns what a half of a block adds to the stream, split along the sequence as the stream is.

  Its sum over the devices of `model` is then needed in parts only.
  """
  return along_sequence(y) if family.sequence else y


# --- the functions of the LM ---


def embed_and_carry(
  family: Family,
  params: Params,
  tokens: Int[Array, "B T"],
  valid: Valid,
  branch: Branch | None = None,
) -> Float[Array, "B T D"]:
  """Returns the embeddings, carried through the frozen `lower` blocks where there are any.

  No gradient flows through the lower blocks.

  Raises:
    UserError: for rows longer than the context. Where there are branches, a prompt and one of them
      must fit it, which whoever packs them checks.
  """
  if branch is None and tokens.shape[1] > family.context:
    raise UserError(
      f"rows of {tokens.shape[1]} tokens do not fit the model's context of {family.context}: "
      "shorten the rows"
    )
  x = family.embed(params["embed"], tokens, blocks.positions(valid, branch)).astype(family.stream)
  if "lower" not in params:
    return x
  x = run(family, params["lower"], x, valid, branch=branch)
  return jax.lax.stop_gradient(x)


def hidden(
  family: Family,
  params: Params,
  tokens: Int[Array, "B T"],
  valid: Valid,
  *,
  branch: Branch | None = None,
  stem: Float[Array, "B T D"] | None = None,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
  """Returns the hidden states after the final norm; see `types.LM.hidden` for the arguments."""
  if stem is None:
    x = embed_and_carry(family, params, tokens, valid, branch)
  else:
    x = stem.astype(family.stream)
  # The upper layers of a split model start at this number.
  first = family.depth - _depth(params["blocks"])
  layers = lora.attach(params)
  x = run(family, layers, x, valid, key, branch=branch, first=first)
  return family.norm(params["norm"], x)


def logits(
  family: Family,
  params: Params,
  hidden: Float[Array, "*B D"],
) -> Float[Array, "*B V"]:
  """Returns the logits of hidden states, by `head` where there is one, else by the embedding."""
  if "head" in params:
    scores = blocks.linear(params["head"], hidden, family.dtype)
    return blocks.softcapped(scores, family.logit_softcap)
  # `unstack` leaves a copy of the embedding in the compute dtype, or as integers, under "unembed".
  if "unembed" in params:
    tied = params["unembed"]
  else:
    tied = {"w": params["embed"]["tokens"]}
  scores = blocks.unembed(tied, hidden, family.dtype)
  return blocks.softcapped(scores, family.logit_softcap)


def unstack(
  family: Family,
  params: Params,
  *,
  whole: bool = True,
  int8_weights: bool = False,
) -> Params:
  """Returns parameters for decoding: a dict for each layer, weights cast to the compute dtype.

  `whole` gathers the weights along the mesh's fsdp axis once; otherwise each of them is gathered
  when it is used, in every step. `int8_weights` makes the matrices integers (`models.int8`).

  Three rules meet here. Frozen lower blocks come first, in the order of the model. An adapter is
  added to matrices that are stored in float32. Beside a matrix stored in bfloat16, or for products
  in bfloat16, it stays separate, because rounding would swallow what is small against the matrix.
  Beside integers it stays separate for the same reason.
  """
  stacks = [params["lower"]] if "lower" in params else []
  stacks.append(lora.attach(params))
  layers = []
  for stack in stacks:
    for i in range(_depth(stack)):
      layer = jax.tree.map(lambda w, i=i: w[i], stack)
      layers.append(layer)
  if int8_weights:
    layers = [int8.layer(layer) for layer in layers]
  elif family.dtype == "float32":
    layers = [_fold_float32(layer) for layer in layers]

  unstacked = dict(params)
  for name in ("lower", "blocks", "adapter"):
    unstacked.pop(name, None)
  if int8_weights:
    unstacked |= int8.unembedding(params)
  elif "head" not in params:
    unstacked["unembed"] = {"w": params["embed"]["tokens"]}
  unstacked["layers"] = tuple(layers)
  unstacked = freeze.cast(unstacked, family.dtype)
  return jax.tree.map(sharding.gather, unstacked) if whole else unstacked


def _fold_float32(layer: Params) -> Params:
  """Adds the adapters of one layer to those of its matrices that are stored in float32."""
  folded = {}
  for name, p in layer.items():
    stays_apart = "lora" in p and p["w"].dtype != jnp.float32
    folded[name] = p if stays_apart else lora.fold(p)
  return folded


def init_cache(
  family: Family,
  batch: int,
  length: int,
  block: int | None = None,
  int8_cache: bool = False,
) -> Cache:
  """Returns an empty cache with room for `length` columns, in blocks of `block` columns.

  The cache holds the keys and values of every layer [N, B, K, b, C], what each column holds
  (`position` [N, B, b], see `models.cache`), and the `index` of the column to write next. With
  `int8_cache` keys and values are integers with a scale for each head and column (`cache.Int8`).
  """
  block = block or cache.block_width(length)

  def empty() -> tuple[cache.Keys, ...]:
    empty_layer = partial(
      cache.empty_keys,
      batch,
      length,
      family.kv_heads,
      family.head_width,
      "int8" if int8_cache else cache.dtype_of(family.dtype),
      block,
    )
    return tuple(empty_layer() for _ in range(family.depth))

  return {
    "keys": empty(),
    "values": empty(),
    "position": cache.empty_positions(batch, length, block),
    "index": jnp.int32(0),
  }


def decode(
  family: Family,
  params: Params,
  tokens: Int[Array, "B t"],
  valid: Bool[Array, "B t"],
  cached: Cache,
) -> tuple[Float[Array, "B t D"], Cache]:
  """Appends t positions to the cache and returns their hidden states with the new cache.

  They are written into the columns from `index` on. Every new position attends to the real
  positions of its row up to itself that lie within its window.
  """
  # A few positions at a time are not worth splitting.
  family = family._replace(sequence=False)
  index = cached["index"]
  # The position of a token is the number of real tokens before it in its row.
  earlier = jnp.max(cached["position"], axis=(0, 2)) + 1
  count = earlier[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32)
  query_position = jnp.maximum(count - 1, 0)
  new_position = jnp.where(valid, query_position, cache.EMPTY)
  position = cache.write(cached["position"][..., None], new_position[..., None], index)[..., 0]
  used = cache.in_use(position)
  x = family.embed(params["embed"], tokens, query_position).astype(family.stream)
  turns = [blocks.turns(query_position, kind.frequency) for kind in family.kinds]

  keys = list(cached["keys"])
  values = list(cached["values"])
  for i, p in enumerate(params["layers"]):
    number = family.pattern[i] if family.pattern else 0
    window = family.kinds[number].window

    def mix(q, k, v, i=i, window=window):
      keys[i] = cache.write_keys(keys[i], k, index, family.dtype)
      values[i] = cache.write_keys(values[i], v, index, family.dtype)
      return cache.attend(
        q,
        keys[i],
        values[i],
        position,
        query_position,
        used,
        family.dtype,
        window=window,
        scale=family.scale,
        softcap=family.softcap,
      )

    attended = attend(family, p, x, turns[number], mix)
    x = add_halves(family, p, x, attended)
  new_cache = {
    "keys": tuple(keys),
    "values": tuple(values),
    "position": position,
    "index": index + tokens.shape[1],
  }
  return family.norm(params["norm"], x), new_cache
