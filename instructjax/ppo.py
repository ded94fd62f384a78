"""PPO of a language model against a reward model, with the pretraining mix.

    maximise  E_{(x,y) ~ π} [r_θ(x,y) - β log(π(y|x) / π_ref(y|x))] + γ E_{x ~ pretrain} [log π(x)]

(Ouyang et al. 2022, section 3.5, Eq. 2). An iteration is one pure function: `rollout`, `score`,
`credit`, then `improve`. Each part can be jitted alone, so that the score may come from any Python
function between them. The environment is a bandit: one response, one score.

What a new method changes is a function in a field of `PPO`: the advantages, the losses, and where
the KL is paid. RLOO and GRPO are such fields (docs/research.md has an example of each). Where
the parameters hold no "value", there is no value network: the advantages must then need none.

Scores and updates are computed on packed episodes (`packs`), so that padding costs next to nothing.
Everything else, and what the functions here take and return, has a row an episode.

There are up to three trunks. The untrained blocks of the policy are shared with its reference. The
reward model and the value network share a trunk of their own, or the policy's where
`Frozen.reward_trunk` is None. A `stem` is what a trunk makes of the tokens; it never changes, so it
is computed once an iteration.

Dimensions: B episodes, P prompt, R response, T = P + R, S pretraining tokens, D width,
N minibatches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from instructjax import (
  likelihood,
  losses,
  optim,
  packs,
  returns,
  reward,
  sharding,
  steps,
)
from instructjax.models import heads
from instructjax.rollout import Sampling, sample, useful_share
from instructjax.settings.method import PPOConfig
from instructjax.system import keys
from instructjax.types import (
  LM,
  Array,
  Bool,
  Branch,
  Demonstrations,
  Experience,
  Float,
  Frozen,
  Int,
  Key,
  Metrics,
  Params,
  Prompts,
  PyTree,
  Rollout,
  Scalar,
  TrainState,
  Valid,
)


class PPO(NamedTuple):
  """The functions and settings of one experiment; a function that is None is that of the paper.

  A loss is given weights that are shares of the minibatch, and sums weight × term over tokens
  (`losses`). Its arrays are packed rows: neighbours in a row may belong to different episodes.
  """

  lm: LM
  tx: optax.GradientTransformation
  sampling: Sampling
  cfg: PPOConfig = PPOConfig()
  # The language model under the reward and value networks; None is the policy's.
  reward_lm: LM | None = None
  # Whether the score is paid at the last token or after it.
  place: Callable = returns.at_last_token
  # Changes the score of a response that did not end.
  missing_eos: Callable = lambda score, ended: score
  # Maps (coefficient, mean KL in nats an episode, episodes) to the next KL coefficient.
  kl_control: Callable = returns.fixed_kl
  # Maps (reward, value, mask), each [B, R], to (advantage, target): `returns.gae` with
  # `cfg.discount` and `cfg.lam`. The responses of a prompt follow each other. Value and target are
  # None where there is no value network, and an episode without a score has no mark.
  advantages: Callable | None = None
  # Maps (logp, old_logp, advantage, weight) to a loss: `losses.clipped_policy` with `cfg.clip`.
  policy_loss: Callable | None = None
  # Maps (value, old_value, target, weight) to a loss: `losses.clipped_value` with `cfg.value_clip`.
  value_loss: Callable | None = None
  # Maps (logp, ref_logp) to the KL of each token that the reward is reduced by; None pays none.
  kl_reward: Callable | None = returns.kl_k1
  # Maps (logp, ref_logp, weight) to a KL that is added to the loss, such as `losses.kl`. Both KLs
  # have the coefficient of the state.
  kl_loss: Callable | None = None
  # Maps (entropy, weight) to a term that is added to the loss, such as `losses.entropy_bonus`.
  entropy_loss: Callable | None = None


def init_params(policy: Params, reward_params: Params | None) -> Params:
  """Returns a policy from `rl_init`, and a value network that starts as the reward model.

  The value network has its own parameters, and its bias is the reward model's (section 3.5).
  Without `reward_params` there is none.

  Example:
    >>> print(sorted(ppo.init_params(params, model)))
    ['policy', 'value']
  """
  params = {"policy": jax.tree.map(jnp.copy, policy)}
  if reward_params is None:
    return params
  return params | {
    "value": jax.tree.map(jnp.copy, reward_params),
  }


# The two sides: the policy with its reference, and the reward model with the value network


def stems(
  frozen: Frozen,
  rows: Rollout,
  ppo: PPO,
) -> tuple[Array | None, Array | None]:
  """Returns the activations of the untrained trunk of the policy side and of the reward side.

  A side that trains all of its blocks has no stem.

  Example:
    >>> print(ppo.stems(frozen, rows, experiment))  # no block is frozen
    (None, None)
  """
  # The reward model reads an end of text at the end of a response that was cut. Policy and value
  # network never read that position: they look at the state before each token. So one stem does for
  # all of them.
  tokens = reward.closed(rows, ppo.sampling.eos)

  def stem(lm: LM, trunk: Params) -> Array | None:
    if "lower" not in trunk:
      return None
    layout = lay_out(rows, ppo)

    def stem_of_part(part: packs.Part) -> Array | None:
      return lm.stem(trunk, packs.take_tokens(part, tokens), part.valid, part.branch)

    packed = steps.rows_of_parts(stem_of_part, layout.parts, layout.count)
    return packs.give_tokens(layout, packed, rows.valid, rows.mask.shape[1])

  policy_stem = stem(ppo.lm, frozen.trunk)
  if frozen.reward_trunk is None:
    return policy_stem, policy_stem
  return policy_stem, stem(_reward_lm(ppo), frozen.reward_trunk)


def _reward_lm(ppo: PPO) -> LM:
  """The language model under the reward and value networks."""
  return ppo.reward_lm or ppo.lm


def reward_side(frozen: Frozen, params: Params) -> Params:
  """Returns a reward or value model joined with the trunk of its side."""
  trunk = frozen.reward_trunk
  if trunk is None:
    trunk = frozen.trunk
  return reward.join(trunk, params)


def lay_out(rows: Rollout, ppo: PPO) -> packs.Layout:
  """Packs all episodes of an iteration, for their scores."""
  mask = returns.value_mask(rows.mask, ppo.place)
  minibatch = rows.tokens.shape[0] // ppo.cfg.minibatches
  return _lay_out(rows.tokens, rows.valid, mask, minibatch, ppo, learnt=False)


def _lay_out(
  tokens: Int[Array, "B T"],
  valid: Valid,
  value_mask: Bool[Array, "B R"],
  minibatch: int,
  ppo: PPO,
  *,
  learnt: bool,
) -> packs.Layout:
  """Packs episodes; a minibatch has so many of them."""
  response = value_mask.shape[1]
  form = form_of(tokens.shape[1] - response, response, minibatch, ppo.sampling.n)
  rows = rows_at_once(minibatch, form, ppo.cfg, learnt=learnt)
  return packs.lay_out(tokens, valid, value_mask, rows, form)


def form_of(prompt: int, response: int, minibatch: int, n: int) -> packs.Form:
  """Returns the form of packed rows where each prompt has n responses that follow each other."""
  together = together_of(minibatch, n)
  groups = minibatch // sharding.batch_shards() // together
  return packs.form_of(prompt, response, together, groups)


def together_of(minibatch: int, n: int) -> int:
  """Returns how many responses of a prompt stay together: all n, or else each stands alone.

  All do where the minibatch of each device is made of whole groups.
  """
  return whole_groups(minibatch // sharding.batch_shards(), n)


def whole_groups(episodes: int, n: int) -> int:
  """Returns n where episodes are made of whole groups of n, else 1."""
  return n if episodes % n == 0 else 1


def rows_at_once(minibatch: int, form: packs.Form, cfg: PPOConfig, *, learnt: bool) -> int:
  """Returns the rows that a device computes at once where a minibatch has so many episodes.

  `learnt` is whether they are learnt from, or else scored alone.
  """
  return packs.rows_at_once(
    form.most_rows(minibatch // sharding.batch_shards()),
    form.positions,
    rows=cfg.rows_at_once,
    micro=cfg.micro,
    learnt=learnt,
  )


def most_parts(episodes: int, form: packs.Form, cfg: PPOConfig) -> tuple[int, int]:
  """Returns in how many parts all episodes are scored and a minibatch is learnt from, at most.

  That is where all of them have full length.
  """
  minibatch = episodes // cfg.minibatches
  shards = sharding.batch_shards()
  parts = []
  for count, learnt in ((episodes, False), (minibatch, True)):
    rows = rows_at_once(minibatch, form, cfg, learnt=learnt)
    parts.append(math.ceil(form.most_rows(count // shards) / rows))
  return parts[0], parts[1]


def policy_logp(
  lm: LM,
  params: Params,
  rows: Experience | packs.Rows,
  stem: Array | None,
  sampling: Sampling,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
  """Returns (logp, entropy) of the response tokens, at the temperature of the sampler.

  Example:
    >>> logp, entropy = ppo.policy_logp(lm, params, exp, None, experiment.sampling)
    >>> print(logp.shape)
    (2, 3)
  """
  response = rows.mask.shape[1]
  return likelihood.response_logp(
    lm,
    params,
    rows.tokens,
    rows.valid,
    response,
    before=rows.before,
    targets=rows.targets,
    branch=rows.branch,
    temperature=sampling.temperature,
    banned=sampling.banned,
    stem=stem,
  )


def response_values(
  lm: LM,
  params: Params,
  rows: Experience | packs.Rows,
  stem: Array | None,
) -> Float[Array, "B R"]:
  """Returns V of the state before each response token.

  Example:
    >>> print(ppo.response_values(lm, state.params["value"], exp, None).shape)
    (2, 3)
  """
  response = rows.mask.shape[1]
  hidden = lm.hidden(params["lm"], rows.tokens, rows.valid, branch=rows.branch, stem=stem)
  before = likelihood.states_before(hidden, response, rows.before)
  return heads.values(params["head"], before)


def token_scores(
  lm: LM,
  params: Params,
  tokens: Int[Array, "B T"],
  valid: Valid,
  stem: Array | None,
  branch: Branch | None = None,
) -> Float[Array, "B T"]:
  """Returns what a reward model gives at every token.

  Example:
    >>> print(ppo.token_scores(lm, frozen.reward, rows.tokens, rows.valid, None).shape)
    (2, 5)
  """
  hidden = lm.hidden(params["lm"], tokens, valid, branch=branch, stem=stem)
  return heads.values(params["head"], hidden)


# Experience: sample, score, credit


def rollout(
  params: Params,
  frozen: Frozen,
  prompts: Prompts,
  key: Key[Array, ""],
  ppo: PPO,
) -> Rollout:
  """Samples `sampling.n` responses to each prompt from the current policy, which follow each other.

  Raises:
    ValueError: when the settings cut the distribution. The ratios and the KL of PPO are of whole
      distributions. Also where ratios would begin at the log-probabilities of a sampler whose
      weights or cache are int8.

  Example:
    >>> sampled = ppo.rollout(state.params, frozen, prompts, ppo.rollout_key(state), experiment)
    >>> print(sampled.mask.shape)
    (2, 3)
  """
  sampling = ppo.sampling
  if sampling.top_k or sampling.top_p < 1:
    raise ValueError(f"PPO samples from the whole distribution, this does not: {sampling}")
  if sampling.is_rounded and ppo.cfg.old_logp == "sampler":
    raise ValueError(
      "old_logp='sampler' takes the log-probabilities of a model that int8 has rounded: its ratios "
      "would not begin at the policy that learns; choose old_logp='trainer'"
    )
  # The policy that samples is the one that learns, with the same weights.
  policy = frozen.trunk | params["policy"]
  return sample(ppo.lm, policy, prompts, key, sampling)


def score(
  frozen: Frozen,
  rows: Rollout,
  ppo: PPO,
  stem: Array | None = None,
) -> Float[Array, " B"]:
  """Returns r_θ(x, y) of each episode, read at its end of text (`reward.closed`).

  Example:
    >>> print(ppo.score(frozen, rows, experiment).shape)
    (2,)
  """
  lm = _reward_lm(ppo)
  params = reward_side(frozen, frozen.reward)
  tokens = reward.closed(rows, ppo.sampling.eos)
  layout = lay_out(rows, ppo)

  def scores_of_part(part: packs.Part) -> Array:
    part_tokens, part_stem = packs.take_tokens(part, (tokens, stem))
    return token_scores(lm, params, part_tokens, part.valid, part_stem, part.branch)

  packed = steps.rows_of_parts(scores_of_part, layout.parts, layout.count)
  scores = packs.give_tokens(layout, packed, rows.valid, rows.mask.shape[1])
  last = returns.at_last_token(rows.valid)
  return jnp.sum(jnp.where(last, scores, 0), axis=1)


def credit(
  params: Params,
  frozen: Frozen,
  rows: Rollout,
  score: Float[Array, " B"],
  kl_coef: Scalar,
  ppo: PPO,
  policy_stem: Array | None = None,
  reward_stem: Array | None = None,
  scored: Bool[Array, " B"] | None = None,
) -> tuple[Experience, Metrics]:
  """Turns scores into a reward, an advantage and a target for every token.

  `scored` says which episodes have a score; None is all of them. The tokens of the others have no
  mark in the experience: they weigh nothing in the losses and in what is whitened, so an update is
  that of the scored episodes alone. Their KL counts, since they were sampled as the others were.

  Raises:
    ValueError: where the advantages are those of the paper and there is no value network, and where
      there is one and the advantages have no target for it.

  Example:
    >>> scores = jnp.array([1.0, 2.0])
    >>> exp, metrics = ppo.credit(state.params, frozen, rows, scores, state.kl_coef, experiment)
    >>> print(exp.advantage.shape, metrics["objective/scores"])
    (2, 3) 1.5
  """
  cfg = ppo.cfg
  mask = rows.mask
  value_mask = returns.value_mask(mask, ppo.place)
  learnt, value_learnt = mask, value_mask
  if scored is not None:
    learnt, value_learnt = mask & scored[:, None], value_mask & scored[:, None]

  policy = frozen.trunk | params["policy"]
  reference = frozen.trunk | frozen.ref
  # The trainer computes the log-probabilities again, because those of the sampler differ in the
  # last bits. With `old_logp` "sampler" it does not, and the first update starts at its own.
  recompute = cfg.old_logp == "trainer"
  # The value network lies on the reward side: it started as the reward model.
  value_model = reward_side(frozen, params["value"]) if "value" in params else None

  def measure(part: packs.Part) -> tuple[Array, Array | None, tuple[Array, ...]]:
    packed = packs.rows_of(part, rows.tokens, mask)
    stem, value_stem = packs.take_tokens(part, (policy_stem, reward_stem))
    ref_logp, _ = policy_logp(ppo.lm, reference, packed, stem, ppo.sampling)
    value = None
    if value_model is not None:
      value = response_values(_reward_lm(ppo), value_model, packed, value_stem)
    if not recompute:
      return ref_logp, value, ()
    return ref_logp, value, policy_logp(ppo.lm, policy, packed, stem, ppo.sampling)

  layout = lay_out(rows, ppo)
  measured = steps.rows_of_parts(measure, layout.parts, layout.count)
  ref_logp, value, of_policy = packs.give_responses(layout, measured, value_mask)
  logp = of_policy[0] if recompute else rows.logp
  kl = (logp - ref_logp) * mask
  if value is not None:
    value = value * value_mask

  paid = ppo.missing_eos(score, rows.ended)
  paid_kl = jnp.zeros_like(kl)
  if ppo.kl_reward is not None:
    paid_kl = jnp.where(mask, ppo.kl_reward(logp, ref_logp), 0)
  token_reward = returns.token_rewards(paid, paid_kl, mask, kl_coef, place=ppo.place)
  if cfg.whiten_reward:
    # The mean stays: to move it would pay for long responses, or for short ones.
    token_reward = returns.whiten(token_reward, value_learnt, shift_mean=False)
  # The value mask, so that a score that is paid after the end reaches the advantages.
  advantage, target = _advantages(ppo)(token_reward, value, value_learnt)
  if value is not None and target is None:
    raise ValueError(
      "the advantages have no target for the value network: leave it out, ppo.init_params(policy, "
      "None), or let the function return (advantage, target)"
    )

  experience = Experience(
    tokens=rows.tokens,
    valid=rows.valid,
    mask=learnt,
    value_mask=value_learnt,
    logp=logp * mask,
    value=value,
    advantage=advantage,
    target=target,
    stem=policy_stem,
    # A shared trunk has one stem, which is held once.
    value_stem=None if frozen.reward_trunk is None else reward_stem,
    ref_logp=None if ppo.kl_loss is None else ref_logp * mask,
  )
  # Sums over the tokens of an episode, in nats.
  episode_kl = kl.sum(1)
  episode_paid_kl = paid_kl.sum(1)
  episode_kl_k2 = (returns.kl_k2(logp, ref_logp) * mask).sum(1)
  episode_kl_k3 = jnp.where(mask, returns.kl_k3(logp, ref_logp), 0).sum(1)
  length = mask.sum(1)
  metrics = {
    "objective/scores": score.mean(where=scored),
    "objective/scores_std": score.std(where=scored),
    "objective/kl": episode_kl.mean(),
    "objective/kl_k2": episode_kl_k2.mean(),
    "objective/kl_k3": episode_kl_k3.mean(),
    "objective/kl_coef": kl_coef,
    "objective/non_score_reward": -kl_coef * episode_paid_kl.mean(),
    "objective/rlhf_reward": (paid - kl_coef * episode_paid_kl).mean(where=scored),
    "val/advantage_mean": returns.masked_mean(advantage, value_learnt),
    "val/advantage_std": jnp.sqrt(returns.masked_var(advantage, value_learnt)),
    "response/tokens": length.sum().astype(jnp.float32),
    "response/len_mean": length.mean(dtype=jnp.float32),
    "response/len_max": length.max().astype(jnp.float32),
    "response/eos_frac": rows.ended.mean(dtype=jnp.float32),
    "scoring/useful": packs.useful(layout),
  }
  if scored is not None:
    metrics["rollout/abstained"] = 1 - scored.mean(dtype=jnp.float32)
  if ppo.sampling.n > 1:
    metrics |= group_measures(score, scored, ppo.sampling.n)
  if rows.computed is not None:
    metrics["rollout/useful"] = useful_share(rows, ppo.sampling.n)
  if recompute:
    _, entropy = of_policy
    metrics |= policy_measures(logp, entropy, rows.logp, mask)
  return experience, metrics


def _advantages(ppo: PPO) -> Callable:
  """The function (reward, value, mask) -> (advantage, target)."""
  if ppo.advantages is not None:
    return ppo.advantages

  def generalised(reward: Array, value: Array | None, mask: Array) -> tuple[Array, Array]:
    if value is None:
      raise ValueError(
        "generalised advantages need a value network, and the parameters have none: give PPO "
        "advantages that need none, such as partial(returns.leave_one_out, n=4)"
      )
    return returns.gae(
      reward,
      value,
      mask,
      discount=ppo.cfg.discount,
      lam=ppo.cfg.lam,
    )

  return generalised


def group_measures(
  score: Float[Array, " B"],
  scored: Bool[Array, " B"] | None,
  n: int,
) -> Metrics:
  """Returns how far the scores of the n responses of a prompt are apart.

  `rollout/group_std` is the mean of their standard deviations. `rollout/group_even` is the share of
  prompts whose responses all have the same score, from which nothing is learnt.
  """
  if scored is None:
    scored = jnp.ones_like(score, bool)
  _, std = returns.group_statistics(score, scored, n)
  return {
    "rollout/group_std": std.mean(),
    "rollout/group_even": jnp.mean(std == 0, dtype=jnp.float32),
  }


def policy_measures(
  logp: Float[Array, "B R"],
  entropy: Float[Array, "B R"],
  sampled_logp: Float[Array, "B R"],
  mask: Bool[Array, "B R"],
) -> Metrics:
  """Returns what only the trainer's own pass of the policy that sampled can measure."""
  error = jnp.abs(sampled_logp - logp)
  return {
    "objective/entropy": (entropy * mask).sum(1).mean(),
    # How far sampler and trainer are apart: rounding, or a bug.
    "rollout/logp_error": returns.masked_mean(error, mask),
    "rollout/logp_error_max": jnp.max(error * mask),
  }


