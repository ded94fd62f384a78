"""How often the loops of a stage run where prompts and responses have drawn lengths.

A `Part` brings the trips of its loops at full length. Here they follow from batches of lengths, by
the rules of the functions that have the loops.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from instructjax import packs, ppo, sharding
from instructjax.data.batches import packing
from instructjax.errors import UserError
from instructjax.plan import lengths, programs
from instructjax.plan.lengths import Lengths
from instructjax.plan.programs import Settings
from instructjax.settings import DPOSettings, EpisodeSettings, RewardSettings
from instructjax.settings.supervised import PretrainSettings
from instructjax.stages import pretrain_sft, reward
from instructjax.stages import trips as stage_trips
from instructjax.stages.wiring import Part

DRAWS = 16  # batches over which the trips are averaged


def expected(settings: Settings, part: Part, batches: Sequence[Lengths]) -> Mapping[str, float]:
  """The mean trips of the loops of a part over batches of lengths, by name."""
  trips = [of_batch(settings, part, batch) for batch in batches]
  return {name: float(np.mean([each[name] for each in trips])) for name in trips[0]}


def of_batch(settings: Settings, part: Part, batch: Lengths) -> Mapping[str, float]:
  """The trips of the loops of a part at the lengths of one batch."""
  if isinstance(settings, EpisodeSettings):
    if part.name == "rollout":
      sampling = programs.rollout_sampling(settings)
      prompt = batch.prompt[:: sampling.n]
      return stage_trips.of_rollout(sampling, settings.data.prompt, prompt, batch.response)
    return {"parts": episode_parts(settings, part, batch)}
  if isinstance(settings, RewardSettings | DPOSettings):
    return {"parts": comparison_parts(settings, batch)}
  packed = pretrain_sft.packed_rows(settings)
  if packed is None:
    return part.trips
  # Rows of text are full, and stand before the demonstrations.
  text = pretrain_sft.text_rows(settings)
  sizes = (batch.prompt + batch.response).astype(np.int64)[text:]
  length = pretrain_sft.row_length(settings)
  return {"parts": packing.into_parts(sizes, length, packed.rows, taken=text).count}


def comparison_parts(settings: RewardSettings | DPOSettings, batch: Lengths) -> int:
  """The parts of packed comparisons, whose prompt is read once for its K completions."""
  responses = batch.response.reshape(settings.batch, -1)
  K = responses.shape[1]
  sizes = batch.prompt[::K].astype(np.int64) + responses.sum(axis=1)
  layout = reward.planned_layout(settings, K, learnt=isinstance(settings, DPOSettings))
  return packing.into_parts(sizes, layout.length, layout.rows).count


def episode_parts(settings: EpisodeSettings, part: Part, batch: Lengths) -> float:
  """The parts of packed episodes of all of a batch, or the mean over its minibatches."""
  minibatch = settings.episodes // settings.ppo.minibatches
  learnt = part.name == "update"
  group = minibatch if learnt else settings.episodes
  shards = sharding.batch_shards()
  form = ppo.form_of(settings.data.prompt, settings.sampling.response, minibatch, settings.n)
  rows = ppo.rows_at_once(minibatch, form, settings.ppo, learnt=learnt)
  counts = []
  for start in range(0, settings.episodes, group):
    prompt, response = (
      x[start : start + group].reshape(-1, form.together).astype(np.int64) for x in batch
    )
    # What the shards get is dealt by length (`packs.deal`), in scoring as it comes.
    order = np.arange(len(prompt))
    if learnt:
      length = (prompt + response).sum(axis=1)
      longest_first = np.argsort(-length, kind="stable").reshape(-1, shards)
      longest_first[1::2] = longest_first[1::2, ::-1]
      order = longest_first.T.reshape(-1)
    packed_rows = [
      first_fit(prompt[shard, 0], response[shard], form) for shard in np.split(order, shards)
    ]
    counts.append(math.ceil(max(packed_rows) / rows))
  return float(np.mean(counts))


def first_fit(prompt: np.ndarray, response: np.ndarray, form: packs.Form) -> int:
  """Rows that groups of episodes take, by the rule of `packs`.

  `prompt` has the tokens of each group's prompt, and `response` [G, n] those of its responses.
  """
  total = response.sum(axis=1)
  size = np.maximum((prompt + total) * form.places, total * form.positions)
  positions: list[int] = []
  places: list[int] = []

  def has_room(row: int, tokens: int, answer: int) -> bool:
    return positions[row] + tokens <= form.positions and places[row] + answer <= form.places

  for group in np.argsort(-size, kind="stable").tolist():
    row = None
    for answer in response[group].tolist():
      tokens = answer
      if row is None or not has_room(row, tokens, answer):
        # The prompt stands before the response, in the first row with room for both.
        tokens = int(prompt[group]) + answer
        fitting = [row for row in range(len(positions)) if has_room(row, tokens, answer)]
        row = fitting[0] if fitting else len(positions)
        if not fitting:
          positions.append(0)
          places.append(0)
      positions[row] += tokens
      places[row] += answer
  return len(positions)


def batches_of(settings: Settings, source: str, completions: int) -> list[Lengths]:
  """Batches of lengths under the limits of a stage, as many as are averaged over.

  Comparisons have a prompt and a response for each of their `completions`.

  Raises:
    UserError: for a stage without prompts, and as `lengths.draws` says.
  """
  if isinstance(settings, PretrainSettings):
    raise UserError(f"--lengths={source}: pretraining has documents and no prompts; leave it out")
  if isinstance(settings, EpisodeSettings):
    response = settings.sampling.response
    each = settings.n
  else:
    response = settings.data.response
    each = completions if settings.stage in ("reward", "dpo") else 1
  draw = lengths.draws(source, settings.data.prompt, response)
  batches = [draw(number, settings.batch * each) for number in range(DRAWS)]
  if not isinstance(settings, EpisodeSettings) or each == 1:
    return batches
  # The responses of a group follow one prompt.
  return [batch._replace(prompt=np.repeat(batch.prompt[::each], each)) for batch in batches]
