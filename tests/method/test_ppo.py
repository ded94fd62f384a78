"""PPO and PPO-ptx: the checklist 4.5 of the specification, line by line."""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from instructjax import likelihood, losses, optim, packs, ppo, returns, reward, sharding, steps
from instructjax.models import freeze
from instructjax.ppo import PPOConfig
from instructjax.rollout import Sampling
from instructjax.system import keys

R = 6


@cache
def settings_of(family, depth, tx, settings):
  """One object for equal settings, so that what was compiled with them is found again."""
  sampling = Sampling(response=R, temperature=0.7, eos=(3, 4, 5))
  return ppo.PPO(
    lm=tiny.lm(family, depth=depth), tx=tx, sampling=sampling, cfg=PPOConfig(**dict(settings))
  )


def setup(family="llama", tx=None, depth=2, **settings):
  """(PPO, state, frozen): policy, reference and reward model of one tiny family with different
  weights.
  """
  config = settings_of(
    family,
    depth,
    tx or ADAM,
    tuple(sorted(({"minibatches": 2, "ptx_coef": 0.0} | settings).items())),
  )
  lm, tx = config.lm, config.tx
  policy = lm.init(jax.random.key(0))
  reward_model = tiny.reward_model(lm, 7)
  frozen = ppo.Frozen(trunk={}, ref=policy, reward=reward_model)
  params = ppo.init_params(policy, reward_model)
  state = steps.init_state(
    jax.random.key(0), params, tx, ema={"policy": params["policy"]}, kl_coef=0.02
  )
  return config, state, frozen


SGD = optim.by_subtree(policy=optax.sgd(1.0), value=optax.sgd(1.0))
STILL = optim.by_subtree(policy=optax.sgd(0.0), value=optax.sgd(0.0))
ADAM = optim.by_subtree(policy=optim.adamw(1e-3, eps=1e-5), value=optim.adamw(1e-3, eps=1e-5))


def jitted(function, config):
  return tiny.jitted(function, ppo=config)


def minibatch_step(config, state, frozen, exp, text):
  return jitted(ppo.minibatch_step, config)(state, (exp, text), frozen=frozen)


def gradient(config, params, exp, frozen):
  """The gradient of the PPO loss of all rows in one minibatch."""
  weights = losses.token_mean(exp.mask), losses.token_mean(exp.value_mask)
  loss = lambda p, e: ppo.ppo_loss(p, (e, *weights), None, frozen=frozen, ppo=config)[0]
  return jax.jit(jax.grad(loss))(params, exp)


def collect(config, state, frozen, rows=8, key=1):
  prompts = tiny.prompts(config.lm, rows=rows)
  episodes = jitted(ppo.rollout, config)(state.params, frozen, prompts, jax.random.key(key))
  scores = jitted(ppo.score, config)(frozen, episodes)
  exp, stats = jitted(ppo.credit, config)(state.params, frozen, episodes, scores, state.kl_coef)
  return episodes, scores, exp, stats


def in_bfloat16(frozen):
  return frozen.replace(
    ref=freeze.cast(frozen.ref, "bfloat16"), reward=freeze.cast(frozen.reward, "bfloat16")
  )


def test_ratios_do_not_feel_integers_in_the_sampler():
  """Of the same tokens, whichever model sampled them: the first update is the same to the bit."""
  config, state, frozen = setup()
  sampling = dataclasses.replace(config.sampling, weights="int8", cache="int8")
  rounded = config._replace(sampling=sampling)
  rows, _, exp, stats = collect(rounded, state, frozen)
  assert 1e-5 < float(stats["rollout/logp_error"]) < 2e-3
  assert float(stats["rollout/logp_error"]) < float(stats["rollout/logp_error_max"]) < 0.02
  scores = jitted(ppo.score, config)(frozen, rows)
  expected, _ = jitted(ppo.credit, config)(state.params, frozen, rows, scores, state.kl_coef)
  np.testing.assert_array_equal(exp.logp, expected.logp)
  _, metrics = minibatch_step(rounded, state, frozen, exp, None)
  _, of_float = minibatch_step(config, state, frozen, expected, None)
  for name in ("policy/ratio_max", "policy/ratio_min", "loss/total"):
    assert float(metrics[name]) == float(of_float[name])
  assert float(metrics["policy/ratio_max"]) == pytest.approx(1, abs=1e-5)


