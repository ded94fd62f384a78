"""How often the loops of a stage run where prompts and responses have drawn lengths.

A `Part` brings the trips of its loops at full length. Here they follow from batches of lengths, by
the rules of the functions that have the loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from instructjax.errors import UserError
from instructjax.plan import lengths
from instructjax.plan.lengths import Lengths
from instructjax.plan.programs import Settings
from instructjax.settings import PPOSettings
from instructjax.settings.supervised import PretrainSettings
from instructjax.stages.wiring import Part

DRAWS = 16  # batches over which the trips are averaged


def expected(settings: Settings, part: Part, batches: Sequence[Lengths]) -> Mapping[str, float]:
  """The mean trips of the loops of a part over batches of lengths, by name."""
  if part.name == "rollout":
    # The first token comes from the prefill, and the loop stops with the longest response.
    steps = [max(int(batch.response.max()) - 1, 1) for batch in batches]
    return {**part.trips, "steps": float(np.mean(steps))}
  return part.trips


def batches_of(settings: Settings, source: str, completions: int) -> list[Lengths]:
  """Batches of lengths under the limits of a stage, as many as are averaged over.

  Comparisons have a prompt and a response for each of their `completions`.

  Raises:
    UserError: for a stage without prompts, and as `lengths.draws` says.
  """
  if isinstance(settings, PretrainSettings):
    raise UserError(f"--lengths={source}: pretraining has documents and no prompts; leave it out")
  if isinstance(settings, PPOSettings):
    response = settings.sampling.response
  else:
    response = settings.data.response
  rows = settings.batch
  if settings.stage in ("reward", "dpo"):
    rows *= completions
  draw = lengths.draws(source, settings.data.prompt, response)
  return [draw(number, rows) for number in range(DRAWS)]
