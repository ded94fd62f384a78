"""The paper's own numbers (Ouyang et al. 2022, Tables 6 to 14 and figures), corrected.

`docs/errata.md` says where the paper was corrected and why. `paper.json` holds Table 14 and what
was read off the figures. The TLDR row of the paper is a copy of CNN/DM and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

SIZES = ("1.3B", "6B", "175B")
PARAMETERS = (1.3e9, 6e9, 175e9)  # of SIZES, where the paper's values stand in a curve
# From the name of a method here to the paper's.
MODELS = {
  "base": "GPT",
  "gpt": "GPT",
  "sft": "SFT",
  "ppo": "PPO",
  "ptx": "PPO-ptx",
  "ppo-ptx": "PPO-ptx",
}


@cache
def tables() -> dict[str, Any]:
  """Returns everything in `paper.json`."""
  path = Path(__file__).parent / "paper.json"
  return json.loads(path.read_text(encoding="utf-8"))


def row(task: str, metric: str, prompt: str) -> dict[str, list[float]]:
  """Returns {model of the paper: [1.3B, 6B, 175B]} of one row of Table 14 or a figure.

  Raises:
    KeyError: if there is no such row.
  """
  place = (task, metric, prompt)
  # Figures have the same fields as the rows of Table 14.
  rows = tables()["table14"] + tables()["figures"]
  for candidate in rows:
    candidate_place = (candidate["task"], candidate["metric"], candidate["prompt"])
    if candidate_place == place:
      return candidate["values"]
  raise KeyError(f"{task}, {metric}, {prompt}")


# --- names of models, METHOD or METHOD@SIZE ---


def split(model: str) -> tuple[str, str]:
  """Returns (method, size) in small letters, such as ("sft", "1.3b"); "" where there is no size."""
  method, _, size = model.lower().partition("@")
  return method, size


def theirs(model: str) -> str | None:
  """Returns the paper's name of the method that a model is named after, None where it has none."""
  return MODELS.get(split(model)[0])


def sizes(model: str) -> tuple[str, ...]:
  """Returns the paper's sizes that compare with a model: the size in its name, or all three.

  There are none if the name holds a size that the paper does not have.
  """
  own_size = split(model)[1]
  # A model without a size in its name may have any.
  if not own_size:
    return SIZES
  return tuple(size for size in SIZES if size.lower() == own_size)


def of_sizes(model: str, values: Sequence[float] | None) -> list[float] | None:
  """Returns those of the values [1.3B, 6B, 175B] that compare with a model, None without any."""
  if not values:
    return None
  own_sizes = sizes(model)
  selected = []
  for value, size in zip(values, SIZES, strict=True):
    if size in own_sizes:
      selected.append(value)
  return selected or None


def curve(values: Sequence[float]) -> list[tuple[float, float]]:
  """Returns the values [1.3B, 6B, 175B] as points (parameters, value)."""
  return list(zip(PARAMETERS, values, strict=True))


def beside(model: str, place: tuple[str, str, str] | None) -> list[float] | None:
  """Returns the paper's numbers for the model that ours is named after, one for each of `sizes`.

  `place` is the (task, metric, prompt) of the row. The result is None where the paper has none.
  """
  name = theirs(model)
  if name is None or not place:
    return None
  values = row(*place)[name]
  return of_sizes(model, values)
