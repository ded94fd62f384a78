"""The paper's own numbers (Ouyang et al. 2022, Tables 6 to 14 and figures), corrected:
`docs/errata.md` says where and why.

`paper.json` holds Table 14 and what was read off the figures.  Its TLDR row is a copy of CNN/DM
in the paper and left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

SIZES = ("1.3B", "6B", "175B")
PARAMETERS = (1.3e9, 6e9, 175e9)
MODELS = {
  "base": "GPT",
  "gpt": "GPT",
  "sft": "SFT",
  "ppo": "PPO",
  "ptx": "PPO-ptx",
  "ppo-ptx": "PPO-ptx",
}  # ours -> theirs


@cache
def tables() -> dict[str, Any]:
  """Everything in `paper.json`."""
  return json.loads((Path(__file__).parent / "paper.json").read_text(encoding="utf-8"))


def row(task: str, metric: str, prompt: str) -> dict[str, list[float]]:
  """{model of the paper: [1.3B, 6B, 175B]} of one row of Table 14 or a figure.  Raises KeyError
  where there is none.
  """
  for found in tables()["table14"] + tables()["figures"]:
    if (found["task"], found["metric"], found["prompt"]) == (task, metric, prompt):
      return found["values"]
  raise KeyError(f"{task}, {metric}, {prompt}")


def split(model: str) -> tuple[str, str]:
  """(method, size) of a model called METHOD@SIZE, in small letters: ("sft", "1.3b"); the size of
  another is "".
  """
  method, _, size = model.lower().partition("@")
  return method, size


def theirs(model: str) -> str | None:
  """The paper's name of the method that a model of ours is named after."""
  return MODELS.get(split(model)[0])


def sizes(model: str) -> tuple[str, ...]:
  """The paper's sizes that stand beside a model: that of METHOD@SIZE, none where the paper has no
  such model, or all three.
  """
  size = split(model)[1]
  return tuple(one for one in SIZES if size in ("", one.lower()))


def of_sizes(model: str, values: Sequence[float] | None) -> list[float] | None:
  """Of the paper's [1.3B, 6B, 175B] those that stand beside a model; None where there is none."""
  kept = sizes(model)
  return [
    value for value, size in zip(values or (), SIZES, strict=bool(values)) if size in kept
  ] or None


def curve(values: Sequence[float]) -> list[tuple[float, float]]:
  """(parameters, value) of the paper's [1.3B, 6B, 175B]."""
  return list(zip(PARAMETERS, values, strict=True))


def beside(model: str, place: tuple[str, str, str] | None) -> list[float] | None:
  """The paper's numbers, one for each of `sizes`, for the model that ours is named after; None
  where it has none.
  """
  name = theirs(model)
  return of_sizes(model, row(*place)[name]) if place and name else None
