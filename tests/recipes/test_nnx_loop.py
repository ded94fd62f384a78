"""The loop of an NNX program: what it samples, and what its two steps learn."""

import jax
import jax.numpy as jnp
import nnx_loop
import numpy as np
import optax
import world
from flax import nnx

PROMPTS = world.prompts_of(jnp.array([[3, 1, 4, 1], [9, 0, 2, 0]])).tokens


def model_and_optimizer():
  model = nnx_loop.Recurrent(world.LM.vocab_size, 16, nnx.Rngs(0))
  return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


def test_a_sample_has_no_banned_token_and_nothing_after_its_end():
  model, _ = model_and_optimizer()
  rows = nnx_loop.sample(model, jnp.repeat(PROMPTS, 50, axis=0), jax.random.key(0))
  response = np.asarray(rows.tokens[:, world.PROMPT :])
  ends = np.where(rows.ended, (response == world.EOS).argmax(axis=1), world.RESPONSE - 1)
  places = np.arange(world.RESPONSE)
  np.testing.assert_array_equal(response > 0, places <= ends[:, None])
  np.testing.assert_array_equal(rows.mask, response > 0)
  assert 0 < rows.ended.sum() < 100 and not (response == world.EQUALS).any()
  logits = np.array(model(rows.tokens)[0, world.PROMPT - 1])
  logits[list(nnx_loop.BANNED)] = -np.inf
  expected = logits[response[0, 0]] - np.log(np.exp(logits).sum())
  np.testing.assert_allclose(rows.logp[0, 0], expected, rtol=1e-5)


def test_supervised_steps_make_the_answers_likely():
  model, optimizer = model_and_optimizer()
  tokens = jnp.concatenate([PROMPTS, world.answers(PROMPTS)], axis=1)

  def answer_logp():
    logp = nnx_loop.response_logp(model, tokens)[:, :5]  # four digits and the end
    return float(logp.sum(axis=1).mean())

  assert answer_logp() < -10
  for _ in range(40):
    nnx_loop.supervised_step(model, optimizer, PROMPTS)
  assert answer_logp() > -5


def parameters(model):
  return jax.tree.leaves(nnx.state(model, nnx.Param))


def test_a_policy_learns_nothing_where_all_rewards_are_the_same():
  model, optimizer = model_and_optimizer()
  reference = nnx.clone(model)
  # No response of a random model is right, and the KL from itself is 0.
  nnx_loop.policy_step(model, reference, optimizer, PROMPTS, jax.random.key(0))
  for old, new in zip(parameters(reference), parameters(model), strict=True):
    np.testing.assert_array_equal(old, new)
