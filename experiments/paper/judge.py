"""Gold and its parts as rewards: `python:experiments/paper/judge.py:gold`.

They judge alone: no stage that trains or chooses reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from english import gold as gold_scores
from english import tasks

Fields = Sequence[Mapping[str, Any]]


def gold(prompts: Sequence[str], responses: Sequence[str], fields: Fields) -> list[float]:
  """Returns gold's score of each response; the task of a prompt is in its fields."""
  scores = []
  for response, row in zip(responses, fields, strict=True):
    scores.append(gold_scores.score(tasks.from_fields(row["task"]), response))
  return scores
