"""The GRPO stage: a policy from rewards alone, whose responses to a prompt are compared.

It is PPO (`ppo`) with other functions: advantages within a group, a KL in the loss, and no value
network. Rewards come between the rollout and the scoring, as any other than PPO's own reward model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from instructjax import losses, optim, ppo, returns, sharding, steps
from instructjax.data.batches import corpora
from instructjax.errors import UserError
from instructjax.models import freeze
from instructjax.rollout import Sampling
from instructjax.runs import origin
from instructjax.runs.stopwatch import stopwatch
from instructjax.settings.grpo import GRPOSettings
from instructjax.settings.method import GRPOConfig
from instructjax.stages import looking, running, trainable, trips
from instructjax.stages import ppo as ppo_stage
from instructjax.stages.wiring import (
  Part,
  Stage,
  learning_rate,
  missing_eos,
  optimizer,
  require_multiple,
  rows_of,
  share_of_real,
)
from instructjax.system import keys
from instructjax.system.places import AnyPath
from instructjax.types import (
  LM,
  Experience,
  Frozen,
  Metrics,
  Params,
  Prompts,
  Rollout,
  TrainState,
)


def row_length(settings: GRPOSettings) -> int:
  """Tokens of an episode: a prompt and its response."""
  return settings.data.prompt + settings.sampling.response


def check_batch(settings: GRPOSettings, shards: int) -> None:
  """Raises UserError where prompts or episodes do not divide over the devices."""
  require_multiple(settings.batch, shards, "config.batch", "devices")
  require_multiple(
    settings.episodes // settings.grpo.minibatches,
    settings.grpo.micro * shards,
    f"config.batch={settings.batch}, config.n={settings.n}: a minibatch",
    "config.grpo.micro x devices",
  )


def advantages_of(grpo: GRPOConfig, n: int) -> Callable:
  """How the responses of a group are compared."""
  if grpo.advantage == "leave_one_out":
    return partial(returns.leave_one_out, n=n)
  return partial(returns.group_normalised, n=n, scale=grpo.advantage)


def policy_loss_of(grpo: GRPOConfig) -> Callable:
  """The loss of the policy."""
  if grpo.bound is not None:
    return partial(losses.dual_clipped_policy, clip=grpo.clip, bound=grpo.bound)
  return partial(losses.clipped_policy, clip=grpo.clip, clip_high=grpo.clip_high)


def experiment_of(settings: GRPOSettings, policy: LM, sampling: Sampling) -> ppo.PPO:
  """The functions and settings of an iteration."""
  updates = settings.updates
  tx = optimizer(settings.optimizer, policy, settings.iterations * updates, updates)
  in_loss = settings.grpo.kl == "loss"
  return ppo.PPO(
    lm=policy,
    tx=optim.by_subtree(policy=tx),
    sampling=sampling,
    cfg=settings.ppo,
    missing_eos=missing_eos(settings.missing_eos),
    kl_control=ppo_stage.kl_control(settings.kl),
    advantages=advantages_of(settings.grpo, settings.n),
    policy_loss=policy_loss_of(settings.grpo),
    kl_reward=None if in_loss else returns.kl_k1,
    kl_loss=losses.kl if in_loss else None,
  )


def learning_rates(settings: GRPOSettings) -> dict[str, optim.Schedule]:
  """The learning rate, by the name under which it is logged; it counts iterations."""
  updates = settings.updates
  return {"lr": learning_rate(settings.optimizer, settings.iterations * updates, updates)}


def wire(settings: GRPOSettings, experiment: ppo.PPO, *, adapter_goes_on: bool = False) -> Stage:
  """The stage on a policy, as three programs: rollout, scoring and update.

  Raises UserError where batches do not divide over the mesh, or rows are longer than the context.
  """
  check_batch(settings, sharding.batch_shards())
  policy = experiment.lm
  origin.fits(policy, row_length(settings), "config.data.prompt + config.sampling.response")

  def init(key: Any, policy_params: Params) -> tuple[TrainState, Frozen]:
    """With LoRA the reference is the base with its adapter off, or with that of `rl_init`."""
    mine = trainable.split(
      policy,
      policy_params,
      keys.key_for(key, "adapter"),
      settings,
      adapter_goes_on=adapter_goes_on,
    )
    params = ppo.init_params(mine.trained, None)
    state = steps.new_state(key, params, experiment.tx, kl_coef=settings.kl.coef)
    return state, Frozen(mine.trunk, freeze.cast(mine.start, settings.frozen_dtype), {})

  shape = (settings.batch, settings.data.prompt)
  batch = {"prompts": Prompts(rows_of(shape, jnp.int32), rows_of(shape, jnp.bool_))}
  parts = parts_of(settings, experiment)
  rollout, scoring, update = (part.function for part in parts)

  def step(state: TrainState, frozen: Frozen, batch: dict[str, Any]) -> Any:
    rows = rollout(state, frozen, batch["prompts"])
    return update(state, frozen, scoring(state, frozen, rows))

  return Stage("grpo", init, step, batch, parts, settings.iterations)


def parts_of(settings: GRPOSettings, experiment: ppo.PPO) -> tuple[Part, ...]:
  """An iteration as the three programs that need memory at different times."""

  def rollout(state: TrainState, frozen: Frozen, prompts: Prompts) -> Rollout:
    return ppo.rollout(state.params, frozen, prompts, ppo.rollout_key(state), experiment)

  def scoring(state: TrainState, frozen: Frozen, rows: Rollout) -> tuple[Experience, Metrics]:
    policy_stem, reward_stem = ppo.stems(frozen, rows, experiment)
    # What comes from outside costs the device nothing, whatever it is.
    scores = jnp.zeros_like(rows.logp[:, 0])
    assert state.kl_coef is not None  # `init` sets it
    return ppo.credit(
      state.params,
      frozen,
      rows,
      scores,
      state.kl_coef,
      experiment,
      policy_stem,
      reward_stem,
    )

  update_with_text = ppo_stage.update_of(learning_rates(settings), experiment)

  def update(state: TrainState, frozen: Frozen, credited: tuple[Experience, Metrics]) -> Any:
    return update_with_text(state, frozen, credited, None)

  length, response = row_length(settings), settings.sampling.response
  positions = settings.episodes * length
  rollout_trips = trips.of_rollout(
    experiment.sampling,
    settings.data.prompt,
    np.full(settings.batch, settings.data.prompt),
    np.full(settings.episodes, response),
  )
  scored_parts, learnt_parts = ppo_stage.most_parts(settings)
  share = share_of_real("tokens/episodes", positions)
  return (
    Part(
      "rollout",
      rollout,
      ("prompts",),
      "rollout",
      tokens=settings.episodes * response,
      trips=rollout_trips,
      share=share,
    ),
    Part(
      "scoring",
      scoring,
      ("rollout",),
      "experience",
      tokens=positions,
      trips={"parts": scored_parts},
      share=share,
    ),
    Part(
      "update",
      update,
      ("experience",),
      "state",
      tokens=settings.grpo.epochs * positions,
      updates=settings.updates,
      trips={"parts": learnt_parts},
      share=share,
    ),
  )


def run(
  settings: GRPOSettings,
  workdir: AnyPath,
  sinks: tuple[str, ...] = (),
  watch: running.Watch = running.NOBODY,
) -> None:
  """Trains the policy and leaves it.

  Raises UserError for whatever is wrong with the settings, the data or the model, before
  anything is written.
  """
  data = settings.data
  with running.devices(settings.mesh) as shards:
    check_batch(settings, shards)
    sources = corpora.read(data, "prompts", "prompt")
    held_out_records = corpora.read_one(data, "valid", "prompt") if data.valid else []
    policy = ppo_stage.open_rl_init(settings)
    policy, template = running.with_template(data.template, policy)
    length = row_length(settings)
    origin.fits(policy.lm, length, "config.data.prompt + config.sampling.response")
    if not settings.rewards.strip():
      raise UserError(
        "config.rewards is empty; say what scores a response, such as python:my.py:right: "
        "docs/rewards.md"
      )
    scorers = ppo_stage.open_scorers(settings, policy, sources)
    counts: corpora.CountsBySource = {}
    by_ids, prompts = ppo_stage.draw_prompts(settings, sources, policy.tokenizer, template, counts)
    sampling = ppo_stage.sampling_of(settings, policy.tokenizer, template)
    experiment = experiment_of(settings, policy.lm, sampling)
    goes_on = trainable.goes_on(policy, settings)
    stage = wire(settings, experiment, adapter_goes_on=goes_on)
    about = trainable.about_trained(policy, settings.rl_init, settings)
    state, frozen = running.start(stage, settings.seed, policy.params)
    policy = policy._replace(params={})  # they are held by the state and by what is frozen
    times = stopwatch()
    score_outside = ppo_stage.scoring_outside(scorers.rewards, by_ids, policy.tokenizer)
    iteration = ppo_stage.iteration_in_parts(
      learning_rates(settings), experiment, state, times, score_outside, settings.mesh.compiler
    )
    evaluate = None
    if held_out_records:
      held_out = looking.read_held_out(
        settings, held_out_records, policy.tokenizer, template, counts, *scorers
      )
      once = ppo_stage.once(experiment)
      evaluate = looking.evaluate(settings, once, frozen, policy.tokenizer, held_out)
    prints = running.fingerprints(prompts=corpora.records(sources))
    if held_out_records:
      prints |= running.fingerprints(valid=held_out_records)
    training = running.Training(
      stage,
      state,
      frozen,
      lambda number: {"prompts": prompts(number), "text": None},
      about,
      prints,
      evaluate,
      settings.evaluate_every,
      programs=iteration.programs,
      part_seconds=times.seconds,
    )
    del state  # the first step takes it over
    episodes = ppo_stage.Episodes(
      experiment, frozen, policy.tokenizer, by_ids, iteration, scorers, counts
    )
    ppo_stage.train_and_leave(settings, workdir, sinks, watch, training, episodes)
