"""What models said to the prompts of a task, by prompt and by text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from instructjax.evals.tasks import Heard, Item


@dataclass(frozen=True)
class Answers:
  """The answers of all models; `raw` are as they were sampled, with the space before them, for
  rewards.
  """

  items: Sequence[Item]
  heard: Heard

  @property
  def models(self) -> list[str]:
    return list(self.heard)

  def text(self, model: str, at: int) -> str:
    """The answer to item `at`, stripped: what a reader compares."""
    return self.heard[model][at].text()

  def raw(self, model: str, at: int) -> str:
    """The answer as it was sampled: prompt + answer is the whole text."""
    return self.heard[model][at].completions()[0].text

  def prompt(self, at: int) -> str:
    return self.items[at].data["prompt"]

  @cached_property
  def slices(self) -> dict[str, Mapping[str, str]]:
    """Where each prompt stands in each group."""
    return {item.data["prompt"]: item.slices for item in self.items}

  @cached_property
  def _by_text(self) -> dict[tuple[str, str], tuple[str, ...]]:
    found: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for model in self.models:
      for at in range(len(self.items)):
        found[self.prompt(at), self.text(model, at)][model] = None
    return {key: tuple(models) for key, models in found.items()}

  def owners(self, prompt: str, text: str) -> tuple[str, ...]:
    """The models that said this to this prompt."""
    return self._by_text.get((prompt, text.strip()), ())


def ratio(text: str, other: str) -> float:
  """The log of the ratio of two lengths in characters; an empty text counts as one character."""
  return math.log(max(len(text.strip()), 1) / max(len(other.strip()), 1))
