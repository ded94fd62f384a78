"""Makes an `LM` of your own Flax model: `from_nnx` and `from_linen`.

You name four things of your module: how tokens become hidden states, how hidden states become
logits and, if it has a cache, how an empty one is made and how it is read. Each is the name of a
method, or a function whose first argument is the module:

  hidden(tokens, positions, mask)                  [B, T, D] after the final norm
  logits(hidden)                                   [..., V] from [..., D]
  decode(tokens, positions, mask, cache, index)    ([B, t, D], cache): t new positions, which are
                                                   stored from `index` on
  init_cache(batch, length)                        an empty cache of `length` positions; this is
                                                   always a function without the module

`positions` [B, T] count the real tokens of a row from 0, wherever the padding is. `mask` [B, T, S]
is True where a query may see a key. It holds causality, padding, packed segments and their branches
(where `positions` go on from the prompt of a branch), so the module need not know of any of them.
Every query sees itself.

On a mesh the module runs with automatic sharding (`jax.sharding.auto_axes`), so its own code needs
no change.

Dimensions: B rows, T tokens, S keys, t new positions, D width, V vocabulary.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.core
import jax
import jax.numpy as jnp
import numpy as np

from instructjax import sharding
from instructjax.errors import UserError
from instructjax.models import blocks
from instructjax.models.cache import EMPTY
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

Method = str | Callable[..., Any]
Path = tuple[str, ...]  # the keys that lead to a parameter
AxisNames = Mapping[str, str | None]  # from the module's names of axes to those of sharding.RULES


class FullForwards(UserWarning):
  """A model without a cache samples by a forward pass over the whole row for every token."""


class Module(NamedTuple):
  """A Flax module as functions of its weights.

  `call(params, method, *args, key=None)` runs a method; a key switches the module's own dropout on.
  """

  name: str  # of the module's class, for errors
  call: Callable[..., Any]
  hidden: Method
  logits: Method
  decode: Method | None  # None where the module has no cache
  init_cache: Callable[[int, int], Cache] | None  # likewise
  vocab_size: int
  context: int
  width: int


class Weight(NamedTuple):
  """A parameter of a Flax module, with the partition in its own metadata."""

  path: Path
  array: Array
  partition: jax.P | None


# --- the two entrances ---


def from_nnx(
  model: Any,
  *,
  hidden: Method,
  logits: Method,
  vocab_size: int,
  context: int,
  width: int,
  depth: int = 1,
  axes: AxisNames | None = None,
  decode: Method | None = None,
  init_cache: Callable[[int, int], Cache] | None = None,
) -> tuple[LM, Params]:
  """Returns (LM, a float32 copy of the weights) of a `flax.nnx` module, which is left as it is.

  `axes` maps the axis names of the module's own sharding metadata to those of `sharding.RULES`
  (None: whole on every device); without it every weight is whole on every device. Variables other
  than `nnx.Param` and random streams are constants.

  Raises:
    UserError: for batch statistics, weights that are no floats, and an axis name that `axes` lacks.
  """
  from flax import nnx

  if jax.tree.leaves(nnx.state(model, nnx.BatchStat)):
    raise _batch_statistics_error(type(model).__name__)
  # `...` takes all variables that are neither parameters nor random streams.
  graph, weights, streams, constants = nnx.split(model, nnx.Param, nnx.RngState, ...)
  # On the host, so that they belong to no device and to no mesh.
  constants = jax.tree.map(np.asarray, constants)
  has_streams = bool(jax.tree.leaves(streams))
  tree = jax.tree.structure(weights)
  partitions = jax.tree.leaves(nnx.get_partition_spec(weights), is_leaf=_is_partition)
  named_weights = []
  leaves = jax.tree_util.tree_leaves_with_path(weights)
  for (path, array), partition in zip(leaves, partitions, strict=True):
    named_weights.append(Weight(_nnx_path(path), array, partition))

  def call(
    params: Params,
    method: Method,
    *args: Any,
    key: Key[Array, ""] | None = None,
  ) -> Any:
    arrays = [_at(params["model"], weight.path) for weight in named_weights]
    # A new module for each call: the streams and the mode of the user's own stay as they are.
    module = nnx.merge(
      graph,
      jax.tree.unflatten(tree, arrays),
      _reseed(streams, key),
      jax.tree.map(jnp.asarray, constants),
    )
    # Dropout in training mode needs a random stream.
    if key is None or not has_streams:
      module.eval()
    else:
      module.train()
    if isinstance(method, str):
      return getattr(module, method)(*args)
    return method(module, *args)

  module = Module(
    name=type(model).__name__,
    call=call,
    hidden=hidden,
    logits=logits,
    decode=decode,
    init_cache=init_cache,
    vocab_size=vocab_size,
    context=context,
    width=width,
  )
  return _finish(module, named_weights, axes, depth)


def from_linen(
  module: Any,
  variables: Mapping[str, Any],
  *,
  hidden: Method,
  logits: Method,
  vocab_size: int,
  context: int,
  width: int,
  depth: int = 1,
  axes: AxisNames | None = None,
  decode: Method | None = None,
  init_cache: Callable[[int, int], Cache] | None = None,
) -> tuple[LM, Params]:
  """Returns (LM, a float32 copy of the weights) of a `flax.linen` module and its `variables`.

  `variables` are what the module's `init` returned. Dropout is on where
  `module.has_rng("dropout")`. Collections other than `params` are constants; `cache` and
  `intermediates` are dropped. `axes` and the errors are those of `from_nnx`.
  """
  from flax import linen

  name = type(module).__name__
  variables = flax.core.unfreeze(dict(variables))
  if jax.tree.leaves(variables.get("batch_stats")):
    raise _batch_statistics_error(name)
  if "params" not in variables:
    raise UserError(
      f"{name}: its variables hold no 'params' but {list(variables)}: pass what module.init "
      "returned"
    )
  constants = dict(variables)
  # What a call leaves behind is no constant.
  for collection in ("params", "cache", "intermediates"):
    constants.pop(collection, None)
  constants = linen.meta.unbox(constants)
  constants = jax.tree.map(np.asarray, constants)
  partition_tree = linen.get_partition_spec(variables["params"])
  partitions = jax.tree.leaves(partition_tree, is_leaf=_is_partition)
  leaves = jax.tree_util.tree_leaves_with_path(linen.meta.unbox(variables["params"]))
  named_weights = []
  for (path, array), partition in zip(leaves, partitions, strict=True):
    keys = tuple(part.key for part in path)
    named_weights.append(Weight(keys, array, partition))

  def call(
    params: Params,
    method: Method,
    *args: Any,
    key: Key[Array, ""] | None = None,
  ) -> Any:
    collections = {"params": params["model"]}
    collections |= jax.tree.map(jnp.asarray, constants)
    rngs = None if key is None else {"dropout": key}
    return module.apply(collections, *args, method=method, rngs=rngs)

  functions = Module(
    name=name,
    call=call,
    hidden=hidden,
    logits=logits,
    decode=decode,
    init_cache=init_cache,
    vocab_size=vocab_size,
    context=context,
    width=width,
  )
  return _finish(functions, named_weights, axes, depth)


# --- parameters ---


def _is_partition(x: Any) -> bool:
  return isinstance(x, jax.P)


def _nnx_path(path: tuple[Any, ...]) -> Path:
  """Returns the keys of a parameter in an NNX state, without the last one of a boxed variable."""
  # The entries of a path are of several classes; as text all look alike.
  text = jax.tree_util.keystr(path, simple=True, separator="/")
  keys = tuple(text.split("/"))
  return keys[:-1] if keys[-1] == "value" else keys


def _finish(
  m: Module,
  weights: list[Weight],
  axes: AxisNames | None,
  depth: int,
) -> tuple[LM, Params]:
  """Returns the LM and its parameters, {"model": the module's own tree}."""
  if (m.decode is None) != (m.init_cache is None):
    raise UserError(
      f"{m.name}: decode and init_cache belong together: give both, or neither to sample without a "
      "cache"
    )
  table: dict[str, Any] = {}
  params: dict[str, Any] = {}
  for weight in weights:
    if not jnp.issubdtype(weight.array.dtype, jnp.floating):
      raise UserError(
        f"{m.name}: the parameter {'/'.join(weight.path)} is {weight.array.dtype}: only "
        "floating-point parameters are trained"
      )
    logical_axes = _logical_axes(m.name, weight, axes)
    # Flax names its norms and biases so, and stacks them where the module scans its layers.
    is_vector = weight.path[-1] in ("bias", "scale") or weight.array.ndim < 2
    leaf = Leaf(weight.array.shape, logical_axes, _no_init, decays=not is_vector)
    _put(table, weight.path, leaf)
    # A copy: training donates its parameters, and the module must keep its own.
    array = jnp.array(weight.array, jnp.float32)
    _put(params, weight.path, array)
  decode = _decode_whole if m.decode is None else _decode
  lm = LM(
    vocab_size=m.vocab_size,
    context=m.context,
    width=m.width,
    depth=depth,
    table={"model": table},
    init=_no_init,
    stem=_no_stem,
    hidden=partial(_hidden, m),
    logits=partial(_logits, m),
    unstack=_unstack,
    init_cache=partial(_init_cache, m),
    decode=partial(decode, m),
  )
  return lm, {"model": params}


def _logical_axes(model: str, weight: Weight, axes: AxisNames | None) -> tuple[str | None, ...]:
  """Returns the logical axes of a weight, from the module's metadata.

  Raises:
    UserError: for a name that `axes` or `sharding.RULES` lack.
  """
  names = tuple(weight.partition or ())
  ndim = weight.array.ndim
  if axes is None or not names:
    return (None,) * ndim
  logical: list[str | None] = []
  for name in names:
    if name is None:
      logical.append(None)
      continue
    if name not in axes:
      raise UserError(
        f"{model}: {'/'.join(weight.path)} has an axis named {name!r}, `axes` names "
        f"{', '.join(axes)}: add it (or None)"
      )
    axis = axes[name]
    if axis is not None and axis not in sharding.RULES:
      raise UserError(
        f"{model}: axes[{name!r}] is {axis!r}: known are {', '.join(sharding.RULES)} and None"
      )
    logical.append(axis)
  # A partition may name fewer axes than the weight has; the last ones are then whole.
  unnamed = (None,) * (ndim - len(names))
  return (*logical, *unnamed)


def _put(tree: dict[str, Any], path: Path, leaf: Any) -> None:
  """Sets a leaf in a tree of dicts, and makes the dicts on the way to it."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = leaf


def _at(tree: Any, path: Path) -> Any:
  """Returns the leaf of a tree of dicts at a path."""
  for key in path:
    tree = tree[key]
  return tree


def _reseed(streams: PyTree, key: Key[Array, ""] | None) -> PyTree:
  """Returns random streams at count 0 whose keys all derive from `key`."""
  leaves, tree = jax.tree.flatten(streams)
  key = jax.random.key(0) if key is None else key
  fresh = []
  for i, leaf in enumerate(leaves):
    # A stream holds a key and a count of the numbers drawn from it.
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      fresh.append(jax.random.fold_in(key, i))
    else:
      fresh.append(jnp.zeros(leaf.shape, leaf.dtype))
  return jax.tree.unflatten(tree, fresh)


def _batch_statistics_error(name: str) -> UserError:
  return UserError(
    f"{name}: holds batch statistics, which mix the rows of a batch and are no parameters: use "
    "LayerNorm or RMSNorm"
  )


def _no_init(*_: Any) -> Any:
  raise UserError(
    "the weights of a Flax model are those of its module: use the parameters that the adapter "
    "returned"
  )


def _no_stem(*_: Any) -> Array:
  raise UserError(
    "a Flax model has no frozen lower blocks: put jax.lax.stop_gradient into your module to freeze "
    "a part"
  )


# --- the functions of the LM ---


def _run_auto(f: Callable, out: PyTree, *args: Any) -> Any:
  """Runs f with automatic sharding inside it, and partitions its results as `out`.

  Without a mesh it just runs f.
  """
  if not sharding.is_sharded():
    return f(*args)
  return jax.sharding.auto_axes(f, out_sharding=out)(*args)


def _expect_shape(
  m: Module,
  method: Method,
  array: Any,
  shape: tuple[int, ...],
) -> Array:
  """Returns what a method of the module returned, in float32.

  Raises:
    UserError: where it has another shape.
  """
  if jnp.shape(array) != shape:
    name = method if isinstance(method, str) else getattr(method, "__name__", "a function")
    raise UserError(
      f"{m.name}: {name} returned shape {jnp.shape(array)}, {shape} is needed: see vocab_size and "
      "width"
    )
  return array.astype(jnp.float32)


def _visible(valid: Valid, branch: Branch | None = None) -> Bool[Array, "B T T"]:
  """Returns the causal mask, in which a padded query sees itself.

  Without that a softmax over no keys would give NaN.
  """
  column = jnp.arange(valid.shape[1])
  return blocks.causal_mask(valid, branch=branch) | (column[None, :] == column[:, None])


def _hidden(
  m: Module,
  params: Params,
  tokens: Int[Array, "B T"],
  valid: Valid,
  *,
  branch: Branch | None = None,
  stem: Array | None = None,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
  """Returns the hidden states of whole rows.

  Raises:
    UserError: for rows longer than the context, which rows with branches may be.
  """
  if stem is not None:
    _no_stem()
  if branch is None and tokens.shape[1] > m.context:
    raise UserError(
      f"rows of {tokens.shape[1]} tokens do not fit the model's context of {m.context}: shorten "
      "the rows"
    )
  return _call_hidden(
    m, params, tokens, blocks.positions(valid, branch), _visible(valid, branch), key
  )


def _call_hidden(
  m: Module,
  params: Params,
  tokens: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  mask: Bool[Array, "B T T"],
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
  """Returns the hidden states of whole rows, of which `mask` says what each position sees."""

  def run(
    params: Params,
    tokens: Array,
    positions: Array,
    mask: Array,
    key: Key[Array, ""] | None,
  ) -> Array:
    hidden = m.call(params, m.hidden, tokens, positions, mask, key=key)
    shape = (*tokens.shape, m.width)
    return _expect_shape(m, m.hidden, hidden, shape)

  partition = sharding.spec("batch", None, None)
  return _run_auto(run, partition, params, tokens, positions, mask, key)


def _logits(
  m: Module,
  params: Params,
  hidden: Float[Array, "*B D"],
) -> Float[Array, "*B V"]:
  """Returns the logits of hidden states."""

  def run(params: Params, hidden: Array) -> Array:
    logits = m.call(params, m.logits, hidden)
    shape = (*hidden.shape[:-1], m.vocab_size)
    return _expect_shape(m, m.logits, logits, shape)

  # Logits lie along the mesh as the hidden states do, and are split over the vocabulary.
  along_vocab = sharding.fit((m.vocab_size,), ("vocab",))
  partition = None
  if along_vocab is not None:
    along_rows = jax.typeof(hidden).sharding.spec[:-1]
    partition = jax.P(*along_rows, *along_vocab)
  return _run_auto(run, partition, params, hidden)


def _unstack(params: Params, *, whole: bool = True, int8_weights: bool = False) -> Params:
  """Returns the same parameters; `whole` gathers them along the mesh's fsdp axis once.

  Raises:
    UserError: for `int8_weights`. The products of the module are its own.
  """
  if int8_weights:
    raise UserError(
      "sampling.weights=int8 is for the gpt and llama families; a model of your own multiplies its "
      "weights itself: leave it at float"
    )
  return jax.tree.map(sharding.gather, params) if whole else params


# --- decoding ---


def _row_axes(x: Array, batch: int) -> tuple[str | None, ...]:
  """Returns the logical axes of a part of a cache: its rows first, or no rows at all."""
  if not x.ndim:
    return ()
  first = "batch" if x.shape[0] == batch else None
  return (first, *[None] * (x.ndim - 1))


def _init_cache(
  m: Module,
  batch: int,
  length: int,
  block: int | None = None,
  int8_cache: bool = False,
) -> Cache:
  """Returns an empty cache of `length` columns; the model's own cache is in one block.

  It holds what each column holds, the index of the next column, and the model's own cache. A model
  that has none keeps all tokens instead.

  Raises:
    UserError: for `int8_cache`. The cache of the module is its own.
  """
  del block
  if int8_cache:
    raise UserError(
      f"sampling.cache=int8 is for the gpt and llama families; {m.name} keeps a cache of its own: "
      "leave it at float"
    )
  if m.init_cache is None:
    _warn_once(m.name)
    own_cache = jnp.zeros((batch, length), jnp.int32)
  else:
    own_cache = m.init_cache(batch, length)
  cache = {
    "own": own_cache,
    "position": jnp.full((batch, length), EMPTY, jnp.int32),
    "index": jnp.int32(0),
  }

  def split_rows(x: Array) -> Array:
    return sharding.reshard(x, *_row_axes(x, batch))

  return jax.tree.map(split_rows, cache)


@functools.cache
def _warn_once(name: str) -> None:
  """Warns that sampling will be slow, once for each class of models."""
  text = (
    f"{name} has no cache: every sampled token costs a forward pass over its whole row; give "
    "decode and init_cache"
  )
  warnings.warn(text, FullForwards, stacklevel=2)


def _decode_whole(
  m: Module,
  params: Params,
  tokens: Int[Array, "B t"],
  valid: Bool[Array, "B t"],
  cache: Cache,
) -> tuple[Float[Array, "B t D"], Cache]:
  """Appends t positions and computes all of them again, for a model without a cache."""
  index = cache["index"]
  t = tokens.shape[1]
  place = partial(jax.lax.dynamic_update_slice_in_dim, start_index=index, axis=1)
  rows = place(cache["own"], tokens.astype(jnp.int32))
  _, position = _append(valid, cache)
  # Columns that hold nothing yet are at position 0, and nothing sees them.
  mask = _seen(position, position) | jnp.eye(position.shape[1], dtype=bool)
  hidden = _call_hidden(m, params, rows, jnp.maximum(position, 0), mask)
  hidden = jax.lax.dynamic_slice_in_dim(hidden, index, t, axis=1)
  return hidden, {"own": rows, "position": position, "index": index + t}


def _append(
  valid: Bool[Array, "B t"],
  cache: Cache,
) -> tuple[Int[Array, "B t"], Int[Array, "B S"]]:
  """Returns the positions of t new tokens, and what all columns hold with them."""
  # The position of a token is the number of real tokens before it in its row.
  earlier = jnp.max(cache["position"], axis=1, keepdims=True) + 1
  count = earlier + jnp.cumsum(valid, axis=1, dtype=jnp.int32)
  query_position = jnp.maximum(count - 1, 0)
  new = jnp.where(valid, query_position, EMPTY)
  position = jax.lax.dynamic_update_slice_in_dim(cache["position"], new, cache["index"], axis=1)
  return query_position, position


def _seen(
  query_position: Int[Array, "B t"],
  position: Int[Array, "B S"],
) -> Bool[Array, "B t S"]:
  """Returns where a query may see a column: it holds a position up to the query's."""
  earlier = position[:, None, :] <= query_position[:, :, None]
  return earlier & (position != EMPTY)[:, None, :]


def _decode(
  m: Module,
  params: Params,
  tokens: Int[Array, "B t"],
  valid: Bool[Array, "B t"],
  cache: Cache,
) -> tuple[Float[Array, "B t D"], Cache]:
  """Appends t positions to the model's own cache.

  Raises:
    UserError: where the model returns a cache of other shapes, which a loop could not carry.
  """
  t = tokens.shape[1]
  index = cache["index"]
  method = m.decode or ""
  positions, position = _append(valid, cache)
  # As in `_visible`, every query sees itself.
  query_column = index + jnp.arange(t)[:, None]
  mask = _seen(positions, position) | (jnp.arange(position.shape[1]) == query_column)

  def run(
    params: Params,
    tokens: Array,
    positions: Array,
    mask: Array,
    own_cache: Cache,
    index: Array,
  ) -> tuple[Array, Cache]:
    hidden, new_cache = m.call(params, method, tokens, positions, mask, own_cache, index)
    if _shapes_and_dtypes(new_cache) != _shapes_and_dtypes(own_cache):
      raise UserError(
        f"{m.name}: decode returned the cache {_shapes_and_dtypes(new_cache)}, it was given "
        f"{_shapes_and_dtypes(own_cache)}: keep its shapes"
      )
    shape = (*tokens.shape, m.width)
    return _expect_shape(m, method, hidden, shape), new_cache

  cache_partition = None
  if sharding.is_sharded():
    cache_partition = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, cache["own"])
  out = sharding.spec("batch", None, None), cache_partition
  arguments = params, tokens, positions, mask, cache["own"], index
  hidden, own_cache = _run_auto(run, out, *arguments)
  return hidden, {"own": own_cache, "position": position, "index": index + t}


def _shapes_and_dtypes(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)
