"""Small models and batches that the tests share."""

import contextlib
import inspect
import logging
from functools import cache, partial, wraps
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from instructjax import reward, sharding
from instructjax.data.batches import branches, pipeline
from instructjax.models import gpt, llama
from instructjax.types import LM, Comparisons, Demonstrations, Frozen, Prompts

VOCAB = 48


@cache
def lm(
  family: str = "gpt",
  *,
  vocab_size=VOCAB,
  width=32,
  depth=2,
  dropout=0.0,
  tied=True,
  dtype="float32",
) -> LM:
  if family == "gpt":
    config = gpt.GPTConfig(
      vocab_size, context=64, width=width, depth=depth, heads=4, dropout=dropout, dtype=dtype
    )
    return _quick(gpt.gpt(config))
  config = llama.LlamaConfig(
    vocab_size=vocab_size,
    context=64,
    width=width,
    depth=depth,
    heads=4,
    kv_heads=2,
    mlp=64,
    tied=tied,
    dropout=dropout,
    dtype=dtype,
  )
  return _quick(llama.llama(config))


def _quick(lm: LM) -> LM:
  """The same model; its pieces are compiled, not run operation by operation, where a test calls
  them directly.
  """
  static = {"init_cache": (0, 1, 2, 3)}
  pieces = ("init", "hidden", "logits", "decode", "init_cache", "stem")
  return lm._replace(
    **{name: jax.jit(getattr(lm, name), static_argnums=static.get(name)) for name in pieces}
  )


_JITTED = {}


def jitted(function, **settings):
  """The function with these settings bound, compiled once for all tests that bind the same ones."""

  def name(
    value,
  ):  # models hold dicts and are known by identity, which lives as long as the entry below
    try:
      hash(value)
    except TypeError:
      return id(value)
    return value

  key = (function, *((k, name(v)) for k, v in sorted(settings.items())))
  if key not in _JITTED:
    _JITTED[key] = jax.jit(partial(function, **settings)), settings
  return _JITTED[key][0]


def whole(module):
  """The module with each function compiled as one, not operation by operation; what is no array in
  a call is a constant.
  """

  @cache
  def compiled(function, static):
    return jax.jit(function, static_argnames=static)

  def wrap(function):
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args, **kwargs):
      given = signature.bind(*args, **kwargs).arguments
      arrays = {name for name, value in given.items() if isinstance(value, jax.Array | np.ndarray)}
      return (
        compiled(function, tuple(sorted(given.keys() - arrays)))(**given)
        if arrays
        else function(**given)
      )

    return call

  return SimpleNamespace(
    **{name: wrap(x) if inspect.isfunction(x) else x for name, x in vars(module).items()}
  )


def traced_once(step):
  """The step, to be compiled: an AssertionError where it is traced a second time.

  A step may compile twice on one trace, where its state is not committed to its devices. It takes
  `compilations` to see that.
  """
  # One counter serves all tests. It knows a function by its source and the test that made it, so
  # that another case of the same test would go on counting.
  chex.clear_trace_counter()

  @chex.assert_max_traces(n=1)
  def traced(*args):
    return step(*args)

  return traced


@contextlib.contextmanager
def compilations(name: str):
  """A list that grows by one each time a function of this name is compiled."""
  prefix = f"Compiling jit({name})"
  compiled = []

  def emit(record):
    if prefix in record.getMessage():
      compiled.append(record)

  handler, logger = logging.Handler(), logging.getLogger("jax")
  handler.emit = emit
  logger.addHandler(handler)
  propagate, logger.propagate = logger.propagate, False
  with jax.log_compiles():
    yield compiled
  logger.propagate = propagate
  logger.removeHandler(handler)


