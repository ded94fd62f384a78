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


# --- what a step is told ---


def test_a_completion_is_the_sum_of_its_marked_tokens(monkeypatch):
  """Its stem and its key reach the model as they are."""
  calls = []

  def masked_logp(lm, params, rows, window=None, *, key=None):
    calls.append((rows.stem, window, key))
    return jnp.arange(-1.0, -9.0, -1).reshape(4, 2), jnp.array([[True, False], [True, True]] * 2)

  monkeypatch.setattr(dpo.likelihood, "masked_logp", masked_logp)
  batch = comparisons(rows=2, k=2, width=3)
  stem, key = jnp.ones((2, 2, 3, LM.width)), jax.random.key(0)
  logp = dpo.completion_logp(LM, {}, batch.replace(stem=stem), 2, key=key)
  np.testing.assert_array_equal(logp, [[-1, -7], [-5, -15]])
  ((given_stem, window, given_key),) = calls
  assert given_stem.shape == (4, 3, LM.width)
  assert window == 2 and given_key is key


def test_a_step_on_tables_by_hand(monkeypatch):
  """The policy and its reference are tables [B, K] of log-probabilities: the gradient is known.

  Of the first prompt two pairs are left, because one is tied; the second has equal completions.
  """
  calls = []

  def completion_logp(lm, params, batch, window=None, *, key=None):
    calls.append((window, key))
    return params["logp"]

  monkeypatch.setattr(dpo, "completion_logp", completion_logp)
  tokens = jnp.arange(18).reshape(2, 3, 3)
  batch = dpo.Comparisons(
    tokens=tokens.at[1].set(tokens[1, 0]),
    valid=jnp.ones((2, 3, 3), bool),
    rank=jnp.array([[1, 2, 2], [1, 2, 3]]),
    mask=jnp.ones((2, 3, 3), bool),
  )
  policy = jnp.array([[-1.0, -2.0, -3.0], [-1.0, -5.0, -9.0]])
  reference = jnp.array([[-2.0, -2.5, -1.0], [-1.0, -1.0, -1.0]])
  frozen = Frozen({}, {"logp": reference}, {})
  run = lambda **settings: dpo.dpo_step(
    steps.init_state(jax.random.key(1), {"logp": policy}, SGD),
    frozen,
    batch,
    lm=LM,
    tx=SGD,
    cfg=dpo.DPOConfig(beta=0.5, window=2, **settings),
  )
  # β log π/π_ref is ½ (1, ½, -2), and the winner is ahead by ¼ and by 3/2.
  expected = np.log1p(np.exp([-0.25, -1.5]))
  state, metrics = run()
  assert metrics["loss"] == pytest.approx(expected.mean(), rel=1e-5)
  assert metrics["pairs"] == 2 and metrics["accuracy"] == 1
  assert metrics["reward/chosen"] == pytest.approx(0.5)
  assert metrics["reward/rejected"] == pytest.approx((0.25 - 1) / 2)
  assert metrics["reward/margin"] == pytest.approx(0.875)
  assert metrics["logp/chosen"] == pytest.approx(-1)
  assert metrics["logp/rejected"] == pytest.approx(-2.5)
  assert state.iteration == 1
  pull = 0.5 / 2 * (1 - 1 / (1 + np.exp([-0.25, -1.5])))
  move = np.array([[pull.sum(), -pull[0], -pull[1]], [0, 0, 0]])
  np.testing.assert_allclose(state.params["logp"] - policy, move, atol=1e-6)
  assert metrics["grad/norm"] == pytest.approx(np.linalg.norm(move), rel=1e-5)
  implicit = dpo.implicit_reward(LM, {"logp": policy}, frozen, batch, dpo.DPOConfig(beta=0.5))
  np.testing.assert_allclose(implicit, 0.5 * (policy - reference), rtol=1e-6)
  # The window reaches policy and reference, and without dropout there is no key.
  assert calls[:2] == [(2, None), (2, None)]

  calls.clear()
  _, all_pairs = run(pairs="all", dropout=True)
  # Two prompts have three pairs each by their ranks.
  assert all_pairs["loss"] == pytest.approx(expected.sum() / 6, rel=1e-5)
  assert all_pairs["reward/chosen"] == pytest.approx(0.5)
  (_, policy_key), (_, reference_key) = calls[:2]
  assert policy_key is not None and reference_key is None


def test_dropout_is_new_in_each_step(monkeypatch):
  step_keys = []

  def gradients(loss, params, batch, key, *, micro):
    step_keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
    assert micro == 3
    table = jnp.zeros((3, 4))
    return jax.tree.map(jnp.zeros_like, params), jnp.float32(0), (table, table)

  monkeypatch.setattr(dpo.steps, "gradients", gradients)
  state = steps.init_state(jax.random.key(1), {"logp": jnp.zeros(2)}, SGD)
  for _ in range(2):
    cfg = dpo.DPOConfig(micro=3)
    state, _ = dpo.dpo_step(state, Frozen({}, {}, {}), comparisons(), lm=LM, tx=SGD, cfg=cfg)
  assert len(set(step_keys)) == 2
