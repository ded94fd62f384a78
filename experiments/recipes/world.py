"""The tiny world of the recipes: sort four digits, with a reward that can be verified.

A prompt is four digits and "=", and the right response is the same digits in ascending order and an
end of text. Of the 10,000 prompts 1,000 are held out. The model is a GPT of 101,696 parameters that
a short supervised warm-up leaves half trained. It also learns a text, digits that count up or
down, which stands for pretraining.

Dimensions: B rows, P = 5 prompt tokens, R = 6 response tokens.
"""

import argparse
import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import bestofn, intervals, likelihood, models, optim, rollout, sft, steps
from instructjax.models import gpt
from instructjax.types import Demonstrations, Prompts

EOS, EQUALS, ZERO = 1, 2, 3  # the digit d is the token ZERO + d
PROMPT, RESPONSE = 5, 6
# All rows are sampled at once: they are short, and few programs are to be compiled.
SAMPLING = rollout.Sampling(
  response=RESPONSE, eos=(EOS,), banned=(0, EQUALS), slots=1024, halvings=0
)
LM = models.build(gpt.GPTConfig(vocab_size=13, context=12, width=64, depth=2, heads=4))
HELD_OUT = 1000


def numbers():
  """Returns all prompts in a fixed random order, the held-out ones first: [10000, 4]."""
  digits = np.stack(np.unravel_index(np.arange(10_000), (10, 10, 10, 10)), axis=1)
  return jnp.asarray(np.random.default_rng(0).permutation(digits), jnp.int32)


def prompts_of(digits):
  """Returns the prompts of digits [B, 4]."""
  tokens = jnp.pad(digits + ZERO, ((0, 0), (0, 1)), constant_values=EQUALS)
  return Prompts(tokens, jnp.ones_like(tokens, bool))


def training_prompts(key, rows):
  """Returns random prompts that are not held out."""
  return prompts_of(jax.random.choice(key, numbers()[HELD_OUT:], (rows,)))


def answers(prompts):
  """Returns the right responses [B, R]: tokens after the end are 0, as those of a rollout are."""
  ordered = jnp.sort(prompts[:, : PROMPT - 1], axis=1)
  ended = jnp.pad(ordered, ((0, 0), (0, 1)), constant_values=EOS)
  return jnp.pad(ended, ((0, 0), (0, RESPONSE - PROMPT)))


def reward(rows):
  """Returns 1 for a right response and 0 for another: [B]."""
  right = rows.tokens[:, PROMPT:] == answers(rows.tokens[:, :PROMPT])
  return jnp.all(right, axis=1).astype(jnp.float32)


def demonstrations(rows):
  """Returns the responses of a rollout as demonstrations."""
  mask = jnp.pad(rows.mask, ((0, 0), (PROMPT, 0)))
  return Demonstrations(rows.tokens, rows.valid, mask)


def right_demonstrations(prompts):
  """Returns the prompts with their right responses."""
  tokens = jnp.concatenate([prompts.tokens, answers(prompts.tokens)], axis=1)
  valid = tokens > 0  # no token of this world but padding is 0
  return Demonstrations(tokens, valid, valid & (jnp.arange(PROMPT + RESPONSE) >= PROMPT))


def text(key, rows):
  """Returns rows that count up or down by 1 to 4, modulo 10."""
  start = jax.random.randint(key, (rows, 1), 0, 10)
  step = jax.random.randint(jax.random.fold_in(key, 1), (rows, 1), 1, 5)
  sign = jax.random.rademacher(jax.random.fold_in(key, 2), (rows, 1), jnp.int32)
  tokens = (start + sign * step * jnp.arange(PROMPT + RESPONSE)) % 10 + ZERO
  everywhere = jnp.ones_like(tokens, bool)
  return Demonstrations(tokens, everywhere, everywhere.at[:, 0].set(False))


def text_loss(params, rows=500):
  """Returns the loss of each row of held-out text in nats a token."""
  logp, mask = jax.jit(partial(likelihood.masked_logp, LM))(params, text(jax.random.key(99), rows))
  return np.asarray(-jnp.sum(logp * mask, axis=1) / jnp.sum(mask, axis=1))


