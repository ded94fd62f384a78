"""A whole PPO update against TRL 1.12.0: its arrays, its losses, its new weights."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructjax import losses, ppo, returns, steps
from instructjax.rollout import Sampling
from instructjax.types import Frozen, Rollout

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

trl = pytest.importorskip("trl_update")

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
MASK = np.arange(trl.R) < trl.LENGTHS[:, None]
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "whitened rewards"])
def update(request, tmp_path_factory):
  """Four epochs of Adam: from the second on the ratio leaves 1 and the clip acts."""
  adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-3, eps=1e-5)
  with pytest.MonkeyPatch.context() as patch:
    return trl.run(
      patch, str(tmp_path_factory.mktemp("trl")), adam, 4, request.param
    ), request.param


def experience(update, whiten_rewards: bool):
  """(old_logp, value, advantage, target, mask, value_mask) from TRL's log-probabilities, values,
  scores.
  """
  (logp,), (ref,) = jax.tree.map(jnp.asarray, update.seen["selective_log_softmax"][:2])
  (full_value, _), (_, score) = jax.tree.map(jnp.asarray, update.seen["get_reward"])
  mask, place = jnp.asarray(MASK), returns.after_last_token
  wide = returns.value_mask(mask, place)
  value = jnp.where(wide, full_value[:, trl.P - 1 : -1, 0], 0)
  score = returns.penalise_missing_eos(score, jnp.asarray(trl.ENDED), penalty=trl.PENALTY)
  reward = returns.token_rewards(score, returns.kl_k1(logp, ref), mask, trl.KL_COEF, place=place)
  if whiten_rewards:
    reward = returns.whiten(reward, wide, shift_mean=False, unbiased=True)
  advantage, target = returns.gae(reward, value, wide)
  return logp, value, advantage, target, mask, wide


def test_advantages_are_those_of_trl(update):
  run, whiten_rewards = update
  *_, advantage, target, mask, _ = experience(run, whiten_rewards)
  raw, whitened = run.seen["masked_whiten"][-1]
  close(advantage, raw)
  close(returns.whiten(advantage, mask, unbiased=True), np.where(MASK, whitened, 0))
  assert len(run.seen["masked_whiten"]) == 1 + whiten_rewards
  assert np.abs(target).max() > 0.1


def test_losses_of_every_epoch_are_those_of_trl(update):
  run, whiten_rewards = update
  old_logp, value, advantage, target, mask, wide = experience(run, whiten_rewards)
  advantage = returns.whiten(advantage, mask, unbiased=True)
  new_logps = [jnp.asarray(logp) for (logp,) in run.seen["selective_log_softmax"][2:]]
  assert len(new_logps) == 4
  means = [float(out) for (out,) in run.seen["masked_mean"]]
  # of each epoch: value loss, its clip fraction, policy loss, its clip fraction
  per_epoch = np.array(means[-16:]).reshape(4, 4)
  for logp, (_, _, policy, clipped) in zip(new_logps, per_epoch):
    close(losses.clipped_policy(logp, old_logp, advantage, losses.token_mean(mask)), policy)
    metrics = losses.policy_metrics(logp, old_logp, advantage, mask)
    close(metrics["policy/clipfrac_avg"], clipped)
  assert per_epoch[1:, 3].max() > 0
  first = losses.clipped_value(value, value, target, losses.token_mean(wide))
  close(2 * first, per_epoch[0, 0], rtol=1e-4)
  close(run.metrics["loss/policy_avg"], per_epoch[:, 2].mean())


# The same update by `instructjax.ppo`, from the same weights


@pytest.mark.parametrize(
  ("theirs", "ours", "epochs"),
  [
    (lambda p: torch.optim.SGD(p, lr=0.1), optax.sgd(0.1), 1),
    (lambda p: torch.optim.Adam(p, lr=1e-3, eps=1e-3), optax.adam(1e-3, eps=1e-3), 4),
  ],
  ids=["one step of SGD", "four epochs of Adam"],
)
def test_new_weights_are_those_of_trl(tmp_path, monkeypatch, theirs, ours, epochs):
  """TRL pays at e + 1, subtracts for a missing end, whitens the whole batch by the unbiased
  variance.

  Its heads have no bias, so the bias of ours stays where it is.
  """
  with monkeypatch.context() as patch:
    run = trl.run(patch, str(tmp_path / "trl"), theirs, epochs, False)
  load = lambda models: {
    name: trl.params_of(net, tmp_path / name) for name, net in models._asdict().items()
  }
  before, after = load(run.before), load(run.after)
  lm = before["policy"][0]
  weights = {name: params for name, (_, params) in before.items()}
  still = {"policy": False, "value": {"lm": False, "head": {"w": False, "b": True}}}
  settings = ppo.PPO(
    lm=lm,
    tx=optax.chain(ours, optax.masked(optax.set_to_zero(), still)),
    sampling=Sampling(response=trl.R, temperature=trl.TEMPERATURE + 1e-7, eos=(trl.EOS,)),
    cfg=ppo.PPOConfig(
      epochs=epochs,
      minibatches=1,
      ptx_coef=0.0,
      value_coef=trl.VF_COEF,
      whiten_advantage=False,
      ema_decay=None,
    ),
    place=returns.after_last_token,
    missing_eos=partial(returns.penalise_missing_eos, penalty=trl.PENALTY),
  )
  prompts, responses = trl.rollout()
  tokens = jnp.asarray(np.concatenate([prompts, responses], axis=1))
  valid = jnp.concatenate([jnp.asarray(prompts != trl.PAD), MASK], axis=1)
  rows = Rollout(tokens, valid, jnp.asarray(MASK), jnp.zeros(MASK.shape), jnp.asarray(trl.ENDED))
  frozen = Frozen(trunk={}, ref=weights["ref"], reward=weights["reward"])
  params = {"policy": weights["policy"], "value": weights["value"]}
  # TRL scores a response that was cut at its last token; here an end of text would stand there.
  as_sampled = settings._replace(sampling=replace(settings.sampling, eos=()))
  scores = ppo.score(frozen, rows, as_sampled)
  exp, stats = ppo.credit(params, frozen, rows, scores, jnp.float32(trl.KL_COEF), settings)
  exp = exp.replace(advantage=returns.whiten(exp.advantage, exp.mask, unbiased=True))
  state = steps.init_state(jax.random.key(0), params, settings.tx)
  state, metrics = ppo.improve(state, frozen, exp, None, settings)
  for name in "objective/kl", "objective/non_score_reward", "objective/rlhf_reward":
    close(stats[name], run.metrics[name], err_msg=name)
  for name in "loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg", "val/clipfrac_avg":
    close(metrics[name], run.metrics[name], err_msg=name)
  diluted = metrics["policy/approxkl_avg"] * MASK.mean()  # theirs is a mean over padding too
  close(diluted, run.metrics["policy/approxkl_avg"])
  for part in "policy", "value":
    step = lambda new, part=part: jax.tree.map(
      lambda x, old: np.asarray(x - old), new, weights[part]
    )
    want, got = step(after[part][1]), step(state.params[part])
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    assert largest > 1e-3
    jax.tree.map(partial(close, rtol=0, atol=1e-3 * largest), got, want)
