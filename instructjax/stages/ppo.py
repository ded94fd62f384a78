"""The PPO stage: from `rl_init`, against a reward model or other rewards, with pretraining text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from instructjax import compiler, optim, ppo, returns, rewards, sharding, steps
from instructjax.data.batches import buckets, corpora, packing, pipeline
from instructjax.data.batches.mixture import Mixture, Rows
from instructjax.data.records.records import Prompt
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError, naming
from instructjax.models import freeze
from instructjax.rollout import Sampling
from instructjax.runs import origin, writers
from instructjax.runs.origin import Origin
from instructjax.runs.stopwatch import Stopwatch, stopwatch
from instructjax.settings.grpo import EpisodeSettings
from instructjax.settings.method import KLSettings
from instructjax.settings.ppo import PPOSettings
from instructjax.stages import looking, neighbours, running, stems, trainable, trips
from instructjax.stages.wiring import (
  Part,
  Stage,
  demonstrations_of,
  learning_rate,
  missing_eos,
  optimizer,
  require_multiple,
  rows_of,
  share_of_real,
  whole_on_each_device,
)
from instructjax.system import keys
from instructjax.system.places import AnyPath
from instructjax.types import (
  LM,
  Array,
  Bool,
  Demonstrations,
  Experience,
  Float,
  Frozen,
  Metrics,
  Params,
  Prompts,
  Rollout,
  TrainState,
)


def row_length(settings: PPOSettings) -> int:
  """Tokens of an episode: a prompt and its response."""
  return settings.data.prompt + settings.sampling.response


def check_batch(settings: PPOSettings, shards: int) -> None:
  """Raises UserError where episodes or text do not divide into micro-batches over the devices."""
  ppo_settings = settings.ppo
  episodes = settings.episodes // ppo_settings.minibatches
  name = f"config.batch={settings.batch}"
  if settings.n > 1:
    require_multiple(settings.batch, shards, "config.batch", "devices")
    name += f", config.n={settings.n}"
  require_multiple(
    episodes,
    ppo_settings.micro * shards,
    f"{name}: a minibatch",
    "config.ppo.micro x devices",
  )
  if ppo_settings.ptx_coef:
    rows = settings.ptx_ratio * episodes
    require_multiple(
      rows,
      ppo_settings.ptx_micro * shards,
      f"{name}: a minibatch of text",
      "config.ppo.ptx_micro x devices",
    )


def experiment_of(settings: PPOSettings, policy: LM, reward_lm: LM, sampling: Sampling) -> ppo.PPO:
  """The functions and settings of an iteration."""
  updates = settings.updates
  # Both schedules are counted in iterations, whatever the minibatches (App. C.4).
  count = settings.iterations * updates
  tx = optim.by_subtree(
    policy=optimizer(settings.policy_optimizer, policy, count, updates),
    value=optimizer(settings.value_optimizer, reward_lm, count, updates),
  )
  return ppo.PPO(
    lm=policy,
    tx=tx,
    sampling=sampling,
    cfg=settings.ppo,
    reward_lm=reward_lm,
    place=PLACES[settings.place],
    missing_eos=missing_eos(settings.missing_eos),
    kl_control=kl_control(settings.kl),
  )


def learning_rates(settings: PPOSettings) -> dict[str, optim.Schedule]:
  """The learning rate of both networks, by the name under which it is logged."""
  updates = settings.updates
  count = settings.iterations * updates
  return {
    "lr": learning_rate(settings.policy_optimizer, count, updates),
    "lr_value": learning_rate(settings.value_optimizer, count, updates),
  }


def with_learning_rates(
  rates: Mapping[str, optim.Schedule], step: Array, outcome: tuple[TrainState, Metrics]
) -> tuple[TrainState, Metrics]:
  """Adds the rates of update `step` to the metrics of an iteration."""
  state, metrics = outcome
  return state, metrics | {name: rate(step) for name, rate in rates.items()}


def wire(
  settings: PPOSettings,
  experiment: ppo.PPO,
  *,
  shares_trunk: bool,
  adapters_go_on: tuple[bool, bool] = (False, False),
) -> Stage:
  """The stage on a policy and a reward model: `ppo.iteration`.

  `shares_trunk` says that both have the same untrained trunk, which is then held once. With
  `config.rewards` the reward model is no part of what is frozen: the scores come from outside.

  Raises UserError where batches do not divide over the mesh, or rows are longer than a context.
  """
  check_batch(settings, sharding.batch_shards())
  policy, reward_lm = experiment.lm, experiment.reward_lm or experiment.lm
  for lm in (policy, reward_lm):
    origin.fits(lm, row_length(settings), "config.data.prompt + config.sampling.response")
  from_outside = bool(settings.rewards.strip())
  rates = learning_rates(settings)

  def init(
    key: Any, policy_params: Params, judge_params: Params, judge_head: Params
  ) -> tuple[TrainState, Frozen]:
    """With LoRA the reference is the base with its adapter off, or with that of `rl_init`."""
    policy_key = keys.key_for(key, "adapter")
    mine = trainable.split(
      policy, policy_params, policy_key, settings, adapter_goes_on=adapters_go_on[0]
    )
    judge_key = keys.key_for(key, "adapter of the reward model")
    theirs = trainable.split(
      reward_lm, judge_params, judge_key, settings, adapter_goes_on=adapters_go_on[1]
    )
    head = whole_on_each_device(judge_head)
    # The value network is separate from the policy and starts as the reward model (section 3.5).
    value = {"lm": without_head(theirs.trained), "head": head}
    params = ppo.init_params(mine.trained, value)
    ema = None if settings.ppo.ema_decay is None else {"policy": params["policy"]}
    state = steps.new_state(key, params, experiment.tx, ema=ema, kl_coef=settings.kl.coef)
    # Rewards from outside score texts: nothing of theirs is held on the devices here.
    scorer: Params = {}
    if not from_outside:
      scorer = {"lm": without_head(theirs.start), "head": head}
      scorer = freeze.cast(scorer, settings.frozen_dtype)
    frozen = Frozen(
      mine.trunk,
      freeze.cast(mine.start, settings.frozen_dtype),
      scorer,
      None if shares_trunk else theirs.trunk,
    )
    return state, frozen

  def step(state: TrainState, frozen: Frozen, batch: dict[str, Any]) -> Any:
    first_update = state.step
    outcome = ppo.iteration(state, frozen, batch["prompts"], batch["text"], ppo=experiment)
    return with_learning_rates(rates, first_update, outcome)

  shape = (settings.batch, settings.data.prompt)
  text = None
  if settings.ppo.ptx_coef:
    stem = stems.stem_type(policy, settings.model.dtype) if settings.data.stems else None
    text = demonstrations_of(settings.episodes * settings.ptx_ratio, settings.data.length, stem)
  prompts = Prompts(rows_of(shape, jnp.int32), rows_of(shape, jnp.bool_))
  batch = {"prompts": prompts, "text": text}
  parts = parts_of(settings, experiment, from_outside, text)
  return Stage("ppo", init, step, batch, parts, settings.iterations)


def without_head(params: Params) -> Params:
  """A trunk under a scalar head: the unembedding, if it is untied, is no part of it."""
  return {name: leaf for name, leaf in params.items() if name != "head"}


def parts_of(
  settings: PPOSettings, experiment: ppo.PPO, from_outside: bool, text: Demonstrations | None
) -> tuple[Part, ...]:
  """An iteration as the three programs that need memory at different times."""

  def rollout(state: TrainState, frozen: Frozen, prompts: Prompts) -> Rollout:
    return ppo.rollout(state.params, frozen, prompts, ppo.rollout_key(state), experiment)

  def scoring(state: TrainState, frozen: Frozen, rows: Rollout) -> tuple[Experience, Metrics]:
    policy_stem, reward_stem = ppo.stems(frozen, rows, experiment)
    # What comes from outside costs the device nothing, whatever it is.
    if from_outside:
      scores = jnp.zeros_like(rows.logp[:, 0])
    else:
      scores = ppo.score(frozen, rows, experiment, reward_stem)
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

  length, response = row_length(settings), settings.sampling.response
  positions = settings.episodes * length
  trained = positions + (0 if text is None else text.tokens.size)
  rollout_trips = trips.of_rollout(
    experiment.sampling,
    settings.data.prompt,
    np.full(settings.batch, settings.data.prompt),
    np.full(settings.episodes, response),
  )
  scored_parts, learnt_parts = most_parts(settings)
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
      update_of(learning_rates(settings), experiment),
      ("experience", "text"),
      "state",
      tokens=settings.ppo.epochs * trained,
      updates=settings.updates,
      trips={"parts": learnt_parts},
      share=partial(share_of_update, positions, 0 if text is None else text.tokens.size),
    ),
  )


def once(experiment: ppo.PPO) -> ppo.PPO:
  """The experiment that answers each prompt once, as held-out prompts are."""
  return experiment._replace(sampling=dataclasses.replace(experiment.sampling, n=1))


def most_parts(settings: EpisodeSettings) -> tuple[int, int]:
  """In how many parts all episodes are scored and a minibatch is learnt from, at full length."""
  minibatch = settings.episodes // settings.ppo.minibatches
  form = ppo.form_of(settings.data.prompt, settings.sampling.response, minibatch, settings.n)
  return ppo.most_parts(settings.episodes, form, settings.ppo)


def update_of(rates: Mapping[str, optim.Schedule], experiment: ppo.PPO) -> Callable[..., Any]:
  """The part of an iteration that changes the state; its learning rates are logged."""

  def update(
    state: TrainState,
    frozen: Frozen,
    credited: tuple[Experience, Metrics],
    text: Demonstrations | None,
  ) -> tuple[TrainState, Metrics]:
    first_update = state.step
    outcome = ppo.update(state, frozen, *credited, text, experiment)
    return with_learning_rates(rates, first_update, outcome)

  return update


def share_of_update(episodes: int, text: int, metrics: Mapping[str, float]) -> float:
  """How much of an update was real tokens, of so many positions of episodes and of text.

  Two networks learn from an episode, and one of them from text.
  """
  of_episodes = metrics["tokens/episodes"]
  of_text = metrics["tokens/real"] - of_episodes
  return (2 * of_episodes + of_text) / (2 * episodes + text)


# --- the functions that settings name ---

PLACES = {"at_last_token": returns.at_last_token, "after_last_token": returns.after_last_token}


def kl_control(settings: KLSettings) -> Callable:
  """How the next KL coefficient follows from the KL; the defaults are of Ziegler et al. 2019."""
  if settings.control == "fixed":
    return returns.fixed_kl
  target = 6.0 if settings.target is None else settings.target
  horizon = 10_000.0 if settings.horizon is None else settings.horizon
  return partial(returns.adaptive_kl, target=target, horizon=horizon)


def sampling_of(
  settings: EpisodeSettings, tokenizer: Tokenizer, template: chat.Template | None = None
) -> Sampling:
  """How episodes are sampled: from the whole distribution, ended by the ids of the tokenizer."""
  rollout = settings.sampling
  return Sampling(
    response=rollout.response,
    temperature=rollout.temperature,
    eos=chat.ends(tokenizer, template),
    banned=tokenizer.banned,
    whole=rollout.whole,
    weights=rollout.weights,
    cache=rollout.cache,
    slots=rollout.slots,
    halvings=rollout.halvings,
    n=settings.n,
  )


# --- models ---


def open_rl_init(settings: EpisodeSettings) -> Origin:
  """The model that PPO starts from.  Raises UserError where none is named, or it is none."""
  if not settings.rl_init:
    raise UserError("config.rl_init is empty; give the directory of a finished run, or --model")
  with naming("config.rl_init", settings.rl_init):
    return origin.open_model(settings.rl_init, settings.model, settings.seed)


def open_judge(settings: PPOSettings, policy: Origin) -> Origin:
  """What the value network starts as: the reward model (section 3.5).

  Without one it starts as the policy with a head of zeros (Ziegler et al. 2019), so that the first
  values are 0 and not noise.

  Raises UserError where nothing says what scores a response, and for a reward model of other ids.
  """
  if settings.reward_model:
    with naming("config.reward_model", settings.reward_model):
      judge = origin.open_reward_model(settings.reward_model, settings.model, policy)
    rewards.same_ids(policy, judge)
    return judge
  if not settings.rewards.strip():
    raise UserError(
      "config.reward_model is empty; give the directory of a finished run, or say in "
      "config.rewards "
      "what scores a response"
    )
  head = {"w": jnp.zeros(policy.lm.width, jnp.float32), "b": jnp.float32(0)}
  return policy._replace(params=without_head(policy.params), head=sharding.replicate(head))


# --- data ---


def draw_prompts(
  settings: EpisodeSettings,
  sources: Sequence[corpora.Part],
  tokenizer: Tokenizer,
  template: chat.Template | None,
  counts: corpora.CountsBySource,
) -> tuple[dict[bytes, Prompt], Callable[[int], Prompts]]:
  """(the record of each prompt by its ids, batches of prompts).

  Raises UserError for prompts that are too long, and for a mixture in buckets.
  """
  data = settings.data
  by_ids: dict[bytes, Prompt] = {}

  def rows_of_source(part: corpora.Part) -> list[pipeline.Row]:
    rows, records = corpora.prompts(data, part, tokenizer, template, counts)
    for row, record in zip(rows, records, strict=True):
      by_ids[row.ids.tobytes()] = record
    return rows

  rows = corpora.rows(sources, rows_of_source)
  seed = keys.seed_for(settings.seed, "prompts")
  # A bucket holds prompts of one length; padding all to `prompt` needs no buckets.
  lengths = buckets.lengths(data.prompt, data.buckets)
  if len(lengths) == 1:
    pad = partial(pipeline.pad_prompts, length=data.prompt)
    batches = neighbours.stream(
      rows,
      pad,
      size=settings.batch,
      together=data.together,
      seed=seed,
      name="prompts",
    )
    return by_ids, batches
  if isinstance(rows, Mixture):
    raise UserError(
      f"config.data.buckets={data.buckets}: the batches of a mixture hold prompts of all lengths; "
      "take 1, or one source"
    )
  return by_ids, buckets.stream(
    rows,
    pipeline.pad_prompts,
    size=settings.batch,
    seed=seed,
    lengths=lengths,
    mine=sharding.local_rows(settings.batch),
  )


def draw_text(
  settings: PPOSettings, windows: Rows, lm: LM, trunk: Params
) -> Callable[[int], Demonstrations | None]:
  """Batches of the pretraining mix; None each time where the mix is off."""
  if not settings.ppo.ptx_coef:
    return lambda number: None
  data, size = settings.data, settings.episodes * settings.ptx_ratio
  pad_rows = packing.pad_packed if data.pack else pipeline.pad_demonstrations
  rows, pad = windows, partial(pad_rows, length=data.length)
  if data.stems:
    rows, pad = stems.kept_rows(lm, trunk, rows, pad, settings.model.dtype)
  mine = sharding.local_rows(size)
  seed = keys.seed_for(settings.seed, "text")
  return pipeline.stream(rows, pad, size=size, seed=seed, mine=mine)


# --- an iteration in its parts ---

# The scores of a rollout from outside, which episodes have one (None: all of them), and what is
# logged of them.
Scored = tuple[Float[Array, " B"], Bool[Array, " B"] | None, dict[str, float]]
ScoreOutside = Callable[[Rollout], Scored]


class Iteration(NamedTuple):
  """An iteration as it is run.

  programs   its compiled parts
  latest     the responses of the last step, their scores, and which of them have one
  """

  programs: running.Programs
  latest: looking.Latest


def iteration_in_parts(
  rates: Mapping[str, optim.Schedule],
  experiment: ppo.PPO,
  state: TrainState,
  times: Stopwatch,
  score_outside: ScoreOutside | None = None,
  options: str = "",
) -> Iteration:
  """An iteration in three compiled parts, rollout, scoring and update, which `times` measures.

  They are what is planned. Between the first two of them `score_outside` may score the responses;
  the reward model does where there is none. The update donates the state: where a reward fails, the
  state is still whole. A response without a score is left out (`ppo.credit`). `options` are the
  user's for the compiler.
  """
  jit = partial(compiler.jit, options=options)

  @jit
  def draw(state: TrainState, frozen: Frozen, prompts: Prompts) -> Rollout:
    return ppo.rollout(state.params, frozen, prompts, ppo.rollout_key(state), experiment)

  @jit
  def credit(
    state: TrainState,
    frozen: Frozen,
    rows: Rollout,
    scores: Float[Array, " B"] | None,
    scored: Bool[Array, " B"] | None,
  ) -> tuple[tuple[Experience, Metrics], Float[Array, " B"]]:
    policy_stem, reward_stem = ppo.stems(frozen, rows, experiment)
    if scores is None:
      scores = ppo.score(frozen, rows, experiment, reward_stem)
    assert state.kl_coef is not None  # `init` sets it
    credited = ppo.credit(
      state.params,
      frozen,
      rows,
      scores,
      state.kl_coef,
      experiment,
      policy_stem,
      reward_stem,
      scored,
    )

    return credited, scores

  update = steps.compiled(update_of(rates, experiment), state, options)
  latest: Any = None

  def rollout(state: TrainState, frozen: Frozen, batch: dict[str, Any]) -> dict[str, Any]:
    times.settle()  # the loop has waited for the part before, here as below
    times.begin()
    rows = draw(state, frozen, batch["prompts"])
    times.mark("rollout", rows.ended)
    return {**batch, "rollout": rows}

  def scoring(state: TrainState, frozen: Frozen, values: dict[str, Any]) -> dict[str, Any]:
    nonlocal latest
    times.settle()
    rows = values["rollout"]
    scores, scored, measures = None, None, {}
    if score_outside is not None:
      scores, scored, measures = score_outside(rows)
    credited, scores = credit(state, frozen, rows, scores, scored)
    latest = (rows, scores, scored)
    _, metrics = credited
    times.mark("scoring", metrics["objective/kl"])
    return {**values, "experience": credited, "measures": measures}

  def last(state: TrainState, frozen: Frozen, values: dict[str, Any]) -> tuple[TrainState, dict]:
    times.settle()
    state, metrics = update(state, frozen, values["experience"], values["text"])
    times.mark("update", metrics["loss/total"])
    return state, metrics | values["measures"]

  programs = running.Programs((rollout, scoring), last, (draw, credit, update))
  return Iteration(programs, lambda: latest)


# --- rewards from outside ---


def scoring_outside(
  sources: Sequence[rewards.Reward], by_ids: Mapping[bytes, Prompt], tokenizer: Tokenizer
) -> ScoreOutside:
  """A function of a rollout that asks any rewards for its scores.

  `by_ids` has the record of each prompt by its ids.
  """
  may_abstain = rewards.may_abstain(sources)

  def score(rows: Rollout) -> Scored:
    on_host = sharding.fetch(rows)
    prompts = looking.prompts_of(on_host, by_ids)
    texts = [prompt.prompt for prompt in prompts]
    fields = rewards.fields_of(prompts)
    scores = rewards.score_rollout(sources, rows, on_host, texts, tokenizer, fields)
    total = rewards.total(sources, scores)
    scored = None
    if may_abstain:
      has_score = ~np.isnan(total)
      total = np.where(has_score, total, 0)
      scored = sharding.place_batch(jnp.asarray(has_score))
    paid = sharding.place_batch(jnp.asarray(total))
    return paid, scored, measures_of_rewards(sources, scores)

  return score


def measures_of_rewards(
  sources: Sequence[rewards.Reward], scores: rewards.Scores
) -> dict[str, float]:
  """The mean score of each reward, and the share of responses from which it abstained.

  The mean is NaN where it abstained from all; only rewards that may abstain have a share.
  """
  measures = {}
  for source in sources:
    values = np.asarray(scores[source.name], np.float64)
    given = values[~np.isnan(values)]
    measures[f"objective/score/{source.name}"] = float(given.mean()) if len(given) else math.nan
    if source.own:
      measures[f"rollout/abstained/{source.name}"] = 1 - len(given) / len(values)
  return measures


class Scorers(NamedTuple):
  """The rewards that are trained on, beside PPO's own reward model, and those that judge alone."""

  rewards: Sequence[rewards.Reward]
  gold: Sequence[rewards.Reward]


