"""PPO of a language model against a reward model, with the pretraining mix (Ouyang et al. 2022,
section 3.5, Eq. 2).

    maximise  E_{(x,y) ~ pi} [ r_theta(x,y) - beta log(pi(y|x) / pi_ref(y|x)) ] + gamma E_{x ~
    pretrain} [ log pi(x) ]

An iteration is one pure function: `rollout`, `score`, `credit`, then `improve`.  Each part can
be jitted alone, so that the score may come from any Python function between them.  The
environment is a bandit: one response, one score. Dimensions: B episodes, P prompt, R response, T
= P + R, S pretraining tokens, D width, N minibatches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from instructjax import likelihood, losses, optim, returns, reward, sharding, steps
from instructjax.models import heads
from instructjax.rollout import Sampling, sample
from instructjax.settings.method import PPOConfig
from instructjax.types import (
  LM,
  Array,
  Demonstrations,
  Experience,
  Float,
  Frozen,
  Key,
  Metrics,
  Params,
  Prompts,
  Rollout,
  TrainState,
)


class PPO(NamedTuple):
  """The functions and settings of one experiment.

  `reward_lm` is the language model under the reward and value networks (None: the policy's).
  `place` pays the score at or after the last token, `missing_eos` changes the score of a
  response that did not end, `kl_control` gives the next KL coefficient from (coefficient, mean
  KL in nats an episode, episodes).
  """

  lm: LM
  tx: optax.GradientTransformation
  sampling: Sampling
  cfg: PPOConfig = PPOConfig()
  reward_lm: LM | None = None
  place: Callable = returns.at_last_token
  missing_eos: Callable = lambda score, ended: score
  kl_control: Callable = returns.fixed_kl


def init_params(policy: Params, reward_params: Params) -> Params:
  """Policy from `rl_init`; a value network of its own that starts as the reward model, bias
  included (section 3.5).
  """
  return {"policy": jax.tree.map(jnp.copy, policy), "value": jax.tree.map(jnp.copy, reward_params)}


def stems(
  frozen: Frozen, tokens: Array, valid: Array, ppo: PPO
) -> tuple[Array | None, Array | None]:
  """Activations of the untrained trunk, computed once for the policy side and once for the reward
  side.
  """
  run = lambda lm, trunk: lm.stem(trunk, tokens, valid) if "lower" in trunk else None
  policy = run(ppo.lm, frozen.trunk)
  if frozen.reward_trunk is None:
    return policy, policy
  return policy, run(ppo.reward_lm or ppo.lm, frozen.reward_trunk)


def reward_side(frozen: Frozen, params: Params) -> Params:
  """A reward or value model joined with the trunk of its side."""
  return reward.join(frozen.trunk if frozen.reward_trunk is None else frozen.reward_trunk, params)


def policy_logp(
  lm: LM, params: Params, rows: Experience | Rollout, stem: Array | None, sampling: Sampling
):
  """(logp, entropy) [B, R] of the response tokens, at the temperature they were sampled with."""
  R = rows.mask.shape[1]
  return likelihood.response_logp(
    lm,
    params,
    rows.tokens,
    rows.valid,
    R,
    temperature=sampling.temperature,
    banned=sampling.banned,
    stem=stem,
  )


def response_values(
  lm: LM, params: Params, rows: Experience | Rollout, stem: Array | None
) -> Float[Array, "B R"]:
  """V of the state before each response token."""
  hidden = lm.hidden(params["lm"], rows.tokens, rows.valid, stem=stem)
  return heads.values(params["head"], hidden[:, -rows.mask.shape[1] - 1 : -1])


def rollout(
  params: Params, frozen: Frozen, prompts: Prompts, key: Key[Array, ""], ppo: PPO
) -> Rollout:
  """One response per prompt from the current policy.  Raises ValueError for a cut distribution and
  for several responses.
  """
  if ppo.sampling.top_k or ppo.sampling.top_p < 1 or ppo.sampling.n > 1:
    raise ValueError(
      f"PPO draws one response from the whole distribution, this does not: {ppo.sampling}"
    )
  return sample(ppo.lm, frozen.trunk | params["policy"], prompts, key, ppo.sampling)


def score(frozen: Frozen, rows: Rollout, ppo: PPO, stem: Array | None = None) -> Float[Array, " B"]:
  """r_theta(x, y) of each episode."""
  lm = ppo.reward_lm or ppo.lm
  return reward.score(lm, reward_side(frozen, frozen.reward), rows.tokens, rows.valid, stem=stem)


def credit(
  params: Params,
  frozen: Frozen,
  rows: Rollout,
  score: Float[Array, " B"],
  kl_coef: Float[Array, ""],
  ppo: PPO,
  policy_stem: Array | None = None,
  reward_stem: Array | None = None,
) -> tuple[Experience, Metrics]:
  """Turns scores into a reward, an advantage and a target for every token."""
  cfg, mask = ppo.cfg, rows.mask
  logp, entropy = policy_logp(
    ppo.lm, frozen.trunk | params["policy"], rows, policy_stem, ppo.sampling
  )
  ref_logp, _ = policy_logp(ppo.lm, frozen.trunk | frozen.ref, rows, policy_stem, ppo.sampling)
  kl = (logp - ref_logp) * mask
  value_mask = returns.value_mask(mask, ppo.place)
  value = (
    response_values(
      ppo.reward_lm or ppo.lm, reward_side(frozen, params["value"]), rows, reward_stem
    )
    * value_mask
  )
  paid = ppo.missing_eos(score, rows.ended)
  token_reward = returns.token_rewards(paid, kl, mask, kl_coef, place=ppo.place)
  if cfg.whiten_reward:
    token_reward = returns.whiten(token_reward, value_mask, shift_mean=False)
  advantage, target = returns.gae(
    token_reward, value, value_mask, discount=cfg.discount, lam=cfg.lam
  )
  experience = Experience(
    tokens=rows.tokens,
    valid=rows.valid,
    mask=mask,
    value_mask=value_mask,
    logp=logp * mask,
    value=value,
    advantage=advantage,
    target=target,
    stem=policy_stem,
    value_stem=None if frozen.reward_trunk is None else reward_stem,
  )
  kl_sum = kl.sum(1)
  metrics = {
    "objective/scores": score.mean(),
    "objective/scores_std": score.std(),
    "objective/kl": kl_sum.mean(),
    "objective/kl_k2": returns.masked_mean(returns.kl_k2(logp, ref_logp), mask),
    "objective/kl_k3": returns.masked_mean(returns.kl_k3(logp, ref_logp), mask),
    "objective/kl_coef": kl_coef,
    "objective/entropy": (entropy * mask).sum(1).mean(),
    "objective/non_score_reward": -kl_coef * kl_sum.mean(),
    "objective/rlhf_reward": (paid - kl_coef * kl_sum).mean(),
    "response/len_mean": mask.sum(1).mean(dtype=jnp.float32),
    "response/len_max": mask.sum(1).max().astype(jnp.float32),
    "response/eos_frac": rows.ended.mean(dtype=jnp.float32),
    "rollout/logp_error": jnp.max(jnp.abs(rows.logp - logp) * mask),
  }
  return experience, metrics


def ppo_loss(
  params: Params,
  batch: tuple[Experience, Float[Array, "B R"], Float[Array, "B R"]],
  key,
  *,
  frozen: Frozen,
  ppo: PPO,
) -> tuple[Float[Array, ""], tuple[Array, Array, Array]]:
  """Clipped policy loss + value_coef * clipped value loss; rows are (logp, value, entropy)."""
  exp, weight, value_weight = batch
  cfg = ppo.cfg
  logp, entropy = policy_logp(ppo.lm, frozen.trunk | params["policy"], exp, exp.stem, ppo.sampling)
  value_stem = exp.stem if frozen.reward_trunk is None else exp.value_stem
  value = response_values(
    ppo.reward_lm or ppo.lm, reward_side(frozen, params["value"]), exp, value_stem
  )
  policy_loss = losses.clipped_policy(logp, exp.logp, exp.advantage, weight, clip=cfg.clip)
  value_loss = losses.clipped_value(value, exp.value, exp.target, value_weight, clip=cfg.value_clip)
  return policy_loss + cfg.value_coef * value_loss, (logp, value, jax.lax.stop_gradient(entropy))


def ptx_loss(
  policy: Params, batch: tuple[Demonstrations, Float[Array, " B"]], key, *, frozen: Frozen, ppo: PPO
) -> tuple[Float[Array, ""], tuple[()]]:
  """- E log pi(x) over pretraining text, a token mean.  Minimised: Eq. 2 adds gamma E log pi(x)."""
  text, share = batch
  logp, mask = likelihood.masked_logp(ppo.lm, frozen.trunk | policy, text)
  return losses.nll(logp, mask * share[:, None]), ()


def minibatch_step(
  state: TrainState, batch: tuple[Experience, Demonstrations | None], *, frozen: Frozen, ppo: PPO
) -> tuple[TrainState, Metrics]:
  """PPO gradients plus gamma times the pretraining gradients, then one optimizer update (App. C.4)."""
  cfg = ppo.cfg
  exp, text = batch
  if cfg.whiten_advantage:
    exp = dataclasses.replace(exp, advantage=returns.whiten(exp.advantage, exp.mask))
  weights = losses.token_mean(exp.mask), losses.token_mean(exp.value_mask)
  loss = partial(ppo_loss, frozen=frozen, ppo=ppo)
  grads, value, (logp, values, entropy) = steps.gradients(
    loss, state.params, (exp, *weights), micro=cfg.micro
  )
  metrics = {
    "loss/total": value,
    **losses.policy_metrics(logp, exp.logp, exp.advantage, exp.mask, clip=cfg.clip),
    **losses.value_metrics(values, exp.value, exp.target, exp.value_mask, clip=cfg.value_clip),
    "policy/entropy_avg": returns.masked_mean(entropy, exp.mask),
    "grad/norm_ppo": optax.tree.norm(grads["policy"]),
    "grad/norm_value": optax.tree.norm(grads["value"]),
  }
  if text is not None and cfg.ptx_coef:
    share = jnp.full(
      text.tokens.shape[0], 1.0 / jnp.maximum(text.mask[:, 1:].sum(), 1), jnp.float32
    )
    loss = partial(ptx_loss, frozen=frozen, ppo=ppo)
    ptx_grads, ptx, _ = steps.gradients(
      loss, state.params["policy"], (text, share), micro=cfg.ptx_micro
    )
    grads = grads | {
      "policy": jax.tree.map(lambda g, p: g + cfg.ptx_coef * p, grads["policy"], ptx_grads)
    }
    metrics |= {"loss/ptx": ptx, "grad/norm_ptx": cfg.ptx_coef * optax.tree.norm(ptx_grads)}
  decay = cfg.ema_decay if cfg.ema_every == "minibatch" else None
  return steps.update(state, grads, ppo.tx, ema_decay=decay), metrics


def order(key: Key[Array, ""], rows: int, cfg: PPOConfig) -> Array:
  """[epochs * N, rows / N] row numbers: every row once an epoch, a new permutation each epoch."""
  keys = jax.random.split(key, cfg.epochs)
  permutations = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys)
  return permutations.reshape(cfg.epochs * cfg.minibatches, rows // cfg.minibatches)


def improve(
  state: TrainState, frozen: Frozen, exp: Experience, text: Demonstrations | None, ppo: PPO
) -> tuple[TrainState, Metrics]:
  """epochs x minibatches optimizer updates on one batch of experience; metrics are means, first and
  last by name.
  """
  cfg = ppo.cfg
  if cfg.ptx_coef and text is None:
    raise ValueError(
      f"ptx_coef is {cfg.ptx_coef} and there is no pretraining text: give some, or set it to 0"
    )
  rows = exp.tokens.shape[0]
  take = lambda x, at: x.at[at].get(out_sharding=sharding.spec("batch", *[None] * (x.ndim - 1)))
  at = order(jax.random.fold_in(state.key, state.step), rows, cfg)

  def body(state, at):
    batch = jax.tree.map(lambda x: take(x, at), exp)
    texts = None
    if text is not None and cfg.ptx_coef:
      ratio = text.tokens.shape[0] // rows
      at_text = (at[:, None] * ratio + jnp.arange(ratio)).reshape(-1)
      texts = jax.tree.map(lambda x: take(x, at_text), text)
    return minibatch_step(state, (batch, texts), frozen=frozen, ppo=ppo)

  state, metrics = jax.lax.scan(body, state, at)
  summary = {
    name: value.max() if name.endswith("_max") else value.mean() for name, value in metrics.items()
  }
  if cfg.ema_decay is not None and cfg.ema_every == "iteration" and state.ema is not None:
    average = optim.ema(state.ema, {name: state.params[name] for name in state.ema}, cfg.ema_decay)
    state = dataclasses.replace(state, ema=average)
  return state, summary | {"policy/ratio_first": metrics["policy/ratio_max"][0]}


def rollout_key(state: TrainState) -> Key[Array, ""]:
  """The key of this iteration's samples: new for each iteration, the same after a restart."""
  return jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)


