"""Online DPO: each batch of pairs is written by the policy as it is (Guo et al. 2024, section 3).

    L = - E log σ(β [log π(y_w|x)/π_ref(y_w|x) - log π(y_l|x)/π_ref(y_l|x)]),        y ~ π

    python experiments/recipes/online_dpo.py --seed=0

It is `dpo` with its two lines in another order: pairs are sampled, ranked and learnt from, and then
the next ones are sampled. Where the paper asks a language model which response is better, the
reward that can be verified says it. The reference stays the warm start.
"""

import dpo
import jax
import world

from instructjax import steps

# The method


def train(start, seed, iterations, beta, reward=world.reward):
  """Returns the parameters, and of each batch the loss and the share that gave a pair."""
  state = steps.init_state(jax.random.key(seed), start, dpo.TX)
  measured = []
  for key in jax.random.split(jax.random.key(seed + 1000), iterations):
    pairs = dpo.sampled_pairs(state.params, key, reward)
    state, value = dpo.update(state, pairs, start, beta)
    measured.append((value, (pairs[2] > 0).mean()))
  return state.params, measured


# The run


def main(words=None):
  args = world.arguments(words, iterations=60, beta=0.1, warm=300)
  start = world.warm_start(args.seed, args.warm)
  policy, measured = train(start, args.seed, args.iterations, args.beta)
  (_, first), (_, last) = measured[0], measured[-1]
  print(f"{first:.0%} of the first prompts gave a pair, and {last:.0%} of the last ones")
  return world.compare("online DPO", args.seed, start, policy)


if __name__ == "__main__":
  main()
