"""GRPO against the trainer of TRL 1.12.0: advantages, losses with their gradients, and updates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructjax import losses, ppo, returns, rewards, settings, steps
from instructjax.rollout import Sampling
from instructjax.settings.method import GRPOConfig
from instructjax.stages import grpo as grpo_stage
from instructjax.types import Frozen, Rollout

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

trainers = pytest.importorskip("trl_trainers")
update = pytest.importorskip("trl_update")

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
close = partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-7)

# Three prompts with four responses each. One response is a single token, two fill their row.
GROUP, P, R = 4, 5, 7
LENGTHS = np.array([7, 1, 3, 5, 4, 2, 6, 3, 7, 5, 5, 2])
MASK = np.arange(R) < LENGTHS[:, None]
ROWS = len(LENGTHS)
# Two rewards. The second abstains from four responses, and both do from the sixth. The scores of
# the last group are all the same.
SCORES = np.array(
  [[1, 0], [0, 2], [3, np.nan], [0.5, 1], [2, 1], [np.nan, np.nan], [0, np.nan], [1, 0.5]]
  + [[1, 2]] * 4
)
WEIGHTS = [1.0, 0.5]


def token_lists(seed=0):
  """(prompts, responses) as lists of ids: the prompts have 3 to 5 tokens, a group has one."""
  rng = np.random.default_rng(seed)
  prompts = []
  for length in (3, 5, 4):
    prompts += [rng.integers(2, update.VOCAB, length).tolist()] * GROUP
  responses = []
  for length in LENGTHS:
    ids = rng.integers(2, update.VOCAB, length)
    if length < R:
      ids[-1] = update.EOS
    responses.append(ids.tolist())
  return prompts, responses


# Advantages


def our_scores():
  """(scores, which episodes have one) by `rewards.total`, 0 where there is none."""
  names = ("first", "second")
  sources = [rewards.Reward(name, w, texts=min, about={}) for name, w in zip(names, WEIGHTS)]
  total = rewards.total(sources, dict(zip(names, SCORES.T.astype(np.float32), strict=True)))
  scored = ~np.isnan(total)
  return np.where(scored, total, 0), scored


def our_advantages(advantage: str, total=None, scored=None):
  if total is None:
    total, scored = our_scores()
  mask = jnp.asarray(MASK & scored[:, None])
  reward = jnp.asarray(returns.at_last_token(jnp.asarray(MASK)) * total[:, None], jnp.float32)
  function = grpo_stage.advantages_of(GRPOConfig(advantage=advantage), GROUP)
  return function(reward, None, mask)[0]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_trl(tmp_path, scale):
  """The deviation divides by n - 1 in both. Both leave out what no reward scores."""
  trainer = trainers.grpo(tmp_path, scale_rewards=scale, beta=0.0)
  no_logp = lambda *a, **b: (torch.zeros(ROWS, R), None, None)
  trainer._get_per_token_logps_and_entropies = no_logp
  batch = trainers.grpo_inputs(trainer, *token_lists(), SCORES, WEIGHTS)
  want = batch["advantages"].numpy()
  got = np.asarray(our_advantages(scale))
  close(got, np.where(MASK, want[:, None], 0))
  assert (want[-GROUP:] == 0).all() and want[5] == 0 and np.abs(want).max() > 0.5
  spread = trainer._metrics["train"]["frac_reward_zero_std"][0]
  total, scored = our_scores()
  ours = ppo.group_measures(jnp.asarray(total), jnp.asarray(scored), GROUP)
  # Over the batch there is one deviation, which is not 0.
  assert spread == (0 if scale == "batch" else pytest.approx(float(ours["rollout/group_even"])))


def test_the_biased_deviation_is_neither_ours_nor_theirs(tmp_path):
  """The paper prints std and not which: dividing by n gives advantages √(4/3) as large."""
  total = SCORES[:, 0].copy()
  total[5] = 0.0
  got = np.asarray(our_advantages("group", total, np.ones(ROWS, bool)))[:GROUP, 0]
  biased = (total[:GROUP] - total[:GROUP].mean()) / total[:GROUP].std()
  np.testing.assert_allclose(got * np.sqrt(GROUP / (GROUP - 1)), biased, rtol=2e-4)


# The loss


def tokens_logp():
  """log π, log π_old and log π_ref of the tokens: ratios from about .4 to 2.5."""
  rng = np.random.default_rng(3)
  old = -rng.exponential(1.5, (ROWS, R))
  logp = old + rng.normal(0, 0.35, (ROWS, R))
  ref = logp + rng.normal(0, 0.5, (ROWS, R))
  return logp.astype(np.float32), old.astype(np.float32), ref.astype(np.float32)


# TRL's loss_type, and what ours is divided by. Theirs divides the sums by the longest response
# that there may be, as Liu et al. 2025 do, and `sequence_sum` does not.
NORMALISE = {
  "grpo": ("sequence_mean", 1.0),
  "bnpo": ("token_mean", 1.0),
  "dapo": ("token_mean", 1.0),
  "dr_grpo": ("sequence_sum", float(R)),
}
CLIPS = {
  "clip": ({"epsilon": 0.2}, {"clip": 0.2}),
  "clip_high": ({"epsilon": 0.2, "epsilon_high": 0.28}, {"clip": 0.2, "clip_high": 0.28}),
  "dual clip": ({"epsilon": 0.1, "delta": 1.5}, {"clip": 0.1, "bound": 1.5}),
}


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("loss_type", NORMALISE)
def test_loss_and_gradient_are_those_of_trl(tmp_path, loss_type, clip, beta):
  theirs, ours = CLIPS[clip]
  trainer = trainers.grpo(tmp_path, loss_type=loss_type, beta=beta, **theirs)
  logp, old, ref = tokens_logp()
  advantage = np.random.default_rng(4).normal(0, 1, ROWS).astype(np.float32)
  tlogp = torch.tensor(logp, requires_grad=True)
  mask = torch.tensor(MASK).long()
  batch = {
    "prompt_ids": torch.zeros(ROWS, P),
    "prompt_mask": torch.ones(ROWS, P),
    "completion_ids": torch.zeros(ROWS, R),
    "completion_mask": mask,
    "advantages": torch.tensor(advantage),
    "old_per_token_logps": torch.tensor(old),
    "ref_per_token_logps": torch.tensor(ref),
    "num_items_in_batch": mask.sum(),
  }
  want = trainers.grpo_loss(trainer, tlogp, batch)
  want.backward()

  cfg = GRPOConfig(normalise=NORMALISE[loss_type][0], **ours)
  policy_loss = grpo_stage.policy_loss_of(cfg)
  weight = losses.WEIGHTS[cfg.normalise](jnp.asarray(MASK))
  by_token = jnp.asarray(advantage)[:, None] * MASK
  ours_logp, ours_old, ours_ref = (jnp.asarray(x) for x in (logp, old, ref))

  def loss(x):
    total = policy_loss(x, ours_old, by_token, weight)
    total += beta * losses.kl(x, ours_ref, weight)
    return total / NORMALISE[loss_type][1]

  value, gradient = jax.value_and_grad(loss)(ours_logp)
  close(value, want.item())
  close(gradient, tlogp.grad.numpy())

  # TRL counts what the clip stops, and not what the bound of the dual clip does.
  measured = trainer._metrics["train"]
  arguments = (ours_logp, ours_old, by_token, weight)
  share = losses.share_without_gradient(policy_loss, arguments, by_token != 0, jnp.asarray(MASK))
  bounded = MASK & (np.exp(logp - old) > 1.5) & (by_token < 0) & (clip == "dual clip")
  (region,) = measured["clip_ratio/region_mean"]
  close(share, region + bounded.sum() / MASK.sum())
  assert region > 0 and bounded.any() == (clip == "dual clip")
  if beta:
    by_token_mean = losses.kl(ours_logp, ours_ref, losses.token_mean(jnp.asarray(MASK)))
    close(by_token_mean, measured["kl"][0])


# Whole updates

RATE = 0.02


def settings_of(**changes):
  """The settings of the stage for three prompts, two epochs and ratios of a clip that acts."""
  return settings.replaced(
    settings.preset("grpo", "tiny"),
    {
      "batch": ROWS // GROUP,
      "n": GROUP,
      "kl.coef": 0.04,
      "sampling.response": R,
      "grpo.epochs": 2,
      "grpo.clip": 0.02,
    }
    | {f"grpo.{name}": value for name, value in changes.items()},
  )


@pytest.mark.parametrize(
  ("theirs", "ours"),
  [
    ({"loss_type": "grpo"}, {}),
    (
      {"loss_type": "dapo", "scale_rewards": "none", "epsilon_high": 0.03},
      {"normalise": "token_mean", "advantage": "none", "clip_high": 0.03},
    ),
  ],
  ids=["grpo", "dapo"],
)
def test_new_weights_are_those_of_trl(tmp_path, theirs, ours):
  """Two epochs of SGD on one rollout by the functions of the stage; all responses are scored.

  TRL adds the KL of an unscored response to the loss, and here it is left out altogether.
  """
  policy, reference = trainers.policy_and_reference()
  prompts, responses = token_lists()
  scores = np.nan_to_num(SCORES)
  config = settings_of(**ours)
  trainer = trainers.grpo(
    tmp_path / "trl",
    model=policy,
    reference=reference,
    temperature=0.7,
    beta=config.kl.coef,
    epsilon=config.grpo.clip,
    **theirs,
  )
  batch = trainers.grpo_inputs(trainer, prompts, responses, scores, WEIGHTS)
  one_loss = lambda: trainer._compute_loss(policy, batch)
  their_losses, start = trainers.descend(policy, [one_loss, one_loss], RATE)
  clipped = trainer._metrics["train"]["clip_ratio/region_mean"]
  assert clipped[0] == 0 < clipped[1]

  lm, params = update.params_of(start, tmp_path / "start")
  _, expected = update.params_of(policy, tmp_path / "after")
  _, ref = update.params_of(reference, tmp_path / "ref")
  sampling = Sampling(response=R, temperature=0.7, eos=(update.EOS,), n=GROUP)
  experiment = grpo_stage.experiment_of(config, lm, sampling)._replace(tx=optax.sgd(RATE))
  tokens, valid = np.zeros((2, ROWS, P + R), np.int32)
  for row, (prompt, response) in enumerate(zip(prompts, responses)):
    tokens[row, P - len(prompt) : P + len(response)] = prompt + response
    valid[row, P - len(prompt) : P + len(response)] = 1
  mask = jnp.asarray(MASK)
  rows = Rollout(
    jnp.asarray(tokens), jnp.asarray(valid, bool), mask, jnp.zeros(MASK.shape), LENGTHS < R
  )
  state = steps.init_state(
    jax.random.key(0), ppo.init_params(params, None), experiment.tx, kl_coef=config.kl.coef
  )
  frozen = Frozen(trunk={}, ref=ref, reward={})
  total = jnp.asarray(scores @ WEIGHTS, jnp.float32)
  state, metrics = jax.jit(partial(ppo.learn, ppo=experiment))(state, frozen, rows, total)

  close(metrics["loss/total"], np.mean(their_losses), rtol=1e-4, atol=1e-5)
  close(metrics["policy/clipfrac_avg"], np.mean(clipped), atol=1e-6)
  if config.grpo.normalise == "token_mean":  # theirs is a mean over tokens in either case
    close(metrics["loss/kl"], np.mean(trainer._metrics["train"]["kl"]), rtol=1e-4)
  step = lambda new: jax.tree.map(lambda x, old: np.asarray(x - old), new, params)
  want, got = step(expected), step(state.params["policy"])
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
  assert largest > 1e-3
  jax.tree.map(partial(close, rtol=0, atol=1e-3 * largest), got, want)