def sampled_kl(frozen: Frozen, rows: Rollout, ppo: PPO) -> Float[Array, " B"]:
  """Returns Σ log(π(y|x) / π_ref(y|x)) of each response, in nats, as it was sampled.

  π is the policy that sampled, by the log-probabilities of the sampler: it may have learnt since.

  Example:
    >>> print(ppo.sampled_kl(frozen, rows, experiment).shape)
    (2,)
  """
  reference_params = frozen.trunk | frozen.ref

  def measure(part: packs.Part) -> Array:
    packed = packs.rows_of(part, rows.tokens, rows.mask)
    ref_logp, _ = policy_logp(ppo.lm, reference_params, packed, None, ppo.sampling)
    return ref_logp

  layout = lay_out(rows, ppo)
  measured = steps.rows_of_parts(measure, layout.parts, layout.count)
  ref_logp = packs.give_responses(layout, measured, rows.mask)
  return jnp.sum((rows.logp - ref_logp) * rows.mask, axis=1)


# Losses and updates


def ppo_loss(
  params: Params,
  batch: tuple[Experience, Float[Array, "B R"], Float[Array, "B R"]],
  key,
  *,
  frozen: Frozen,
  ppo: PPO,
  first: Bool[Array, ""] | bool = False,
  kl_coef: Scalar | float = 0.0,
) -> tuple[Scalar, tuple[Array, Array | None, Array]]:
  """Policy loss + value_coef * value loss, and the terms of the KL and of the entropy, if any.

  `batch` holds the experience, the weight of each token in the policy loss and its weight in the
  value loss. The key is not read: PPO runs without dropout. `first` says that the policy is still
  the one that sampled: its ratios are then exactly 1. `kl_coef` is the weight of `PPO.kl_loss`.

  Returns:
    The loss, and (logp, value, entropy) as the rows of `steps.gradients`.

  Example:
    >>> weight = losses.token_mean(mask)
    >>> batch = (exp, weight, weight)
    >>> loss, measured = ppo.ppo_loss(state.params, batch, None, frozen=frozen, ppo=experiment)
    >>> print(loss.shape, len(measured))
    () 3
  """
  exp, weight, value_weight = batch
  cfg = ppo.cfg
  policy = frozen.trunk | params["policy"]
  logp, entropy = policy_logp(ppo.lm, policy, exp, exp.stem, ppo.sampling)
  loss = _policy_loss(ppo)(
    logp,
    jnp.where(first, jax.lax.stop_gradient(logp), exp.logp),
    exp.advantage,
    weight,
  )
  if ppo.kl_loss is not None:
    loss += kl_coef * ppo.kl_loss(logp, exp.ref_logp, weight)
  if ppo.entropy_loss is not None:
    loss += ppo.entropy_loss(entropy, weight)

  value = None
  if "value" in params:
    value_model = reward_side(frozen, params["value"])
    value_stem = exp.stem if frozen.reward_trunk is None else exp.value_stem
    value = response_values(_reward_lm(ppo), value_model, exp, value_stem)
    loss += cfg.value_coef * _value_loss(ppo)(value, exp.value, exp.target, value_weight)
  # As a metric the entropy has no gradient.
  return loss, (logp, value, jax.lax.stop_gradient(entropy))


