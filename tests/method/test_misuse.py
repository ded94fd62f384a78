"""Calls that are wrong and gave a number: each is an error now, wherever it can be seen.

The checks of shapes that the tests run with are taken off here: a researcher does not have them.
"""

import inspect

import jax
import jax.numpy as jnp
import pytest
import tiny

from instructjax import losses, ppo, returns, rollout, steps
from instructjax.ppo import PPOConfig
from instructjax.rollout import Sampling
from instructjax.types import Prompts

B, K, R = 2, 3, 4
MASK = jnp.ones((B, R), bool)
TOKENS = jnp.zeros((B, R))
WEIGHT = losses.token_mean(MASK)
SCORE = jnp.zeros((B, K))
RANK = jnp.array([[1, 2, 3], [2, 1, 1]])


def unchecked(function):
  """The function below the wrappers that check its annotations."""
  return inspect.unwrap(function)


@pytest.mark.parametrize(
  "name, arguments",
  [
    ("nll", (TOKENS, MASK)),
    ("clipped_policy", (TOKENS, TOKENS, TOKENS, MASK)),
    ("clipped_value", (TOKENS, TOKENS, TOKENS, MASK)),
    ("ranking", (SCORE, losses.pair_weights(RANK) > 0)),
    ("centering", (SCORE, losses.pair_weights(RANK) > 0)),
    ("ranking", (SCORE, RANK)),
  ],
)
def test_a_mask_or_a_rank_is_no_weight(name, arguments):
  with pytest.raises(TypeError, match=r"a weight is a share of the batch, this is (bool|int32)"):
    unchecked(getattr(losses, name))(*arguments)


def test_an_advantage_of_a_row_is_no_advantage_of_tokens():
  with pytest.raises(AssertionError):
    unchecked(losses.clipped_policy)(TOKENS, TOKENS, jnp.zeros((B, 1)), WEIGHT)


@pytest.mark.parametrize("rank", [[[0, 1, 2]], [[1, 0, 2]], [[2, -1, 1]]])
def test_ranks_count_from_1(rank):
  with pytest.raises(ValueError, match="ranks begin with 1"):
    unchecked(losses.pair_weights)(jnp.array(rank))
  unchecked(losses.pair_weights)(jnp.array([[1, 2, 0]]))  # a padded completion at the end


def test_dpo_takes_whole_responses():
  with pytest.raises(AssertionError):
    unchecked(losses.dpo)(TOKENS, TOKENS, TOKENS, TOKENS, WEIGHT, beta=0.1)


def test_a_score_is_one_number_a_row():
  with pytest.raises(AssertionError):
    unchecked(returns.token_rewards)(jnp.zeros((B, 1)), TOKENS, MASK, 0.1)


@pytest.mark.parametrize(
  "call",
  [
    lambda mask: losses.token_mean(mask),
    lambda mask: losses.sequence_mean(mask),
    lambda mask: returns.masked_mean(TOKENS, mask),
    lambda mask: returns.at_last_token(mask),
    lambda mask: returns.gae(TOKENS, TOKENS, mask),
  ],
)
def test_a_mask_is_boolean(call, monkeypatch):
  for module in (losses, returns):
    for name in ("token_mean", "sequence_mean", "masked_mean", "at_last_token", "gae"):
      if hasattr(module, name):
        monkeypatch.setattr(module, name, unchecked(getattr(module, name)))
  with pytest.raises(TypeError, match="a mask is boolean, this one is int32"):
    call(MASK.astype(jnp.int32))


def test_prompts_are_padded_on_the_left_with_a_boolean():
  lm = tiny.lm("gpt")
  params = lm.init(jax.random.key(0))
  sample = unchecked(rollout.sample)
  cfg = Sampling(response=2)
  valid = jnp.array([[True, True], [True, False]])
  prompts = Prompts(jnp.ones((2, 2), jnp.int32), valid)
  with pytest.raises(ValueError, match="1 of 2 prompts end in padding, the first is row 1"):
    sample(lm, params, prompts, jax.random.key(0), cfg)
  with pytest.raises(TypeError, match="valid is boolean, this is int32"):
    sample(lm, params, prompts.replace(valid=valid.astype(jnp.int32)), jax.random.key(0), cfg)


def test_rows_divide_into_minibatches_and_micro_batches():
  with pytest.raises(ValueError, match="8 episodes do not divide into 3 minibatches"):
    unchecked(ppo.order)(jax.random.key(0), 8, PPOConfig(minibatches=3, epochs=3))
  with pytest.raises(ValueError, match="4 rows do not divide into 3 micro-batches"):
    unchecked(steps.split)(jnp.zeros((4, 2)), 3)