def equations(jaxpr):
  """Every equation of a jaxpr and of those inside it."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in jax.tree.leaves(
      eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    ):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


def reward_model(lm: LM, seed: int):
  params = reward.init(jax.random.key(seed + 1), lm, lm.init(jax.random.key(seed)))
  return params | {"head": {"w": 4 * params["head"]["w"], "b": jnp.float32(0.3)}}


def perturb(params, scale, seed=5):
  """The parameters with noise of this scale added, where they lie; nothing is compiled."""
  rng = np.random.default_rng(seed)
  noisy = lambda p: (np.asarray(p) + scale * rng.standard_normal(p.shape)).astype(p.dtype)
  return jax.tree.map(lambda p: jax.device_put(noisy(p), p.sharding), params)


def ragged(rows, width, lengths=None, seed=0):
  lengths = (
    np.random.default_rng(seed).integers(3, width + 1, rows)
    if lengths is None
    else np.asarray(lengths)
  )
  return np.arange(width) < lengths[:, None]


def tokens_like(valid, vocab, seed):
  tokens = jax.random.randint(jax.random.key(seed), valid.shape, 0, vocab)
  return jnp.where(valid, tokens, 0)


def prompts(lm, rows, width=5, seed=11) -> Prompts:
  valid = jnp.asarray(ragged(rows, width, seed=seed)[:, ::-1])
  return Prompts(tokens_like(valid, lm.vocab_size, seed), valid)


def demonstrations(lm, rows, width=16, lengths=None, seed=12) -> Demonstrations:
  lengths = np.random.default_rng(seed).integers(5, width + 1, rows) if lengths is None else lengths
  valid = jnp.asarray(ragged(rows, width, lengths))
  mask = valid & (jnp.arange(width) >= 3)
  return Demonstrations(tokens_like(valid, lm.vocab_size, seed), valid, mask)


def text(lm, rows, width=8, seed=13) -> Demonstrations:
  valid = jnp.asarray(ragged(rows, width, seed=seed))
  return Demonstrations(
    tokens_like(valid, lm.vocab_size, seed), valid, valid & (jnp.arange(width) > 0)
  )


@struct.dataclass
class Ranked:
  """Ranked completions as separate rows [B, K, T]; rank 0 is no completion."""

  tokens: np.ndarray
  valid: np.ndarray
  rank: np.ndarray
  rating: np.ndarray | None = None
  start: int = 0  # of the completions


def ranked(lm, rows, k, width=10, ties=True, seed=14, prompt=2) -> Ranked:
  """Random rows; those of a prompt begin with the same `prompt` tokens, and all have 3 or more."""
  rng = np.random.default_rng(seed)
  valid = ragged(rows * k, width, seed=seed).reshape(rows, k, width)
  rank = np.stack([rng.permutation(k) + 1 for _ in range(rows)]).astype(np.int32)
  if ties:
    rank[0, :2] = 1
  tokens = rng.integers(0, lm.vocab_size, valid.shape, np.int32)
  tokens[:, :, :prompt] = tokens[:, :1, :prompt]
  return Ranked(np.where(valid, tokens, 0), valid, rank, start=prompt)


def groups_of(batch: Ranked, learnt=False) -> list[branches.Branches]:
  """The completions of rank 1 and above, as the host packs them."""
  groups = []
  for b, rank in enumerate(np.asarray(batch.rank)):
    real = np.flatnonzero(rank)
    ids = [np.asarray(batch.tokens[b, k])[np.asarray(batch.valid[b, k])] for k in real]
    rows = tuple(pipeline.Row(row, batch.start) for row in ids)
    ratings = () if batch.rating is None else tuple(np.asarray(batch.rating)[b, real].tolist())
    group = pipeline.Group(rows, tuple(rank[real].tolist()), ratings)
    groups.append(branches.of_group(group, learnt=learnt))
  return groups


def packed(batch: Ranked, micro=1, shards=1, learnt=False) -> Comparisons:
  """The same comparisons in packed rows [G, N, ...]."""
  groups = groups_of(batch, learnt)
  layout = branches.layout(groups, len(groups), shards, micro)
  return jax.tree.map(jnp.asarray, branches.pack(groups, layout))


def comparisons(lm, rows, k, micro=1, shards=1, learnt=False) -> Comparisons:
  """Random comparisons in packed rows."""
  return packed(ranked(lm, rows, k), micro, shards, learnt)


def scores_of(score_part, batch: Ranked, micro=1) -> np.ndarray:
  """The scores [B, K] of packed completions, of which every prompt has K."""
  groups = groups_of(batch, learnt=True)
  layout = branches.layout(groups, len(groups), 1, micro)
  parts, count = reward.into_parts(jax.tree.map(jnp.asarray, branches.pack(groups, layout)))
  scores = np.zeros((layout.rows, layout.parts, layout.slots, layout.completions))
  for number in range(int(count)):
    part = jax.tree.map(lambda x, number=number: x[number], parts)
    scores[:, number] = np.asarray(score_part(part)).reshape(scores[:, number].shape)
  return branches.unpack(scores, branches.slots_of(groups, layout))


def place_models(lm, tree):
  """Shards every model found in a tree of parameters (or a Frozen) by the table of the language
  model.
  """
  if isinstance(tree, Frozen):
    return tree.replace(ref=place_models(lm, tree.ref), reward=place_models(lm, tree.reward))
  if "blocks" in tree:
    table = {name: lm.table[name] for name in tree}
    return sharding.place(tree, sharding.shardings(table))
  return {
    name: sharding.replicate(sub) if name == "head" else place_models(lm, sub)
    for name, sub in tree.items()
  }


def unsharded(run):
  """Runs a function without a mesh, inside a test that has one."""
  with jax.set_mesh(Mesh(np.empty((), object), ())):
    return run()


def assert_trees_close(a, b, *, rtol=1e-5, atol=0.0):
  chex.assert_trees_all_close(a, b, rtol=rtol, atol=atol)


def assert_trees_equal(a, b):
  chex.assert_trees_all_equal(a, b)