def test_no_ratio_begins_at_a_rounded_model():
  config, state, frozen = setup(old_logp="sampler")
  sampling = dataclasses.replace(config.sampling, cache="int8")
  with pytest.raises(ValueError, match="takes the log-probabilities of a model that int8 has"):
    ppo.rollout(
      state.params,
      frozen,
      tiny.prompts(config.lm, rows=2),
      state.key,
      config._replace(sampling=sampling),
    )


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_kl_is_zero_at_the_start_and_sums_to_the_log_ratio_later(family):
  config, state, frozen = setup(family)
  *_, stats = collect(config, state, frozen)
  assert abs(float(stats["objective/kl"])) < 1e-5
  assert (
    float(stats["rollout/logp_error"]) < 1e-5
  )  # the sampler's log-probabilities are the trainer's
  moved = state.replace(
    params=state.params | {"policy": tiny.perturb(state.params["policy"], 0.05)}
  )
  episodes, scores, exp, stats = collect(config, moved, frozen)
  logp = lambda p: likelihood.response_logp(
    config.lm, p, episodes.tokens, episodes.valid, R, temperature=0.7
  )[0]
  ratio = ((logp(moved.params["policy"]) - logp(frozen.ref)) * episodes.mask).sum(1)
  assert float(stats["objective/kl"]) == pytest.approx(float(ratio.mean()), rel=1e-4)
  reward = returns.token_rewards(
    scores,
    exp.logp - logp(frozen.ref) * episodes.mask,
    episodes.mask,
    jnp.float32(0.02),
    place=returns.at_last_token,
  )
  np.testing.assert_allclose(reward.sum(1), scores - 0.02 * ratio, atol=1e-5)


def test_nothing_counts_after_the_end():
  """Tokens, values and log-probabilities after the end may be anything: the gradient stays."""
  config, state, frozen = setup()
  *_, exp, _ = collect(config, state, frozen)
  assert not exp.mask.all()
  junk = lambda x: jnp.where(exp.mask, x, 7.0)
  other = exp.replace(
    logp=junk(exp.logp),
    value=junk(exp.value),
    advantage=junk(exp.advantage),
    target=junk(exp.target),
  )
  weights = losses.token_mean(exp.mask), losses.token_mean(exp.value_mask)
  loss = lambda p, e: ppo.ppo_loss(p, (e, *weights), None, frozen=frozen, ppo=config)[0]
  grad = jax.jit(jax.grad(loss))
  tiny.assert_trees_equal(grad(state.params, exp), grad(state.params, other))


def test_score_is_paid_at_the_last_real_token_or_the_one_after():
  mask = jnp.array([[True, True, False, False], [True, True, True, True]])
  at = returns.token_rewards(
    jnp.array([0.6, -1.5]), jnp.zeros((2, 4)), mask, 0.02, place=returns.at_last_token
  )
  np.testing.assert_allclose(at, [[0, 0.6, 0, 0], [0, 0, 0, -1.5]])
  after = returns.token_rewards(
    jnp.array([0.6, -1.5]), jnp.zeros((2, 4)), mask, 0.02, place=returns.after_last_token
  )
  np.testing.assert_allclose(after, [[0, 0, 0.6, 0], [0, 0, 0, -1.5]])


def test_first_minibatch_has_ratio_one_and_later_ones_do_not():
  config, state, frozen = setup(minibatches=4, epochs=2)
  *_, exp, _ = collect(config, state, frozen)
  new, metrics = jitted(ppo.improve, config)(state, frozen, exp, None)
  assert float(metrics["policy/ratio_first"]) == pytest.approx(1.0, abs=1e-5)
  assert float(metrics["policy/ratio_max"]) > 1.001
  assert new.step == 8
  _, first = minibatch_step(config, state, frozen, exp, None)
  assert float(first["policy/approxkl_avg"]) == pytest.approx(0, abs=1e-9)
  assert float(first["policy/clipfrac_avg"]) == 0


def test_first_gradient_is_reinforce_with_a_baseline():
  config, state, frozen = setup()
  *_, exp, _ = collect(config, state, frozen)
  grads = gradient(config, state.params, exp, frozen)

  def reinforce(policy):
    logp, _ = ppo.policy_logp(config.lm, policy, exp, None, config.sampling)
    return -(logp * exp.advantage * exp.mask).sum() / exp.mask.sum()

  tiny.assert_trees_close(
    grads["policy"], jax.jit(jax.grad(reinforce))(state.params["policy"]), atol=1e-6
  )