@cache
def warm_start(seed, updates=300):
  """Returns the parameters after supervised updates on 32 demonstrations and 32 rows of text."""
  tx = optim.adamw(2e-3)
  step = partial(sft.sft_step, lm=LM, tx=tx, cfg=sft.SFTConfig(dropout=False))

  def update(state, key):
    prompts = training_prompts(key, 32)
    batches = right_demonstrations(prompts), text(jax.random.fold_in(key, 3), 32)
    return step(state, {}, jax.tree.map(lambda *x: jnp.concatenate(x), *batches))

  key = jax.random.key(seed)
  state = steps.init_state(key, LM.init(key), tx)
  keys = jax.random.split(jax.random.fold_in(key, 1), updates)
  state, _ = jax.jit(partial(jax.lax.scan, update))(state, keys)
  return state.params


@partial(jax.jit, static_argnames="n")
def sample(params, prompts, key, n=1):
  """Returns n responses to each prompt at temperature 1, which follow each other."""
  return rollout.sample(LM, params, prompts, key, dataclasses.replace(SAMPLING, n=n))


@partial(jax.jit, static_argnames=("prompts", "n", "reward"))
def best_and_worst(params, key, prompts, n, reward=reward):
  """Returns the best and the worst of n responses to each of so many new prompts.

  Where all n have the same reward, both are chosen at random.
  """
  keys = jax.random.split(key, 4)
  rows = sample(params, training_prompts(keys[0], prompts), keys[1], n)
  scores = reward(rows).reshape(prompts, n)
  best = bestofn.pick(rows, bestofn.choose(keys[2], scores), n)
  worst = bestofn.pick(rows, bestofn.choose(keys[3], -scores), n)
  return best, worst


def held_out(params, seed, rows=HELD_OUT):
  """Returns a response to each held-out prompt."""
  return sample(params, prompts_of(numbers()[:rows]), jax.random.fold_in(jax.random.key(seed), 2))


def evaluate(params, seed, rows=HELD_OUT):
  """Returns the reward of a response to each held-out prompt: [rows]."""
  return np.asarray(reward(held_out(params, seed, rows)))


def well_formed(rows):
  """Returns whether each response is four digits and an end, whatever the digits: [B]."""
  tokens = rows.tokens[:, PROMPT:]
  return np.asarray(jnp.all(tokens[:, :4] >= ZERO, axis=1) & (tokens[:, 4] == EOS))


def written(rows):
  """Returns the rows as texts, such as "3141=1134.", where "." is the end of text."""
  signs = [" ", ".", "=", *"0123456789"]
  return ["".join(signs[token] for token in row).strip() for row in np.asarray(rows.tokens)]


def compare(name, seed, start, policy):
  """Prints what both write for the held-out prompts, and the report; returns the gain."""
  for word, params in (("before", start), ("after", policy)):
    rows = held_out(params, seed)
    share = well_formed(rows).mean()
    print(f"{word}: {' '.join(written(rows)[:6])}; {share:.1%} are four digits and an end")
  return report(name, seed, evaluate(start, seed), evaluate(policy, seed))


def report(name, seed, before, after):
  """Prints both means and their difference with 95 % intervals; returns the difference."""
  gain = intervals.mean_difference(after, before)
  shown = [
    f"{word} {x.value:.3f} [{x.low:.3f}, {x.high:.3f}]"
    for word, x in (
      ("before", intervals.mean(before)),
      ("after", intervals.mean(after)),
      ("gain", gain),
    )
  ]
  print(f"{name}: {', '.join(shown)}; n {gain.n:,}, seed {seed}", flush=True)
  return gain


def arguments(words, **numbers):
  """Reads --seed and the other numbers of a recipe from the command line."""
  parser = argparse.ArgumentParser()
  for name, default in {"seed": 0, **numbers}.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
  return parser.parse_args(words)
