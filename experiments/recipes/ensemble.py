"""An ensemble of reward models, and the worst case of it (Coste et al. 2023, section 3).

    r(x, y) = min_i r_i(x, y)        or        mean_i r_i(x, y) - λ std_i r_i(x, y)

    python experiments/recipes/ensemble.py --seed=0

A policy that maximises one reward model finds responses that this model alone takes for good ones.
The members of an ensemble learn the same rankings, and differ in their heads and in the order of
the data. The paper subtracts the variance where `mean_less_deviation` has the deviation.

Here the members learn 2,000 rankings of which a tenth is wrong, and one of them is over-optimised
within a few iterations, in spite of a penalty on the KL. The verified reward says what was really
gained.
"""

import jax
import learned_reward
import numpy as np
import world

from instructjax import rewards

# Maps the scores [N, B] of N reward models to what the policy maximises.
OBJECTIVES = {
  "one": lambda scores: scores[0],
  "mean": lambda scores: scores.mean(axis=0),
  "minimum": rewards.minimum,
  "mean less deviation": rewards.mean_less_deviation,
}


def ensemble(start, seed, pairs, members, noise=0.1, updates=200):
  """Returns so many reward models, stacked, that have learnt the same noisy rankings."""
  key = jax.random.key(seed + 2000)
  rows, ranks = learned_reward.rankings(start, key, pairs, noise=noise)
  keys = jax.random.split(jax.random.fold_in(key, 1), members)
  return learned_reward.train(keys, start, rows, ranks, updates)


def optimise(objective, models, start, seed, iterations, kl_coef=0.1):
  """Returns the policy, and the mean verified reward of each iteration."""

  def score(rows):
    return objective(np.asarray(learned_reward.scores(models, rows)))

  return learned_reward.maximise(score, start, seed, iterations, kl_coef=kl_coef)


def main(words=None):
  args = world.arguments(words, iterations=30, warm=300, pairs=2000, members=5)
  start = world.warm_start(args.seed, args.warm)
  models = ensemble(start, args.seed, args.pairs, args.members)
  before, of_one = world.evaluate(start, args.seed), None
  gains = {}
  for name, objective in OBJECTIVES.items():
    policy, verified = optimise(objective, models, start, args.seed, args.iterations)
    after = world.evaluate(policy, args.seed)
    print(
      f"{name}: verified reward in training {np.round(verified[:: len(verified) // 6 or 1], 2)}"
    )
    print(f"{name}: {' '.join(world.written(world.held_out(policy, args.seed))[:6])}")
    gains[name] = world.report(f"{name}, from the start", args.seed, before, after)
    if of_one is None:
      of_one = after
    else:
      world.report(f"{name}, from one model", args.seed, of_one, after)
  return gains


if __name__ == "__main__":
  main()