def test_every_row_is_used_once_an_epoch_in_a_new_order():
  cfg = PPOConfig(epochs=3, minibatches=8)
  at = np.asarray(ppo.order(jax.random.key(0), 512, cfg))
  assert at.shape == (24, 64)
  epochs = at.reshape(3, 512)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(512))
  assert (epochs[0] != epochs[1]).any()
  assert (at != np.asarray(ppo.order(jax.random.key(1), 512, cfg))).any()


def test_ptx_gradient_is_added_with_its_coefficient_in_one_update():
  coef = 27.8
  config, state, frozen = setup(tx=SGD, ptx_coef=coef, whiten_advantage=False, ptx_micro=2)
  *_, exp, _ = collect(config, state, frozen)
  text = tiny.text(config.lm, rows=64)
  new, metrics = minibatch_step(config, state, frozen, exp, text)
  g = gradient(config, state.params, exp, frozen)

  def nll(policy):  # - log pi(x): the sign of Eq. 2, not of the texts that copy it (E1)
    logits = config.lm.logits(policy, config.lm.hidden(policy, text.tokens, text.valid))[:, :-1]
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), text.tokens[:, 1:, None], 2)[..., 0]
    return -(logp * text.mask[:, 1:]).sum() / text.mask[:, 1:].sum()

  ptx = jax.jit(jax.grad(nll))(state.params["policy"])
  expected = jax.tree.map(lambda a, b: a + coef * b, g["policy"], ptx)
  moved = jax.tree.map(lambda a, b: a - b, state.params["policy"], new.params["policy"])
  tiny.assert_trees_close(moved, expected, rtol=1e-4, atol=1e-6)
  assert new.step == state.step + 1
  assert float(metrics["grad/norm_ptx"]) == pytest.approx(
    coef * float(optax.tree.norm(ptx)), rel=1e-4
  )
  assert float(metrics["grad/norm_ppo"]) == pytest.approx(
    float(optax.tree.norm(g["policy"])), rel=1e-4
  )


@pytest.mark.parametrize("normalise", ["token_mean", "sequence_mean", "sequence_sum"])
def test_every_loss_is_normalised_as_its_field_says(normalise):
  """Policy, value and pretraining loss by two plain loops, on ragged rows and in micro-batches."""
  config, state, frozen = setup(
    tx=SGD,
    ptx_coef=2.0,
    normalise=normalise,
    ptx_normalise=normalise,
    micro=2,
    ptx_micro=2,
    value_coef=1.0,
    whiten_advantage=False,
  )
  *_, exp, _ = collect(config, state, frozen)
  text = tiny.text(config.lm, rows=16)
  text = text.replace(mask=text.mask & (jnp.arange(8) < jnp.arange(1, 17)[:, None] % 6 + 2))
  _, metrics = minibatch_step(config, state, frozen, exp, text)

  def expected(terms, mask):
    rows = [np.asarray(row)[np.asarray(real)] for row, real in zip(terms, mask) if real.any()]
    if normalise == "token_mean":
      return np.concatenate(rows).mean()
    return np.mean([row.mean() if normalise == "sequence_mean" else row.sum() for row in rows])

  # The ratio is 1 in a first minibatch, and the value is the old one.
  policy = expected(-exp.advantage, exp.mask)
  value = expected(0.5 * jnp.square(exp.value - exp.target), exp.value_mask)
  assert float(metrics["loss/total"]) == pytest.approx(policy + value, rel=1e-4)
  logits = config.lm.logits(frozen.ref, config.lm.hidden(frozen.ref, text.tokens, text.valid))
  logp = losses.token_logp(logits[:, :-1], text.tokens[:, 1:])
  assert float(metrics["loss/ptx"]) == pytest.approx(expected(-logp, text.mask[:, 1:]), rel=1e-4)


def test_without_ptx_nothing_reads_the_text():
  config, state, frozen = setup(ptx_coef=0.0)
  prompts, text = tiny.prompts(config.lm, rows=8), tiny.text(config.lm, rows=64)

  def program(ptx_coef):
    cfg = PPOConfig(minibatches=2, ptx_coef=ptx_coef)
    iteration = partial(ppo.iteration, ppo=config._replace(cfg=cfg))
    return jax.make_jaxpr(iteration)(state, frozen, prompts, text).jaxpr

  def read(jaxpr):
    """Whether an operation reads the text, which comes last."""
    names_of_text = set(jaxpr.invars[-len(jax.tree.leaves(text)) :])
    inputs = [v for eqn in jaxpr.eqns for v in eqn.invars if not hasattr(v, "val")]
    return not names_of_text.isdisjoint(inputs)

  assert not read(program(0.0))
  assert read(program(1.0))


