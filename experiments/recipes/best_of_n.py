"""Best-of-n distillation: supervised learning on the best of n responses (Dong et al. 2023, RAFT).

    y* = argmax_i r(x, y_i),  y_1 ... y_n ~ π;        L = - E log π(y*|x)

    python experiments/recipes/best_of_n.py --seed=0

The best responses teach the policy that wrote them, and the next ones are of the policy that has
learnt (also Touvron et al. 2023, "Llama 2", section 3.2.3, where it is called rejection sampling).
Prompts without any right response teach nothing. There is no KL penalty and no negative example.
"""

import dataclasses

import jax
import world

from instructjax import optim, sft, steps

PROMPTS, SAMPLES = 32, 8
TX = optim.adamw(3e-4)


# The method


def best_responses(params, key, reward=world.reward):
  """Returns the best responses of so many prompts as demonstrations; wrong ones have no mark."""
  best, _ = world.best_and_worst(params, key, PROMPTS, SAMPLES, reward=reward)
  rows = world.demonstrations(best)
  return dataclasses.replace(rows, mask=rows.mask & (reward(best) > 0)[:, None])


@jax.jit
def update(state, rows):
  """Makes one step of supervised fine-tuning."""
  return sft.sft_step(state, {}, rows, lm=world.LM, tx=TX, cfg=sft.SFTConfig(dropout=False))


def train(start, seed, iterations, reward=world.reward):
  """Returns the parameters, and the metrics of each update."""
  state = steps.init_state(jax.random.key(seed), start, TX)
  measured = []
  for key in jax.random.split(jax.random.key(seed + 1000), iterations):
    state, metrics = update(state, best_responses(state.params, key, reward))
    measured.append(metrics)
  return state.params, measured


# The run


def main(words=None):
  args = world.arguments(words, iterations=60, warm=300)
  start = world.warm_start(args.seed, args.warm)
  policy, metrics = train(start, args.seed, args.iterations)
  print(f"loss {metrics[0]['loss']:.3f} at first and {metrics[-1]['loss']:.3f} at last")
  return world.compare("best of n", args.seed, start, policy)


if __name__ == "__main__":
  main()