def open_scorers(
  settings: EpisodeSettings, policy: origin.Origin, sources: Sequence[corpora.Part]
) -> Scorers:
  """Opens `config.rewards` and `config.gold`; `sources` are the prompts, whose fields they see.

  Raises:
    UserError: for a reward that cannot be opened, and for prompts with one text and other fields.
  """
  length = settings.data.prompt + settings.sampling.response
  open_all = partial(
    rewards.open_all,
    settings=settings.model,
    policy=policy,
    length=length,
    dtype=settings.frozen_dtype,
  )
  with naming("config.rewards", settings.rewards):
    reward_sources = open_all(settings.rewards)
  if reward_sources:
    with naming("config.data.prompts", settings.data.prompts):
      rewards.fields_by_text(corpora.records(sources))
  with naming("config.gold", settings.gold):
    gold = open_all(settings.gold)
  return Scorers(reward_sources, gold)


# --- the command ---


class Episodes(NamedTuple):
  """What a run of episodes is made of, beside its settings.

  by_ids   the record of each prompt by its ids
  counts   the records of each file that were taken and left out
  """

  experiment: ppo.PPO
  frozen: Frozen
  tokenizer: Tokenizer
  by_ids: Mapping[bytes, Prompt]
  iteration: Iteration
  scorers: Scorers
  counts: corpora.CountsBySource