def test_pretraining_loss_falls_when_the_reward_is_silent():
  """E1: with all rewards zero, the ptx term must raise the likelihood of the text."""
  config, state, frozen = setup(ptx_coef=1.0)
  *_, exp, _ = collect(config, state, frozen)
  exp = exp.replace(advantage=jnp.zeros_like(exp.advantage))
  text = tiny.text(config.lm, rows=64)
  history = []
  for _ in range(6):
    state, metrics = minibatch_step(config, state, frozen, exp, text)
    history.append(float(metrics["loss/ptx"]))
  assert history == sorted(history, reverse=True)


@pytest.mark.parametrize("every, updates", [("minibatch", 4), ("iteration", 1)])
def test_average_of_the_policy_has_its_closed_form(every, updates):
  config, state, frozen = setup(tx=STILL, minibatches=4, ema_decay=0.9, ema_every=every)
  state = state.replace(ema=jax.tree.map(jnp.zeros_like, state.ema))
  *_, exp, _ = collect(config, state, frozen)
  new, _ = jitted(ppo.improve, config)(state, frozen, exp, None)
  expected = jax.tree.map(lambda p: (1 - 0.9**updates) * p, state.params["policy"])
  tiny.assert_trees_close(new.ema["policy"], expected, rtol=1e-5)


def test_reference_and_reward_model_are_never_written():
  config, state, frozen = setup(ptx_coef=1.0)
  frozen = in_bfloat16(frozen)
  before = jax.tree.map(np.asarray, frozen)
  step = steps.compiled(partial(ppo.iteration, ppo=config), state)
  for _ in range(2):
    state, _ = step(state, frozen, tiny.prompts(config.lm, rows=8), tiny.text(config.lm, rows=64))
  tiny.assert_trees_equal(frozen, before)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params["policy"], frozen.ref)
  assert max(jax.tree.leaves(moved)) > 0


def test_frozen_models_in_bfloat16_are_near():
  """Matrices are rounded, the scalar head is not: an episode's KL starts below .02 nats, its score
  moves by 2 %.
  """
  config, state, frozen = setup()
  half = in_bfloat16(frozen)
  assert (
    half.reward["head"]["w"].dtype == jnp.float32
    and half.ref["blocks"]["up"]["w"].dtype == jnp.bfloat16
  )
  _, scores, _, stats = collect(config, state, half)
  _, expected, _, _ = collect(config, state, frozen)
  assert 0 < abs(float(stats["objective/kl"])) < 0.02
  np.testing.assert_allclose(scores, expected, rtol=0.02, atol=0.02)


def test_value_network_starts_as_the_reward_model():
  config, state, frozen = setup()
  tiny.assert_trees_equal(state.params["value"], frozen.reward)
  episodes, scores, *_ = collect(config, state, frozen)
  closed = reward.closed(episodes, config.sampling.eos)
  wide = packs.Rows(
    tokens=jnp.pad(closed, ((0, 0), (0, 1))),
    mask=jnp.pad(episodes.mask, ((0, 0), (0, 1))),
    valid=jnp.pad(episodes.valid, ((0, 0), (0, 1))),
  )
  values = jax.jit(lambda params, rows: ppo.response_values(config.lm, params, rows, None))(
    state.params["value"], wide
  )
  at_end = jnp.take_along_axis(values, episodes.mask.sum(1)[:, None], 1)[:, 0]
  np.testing.assert_allclose(at_end, scores, atol=1e-5)


