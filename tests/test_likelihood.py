"""Log-probabilities of text: against a plain computation, windows, temperature, banned ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax import likelihood
from instructjax.types import Demonstrations

LM = tiny.lm("gpt")
PARAMS = tiny.perturb(LM.init(jax.random.key(0)), 0.1)
HIDDEN = jax.jit(LM.hidden)
FAST = LM._replace(hidden=HIDDEN)


def table(tokens, valid, temperature=1.0, banned=()):
  """log p(v | what stands before t) for every t >= 1 and v, in float64: [B, T - 1, V]."""
  logits = np.asarray(LM.logits(PARAMS, HIDDEN(PARAMS, tokens, valid)), np.float64)[:, :-1] / temperature
  logits[..., list(banned)] = -np.inf
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def pick(logp, tokens):
  return np.take_along_axis(logp, np.asarray(tokens)[:, 1:, None], 2)[..., 0]


@pytest.mark.parametrize("temperature, banned", [(1.0, ()), (0.7, (0, 9))])
def test_response_logp_is_that_of_the_last_tokens(temperature, banned):
  valid = jnp.asarray(np.arange(12) >= np.array([[0], [3], [5]]))
  tokens = jnp.where(valid, jax.random.randint(jax.random.key(1), (3, 12), 10, LM.vocab_size), 0)
  logp, entropy = likelihood.response_logp(FAST, PARAMS, tokens, valid, 5, temperature=temperature, banned=banned)
  expected = table(tokens, valid, temperature, banned)
  np.testing.assert_allclose(logp, pick(expected, tokens)[:, -5:], atol=1e-5)
  p = np.exp(expected[:, -5:])
  np.testing.assert_allclose(entropy, -(p * np.where(p > 0, expected[:, -5:], 0)).sum(-1), atol=1e-5)
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
  for row, (start, end) in enumerate([(1, 4), (5, 9), (8, 12), (0, 0)]):  # at the start, within, at the end, none
    marks[row, start:end] = True
  batch = Demonstrations(tokens, valid, jnp.asarray(marks))
  whole, mask = likelihood.masked_logp(FAST, PARAMS, batch)
  cut, cut_mask = likelihood.masked_logp(FAST, PARAMS, batch, 4 + extra)
  assert cut.shape == (4, 4 + extra)
  for row in range(4):
    np.testing.assert_allclose(np.asarray(cut[row])[cut_mask[row]], np.asarray(whole[row])[mask[row]], atol=1e-5)


def test_a_stem_gives_the_same_numbers():
  from instructjax.models import freeze

  trunk, trained = freeze.split(PARAMS, 1)
  batch = tiny.demonstrations(LM, rows=5, width=12)
  expected, _ = likelihood.masked_logp(FAST, PARAMS, batch)
  with_stem = batch.replace(stem=LM.stem(trunk, batch.tokens, batch.valid))
  got, _ = likelihood.masked_logp(FAST, trunk | trained, with_stem)
  np.testing.assert_allclose(got, expected, atol=1e-5)
