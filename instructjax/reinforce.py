"""The PPO stage from a configuration: `rl_init`, a reward model, prompts and pretraining text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from instructjax import optim, origin, ppo, returns, stages, steps
from instructjax.data import pipeline
from instructjax.errors import UserError
from instructjax.models import freeze, transformer
from instructjax.origin import Origin
from instructjax.rollout import Sampling
from instructjax.types import LM, Frozen, TrainState

Config = Any  # ml_collections.ConfigDict: its fields are those of configs/ppo.py


def reinforce(config: Config, workdir: Path, sinks: tuple[str, ...] = ()) -> None:
  """PPO-ptx (PPO where ptx_coef is 0) against a reward model; a whole iteration is one compiled function."""
  c, updates = config, config.ppo.epochs * config.ppo.minibatches
  with stages.devices(c.mesh) as parts:
    stages.divides(c.batch, c.ppo.minibatches, "config.batch", "config.ppo.minibatches")
    stages.divides(c.batch // c.ppo.minibatches, c.ppo.micro * parts, "a minibatch", "config.ppo.micro x devices")
    if c.ppo.ptx_coef:
      text_rows = c.ptx_ratio * c.batch // c.ppo.minibatches
      stages.divides(text_rows, c.ppo.ptx_micro * parts, "a minibatch of text", "config.ppo.ptx_micro x devices")
    asked = stages.read(c, "prompts", "prompt")
    texts = stages.read(c, "text", "text") if c.ppo.ptx_coef else []
    policy = origin.open_model(_named(c, "rl_init"), c.model, c.seed)
    judge = origin.open_reward_model(_named(c, "reward_model"), c.model, policy)
    same_ids(policy, judge)
    stages.fits(policy.lm, c.data.prompt + c.sampling.response, "prompt + response")
    stages.fits(judge.lm, c.data.prompt + c.sampling.response, "prompt + response")
    template = stages.chat_template(c, policy)
    policy = policy._replace(about=origin.with_template(policy.about, template))
    same_template(policy.about, judge)
    rows = pipeline.prompts(asked, policy.tokenizer, prompt=c.data.prompt, name=c.data.prompts, template=template)
    windows = pipeline.text(texts, policy.tokenizer, length=c.data.length, name=c.data.text) if texts else []
    prompts = pipeline.stream(rows, partial(pipeline.pad_prompts, length=c.data.prompt), size=c.batch, seed=c.seed)
    pad = partial(pipeline.pad_demonstrations, length=c.data.length)
    mix = pipeline.stream(windows, pad, size=c.batch * c.ptx_ratio, seed=c.seed) if texts else lambda i: None
    tx = optim.by_subtree(
      policy=stages.optimizer(c.policy_optimizer, c.iterations * updates, updates),
      value=stages.optimizer(c.value_optimizer, c.iterations * updates, updates),
    )
    settings = ppo_settings(c, policy, judge.lm, tx)
    state, frozen, about = _ppo_state(c, policy, judge, tx)
    step = steps.compiled(partial(ppo.iteration, ppo=settings), state)
    one = lambda state, batch: step(state, frozen, *batch)
    batches = stages.placed(lambda i: (prompts(i), mix(i)))
    policy, judge = policy._replace(params={}), judge._replace(params={})
    found = stages.prints(prompts=asked, text=texts)
    with stages.run(c, workdir, sinks, found) as writer:
      state = stages.train(c, workdir, writer, one, state, batches, c.iterations, about, found)
      final = state.params["policy"] if state.ema is None else state.ema["policy"]
      stages.leave(workdir, int(state.iteration), stages.whole(c, c.rl_init, final), about)


def _named(c: Config, name: str) -> str:
  if not c[name]:
    raise UserError(f"config.{name} is empty; give the directory of a finished run")
  return c[name]


def same_ids(policy: Origin, judge: Origin) -> None:
  """Raises UserError where policy and reward model read different ids: the reward model scores the very ids sampled."""
  if policy.tokenizer.fingerprint != judge.tokenizer.fingerprint or policy.lm.vocab_size != judge.lm.vocab_size:
    raise UserError(
      f"the policy's tokenizer ({policy.tokenizer.vocab_size} ids, {policy.tokenizer.fingerprint[:8]}) is not the "
      f"reward model's ({judge.tokenizer.vocab_size} ids, {judge.tokenizer.fingerprint[:8]}); train both from one base"
    )


def same_template(about: Mapping[str, Any], judge: Origin) -> None:
  """Raises UserError where the prompts are rendered with another chat template than the reward model was trained on."""
  names = [origin.template_of(one)[:8] or "plain text" for one in (about, judge.about)]
  if names[0] != names[1]:
    raise UserError(
      f"config.data.template gives {names[0]}, the reward model was trained on {names[1]}: it would score other ids than "
      "it learnt; set config.data.template to the reward model's"
    )


def _ppo_state(
  c: Config, policy: Origin, judge: Origin, tx: optax.GradientTransformation
) -> tuple[TrainState, Frozen, dict[str, Any]]:
  """The state, what is frozen, and what is said about the policy; a trunk that both sides have is held once.

  With LoRA the trunk is the whole base: the reference is that with the adapter off, or with the one of `rl_init`.

  Raises UserError for an unknown `frozen_dtype`.
  """
  if c.frozen_dtype not in transformer.DTYPES:
    raise UserError(f"config.frozen_dtype={c.frozen_dtype!r}: known are {', '.join(transformer.DTYPES)}")
  keys = jax.random.split(jax.random.fold_in(jax.random.key(c.seed), 2))
  trunk, ref, trained, about = origin.part(policy, c.rl_init, c, keys[0])
  below, body, value, _ = origin.part(judge, c.reward_model, c, keys[1])
  scorer = {"lm": body, "head": judge.head}
  shared = jax.tree.structure(trunk) == jax.tree.structure(below) and all(
    a is b or (a.shape == b.shape and bool(jnp.array_equal(a, b)))
    for a, b in zip(jax.tree.leaves(trunk), jax.tree.leaves(below))
  )
  params = ppo.init_params(trained, {"lm": value, "head": judge.head})
  ema = None if c.ppo.ema_decay is None else {"policy": params["policy"]}
  state = steps.init_state(jax.random.key(c.seed), params, tx, ema=ema, kl_coef=c.kl.coef)
  ref, scorer = (freeze.cast(part, c.frozen_dtype) for part in (ref, scorer))
  return state, Frozen(trunk, ref, scorer, None if shared else below), about


def ppo_settings(c: Config, policy: Origin, reward_lm: LM, tx: optax.GradientTransformation) -> ppo.PPO:
  """The functions of an iteration by their names in the configuration."""
  missing = {
    "keep": lambda score, ended: score,
    "replace": partial(returns.replace_missing_eos, value=c.missing_eos.value),
    "subtract": partial(returns.penalise_missing_eos, penalty=c.missing_eos.value),
  }
  control = {
    "fixed": returns.fixed_kl,
    "adaptive": partial(returns.adaptive_kl, target=c.kl.target, horizon=c.kl.horizon),
  }
  place = {"at_last_token": returns.at_last_token, "after_last_token": returns.after_last_token}
  return ppo.PPO(
    lm=policy.lm, tx=tx, cfg=ppo.PPOConfig(**c.ppo.to_dict()), reward_lm=reward_lm,
    sampling=Sampling(
      response=c.sampling.response, temperature=c.sampling.temperature, eos=policy.tokenizer.eos,
      banned=policy.tokenizer.banned, whole=c.sampling.whole,
    ),
    place=choice(place, c.place, "place"),
    missing_eos=choice(missing, c.missing_eos.kind, "missing_eos.kind"),
    kl_control=choice(control, c.kl.control, "kl.control"),
  )  # fmt: skip


def choice(options: Mapping[str, Any], name: str, field: str) -> Any:
  """The option of a name.  Raises UserError where there is none."""
  if name not in options:
    raise UserError(f"config.{field}={name!r}: known are {', '.join(options)}")
  return options[name]