def test_metrics_of_an_iteration_have_one_unit_a_prefix():
  """Extremes are extremes over the updates, and every KL is in nats an episode."""
  config, state, frozen = setup(minibatches=4)
  moved = state.replace(
    params=state.params | {"policy": tiny.perturb(state.params["policy"], 0.05)}
  )
  *_, exp, stats = collect(config, moved, frozen)
  logp = exp.logp
  ref_logp, _ = ppo.policy_logp(config.lm, frozen.ref, exp, None, config.sampling)
  d = np.asarray((logp - ref_logp) * exp.mask, np.float64)
  assert float(stats["objective/kl_k2"]) == pytest.approx((d**2 / 2).sum(1).mean(), rel=1e-4)
  k3 = (np.expm1(-d) + d).sum(1).mean()
  assert float(stats["objective/kl_k3"]) == pytest.approx(k3, rel=1e-3)
  marked = np.asarray(exp.advantage)[np.asarray(exp.value_mask)]
  assert float(stats["val/advantage_std"]) == pytest.approx(marked.std(), rel=1e-4)
  assert float(stats["response/tokens"]) == exp.mask.sum()

  after, metrics = jitted(ppo.improve, config)(state, frozen, exp, None)
  order_key = keys.key_for(state.key, "minibatches", state.step)
  lowest, each = [], state
  for rows in ppo.order(order_key, 8, config.cfg):
    minibatch = jax.tree.map(lambda x, rows=rows: x[rows], exp)
    each, values = minibatch_step(config, each, frozen, minibatch, None)
    lowest.append(float(values["policy/ratio_min"]))
  assert float(metrics["policy/ratio_min"]) == pytest.approx(min(lowest), rel=1e-5)
  assert min(lowest) < np.mean(lowest) - 1e-4
  norm = lambda tree: np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(tree)))
  policy = after.params["policy"]
  behind = jax.tree.map(jnp.subtract, policy, after.ema["policy"])
  distance = float(metrics["policy/ema_distance"])
  assert distance == pytest.approx(norm(behind) / norm(policy), rel=1e-4)
  assert distance > 0


def test_a_shift_of_the_reward_model_leaves_the_advantages():
  """B4: the bias moves scores and values alike; what PPO learns from does not change."""
  config, state, frozen = setup()
  shifted = frozen.reward | {
    "head": frozen.reward["head"] | {"b": frozen.reward["head"]["b"] + 2.5}
  }
  *_, a, _ = collect(config, state, frozen)
  moved = state.replace(params=state.params | {"value": shifted})
  *_, b, _ = collect(config, moved, frozen.replace(reward=shifted))
  np.testing.assert_allclose(a.advantage, b.advantage, atol=1e-5)


def test_a_cut_response_is_scored_at_an_end_of_text():
  """It was scored at whatever token it was cut, where no reward model is trained."""
  config, state, frozen = setup()
  episodes, scores, *_ = collect(config, state, frozen)
  ended = np.asarray(episodes.ended)
  assert ended.any() and not ended.all()
  tokens = np.array(episodes.tokens)
  tokens[~ended, -1] = config.sampling.eos[0]
  by_hand = reward.score(config.lm, frozen.reward, jnp.asarray(tokens), episodes.valid)
  np.testing.assert_allclose(scores, by_hand, atol=1e-5)
  as_it_was = reward.score(config.lm, frozen.reward, episodes.tokens, episodes.valid)
  assert not np.allclose(scores[~ended], as_it_was[~ended], atol=1e-3)


@pytest.mark.parametrize("family", [pytest.param("gpt", marks=pytest.mark.release), "llama"])
def test_a_shared_frozen_trunk_changes_nothing(family):
  """Precomputed trunk activations give the iteration that full forward passes give."""
  from instructjax.models import freeze

  config, _, _ = setup(family, depth=3)
  lm = config.lm
  policy = lm.init(jax.random.key(0))
  trunk, trained = freeze.split(policy, 1)
  reward_model = tiny.reward_model(lm, 7)
  top = {
    "lm": freeze.split(trunk | reward_model["lm"] | {"blocks": reward_model["lm"]["blocks"]}, 1)[1]
  }
  top = {"lm": {k: v for k, v in top["lm"].items() if k != "head"}, "head": reward_model["head"]}
  params = ppo.init_params(trained, top)
  state = steps.init_state(jax.random.key(0), params, config.tx, kl_coef=0.02)
  shared = ppo.Frozen(trunk=trunk, ref=trained, reward=top)
  prompts = tiny.prompts(lm, rows=8)
  run = jitted(ppo.iteration, config)
  a, m = run(state, shared, prompts, None)
  b, n = run(state, shared.replace(reward_trunk=trunk), prompts, None)
  no_stem = config._replace(lm=lm._replace(stem=lambda *args: None))
  c, o = jitted(ppo.iteration, no_stem)(state, shared, prompts, None)
  for other, metrics in [(b, n), (c, o)]:
    tiny.assert_trees_close(a.params, other.params, atol=2e-4)
    assert float(m["objective/scores"]) == pytest.approx(
      float(metrics["objective/scores"]), abs=1e-4
    )


