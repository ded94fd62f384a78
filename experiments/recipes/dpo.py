"""DPO on pairs of one right and one wrong response (Rafailov et al. 2023, Eq. 7).

    L = - E log σ(β [log π(y_w|x)/π_ref(y_w|x) - log π(y_l|x)/π_ref(y_l|x)])

    python experiments/recipes/dpo.py --seed=0

The pairs are made once, before training: the warm start writes two responses to each prompt, and
the reward that can be verified says which is right. Where both are, or neither is, they are no pair
and weigh nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
import world

from instructjax import likelihood, losses, optim, steps

PROMPTS = 128
TX = optim.adamw(1e-4)


# The method


def log_probability(params, rows):
  """Returns log π(y|x) of whole responses: [B]."""
  logp, _ = likelihood.response_logp(
    world.LM, params, rows.tokens, rows.valid, world.RESPONSE, banned=world.SAMPLING.banned
  )
  return jnp.sum(jnp.where(rows.mask, logp, 0), axis=1)


def loss(params, pairs, key, reference, beta):
  """Returns the loss of pairs (chosen, rejected, weight)."""
  chosen, rejected, weight = pairs
  policy = log_probability(params, chosen), log_probability(params, rejected)
  ref = log_probability(reference, chosen), log_probability(reference, rejected)
  return losses.dpo(*policy, *ref, weight, beta=beta), ()


@partial(jax.jit, static_argnames="beta")
def update(state, pairs, reference, beta):
  """Makes one step; returns the state and the loss."""
  loss_of = partial(loss, reference=reference, beta=beta)
  grads, value, _ = steps.gradients(loss_of, state.params, pairs)
  return steps.update(state, grads, TX), value


# The run


def sampled_pairs(params, key, reward=world.reward):
  """Returns (chosen, rejected, weight) of two responses to each of PROMPTS prompts."""
  best, worst = world.best_and_worst(params, key, PROMPTS, 2, reward=reward)
  differ = (reward(best) > reward(worst)).astype(jnp.float32)
  return best, worst, differ / jnp.maximum(jnp.sum(differ), 1)


def train(start, seed, batches, beta):
  """Returns the parameters, and the loss of each update."""
  keys = jax.random.split(jax.random.key(seed + 1000), batches)
  data = [sampled_pairs(start, key) for key in keys]
  state = steps.init_state(jax.random.key(seed), start, TX)
  values = []
  for pairs in data:
    state, value = update(state, pairs, start, beta)
    values.append(value)
  return state.params, values


def main(words=None):
  args = world.arguments(words, batches=60, beta=2.0, warm=300)
  start = world.warm_start(args.seed, args.warm)
  policy, values = train(start, args.seed, args.batches, args.beta)
  print(f"loss {values[0]:.3f} at first and {values[-1]:.3f} at last")
  return world.compare("DPO", args.seed, start, policy)


if __name__ == "__main__":
  main()
