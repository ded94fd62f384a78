"""Rewards that are learnt from rankings in the world of `world`, and a policy that maximises them.

The recipes `ensemble` and `length_penalty` share it. A labeler ranks two responses to each prompt
by some quality, and is wrong in a part of them. Reward models learn the rankings (Ouyang et al.
2022, Eq. 1), and the policy maximises a score by PPO with leave-one-out advantages, so that there
is no value network.

Dimensions: B rows, M ranked pairs, N reward models, T tokens.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import world

from instructjax import losses, optim, ppo, returns, reward, rollout, steps
from instructjax.types import Frozen

SAMPLES = 4  # responses to each prompt, in an iteration of PPO
METHOD = ppo.PPO(
  world.LM,
  optim.by_subtree(policy=optim.adamw(5e-4)),
  dataclasses.replace(world.SAMPLING, n=SAMPLES),
  ppo.PPOConfig(minibatches=1, ptx_coef=0.0, ema_decay=None, rows_at_once=128),
  advantages=partial(returns.leave_one_out, n=SAMPLES),
)


def in_place(rows):
  """Returns the share of the tokens of the right response that are in their place: [B]."""
  right = world.answers(rows.tokens[:, : world.PROMPT])
  return jnp.mean(rows.tokens[:, world.PROMPT :] == right, axis=1, dtype=jnp.float32)


def ranked(quality, is_wrong):
  """Returns the ranks [M, 2] of pairs by a quality [2 M], turned round where the labeler is wrong.

  Two responses of the same quality share rank 1.
  """
  pairs = quality.reshape(-1, 2)
  liked = jnp.where(is_wrong[:, None], -pairs, pairs)
  return 1 + (liked < jnp.max(liked, axis=1, keepdims=True)).astype(jnp.int32)


def rankings(policy, key, pairs, quality=in_place, noise=0.25, temperature=1.5):
  """Returns two responses to each of M prompts as a rollout [2 M], and their ranks [M, 2].

  They are sampled hotter than those that a policy learns from, or most of them would be alike.
  """
  prompt_key, sample_key, noise_key = jax.random.split(key, 3)
  sampling = dataclasses.replace(world.SAMPLING, n=2, temperature=temperature)
  prompts = world.training_prompts(prompt_key, pairs)
  rows = jax.jit(partial(rollout.sample, world.LM, cfg=sampling))(policy, prompts, sample_key)
  return rows, ranked(quality(rows), jax.random.bernoulli(noise_key, noise, (pairs,)))


def ranking_loss(params, tokens, valid, ranks):
  """Returns Eq. 1 over pairs: tokens and valid are [M, 2, T], ranks [M, 2]."""
  flat = (-1, world.PROMPT + world.RESPONSE)
  scores = reward.score(world.LM, params, tokens.reshape(flat), valid.reshape(flat))
  return losses.ranking(scores.reshape(ranks.shape), losses.pair_weights(ranks))


@partial(jax.jit, static_argnames="updates")
def train(keys, policy, rows, ranks, updates):
  """Returns N reward models, stacked, which differ in their heads and in the order of the pairs."""
  tx = optim.adamw(1e-3)
  pairs = ranks.shape[0]
  tokens = reward.closed(rows, world.SAMPLING.eos).reshape(pairs, 2, -1)
  valid = rows.valid.reshape(pairs, 2, -1)

  def update(state, key):
    chosen = jax.random.choice(key, pairs, (32,))
    batch = tokens[chosen], valid[chosen], ranks[chosen]
    return steps.update(state, jax.grad(ranking_loss)(state.params, *batch), tx), None

  def train_one(key):
    state = steps.new_state(key, reward.init(key, world.LM, policy), tx)
    keys = jax.random.split(jax.random.fold_in(key, 1), updates)
    return jax.lax.scan(update, state, keys)[0].params

  return jax.vmap(train_one)(keys)


@jax.jit
def scores(models, rows):
  """Returns the score of each response by each of the stacked reward models: [N, B]."""
  tokens = reward.closed(rows, world.SAMPLING.eos)
  return jax.vmap(lambda model: reward.score(world.LM, model, tokens, rows.valid))(models)


sample = jax.jit(partial(ppo.rollout, ppo=METHOD))
learn = jax.jit(partial(ppo.learn, ppo=METHOD))


def maximise(score, policy, seed, iterations, prompts=32, kl_coef=0.0):
  """Trains the policy on `score`, which maps a rollout to numbers [B] on the host.

  Returns its parameters and the mean verified reward of the responses of each iteration.
  """
  params = ppo.init_params(policy, None)
  state = steps.init_state(jax.random.key(seed), params, METHOD.tx, kl_coef=kl_coef)
  frozen = Frozen(trunk={}, ref=policy, reward={})
  verified = []
  for key in jax.random.split(jax.random.key(seed + 1000), iterations):
    questions = world.training_prompts(key, prompts)
    rows = sample(state.params, frozen, questions, ppo.rollout_key(state))
    state, _ = learn(state, frozen, rows, jnp.asarray(score(rows), jnp.float32))
    verified.append(jnp.mean(world.reward(rows)))
  return state.params["policy"], np.asarray(verified)