def test_parts_jitted_apart_equal_the_whole():
  config, state, frozen = setup()
  prompts = tiny.prompts(config.lm, rows=8)
  whole, metrics = jitted(ppo.iteration, config)(state, frozen, prompts, None)
  episodes = jitted(ppo.rollout, config)(state.params, frozen, prompts, ppo.rollout_key(state))
  scores = np.asarray(
    jitted(ppo.score, config)(frozen, episodes)
  )  # here any Python function may score
  exp, _ = jitted(ppo.credit, config)(state.params, frozen, episodes, scores, state.kl_coef)
  parts, _ = jitted(ppo.improve, config)(state, frozen, exp, None)
  tiny.assert_trees_close(whole.params, parts.params, atol=1e-5)
  assert float(metrics["objective/scores"]) == pytest.approx(scores.mean(), abs=1e-5)


@cache
def adaptive_and_still():
  """One program for two tests: nothing is learned, the coefficient adapts."""
  config, *rest = setup(tx=STILL)
  return config._replace(kl_control=partial(returns.adaptive_kl, target=6.0, horizon=10_000)), *rest


def test_two_iterations_draw_different_noise_and_a_repeat_does_not():
  config, state, frozen = adaptive_and_still()
  step = jitted(ppo.iteration, config)
  prompts = tiny.prompts(config.lm, rows=8)
  one, a = step(state, frozen, prompts, None)
  _, b = step(one, frozen, prompts, None)
  _, c = step(state, frozen, prompts, None)
  assert float(a["objective/scores"]) == float(c["objective/scores"])
  assert float(a["objective/scores"]) != float(b["objective/scores"])


@pytest.mark.parametrize("micro", [2])
def test_micro_batches_add_up(micro):
  config, state, frozen = setup(tx=SGD)
  *_, exp, _ = collect(config, state, frozen)
  cfg = lambda m: config._replace(cfg=PPOConfig(minibatches=1, ptx_coef=0.0, micro=m))
  run = lambda m: minibatch_step(cfg(m), state, frozen, exp, None)
  (a, m), (b, n) = run(1), run(micro)
  tiny.assert_trees_close(a.params, b.params, atol=1e-5)
  for name in m:
    assert float(m[name]) == pytest.approx(float(n[name]), rel=1e-4, abs=1e-6), name


def test_adaptive_coefficient_lives_in_the_state():
  config, state, frozen = adaptive_and_still()
  new, metrics = jitted(ppo.iteration, config)(state, frozen, tiny.prompts(config.lm, rows=8), None)
  expected = returns.adaptive_kl(
    state.kl_coef, metrics["objective/kl"], 8, target=6.0, horizon=10_000
  )
  assert float(new.kl_coef) == pytest.approx(float(expected))
  assert float(new.kl_coef) < 0.02  # no divergence yet: the penalty is eased


@pytest.mark.parametrize("mesh", [(2, 2, 2)], indirect=True, ids=str)
def test_sharded_iterations_equal_one_device(mesh):
  sharded_equal_one_device("llama")


@pytest.mark.release
@pytest.mark.parametrize("mesh", [(1, 2, 4)], indirect=True, ids=str)
def test_sharded_iterations_with_more_devices_than_key_heads(mesh):
  sharded_equal_one_device("llama")


@pytest.mark.release
@pytest.mark.parametrize("mesh", [(2, 2, 2)], indirect=True, ids=str)
def test_sharded_iterations_of_the_other_family(mesh):
  sharded_equal_one_device("gpt")


def sharded_equal_one_device(family):
  history, params = iterations(family, tiny.place_models, sharding.place_batch)
  expected, single = on_one_device(family)
  np.testing.assert_allclose(history, expected, atol=2e-4, rtol=1e-4)
  tiny.assert_trees_close(params, single, atol=1e-3)


@cache
def on_one_device(family):
  return tiny.unsharded(lambda: iterations(family, lambda lm, p: p, lambda b: b))


