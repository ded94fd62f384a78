"""GRPO and RLOO: what an iteration learns from the responses to one prompt."""

import grpo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rloo
import world

from instructjax import returns


def begins_with_seven(rows):
  return (rows.tokens[:, world.PROMPT] == world.ZERO + 7).astype(jnp.float32)


@pytest.mark.parametrize("recipe", [grpo, pytest.param(rloo, marks=pytest.mark.slow)])
def test_the_reward_rises(recipe, monkeypatch):
  monkeypatch.setattr(grpo, "PROMPTS", 8)
  start = world.LM.init(jax.random.key(0))
  policy, metrics = grpo.train(start, 0, 12, recipe.experiment(3e-3), reward=begins_with_seven)
  scores = metrics["objective/scores"]
  assert scores[0] < 0.3 and scores[-1] > 0.6
  assert sorted(policy) == sorted(start)
  assert (
    metrics["objective/kl"][0] == pytest.approx(0, abs=1e-4) and metrics["objective/kl"][-1] > 0
  )
  assert ("loss/kl" in metrics) == (recipe is grpo)


def test_advantages_of_one_prompt():
  reward = jnp.array([1.0, 0, 0, 0, 0, 0, 0, 1])[:, None]
  mask = jnp.ones((8, 1), bool)
  grouped, _ = grpo.experiment().advantages(reward, None, mask)
  left_out, _ = rloo.experiment().advantages(reward, None, mask)
  deviation = np.sqrt((2 * 0.75**2 + 6 * 0.25**2) / 7) + 1e-4
  np.testing.assert_allclose(grouped[:2, 0], np.array([0.75, -0.25]) / deviation, rtol=1e-5)
  np.testing.assert_allclose(left_out[:2, 0], [1 - 1 / 7, -2 / 7], rtol=1e-5)


def test_rloo_pays_the_kl_in_the_reward_and_grpo_in_the_loss():
  assert grpo.experiment().kl_reward is None and grpo.experiment().kl_loss is not None
  assert rloo.experiment().kl_reward is returns.kl_k1 and rloo.experiment().kl_loss is None
