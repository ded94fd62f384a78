"""The three trainings of the quickstart: SFT and rl_init, a reward model, PPO with and without
pretraining text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from instructjax import optim, ppo, returns, reward, sft, steps
from instructjax.data.batches import pipeline
from instructjax.data.public import tone
from instructjax.ppo import PPO, PPOConfig
from instructjax.quickstart.world import Policy, World, checkpoints, draw, with_stem
from instructjax.reward import RewardConfig
from instructjax.rollout import Sampling
from instructjax.runs.loop import fit
from instructjax.sft import SFTConfig
from instructjax.types import Demonstrations, Frozen, Params, TrainState


def tune(
  world: World, name: str, demos: Demonstrations, text: Demonstrations | None = None
) -> Params:
  """SFT on demonstrations; with `text`, `text_share` more rows of pretraining text: the model that
  PPO starts from.
  """
  c = world.config
  count = c.sft_epochs * len(demos.tokens) // c.sft_batch
  tx = optim.adamw(optim.cosine(c.sft_lr, count), clip=1.0)
  state = steps.init_state(jax.random.key(c.seed), jax.tree.map(jnp.copy, world.base), tx)
  step = steps.compiled(
    partial(sft.sft_step, lm=world.lm, tx=tx, cfg=SFTConfig(window=c.response)), state
  )
  batches = draw(demos, c.sft_batch, c.seed)
  if text is not None:
    texts = draw(text, max(round(c.text_share * c.sft_batch), 1), c.seed)
    join = lambda a, b: jnp.concatenate([a, b])
    demos_only, batches = batches, lambda i: jax.tree.map(join, demos_only(i), texts(i))
  run = lambda state, batch: step(state, world.trunk, batch)
  state = fit(
    run,
    state,
    batches,
    steps=count,
    stage=name,
    writer=world.writer,
    checkpoints=checkpoints(world, name),
  )
  return state.params


def widen(batch: Demonstrations, length: int) -> Demonstrations:
  """Rows padded on the right to `length`."""
  pad = lambda x: jnp.pad(x, [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
  return jax.tree.map(pad, batch)


def rank(
  world: World, name: str, sft_params: Params, records: Sequence, demos: Demonstrations, seed: int
) -> Params:
  """A reward model from the SFT model on K-wise comparisons; its bias makes the demonstrations
  score 0.
  """
  c = world.config
  groups = pipeline.comparisons(
    records, world.tokenizer, prompt=c.prompt, response=c.response, name=name
  )
  data = with_stem(
    world, pipeline.pad_comparisons(groups, k=tone.K[1], length=c.prompt + c.response)
  )
  pairs = jax.tree.map(
    lambda x: x[: len(x) // 2 * 2].reshape(-1, 2, *x.shape[1:]), data
  )  # praise and criticise
  count = len(pairs.rank) * 2 // c.reward_batch
  tx = optim.adamw(optim.cosine(c.reward_lr, count), clip=1.0)
  state = steps.init_state(
    jax.random.key(seed), reward.init(jax.random.key(seed), world.lm, sft_params), tx
  )
  step = steps.compiled(partial(reward.reward_step, lm=world.lm, tx=tx, cfg=RewardConfig()), state)
  drawn = draw(pairs, c.reward_batch // 2, seed)
  batches = lambda i: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn(i))
  run = lambda state, batch: step(state, world.trunk, batch)
  state = fit(
    run,
    state,
    batches,
    steps=count,
    stage=name,
    writer=world.writer,
    checkpoints=checkpoints(world, name),
  )
  score = jax.jit(partial(reward.score, world.lm))
  scores = [
    score(reward.join(world.trunk, state.params), part.tokens, part.valid, stem=part.stem)
    for part in (
      jax.tree.map(lambda x, at=at: x[at : at + 64], demos)
      for at in range(0, len(demos.tokens), 64)
    )
  ]
  return reward.fit_bias(state.params, jnp.concatenate(scores).mean())


def improve(
  world: World,
  name: str,
  policy: Policy,
  judges: dict[str, Params],
  init: Params,
  text: Demonstrations | None,
  evaluate: Callable[[Params], dict[str, float]],
  sampling: Sampling,
) -> Params:
  """PPO from `rl_init` against the reward model, with pretraining text where there is some; the EMA
  of the policy.
  """
  c = world.config
  count = c.iterations * c.minibatches
  tx = optim.by_subtree(
    policy=optim.adamw(optim.warmup_constant(c.ppo_lr, c.minibatches), eps=1e-5, clip=1.0),
    value=optim.adamw(optim.cosine(c.value_lr, count), eps=1e-5, clip=1.0),
  )
  settings = PPO(
    lm=world.lm,
    tx=tx,
    sampling=sampling,
    cfg=PPOConfig(
      minibatches=c.minibatches,
      ptx_coef=c.ptx_coef if text else 0.0,
      ptx_micro=c.ptx_micro,
      ema_decay=c.ema_decay,
    ),
    missing_eos=partial(returns.penalise_missing_eos, penalty=c.eos_penalty),
  )
  params = ppo.init_params(init, judges["reward"])
  state = steps.init_state(
    jax.random.key(c.seed), params, tx, ema={"policy": params["policy"]}, kl_coef=c.kl_coef
  )
  frozen = Frozen(world.trunk, init, judges["reward"])
  learn = steps.compiled(
    lambda state, frozen, rows, scores, text, stem: ppo.learn(
      state, frozen, rows, scores, text, ppo=settings, policy_stem=stem, reward_stem=stem
    ),
    state,
  )

  def step(state: TrainState, batch):
    prompts, texts = batch
    rows = policy.sample(state.params["policy"], prompts, ppo.rollout_key(state))
    stem, scores = policy.score(judges, rows)
    state, metrics = learn(state, frozen, rows, scores["reward"], texts, stem)
    return state, metrics | {"eval/gold": scores["gold"].mean()}

  rows = pipeline.prompts(world.tasks.prompts, world.tokenizer, prompt=c.prompt, name="prompts")
  prompts = pipeline.stream(
    rows, partial(pipeline.pad_prompts, length=c.prompt), size=c.episodes, seed=c.seed
  )
  texts = draw(text, c.episodes * c.ptx_ratio, c.seed) if text else lambda i: None
  state = fit(
    step,
    state,
    lambda i: (prompts(i), texts(i)),
    steps=c.iterations,
    stage=name,
    writer=world.writer,
    checkpoints=checkpoints(world, name),
    evaluate=lambda state: evaluate(state.params["policy"]),
    evaluate_every=-(-c.iterations // 4),
  )
  return (state.ema or state.params)["policy"]