def iterations(family, place_params, place_batch):
  """Two of them: what they measure and the parameters that they leave."""
  config, state, frozen = setup(family, ptx_coef=1.0, tx=None)
  lm = config.lm
  params = place_params(lm, state.params)
  frozen = place_params(lm, frozen)
  state = steps.init_state(
    jax.random.key(0), params, config.tx, ema={"policy": params["policy"]}, kl_coef=0.02
  )
  step = steps.compiled(tiny.traced_once(partial(ppo.iteration, ppo=config)), state)
  history = []
  for _ in range(2):
    prompts, text = tiny.prompts(lm, rows=16), tiny.text(lm, rows=32)
    state, metrics = step(state, frozen, place_batch(prompts), place_batch(text))
    history.append(
      [float(metrics[k]) for k in ("objective/scores", "loss/total", "loss/ptx", "grad/norm_ppo")]
    )
  return history, jax.tree.map(np.asarray, state.params)


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_k": 5}])
def test_a_cut_distribution_is_refused(cut):
  """Its log-probabilities are not those that the update computes: ratios would not begin at 1."""
  config, state, frozen = setup()
  config = config._replace(sampling=Sampling(response=R, **cut))
  with pytest.raises(ValueError, match="samples from the whole distribution"):
    ppo.rollout(state.params, frozen, tiny.prompts(config.lm, rows=2), jax.random.key(0), config)


def policy_alone(**fields):
  """(PPO, state, frozen) of a policy without a value network, which answers a prompt four times."""
  tx = optim.by_subtree(policy=optim.adamw(1e-3, eps=1e-5))
  config, state, frozen = setup(whiten_advantage=False, ema_decay=None)
  config = config._replace(
    tx=tx,
    sampling=dataclasses.replace(config.sampling, n=4),
    advantages=partial(returns.group_normalised, n=4),
    kl_reward=None,
    kl_loss=losses.kl,
    **fields,
  )
  params = ppo.init_params(state.params["policy"], None)
  state = steps.init_state(jax.random.key(0), params, tx, ema=None, kl_coef=0.04)
  return config, state, frozen


def test_a_policy_learns_from_groups_without_a_value_network():
  config, state, frozen = policy_alone()
  new, metrics = jitted(ppo.iteration, config)(state, frozen, tiny.prompts(config.lm, rows=2))
  assert new.step == 2 and set(new.params) == {"policy"}
  assert not [name for name in metrics if "value" in name or "explained" in name]
  assert float(metrics["rollout/group_std"]) > 0 and float(metrics["rollout/group_even"]) == 0
  assert float(metrics["val/advantage_mean"]) != 0  # a long response counts more
  rows = jitted(ppo.rollout, config)(
    state.params, frozen, tiny.prompts(config.lm, rows=2), ppo.rollout_key(state)
  )
  prompt = np.asarray(rows.tokens)[:, :5].reshape(2, 4, 5)
  assert (prompt == prompt[:, :1]).all() and (prompt[0] != prompt[1]).any()
  # Where all responses of a prompt have one score, nothing but the KL is learnt, and it is 0 still.
  even = np.repeat([1.0, -2.0], 4)
  _, metrics = jitted(ppo.learn, config)(state, frozen, rows, jnp.asarray(even, jnp.float32))
  assert float(metrics["rollout/group_even"]) == 1
  assert float(metrics["loss/kl"]) == pytest.approx(0, abs=1e-6)
  assert float(metrics["grad/norm_ppo"]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("mesh", [(2, 2, 1)], indirect=True, ids=str)
def test_groups_on_a_mesh_are_those_of_one_device(mesh):
  rng = np.random.default_rng(0)
  reward = rng.normal(size=(16, 5)).astype(np.float32)
  mask = np.asarray(tiny.ragged(16, 5))
  placed = sharding.place_batch((jnp.asarray(reward), jnp.asarray(mask)))
  for estimate in (returns.leave_one_out, returns.group_normalised):

    def on_one_device(estimate=estimate):
      advantage, _ = estimate(jnp.asarray(reward), None, jnp.asarray(mask), n=4)
      return np.asarray(advantage)

    expected = tiny.unsharded(on_one_device)
    advantage, _ = jax.jit(partial(estimate, n=4))(placed[0], None, placed[1])
    np.testing.assert_allclose(advantage, expected, rtol=1e-5, atol=1e-6)


# --- a bandit whose responses can be counted: vocabulary 4, length 3 ---


class Toy(NamedTuple):
  """A policy over 64 responses, trained on a table of their scores."""

  config: ppo.PPO
  frozen: ppo.Frozen
  step: Callable  # (state, scores [64]) -> state

  def start(self, seed, beta):
    params = ppo.init_params(self.frozen.ref, self.frozen.reward)
    return steps.init_state(jax.random.key(seed), params, self.config.tx, kl_coef=beta)

  def logp(self, params):
    """The log-probability of each response, by enumeration."""
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(4)] * 3, indexing="ij"), -1).reshape(64, 3)
    tokens = jnp.concatenate([jnp.zeros((64, 1), jnp.int32), grid], 1)
    real = jnp.ones_like(tokens, bool)
    return likelihood.response_logp(self.config.lm, params, tokens, real, 3)[0].sum(1)


