"""The answers of all models to the prompts of one task, by prompt and by text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from instructjax.evals.tasks import Item, Replies


@dataclass(frozen=True)
class Answers:
  """The answers of all models to the items of a task, in the order of the items."""

  items: Sequence[Item]
  by_model: Replies

  @property
  def models(self) -> list[str]:
    return list(self.by_model)

  def text(self, model: str, item: int) -> str:
    """Returns the answer to an item, stripped: the text that a reader compares."""
    return self.by_model[model][item].text()

  def sampled_text(self, model: str, item: int) -> str:
    """Returns the answer as it was sampled, for rewards: prompt + answer is the whole text."""
    return self.by_model[model][item].completions()[0].text

  def prompt(self, item: int) -> str:
    return self.items[item].data["prompt"]

  @cached_property
  def slices(self) -> dict[str, Mapping[str, str]]:
    """The value of each prompt in each group of slices."""
    return {item.data["prompt"]: item.slices for item in self.items}

  @cached_property
  def _owners(self) -> dict[tuple[str, str], tuple[str, ...]]:
    """The models behind each pair of a prompt and an answer."""
    # A dictionary in place of a set keeps the order of the models, and names each once even where
    # two items have the same prompt.
    models_by_text: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for model in self.models:
      for item in range(len(self.items)):
        key = (self.prompt(item), self.text(model, item))
        models_by_text[key][model] = None
    return {key: tuple(models) for key, models in models_by_text.items()}

  def owners(self, prompt: str, text: str) -> tuple[str, ...]:
    """Returns the models that gave this answer to this prompt."""
    return self._owners.get((prompt, text.strip()), ())


def length_difference(text: str, other_text: str) -> int:
  """Returns how many characters the first text is longer than the second."""
  return len(text.strip()) - len(other_text.strip())


def log_length_ratio(text: str, other_text: str) -> float:
  """Returns the log of the ratio of two lengths in characters; an empty text counts as 1."""
  length = max(len(text.strip()), 1)
  other_length = max(len(other_text.strip()), 1)
  return math.log(length / other_length)