def train_and_leave(
  settings: EpisodeSettings,
  workdir: AnyPath,
  sinks: tuple[str, ...],
  watch: running.Watch,
  training: running.Training,
  episodes: Episodes,
) -> None:
  """Trains a policy on episodes, writes their samples, and leaves the policy as a whole model.

  What is left is the average of the policy's weights where there is one (App. C.4).
  """
  with running.open_run(settings, workdir, sinks, training.prints) as writer:
    writers.note(workdir, rows=corpora.facts(episodes.counts))
    if episodes.scorers.rewards:
      writers.note(workdir, rewards=rewards.manifest(episodes.scorers.rewards))
    if episodes.scorers.gold:
      writers.note(workdir, gold=rewards.manifest(episodes.scorers.gold))
    samples = looking.sampler(
      settings,
      episodes.experiment,
      episodes.frozen,
      episodes.by_ids,
      episodes.tokenizer,
      episodes.iteration.latest,
      writer,
    )
    training = training._replace(samples=samples)
    final = running.train(settings, workdir, writer, training, watch)
    trained = final.params["policy"] if final.ema is None else final.ema["policy"]
    params = running.whole_model(
      settings.top, settings.rl_init, settings.model, settings.seed, trained
    )
    running.leave_policy(settings, workdir, int(final.iteration), params, training.about)


