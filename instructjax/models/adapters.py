"""A Flax model of your own as an `LM`: `from_nnx` and `from_linen`.

You name four things of your module: how tokens become hidden states, how hidden states become
logits and, if it has a cache, how an empty one is made and how it is read.  Each is the name of
a method, or a function whose first argument is the module:

  hidden(tokens, positions, mask)                  [B, T, D] after the final norm
  logits(hidden)                                   [..., V] from [..., D]
  decode(tokens, positions, mask, cache, index)    ([B, t, D], cache): t new positions, stored from `index` on
  init_cache(batch, length)                        an empty cache of `length` positions: a function, no method

`positions` [B, T] count the real tokens of a row from 0, wherever the padding is.  `mask` [B, T,
S] is True where a query may see a key: it holds causality, padding and packed segments, so the
module need know of none.  Every query sees itself.

On a mesh the module runs with automatic sharding (`jax.sharding.auto_axes`): its own code needs
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
from instructjax.types import LM, Array, Bool, Cache, Float, Int, Key, Leaf, Params, PyTree, Valid

Method = str | Callable[..., Any]


class FullForwards(UserWarning):
  """A model without a cache samples by a forward pass over the whole row for every token."""


class Module(NamedTuple):
  """A Flax module as functions of its weights.

  `call(params, method, *args, key=None)` runs a method; a key switches the module's own dropout on.
  """

  name: str
  call: Callable[..., Any]
  hidden: Method
  logits: Method
  decode: Method | None
  init_cache: Callable[[int, int], Cache] | None
  vocab_size: int
  context: int
  width: int


def from_nnx(
  model: Any,
  *,
  hidden: Method,
  logits: Method,
  vocab_size: int,
  context: int,
  width: int,
  depth: int = 1,
  axes: Mapping[str, str | None] | None = None,
  decode: Method | None = None,
  init_cache: Callable[[int, int], Cache] | None = None,
) -> tuple[LM, Params]:
  """(LM, a float32 copy of the weights) of a `flax.nnx` module; the module itself is left as it is.

  `axes` maps the axis names of the module's own sharding metadata to those of `sharding.RULES`
  (None: whole on every device); without it every weight is whole on every device.  Variables
  other than `nnx.Param` and random streams are constants.

  Raises UserError for batch statistics, weights that are no floats, and an axis name that `axes`
  lacks.
  """
  from flax import nnx

  if jax.tree.leaves(nnx.state(model, nnx.BatchStat)):
    raise _statistics(type(model).__name__)
  graph, weights, streams, rest = nnx.split(model, nnx.Param, nnx.RngState, ...)
  rest = jax.tree.map(np.asarray, rest)
  specs = jax.tree.leaves(nnx.get_partition_spec(weights), is_leaf=lambda x: isinstance(x, jax.P))
  tree, paths = (
    jax.tree.structure(weights),
    [path for path, _ in jax.tree_util.tree_leaves_with_path(weights)],
  )
  names = [
    tuple(jax.tree_util.keystr(path, simple=True, separator="/").split("/")) for path in paths
  ]
  names = [name[:-1] if name[-1] == "value" else name for name in names]
  has_streams = bool(jax.tree.leaves(streams))

  def call(params: Params, method: Method, *args: Any, key: Key[Array, ""] | None = None) -> Any:
    found = jax.tree.unflatten(tree, [_at(params["model"], name) for name in names])
    module = nnx.merge(graph, found, _reseed(streams, key), jax.tree.map(jnp.asarray, rest))
    if key is None or not has_streams:
      module.eval()
    else:
      module.train()
    return getattr(module, method)(*args) if isinstance(method, str) else method(module, *args)

  named = list(zip(names, jax.tree.leaves(weights), specs, strict=True))
  kind = Module(
    type(model).__name__, call, hidden, logits, decode, init_cache, vocab_size, context, width
  )
  return _finish(kind, named, axes, depth)


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
  axes: Mapping[str, str | None] | None = None,
  decode: Method | None = None,
  init_cache: Callable[[int, int], Cache] | None = None,
) -> tuple[LM, Params]:
  """(LM, a float32 copy of the weights) of a `flax.linen` module and what its `init` returned.

  Dropout is on where `module.has_rng("dropout")`.  Collections other than `params` are
  constants; `cache` is dropped.  `axes` and errors are those of `from_nnx`.
  """
  from flax import linen

  variables, name = flax.core.unfreeze(dict(variables)), type(module).__name__
  if jax.tree.leaves(variables.get("batch_stats")):
    raise _statistics(name)
  if "params" not in variables:
    raise UserError(
      f"{name}: its variables hold no 'params' but {list(variables)}: pass what module.init "
      "returned"
    )
  rest = {
    kind: part
    for kind, part in variables.items()
    if kind not in ("params", "cache", "intermediates")
  }
  rest = jax.tree.map(np.asarray, linen.meta.unbox(rest))
  specs = jax.tree.leaves(
    linen.get_partition_spec(variables["params"]), is_leaf=lambda x: isinstance(x, jax.P)
  )
  leaves = jax.tree_util.tree_leaves_with_path(linen.meta.unbox(variables["params"]))

  def call(params: Params, method: Method, *args: Any, key: Key[Array, ""] | None = None) -> Any:
    found = {"params": params["model"]} | jax.tree.map(jnp.asarray, rest)
    return module.apply(found, *args, method=method, rngs=None if key is None else {"dropout": key})

  named = [
    (tuple(part.key for part in path), w, spec)
    for (path, w), spec in zip(leaves, specs, strict=True)
  ]
  kind = Module(name, call, hidden, logits, decode, init_cache, vocab_size, context, width)
  return _finish(kind, named, axes, depth)


# --- parameters ---


def _finish(
  m: Module,
  named: list[tuple[tuple[str, ...], Array, jax.P]],
  axes: Mapping[str, str | None] | None,
  depth: int,
) -> tuple[LM, Params]:
  """The LM and its parameters, {"model": the module's own tree}."""
  if (m.decode is None) != (m.init_cache is None):
    raise UserError(
      f"{m.name}: decode and init_cache belong together: give both, or neither to sample without a "
      "cache"
    )
  table: dict[str, Any] = {}
  params: dict[str, Any] = {}
  for name, weight, spec in named:
    where = "/".join(name)
    if not jnp.issubdtype(weight.dtype, jnp.floating):
      raise UserError(
        f"{m.name}: the parameter {where} is {weight.dtype}: only floating-point parameters are "
        "trained"
      )
    _put(table, name, Leaf(weight.shape, _axes(m.name, where, weight.ndim, spec, axes), _no_init))
    _put(params, name, jnp.array(weight, jnp.float32))
  lm = LM(
    m.vocab_size,
    m.context,
    m.width,
    depth,
    {"model": table},
    _no_init,
    _no_stem,
    partial(_hidden, m),
    partial(_logits, m),
    _unstack,
    partial(_init_cache, m),
    partial(_decode_whole if m.decode is None else _decode, m),
  )
  return lm, {"model": params}


def _axes(
  model: str, where: str, ndim: int, spec: jax.P | None, axes: Mapping[str, str | None] | None
) -> tuple[str | None, ...]:
  """The logical axes of a weight from the module's metadata.  Raises UserError for a name that
  `axes` or RULES lack.
  """
  own = tuple(spec or ())
  if axes is None or not own:
    return (None,) * ndim
  for name in own:
    if name is not None and name not in axes:
      raise UserError(
        f"{model}: {where} has an axis named {name!r}, `axes` names {', '.join(axes)}: add it (or "
        "None)"
      )
    if name is not None and axes[name] is not None and axes[name] not in sharding.RULES:
      raise UserError(
        f"{model}: axes[{name!r}] is {axes[name]!r}: known are {', '.join(sharding.RULES)} and None"
      )
  return tuple(None if name is None else axes[name] for name in own) + (None,) * (ndim - len(own))


def _put(tree: dict[str, Any], name: tuple[str, ...], leaf: Any) -> None:
  for part in name[:-1]:
    tree = tree.setdefault(part, {})
  tree[name[-1]] = leaf


def _at(tree: Any, name: tuple[str, ...]) -> Any:
  return functools.reduce(lambda part, key: part[key], name, tree)


def _reseed(streams: PyTree, key: Key[Array, ""] | None) -> PyTree:
  """Random streams at count 0 whose keys all derive from `key`."""
  leaves, tree = jax.tree.flatten(streams)
  key = jax.random.key(0) if key is None else key
  is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  new = [
    jax.random.fold_in(key, i) if is_key(x) else jnp.zeros(x.shape, x.dtype)
    for i, x in enumerate(leaves)
  ]
  return jax.tree.unflatten(tree, new)


def _statistics(name: str) -> UserError:
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


def _auto(f: Callable, out: PyTree, *args: Any) -> Any:
  """f with automatic sharding inside and its results partitioned as `out`; just f without a mesh."""
  return jax.sharding.auto_axes(f, out_sharding=out)(*args) if sharding.is_sharded() else f(*args)


def _expect(m: Module, what: Method, found: Any, shape: tuple[int, ...]) -> Array:
  """The array in float32.  Raises UserError where it has another shape."""
  if jnp.shape(found) != shape:
    name = what if isinstance(what, str) else getattr(what, "__name__", "a function")
    raise UserError(
      f"{m.name}: {name} returned shape {jnp.shape(found)}, {shape} is needed: see vocab_size and "
      "width"
    )
  return found.astype(jnp.float32)


def _visible(valid: Valid) -> Bool[Array, "B T T"]:
  """The causal mask; a padded query sees itself, so that no softmax is over nothing."""
  at = jnp.arange(valid.shape[1])
  return blocks.causal_mask(valid) | (at[None, :] == at[:, None])


def _hidden(
  m: Module,
  params: Params,
  tokens: Int[Array, "B T"],
  valid: Valid,
  *,
  stem: Array | None = None,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
  """Hidden states of whole rows.  Raises UserError for rows longer than the context."""
  if stem is not None:
    _no_stem()
  if tokens.shape[1] > m.context:
    raise UserError(
      f"rows of {tokens.shape[1]} tokens do not fit the model's context of {m.context}: shorten "
      "the rows"
    )

  def run(params, tokens, positions, mask, key):
    return _expect(
      m,
      m.hidden,
      m.call(params, m.hidden, tokens, positions, mask, key=key),
      (*tokens.shape, m.width),
    )

  args = params, tokens, blocks.positions(valid), _visible(valid), key
  return _auto(run, sharding.spec("batch", None, None), *args)


def _logits(m: Module, params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
  run = lambda params, x: _expect(
    m, m.logits, m.call(params, m.logits, x), (*x.shape[:-1], m.vocab_size)
  )
  out = sharding.fit((m.vocab_size,), ("vocab",))
  return _auto(run, out and jax.P(*jax.typeof(hidden).sharding.spec[:-1], *out), params, hidden)


def _unstack(params: Params, *, whole: bool = True) -> Params:
  """The same parameters; `whole` gathers them along fsdp once."""
  return jax.tree.map(sharding.gather, params) if whole else params


def _rows(x: Array, batch: int) -> tuple[str | None, ...]:
  """The logical axes of a part of a cache: its rows first, or no rows at all."""
  return ("batch" if x.ndim and x.shape[0] == batch else None, *[None] * (x.ndim - 1))[: x.ndim]


def _init_cache(m: Module, batch: int, length: int) -> Cache:
  """Which positions are real, the next index, and the model's own cache (or all tokens, where it
  has none).
  """
  if length > m.context:
    raise UserError(
      f"{length} positions do not fit the model's context of {m.context}: shorten the prompts or "
      "the responses"
    )
  if m.init_cache is None:
    _say_once(m.name)
  own = (
    jnp.zeros((batch, length), jnp.int32) if m.init_cache is None else m.init_cache(batch, length)
  )
  tree = {"own": own, "valid": jnp.zeros((batch, length), bool), "index": jnp.int32(0)}
  return jax.tree.map(lambda x: sharding.reshard(x, *_rows(x, batch)), tree)


@functools.cache
def _say_once(name: str) -> None:
  text = f"{name} has no cache: every sampled token costs a forward pass over its whole row; give decode and init_cache"
  warnings.warn(text, FullForwards, stacklevel=2)


def _decode_whole(
  m: Module, params: Params, tokens: Int[Array, "B t"], valid: Bool[Array, "B t"], cache: Cache
) -> tuple[Float[Array, "B t D"], Cache]:
  """Appends t positions and computes all of them again."""
  index, place = (
    cache["index"],
    partial(jax.lax.dynamic_update_slice, start_indices=(0, cache["index"])),
  )
  rows, seen = place(cache["own"], tokens.astype(jnp.int32)), place(cache["valid"], valid)
  here = jax.lax.dynamic_slice_in_dim(
    _hidden(m, params, rows, seen), index, tokens.shape[1], axis=1
  )
  return here, {"own": rows, "valid": seen, "index": index + tokens.shape[1]}


def _decode(
  m: Module, params: Params, tokens: Int[Array, "B t"], valid: Bool[Array, "B t"], cache: Cache
) -> tuple[Float[Array, "B t D"], Cache]:
  """Appends t positions to the model's own cache."""
  t, index, method = tokens.shape[1], cache["index"], m.decode or ""
  seen = jax.lax.dynamic_update_slice(cache["valid"], valid, (0, index))
  before = jnp.sum(cache["valid"], axis=1, keepdims=True, dtype=jnp.int32)
  positions = jnp.maximum(before + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)
  at, query = jnp.arange(seen.shape[1]), index + jnp.arange(t)[:, None]
  mask = (seen[:, None, :] & (at <= query)) | (at == query)
  kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)

  def run(params, tokens, positions, mask, own, index):
    found, new = m.call(params, method, tokens, positions, mask, own, index)
    if kinds(new) != kinds(own):
      raise UserError(
        f"{m.name}: decode returned the cache {kinds(new)}, it was given {kinds(own)}: keep its "
        "shapes"
      )
    return _expect(m, method, found, (*tokens.shape, m.width)), new

  own = (
    jax.tree.map(lambda x: jax.typeof(x).sharding.spec, cache["own"])
    if sharding.is_sharded()
    else None
  )
  out = sharding.spec("batch", None, None), own
  hidden, new = _auto(run, out, params, tokens, positions, mask, cache["own"], index)
  return hidden, {"own": new, "valid": seen, "index": index + t}
