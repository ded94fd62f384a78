"""DPO, online DPO and best of n, and what they learn from responses that differ in their reward.

All start from an untrained model and share two small programs. The reward of these tests is given
for a first digit, because an untrained model never sorts.
"""

import best_of_n
import dpo
import jax
import jax.numpy as jnp
import numpy as np
import online_dpo
import pytest
import world

from instructjax import steps
from instructjax.types import Rollout

PROMPTS = 32


def begins_with_seven(rows):
  return (rows.tokens[:, world.PROMPT] == world.ZERO + 7).astype(jnp.float32)


@pytest.fixture
def start(monkeypatch):
  """An untrained model; both recipes take as many prompts, two responses each."""
  monkeypatch.setattr(dpo, "PROMPTS", PROMPTS)
  monkeypatch.setattr(best_of_n, "PROMPTS", PROMPTS)
  monkeypatch.setattr(best_of_n, "SAMPLES", 2)
  return world.LM.init(jax.random.key(0))


def sevens(params):
  """The share of prompts with a response that begins with a seven, of two."""
  best, _ = world.best_and_worst(params, jax.random.key(9), PROMPTS, 2, reward=begins_with_seven)
  return float(begins_with_seven(best).mean())


def right_and_wrong(weight):
  """Pairs of the sorted digits and of the digits as they stand, in which they differ."""
  digits = np.random.default_rng(0).permuted(np.tile(np.arange(9, 5, -1), (PROMPTS, 1)), axis=1)
  digits[:, 0] = 9  # never sorted
  prompts = world.prompts_of(jnp.asarray(digits, jnp.int32))
  tokens = world.right_demonstrations(prompts).tokens
  copied = tokens.at[:, world.PROMPT : world.PROMPT + 4].set(prompts.tokens[:, :4])

  def rollout(tokens):
    mask = tokens[:, world.PROMPT :] > 0
    return Rollout(tokens, tokens > 0, mask, jnp.zeros(mask.shape), jnp.ones(PROMPTS, bool))

  return rollout(tokens), rollout(copied), jnp.full(PROMPTS, weight, jnp.float32)


def learnt(start, pairs, updates=6):
  """The parameters after some updates, and the loss of each."""
  state = steps.init_state(jax.random.key(1), start, dpo.TX)
  values = []
  for _ in range(updates):
    state, value = dpo.update(state, pairs, start, 0.1)
    values.append(float(value))
  return state.params, values


def test_dpo_moves_from_the_rejected_to_the_chosen(start):
  chosen, rejected, weight = right_and_wrong(1 / PROMPTS)

  def margin(params):
    gap = dpo.log_probability(params, chosen) - dpo.log_probability(params, rejected)
    return float(gap.mean())

  params, values = learnt(start, (chosen, rejected, weight))
  swapped, _ = learnt(start, (rejected, chosen, weight))
  assert values[0] == pytest.approx(np.log(2), abs=1e-5)
  assert values == sorted(values, reverse=True)
  assert margin(params) > margin(start) + 1
  assert margin(swapped) < margin(start) - 1


def test_a_pair_without_weight_teaches_nothing(start):
  _, values = learnt(start, right_and_wrong(0.0), updates=2)
  assert values == [0, 0]


def test_sampled_pairs_weigh_where_they_differ(start):
  chosen, rejected, weight = dpo.sampled_pairs(start, jax.random.key(9), begins_with_seven)
  good, bad = begins_with_seven(chosen), begins_with_seven(rejected)
  np.testing.assert_array_equal(
    chosen.tokens[:, : world.PROMPT], rejected.tokens[:, : world.PROMPT]
  )
  assert (good >= bad).all()
  assert 0 < (good > bad).sum() < PROMPTS
  np.testing.assert_array_equal(weight > 0, good > bad)
  assert float(weight.sum()) == pytest.approx(1)


def test_online_dpo_raises_the_reward(start):
  policy, measured = online_dpo.train(start, 0, 20, 0.1, begins_with_seven)
  assert sevens(start) < 0.3
  assert sevens(policy) > 0.6
  assert float(measured[0][0]) == pytest.approx(np.log(2), abs=1e-5)
  assert 0 < float(measured[0][1]) < 0.5


def test_best_of_n_raises_the_reward(start):
  policy, measured = best_of_n.train(start, 0, 12, begins_with_seven)
  assert sevens(policy) > 0.6 > 0.3 > sevens(start)
  assert measured[-1]["loss"] < measured[0]["loss"]


def test_best_of_n_marks_right_responses_alone(start):
  rows = best_of_n.best_responses(start, jax.random.key(9), begins_with_seven)
  is_right = rows.tokens[:, world.PROMPT] == world.ZERO + 7
  assert 0 < is_right.sum() < PROMPTS
  np.testing.assert_array_equal(rows.mask.any(axis=1), is_right)
  assert not rows.mask[:, : world.PROMPT].any()
