"""The losses: hand-worked numbers, oracles in plain loops, masks, gradients, sharding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.test_util import check_grads as finite_differences
from oracles import losses as oracle

from instructjax import losses as plain
from instructjax import returns

losses = tiny.whole(plain)
P = jax.P
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
same = np.testing.assert_array_equal


def ppo_batch(seed=0, B=4, R=7):
  """(logp, old_logp, advantage, mask): ragged rows, one with a gap, ratios on both sides of the
  clip.
  """
  rng = np.random.default_rng(seed)
  old_logp = -rng.exponential(1.5, (B, R))
  logp = old_logp + rng.normal(0, 0.3, (B, R))
  mask = np.arange(R) < rng.integers(2, R + 1, B)[:, None]
  mask[0] = [True, True, False, True, False, True, False][:R]
  return logp, old_logp, rng.normal(0, 1, (B, R)), mask


def ranked_batch(seed=0, B=5, K=9):
  """(score, rank): K from 4 to 9 with padding and ties, one prompt all ties and one all padding."""
  rng = np.random.default_rng(seed)
  rank = rng.integers(1, 6, (B, K)) * (np.arange(K) < rng.integers(4, K + 1, B)[:, None])
  rank[1] = np.where(rank[1] > 0, 2, 0)
  rank[-1] = 0
  return rng.normal(0, 2, (B, K)), rank


def check_grads(f, x):
  f = jax.jit(f)
  finite_differences(
    lambda x: f(jnp.asarray(x)), (x,), order=1, modes=["fwd", "rev"], atol=2e-3, rtol=2e-2, eps=1e-2
  )


def arrays(*xs):
  return [
    jnp.asarray(x, jnp.float32) if np.asarray(x).dtype.kind == "f" else jnp.asarray(x) for x in xs
  ]


# Log-probabilities


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_token_logp_and_entropy_match_loops(scale):
  rng = np.random.default_rng(0)
  logits, tokens = rng.normal(0, scale, (3, 5, 11)), rng.integers(0, 11, (3, 5))
  x, ids = arrays(logits, tokens)
  close(losses.token_logp(x, ids), oracle.token_logp(logits, tokens), atol=1e-5)
  close(losses.entropy(x), oracle.entropy(logits), atol=2e-5)


def test_uniform_logits_by_hand():
  logits = jnp.zeros((2, 8))
  close(losses.token_logp(logits, jnp.array([0, 7])), [-np.log(8)] * 2)
  close(losses.entropy(logits), [np.log(8)] * 2)


def test_token_logp_survives_huge_logits_and_a_shift():
  logits = jax.random.normal(jax.random.key(0), (4, 9))
  tokens = jnp.array([0, 3, 5, 8])
  close(losses.token_logp(logits + 1e4, tokens), losses.token_logp(logits, tokens), atol=2e-3)
  close(losses.entropy(logits + 1e4), losses.entropy(logits), atol=2e-3)
  close(losses.token_logp(jnp.array([[3e38, -3e38]]), jnp.array([0])), [0.0])


def test_token_logp_gradient_is_onehot_minus_softmax():
  logits = jax.random.normal(jax.random.key(0), (4, 9))
  tokens = jnp.array([0, 3, 5, 8])
  grad = jax.grad(lambda x: losses.token_logp(x, tokens).sum())(logits)
  close(grad, jax.nn.one_hot(tokens, 9) - jax.nn.softmax(logits))
  check_grads(lambda x: losses.token_logp(x, tokens), logits)
  check_grads(losses.entropy, logits)


def test_bfloat16_logits_give_float32():
  logits = jax.random.normal(jax.random.key(0), (3, 5), jnp.bfloat16)
  tokens = jnp.array([0, 1, 4])
  for out in losses.token_logp(logits, tokens), losses.entropy(logits), losses.temper(logits, 0.5):
    assert out.dtype == jnp.float32
  same(losses.token_logp(logits, tokens), losses.token_logp(logits.astype(jnp.float32), tokens))


def test_token_logp_holds_no_array_of_the_vocabulary_beyond_the_gradient():
  """Forward: none.  Backward: only the gradient, so that with the logits two [B, T, V] arrays are
  alive.
  """
  B, T, V = 8, 16, 2048
  logits, tokens = (
    jax.ShapeDtypeStruct((B, T, V), jnp.float32),
    jax.ShapeDtypeStruct((B, T), jnp.int32),
  )
  whole = 4 * B * T * V
  for f in losses.token_logp, jax.grad(lambda x, i: losses.token_logp(x, i).sum()):
    assert (
      jax.jit(f).lower(logits, tokens).compile().memory_analysis().temp_size_in_bytes < 0.1 * whole
    )


def test_temper_divides_and_bans():
  logits = jnp.array([[1.0, 2.0, 3.0, 4.0]])
  close(losses.temper(logits, 2.0), [[0.5, 1.0, 1.5, 2.0]])
  shaped = losses.temper(logits, 0.5, banned=(1, 3))
  p = jax.nn.softmax(shaped)[0]
  same(p[jnp.array([1, 3])], 0.0)
  close(p[2] / p[0], np.exp(4.0))


def test_temperature_one_is_exact():
  logits = jax.random.normal(jax.random.key(1), (64, 33)) * 7
  same(losses.temper(logits), logits)
  assert (np.asarray(losses.temper(logits, 1.0 + 1e-6)) != np.asarray(logits)).any()


def test_temper_rejects_what_makes_no_distribution():
  with pytest.raises(ValueError, match="above 0, got 0"):
    losses.temper(jnp.zeros((1, 4)), 0.0)
  with pytest.raises(IndexError):
    losses.temper(jnp.zeros((1, 4)), 1.0, banned=(4,))


def test_banned_ids_keep_everything_finite():
  """A padded position holds id 0, which may be banned: its log-probability times a mask is 0, not
  NaN.
  """
  logits = losses.temper(jax.random.normal(jax.random.key(0), (2, 6)), 1.0, banned=(0,))
  logp = losses.token_logp(logits, jnp.array([0, 3]))
  same((logp * jnp.array([False, True]))[0], 0.0)
  close(losses.entropy(logits), losses.entropy(logits[:, 1:]))
  close(
    losses.entropy(jnp.where(logits == losses.BANNED, -jnp.inf, logits)),
    losses.entropy(logits[:, 1:]),
  )
  grad = jax.grad(lambda x: losses.entropy(losses.temper(x, 1.0, (0,))).sum())(logits)
  assert np.isfinite(grad).all() and (grad[:, 0] == 0).all()


# Weights


def test_weights_by_hand():
  mask = jnp.array([[True, True, True], [True, False, False], [False, False, False]])
  close(losses.token_mean(mask), [[1 / 4] * 3, [1 / 4, 0, 0], [0, 0, 0]])
  close(losses.sequence_mean(mask), [[1 / 6] * 3, [1 / 2, 0, 0], [0, 0, 0]])
  close(losses.sequence_sum(mask), [[1 / 2] * 3, [1 / 2, 0, 0], [0, 0, 0]])


def test_weights_of_an_empty_batch_are_zero():
  for weight in losses.WEIGHTS.values():
    same(weight(jnp.zeros((2, 3), bool)), 0.0)
  same(losses.pair_weights(jnp.zeros((2, 3), jnp.int32)), 0.0)


@pytest.mark.parametrize(
  ("weight", "mean"),
  [
    (losses.token_mean, oracle.mean_over_tokens),
    (losses.sequence_mean, oracle.mean_over_sequences),
  ],
)
def test_losses_match_loops_under_either_mean(weight, mean):
  logp, old_logp, advantage, mask = ppo_batch()
  lp, old, adv, m = arrays(logp, old_logp, advantage, mask)
  w = weight(m)
  close(losses.nll(lp, w), mean(lambda b, t: -logp[b, t], mask))
  term = oracle.policy_term(logp, old_logp, advantage, 0.2)
  close(losses.clipped_policy(lp, old, adv, w), mean(term, mask))
  for clip in (0.2, None):
    term = oracle.value_term(logp, old_logp, advantage, clip)
    close(losses.clipped_value(lp, old, adv, w, clip=clip), mean(term, mask))


def test_pair_weights_by_hand():
  rank = jnp.array([[1, 2, 2], [2, 1, 0], [1, 1, 0]])
  close(losses.pair_weights(rank)[0], [[0, 1 / 4, 1 / 4], [0, 0, 0], [0, 0, 0]])
  close(losses.pair_weights(rank)[1], [[0, 0, 0], [1 / 2, 0, 0], [0, 0, 0]])
  same(losses.pair_weights(rank)[2], 0.0)
  close(losses.pair_weights(rank, "all")[0], [[0, 1 / 9, 1 / 9], [0, 0, 0], [0, 0, 0]])
  with pytest.raises(ValueError, match="'pairs'"):
    losses.pair_weights(rank, "pairs")


# Reward model


@pytest.mark.parametrize("normaliser", ["remaining", "all"])
@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_ranking_matches_a_double_loop(normaliser, margin):
  score, rank = ranked_batch()
  r, k = arrays(score, rank)
  weight = losses.pair_weights(k, normaliser)
  close(losses.ranking(r, weight, margin=margin), oracle.ranking(score, rank, normaliser, margin))
  each = jnp.full(weight.shape, margin)
  close(losses.ranking(r, weight, margin=each), losses.ranking(r, weight, margin=margin))


def test_ranking_by_hand():
  """Two completions, the better one ahead by 2: log(1 + e^-2)."""
  weight = losses.pair_weights(jnp.array([[2, 1]]))
  close(losses.ranking(jnp.array([[1.0, 3.0]]), weight), 0.12692801)
  close(losses.ranking(jnp.array([[3.0, 1.0]]), weight), 2.12692801)


def test_every_prompt_weighs_the_same_and_all_pairs_of_a_prompt_count():
  same(losses.pair_weights(jnp.arange(1, 10)[None]) > 0, np.triu(np.ones((9, 9), bool), 1)[None])
  _, rank = ranked_batch()
  share = losses.pair_weights(jnp.asarray(rank)).sum((1, 2))
  close(share, [1 / 3, 0, 1 / 3, 1 / 3, 0])


def test_equal_k_is_the_mean_of_shuffled_pairs():
  """With one K for all, the grouped loss and its gradient are those of independent pairs (footnote
  3).
  """
  rng = np.random.default_rng(3)
  r = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
  rank = np.stack([rng.permutation(4) + 1 for _ in range(6)])
  pairs = [(b, i, j) for b in range(6) for i, j in oracle.pairs(rank[b])]
  b, i, j = np.array(rng.permutation(pairs)).T
  shuffled = lambda r: jnp.mean(jax.nn.softplus(r[b, j] - r[b, i]))
  grouped = lambda r: losses.ranking(r, losses.pair_weights(jnp.asarray(rank)))
  close(grouped(r), shuffled(r))
  close(jax.grad(grouped)(r), jax.grad(shuffled)(r))


def test_ranking_ignores_a_common_shift_and_centering_removes_it():
  r, k = arrays(*ranked_batch(seed=4))
  weight = losses.pair_weights(k)
  close(losses.ranking(r + 5.0, weight), losses.ranking(r, weight), rtol=1e-4)
  close(losses.centering(r, weight), oracle.centering(*ranked_batch(seed=4)))
  close(jax.grad(losses.ranking)(r, weight).sum(), 0.0)
  assert losses.centering(r + 5.0, weight) > losses.centering(r, weight)


def test_ranking_is_stable_at_extreme_scores():
  weight = losses.pair_weights(jnp.array([[1, 2]]))
  value, grad = jax.value_and_grad(losses.ranking)(jnp.array([[-1e4, 1e4]]), weight)
  close(value, 2e4)
  close(grad, [[-1.0, 1.0]])
  same(losses.ranking(jnp.array([[1e4, -1e4]]), weight), 0.0)


def test_ranking_accuracy_matches_loops_and_halves_equal_scores():
  score, rank = ranked_batch(seed=5)
  score = np.round(score)
  right, pairs = losses.ranking_accuracy(*arrays(score, rank))
  want, count = oracle.ranking_accuracy(score, rank)
  same(right, want)
  same(pairs, count)
  assert (want % 1 == 0.5).any()


def test_best_of_four_is_the_softmax_of_ziegler():
  """Scores 0..3, the best is the third: log(1 + e + e² + e³) - 2   (Ziegler et al. 2019, Eq. 1)."""
  score, rank = jnp.arange(4.0)[None], jnp.array([[2, 2, 1, 2]])
  close(losses.best_of_k(score, rank, jnp.ones(1)), np.log(1 + np.e + np.e**2 + np.e**3) - 2)
  close(
    jax.grad(losses.best_of_k)(score, rank, jnp.ones(1)),
    jax.nn.softmax(score) - jax.nn.one_hot([2], 4),
  )


def test_best_of_k_matches_loops():
  score, rank = ranked_batch(seed=6)
  rank[0, :2] = 1
  counted = (rank == 1).any(1)
  assert 1 < counted.sum() < len(rank)
  got = losses.best_of_k(*arrays(score, rank), jnp.full(len(rank), 1 / counted.sum(), jnp.float32))
  close(got, oracle.best_of_k(score, rank))


def test_two_completions_make_best_of_k_and_ranking_one_loss():
  r = jax.random.normal(jax.random.key(0), (5, 2))
  rank = jnp.array([[1, 2]] * 5)
  close(losses.best_of_k(r, rank, jnp.full(5, 0.2)), losses.ranking(r, losses.pair_weights(rank)))


def test_dpo_matches_loops_and_is_log_two_at_the_reference():
  rows = np.random.default_rng(0).normal(-20, 5, (4, 6))
  weight = jnp.full(6, 1 / 6)
  close(losses.dpo(*arrays(*rows), weight, beta=0.1), oracle.dpo(*rows, 0.1))
  ref = jnp.asarray(rows[0], jnp.float32)
  close(losses.dpo(ref, ref, ref, ref, weight, beta=0.1), np.log(2))


# PPO


def test_clipped_policy_by_hand():
  """With ρ = 2, 1/2, A = ±1, ε = .2: max(-2, -1.2), max(2, 1.2), max(-.5, -.8), max(.5, .8)."""
  logp = jnp.log(jnp.array([[2.0, 2.0, 0.5, 0.5]]))
  advantage = jnp.array([[1.0, -1.0, 1.0, -1.0]])
  f = lambda lp: losses.clipped_policy(lp, jnp.zeros((1, 4)), advantage, jnp.ones((1, 4)))
  close(f(logp), -1.2 + 2.0 - 0.5 + 0.8)
  close(jax.grad(f)(logp), [[0.0, 2.0, -0.5, 0.0]])


def test_clipped_value_by_hand():
  """V 1, V_old 0, target 2: max(1, (.2 - 2)²)/2; target -1: max(4, (.2 + 1)²)/2."""
  one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
  f = lambda v, target, **clip: losses.clipped_value(v, zero, target, one, **clip)
  close(f(one, 2 * one), 1.62)
  close(f(one, -one), 2.0)
  close(f(one, 2 * one, clip=None), 0.5)
  close(jax.grad(f)(one, 2 * one), [[0.0]])
  close(jax.grad(f)(one, -one), [[2.0]])


def test_first_minibatch_is_reinforce_with_a_baseline():
  """At π = π_old the ratio is 1, nothing is clipped and the gradient is that of - Σ w A log π."""
  logp, _, adv, mask = arrays(*ppo_batch())
  w = losses.token_mean(mask)
  grad = jax.grad(losses.clipped_policy)(logp, logp, adv, w)
  close(grad, -w * adv)
  value = jax.grad(losses.clipped_value)(logp, logp, adv, w)
  close(value, w * (logp - adv))
  metrics = losses.policy_metrics(logp, logp, adv, mask)
  for name, want in {
    "approxkl_avg": 0.0,
    "clipfrac_avg": 0.0,
    "ratio_max": 1.0,
    "ratio_min": 1.0,
  }.items():
    same(metrics[f"policy/{name}"], want)
  same(metrics["val/ratio"], 1.0)


def test_metrics_match_loops():
  batch = ppo_batch(seed=2)
  got = losses.policy_metrics(*arrays(*batch), clip=0.2)
  want = oracle.policy_metrics(*batch, 0.2)
  assert got.keys() == want.keys()
  assert 0 < want["policy/clipfrac_avg"] < 1
  for name in want:
    close(got[name], want[name], err_msg=name)
  for clip in (0.2, None):
    got = losses.value_metrics(*arrays(*batch), clip=clip)
    want = oracle.value_metrics(*batch, np.inf if clip is None else clip)
    assert got.keys() == want.keys()
    for name in want:
      close(got[name], want[name], err_msg=name, rtol=1e-4)


def test_explained_variance_has_its_anchors():
  target = jax.random.normal(jax.random.key(0), (3, 5))
  mask = jnp.ones((3, 5), bool)
  f = lambda value: losses.value_metrics(value, value, target, mask)["val/explained_var"]
  close(f(target), 1.0)
  close(f(jnp.zeros((3, 5))), 0.0)
  close(f(2 * target), 0.0, atol=1e-5)


def test_approxkl_is_not_diluted_by_padding():
  """A mean that counts padding makes approxkl 1.5 times too small on a batch two thirds full."""
  mask = jnp.arange(6)[None] < jnp.array([[6], [4], [2]])
  d = jnp.full((3, 6), 0.1)
  got = losses.policy_metrics(d, jnp.zeros((3, 6)), d, mask)["policy/approxkl_avg"]
  close(got, 0.005)
  close(got / jnp.mean(0.5 * jnp.square(d * mask)), 1.5)


def test_padding_with_a_real_id_is_told_by_the_mask_alone():
  """Nothing is read off token ids: a response of nothing but id 0 carries as much loss as any
  other.
  """
  logits = jax.random.normal(jax.random.key(0), (2, 4, 6))
  mask = jnp.array([[True] * 4, [True, True, False, False]])
  f = lambda ids: losses.nll(losses.token_logp(logits, ids), losses.token_mean(mask))
  zeros = jnp.zeros((2, 4), jnp.int32)
  close(f(zeros), -jnp.where(mask, jax.nn.log_softmax(logits)[..., 0], 0).sum() / 6)
  same(f(zeros), f(zeros.at[1, 2:].set(5)))


# Everything: masks, sums, transformations, dtypes, sharding


def loss_of(name):
  """A loss as a function of one differentiable array and a mask, with its shape."""
  logp, old, adv, _ = arrays(*ppo_batch())
  by_token = {
    "nll": lambda x, m: losses.nll(x, losses.token_mean(m)),
    "policy": lambda x, m: losses.clipped_policy(x, old, adv, losses.token_mean(m)),
    "value": lambda x, m: losses.clipped_value(x, old, adv, losses.sequence_mean(m)),
    "value without clip": lambda x, m: losses.clipped_value(
      x, old, adv, losses.token_mean(m), clip=None
    ),
  }
  rank = jnp.array(
    [[1, 2, 3, 4, 5, 6, 7], [1, 1, 2, 2, 3, 3, 4], [7, 6, 5, 4, 3, 2, 1], [1, 2] * 3 + [1]]
  )
  ranks = lambda m: jnp.where(m, rank, 0)
  by_completion = {
    "ranking": lambda x, m: losses.ranking(x, losses.pair_weights(ranks(m))),
    "centering": lambda x, m: losses.centering(x, losses.pair_weights(ranks(m))),
    "best of k": lambda x, m: losses.best_of_k(x, ranks(m), jnp.full(4, 0.25)),
  }
  return (by_token | by_completion)[name], logp


NAMES = ["nll", "policy", "value", "value without clip", "ranking", "centering", "best of k"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_masked_changes_neither_loss_nor_gradient(name, garbage):
  loss, x = loss_of(name)
  mask = jnp.asarray(ppo_batch()[3])
  value, grad = jax.value_and_grad(loss)(x, mask)
  spoiled = jax.value_and_grad(loss)(jnp.where(mask, x, garbage), mask)
  same(spoiled[0], value)
  same(spoiled[1], grad)
  same(jnp.where(mask, 0, grad), 0.0)
  assert np.isfinite(grad).all() and np.abs(grad).max() > 0


@pytest.mark.parametrize("garbage", [np.nan, -np.inf])
def test_masked_metrics_and_data_may_hold_anything(garbage):
  logp, old, adv, mask = arrays(*ppo_batch())
  spoil = lambda x: jnp.where(mask, x, garbage)
  for f in losses.policy_metrics, losses.value_metrics:
    clean, dirty = f(logp, old, adv, mask), f(spoil(logp), spoil(old), spoil(adv), mask)
    for name in clean:
      same(clean[name], dirty[name], err_msg=name)
  for f in losses.clipped_policy, losses.clipped_value:
    grad = jax.grad(f)(spoil(logp), spoil(old), spoil(adv), losses.token_mean(mask))
    same(grad, jax.grad(f)(logp, old, adv, losses.token_mean(mask)))
  weight = jnp.array([0.5, 0.0, 0.5])
  bad = jnp.array([-1.0, garbage, -3.0])
  f = lambda x: losses.dpo(x, jnp.zeros(3), jnp.zeros(3), jnp.zeros(3), weight, beta=0.1)
  assert np.isfinite(f(bad)) and np.isfinite(jax.grad(f)(bad)).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_match_finite_differences(name):
  loss, x = loss_of(name)
  mask = jnp.asarray(ppo_batch()[3])
  check_grads(lambda x: loss(x, mask), x)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), parts=st.sampled_from([2, 4]))
def test_micro_batches_add_up_exactly(seed, parts):
  """Weights are shares of the whole batch: unequal micro-batches sum to its loss and gradient."""
  logp, old, adv, mask = arrays(*ppo_batch(seed))
  for mean in losses.WEIGHTS.values():
    batch = logp, old, adv, mean(mask)
    for f in losses.clipped_policy, losses.clipped_value:
      whole = jax.value_and_grad(f)(*batch)
      micro = [jax.value_and_grad(f)(*(x[i::parts] for x in batch)) for i in range(parts)]
      close(sum(value for value, _ in micro), whole[0], atol=1e-5)
      for i, (_, grad) in enumerate(micro):
        close(grad, whole[1][i::parts])


def test_vmap_over_leading_dimensions():
  batches = [arrays(*ppo_batch(seed)) for seed in range(3)]
  stacked = [jnp.stack(xs) for xs in zip(*batches)]
  f = lambda lp, old, adv, m: losses.clipped_policy(lp, old, adv, losses.token_mean(m))
  close(jax.vmap(f)(*stacked), jnp.stack([f(*b) for b in batches]))
  logits = jax.random.normal(jax.random.key(0), (3, 4, 7, 5))
  ids = jnp.ones((3, 4, 7), jnp.int32)
  close(jax.vmap(losses.token_logp)(logits, ids), losses.token_logp(logits, ids))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_float32_by_construction_under_strict_promotion(dtype):
  """The types alone: nothing is computed."""
  logp, old, adv, mask = arrays(*ppo_batch())
  lp, old, adv = (x.astype(dtype) for x in (logp, old, adv))
  score, rank = arrays(*ranked_batch())

  def everything(lp, old, adv, mask, score, rank):
    w, sw, pw = losses.token_mean(mask), losses.sequence_mean(mask), losses.pair_weights(rank)
    share = jnp.full(len(rank), 0.2, jnp.float32)
    return [
      w,
      sw,
      pw,
      losses.pair_weights(rank, "all"),
      losses.temper(lp, 0.7, (1,)),
      losses.token_logp(lp, jnp.zeros(4, jnp.int32)),
      losses.entropy(lp),
      losses.nll(lp, w),
      losses.clipped_policy(lp, old, adv, w),
      losses.clipped_value(lp, old, adv, w),
      losses.clipped_value(lp, old, adv, w, clip=None),
      losses.ranking(score, pw),
      losses.centering(score, pw),
      losses.best_of_k(score, rank, share),
      *losses.ranking_accuracy(score, rank),
      losses.dpo(
        lp[:, 0], lp[:, 1], old[:, 0], old[:, 1], jnp.full(4, 0.25, jnp.float32), beta=0.1
      ),
      *losses.policy_metrics(lp, old, adv, mask).values(),
      *losses.value_metrics(lp, old, adv, mask).values(),
    ]

  with jax.numpy_dtype_promotion("strict"):
    outs = jax.eval_shape(everything, lp, old, adv, mask, score.astype(dtype), rank)
  assert {x.dtype for x in outs} == {jnp.dtype("float32")}


@pytest.fixture(scope="module")
def explicit():
  return jax.make_mesh((2, 2, 2), ("data", "fsdp", "model"), axis_types=(AxisType.Explicit,) * 3)


ROWS = ("data", "fsdp")


@pytest.mark.parametrize("vocabulary", [None, "model"])
def test_logits_on_an_explicit_mesh(explicit, vocabulary):
  """Rows over data and fsdp, the vocabulary whole or over model: same numbers, results sharded by
  rows.
  """
  rng = np.random.default_rng(0)
  logits, tokens = rng.normal(0, 3, (8, 5, 16)).astype(np.float32), rng.integers(1, 16, (8, 5))

  def f(x, ids):
    x = losses.temper(x, 0.7, (0, 9))
    return losses.token_logp(x, ids).sum() - 0.1 * losses.entropy(x).sum()

  want = jax.value_and_grad(f)(*arrays(logits, tokens))
  with jax.set_mesh(explicit):
    x = jax.device_put(logits, P(ROWS, None, vocabulary))
    ids = jax.device_put(tokens, P(ROWS, None))
    got = jax.jit(jax.value_and_grad(f))(x, ids)
    assert got[1].sharding.spec == P(ROWS, None, vocabulary)
    assert jax.jit(losses.token_logp)(x, ids).sharding.spec == P(ROWS, None)
    assert jax.jit(losses.entropy)(x).sharding.spec == P(ROWS, None)
    moved = jax.jit(losses.token_logp).lower(x, ids).compile().as_text()
  close(got[0], want[0])
  close(got[1], want[1])
  assert "all-gather" not in moved and "all-to-all" not in moved


def test_losses_on_an_explicit_mesh(explicit):
  logp, old, adv, mask = arrays(*ppo_batch(B=8))
  score, rank = arrays(*ranked_batch(B=8))

  def tokens(lp, old, adv, mask):
    w = sum(weigh(mask) for weigh in losses.WEIGHTS.values())
    total = (
      losses.nll(lp, w)
      + losses.clipped_policy(lp, old, adv, w)
      + losses.clipped_value(lp, old, adv, w)
    )
    return total, losses.policy_metrics(lp, old, adv, mask) | losses.value_metrics(
      lp, old, adv, mask
    )

  def completions(score, rank):
    w = losses.pair_weights(rank)
    total = losses.ranking(score, w) + losses.centering(score, w)
    share = jnp.full_like(score[:, 0], 0.1)
    return total + losses.best_of_k(score, rank, share), losses.ranking_accuracy(score, rank)

  for f, batch in (tokens, (logp, old, adv, mask)), (completions, (score, rank)):
    want = jax.jit(jax.value_and_grad(f, has_aux=True))(*batch)
    with jax.set_mesh(explicit):
      placed = jax.device_put(batch, P(ROWS, None))
      got = jax.jit(jax.value_and_grad(f, has_aux=True))(*placed)
      assert got[1].sharding.spec == P(ROWS, None)
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-4), jax.device_get(got), jax.device_get(want))


def test_shapes_that_would_broadcast_are_refused():
  """One value a row beside one a token gives a number, and a wrong one."""
  row, mask = jnp.zeros((2, 1)), jnp.ones((2, 3), bool)
  with pytest.raises(AssertionError):
    losses._zero_outside.__wrapped__(mask, row)  # not compiled as one


@pytest.mark.parametrize("log_ratio", [-100.0, -30.0, 30.0, 50.0, 100.0, 1e9])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_no_log_ratio_makes_the_policy_loss_or_its_gradient_nan(log_ratio, advantage):
  """A ratio of e^100 is infinite in float32: 0 times it was NaN, in the loss or in the gradient."""

  def loss(logp):
    return losses.clipped_policy(logp, jnp.zeros(1), jnp.full(1, advantage), jnp.ones(1), clip=0.2)

  value, gradient = jax.value_and_grad(loss)(jnp.full(1, log_ratio))
  assert np.isfinite(value) and np.isfinite(gradient).all()
  if advantage == 0 or (advantage > 0) == (log_ratio > 0):
    # Nothing to learn, or clipped: the policy has moved far enough in the right direction.
    assert gradient[0] == 0
  elif log_ratio > 0:
    assert gradient[0] > 0  # a descent makes the token less likely again


def test_dual_clipped_policy_by_hand():
  """Ratios of 4, 2, ½ and 4 with A = -1, -1, -1 and 1: the bound of 3 holds the first alone."""
  logp = jnp.log(jnp.array([[4.0, 2, 0.5, 4]]))
  advantage = jnp.array([[-1.0, -1, -1, 1]])
  f = lambda lp: losses.dual_clipped_policy(lp, jnp.zeros((1, 4)), advantage, jnp.ones((1, 4)))
  close(f(logp), 3 + 2 + 0.8 - 1.2)
  close(jax.grad(f)(logp), [[0, 2, 0, 0]])
  with pytest.raises(ValueError, match="the bound of a ratio is above 1, got 1"):
    losses.dual_clipped_policy(logp, logp, advantage, jnp.ones((1, 4)), bound=1)


def test_the_clip_above_one_may_be_another():
  logp = jnp.log(jnp.array([[1.25, 1.25, 0.75, 0.6]]))
  advantage = jnp.array([[1.0, 1, -1, -1]])
  f = lambda lp: losses.clipped_policy(
    lp, jnp.zeros((1, 4)), advantage, jnp.ones((1, 4)), clip=0.2, clip_high=0.28
  )
  close(f(logp), -1.25 - 1.25 + 0.8 + 0.8)
  close(jax.grad(f)(logp), [[-1.25, -1.25, 0, 0]])


def test_the_term_of_the_kl_by_hand():
  """With d = log 2 and -log 2: k3 is ½ - 1 + log 2 and 2 - 1 - log 2; its gradient 1 - e^-d."""
  d = jnp.log(jnp.array([[2.0, 0.5, 3.0]]))
  weight = jnp.array([[0.5, 0.5, 0.0]])
  f = lambda lp, **more: losses.kl(lp, jnp.zeros((1, 3)), weight, **more)
  close(f(d), 0.25)
  close(jax.grad(f)(d), [[0.25, -0.5, 0]])
  close(f(d, estimate=returns.kl_k2), 0.5 * np.log(2) ** 2)


def test_the_bonus_of_the_entropy_by_hand():
  entropy, weight = jnp.array([[2.0, 1.0, jnp.nan]]), jnp.array([[0.5, 0.5, 0.0]])
  f = lambda h: losses.entropy_bonus(h, weight, coef=0.1)
  close(f(entropy), -0.15)
  close(jax.grad(f)(entropy), [[-0.05, -0.05, 0]])


def test_the_ratio_is_exact_where_it_can_be():
  d = jnp.array([-80.0, -1.0, 0.0, 0.5, 39.0])
  np.testing.assert_array_equal(losses.probability_ratio(d, jnp.zeros(5)), jnp.exp(d))


def test_extreme_ratios_are_those_of_marked_tokens():
  """The ratio in the padding is 1, which is above all of one row and below all of another."""
  mask = jnp.array([[True, True, False]])
  advantage = jnp.zeros((1, 3))
  for sign in (1, -1):
    logp = sign * jnp.log(jnp.array([[2.0, 4.0, 9.0]]))
    metrics = losses.policy_metrics(logp, jnp.zeros((1, 3)), advantage, mask)
    extremes = sorted([2.0**sign, 4.0**sign])
    close([metrics["policy/ratio_min"], metrics["policy/ratio_max"]], extremes)


def test_equal_completions_are_no_pair():
  """Of three pairs the one of equal rows goes; a second prompt of equal rows does not count."""
  rank = jnp.array([[1, 2, 3], [1, 2, 0]])
  distinct = jnp.ones((2, 3, 3), bool).at[0, 0, 1].set(False).at[1].set(False)
  weight = losses.pair_weights(rank, distinct=distinct)
  close(weight, [[[0, 0, 1 / 2], [0, 0, 1 / 2], [0, 0, 0]], np.zeros((3, 3))])
  score = jnp.array([[2.0, 2.0, 1.0], [0.0, 1.0, 0.0]])
  right, pairs = losses.ranking_accuracy(score, rank, distinct=distinct)
  same(right, [2, 0])
  same(pairs, [2, 0])


def test_labels_of_pairs_take_the_place_of_ranks():
  """A circle of which one pair counts half, and a prompt with one pair; ranks say who is there."""
  rank = jnp.array([[1, 1, 1], [1, 1, 0]])
  labels = jnp.array([[[0, 1, 0], [0, 0, 1], [0.5, 0, 0]], [[0, 0, 0], [2, 0, 7], [0, 0, 0]]])
  weight = losses.pair_weights(rank, labels=labels)
  close(weight[0], np.array([[0, 2, 0], [0, 0, 2], [1, 0, 0]]) / 10)
  # The label of a completion that is not there counts nothing.
  close(weight[1], [[0, 0, 0], [1 / 2, 0, 0], [0, 0, 0]])
  close(losses.pair_weights(rank, "all", labels=labels)[0], np.array(labels[0]) / 6)
  # A pair whose completions are one row is taken out, as it is with ranks.
  distinct = jnp.ones((2, 3, 3), bool).at[0, 0, 1].set(False)
  left = losses.pair_weights(rank, labels=labels, distinct=distinct)[0]
  close(left, np.array([[0, 0, 0], [0, 0, 2], [1, 0, 0]]) / 6)
  # In the accuracy each pair counts once: 0 over 1 and 1 over 2 are right, 2 over 0 is wrong.
  score = jnp.array([[3.0, 2.0, 1.0], [0.0, 1.0, 0.0]])
  correct, pairs = losses.ranking_accuracy(score, rank, labels=labels)
  close(correct, [2, 1])
  close(pairs, [3, 1])
