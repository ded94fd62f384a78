"""RLOO: REINFORCE with the other responses as the baseline (Ahmadian et al. 2024, section 3).

    A_i = G_i - 1/(n-1) Σ_{j ≠ i} G_j,        G_i = r_i - β log(π(y_i|x) / π_ref(y_i|x))

    python experiments/recipes/rloo.py --seed=0

It is `grpo` with other functions in its fields: nothing is divided by a deviation, and the KL is
paid in the reward. With one update on the episodes of an iteration all ratios are 1, so the clipped
loss has the gradient of REINFORCE. Each response counts once, as a sum over its tokens.
"""

import dataclasses
from functools import partial

import grpo
import world

from instructjax import returns

# The method


def experiment(learning_rate=5e-4):
  """Returns the method."""
  method = grpo.experiment(learning_rate)
  return method._replace(
    advantages=partial(returns.leave_one_out, n=grpo.SAMPLES),
    kl_reward=returns.kl_k1,
    kl_loss=None,
    cfg=dataclasses.replace(method.cfg, normalise="sequence_sum"),
  )


# The run


def main(words=None):
  args = world.arguments(words, iterations=60, warm=300)
  start = world.warm_start(args.seed, args.warm)
  policy, metrics = grpo.train(start, args.seed, args.iterations, experiment(), kl_coef=0.02)
  print(f"KL {metrics['objective/kl'][-1]:.2f} nats an episode at the end")
  return world.compare("RLOO", args.seed, start, policy)


if __name__ == "__main__":
  main()
