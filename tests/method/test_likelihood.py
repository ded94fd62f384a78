"""Log-probabilities of text: against a plain computation, windows, temperature, banned ids, part by
part.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax import likelihood, losses, optim, sft, sharding, steps
from instructjax.models import freeze, llama
from instructjax.types import Demonstrations

LM = tiny.lm("gpt")
PARAMS = tiny.perturb(LM.init(jax.random.key(0)), 0.1)
HIDDEN = jax.jit(LM.hidden)
FAST = LM._replace(hidden=HIDDEN)


def table(tokens, valid, temperature=1.0, banned=()):
  """log p(v | what stands before t) for every t >= 1 and v, in float64: [B, T - 1, V]."""
  logits = (
    np.asarray(LM.logits(PARAMS, HIDDEN(PARAMS, tokens, valid)), np.float64)[:, :-1] / temperature
  )
  logits[..., list(banned)] = -np.inf
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def pick(logp, tokens):
  return np.take_along_axis(logp, np.asarray(tokens)[:, 1:, None], 2)[..., 0]


@pytest.mark.parametrize("temperature, banned", [(1.0, ()), (0.7, (0, 9))])
def test_response_logp_is_that_of_the_last_tokens(temperature, banned):
  valid = jnp.asarray(np.arange(12) >= np.array([[0], [3], [5]]))
  tokens = jnp.where(valid, jax.random.randint(jax.random.key(1), (3, 12), 10, LM.vocab_size), 0)
  logp, entropy = likelihood.response_logp(
    FAST, PARAMS, tokens, valid, 5, temperature=temperature, banned=banned
  )
  expected = table(tokens, valid, temperature, banned)
  np.testing.assert_allclose(logp, pick(expected, tokens)[:, -5:], atol=1e-5)
  p = np.exp(expected[:, -5:])
  np.testing.assert_allclose(
    entropy, -(p * np.where(p > 0, expected[:, -5:], 0)).sum(-1), atol=1e-5
  )
  assert logp.dtype == entropy.dtype == jnp.float32


def test_masked_logp_is_that_of_the_marked_tokens():
  batch = tiny.demonstrations(LM, rows=5, width=12)
  logp, mask = likelihood.masked_logp(FAST, PARAMS, batch)
  np.testing.assert_array_equal(mask, batch.mask[:, 1:])
  expected = pick(table(batch.tokens, batch.valid), batch.tokens)
  np.testing.assert_allclose(np.asarray(logp)[mask], expected[mask], atol=1e-5)


@pytest.mark.parametrize("extra", [0, 2])
def test_a_window_holds_the_marked_tokens_wherever_they_stand(extra):
  valid = jnp.ones((4, 12), bool)
  tokens = jax.random.randint(jax.random.key(2), (4, 12), 0, LM.vocab_size)
  marks = np.zeros((4, 12), bool)
  for row, (start, end) in enumerate(
    [(1, 4), (5, 9), (8, 12), (0, 0)]
  ):  # at the start, within, at the end, none
    marks[row, start:end] = True
  batch = Demonstrations(tokens, valid, jnp.asarray(marks))
  whole, mask = likelihood.masked_logp(FAST, PARAMS, batch)
  cut, cut_mask = likelihood.masked_logp(FAST, PARAMS, batch, 4 + extra)
  assert cut.shape == (4, 4 + extra)
  for row in range(4):
    np.testing.assert_allclose(
      np.asarray(cut[row])[cut_mask[row]], np.asarray(whole[row])[mask[row]], atol=1e-5
    )


def test_a_stem_gives_the_same_numbers():
  trunk, trained = freeze.split(PARAMS, 1)
  batch = tiny.demonstrations(LM, rows=5, width=12)
  expected, _ = likelihood.masked_logp(FAST, PARAMS, batch)
  with_stem = batch.replace(stem=LM.stem(trunk, batch.tokens, batch.valid))
  got, _ = likelihood.masked_logp(FAST, trunk | trained, with_stem)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def shared(lm, rows=4, n=3, width=6, length=5):
  """Prompts padded on the left, n ends of each padded on the right, and the same as whole rows."""
  prompts = tiny.prompts(lm, rows, width)
  mask = tiny.ragged(rows * n, length, np.random.default_rng(3).integers(1, length + 1, rows * n))
  ends = tiny.tokens_like(jnp.asarray(mask), lm.vocab_size, 4)
  before = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), prompts)
  valid = jnp.concatenate([before.valid, mask], axis=1)
  marked = jnp.concatenate([jnp.zeros_like(before.valid), mask], axis=1)
  return (prompts, ends, jnp.asarray(mask)), Demonstrations(
    jnp.concatenate([before.tokens, ends], axis=1), valid, marked
  )


@pytest.mark.parametrize("family", ["gpt", "llama"])
@pytest.mark.parametrize("length", [5, 1])
def test_ends_of_a_shared_prompt_are_weighed_as_whole_rows_are(family, length):
  lm = tiny.lm(family)
  params = tiny.perturb(lm.init(jax.random.key(0)), 0.1)
  parts, rows = shared(lm, length=length)
  logp, count, likeliest = jax.jit(partial(likelihood.choices, lm))(params, *parts)
  expected = jax.jit(partial(likelihood.continuation, lm))(params, rows)
  np.testing.assert_allclose(logp, expected[0], atol=2e-5)
  np.testing.assert_array_equal(count, expected[1])
  np.testing.assert_array_equal(likeliest, expected[2])


def test_shared_prompts_do_not_make_a_model_whole_at_once():
  """`continuation` gathers a layer at a time along fsdp: a model that fits it fits `choices`."""
  lm, asked = tiny.lm("gpt"), []
  noted = lm._replace(unstack=lambda params, **how: asked.append(how) or lm.unstack(params, **how))
  jax.eval_shape(partial(likelihood.choices, noted), lm.init(jax.random.key(0)), *shared(lm)[0])
  assert asked == [{"whole": False}]


@pytest.mark.parametrize("mesh", [(2, 2, 2)], indirect=True, ids=str)
def test_shared_prompts_on_a_mesh_equal_one_device(mesh):
  lm = tiny.lm("llama")
  weigh = jax.jit(partial(likelihood.choices, lm))

  def alone():
    host, parts = tiny.perturb(lm.init(jax.random.key(0)), 0.1), shared(lm, rows=8)[0]
    return jax.tree.map(np.asarray, (host, parts, weigh(host, *parts)))

  host, parts, expected = tiny.unsharded(alone)
  params = sharding.place(host, sharding.shardings(lm.table))
  tiny.assert_trees_close(
    weigh(params, *sharding.place_batch(parts)), expected, rtol=1e-5, atol=2e-5
  )


ROWS, LENGTH = 8, 7


def unembedding(tied, dtype="float32"):
  """(a model, the parameters of its logits, hidden states, tokens)."""
  lm = llama.llama(
    llama.LlamaConfig(tiny.VOCAB, 64, width=32, depth=1, heads=4, kv_heads=2, mlp=64, tied=tied)
  )
  name = "embed" if tied else "head"
  params = {
    name: jax.tree.map(
      lambda leaf: (20 * leaf.init(jax.random.key(0), leaf.shape)).astype(dtype), lm.table[name]
    )
  }
  rng = np.random.default_rng(1)
  hidden = rng.standard_normal((ROWS, LENGTH, lm.width), np.float32)
  return lm, params, hidden, rng.integers(10, tiny.VOCAB, (ROWS, LENGTH)).astype(np.int32)


def numbers(lm, params, hidden, tokens):
  """(logp, entropy) and the gradients of both with respect to parameters and hidden states."""

  def loss(params, hidden):
    logp, entropy = likelihood.of_tokens(lm, params, hidden, tokens, temperature=0.7, banned=(0, 9))
    return (jnp.sin(logp) + entropy).sum(), (logp, entropy)

  grads, measures = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, hidden)
  return *measures, *grads


@pytest.mark.parametrize(
  "logits, tied, dtype",
  [
    (8 * 3 * tiny.VOCAB, True, "float32"),
    (8 * 3 * tiny.VOCAB, False, "float32"),
    (1, True, "bfloat16"),
  ],
  ids=[
    "three parts, the last filled up",
    "untied",
    "a part for each position, frozen bfloat16 unembedding",
  ],
)
def test_parts_give_the_numbers_of_the_whole(monkeypatch, logits, tied, dtype):
  lm, *arrays = unembedding(tied, dtype)
  params, hidden, tokens = jax.tree.map(jnp.asarray, arrays)
  whole = numbers(lm, params, hidden, tokens)
  monkeypatch.setattr(likelihood, "LOGITS", logits)
  assert likelihood.parts(tokens, lm.vocab_size) == (3 if logits > 1 else LENGTH)
  in_parts = numbers(lm, params, hidden, tokens)
  if dtype == "bfloat16":  # frozen: its own gradient, summed in bfloat16, is never taken
    whole, in_parts = (
      (logp, entropy, to_hidden) for logp, entropy, _, to_hidden in (whole, in_parts)
    )
  tiny.assert_trees_close(in_parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 2, 4)], indirect=True, ids=str)
def test_parts_on_a_mesh_equal_one_device(monkeypatch, mesh):
  tied = mesh.shape["data"] != 2
  lm, host, hidden, tokens = unembedding(tied)
  expected = tiny.unsharded(
    lambda: jax.tree.map(np.asarray, numbers(lm, host, hidden, jnp.asarray(tokens)))
  )
  monkeypatch.setattr(likelihood, "LOGITS", 3 * tiny.VOCAB)
  params = sharding.place(host, sharding.shardings({name: lm.table[name] for name in host}))
  hidden, tokens = sharding.place_batch((hidden, tokens))
  rows = ROWS // (mesh.shape["data"] * mesh.shape["fsdp"])
  assert likelihood.parts(tokens, lm.vocab_size) == -(-rows * LENGTH // (3 * mesh.shape["model"]))
  got = numbers(lm, params, hidden, tokens)
  tiny.assert_trees_close(got, expected, rtol=1e-5, atol=1e-5)
  alike = lambda g, p: np.testing.assert_equal(
    str(jax.typeof(g).sharding), str(jax.typeof(p).sharding)
  )
  jax.tree.map(alike, got[2:], (params, hidden))


def largest(jaxpr):
  """The most elements of a float32 array with an axis as long as the vocabulary and the logits'
  other axes.
  """
  sizes = [
    v.aval.size
    for eqn in tiny.equations(jaxpr)
    for v in eqn.outvars
    if getattr(v.aval, "shape", ())[-1:] == (tiny.VOCAB,) and v.aval.dtype == jnp.float32
  ]
  return max(sizes)


@pytest.mark.parametrize("logits", [1 << 26, 8 * 3 * tiny.VOCAB])
def test_an_sft_step_in_parts_holds_no_logits_of_the_whole_batch(monkeypatch, logits):
  """Neither forward nor backward, before compilation and after it."""
  monkeypatch.setattr(likelihood, "LOGITS", logits)
  batch = tiny.demonstrations(LM, rows=ROWS, width=LENGTH + 1)
  tx = optim.adamw(1e-3)
  step = lambda state, batch: sft.sft_step(state, {}, batch, lm=LM, tx=tx)
  state = steps.init_state(jax.random.key(0), PARAMS, tx)
  whole = ROWS * LENGTH * tiny.VOCAB
  most_elements = largest(jax.make_jaxpr(step)(state, batch).jaxpr)
  text = jax.jit(step).lower(state, batch).compile().as_text()
  shapes = [f"f32[{ROWS},{LENGTH},{tiny.VOCAB}]", f"f32[{ROWS * LENGTH},{tiny.VOCAB}]"]
  if logits == 1 << 26:
    assert most_elements == whole and any(shape in text for shape in shapes)
  else:
    assert most_elements == logits and not any(shape in text for shape in shapes)


def test_log_probabilities_are_float32_and_match_the_losses():
  hidden, tokens = (
    jax.random.normal(jax.random.key(0), (2, 3, LM.width)),
    jnp.array([[1, 2, 3], [4, 5, 6]]),
  )
  logp, entropy = likelihood.of_tokens(LM, PARAMS, hidden.astype(jnp.bfloat16), tokens)
  logits = LM.logits(PARAMS, hidden.astype(jnp.bfloat16))
  np.testing.assert_array_equal(logp, losses.token_logp(logits, tokens))
  assert logp.dtype == entropy.dtype == jnp.float32


def test_a_tie_with_the_likeliest_token_is_likeliest():
  logits = jnp.array([[[1.0, 1.0, 0.0]] * 3])
  logp, likeliest = likelihood.logp_and_likeliest(logits, jnp.array([[0, 1, 2]]))
  np.testing.assert_array_equal(likeliest, [[True, True, False]])
  normaliser = np.log(2 * np.e + 1)
  np.testing.assert_allclose(logp, [[1 - normaliser, 1 - normaliser, -normaliser]], rtol=1e-6)


def test_the_stem_and_the_key_that_are_given_reach_the_model():
  """A stem that was computed again is as slow as none, and a lost key is a lost dropout."""
  calls = []

  def hidden(params, tokens, valid, *, branch=None, stem=None, key=None):
    calls.append((stem, key))
    return jnp.zeros((*tokens.shape, LM.width))

  noting = LM._replace(hidden=hidden)
  batch = tiny.demonstrations(LM, rows=2, width=6)
  stem, key = jnp.ones((2, 6, LM.width)), jax.random.key(3)
  likelihood.masked_logp(noting, PARAMS, batch.replace(stem=stem), key=key)
  likelihood.response_logp(noting, PARAMS, batch.tokens, batch.valid, 3, stem=stem, key=key)
  assert len(calls) == 2
  assert all(given_stem is stem and given_key is key for given_stem, given_key in calls)
