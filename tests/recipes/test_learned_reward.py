"""Rankings, the reward models that learn them, and the policies that maximise these."""

import ensemble
import jax
import jax.numpy as jnp
import learned_reward
import length_penalty
import numpy as np
import pytest
import world
from sorted_digits import rows_of

RIGHT_AND_WRONG = rows_of(
  "3141=1134.", "3141=3141.", "9020=0029.", "9020=9020.", "7766=6677.", "7766=7766."
)


def test_tokens_in_place():
  rows = rows_of("3141=1134.", "3141=1143.", "3141=113411")
  np.testing.assert_allclose(learned_reward.in_place(rows), [1, 4 / 6, 4 / 6])
  np.testing.assert_allclose(length_penalty.liked(rows), [6, 4 / 6 + 5, 4 / 6 + 6], rtol=1e-6)


def test_ranks_follow_the_quality_unless_the_labeler_is_wrong():
  quality = jnp.array([0.2, 0.7, 1.0, 0.5, 0.3, 0.3, 0.0, 1.0])
  is_wrong = jnp.array([False, False, False, True])
  ranks = learned_reward.ranked(quality, is_wrong)
  np.testing.assert_array_equal(ranks, [[2, 1], [1, 2], [1, 1], [1, 2]])


def test_reward_models_learn_the_rankings_each_in_its_own_way():
  start = world.LM.init(jax.random.key(0))
  keys = jax.random.split(jax.random.key(1), 2)
  ranks = jnp.array([[1, 2], [1, 2], [1, 2]])
  models = learned_reward.train(keys, start, RIGHT_AND_WRONG, ranks, updates=10)
  scores = learned_reward.scores(models, RIGHT_AND_WRONG)
  assert scores.shape == (2, 6)
  assert (scores[:, 0::2] > scores[:, 1::2] + 1).all()
  assert abs(scores[0] - scores[1]).min() > 1e-3
  objective = np.asarray(ensemble.OBJECTIVES["minimum"](np.asarray(scores)))
  np.testing.assert_array_equal(objective, scores.min(axis=0))


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("one", [1, 5]),
    ("mean", [2, 3]),
    ("minimum", [1, 1]),
    ("mean less deviation", [1, 1]),
  ],
)
def test_objectives(name, expected):
  scores = np.array([[1.0, 5.0], [3.0, 1.0]])
  np.testing.assert_allclose(ensemble.OBJECTIVES[name](scores), expected)


def test_the_penalty_falls_to_1_at_the_limit():
  lengths = np.array([3, 5, 6, 8])
  np.testing.assert_array_equal(length_penalty.penalty(lengths), [0, 0, -1, -1])
  np.testing.assert_allclose(length_penalty.penalty(lengths, 4, 9), [0, -0.2, -0.4, -0.8])
  rows = rows_of("3141=1134.", "3141=113411")
  expected = length_penalty.liked(rows) - [0, 1]
  np.testing.assert_allclose(length_penalty.penalised(rows), expected)


def test_a_policy_maximises_a_score_from_the_host():
  start = world.LM.init(jax.random.key(0))
  scores = []

  def begins_with_seven(rows):
    scores.append(np.asarray(rows.tokens[:, world.PROMPT] == world.ZERO + 7))
    return scores[-1]

  policy, verified = learned_reward.maximise(begins_with_seven, start, 0, iterations=25, prompts=8)
  assert verified.shape == (25,) and verified.max() < 0.5
  # At first it is one of eleven tokens; the deviation of a mean of 96 responses is .03.
  assert scores[0].mean() < 0.25 and np.mean(scores[-3:]) > 0.25
  assert sorted(policy) == sorted(start)
