"""SFT whose checkpoint is chosen by a reward on validation prompts (Ouyang et al. 2022, section 3.5
and App. C.1).

The paper's SFT overfits after one epoch by its validation loss, but goes on to win by the reward
model and by people, so it keeps the checkpoint whose samples score highest.  config.select names
the reward and the prompts; the one that the loss would have chosen is noted beside it in
manifest.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instructjax import rewards, rollout, sharding
from instructjax.data.batches import pipeline
from instructjax.data.records import sources
from instructjax.data.records.records import Prompt
from instructjax.data.tokens import chat
from instructjax.errors import UserError
from instructjax.rollout import Sampling
from instructjax.runs import origin, writers
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.loop import Evaluate
from instructjax.runs.origin import Origin
from instructjax.stages import common, generate
from instructjax.types import Params, TrainState

Config = Any  # ml_collections.ConfigDict
SCORE, NLL = "eval/score", "eval/nll"


def supervised(config: Config, workdir: Path, sinks: tuple[str, ...] = ()) -> None:
  """SFT.  With config.select.reward it leaves the checkpoint that scores highest, else the last
  one.
  """
  c = config
  if not c.select.reward.strip():
    common.supervised(c, workdir, sinks)
    return
  if not c.select.prompts:
    raise UserError(
      "config.select.prompts is empty; give validation prompts, whose samples config.select.reward "
      "scores"
    )
  if c.best not in ("", SCORE):
    raise UserError(
      f"config.best={c.best!r}: with config.select.reward the checkpoint is chosen by {SCORE}; "
      "leave it empty"
    )
  if not c.checkpoint_every:
    raise UserError(
      "config.checkpoint_every=0 leaves the last checkpoint alone, and config.select.reward "
      "nothing to choose from; set it to "
      "the steps between checkpoints"
    )
  c = dataclasses.replace(c, best=SCORE)
  asked = sources.load(c.select.prompts, "prompt")[: c.select.count or None]
  selection = common.Selection(
    partial(scores, c, asked), partial(chosen, c, workdir), common.prints(select=asked)
  )
  common.supervised(c, workdir, sinks, selection)


def scores(
  c: Config,
  asked: Sequence[Prompt],
  base: Origin,
  template: chat.Template | None,
  trunk: Params,
  parts: int,
) -> Evaluate:
  """A function of the state: the mean reward of a sample to each prompt, with the same noise at
  every step.
  """
  s = c.select
  size = -(-s.batch // parts) * parts
  origin.fits(base.lm, c.data.prompt + s.response, "prompt + response of config.select")
  rows = pipeline.prompts(
    asked, base.tokenizer, prompt=c.data.prompt, name=s.prompts, template=template
  )
  judges = rewards.open_all(
    s.reward, dataclasses.replace(c.model, dropout=0.0), base, c.data.prompt + s.response
  )
  cfg = Sampling(s.response, s.temperature, eos=base.tokenizer.eos, banned=base.tokenizer.banned)
  draw = jax.jit(
    lambda trunk, params, prompts, key: rollout.sample(base.lm, trunk | params, prompts, key, cfg)
  )
  pad = partial(pipeline.pad_prompts, length=c.data.prompt)

  def evaluate(state: TrainState) -> dict[str, Any]:
    found: list[np.ndarray] = []
    for at, (prompts, real) in enumerate(pipeline.once(rows, pad, size=size)):
      key = jax.random.fold_in(jax.random.key(c.seed), at)
      drawn = draw(trunk, state.params, sharding.place_batch(prompts), key)
      said = [record.prompt for record in asked[at * size : at * size + real]]
      each = rewards.score_rollout(judges, drawn, sharding.fetch(drawn), said, base.tokenizer)
      found.append(rewards.total(judges, each))
    return {SCORE: float(np.concatenate(found).mean())}

  return evaluate


def chosen(c: Config, workdir: Path, state: TrainState) -> TrainState:
  """The checkpoint with the highest score; manifest.json gets `selection`: which, and which the
  loss would have chosen.
  """
  folder = Checkpoints(workdir / "checkpoints" / c.stage, keep=c.keep, best=SCORE)
  measured = _measured(workdir / "metrics.jsonl", c.stage)
  kept = [step for step in folder.steps() if SCORE in measured.get(step, {})]
  step = max(kept, key=lambda step: (measured[step][SCORE], -step))
  found: dict[str, Any] = {"by": SCORE, "step": step, **measured[step]}
  losses = {step: values for step, values in measured.items() if NLL in values}
  if losses:
    other = min(losses, key=lambda step: losses[step][NLL])
    found |= {f"by {NLL}": {"step": other, **losses[other]}}
  writers.note(workdir, selection=found)
  generate.show(told(found))
  return state if step == int(state.iteration) else folder.restore(state, step)[0]


def told(found: Mapping[str, Any]) -> str:
  """In a line: what was chosen, and the alternative."""
  text = f"step {found['step']} is kept: its samples score highest, {found[SCORE]:.3f}"
  other = found.get(f"by {NLL}")
  if other is None:
    return text
  return f"{text}; by the validation loss it would be step {other['step']}, which scores {other.get(SCORE, float('nan')):.3f}"


def _measured(path: Path, stage: str) -> dict[int, dict[str, float]]:
  """{step: {metric: value}} of the evaluations of a run."""
  found: dict[int, dict[str, float]] = {}
  for line in path.read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    if row["stage"] == stage and row.get(SCORE) is not None:
      found[row["step"]] = {name: row[name] for name in (SCORE, NLL) if row.get(name) is not None}
  return found
