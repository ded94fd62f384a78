"""PPO with a penalty on length (Singhal et al. 2023, "A Long Way to Go", section 4).

    r'(x, y) = r(x, y) + (1 - |y| / N) σ,        σ the deviation of r in a batch

    python experiments/recipes/length_penalty.py --seed=0

Reward models learn that longer is better where labelers choose long responses, and a policy that
maximises them grows longer. The paper takes a moving average of σ, and N is the length that the
policy shall not exceed.

Here a labeler counts a token of length as much as `BIAS` of the whole answer. A right response has
five tokens and there is room for six, so that a policy that writes on has lost the verified reward.
"""

import jax
import learned_reward
import numpy as np
import world

BIAS = 0.3
LONGEST = 5  # N: four digits and the end of text


def length(rows):
  """Returns the tokens of each response: [B]."""
  return rows.mask.sum(axis=1)


def liked(rows):
  """Returns the quality of each response to a labeler who likes length: [B]."""
  return learned_reward.in_place(rows) + BIAS * length(rows)


def penalised(scores, lengths, longest=LONGEST):
  """Returns r' of each response: [B]."""
  return scores + (1 - lengths / longest) * scores.std()


def optimise(weight, models, start, seed, iterations):
  """Returns the policy that maximises the reward model, and `weight` times the penalty."""

  def score(rows):
    scores = np.asarray(learned_reward.scores(models, rows))[0]
    penalty = penalised(scores, np.asarray(length(rows))) - scores
    return scores + weight * penalty

  return learned_reward.maximise(score, start, seed, iterations)[0]


def main(words=None):
  args = world.arguments(words, iterations=60, warm=300, pairs=500)
  start = world.warm_start(args.seed, args.warm)
  key = jax.random.key(args.seed + 3000)
  rows, ranks = learned_reward.rankings(start, key, args.pairs, liked, noise=0.1, temperature=2.0)
  models = learned_reward.train(jax.random.split(key, 1), start, rows, ranks, updates=200)
  scores = np.asarray(learned_reward.scores(models, rows))[0]
  correlation = np.corrcoef(scores, np.asarray(length(rows)))[0, 1]
  print(f"correlation of score and length {correlation:.2f}")
  policies = {"start": start}
  for name, weight in (("plain PPO", 0.0), ("penalised PPO", 1.0)):
    policies[name] = optimise(weight, models, start, args.seed, args.iterations)
  rewards, lengths = {}, {}
  for name, policy in policies.items():
    rows = world.held_out(policy, args.seed)
    rewards[name], lengths[name] = np.asarray(world.reward(rows)), np.asarray(length(rows))
    score = np.asarray(learned_reward.scores(models, rows))[0]
    print(f"{name}: {' '.join(world.written(rows)[:6])}")
    print(f"{name}: score {score.mean():.2f}, length {lengths[name].mean():.2f}")
  for name in list(policies)[1:]:
    world.report(f"{name}, from the start", args.seed, rewards["start"], rewards[name])
  world.report("penalised, from plain", args.seed, rewards["plain PPO"], rewards["penalised PPO"])
  return rewards, lengths


if __name__ == "__main__":
  main()
