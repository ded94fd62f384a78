"""Direct preference optimisation: its loss by hand, its reference, its optimum, micro-batches."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from instructjax import dpo, losses, optim, sharding, steps
from instructjax.types import Frozen

LM = tiny.lm("llama")
SGD = optax.sgd(1.0)


def comparisons(rows=3, k=4, width=10):
  """Ranked completions of which the last half of each row is marked."""
  batch = tiny.comparisons(LM, rows=rows, k=k, width=width)
  marked = batch.valid & (jnp.arange(width) >= width // 2)
  return batch.replace(mask=marked)


def start(tx=SGD, moved=0.05):
  """A policy that has moved away from its reference."""
  reference = LM.init(jax.random.key(0))
  policy = tiny.perturb(reference, moved) if moved else jax.tree.map(jnp.copy, reference)
  return steps.init_state(jax.random.key(1), policy, tx), Frozen({}, reference, {})


def dpo_step(state, frozen, batch, tx=SGD, **settings):
  cfg = dpo.DPOConfig(**settings)
  return tiny.jitted(dpo.dpo_step, lm=LM, tx=tx, cfg=cfg)(state, frozen, batch)


@cache
def logp_of_tokens():
  """log π of every token, compiled once."""

  def logp(params, tokens, valid):
    logits = LM.logits(params, LM.hidden(params, tokens, valid))
    return losses.token_logp(logits[:, :-1], tokens[:, 1:])

  return jax.jit(logp)


def summed_logp(params, batch):
  """The log-probability of every completion [B, K] in plain NumPy sums."""
  flat = lambda x: x.reshape(-1, x.shape[-1])
  logp = np.asarray(logp_of_tokens()(params, flat(batch.tokens), flat(batch.valid)), np.float64)
  return (logp * np.asarray(flat(batch.mask))[:, 1:]).sum(1).reshape(batch.rank.shape)


@pytest.mark.parametrize("window", [None, 5])
def test_loss_and_metrics_by_two_loops(window):
  batch = comparisons()
  state, frozen = start()
  rewards = 0.3 * (summed_logp(state.params, batch) - summed_logp(frozen.ref, batch))
  _, metrics = dpo_step(state, frozen, batch, beta=0.3, window=window)
  total = chosen = right = count = 0.0
  for reward, rank in zip(rewards, np.asarray(batch.rank), strict=True):
    pairs = [(i, j) for i in range(4) for j in range(4) if rank[i] < rank[j]]
    for i, j in pairs:
      total += np.log1p(np.exp(reward[j] - reward[i])) / len(pairs) / len(rewards)
      chosen += reward[i] / len(pairs) / len(rewards)
      right += (np.sign(reward[i] - reward[j]) + 1) / 2
    count += len(pairs)
  assert float(metrics["loss"]) == pytest.approx(total, rel=1e-4)
  assert float(metrics["reward/chosen"]) == pytest.approx(chosen, rel=1e-3, abs=1e-5)
  assert float(metrics["accuracy"]) == pytest.approx(right / count)
  assert metrics["pairs"] == count


def test_at_the_start_nothing_is_preferred():
  state, frozen = start(moved=0)
  _, metrics = dpo_step(state, frozen, comparisons())
  assert float(metrics["loss"]) == pytest.approx(np.log(2), rel=1e-5)
  assert float(metrics["reward/margin"]) == pytest.approx(0, abs=1e-5)


def test_the_first_gradient_is_half_beta_times_that_of_the_log_ratio():
  """At the start every pair has the weight σ(0) = ½ (Rafailov et al. 2023, section 4)."""
  batch = comparisons()
  state, frozen = start(moved=0)
  new, _ = dpo_step(state, frozen, batch, beta=0.2)

  def log_ratio(params):
    logp = dpo.completion_logp(LM, params, batch)
    weight = losses.pair_weights(batch.rank)
    return -0.2 / 2 * jnp.sum(weight * (logp[:, :, None] - logp[:, None, :]))

  expected = jax.jit(jax.grad(log_ratio))(state.params)
  moved = jax.tree.map(lambda a, b: a - b, state.params, new.params)
  tiny.assert_trees_close(moved, expected, rtol=1e-3, atol=1e-6)


def test_prompts_and_padded_completions_have_no_gradient():
  batch = comparisons()
  batch = batch.replace(rank=batch.rank.at[:, 3].set(0))
  state, frozen = start()
  before, _ = dpo_step(state, frozen, batch)
  other = batch.replace(tokens=batch.tokens.at[:, 3].set(1))
  tiny.assert_trees_close(before.params, dpo_step(state, frozen, other)[0].params, atol=1e-7)


def test_micro_batches_add_up():
  batch = comparisons(rows=8)
  state, frozen = start()
  (whole, m), (parts, n) = (dpo_step(state, frozen, batch, micro=micro) for micro in (1, 4))
  tiny.assert_trees_close(whole.params, parts.params, atol=1e-5)
  assert float(m["loss"]) == pytest.approx(float(n["loss"]), rel=1e-5)


def test_over_no_pairs_the_accuracy_is_unknown():
  batch = comparisons()
  state, frozen = start()
  _, metrics = dpo_step(state, frozen, batch.replace(rank=jnp.ones_like(batch.rank)))
  assert np.isnan(metrics["accuracy"])
  assert metrics["loss"] == 0


def test_it_reaches_the_log_odds_of_its_labels():
  """Two completions, the first preferred by 3 to 1: the implicit reward differs by log 3."""
  lm = tiny.lm("gpt", vocab_size=4, width=32, depth=1)
  tx = optim.adamw(3e-3)
  reference = lm.init(jax.random.key(0))
  state = steps.init_state(jax.random.key(1), jax.tree.map(jnp.copy, reference), tx)
  frozen = Frozen({}, reference, {})
  tokens = jnp.broadcast_to(jnp.asarray([[0, 1, 2], [0, 2, 1]]), (4, 2, 3))
  real = jnp.ones_like(tokens, bool)
  batch = dpo.Comparisons(
    tokens, real, jnp.asarray([[1, 2]] * 3 + [[2, 1]]), mask=real & (jnp.arange(3) > 0)
  )
  cfg = dpo.DPOConfig(beta=0.5)
  step = steps.compiled(partial(dpo.dpo_step, lm=lm, tx=tx, cfg=cfg), state)
  for _ in range(150):
    state, metrics = step(state, frozen, batch)
  rewards = dpo.implicit_reward(lm, state.params, frozen, batch, cfg)
  assert float(rewards[0, 0] - rewards[0, 1]) == pytest.approx(np.log(3), abs=0.02)
  assert float(metrics["loss"]) == pytest.approx(0.5623, abs=1e-3)  # the entropy of 3 to 1


def three_steps(place, place_batch):
  """The losses of three steps, traced once."""
  tx = optim.adamw(1e-2)
  reference = place(LM.init(jax.random.key(0)))
  policy = jax.tree.map(jnp.copy, reference)
  state = steps.init_state(jax.random.key(0), policy, tx)
  step = steps.compiled(tiny.traced_once(partial(dpo.dpo_step, lm=LM, tx=tx)), state)
  frozen = Frozen({}, reference, {})
  history = []
  for _ in range(3):
    state, metrics = step(state, frozen, place_batch(comparisons(rows=8)))
    history.append(float(metrics["loss"]))
  return history


@cache
def on_one_device():
  return tiny.unsharded(lambda: three_steps(lambda p: p, lambda b: b))


def test_sharded_steps_equal_one_device(mesh):
  place = lambda params: sharding.place(params, sharding.shardings(LM.table))
  history, expected = three_steps(place, sharding.place_batch), on_one_device()
  np.testing.assert_allclose(history, expected, atol=1e-4)
  assert history[2] < history[0]
