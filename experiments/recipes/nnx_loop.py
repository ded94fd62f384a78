"""The losses and the returns in a plain Flax NNX loop, with a model that is none of ours.

    python experiments/recipes/nnx_loop.py --seed=0

The model is a recurrent network, and the sampler, the optimizer and both loops are those of any NNX
program. `losses` and `returns` are functions of arrays and ask for nothing else. The first loop
learns right answers, and the second is PPO's clipped loss with leave-one-out advantages (RLOO,
Ahmadian et al. 2024, section 3) and the KL from the start in the reward.

Dimensions: B rows, T tokens, R response tokens, V vocabulary.
"""

import jax
import jax.numpy as jnp
import optax
import world
from flax import nnx

from instructjax import losses, returns
from instructjax.types import Rollout

SAMPLES, KL_COEF = 8, 0.02
BANNED = (0, world.EQUALS)


class Recurrent(nnx.Module):
  def __init__(self, vocabulary, width, rngs):
    self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
    self.gru = nnx.RNN(nnx.GRUCell(width, width, rngs=rngs))
    self.head = nnx.Linear(width, vocabulary, rngs=rngs)

  def __call__(self, tokens):  # [B, T] -> [B, T, V]
    return self.head(self.gru(self.embed(tokens)))


def response_logp(model, tokens):
  """Returns log π of the response tokens: [B, R]."""
  logits = losses.temper(model(tokens)[:, world.PROMPT - 1 : -1], banned=BANNED)
  return losses.token_logp(logits, tokens[:, world.PROMPT :])


@nnx.jit
def sample(model, prompts, key):
  """Returns a response to each prompt, with tokens of 0 after its end."""
  tokens = jnp.pad(prompts, ((0, 0), (0, world.RESPONSE)))
  ended = jnp.zeros(len(prompts), bool)
  for t in range(world.PROMPT, world.PROMPT + world.RESPONSE):
    logits = losses.temper(model(tokens)[:, t - 1], banned=BANNED)
    token = jax.random.categorical(jax.random.fold_in(key, t), logits)
    tokens = tokens.at[:, t].set(jnp.where(ended, 0, token))
    ended |= token == world.EOS
  mask = tokens[:, world.PROMPT :] > 0
  return Rollout(tokens, tokens > 0, mask, response_logp(model, tokens), ended)


@nnx.jit
def supervised_step(model, optimizer, prompts):
  answers = world.answers(prompts)
  tokens, weight = jnp.concatenate([prompts, answers], axis=1), losses.token_mean(answers > 0)
  grads = nnx.grad(lambda model: losses.nll(response_logp(model, tokens), weight))(model)
  optimizer.update(model, grads)


@nnx.jit
def policy_step(model, reference, optimizer, prompts, key):
  rows = sample(model, jnp.repeat(prompts, SAMPLES, axis=0), key)
  kl = returns.kl_k1(rows.logp, response_logp(reference, rows.tokens))
  token_reward = returns.token_rewards(world.reward(rows), kl, rows.mask, KL_COEF)
  advantage, _ = returns.leave_one_out(token_reward, None, rows.mask, n=SAMPLES)
  weight = losses.sequence_sum(rows.mask)

  def loss(model):
    return losses.clipped_policy(response_logp(model, rows.tokens), rows.logp, advantage, weight)

  optimizer.update(model, nnx.grad(loss)(model))


def main(words=None):
  args = world.arguments(words, updates=150, iterations=100)
  keys = jax.random.split(jax.random.key(args.seed), args.updates + args.iterations)
  model = Recurrent(world.LM.vocab_size, 128, nnx.Rngs(args.seed))
  optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
  for key in keys[: args.updates]:
    supervised_step(model, optimizer, world.training_prompts(key, 64).tokens)
  held_out = world.prompts_of(world.numbers()[: world.HELD_OUT]).tokens
  before = sample(model, held_out, keys[0])
  reference = nnx.clone(model)
  optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
  for key in keys[args.updates :]:
    prompt_key, sample_key = jax.random.split(key)
    prompts = world.training_prompts(prompt_key, 32).tokens
    policy_step(model, reference, optimizer, prompts, sample_key)
  after = sample(model, held_out, keys[0])
  print(" ".join(world.written(before)[:6]), "became", " ".join(world.written(after)[:6]))
  return world.report("NNX", args.seed, world.reward(before), world.reward(after))


if __name__ == "__main__":
  main()
