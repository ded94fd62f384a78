"""The paper's own numbers (Ouyang et al. 2022, Tables 6 to 14 and figures), corrected: `docs/errata.md` says where and why.

`paper.json` holds Table 14 and what was read off the figures.  Its TLDR row is a copy of CNN/DM in the paper and left out.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

SIZES = ("1.3B", "6B", "175B")
MODELS = {"base": "GPT", "gpt": "GPT", "sft": "SFT", "ppo": "PPO", "ptx": "PPO-ptx", "ppo-ptx": "PPO-ptx"}  # ours -> theirs


@cache
def tables() -> dict[str, Any]:
  """Everything in `paper.json`."""
  return json.loads((Path(__file__).parent / "paper.json").read_text(encoding="utf-8"))


def row(task: str, metric: str, prompt: str) -> dict[str, list[float]]:
  """{model of the paper: [1.3B, 6B, 175B]} of one row of Table 14 or a figure.  Raises KeyError where there is none."""
  for found in tables()["table14"] + tables()["figures"]:
    if (found["task"], found["metric"], found["prompt"]) == (task, metric, prompt):
      return found["values"]
  raise KeyError(f"{task}, {metric}, {prompt}")


def beside(model: str, place: tuple[str, str, str] | None) -> list[float] | None:
  """The paper's three numbers for the model that ours is named after; None where it has none."""
  name = MODELS.get(model.lower())
  return row(*place)[name] if place and name else None
