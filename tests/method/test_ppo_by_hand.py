"""PPO on tables: the policy and the value network are arrays, so that every number is known.

What a step should give follows from these arrays by the losses and the oracles of the returns. No
model is compiled, so that a test takes a moment.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from oracles import returns as oracle

from instructjax import likelihood, losses, optim, packs, ppo, returns, steps
from instructjax.ppo import PPOConfig
from instructjax.rollout import Sampling
from instructjax.types import Demonstrations, Experience, Prompts, Rollout

R = 3
LM = tiny.lm("gpt")
OTHER = tiny.lm("gpt", width=16)
SGD = optim.by_subtree(policy=optax.sgd(1.0), value=optax.sgd(1.0))
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)

# Row 0 ended after two tokens, row 1 was cut after three, row 2 ended at once, row 3 at the last.
MASK = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]], bool)
ENDED = np.array([True, False, True, True])
SCORE = np.array([1.0, 2.0, -0.5, 0.25])
RNG = np.random.default_rng(0)
LOGP, REF, ENTROPY = -RNG.exponential(1.0, (3, 4, R))
VALUE, REWARD_VALUE = RNG.normal(size=(2, 4, R))


def array(x):
  return jnp.asarray(x, jnp.float32)


def experiment(tx=SGD, place=returns.at_last_token, **settings):
  settings = {"minibatches": 1, "ptx_coef": 0.0, "ema_decay": None} | settings
  return ppo.PPO(
    lm=LM,
    tx=tx,
    sampling=Sampling(response=R, temperature=0.7, eos=(3,), banned=(0, 9)),
    cfg=PPOConfig(**settings),
    place=place,
  )


@pytest.fixture
def tables(monkeypatch):
  """Models that are tables: an episode begins with the number of its row in them."""

  def policy_logp(lm, params, rows, stem, sampling):
    at = in_tables(rows)
    return params["logp"][at], params["entropy"][at]

  def response_values(lm, params, rows, stem):
    return params["head"]["value"][in_tables(rows)]

  def masked_logp(lm, params, batch, window=None):
    return params["text"][batch.tokens[:, 0]], batch.mask[:, 1:]

  monkeypatch.setattr(ppo, "policy_logp", policy_logp)
  monkeypatch.setattr(ppo, "response_values", response_values)
  monkeypatch.setattr(likelihood, "masked_logp", masked_logp)


def in_tables(rows):
  """(row, column) of each response token; prompts are one token long."""
  before = rows.before
  if before is None:
    before = jnp.broadcast_to(jnp.arange(R), rows.mask.shape)
  begins = rows.valid != jnp.pad(rows.valid, ((0, 0), (1, 0)))[:, :-1]
  first = jax.lax.cummax(jnp.where(begins, jnp.arange(rows.valid.shape[1]), 0), axis=1)
  first = jnp.take_along_axis(first, before, axis=1)
  return jnp.take_along_axis(rows.tokens, first, axis=1), before - first


def policy_of(logp):
  return {"logp": array(logp), "entropy": array(ENTROPY), "text": jnp.zeros((8, 3))}


def value_of(value):
  return {"lm": {}, "head": {"value": array(value)}}


def models():
  """(the parameters of policy and value network, what is frozen)."""
  params = {"policy": policy_of(LOGP), "value": value_of(VALUE)}
  frozen = ppo.Frozen(trunk={}, ref=policy_of(REF), reward=value_of(REWARD_VALUE))
  return params, frozen


def episodes():
  """Four responses of up to R tokens to prompts of one token, which is the number of the row."""
  prompt = jnp.arange(4)[:, None]
  tokens = jnp.concatenate([prompt, jnp.full((4, R), 7)], axis=1)
  valid = jnp.concatenate([jnp.ones((4, 1), bool), jnp.asarray(MASK)], axis=1)
  return Rollout(tokens, valid, jnp.asarray(MASK), array(LOGP), jnp.asarray(ENDED))


def experience(value_mask=MASK):
  """The experience of older models, with a value mask of its own."""
  rows = episodes()
  rng = np.random.default_rng(1)
  old_logp = LOGP + rng.normal(0, 0.4, LOGP.shape)
  old_value = VALUE + rng.normal(0, 0.4, VALUE.shape)
  advantage, target = rng.normal(1, 2, (2, 4, R))
  return Experience(
    tokens=rows.tokens,
    valid=rows.valid,
    mask=rows.mask,
    value_mask=jnp.asarray(value_mask),
    logp=array(old_logp),
    value=array(old_value),
    advantage=array(advantage),
    target=array(target),
  )


def text_rows():
  """Eight texts of one, two or three tokens that carry loss."""
  length = 1 + np.arange(8) % 3
  valid = jnp.asarray(np.arange(4) <= length[:, None])
  tokens = jnp.broadcast_to(jnp.arange(8)[:, None], (8, 4))
  return Demonstrations(tokens, valid, valid & (jnp.arange(4) > 0))


def start(config, params, **settings):
  return steps.init_state(jax.random.key(0), params, config.tx, kl_coef=0.5, **settings)


# Credit


@pytest.mark.parametrize("whiten_reward", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_credit_is_that_of_the_loops(tables, after, whiten_reward):
  place = returns.after_last_token if after else returns.at_last_token
  config = experiment(place=place, discount=0.9, lam=0.5, whiten_reward=whiten_reward)
  config = config._replace(missing_eos=partial(returns.replace_missing_eos, value=-3.0))
  params, frozen = models()
  exp, metrics = ppo.credit(params, frozen, episodes(), array(SCORE), jnp.float32(0.5), config)

  paid = np.where(ENDED, SCORE, -3.0)
  kl = LOGP - REF
  value_mask = oracle.value_mask(MASK, after)
  token_reward = oracle.token_rewards(paid, kl, MASK, 0.5, after)
  if whiten_reward:
    token_reward = oracle.whiten(token_reward, value_mask, shift_mean=False)
  advantage, target = oracle.gae(token_reward, VALUE, value_mask, 0.9, 0.5)
  close(exp.advantage, advantage)
  close(exp.target, target)
  close(exp.logp, LOGP * MASK)
  close(exp.value, VALUE * value_mask)
  np.testing.assert_array_equal(exp.mask, MASK)
  np.testing.assert_array_equal(exp.value_mask, value_mask)

  episode_kl = (kl * MASK).sum(1)
  marked = advantage[value_mask]
  expected = {
    "objective/scores": SCORE.mean(),  # without what a missing end costs
    "objective/scores_std": SCORE.std(),
    "objective/kl": episode_kl.mean(),
    "objective/kl_coef": 0.5,
    "objective/entropy": (ENTROPY * MASK).sum(1).mean(),
    "objective/non_score_reward": -0.5 * episode_kl.mean(),
    "objective/rlhf_reward": (paid - 0.5 * episode_kl).mean(),
    "val/advantage_mean": marked.mean(),
    "response/tokens": 9,
    "response/len_mean": 9 / 4,
    "response/len_max": 3,
    "response/eos_frac": 3 / 4,
    "rollout/logp_error": 0,
    "rollout/logp_error_max": 0,
  }
  for name, want in expected.items():
    close(metrics[name], want, err_msg=name)


# A minibatch


def gradients_by_hand(config, params, exp):
  """The gradients of policy and value loss with respect to the tables, without micro-batches."""
  cfg = config.cfg
  advantage = exp.advantage
  if cfg.whiten_advantage:
    advantage = array(oracle.whiten(np.asarray(advantage, np.float64), MASK))
  weigh = losses.WEIGHTS[cfg.normalise]
  policy = jax.grad(losses.clipped_policy)(
    params["policy"]["logp"], exp.logp, advantage, weigh(exp.mask), clip=cfg.clip
  )
  value = jax.grad(losses.clipped_value)(
    params["value"]["head"]["value"],
    exp.value,
    exp.target,
    weigh(exp.value_mask),
    clip=cfg.value_clip,
  )
  return policy, cfg.value_coef * value


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"micro": 2},
    {"rows_at_once": 1},
    {"rows_at_once": 3},
    {"whiten_advantage": False},
    {"normalise": "sequence_mean", "micro": 2},
    {"value_coef": 1.0, "clip": 0.05, "value_clip": 0.5},
  ],
  ids=str,
)
def test_a_minibatch_moves_the_tables_by_their_gradients(tables, settings):
  """The value mask is a position longer than the mask, as where a score is paid after the end."""
  config = experiment(**({"clip": 0.3, "value_clip": 0.1, "value_coef": 0.3} | settings))
  params, frozen = models()
  exp = experience(oracle.value_mask(MASK, after=True))
  policy, value = gradients_by_hand(config, params, exp)
  state = start(config, params)
  new, metrics = ppo.minibatch_step(state, (exp, None), frozen=frozen, ppo=config)
  close(params["policy"]["logp"] - new.params["policy"]["logp"], policy)
  close(params["value"]["head"]["value"] - new.params["value"]["head"]["value"], value)
  close(metrics["policy/entropy_avg"], ENTROPY[MASK].mean())
  close(metrics["grad/norm_ppo"], np.linalg.norm(policy))
  close(metrics["grad/norm_value"], np.linalg.norm(value))


def test_episodes_and_text_have_micro_batches_of_their_own(tables, monkeypatch):
  """Two rows of episodes at once where a micro-batch has two, and one of eight rows of text."""
  rows_of_text, rows_at_once = [], []
  masked_logp, lay_out = likelihood.masked_logp, packs.lay_out

  def record_text(lm, params, batch, window=None):
    rows_of_text.append(batch.tokens.shape[0])
    return masked_logp(lm, params, batch, window)

  def record_rows(tokens, valid, mask, rows, form):
    rows_at_once.append(rows)
    return lay_out(tokens, valid, mask, rows, form)

  monkeypatch.setattr(likelihood, "masked_logp", record_text)
  monkeypatch.setattr(packs, "lay_out", record_rows)
  config = experiment(micro=2, ptx_micro=8, ptx_coef=1.0)
  params, frozen = models()
  ppo.minibatch_step(start(config, params), (experience(), text_rows()), frozen=frozen, ppo=config)
  assert rows_at_once == [2]
  assert set(rows_of_text) == {1}


def test_the_share_of_a_text_by_hand():
  """Of 2 + 3 marked tokens. Nothing predicts a first token, so its mark does not count."""
  mask = jnp.array([[True, True, True, False], [False, True, True, True]])
  text = Demonstrations(jnp.zeros((2, 4), jnp.int32), jnp.ones((2, 4), bool), mask)
  close(ppo.row_shares(text, "token_mean"), [1 / 5, 1 / 5])
  close(ppo.row_shares(text, "sequence_mean"), [1 / 4, 1 / 6])
  close(ppo.row_shares(text, "sequence_sum"), [1 / 2, 1 / 2])


# The iteration


@pytest.mark.parametrize("normalise", ["token_mean", "sequence_sum"])
def test_every_episode_brings_its_own_text(tables, normalise):
  """Each of two minibatches learns from the two texts of each of its episodes, and from no other.

  The gradient of a text's log-probability is minus its weight in the minibatch.
  """
  config = experiment(minibatches=2, ptx_coef=5.0, ptx_micro=2, ptx_normalise=normalise)
  params, frozen = models()
  exp, text = experience(), text_rows()
  state = start(config, params)
  new, _ = ppo.improve(state, frozen, exp, text, config)
  order_key = ppo.keys.key_for(state.key, "minibatches", state.step)
  marked = np.asarray(text.mask[:, 1:])
  move = np.zeros(marked.shape)
  for rows in np.asarray(ppo.order(order_key, 4, config.cfg)):
    texts = np.concatenate([rows * 2, rows * 2 + 1])
    count = marked[texts].sum() if normalise == "token_mean" else len(texts)
    move[texts] = 5.0 * marked[texts] / count
  close(new.params["policy"]["text"], move)


def test_the_last_minibatch_reads_what_the_first_has_moved(tables):
  """Two updates by hand: each whitens its own advantages, and ratios begin at the old policy."""
  config = experiment(minibatches=2, clip=0.3, value_clip=0.1)
  params, frozen = models()
  exp = experience()
  state = start(config, params)
  new, metrics = ppo.improve(state, frozen, exp, None, config)
  order_key = ppo.keys.key_for(state.key, "minibatches", state.step)
  logp, each, highest = params["policy"]["logp"], state, []
  for rows in np.asarray(ppo.order(order_key, 4, config.cfg)):
    part = jax.tree.map(lambda x, rows=rows: x[rows], exp)
    whitened = oracle.whiten(np.asarray(part.advantage, np.float64), MASK[rows])
    gradient = jax.grad(losses.clipped_policy)(
      logp[rows], part.logp, array(whitened), losses.token_mean(part.mask), clip=0.3
    )
    ratio = np.exp(np.asarray(logp[rows] - part.logp))
    highest.append(ratio[MASK[rows]].max())
    logp = logp.at[rows].add(-gradient)
    each, _ = ppo.minibatch_step(each, (part, None), frozen=frozen, ppo=config)
  close(new.params["policy"]["logp"], logp)
  tiny.assert_trees_close(new.params, each.params, rtol=1e-5, atol=1e-6)
  close(metrics["policy/ratio_max"], max(highest))
  close(metrics["policy/ratio_first"], highest[0])
  assert highest[0] != highest[1]


def test_the_average_moves_as_often_as_it_is_told(tables):
  for every, updates in [("minibatch", 4), ("iteration", 1)]:
    still = optim.by_subtree(policy=optax.sgd(0.0), value=optax.sgd(0.0))
    config = experiment(tx=still, minibatches=2, epochs=2, ema_decay=0.5, ema_every=every)
    params, frozen = models()
    average = {"policy": jax.tree.map(jnp.zeros_like, params["policy"])}
    state = start(config, params, ema=average)
    new, _ = ppo.improve(state, frozen, experience(), None, config)
    close(new.ema["policy"]["logp"], (1 - 0.5**updates) * LOGP)


def test_the_order_and_the_noise_are_new_in_each_iteration(tables, monkeypatch):
  order_keys = []
  order = ppo.order

  def recorded(key, rows, cfg, together):
    order_keys.append(key)
    return order(key, rows, cfg, together)

  monkeypatch.setattr(ppo, "order", recorded)
  config = experiment()
  params, frozen = models()
  state = start(config, params)
  for step in (0, 8):
    state = dataclasses.replace(state, step=jnp.int32(step))
    ppo.improve(state, frozen, experience(), None, config)
    order_keys.append(ppo.rollout_key(state))
  numbers = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in order_keys}
  assert len(numbers) == 4


def test_the_next_coefficient_follows_the_kl_of_the_episodes(tables):
  config = experiment()._replace(kl_control=lambda coef, kl, n: coef + 10 * kl + 100 * n)
  params, frozen = models()
  state = start(config, params)
  new, metrics = ppo.learn(state, frozen, episodes(), array(SCORE), None, ppo=config)
  kl = ((LOGP - REF) * MASK).sum(1).mean()
  close(new.kl_coef, 0.5 + 10 * kl + 400)
  close(metrics["objective/kl_coef"], 0.5)
  assert new.iteration == 1


# Episodes without a score


@pytest.mark.parametrize("settings", [{}, {"whiten_reward": True}, {"normalise": "sequence_mean"}])
def test_an_episode_without_a_score_moves_nothing(tables, settings):
  """The update of rows 0 and 3 of four, where 1 and 2 have no score, is that of the two alone."""
  config = experiment(**settings)
  params, frozen = models()
  state = start(config, params)
  scored = np.array([True, False, False, True])
  # What stands in the place of a score that is not there does not matter.
  scores = array(np.where(scored, SCORE, 100.0))
  all_four, metrics = ppo.learn(
    state, frozen, episodes(), scores, None, ppo=config, scored=jnp.asarray(scored)
  )
  two = jax.tree.map(lambda x: x[np.flatnonzero(scored)], episodes())
  alone, of_two = ppo.learn(state, frozen, two, array(SCORE[scored]), None, ppo=config)
  tiny.assert_trees_close(all_four.params, alone.params, rtol=1e-5, atol=1e-6)
  moved = np.abs(np.asarray(all_four.params["policy"]["logp"] - LOGP)).sum(axis=1) > 0
  assert moved.tolist() == scored.tolist()
  same = ("objective/scores", "objective/scores_std", "objective/rlhf_reward", "loss/total")
  for name in (*same, "val/advantage_mean", "val/advantage_std"):
    close(metrics[name], of_two[name], err_msg=name)
  close(metrics["objective/scores"], (1.0 + 0.25) / 2)
  close(metrics["rollout/abstained"], 0.5)
  # They were sampled all the same, so that their KL and their lengths count.
  close(metrics["objective/kl"], ((LOGP - REF) * MASK).sum(1).mean())
  close(metrics["response/tokens"], MASK.sum())


def test_a_batch_without_any_score_teaches_nothing(tables):
  config = experiment()
  params, frozen = models()
  state = start(config, params)
  none = jnp.zeros(4, bool)
  new, metrics = ppo.learn(state, frozen, episodes(), array(SCORE), None, ppo=config, scored=none)
  tiny.assert_trees_close(new.params, state.params, rtol=0, atol=0)
  assert metrics["rollout/abstained"] == 1 and np.isnan(metrics["objective/scores"])
  for name in ("loss/total", "grad/norm_ppo", "grad/norm_value"):
    close(metrics[name], 0)


# Functions in the place of those of the paper


def alone(config):
  """The state of a policy without a value network."""
  params, frozen = models()
  config = config._replace(tx=optim.by_subtree(policy=optax.sgd(1.0)))
  return config, start(config, ppo.init_params(params["policy"], None)), frozen


def test_a_group_is_credited_without_a_value_network(tables):
  """Rows 0 and 1 are the responses to a prompt, and 2 and 3 those to another."""
  config = experiment(whiten_advantage=False)
  config = config._replace(advantages=partial(returns.leave_one_out, n=2))
  config, state, frozen = alone(config)
  exp, _ = ppo.credit(state.params, frozen, episodes(), array(SCORE), jnp.float32(0.5), config)
  assert exp.value is None and exp.target is None and exp.ref_logp is None
  total = SCORE - 0.5 * ((LOGP - REF) * MASK).sum(1)
  advantage = total - total[[1, 0, 3, 2]]
  close(exp.advantage, advantage[:, None] * MASK)
  new, _ = ppo.learn(state, frozen, episodes(), array(SCORE), ppo=config)
  # At a ratio of 1 the gradient of the surrogate is - A / tokens.
  close(new.params["policy"]["logp"] - LOGP, advantage[:, None] * MASK / MASK.sum())


def test_an_episode_without_a_score_is_none_of_its_group(tables):
  """Row 2 has none, so that row 3 is alone: nothing is learnt from either."""
  config = experiment(whiten_advantage=False)
  config = config._replace(advantages=partial(returns.leave_one_out, n=2))
  config, state, frozen = alone(config)
  scored = jnp.asarray([True, True, False, True])
  exp, _ = ppo.credit(
    state.params, frozen, episodes(), array(SCORE), jnp.float32(0.5), config, scored=scored
  )
  moved = np.abs(np.asarray(exp.advantage)).sum(axis=1) > 0
  assert moved.tolist() == [True, True, False, False]


def test_the_kl_is_paid_in_the_reward_or_added_to_the_loss(tables):
  config = experiment(whiten_advantage=False)
  config = config._replace(
    advantages=partial(returns.leave_one_out, n=2), kl_reward=None, kl_loss=losses.kl
  )
  config, state, frozen = alone(config)
  exp, metrics = ppo.credit(
    state.params, frozen, episodes(), array(SCORE), jnp.float32(0.5), config
  )
  advantage = SCORE - SCORE[[1, 0, 3, 2]]
  close(exp.advantage, advantage[:, None] * MASK)
  close(metrics["objective/non_score_reward"], 0)
  close(metrics["objective/rlhf_reward"], SCORE.mean())
  close(metrics["objective/kl"], ((LOGP - REF) * MASK).sum(1).mean())
  new, metrics = ppo.learn(state, frozen, episodes(), array(SCORE), ppo=config)
  d = LOGP - REF
  close(metrics["loss/kl"], (np.expm1(-d) + d)[MASK].mean(), rtol=1e-4)
  # d/dlogp of k3 is 1 - e^-d, with the coefficient of the state, 0.5.
  gradient = (-advantage[:, None] + 0.5 * (1 - np.exp(-d))) * MASK / MASK.sum()
  close(LOGP - new.params["policy"]["logp"], gradient, rtol=1e-4)


def test_another_estimate_of_the_kl_is_paid(tables):
  config = experiment()._replace(kl_reward=returns.kl_k3)
  params, frozen = models()
  exp, metrics = ppo.credit(params, frozen, episodes(), array(SCORE), jnp.float32(0.5), config)
  d = LOGP - REF
  k3 = (np.expm1(-d) + d) * MASK
  token_reward = oracle.token_rewards(SCORE, k3, MASK, 0.5, False)
  close(exp.advantage, oracle.gae(token_reward, VALUE, MASK, 1.0, 0.95)[0], rtol=1e-4)
  close(metrics["objective/non_score_reward"], -0.5 * k3.sum(1).mean(), rtol=1e-4)


def test_losses_of_ones_own_move_the_tables(tables):
  """The policy by REINFORCE and for its entropy, the value network by the absolute error."""

  def reinforce(logp, old_logp, advantage, weight):
    return -jnp.sum(weight * advantage * logp)

  def absolute(value, old_value, target, weight):
    return jnp.sum(weight * jnp.abs(value - target))

  config = experiment(whiten_advantage=False, value_coef=0.3, micro=2)
  config = config._replace(
    policy_loss=reinforce,
    value_loss=absolute,
    entropy_loss=partial(losses.entropy_bonus, coef=0.2),
  )
  params, frozen = models()
  exp = experience()
  state = start(config, params)
  new, metrics = ppo.minibatch_step(state, (exp, None), frozen=frozen, ppo=config)
  share = MASK / MASK.sum()
  moved = jax.tree.map(jnp.subtract, params, new.params)
  close(moved["policy"]["logp"], -np.asarray(exp.advantage) * share)
  close(moved["policy"]["entropy"], -0.2 * share)
  sign = np.sign(VALUE - np.asarray(exp.target))
  close(moved["value"]["head"]["value"], 0.3 * sign * share)
  policy = -(share * np.asarray(exp.advantage) * LOGP).sum()
  value = (share * np.abs(VALUE - np.asarray(exp.target))).sum()
  bonus = -0.2 * (share * ENTROPY).sum()
  close(metrics["loss/policy_avg"], policy)
  close(metrics["loss/value_avg"], value)
  close(metrics["loss/entropy"], bonus)
  close(metrics["loss/total"], policy + 0.3 * value + bonus)


@pytest.mark.parametrize(
  ("loss", "clipped"),
  [
    (losses.clipped_policy, [1, 1, 0, 1]),
    (partial(losses.clipped_policy, clip_high=0.5), [1, 0, 0, 1]),
    (partial(losses.dual_clipped_policy, bound=3.0), [1, 1, 1, 1]),
  ],
  ids=["clip", "clip_high", "dual clip"],
)
def test_clipped_tokens_are_those_of_the_loss_that_is_used(tables, loss, clipped):
  """Ratios of 2, 1.25, 4 and ½ with A = 1, 1, -1, -1; a fifth token has no advantage."""
  config = experiment(whiten_advantage=False)._replace(policy_loss=loss)
  config, state, frozen = alone(config)
  ratio, advantage = np.ones((4, R)), np.zeros((4, R))
  ratio[:2, :2] = [[2, 1.25], [4, 0.5]]
  advantage[:2, :2] = [[1, 1], [-1, -1]]
  ratio[3, 0] = 9
  exp = experience().replace(
    logp=array(LOGP - np.log(ratio)), advantage=array(advantage), value=None, target=None
  )
  _, metrics = ppo.minibatch_step(state, (exp, None), frozen=frozen, ppo=config)
  close(metrics["policy/clipfrac_avg"], sum(clipped) / MASK.sum())


def test_clipped_values_are_those_of_the_loss_that_is_used(tables):
  """The values of row 1 have moved by .5 towards their target, those of the others by nothing."""
  moved = np.zeros((4, R))
  moved[1] = 0.5
  exp = experience().replace(value=array(VALUE - moved), target=array(VALUE + 1))
  params, frozen = models()
  for clip, share in ((0.2, 3 / 9), (0.6, 0.0)):
    config = experiment()._replace(value_loss=partial(losses.clipped_value, clip=clip))
    _, metrics = ppo.minibatch_step(start(config, params), (exp, None), frozen=frozen, ppo=config)
    close(metrics["val/clipfrac_avg"], share)


def test_functions_of_the_paper_in_their_fields_change_nothing(tables):
  params, frozen = models()
  config = experiment(discount=0.9, lam=0.5)
  same = config._replace(
    advantages=partial(returns.gae, discount=0.9, lam=0.5),
    policy_loss=losses.clipped_policy,
    value_loss=losses.clipped_value,
  )
  runs = [
    ppo.learn(start(c, params), frozen, episodes(), array(SCORE), ppo=c) for c in (config, same)
  ]
  (first, measured), (second, measured_again) = runs
  tiny.assert_trees_equal(first, second)
  tiny.assert_trees_close(measured, measured_again, atol=1e-6)


def test_what_does_not_go_together_is_refused(tables):
  config, state, frozen = alone(experiment())
  with pytest.raises(ValueError, match="generalised advantages need a value network"):
    ppo.learn(state, frozen, episodes(), array(SCORE), ppo=config)
  config = experiment()._replace(advantages=partial(returns.leave_one_out, n=2))
  params, frozen = models()
  with pytest.raises(ValueError, match="no target for the value network"):
    ppo.learn(start(config, params), frozen, episodes(), array(SCORE), ppo=config)


# Which model reads what


def test_policy_and_value_network_start_in_memory_of_their_own():
  """A state is donated, and the models that it started from live on."""
  policy, reward_model = policy_of(LOGP), value_of(REWARD_VALUE)
  params = ppo.init_params(policy, reward_model)
  tiny.assert_trees_equal(params, {"policy": policy, "value": reward_model})
  before = [policy["logp"], reward_model["head"]["value"]]
  after = [params["policy"]["logp"], params["value"]["head"]["value"]]
  for old, new in zip(before, after):
    assert old.unsafe_buffer_pointer() != new.unsafe_buffer_pointer()


def test_scoring_has_the_distribution_of_the_sampler(monkeypatch):
  calls = []

  def response_logp(lm, params, tokens, valid, response, **settings):
    calls.append(settings)
    return jnp.zeros((4, R)), jnp.zeros((4, R))

  monkeypatch.setattr(likelihood, "response_logp", response_logp)
  stem = jnp.ones((4, 4, LM.width))
  ppo.policy_logp(LM, {}, experience(), stem, experiment().sampling)
  (settings,) = calls
  assert (settings["temperature"], settings["banned"]) == (0.7, (0, 9))
  assert settings["stem"] is stem


def test_the_policy_samples(monkeypatch):
  calls = []

  def sample(lm, params, prompts, key, sampling):
    calls.append(params)
    return episodes()

  monkeypatch.setattr(ppo, "sample", sample)
  params, frozen = models()
  frozen = frozen.replace(trunk={"lower": jnp.ones(1)})
  prompts = Prompts(jnp.zeros((4, 1), jnp.int32), jnp.ones((4, 1), bool))
  ppo.rollout(params, frozen, prompts, jax.random.key(0), experiment())
  assert calls[0]["logp"] is params["policy"]["logp"]
  assert calls[0]["lower"] is frozen.trunk["lower"]


def two_trunks():
  """(config, params, frozen) of a reward side with a language model and a trunk of its own.

  The stem of a trunk is the number in it times the tokens.
  """

  def stem(trunk, tokens, valid, branch=None):
    return trunk["lower"] * tokens[..., None].astype(jnp.float32)

  lm, reward_lm = LM._replace(stem=stem), OTHER._replace(stem=stem)
  params, frozen = models()
  frozen = frozen.replace(trunk={"lower": array(2)}, reward_trunk={"lower": array(10)})
  return experiment()._replace(lm=lm, reward_lm=reward_lm), params, frozen


def test_each_trunk_has_a_stem_of_closed_responses():
  config, _, frozen = two_trunks()
  rows = episodes()
  closed = np.array(rows.tokens)
  closed[1, -1] = 3  # the row that was cut
  closed = closed * np.asarray(rows.valid)
  policy_stem, reward_stem = ppo.stems(frozen, rows, config)
  close(policy_stem[..., 0], 2 * closed)
  close(reward_stem[..., 0], 10 * closed)
  shared = ppo.stems(frozen.replace(reward_trunk=None), rows, config)
  assert shared[0] is shared[1]
  trained = ppo.stems(frozen.replace(trunk={}, reward_trunk={}), rows, config)
  assert trained == (None, None)


def test_the_reward_side_has_its_own_model_trunk_and_stem(tables, monkeypatch):
  """In the score, in the credit and in the loss.  The stem is ten times the closed tokens."""
  calls, seen = [], []
  table = ppo.response_values

  def note(name, *arrays):
    jax.debug.callback(lambda *values: seen.append((name, *values)), *arrays)

  def response_values(lm, params, rows, stem):
    calls.append((lm, params["lm"]["lower"]))
    note("value", rows.tokens, stem[..., 0])
    return table(lm, params, rows, stem)

  def token_scores(lm, params, tokens, valid, stem, branch):
    calls.append((lm, params["lm"]["lower"]))
    close(params["head"]["value"], REWARD_VALUE)
    note("score", tokens, stem[..., 0])
    return jnp.zeros(tokens.shape)

  monkeypatch.setattr(ppo, "response_values", response_values)
  monkeypatch.setattr(ppo, "token_scores", token_scores)
  config, params, frozen = two_trunks()
  rows = episodes()
  monkeypatch.setattr(ppo, "rollout", lambda *args: rows)
  learned = []

  def learn(state, frozen, rows, scores, text, **settings):
    learned.append(settings)
    return state, {}

  monkeypatch.setattr(ppo, "learn", learn)
  prompts = Prompts(rows.tokens[:, :1], rows.valid[:, :1])
  ppo.iteration(start(config, params), frozen, prompts, None, ppo=config)
  policy_stem, reward_stem = ppo.stems(frozen, rows, config)
  tiny.assert_trees_equal(learned[0]["policy_stem"], policy_stem)
  tiny.assert_trees_equal(learned[0]["reward_stem"], reward_stem)

  exp, _ = ppo.credit(
    params, frozen, rows, array(SCORE), jnp.float32(0.5), config, policy_stem, reward_stem
  )
  assert exp.stem is policy_stem and exp.value_stem is reward_stem
  weight = losses.token_mean(exp.mask)
  ppo.ppo_loss(params, (exp, weight, weight), None, frozen=frozen, ppo=config)
  for lm, trunk in calls:
    assert lm is config.reward_lm
    assert trunk == 10
  jax.effects_barrier()
  for name, tokens, stem in seen:
    # The reward model reads the end that row 1 lacks; value networks read neither it nor padding.
    unlike = np.argwhere(10 * tokens != stem)
    assert len(unlike) == 0 if name == "score" else np.isin(stem[tuple(unlike.T)], (0, 30)).all()
  assert {name for name, *_ in seen} == {"score", "value"}
