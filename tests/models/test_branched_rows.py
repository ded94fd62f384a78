"""Packed rows whose segments have branches, each of which sees its prompt and itself."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from instructjax import sharding
from instructjax.data.batches import branches, pipeline
from instructjax.models import adapters, attention, blocks, freeze, gpt, llama

# Two segments and padding: a prompt of 3 with branches of 2 and 3, a prompt of 1 with 1 and 1.
VALID = jnp.array([[1] * 8 + [2] * 3 + [0]])
BRANCH = jnp.array([[0, 0, 0, 1, 1, 2, 2, 2, 0, 1, 2, 0]])
SIZES = {"vocab_size": 48, "context": 24, "width": 32, "depth": 2, "heads": 4, "dtype": "float32"}


def test_positions_go_on_from_the_prompt():
  expected = [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 1]
  np.testing.assert_array_equal(blocks.positions(VALID, BRANCH)[0, :11], expected)
  np.testing.assert_array_equal(blocks.positions(VALID, 0 * BRANCH), blocks.positions(VALID))


def seen(query, window=0, branch=BRANCH):
  mask = blocks.causal_mask(VALID, window, branch)
  return np.flatnonzero(mask[0, query]).tolist()


def test_the_mask_by_hand():
  """Query 6 is the second token of the second branch, query 10 a branch of the other segment."""
  assert seen(2) == [0, 1, 2]
  assert seen(4) == [0, 1, 2, 3, 4]
  assert seen(6) == [0, 1, 2, 5, 6]
  assert seen(9) == [8, 9] and seen(10) == [8, 10]
  assert seen(11) == []
  # A window counts along the path: column 2 is two positions before column 6, four columns before.
  assert seen(6, 3) == [2, 5, 6]
  assert seen(6, jnp.int32(2)) == [5, 6]
  assert seen(7, 5) == [1, 2, 5, 6, 7]


def test_without_branches_the_mask_is_that_of_segments():
  for window in (0, 2):
    np.testing.assert_array_equal(
      blocks.causal_mask(VALID, window, 0 * BRANCH), blocks.causal_mask(VALID, window)
    )


def qkv(heads=4, kv_heads=2, length=12):
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (1, length, heads, 8))
  k, v = (jax.random.normal(key, (1, kv_heads, length, 8)) for key in keys[1:])
  return q, k, v


@pytest.mark.parametrize("queries, parts", [(12, 1), (12, 5), (5, 1), (5, 3)])
def test_blocks_of_queries_change_nothing(queries, parts, monkeypatch):
  """With their gradients, a soft cap and windows; in blocks of 4 queries and in loops over parts.

  5 parts do not divide the 12 queries.
  """
  size = -(-12 // -(-12 // queries))
  monkeypatch.setattr(attention, "QUERIES", queries)
  monkeypatch.setattr(attention, "SCORES", -(-4 * size * 12 // parts))
  q, k, v = qkv()
  assert attention._parts_of_queries(q[:, :size], 12) == parts
  rule = attention.Rule(scale=0.3, softcap=2.0, windows=(3, 0))

  def in_blocks(q, k, v):
    mixed = attention.in_blocks(q, k, v, VALID, 0, BRANCH, dtype="float32", rule=rule)
    return (mixed * (VALID > 0)[:, :, None, None] * jnp.cos(jnp.arange(8.0))).sum()

  def at_once(q, k, v):
    mask = blocks.causal_mask(VALID, 3, BRANCH)
    mixed = blocks.attention(q, k, v, mask, "float32", scale=0.3, softcap=2.0)
    return (mixed * (VALID > 0)[:, :, None, None] * jnp.cos(jnp.arange(8.0))).sum()

  value, grads = jax.jit(jax.value_and_grad(in_blocks, (0, 1, 2)))(q, k, v)
  expected, expected_grads = jax.jit(jax.value_and_grad(at_once, (0, 1, 2)))(q, k, v)
  assert float(value) == pytest.approx(float(expected), rel=1e-5)
  tiny.assert_trees_close(grads, expected_grads, rtol=1e-4, atol=1e-6)


def test_no_array_of_all_scores_in_parts(monkeypatch):
  """Of 12 queries in 6 parts no value of the program has a score for each pair of columns."""
  monkeypatch.setattr(attention, "SCORES", 4 * 12 * 2)
  mix = partial(attention.in_blocks, dtype="float32")
  grad = jax.grad(lambda q, k, v: mix(q, k, v, VALID, 0, BRANCH).sum())
  jaxpr = jax.make_jaxpr(grad)(*qkv()).jaxpr
  sizes = [v.aval.size for eqn in tiny.equations(jaxpr) for v in eqn.outvars]
  assert max(sizes) < 4 * 12 * 12


def test_a_kernel_of_segments_is_not_asked(monkeypatch):
  monkeypatch.setattr(attention, "splash", None)
  for kind in ("auto", "xla", "splash"):
    mix = attention.chosen_for_branches(kind, 256, 64, "bfloat16")
    assert mix.func is attention.in_blocks


# --- whole models ---


def groups():
  """Prompts of 1 to 9 tokens with 2 to 5 completions of 1 to 6 tokens."""
  rng = np.random.default_rng(0)
  made = []
  for completions in (2, 5, 3, 2):
    prompt = rng.integers(0, 48, rng.integers(1, 10))
    rows = []
    for _ in range(completions):
      ids = np.concatenate([prompt, rng.integers(0, 48, rng.integers(1, 7))])
      rows.append(pipeline.Row(ids.astype(np.int32), len(prompt)))
    made.append(pipeline.Group(tuple(rows), tuple(range(1, completions + 1))))
  return made


@cache
def batch():
  """Packed rows [4, 48] of the groups, and where each group stands."""
  packable = [branches.of_group(group) for group in groups()]
  layout = branches.Layout(rows=8, parts=1, length=48, slots=4, completions=5)
  packed = branches.pack(packable, layout)
  part = jax.tree.map(lambda x: jnp.asarray(x[:, 0]), packed)
  return packable, branches.slots_of(packable, layout), part


def windowed(**changes):
  llama_sizes = {"kv_heads": 2, "mlp": 64, "pattern": "LG", "window": 4}
  return llama.llama(llama.LlamaConfig(**{**SIZES, **llama_sizes, **changes}))


MODELS = {
  "gpt, learned positions": lambda: gpt.gpt(gpt.GPTConfig(**SIZES)),
  "llama, windows and rotary": windowed,
  "llama, soft caps": lambda: windowed(softcap=3.0, post_norm=True),
}


def separate_hidden(lm, params, group):
  """The hidden states of each row of a group, read by itself."""
  hidden = []
  for row in group.rows:
    ids = jnp.zeros((1, 24), jnp.int32).at[0, : len(row.ids)].set(row.ids)
    real = jnp.arange(24)[None] < len(row.ids)
    hidden.append(np.asarray(lm.hidden(params, ids, real))[0, : len(row.ids)])
  return hidden


def assert_as_separate(lm, params, hidden):
  """Every token of every path has the hidden state that it has in a row of its own."""
  packable, slots, _ = batch()
  for i, group in enumerate(groups()):
    run = packable[i]
    for k, expected in enumerate(separate_hidden(lm, params, group), 1):
      path = np.flatnonzero((run.branch == 0) | (run.branch == k))
      actual = np.asarray(hidden)[slots.row[i], slots.start[i] + path]
      np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_branch_is_read_as_a_row_of_its_own(name):
  """Packed rows are longer than the context, which each path fits."""
  lm = MODELS[name]()
  lm = lm._replace(hidden=jax.jit(lm.hidden))
  params = jax.jit(lm.init)(jax.random.key(0))
  part = batch()[2]
  hidden = lm.hidden(params, part.tokens, part.valid, branch=part.branch)
  assert_as_separate(lm, params, hidden)


def test_the_stem_of_branches_goes_through_the_lower_blocks():
  lm = windowed()
  params = jax.jit(lm.init)(jax.random.key(0))
  part = batch()[2]
  trunk, trained = freeze.split(params, 1)
  whole = trunk | trained
  stem = lm.stem(whole, part.tokens, part.valid, part.branch)
  hidden = lm.hidden(whole, part.tokens, part.valid, branch=part.branch, stem=stem)
  assert_as_separate(lm, params, hidden)


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 2, 4)], indirect=True, ids=str)
def test_on_a_mesh(mesh):
  lm = windowed()
  part = batch()[2]
  params = lm.init(jax.random.key(0))
  run = lambda p, part: lm.hidden(p, part.tokens, part.valid, branch=part.branch)
  expected = tiny.unsharded(lambda: np.asarray(jax.jit(run)(params, part)))
  placed = sharding.place(params, sharding.shardings(lm.table))
  hidden = jax.jit(run)(placed, sharding.place_batch(part))
  real = np.asarray(part.valid > 0)
  np.testing.assert_allclose(np.asarray(hidden)[real], expected[real], atol=2e-5)


class Attending(nnx.Module):
  """One layer of attention, with the mask and the positions that it is given."""

  def __init__(self, rngs):
    self.tokens = nnx.Embed(48, 16, rngs=rngs)
    self.places = nnx.Embed(24, 16, rngs=rngs)

  def hidden(self, tokens, positions, mask):
    x = self.tokens(tokens) + self.places(positions)
    scores = jnp.where(mask, jnp.einsum("btd,bsd->bts", x, x), -1e30)
    return x + jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), x)

  def logits(self, hidden):
    return self.tokens.attend(hidden)


def test_a_module_of_a_user_sees_branches_by_its_mask_and_positions():
  lm, params = adapters.from_nnx(
    Attending(nnx.Rngs(0)), hidden="hidden", logits="logits", vocab_size=48, context=24, width=16
  )
  part = batch()[2]
  hidden = lm.hidden(params, part.tokens, part.valid, branch=part.branch)
  assert_as_separate(lm, params, hidden)