def toy(iterations, width=32, depth=2):
  """The rate falls to 0 at the last update: the noise of whitened advantages dies away."""
  lm = tiny.lm("gpt", vocab_size=4, width=width, depth=depth)
  schedule = optim.linear(3e-3, 8 * iterations)
  tx = optim.by_subtree(
    policy=optim.adamw(schedule, eps=1e-5), value=optim.adamw(schedule, eps=1e-5)
  )
  cfg = PPOConfig(
    minibatches=4, epochs=2, ptx_coef=0.0, ema_decay=None, value_coef=1.0, value_clip=None
  )
  config = ppo.PPO(lm=lm, tx=tx, sampling=Sampling(response=3), cfg=cfg)
  policy = lm.init(jax.random.key(0))
  frozen = ppo.Frozen(trunk={}, ref=policy, reward=tiny.reward_model(lm, 7))
  prompts = tiny.Prompts(jnp.zeros((512, 1), jnp.int32), jnp.ones((512, 1), bool))

  @jax.jit
  def step(state, table):
    key = jax.random.fold_in(state.key, state.step)
    rows = ppo.rollout(state.params, frozen, prompts, key, config)
    response = rows.tokens[:, 1:]
    scores = table[response[:, 0] * 16 + response[:, 1] * 4 + response[:, 2]]
    exp, _ = ppo.credit(state.params, frozen, rows, scores, state.kl_coef, config)
    return ppo.improve(state, frozen, exp, None, config)[0]

  return Toy(config, frozen, step)


@pytest.mark.slow
def test_policy_converges_to_the_analytic_optimum():
  """pi* = rho exp(r / beta) / Z; the trained policy has KL(pi || pi*) < .01."""
  beta, iterations = 1.0, 200  # with beta 1 no response is too rare to be met again
  bandit = toy(iterations)
  table = jax.random.normal(jax.random.key(2), (64,))
  state = bandit.start(1, beta)
  for _ in range(iterations):
    state = bandit.step(state, table)
  start = bandit.logp(bandit.frozen.ref)
  optimum = jax.nn.log_softmax(start + table / beta)
  pi = bandit.logp(state.params["policy"])
  assert float((jnp.exp(pi) * (pi - optimum)).sum()) < 0.01
  assert float((jnp.exp(start) * (start - optimum)).sum()) > 0.3


def test_a_proxy_is_overoptimised_without_a_penalty_and_not_with_it():
  """One response of 64 has a high proxy and a low gold score, as what a reward model never saw.

  Without the KL penalty the policy ends there: the proxy rises and the gold score falls below its
  start. Under a penalty that leaves it rare, the proxy rises by a part of that, and the gold score
  stays. (To where they go in the end, the test before this one says.)
  """
  beta, iterations = 2.0, 25
  bandit = toy(iterations, width=16, depth=1)
  gold = jax.random.normal(jax.random.key(2), (64,))
  exploit = int(jnp.argmin(jnp.abs(gold)))
  proxy = gold.at[exploit].set(4.0)
  gold = gold.at[exploit].set(-3.0)

  def scores_of(logp):
    p = jnp.exp(logp)
    return float((p * proxy).sum()), float((p * gold).sum())

  def trained(coefficient):
    state = bandit.start(0, coefficient)
    for _ in range(iterations):
      state = bandit.step(state, proxy)
    return scores_of(bandit.logp(state.params["policy"]))

  proxy_before, gold_before = scores_of(bandit.logp(bandit.frozen.ref))
  proxy_free, gold_free = trained(0.0)
  assert proxy_free > proxy_before + 2
  assert gold_free < gold_before - 1
  proxy_held, gold_held = trained(beta)
  assert proxy_before + 0.2 < proxy_held < proxy_free - 2
  assert gold_held > gold_before - 0.4


@pytest.mark.parametrize("rows", [4, 12])
def test_text_that_would_not_be_trained_on_is_refused(rows):
  config, state, frozen = setup(ptx_coef=1.0)
  *_, exp, _ = collect(config, state, frozen)
  text = tiny.text(config.lm, rows=rows)
  with pytest.raises(ValueError, match=f"{rows} rows of text are no multiple of 8 episodes"):
    ppo.improve(state, frozen, exp, text, config)
