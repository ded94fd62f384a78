"""GRPO with a reward that can be verified (Shao et al. 2024, "DeepSeekMath", section 4.1).

    A_i = (r_i - mean_j r_j) / (std_j r_j + ε)        of the responses i, j to one prompt

    python experiments/recipes/grpo.py --seed=0

The tiny GPT of `world` sorts four digits, and the reward is 1 where all of them are in order. There
is no value network and no reward model; the KL from the start is a term of the loss.
"""

import dataclasses
from functools import partial

import jax
import world

from instructjax import losses, optim, ppo, returns, steps
from instructjax.types import Frozen

PROMPTS, SAMPLES = 32, 8


# The method


def experiment(learning_rate=5e-4):
  """Returns GRPO as PPO with other functions in its fields."""
  return ppo.PPO(
    world.LM,
    optim.by_subtree(policy=optim.adamw(learning_rate)),
    dataclasses.replace(world.SAMPLING, n=SAMPLES),
    ppo.PPOConfig(
      minibatches=1, ptx_coef=0.0, ema_decay=None, whiten_advantage=False, rows_at_once=128
    ),
    advantages=partial(returns.group_normalised, n=SAMPLES),
    kl_reward=None,
    kl_loss=losses.kl,
  )


def iteration(state, key, frozen, method, reward):
  """Samples, verifies and learns."""
  prompts = world.training_prompts(key, PROMPTS)
  rows = ppo.rollout(state.params, frozen, prompts, ppo.rollout_key(state), method)
  return ppo.learn(state, frozen, rows, reward(rows), ppo=method)


def train(start, seed, count, method, kl_coef=0.04, reward=world.reward):
  """Returns the parameters after so many iterations, and the metrics of each."""
  params = ppo.init_params(start, None)
  state = steps.init_state(jax.random.key(seed), params, method.tx, kl_coef=kl_coef)
  frozen = Frozen(trunk={}, ref=start, reward={})
  keys = jax.random.split(jax.random.key(seed + 1000), count)
  step = partial(iteration, frozen=frozen, method=method, reward=reward)
  state, metrics = jax.jit(partial(jax.lax.scan, step))(state, keys)
  return state.params["policy"], metrics


# The run


def main(words=None):
  args = world.arguments(words, iterations=60, warm=300)
  start = world.warm_start(args.seed, args.warm)
  policy, metrics = train(start, args.seed, args.iterations, experiment())
  print(f"KL {metrics['objective/kl'][-1]:.2f} nats an episode at the end")
  return world.compare("GRPO", args.seed, start, policy)


if __name__ == "__main__":
  main()
