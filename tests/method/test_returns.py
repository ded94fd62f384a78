"""Rewards and advantages: hand-worked numbers, published fixtures, plain loops, masks, sharding."""

from functools import partial
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from oracles import returns as oracle

from instructjax import returns as plain

returns = tiny.whole(plain)
P = jax.P
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
same = np.testing.assert_array_equal
PLACES = {False: returns.at_last_token, True: returns.after_last_token}


def episodes(seed=0, B=4, R=7, gap=False):
  """(score, kl, value, mask): responses of 1 to R tokens, the longest fills its row; `gap`
  interrupts one.
  """
  rng = np.random.default_rng(seed)
  lengths = np.concatenate([[R, 1], rng.integers(1, R + 1, B - 2)])
  mask = np.arange(R) < lengths[:, None]
  if gap:
    mask[0] = [True, False, False, True, True, False, True][:R]
  return rng.normal(0, 1, B), rng.normal(0, 0.5, (B, R)), rng.normal(0, 1, (B, R)), mask


def arrays(*xs):
  return [
    jnp.asarray(x, jnp.float32) if np.asarray(x).dtype.kind == "f" else jnp.asarray(x) for x in xs
  ]


# Masked statistics


def test_masked_statistics_match_loops():
  _, kl, _, mask = episodes(gap=True)
  x, m = arrays(kl, mask)
  close(returns.masked_mean(x, m), oracle.mean(kl, mask))
  for unbiased in (False, True):
    close(returns.masked_var(x, m, unbiased=unbiased), oracle.var(kl, mask, unbiased))
    for shift in (False, True):
      got = returns.whiten(x, m, shift_mean=shift, unbiased=unbiased)
      close(got, oracle.whiten(kl, mask, shift, unbiased), rtol=1e-4)


def test_whitening_table():
  """The table of "N implementation details of RLHF with PPO": 1.2 .. 2.0, by either variance."""
  x = jnp.array([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
  every = jnp.ones((3, 3), bool)
  biased = [
    [0.05080712, 0.4381051, 0.8254035],
    [1.2127019, 1.6, 1.9872996],
    [2.3745968, 2.7618952, 3.1491938],
  ]
  close(returns.whiten(x, every, shift_mean=False), biased)
  unbiased = returns.whiten(x, every, shift_mean=False, unbiased=True)
  close(unbiased[0], [0.1394, 0.5046, 0.8697], atol=5e-5)
  close(unbiased[2], [2.3303, 2.6954, 3.0606], atol=5e-5)


def test_whitened_advantages_have_mean_0_and_variance_1_over_the_mask():
  _, kl, _, mask = arrays(*episodes(seed=3))
  out = returns.whiten(5 + 3 * kl, mask)
  close(returns.masked_mean(out, mask), 0.0)
  close(returns.masked_var(out, mask), 1.0)
  same(jnp.where(mask, 0, out), 0.0)


def test_statistics_of_nothing_and_of_one_token_are_finite():
  x = jnp.full((2, 3), 7.0)
  none, one = jnp.zeros((2, 3), bool), jnp.zeros((2, 3), bool).at[0, 1].set(True)
  same(returns.masked_mean(x, none), 0.0)
  same(returns.whiten(x, none), 0.0)
  same(returns.masked_mean(x, one), 7.0)
  for unbiased in (False, True):
    same(returns.masked_var(x, one, unbiased=unbiased), 0.0)
    same(returns.whiten(x, one, unbiased=unbiased), 0.0)


# KL


def test_kl_estimators_by_hand():
  """d = log 2: log 2, (log 2)²/2, 1/2 - 1 + log 2."""
  logp, ref = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))
  d = np.log(2)
  close(returns.kl_k1(logp, ref), [d])
  close(returns.kl_k2(logp, ref), [d * d / 2])
  close(returns.kl_k3(logp, ref), [d - 0.5])


def test_expectations_of_the_kl_estimators():
  """Over the whole support k1 and k3 average to KL(π‖ρ); only the gradient of k2 averages to its
  gradient.
  """
  key = jax.random.key(0)
  logits, ref = jax.random.normal(key, (2, 6))
  log_rho = jax.nn.log_softmax(ref)
  p = jax.nn.softmax(logits)
  true = lambda x: jnp.sum(jax.nn.softmax(x) * (jax.nn.log_softmax(x) - log_rho))
  mean = lambda k: (
    lambda x: jnp.sum(p * k(jax.nn.log_softmax(x), log_rho))
  )  # tokens drawn from π, held fixed
  close(mean(returns.kl_k1)(logits), true(logits))
  close(mean(returns.kl_k3)(logits), true(logits))
  close(jax.grad(mean(returns.kl_k2))(logits), jax.grad(true)(logits))
  close(jax.grad(mean(returns.kl_k1))(logits), 0.0)
  forward = lambda x: jnp.sum(jax.nn.softmax(ref) * (log_rho - jax.nn.log_softmax(x)))
  close(jax.grad(mean(returns.kl_k3))(logits), jax.grad(forward)(logits))


