"""The PPO stage from a configuration: `rl_init`, a reward model or other rewards, prompts and
pretraining text.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from instructjax import optim, ppo, returns, rewards, sharding, steps
from instructjax.data.batches import buckets, corpora, pipeline
from instructjax.data.batches.mixture import Mixture
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.models import freeze, transformer
from instructjax.rollout import Sampling
from instructjax.runs import origin, writers
from instructjax.runs.origin import Origin
from instructjax.stages import common, trainable
from instructjax.types import (
  LM,
  Array,
  Demonstrations,
  Float,
  Frozen,
  Metrics,
  Prompts,
  Rollout,
  TrainState,
)

Config = Any  # ml_collections.ConfigDict: its fields are those of configs/ppo.py


def reinforce(config: Config, workdir: Path, sinks: tuple[str, ...] = ()) -> None:
  """PPO-ptx (PPO where ptx_coef is 0).

  Against the reward model alone a whole iteration is one compiled function; with
  `config.rewards` it is two, with the rewards between them.
  """
  c, updates = config, config.ppo.epochs * config.ppo.minibatches
  with common.devices(c.mesh) as parts:
    common.divides(c.batch, c.ppo.minibatches, "config.batch", "config.ppo.minibatches")
    common.divides(
      c.batch // c.ppo.minibatches, c.ppo.micro * parts, "a minibatch", "config.ppo.micro x devices"
    )
    if c.ppo.ptx_coef:
      text_rows = c.ptx_ratio * c.batch // c.ppo.minibatches
      common.divides(
        text_rows, c.ppo.ptx_micro * parts, "a minibatch of text", "config.ppo.ptx_micro x devices"
      )
    said = corpora.read(c, "prompts", "prompt")
    texts = corpora.read(c, "text", "text", lazily=c.data.lazy) if c.ppo.ptx_coef else []
    policy = origin.open_model(_named(c, "rl_init"), c.model, c.seed)
    policy, template = common.templated(c, policy)
    judge = _judge(c, policy)
    length = c.data.prompt + c.sampling.response
    for model in (policy, judge):
      origin.fits(model.lm, length, "prompt + response")
    choice(dict.fromkeys(transformer.DTYPES), c.frozen_dtype, "frozen_dtype")
    sources = rewards.open_all(c.rewards, c.model, policy, length, c.frozen_dtype)
    asked, prompts = drawn_prompts(c, said, policy.tokenizer, template)
    windows, text_print = corpora.texts(c, texts, policy.tokenizer, c.data.length)
    count = c.batch * c.ptx_ratio
    mix = (
      corpora.stream(c, windows, c.data.length, count, sharding.local_rows(count))
      if texts
      else lambda i: None
    )
    tx = optim.by_subtree(
      policy=common.optimizer(c.policy_optimizer, c.iterations * updates, updates),
      value=common.optimizer(c.value_optimizer, c.iterations * updates, updates),
    )
    settings = ppo_settings(c, policy, judge.lm, tx)
    state, frozen, about = _ppo_state(c, policy, judge, tx)
    if sources:
      frozen = dataclasses.replace(frozen, reward={})
      step = outside(settings, state, sources, asked, policy.tokenizer)
    else:
      step = steps.compiled(partial(ppo.iteration, ppo=settings), state)
    one = lambda state, batch: step(state, frozen, *batch)
    batches = lambda i: (prompts(i), mix(i))
    policy, judge = policy._replace(params={}), judge._replace(params={})
    found = common.prints(prompts=corpora.records(said), text=text_print)
    with common.run(c, workdir, sinks, found) as writer:
      if sources:
        writers.note(workdir, rewards=rewards.manifest(sources))
      state = common.train(c, workdir, writer, one, state, batches, c.iterations, about, found)
      final = state.params["policy"] if state.ema is None else state.ema["policy"]
      common.leave(workdir, int(state.iteration), common.whole(c, c.rl_init, final), about)


def drawn_prompts(
  c: Config, said: Sequence[corpora.Part], tokenizer: Tokenizer, template: chat.Template | None
) -> tuple[dict[bytes, str], Callable[[int], Prompts]]:
  """(the text of each prompt by its ids, batches of prompts).

  Raises UserError for prompts that are too long, and for a mixture in buckets.
  """
  rows = corpora.rows(
    said,
    lambda part: pipeline.prompts(
      part.records, tokenizer, prompt=c.data.prompt, name=part.source, template=template
    ),
  )
  each = itertools.chain(*rows.parts) if isinstance(rows, Mixture) else rows
  texts = {
    row.ids.tobytes(): record.prompt
    for row, record in zip(each, corpora.records(said), strict=True)
  }
  draw = {"size": c.batch, "seed": c.seed, "mine": sharding.local_rows(c.batch)}
  lengths = buckets.lengths(c.data.prompt, c.data.buckets)
  if len(lengths) == 1:
    return texts, pipeline.stream(rows, partial(pipeline.pad_prompts, length=c.data.prompt), **draw)
  if isinstance(rows, Mixture):
    raise UserError(
      f"config.data.buckets={c.data.buckets}: the batches of a mixture hold prompts of all "
      "lengths; take 1, or one source"
    )
  return texts, buckets.stream(rows, pipeline.pad_prompts, lengths=lengths, **draw)


def _named(c: Config, name: str) -> str:
  if not getattr(c, name):
    raise UserError(f"config.{name} is empty; give the directory of a finished run")
  return getattr(c, name)


def _judge(c: Config, policy: Origin) -> Origin:
  """What the value network starts as: the reward model (section 3.5), else the policy with a head
  of zeros (Ziegler et al. 2019), so that the first values are 0 and not noise.
  """
  if c.reward_model:
    judge = origin.open_reward_model(c.reward_model, c.model, policy)
    rewards.same_ids(policy, judge)
    return judge
  if not c.rewards:
    raise UserError(
      "config.reward_model is empty; give the directory of a finished run, or say in "
      "config.rewards what scores a response"
    )
  head = {"w": jnp.zeros(policy.lm.width, jnp.float32), "b": jnp.float32(0)}
  body = {name: leaf for name, leaf in policy.params.items() if name != "head"}
  return policy._replace(params=body, head=sharding.replicate(head))


def outside(
  settings: ppo.PPO,
  state: TrainState,
  sources: Sequence[rewards.Reward],
  said: Mapping[bytes, str],
  tokenizer: Tokenizer,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """`ppo.iteration` in two compiled halves with any rewards between them; `said` is the text of
  each prompt by its ids.

  The second half donates the state: where a reward fails, the state is still whole.
  """

  @jax.jit
  def draw(state: TrainState, frozen: Frozen, prompts: Prompts) -> Rollout:
    return ppo.rollout(state.params, frozen, prompts, ppo.rollout_key(state), settings)

  def learn(
    state: TrainState,
    frozen: Frozen,
    rows: Rollout,
    scores: Float[Array, " B"],
    text: Demonstrations | None,
  ) -> tuple[TrainState, Metrics]:
    stems = dict(
      zip(("policy_stem", "reward_stem"), ppo.stems(frozen, rows.tokens, rows.valid, settings))
    )
    return ppo.learn(state, frozen, rows, scores, text, ppo=settings, **stems)

  learned = steps.compiled(learn, state)

  def step(
    state: TrainState, frozen: Frozen, prompts: Prompts, text: Demonstrations | None
  ) -> tuple[TrainState, dict[str, Any]]:
    rows = draw(state, frozen, prompts)
    host = sharding.fetch(rows)
    width = host.tokens.shape[1] - host.mask.shape[1]
    asked = [
      said[ids[valid].tobytes()]
      for ids, valid in zip(host.tokens[:, :width], host.valid[:, :width], strict=True)
    ]
    scores = rewards.score_rollout(sources, rows, host, asked, tokenizer)
    total = sharding.place_batch(jnp.asarray(rewards.total(sources, scores)))
    state, metrics = learned(state, frozen, rows, total, text)
    means = {
      f"objective/score/{name}": each.mean(dtype=np.float64) for name, each in scores.items()
    }
    return state, metrics | means

  return step


def _ppo_state(
  c: Config, policy: Origin, judge: Origin, tx: optax.GradientTransformation
) -> tuple[TrainState, Frozen, dict[str, Any]]:
  """The state, what is frozen, and what is said about the policy; a trunk that both sides have is
  held once.

  With LoRA the trunk is the whole base: the reference is that with the adapter off, or with the
  one of `rl_init`.
  """
  keys = jax.random.split(jax.random.fold_in(jax.random.key(c.seed), 2))
  trunk, ref, trained, about = trainable.part(policy, c.rl_init, c, keys[0])
  below, body, value, _ = trainable.part(judge, c.reward_model or c.rl_init, c, keys[1])
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


def ppo_settings(
  c: Config, policy: Origin, reward_lm: LM, tx: optax.GradientTransformation
) -> ppo.PPO:
  """The functions of an iteration by their names in the configuration."""
  missing = {
    "keep": lambda score, ended: score,
    "replace": partial(
      returns.replace_missing_eos, value=1.0 if c.missing_eos.value is None else c.missing_eos.value
    ),
    "subtract": partial(
      returns.penalise_missing_eos,
      penalty=1.0 if c.missing_eos.value is None else c.missing_eos.value,
    ),
  }
  control = {
    "fixed": returns.fixed_kl,
    "adaptive": partial(
      returns.adaptive_kl, target=c.kl.target or 6.0, horizon=c.kl.horizon or 10_000.0
    ),
  }
  place = {"at_last_token": returns.at_last_token, "after_last_token": returns.after_last_token}
  return ppo.PPO(
    lm=policy.lm,
    tx=tx,
    cfg=c.ppo,
    reward_lm=reward_lm,
    sampling=Sampling(
      response=c.sampling.response,
      temperature=c.sampling.temperature,
      eos=policy.tokenizer.eos,
      banned=policy.tokenizer.banned,
      whole=c.sampling.whole,
    ),
    place=choice(place, c.place, "place"),
    missing_eos=choice(missing, c.missing_eos.kind, "missing_eos.kind"),
    kl_control=choice(control, c.kl.control, "kl.control"),
  )


def choice(options: Mapping[str, Any], name: str, field: str) -> Any:
  """The option of a name.  Raises UserError where there is none."""
  if name not in options:
    raise UserError(f"config.{field}={name!r}: known are {', '.join(options)}")
  return options[name]