def run(
  settings: PPOSettings,
  workdir: AnyPath,
  sinks: tuple[str, ...] = (),
  watch: running.Watch = running.NOBODY,
) -> None:
  """PPO-ptx (PPO where ptx_coef is 0).

  An iteration is three compiled parts, between which a run can stop. With `config.rewards` the
  rewards come between the first and the second.

  Raises UserError for whatever is wrong with the settings, the data or the models, before
  anything is written.
  """
  data = settings.data
  with running.devices(settings.mesh) as shards:
    check_batch(settings, shards)
    prompt_sources = corpora.read(data, "prompts", "prompt")
    held_out_records = corpora.read_one(data, "valid", "prompt") if data.valid else []
    text_sources = []
    if settings.ppo.ptx_coef:
      text_sources = corpora.read(data, "text", "text", lazily=data.lazy)
    policy = open_rl_init(settings)
    policy, template = running.with_template(data.template, policy)
    judge = open_judge(settings, policy)
    length = row_length(settings)
    for model in (policy, judge):
      origin.fits(model.lm, length, "config.data.prompt + config.sampling.response")
    scorers = open_scorers(settings, policy, prompt_sources)
    counts: corpora.CountsBySource = {}
    by_ids, prompts = draw_prompts(settings, prompt_sources, policy.tokenizer, template, counts)
    windows, text_print = corpora.texts(data, text_sources, policy.tokenizer, data.length)
    sampling = sampling_of(settings, policy.tokenizer, template)
    experiment = experiment_of(settings, policy.lm, judge.lm, sampling)
    stage = wire(
      settings,
      experiment,
      shares_trunk=trainable.shares_trunk(policy, judge, settings),
      adapters_go_on=(trainable.goes_on(policy, settings), trainable.goes_on(judge, settings)),
    )
    about = trainable.about_trained(policy, settings.rl_init, settings)
    state, frozen = running.start(
      stage, settings.seed, policy.params, judge.params, judge.head or {}
    )
    # The state and what is frozen hold copies; these would keep two more models in memory.
    policy, judge = policy._replace(params={}), judge._replace(params={})
    score_outside = None
    if scorers.rewards:
      score_outside = scoring_outside(scorers.rewards, by_ids, policy.tokenizer)
    times = stopwatch()
    iteration = iteration_in_parts(
      learning_rates(settings), experiment, state, times, score_outside, settings.mesh.compiler
    )
    evaluate = None
    if held_out_records:
      held_out = looking.read_held_out(
        settings, held_out_records, policy.tokenizer, template, counts, *scorers
      )
      evaluate = looking.evaluate(settings, once(experiment), frozen, policy.tokenizer, held_out)
    mix = draw_text(settings, windows, policy.lm, frozen.trunk)
    prints = running.fingerprints(prompts=corpora.records(prompt_sources), text=text_print)
    if held_out_records:
      prints |= running.fingerprints(valid=held_out_records)
    training = running.Training(
      stage,
      state,
      frozen,
      lambda number: {"prompts": prompts(number), "text": mix(number)},
      about,
      prints,
      evaluate,
      settings.evaluate_every,
      programs=iteration.programs,
      part_seconds=times.seconds,
    )
    del state  # the first step takes it over
    episodes = Episodes(experiment, frozen, policy.tokenizer, by_ids, iteration, scorers, counts)
    train_and_leave(settings, workdir, sinks, watch, training, episodes)