def _policy_loss(ppo: PPO) -> Callable:
  """The function (logp, old_logp, advantage, weight) -> loss."""
  return ppo.policy_loss or partial(losses.clipped_policy, clip=ppo.cfg.clip)


def _value_loss(ppo: PPO) -> Callable:
  """The function (value, old_value, target, weight) -> loss."""
  return ppo.value_loss or partial(losses.clipped_value, clip=ppo.cfg.value_clip)


def ptx_loss(
  policy: Params,
  batch: tuple[Demonstrations, Float[Array, " B"]],
  key,
  *,
  frozen: Frozen,
  ppo: PPO,
) -> tuple[Scalar, tuple[()]]:
  """The pretraining loss - E log π(x), with the weight of each row's tokens (`row_shares`).

  It is minimised with the weight γ, where Eq. 2 maximises γ E log π(x).

  Example:
    >>> batch = (text, ppo.row_shares(text, "token_mean"))
    >>> loss, _ = ppo.ptx_loss(params, batch, None, frozen=frozen, ppo=experiment)
    >>> print(loss.shape)
    ()
  """
  text, share = batch
  logp, mask = likelihood.masked_logp(ppo.lm, frozen.trunk | policy, text)
  weight = mask * share[:, None]
  return losses.nll(logp, weight), ()