@given(st.floats(-20, 20, width=32), st.floats(-20, 20, width=32))
@settings(max_examples=50, deadline=None)
def test_k3_is_never_negative(a, b):
  assert returns.kl_k3(jnp.float32(a), jnp.float32(b)) >= 0


def test_k3_keeps_its_digits_near_zero():
  """e^-d - 1 + d is d²/2 for small d; a plain exp would return rounding error."""
  d = jnp.float32(1e-3)
  close(returns.kl_k3(d, jnp.float32(0)), 5e-7, rtol=0.1, atol=0)


# Rewards


def test_places_by_hand():
  mask = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)
  same(returns.at_last_token(mask), [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
  same(returns.after_last_token(mask), [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
  same(returns.value_mask(mask), mask)
  plus = [[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]]
  same(returns.value_mask(mask, returns.after_last_token), plus)


def test_token_rewards_by_hand():
  mask = jnp.array([[True, True, False]])
  kl = jnp.array([[1.0, -2.0, 9.0]])
  f = partial(returns.token_rewards, jnp.array([0.6]), kl, mask, 0.1)
  close(f(), [[-0.1, 0.2 + 0.6, 0.0]])
  close(f(place=returns.after_last_token), [[-0.1, 0.2, 0.6]])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("gap", [False, True])
def test_token_rewards_match_loops(after, gap):
  score, kl, _, mask = episodes(gap=gap)
  s, k, m = arrays(score, kl, mask)
  got = returns.token_rewards(s, k, m, 0.3, place=PLACES[after])
  close(got, oracle.token_rewards(score, kl, mask, 0.3, after))
  same(returns.value_mask(m, PLACES[after]), oracle.value_mask(mask, after))
  close(
    got.sum(1), score - 0.3 * np.where(mask, kl, 0).sum(1)
  )  # Eq. 2: r - β log(π(y|x)/π_ref(y|x))


def test_scores_are_not_truncated():
  """A reward array of the tokens' type would turn 0.6 into 0; integer scores must come out as
  floats.
  """
  mask = jnp.ones((2, 3), bool)
  with jax.numpy_dtype_promotion("strict"):
    out = returns.token_rewards(jnp.array([0.6, -0.4]), jnp.zeros((2, 3)), mask, 0.02)
    whole = returns.token_rewards(jnp.array([1, -2]), jnp.full((2, 3), 0.5), mask, 0.02)
    kept = returns.replace_missing_eos(jnp.array([3, 4]), jnp.array([True, False]), value=-0.5)
  close(out[:, -1], [0.6, -0.4])
  close(whole, [[-0.01, -0.01, 0.99], [-0.01, -0.01, -2.01]])
  close(kept, [3.0, -0.5])
  assert out.dtype == whole.dtype == kept.dtype == jnp.float32


def test_missing_eos_by_hand():
  score, ended = jnp.array([0.7, 0.7]), jnp.array([True, False])
  close(returns.replace_missing_eos(score, ended), [0.7, -1.0])
  close(returns.penalise_missing_eos(score, ended), [0.7, -0.3])
  close(returns.penalise_missing_eos(score, ended, penalty=0.5), [0.7, 0.2])


# Advantages


def test_gae_by_hand():
  """γ = 1, λ = 1/2, r = (0, 0, 1), V = (.5, .25, .75): δ = (-.25, .5, .25)."""
  reward, value = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.5, 0.25, 0.75]])
  advantage, target = returns.gae(reward, value, jnp.ones((1, 3), bool), lam=0.5)
  close(advantage, [[0.0625, 0.625, 0.25]])
  close(target, [[0.5625, 0.875, 1.0]])


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize(("discount", "lam"), [(1.0, 0.95), (0.97, 0.6), (1.0, 1.0), (0.9, 0.0)])
def test_gae_matches_the_double_sum(discount, lam, gap):
  score, kl, value, mask = episodes(seed=1, gap=gap)
  for after, place in PLACES.items():
    reward = oracle.token_rewards(score, kl, mask, 0.3, after)
    wide = oracle.value_mask(mask, after)
    got = returns.gae(*arrays(reward, value, wide), discount=discount, lam=lam)
    same(returns.value_mask(jnp.asarray(mask), place), wide)
    jax.tree.map(close, got, oracle.gae(reward, value, wide, discount, lam))


def test_gae_with_lambda_one_is_reward_to_go_minus_value():
  score, kl, value, mask = arrays(*episodes(seed=2))
  reward = returns.token_rewards(score, kl, mask, 0.1)
  advantage, target = returns.gae(reward, value, mask, lam=1.0)
  to_go = jnp.cumsum(reward[:, ::-1], axis=1)[:, ::-1]
  close(advantage, jnp.where(mask, to_go - value, 0))
  close(target, jnp.where(mask, to_go, 0))


def test_gae_with_lambda_zero_is_the_td_error():
  score, kl, value, mask = arrays(*episodes(seed=2))
  reward = returns.token_rewards(score, kl, mask, 0.1)
  v = jnp.where(mask, value, 0)
  after = jnp.pad(v, ((0, 0), (0, 1)))[:, 1:]
  close(returns.gae(reward, value, mask, lam=0.0)[0], jnp.where(mask, reward + after - v, 0))


def test_right_values_leave_no_advantage():
  """When V is the return to go, every δ is 0 whatever λ."""
  score, kl, _, mask = arrays(*episodes(seed=4))
  reward = returns.token_rewards(score, kl, mask, 0.1)
  value = jnp.cumsum(reward[:, ::-1], axis=1)[:, ::-1]
  advantage, target = returns.gae(reward, value, mask, lam=0.7)
  close(advantage, 0.0)
  close(target, jnp.where(mask, value, 0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), discount=st.sampled_from([1.0, 0.9]))
def test_a_gap_equals_the_row_without_it(seed, discount):
  """Masked positions are stepped over: deleting them gives the same advantages."""
  rng = np.random.default_rng(seed)
  mask = rng.random(9) < 0.6
  mask[rng.integers(9)] = True
  reward, value = np.where(mask, rng.normal(size=9), 0), rng.normal(size=9)
  n = int(mask.sum())
  short = [np.pad(x[mask], (0, 9 - n))[None] for x in (reward, value)]
  packed = returns.gae(*arrays(*short, (np.arange(9) < n)[None]), discount=discount)
  spread = returns.gae(*arrays(reward[None], value[None], mask[None]), discount=discount)
  for a, b in zip(packed, spread):
    close(a[0, :n], np.asarray(b)[0, mask])
    same(np.asarray(b)[0, ~mask], 0.0)


def test_paying_after_the_end_trains_the_value_of_the_end():
  """A_e is the penalty + V_end - V_e + λ (s - V_end); paid at the last token it is the penalty + s
  - V_e.
  """
  mask = jnp.array([[True, True, False]])
  kl, value = jnp.array([[0.0, 0.5, 0.0]]), jnp.array([[0.1, 0.2, 0.3]])
  for place, want in (
    (returns.at_last_token, -0.05 + 1.0 - 0.2),
    (returns.after_last_token, -0.05 + 0.3 - 0.2 + 0.9 * (1.0 - 0.3)),
  ):
    reward = returns.token_rewards(jnp.array([1.0]), kl, mask, 0.1, place=place)
    advantage, _ = returns.gae(reward, value, returns.value_mask(mask, place), lam=0.9)
    close(advantage[0, 1], want)


# Advantages within a group


def test_leave_one_out_by_hand():
  """Returns of 1, 2, 6 and of 0, 0, 3; a KL is part of a return, and padding is not."""
  reward = jnp.array([[1.0, 9], [2, 0], [5, 1], [0, 0], [0.5, -0.5], [3, 9]])
  mask = jnp.array([[1, 0], [1, 1], [1, 1], [1, 1], [1, 1], [1, 0]], bool)
  advantage, target = returns.leave_one_out(reward, None, mask, n=3)
  want = np.array([1 - 4, 2 - 3.5, 6 - 1.5, -1.5, -1.5, 3])
  close(advantage, want[:, None] * np.asarray(mask))
  assert target is None


def test_group_normalised_by_hand():
  """The deviation of 1, 2, 6 is √7 and that of 0, 0, 3 is √3; of all six √5.2."""
  reward = jnp.array([[1.0], [2], [6], [0], [0], [3]])
  mask = jnp.ones((6, 1), bool)
  centred = np.array([-2, -1, 3, -1, -1, 2.0])[:, None]
  deviation = np.repeat(np.sqrt([7, 3]), 3)[:, None]
  of = partial(returns.group_normalised, reward, None, mask, n=3)
  close(of()[0], centred / (deviation + 1e-4))
  close(of(scale="none")[0], centred)
  close(of(scale="batch", eps=0.0)[0], centred / np.sqrt(np.var([1, 2, 6, 0, 0, 3], ddof=1)))
  assert of()[1] is None
  with pytest.raises(ValueError, match='"group", "batch" or "none", got \'prompt\''):
    of(scale="prompt")


def test_a_group_of_equal_scores_has_no_advantage():
  reward, mask = jnp.full((4, 2), 0.7), jnp.ones((4, 2), bool)
  for estimate in (returns.leave_one_out, returns.group_normalised):
    same(estimate(reward, None, mask, n=4)[0], np.zeros((4, 2)))


def test_an_episode_without_a_score_is_none_of_its_group():
  """Of the first group one is left out, of the second all but one: that one has no other."""
  reward = jnp.array([[1.0], [50], [6], [5], [50], [50]])
  mask = jnp.array([1, 0, 1, 1, 0, 0], bool)[:, None]
  advantage, _ = returns.leave_one_out(reward, None, mask, n=3)
  close(advantage[:, 0], [-5, 0, 5, 0, 0, 0])
  advantage, _ = returns.group_normalised(reward, None, mask, n=3, eps=0.5)
  half = 2.5 / (np.sqrt(12.5) + 0.5)
  close(advantage[:, 0], [-half, 0, half, 0, 0, 0])


def test_what_is_no_group_is_refused():
  reward, mask = jnp.zeros((6, 1)), jnp.ones((6, 1), bool)
  for n in (1, 4):
    with pytest.raises(ValueError, match=f"6 episodes are no groups of {n}"):
      returns.leave_one_out(reward, None, mask, n=n)


# KL coefficient


def test_adaptive_kl_by_hand():
  """Ziegler et al. 2019: 0.2 (1 + 0.2 · 256 / 10000) = 0.201024; the error is clipped on both
  sides.
  """
  f = partial(returns.adaptive_kl, jnp.float32(0.2), n=256, target=6.0, horizon=10_000.0)
  close(f(kl=jnp.float32(12.0)), 0.201024)
  close(f(kl=jnp.float32(0.0)), 0.2 * (1 - 0.2 * 0.0256))
  close(f(kl=jnp.float32(6.0)), 0.2)
  close(f(kl=jnp.float32(6.6)), 0.2 * (1 + 0.1 * 0.0256))
  same(returns.fixed_kl(jnp.float32(0.02), jnp.float32(12.0), 512), jnp.float32(0.02))


def test_an_adaptive_coefficient_is_never_negative():
  """With more than five horizons of episodes it was: a reward for leaving the reference."""
  for n in (1, 256, 10_000, 50_001, 10**7):
    coef = returns.adaptive_kl(jnp.float32(0.2), jnp.float32(0.0), n, target=6.0, horizon=1e4)
    assert 0.16 - 1e-6 <= float(coef) < 0.2


def test_adaptive_kl_stays_on_the_device():
  step = jax.jit(partial(returns.adaptive_kl, target=6.0, horizon=1e4), static_argnames="n")
  assert step(jnp.float32(0.2), jnp.float32(12.0), n=256).dtype == jnp.float32


# Best of n


def test_best_of_n_kl_is_the_published_table():
  """Stiennon et al. 2020, Table 10, to one digit."""
  for n, nats in {1: 0.0, 8: 1.2, 64: 3.2, 128: 3.9, 256: 4.5, 512: 5.2}.items():
    close(returns.bon_kl(n), nats, atol=0.06)


def test_best_of_n_weights_are_binomial_ratios():
  for N, n in [(1, 1), (5, 1), (5, 2), (5, 5), (30, 7)]:
    want = [comb(i - 1, n - 1) / comb(N, n) for i in range(1, N + 1)]
    np.testing.assert_allclose(returns.bon_weights(N, n), want, rtol=1e-12)
  np.testing.assert_allclose(returns.bon_weights(4, 2), [0, 1 / 6, 2 / 6, 3 / 6])


def test_best_of_n_estimate_is_the_mean_over_all_subsets():
  rng = np.random.default_rng(0)
  score, gold = rng.normal(size=(2, 8))
  order = np.argsort(score)
  for n in range(1, 9):
    close(gold[order] @ returns.bon_weights(8, n), oracle.best_of_n(score, gold, n))


def test_best_of_n_weights_survive_large_n():
  weight = returns.bon_weights(20_000, 3_000)
  assert weight.dtype == np.float64 and np.isfinite(weight).all()
  np.testing.assert_allclose(weight.sum(), 1.0, rtol=1e-10)
  with pytest.raises(ValueError, match="n=9 with N=8"):
    returns.bon_weights(8, 9)
  with pytest.raises(ValueError, match="n=0"):
    returns.bon_weights(8, 0)


# Everything: masks, dtypes, transformations, sharding


def pipeline(score, kl, value, mask, place=returns.at_last_token):
  """Scores to whitened advantages and targets, as PPO uses them."""
  wide = returns.value_mask(mask, place)
  reward = returns.whiten(
    returns.token_rewards(score, kl, mask, 0.1, place=place), wide, shift_mean=False
  )
  advantage, target = returns.gae(reward, value, wide)
  return returns.whiten(advantage, mask), target


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("after", [False, True])
def test_what_is_masked_is_never_read(garbage, after):
  score, kl, value, mask = arrays(*episodes(gap=True))
  wide = returns.value_mask(mask, PLACES[after])
  clean = pipeline(score, kl, value, mask, PLACES[after])
  dirty = pipeline(
    score, jnp.where(mask, kl, garbage), jnp.where(wide, value, garbage), mask, PLACES[after]
  )
  jax.tree.map(same, dirty, clean)
  same(returns.masked_var(jnp.where(mask, kl, garbage), mask), returns.masked_var(kl, mask))


def test_padding_a_batch_changes_nothing():
  score, kl, value, mask = arrays(*episodes(gap=True))
  want = pipeline(score, kl, value, mask)
  wider = lambda x: jnp.pad(x, ((0, 2), (0, 3)))
  got = pipeline(jnp.pad(score, (0, 2)), wider(kl), wider(value), wider(mask))
  for a, b in zip(got, want):
    close(a, wider(b))


def test_gradients_reach_the_values():
  """The functions are differentiable; nothing is stopped inside them."""
  _, kl, value, mask = arrays(*episodes(gap=True))
  grad = jax.grad(lambda v: returns.gae(kl, v, mask, lam=0.5)[0].sum())(value)
  assert (np.asarray(grad) != 0)[np.asarray(mask)].any()
  same(jnp.where(mask, 0, grad), 0.0)


def test_vmap_and_leading_dimensions():
  batches = [arrays(*episodes(seed)) for seed in range(3)]
  stacked = [jnp.stack(xs) for xs in zip(*batches)]
  _, kl, value, mask = stacked
  want = [returns.gae(k, v, m) for _, k, v, m in batches]
  for got in (jax.vmap(returns.gae)(kl, value, mask), returns.gae(kl, value, mask)):
    for i, part in enumerate(want):
      jax.tree.map(close, jax.tree.map(lambda x, i=i: x[i], got), part)


def test_float32_by_construction_under_strict_promotion():
  score, kl, value, mask = arrays(*episodes())
  with jax.numpy_dtype_promotion("strict"):
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
      s, k, v = (x.astype(dtype) for x in (score, kl, value))
      outs = [
        *pipeline(s, k, v, mask),
        *pipeline(s, k, v, mask, returns.after_last_token),
        returns.masked_mean(k, mask),
        returns.masked_var(k, mask, unbiased=True),
        returns.kl_k1(k, v),
        returns.kl_k2(k, v),
        returns.kl_k3(k, v),
        returns.penalise_missing_eos(s, s > 0),
        returns.replace_missing_eos(s, s > 0),
      ]
      assert {x.dtype for x in outs} == {jnp.dtype("float32")}


@pytest.mark.parametrize("after", [False, True])
def test_returns_on_an_explicit_mesh(after):
  """Rows over data and fsdp: the numbers of one device, and the results keep their rows."""
  batch = arrays(*episodes(B=8, gap=True))
  f = jax.jit(partial(pipeline, place=PLACES[after]))
  want = f(*batch)
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "model"), axis_types=(AxisType.Explicit,) * 3)
  rows = ("data", "fsdp")
  with jax.set_mesh(mesh):
    got = f(jax.device_put(batch[0], P(rows)), *jax.device_put(batch[1:], P(rows, None)))
    assert [x.sharding.spec for x in got] == [P(rows, None)] * 2
  jax.tree.map(close, jax.device_get(got), jax.device_get(want))
