"""Direct preference optimisation: its loss by hand, its reference, its optimum, micro-batches."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from instructjax import dpo, losses, optim, reward, sharding, steps
from instructjax.types import Frozen, Predictions

LM = tiny.lm("llama")
SGD = optax.sgd(1.0)


def comparisons(rows=3, k=4, width=10):
  """Ranked completions, which start at the third token of their rows."""
  return tiny.ranked(LM, rows=rows, k=k, width=width, prompt=2)


def start(tx=SGD, moved=0.05):
  """A policy that has moved away from its reference."""
  reference = LM.init(jax.random.key(0))
  policy = tiny.perturb(reference, moved) if moved else jax.tree.map(jnp.copy, reference)
  return steps.init_state(jax.random.key(1), policy, tx), Frozen({}, reference, {})


def packed(batch, micro=1, shards=1):
  return tiny.packed(batch, micro, shards, learnt=True)


def dpo_step(state, frozen, batch, tx=SGD, micro=1, **settings):
  cfg = dpo.DPOConfig(**settings)
  return tiny.jitted(dpo.dpo_step, lm=LM, tx=tx, cfg=cfg)(state, frozen, packed(batch, micro))


@cache
def logp_of_tokens():
  """log π of every token, compiled once."""

  def logp(params, tokens, valid):
    logits = LM.logits(params, LM.hidden(params, tokens, valid))
    return losses.token_logp(logits[:, :-1], tokens[:, 1:])

  return jax.jit(logp)


def summed_logp(params, batch):
  """The log-probability of every completion [B, K] in plain NumPy sums."""
  flat = lambda x: jnp.asarray(x).reshape(-1, x.shape[-1])
  logp = np.asarray(logp_of_tokens()(params, flat(batch.tokens), flat(batch.valid)), np.float64)
  marked = batch.valid & (np.arange(batch.valid.shape[-1]) >= batch.start)
  return (logp * np.asarray(flat(marked))[:, 1:]).sum(1).reshape(batch.rank.shape)


@pytest.mark.parametrize("micro", [1, 3])
def test_loss_and_metrics_by_two_loops(micro):
  batch = comparisons()
  state, frozen = start()
  rewards = 0.3 * (summed_logp(state.params, batch) - summed_logp(frozen.ref, batch))
  _, metrics = dpo_step(state, frozen, batch, beta=0.3, micro=micro)
  total = chosen = right = count = 0.0
  for gain, rank in zip(rewards, np.asarray(batch.rank), strict=True):
    pairs = [(i, j) for i in range(4) for j in range(4) if rank[i] < rank[j]]
    for i, j in pairs:
      total += np.log1p(np.exp(gain[j] - gain[i])) / len(pairs) / len(rewards)
      chosen += gain[i] / len(pairs) / len(rewards)
      right += (np.sign(gain[i] - gain[j]) + 1) / 2
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

  weight = losses.pair_weights(jnp.asarray(batch.rank))
  flat = lambda x: jnp.asarray(x).reshape(-1, x.shape[-1])
  marked = flat(batch.valid & (np.arange(10) >= batch.start))[:, 1:]

  def log_ratio(params):
    logp = logp_of_tokens()(params, flat(batch.tokens), flat(batch.valid))
    logp = jnp.where(marked, logp, 0).sum(1).reshape(3, 4)
    return -0.2 / 2 * jnp.sum(weight * (logp[:, :, None] - logp[:, None, :]))

  expected = jax.jit(jax.grad(log_ratio))(state.params)
  moved = jax.tree.map(lambda a, b: a - b, state.params, new.params)
  tiny.assert_trees_close(moved, expected, rtol=1e-3, atol=1e-6)


def test_the_log_probability_of_a_completion_is_that_of_a_row_of_its_own():
  """Of a batch in which rows share more than the prompt: it is learnt in each of them."""
  batch = comparisons(rows=4, k=3)
  tokens = batch.tokens.copy()
  tokens[1, :, :4] = tokens[1, 0, :4]
  batch = batch.replace(tokens=np.where(batch.valid, tokens, 0))
  params = LM.init(jax.random.key(0))
  score_part = jax.jit(partial(dpo.completion_logp, LM, params))
  logp = tiny.scores_of(score_part, batch, micro=2)
  np.testing.assert_allclose(logp, summed_logp(params, batch), rtol=1e-5, atol=1e-5)


def test_micro_batches_add_up():
  batch = comparisons(rows=8)
  state, frozen = start()
  (whole, m), (parts, n) = (dpo_step(state, frozen, batch, micro=micro) for micro in (1, 4))
  tiny.assert_trees_close(whole.params, parts.params, atol=1e-5)
  assert float(m["loss"]) == pytest.approx(float(n["loss"]), rel=1e-5)


def test_over_no_pairs_the_accuracy_is_unknown():
  batch = comparisons()
  state, frozen = start()
  _, metrics = dpo_step(state, frozen, batch.replace(rank=np.ones_like(batch.rank)))
  assert np.isnan(metrics["accuracy"])
  assert metrics["loss"] == 0


def test_it_reaches_the_log_odds_of_its_labels():
  """Two completions, the first preferred by 3 to 1: the implicit reward differs by log 3."""
  lm = tiny.lm("gpt", vocab_size=4, width=32, depth=1)
  tx = optim.adamw(3e-3)
  reference = lm.init(jax.random.key(0))
  state = steps.init_state(jax.random.key(1), jax.tree.map(jnp.copy, reference), tx)
  frozen = Frozen({}, reference, {})
  tokens = np.broadcast_to(np.asarray([[0, 1, 2], [0, 2, 1]], np.int32), (4, 2, 3))
  rank = np.asarray([[1, 2]] * 3 + [[2, 1]], np.int32)
  batch = packed(tiny.Ranked(tokens, np.ones(tokens.shape, bool), rank, start=1))
  cfg = dpo.DPOConfig(beta=0.5)
  step = steps.compiled(partial(dpo.dpo_step, lm=lm, tx=tx, cfg=cfg), state)
  for _ in range(150):
    state, metrics = step(state, frozen, batch)
  part = jax.tree.map(lambda x: x[0], reward.into_parts(batch)[0])
  rewards = dpo.implicit_reward(lm, state.params, frozen, part, cfg)
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
    state, metrics = step(state, frozen, place_batch(packed(comparisons(rows=8), shards=8)))
    history.append(float(metrics["loss"]))
  return history


@cache
def on_one_device():
  return tiny.unsharded(lambda: three_steps(lambda p: p, lambda b: b))


@pytest.mark.parametrize("mesh", [(2, 2, 2)], indirect=True, ids=str)
def test_sharded_steps_equal_one_device(mesh):
  place = lambda params: sharding.place(params, sharding.shardings(LM.table))
  history, expected = three_steps(place, sharding.place_batch), on_one_device()
  np.testing.assert_allclose(history, expected, atol=1e-4)
  assert history[2] < history[0]


# --- what a step is told ---


def test_a_completion_is_the_sum_of_its_tokens(monkeypatch):
  """The stem, the branches and the key reach the model; logits are made of what is learnt alone."""
  calls = []

  def hidden(params, tokens, valid, *, branch=None, stem=None, key=None):
    calls.append((branch, stem, key))
    return jnp.arange(8.0).reshape(1, 8, 1)

  def of_tokens(lm, params, before, tokens):
    calls.append((before, tokens))
    return -tokens.astype(jnp.float32), tokens

  monkeypatch.setattr(dpo.likelihood, "of_tokens", of_tokens)
  ids = jnp.zeros((1, 8), jnp.int32)
  ranked = jnp.zeros((1, 2, 2), jnp.int32)
  stem, key = jnp.ones((1, 8, 1)), jax.random.key(0)
  part = dpo.Comparisons(ids, ids, ids + 1, ranked, ranked, ranked, stem)
  predictions = Predictions(
    before=jnp.array([[1, 3, 0, 5, 0]]),
    token=jnp.array([[10, 20, 30, 40, 99]]),
    completion=jnp.array([[0, 0, 1, 3, 4]]),
  )
  noting = LM._replace(hidden=hidden)
  logp = dpo.completion_logp(noting, {}, part.replace(predictions=predictions), key=key)
  np.testing.assert_array_equal(logp, [[-30, -30], [0, -40]])
  (branch, given_stem, given_key), (before, tokens) = calls
  assert branch is part.branch and given_stem is stem and given_key is key
  np.testing.assert_array_equal(before[0, :, 0], [1, 3, 0, 5, 0])
  np.testing.assert_array_equal(tokens, predictions.token)


def test_a_step_on_tables_by_hand(monkeypatch):
  """The policy and its reference are tables [B, K] of log-probabilities: the gradient is known.

  Of the first prompt two pairs are left, because one is tied; the second has equal completions.
  """
  calls = []

  def completion_logp(lm, params, part, *, key=None):
    calls.append(key)
    return params["logp"]

  monkeypatch.setattr(dpo, "completion_logp", completion_logp)
  ids = jnp.ones((2, 1, 9), jnp.int32)
  batch = dpo.Comparisons(
    tokens=ids,
    valid=ids,
    branch=ids,
    last=jnp.zeros((2, 1, 1, 3), jnp.int32),
    rank=jnp.array([[1, 2, 2], [1, 2, 3]])[:, None, None],
    same=jnp.array([[1, 2, 3], [1, 1, 1]])[:, None, None],
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
    cfg=dpo.DPOConfig(beta=0.5, **settings),
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
  assert calls[:2] == [None, None]  # without dropout there is no key

  calls.clear()
  _, all_pairs = run(pairs="all", dropout=True)
  # Two prompts have three pairs each by their ranks.
  assert all_pairs["loss"] == pytest.approx(expected.sum() / 6, rel=1e-5)
  assert all_pairs["reward/chosen"] == pytest.approx(0.5)
  policy_key, reference_key = calls[:2]
  assert policy_key is not None and reference_key is None


def test_dropout_is_new_in_each_step(monkeypatch):
  step_keys = []

  def gradients_of_parts(loss, params, parts, key, *, count):
    step_keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
    table = jnp.zeros((1, 3, 4))
    return jax.tree.map(jnp.zeros_like, params), jnp.float32(0), (table, table)

  monkeypatch.setattr(dpo.steps, "gradients_of_parts", gradients_of_parts)
  state = steps.init_state(jax.random.key(1), {"logp": jnp.zeros(2)}, SGD)
  batch = packed(comparisons())
  for _ in range(2):
    state, _ = dpo.dpo_step(state, Frozen({}, {}, {}), batch, lm=LM, tx=SGD)
  assert len(set(step_keys)) == 2
