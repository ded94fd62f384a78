"""SFT whose checkpoint is chosen by a reward on validation prompts (section 3.5 and App. C.1).

The paper's SFT overfits after one epoch by its validation loss, but goes on to win by the reward
model and by people, so it keeps the checkpoint whose samples score highest. config.select names
the reward and the prompts; the checkpoint that the loss would have chosen is noted beside it in
manifest.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import rewards, rollout, sharding
from instructjax.data.batches import pipeline
from instructjax.data.records import sources
from instructjax.data.records.records import Prompt
from instructjax.data.tokens import chat
from instructjax.errors import UserError, naming
from instructjax.rollout import Sampling
from instructjax.runs import origin, writers
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.loop import Evaluate
from instructjax.runs.origin import Origin
from instructjax.settings.supervised import SFTSettings
from instructjax.stages import pretrain_sft, running
from instructjax.stages.wiring import missing_eos
from instructjax.system import keys
from instructjax.system.places import AnyPath
from instructjax.types import Params, Prompts, Rollout, TrainState

SCORE, NLL = "eval/score", "eval/nll"


def run(
  settings: SFTSettings,
  workdir: AnyPath,
  sinks: tuple[str, ...] = (),
  watch: running.Watch = running.NOBODY,
) -> None:
  """SFT; with config.select.reward it leaves the checkpoint that scores highest."""
  select = settings.select
  if not select.reward.strip():
    pretrain_sft.run(settings, workdir, sinks, watch)
    return
  # The best checkpoint so far must be kept, however many come after it.
  settings = dataclasses.replace(settings, best=SCORE)
  with naming("config.select.prompts", select.prompts):
    prompts = sources.load(select.prompts, "prompt")[: select.count or None]
  selection = pretrain_sft.Selection(
    measure=partial(mean_reward, settings, prompts),
    choose=partial(choose_checkpoint, settings, workdir),
    prints=running.fingerprints(select=prompts),
  )
  pretrain_sft.run(settings, workdir, sinks, watch, selection)


def mean_reward(
  settings: SFTSettings,
  prompts: Sequence[Prompt],
  model: Origin,
  template: chat.Template | None,
  trunk: Params,
  shards: int,
) -> Evaluate:
  """A function of the state: the mean reward of a sample to each prompt."""
  select = settings.select
  size = running.rows_for(select.batch, shards)
  length = settings.data.prompt + select.response
  origin.fits(model.lm, length, "config.data.prompt + config.select.response")
  rows = pipeline.prompts(
    prompts,
    model.tokenizer,
    prompt=settings.data.prompt,
    name=select.prompts,
    template=template,
  )
  # A reward model of the same base must not inherit the dropout of training.
  undisturbed = dataclasses.replace(settings.model, dropout=0.0)
  with naming("config.select.reward", select.reward):
    reward_sources = rewards.open_all(select.reward, undisturbed, model, length)
  sampling = Sampling(
    select.response,
    select.temperature,
    eos=model.tokenizer.eos,
    banned=model.tokenizer.banned,
  )

  @jax.jit
  def draw(trunk: Params, params: Params, prompts: Prompts, key: Any) -> Rollout:
    return rollout.sample(model.lm, trunk | params, prompts, key, sampling)

  pad = partial(pipeline.pad_prompts, length=settings.data.prompt)
  change_missing_eos = missing_eos(select.missing_eos)

  def evaluate(state: TrainState) -> dict[str, Any]:
    totals: list[np.ndarray] = []
    for number, (padded, real) in enumerate(pipeline.once(rows, pad, size=size)):
      # The key does not depend on the step: checkpoints differ by their weights, not by the draw.
      key = keys.run_key(settings.seed, "selection", number)
      responses = draw(trunk, state.params, sharding.place_batch(padded), key)
      first = number * size
      asked = prompts[first : first + real]
      texts, fields = [record.prompt for record in asked], rewards.fields_of(asked)
      on_host = sharding.fetch(responses)
      scores = rewards.score_rollout(
        reward_sources, responses, on_host, texts, model.tokenizer, fields
      )
      total = jnp.asarray(rewards.total(reward_sources, scores))
      paid = change_missing_eos(total, jnp.asarray(on_host.ended[:real]))
      # What no reward scores says nothing of a checkpoint, whatever a missing end costs.
      totals.append(np.asarray(paid)[~np.isnan(np.asarray(total))])
    scored = np.concatenate(totals)
    if not len(scored):
      raise UserError(
        f"config.select.reward={select.reward}: it abstained from the samples of all "
        f"{len(rows)} prompts of {select.prompts}; give prompts that it scores"
      )
    return {SCORE: float(scored.mean())}

  return evaluate


def choose_checkpoint(settings: SFTSettings, workdir: AnyPath, state: TrainState) -> TrainState:
  """The checkpoint with the highest score.

  manifest.json gets `selection`: which checkpoint it is, and which one the loss would have chosen.
  """
  checkpoints = Checkpoints(
    workdir / "checkpoints" / settings.stage, keep=settings.keep, best=SCORE
  )
  writers.flush(workdir)
  measured = evaluations(workdir / "metrics.jsonl", settings.stage)
  scored = [step for step in checkpoints.steps() if SCORE in measured.get(step, {})]
  # Of equal scores the earliest checkpoint is taken.
  best = max(scored, key=lambda step: (measured[step][SCORE], -step))
  selection: dict[str, Any] = {"by": SCORE, "step": best, **measured[best]}
  losses = {step: values for step, values in measured.items() if NLL in values}
  if losses:
    by_loss = min(losses, key=lambda step: losses[step][NLL])
    selection[f"by {NLL}"] = {"step": by_loss, **losses[by_loss]}
  writers.note(workdir, selection=selection)
  running.show(describe(selection))
  return state if best == int(state.iteration) else checkpoints.restore(state, best)[0]


def describe(selection: Mapping[str, Any]) -> str:
  """One line that says which checkpoint is kept, and which one the loss would have kept."""
  text = f"step {selection['step']} is kept: its samples score highest, {selection[SCORE]:.3f}"
  by_loss = selection.get(f"by {NLL}")
  if by_loss is None:
    return text
  score = by_loss.get(SCORE, float("nan"))
  return (
    f"{text}; by the validation loss it would be step {by_loss['step']}, which scores {score:.3f}"
  )


def evaluations(path: AnyPath, stage: str) -> dict[int, dict[str, float]]:
  """{step: {metric: value}} of the evaluations of a run."""
  measured: dict[int, dict[str, float]] = {}
  for line in path.read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    if row["stage"] == stage and row.get(SCORE) is not None:
      measured[row["step"]] = {
        name: row[name] for name in (SCORE, NLL) if row.get(name) is not None
      }
  return measured