def row_shares(
  text: Demonstrations,
  normalise: str,
) -> Float[Array, " B"]:
  """Returns the weight that every token of a row has in the pretraining loss.

  A row carries its share into its micro-batch, and so the loss is that of the whole minibatch.

  Example:
    >>> print(ppo.row_shares(text, "token_mean"))  # five marked tokens
    [0.2 0.2]
  """
  # The first token of a row is never predicted, so its mask does not count.
  weight = losses.WEIGHTS[normalise](text.mask[:, 1:])
  # The tokens of a row share one weight; the others have none.
  return jnp.max(weight, axis=1)


def minibatch_step(
  state: TrainState,
  batch: tuple[Experience, Demonstrations | None],
  *,
  frozen: Frozen,
  ppo: PPO,
  first: Bool[Array, ""] | bool = False,
) -> tuple[TrainState, Metrics]:
  """Adds γ times the pretraining gradients to those of PPO, then makes one update (App. C.4).

  Where the log-probabilities of the experience are the sampler's, `first` says that nothing was
  learnt since (`ppo_loss`).

  Example:
    >>> step = jax.jit(partial(ppo.minibatch_step, frozen=frozen, ppo=experiment))
    >>> state, metrics = step(state, (exp, None))
    >>> print(state.step, f"{metrics['policy/ratio_max']:.3f}")
    1 1.000
  """
  cfg = ppo.cfg
  exp, text = batch
  if cfg.whiten_advantage:
    # Over the minibatch, before it is split into micro-batches.
    advantage = returns.whiten(exp.advantage, exp.mask)
    exp = dataclasses.replace(exp, advantage=advantage)

  # Weights are shares of the minibatch: parts carry theirs along.
  weigh = losses.WEIGHTS[cfg.normalise]
  weights = (weigh(exp.mask), weigh(exp.value_mask))

  def loss_of_part(params: Params, part: packs.Part, key) -> tuple[Scalar, PyTree]:
    packed = packs.experience(part, exp)
    packed_weights = packs.take_responses(part, weights)
    batch = (packed, *packed_weights)
    return ppo_loss(
      params,
      batch,
      key,
      frozen=frozen,
      ppo=ppo,
      first=first,
      kl_coef=0.0 if state.kl_coef is None else state.kl_coef,
    )

  episodes = exp.tokens.shape[0]
  layout = _lay_out(exp.tokens, exp.valid, exp.value_mask, episodes, ppo, learnt=True)
  grads, loss, measured = steps.gradients_of_parts(
    loss_of_part,
    state.params,
    layout.parts,
    count=layout.count,
  )
  logp, value, entropy = packs.give_responses(layout, measured, exp.value_mask)
  old_logp = jnp.where(first, logp, exp.logp)
  # The terms of other losses are those of the whole minibatch, without their gradient. Where such
  # a loss clips is seen by its gradient alone.
  weight, value_weight = weights
  metrics = {
    "loss/total": loss,
    **losses.policy_metrics(logp, old_logp, exp.advantage, exp.mask, clip=cfg.clip),
    "policy/entropy_avg": returns.masked_mean(entropy, exp.mask),
    "grad/norm_ppo": optax.tree.norm(grads["policy"]),
    "update/useful": packs.useful(layout),
  }
  if value is not None:
    assert exp.value is not None and exp.target is not None  # `credit` made them of a network
    metrics |= losses.value_metrics(
      value,
      exp.value,
      exp.target,
      exp.value_mask,
      clip=cfg.value_clip,
    )
    metrics["grad/norm_value"] = optax.tree.norm(grads["value"])
    if ppo.value_loss is not None:
      value_arguments = (value, exp.value, exp.target, value_weight)
      metrics["loss/value_avg"] = ppo.value_loss(*value_arguments)
      metrics["val/clipfrac_avg"] = losses.share_without_gradient(
        ppo.value_loss, value_arguments, value != exp.target, exp.value_mask
      )
  if ppo.policy_loss is not None:
    arguments = (logp, old_logp, exp.advantage, weight)
    metrics["loss/policy_avg"] = ppo.policy_loss(*arguments)
    metrics["policy/clipfrac_avg"] = losses.share_without_gradient(
      ppo.policy_loss, arguments, exp.advantage != 0, exp.mask
    )
  if ppo.kl_loss is not None:
    metrics["loss/kl"] = ppo.kl_loss(logp, exp.ref_logp, weight)
  if ppo.entropy_loss is not None:
    metrics["loss/entropy"] = ppo.entropy_loss(entropy, weight)
  if cfg.old_logp == "sampler":
    metrics |= policy_measures(logp, entropy, exp.logp, exp.mask)

  if text is not None:
    # The pretraining loss touches the policy alone. It has micro-batches of its own, because its
    # rows are more than the episodes (the paper: 8 to 1).
    ptx_grads, ptx, _ = steps.gradients(
      partial(ptx_loss, frozen=frozen, ppo=ppo),
      state.params["policy"],
      (text, row_shares(text, cfg.ptx_normalise)),
      micro=cfg.ptx_micro,
    )
    policy_grads = jax.tree.map(
      lambda g, p: g + cfg.ptx_coef * p,
      grads["policy"],
      ptx_grads,
    )
    grads = grads | {"policy": policy_grads}
    metrics["loss/ptx"] = ptx
    metrics["grad/norm_ptx"] = cfg.ptx_coef * optax.tree.norm(ptx_grads)

  decay = cfg.ema_decay if cfg.ema_every == "minibatch" else None
  state = steps.update(state, grads, ppo.tx, ema_decay=decay)
  return state, metrics


