"""PPO with a penalty on length (Yu et al. 2025, "DAPO", section 3.4).

    r'(x, y) = r(x, y) + p(|y|),        p(n) = 0 up to N tokens and falls to -1 at the limit

    python experiments/recipes/length_penalty.py --seed=0

Reward models learn that longer is better where labelers choose long responses, and a policy that
maximises them grows longer (Singhal et al. 2023, "A Long Way to Go"). A penalty takes that back.

Here the biased reward is written down and not learnt: a token of length counts as much as `BIAS` of
the whole answer. A right response has five tokens and there is room for six, so a policy that
writes on has lost the verified reward.
"""

import learned_reward
import numpy as np
import world

BIAS = 1.0
LONGEST = 5  # N: four digits and the end of text


# The method


def penalty(lengths, longest=LONGEST, limit=world.RESPONSE):
  """Returns p(|y|) of each response: [B]."""
  return np.clip((longest - lengths) / (limit - longest), -1, 0)


def penalised(rows):
  """Returns r' of each response: [B]."""
  return liked(rows) + penalty(length(rows))


# The run


def length(rows):
  """Returns the tokens of each response: [B]."""
  return np.asarray(rows.mask.sum(axis=1))


def liked(rows):
  """Returns the reward of each response by a judge who likes length: [B]."""
  return np.asarray(learned_reward.in_place(rows)) + BIAS * length(rows)


def main(words=None):
  args = world.arguments(words, iterations=60, warm=300)
  start = world.warm_start(args.seed, args.warm)
  policies = {"start": start}
  for name, score in (("plain PPO", liked), ("penalised PPO", penalised)):
    policies[name], _ = learned_reward.maximise(score, start, args.seed, args.iterations)
  rewards, lengths = {}, {}
  for name, policy in policies.items():
    rows = world.held_out(policy, args.seed)
    rewards[name], lengths[name] = np.asarray(world.reward(rows)), length(rows)
    print(f"{name}: {' '.join(world.written(rows)[:6])}")
    print(f"{name}: biased reward {liked(rows).mean():.2f}, length {lengths[name].mean():.2f}")
  for name in ("plain PPO", "penalised PPO"):
    world.report(f"{name}, from the start", args.seed, rewards["start"], rewards[name])
  return rewards, lengths


if __name__ == "__main__":
  main()