def learn(
  state: TrainState,
  frozen: Frozen,
  rows: Rollout,
  scores: Float[Array, " B"],
  text: Demonstrations | None,
  *,
  ppo: PPO,
  policy_stem: Array | None = None,
  reward_stem: Array | None = None,
) -> tuple[TrainState, Metrics]:
  """Credits and improves on scored episodes, then sets the next KL coefficient: an iteration
  without its first half.
  """
  if state.kl_coef is None:
    raise ValueError("PPO needs a KL coefficient in its state: steps.init_state(..., kl_coef=0.02)")
  kl_coef = state.kl_coef
  exp, stats = credit(state.params, frozen, rows, scores, kl_coef, ppo, policy_stem, reward_stem)
  state, metrics = improve(state, frozen, exp, text, ppo)
  kl_coef = ppo.kl_control(kl_coef, stats["objective/kl"], rows.tokens.shape[0])
  state = dataclasses.replace(state, kl_coef=kl_coef, iteration=state.iteration + 1)
  return state, stats | metrics


def iteration(
  state: TrainState, frozen: Frozen, prompts: Prompts, text: Demonstrations | None, *, ppo: PPO
) -> tuple[TrainState, Metrics]:
  """Samples, scores, credits and improves: a whole PPO-ptx iteration as one function to be jitted
  and donated.

  `text` holds `ratio` pretraining rows for each prompt row (the paper: 8); None when ptx_coef is 0.
  """
  rows = rollout(state.params, frozen, prompts, rollout_key(state), ppo)
  policy_stem, reward_stem = stems(frozen, rows.tokens, rows.valid, ppo)
  scores = score(frozen, rows, ppo, reward_stem)
  return learn(
    state, frozen, rows, scores, text, ppo=ppo, policy_stem=policy_stem, reward_stem=reward_stem
  )