def order(
  key: Key[Array, ""],
  rows: int,
  cfg: PPOConfig,
  together: int = 1,
) -> Int[Array, "EN M"]:
  """Returns the row numbers of each minibatch: [epochs * N, rows / N].

  Every row occurs once an epoch, and each epoch has a new permutation. Rows that stand `together`,
  such as the responses to one prompt, stay so.

  Raises:
    ValueError: when the rows do not divide into minibatches.

  Example:
    >>> print(ppo.order(jax.random.key(0), 4, ppo.PPOConfig(minibatches=2, epochs=1)).shape)
    (2, 2)
  """
  if rows % cfg.minibatches:
    raise ValueError(f"{rows} episodes do not divide into {cfg.minibatches} minibatches")

  def permute(epoch):
    groups = jax.random.permutation(jax.random.fold_in(key, epoch), rows // together)
    return packs.rows_of_groups(groups, together)

  permutations = jnp.stack([permute(epoch) for epoch in range(cfg.epochs)])
  updates = cfg.epochs * cfg.minibatches
  return permutations.reshape(updates, rows // cfg.minibatches)


def improve(
  state: TrainState,
  frozen: Frozen,
  exp: Experience,
  text: Demonstrations | None,
  ppo: PPO,
) -> tuple[TrainState, Metrics]:
  """Makes epochs * minibatches optimizer updates on one batch of experience.

  Metrics are means over the updates, but for those whose name ends in `_max` or `_min`.
  `policy/ratio_first` is the largest ratio of the first update, and `policy/ema_distance` how far
  the average of the weights lies behind them, as a share of their norm. Where the sampler's
  log-probabilities are taken, `objective/entropy`, `rollout/logp_error` and its maximum are those
  of the first minibatch.

  Raises:
    ValueError: when ptx_coef asks for pretraining text and there is none, and when its rows are no
      multiple of the episodes. The rest would never be trained on.

  Example:
    >>> improve = jax.jit(partial(ppo.improve, text=None, ppo=experiment))
    >>> state, metrics = improve(state, frozen, exp)
    >>> print(state.step, f"{metrics['policy/ratio_first']:.3f}")
    1 1.000
  """
  cfg = ppo.cfg
  if cfg.ptx_coef and text is None:
    raise ValueError(
      f"ptx_coef is {cfg.ptx_coef} and there is no pretraining text: give some, or set it to 0"
    )
  rows = exp.tokens.shape[0]
  text_rows = 0 if text is None else text.tokens.shape[0]
  if cfg.ptx_coef and (text_rows < rows or text_rows % rows):
    raise ValueError(f"{text_rows} rows of text are no multiple of {rows} episodes")

  shards = sharding.batch_shards()
  lengths = sharding.reshard(jnp.sum(exp.valid > 0, axis=1, dtype=jnp.int32), None)

  sampled = cfg.old_logp == "sampler"
  minibatch = rows // cfg.minibatches
  together = together_of(minibatch, ppo.sampling.n)

  def update_on(state, numbered_episodes):
    number, episodes = numbered_episodes
    if shards > 1:
      # All of them compute as long as the fullest one. A minibatch keeps its episodes.
      episodes = episodes[packs.deal(lengths[episodes], shards, together)]
    minibatch = _take(exp, episodes)
    text_minibatch = None
    if text is not None and cfg.ptx_coef:
      # Each episode brings the same number of pretraining rows, which lie next to each other.
      ratio = text_rows // rows
      rows_of_text = episodes[:, None] * ratio + jnp.arange(ratio)
      text_minibatch = _take(text, rows_of_text.reshape(-1))
    return minibatch_step(
      state,
      (minibatch, text_minibatch),
      frozen=frozen,
      ppo=ppo,
      first=(number == 0) if sampled else False,
    )

  # The key is new in each iteration, because the step has moved on.
  order_key = keys.key_for(state.key, "minibatches", state.step)
  # The order is the same on every mesh, also where no device has whole groups of a minibatch.
  minibatches = order(order_key, rows, cfg, whole_groups(minibatch, ppo.sampling.n))
  numbers = jnp.arange(minibatches.shape[0])
  state, metrics = jax.lax.scan(update_on, state, (numbers, minibatches))

  summary = {}
  for name, per_update in metrics.items():
    if name.endswith("_max"):
      summary[name] = per_update.max()
    elif name.endswith("_min"):
      summary[name] = per_update.min()
    else:
      summary[name] = per_update.mean()
  # Padding left out, and each token once, however often it is learnt from.
  summary["tokens/episodes"] = jnp.sum(exp.valid > 0)
  summary["tokens/real"] = summary["tokens/episodes"]
  if text is not None and cfg.ptx_coef:
    summary["tokens/real"] += jnp.sum(text.valid > 0)
  # 1 up to rounding, and exactly 1 with `old_logp` "sampler": nothing has been learnt yet.
  summary["policy/ratio_first"] = metrics["policy/ratio_max"][0]
  if sampled:
    for name in ("objective/entropy", "rollout/logp_error", "rollout/logp_error_max"):
      summary[name] = metrics[name][0]

  average = state.ema
  if cfg.ema_decay is not None and cfg.ema_every == "iteration" and average is not None:
    averaged_params = {name: state.params[name] for name in average}
    average = optim.ema(average, averaged_params, cfg.ema_decay)
    state = dataclasses.replace(state, ema=average)
  if average is not None:
    current = {name: state.params[name] for name in average}
    behind = jax.tree.map(jnp.subtract, current, average)
    summary["policy/ema_distance"] = optax.tree.norm(behind) / optax.tree.norm(current)
  return state, summary


def _take(tree: PyTree, rows: Int[Array, " M"]) -> PyTree:
  """The rows of these numbers, split over the devices as a batch is."""

  def take_leaf(x):
    spec = sharding.spec("batch", *[None] * (x.ndim - 1))
    return x.at[rows].get(out_sharding=spec)

  return jax.tree.map(take_leaf, tree)


# An iteration


def rollout_key(state: TrainState) -> Key[Array, ""]:
  """Returns the key of this iteration's samples.

  It is new for each iteration, and the same after a restart.

  Example:
    >>> print(ppo.rollout_key(state).shape)
    ()
  """
  return keys.key_for(state.key, "responses", state.step)


def learn(
  state: TrainState,
  frozen: Frozen,
  rows: Rollout,
  scores: Float[Array, " B"],
  text: Demonstrations | None = None,
  *,
  ppo: PPO,
  policy_stem: Array | None = None,
  reward_stem: Array | None = None,
  scored: Bool[Array, " B"] | None = None,
) -> tuple[TrainState, Metrics]:
  """Credits scored episodes, improves on them and sets the next KL coefficient.

  This is an iteration without its first half, for scores that come from outside: any function of
  the rollout may make them. `scored` says which episodes have one (`credit`); None is all of them.
  The stems are those of `stems`, where a trunk is frozen; without them they are computed again.

  Raises:
    ValueError: when the state has no KL coefficient.

  Example:
    >>> scores = rows.ended.astype(jnp.float32)  # any function of the responses
    >>> learn = jax.jit(partial(ppo.learn, text=None, ppo=experiment))
    >>> state, metrics = learn(state, frozen, rows, scores)
    >>> print(state.iteration, metrics["objective/scores"])
    1 0.5
  """
  kl_coef = state.kl_coef
  if kl_coef is None:
    raise ValueError("PPO needs a KL coefficient in its state: steps.init_state(..., kl_coef=0.02)")
  exp, rollout_metrics = credit(
    state.params,
    frozen,
    rows,
    scores,
    kl_coef,
    ppo,
    policy_stem,
    reward_stem,
    scored,
  )
  return update(state, frozen, exp, rollout_metrics, text, ppo)


def update(
  state: TrainState,
  frozen: Frozen,
  exp: Experience,
  rollout_metrics: Metrics,
  text: Demonstrations | None,
  ppo: PPO,
) -> tuple[TrainState, Metrics]:
  """The last part of an iteration: improves on the experience and sets the next KL coefficient.

  `rollout_metrics` are those of `credit`, which the metrics of the iteration include.

  Example:
    >>> measured = {"objective/kl": jnp.float32(0)}
    >>> state, metrics = ppo.update(state, frozen, exp, measured, None, experiment)
    >>> print(state.iteration, state.kl_coef)
    1 0.02
  """
  kl_coef = state.kl_coef
  assert kl_coef is not None  # the episodes were credited with it
  state, metrics = improve(state, frozen, exp, text, ppo)
  episodes = exp.tokens.shape[0]
  state = dataclasses.replace(
    state,
    kl_coef=ppo.kl_control(kl_coef, rollout_metrics["objective/kl"], episodes),
    iteration=state.iteration + 1,
  )
  return state, rollout_metrics | metrics


def iteration(
  state: TrainState,
  frozen: Frozen,
  prompts: Prompts,
  text: Demonstrations | None = None,
  *,
  ppo: PPO,
) -> tuple[TrainState, Metrics]:
  """Samples, scores, credits and improves: a whole PPO-ptx iteration, to be jitted and donated.

  `text` holds a fixed number of pretraining rows for each prompt (the paper: 8). It is None when
  ptx_coef is 0.

  Example:
    >>> iterate = jax.jit(partial(ppo.iteration, ppo=experiment))
    >>> state, metrics = iterate(state, frozen, prompts, None)
    >>> print(state.iteration, metrics["objective/kl"].shape)
    1 ()
  """
  rows = rollout(state.params, frozen, prompts, rollout_key(state), ppo)
  policy_stem, reward_stem = stems(frozen, rows, ppo)
  scores = score(frozen, rows, ppo, reward_stem)
  return learn(
    state,
    frozen,
    rows,
    scores,
    text,
    ppo=ppo,
    policy_stem=policy_stem,
    reward_stem=reward_stem,
  )


# What is promised; the other functions are the parts of these.
__all__ = [
  "PPO",
  "PPOConfig",
  "credit",
  "improve",
  "init_params",
  "iteration",
  "learn",
  "minibatch_step",
  "order",
  "policy_logp",
  "ppo_loss",
  "ptx_loss",
  "response_values",
  "rollout",
  "rollout_key",
  "row_shares",
  "sampled_kl",
  "score",
  "stems",
  "token_scores",
  "update",
]
