"""The settings of the reward model, with the paper's presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from instructjax.settings import subjects
from instructjax.settings.fields import group, replaced, setting, settings
from instructjax.settings.subjects import (
  Dtype,
  Long,
  LoraSettings,
  MeshSettings,
  ModelSettings,
  OptimizerSettings,
)
from instructjax.settings.supervised import (
  TINY_LENGTHS,
  TINY_MODEL,
  TINY_RUN,
  chosen_metric,
  one_part,
)


@settings
class ComparisonData:
  """Prompts with ranked completions."""

  comparisons: str = setting("data/comparisons.jsonl", "Ranked completions, or a mixture of files.")
  demonstrations: str = setting(
    "data/demonstrations.jsonl",
    "Demonstrations that score 0 on average, by the bias; empty leaves it at 0.",
  )
  valid: str = setting("", "Held-out comparisons; empty evaluates nothing.")
  spelling: str = subjects.spelling("comparisons")
  fields: str = subjects.fields()
  template: str = subjects.template()
  prompt: int = subjects.prompt_tokens()
  response: int = subjects.response_tokens()
  long: Long = subjects.long()
  together: int = setting(
    1,
    "Neighbouring comparisons that are drawn together, such as two that rank the same texts.",
    low=1,
    high=1000,
  )
  stems: bool = subjects.stems()
  separator: str = subjects.separator()


@settings
class RewardSettings:
  """The reward model on ranked completions (Ouyang et al. 2022, section 3.5 and App. C.2)."""

  stage: Literal["reward"] = setting("reward", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  model: ModelSettings = group(ModelSettings(shape="6B"))
  data: ComparisonData = group(ComparisonData())
  steps: int = setting(0, "Optimizer updates; 0 counts epochs.", low=0)
  epochs: int = setting(
    1, "Passes over the comparisons, where steps is 0 (paper: 1).", low=1, high=1_000_000
  )
  batch: int = subjects.batch(64, "Prompts of a batch, each with all its completions.")
  micro: int = subjects.micro()
  pairs: Literal["remaining", "all"] = setting(
    "remaining", "Divides the loss of a prompt by the pairs that do not tie, or by all."
  )
  top: int | None = subjects.top()
  trunk_dtype: Dtype | None = subjects.trunk_dtype()
  lora: LoraSettings = group(LoraSettings())
  optimizer: OptimizerSettings = group(OptimizerSettings(lr=9e-6))
  mesh: MeshSettings = group(MeshSettings())
  best: str = subjects.best("eval/accuracy for one, which is best where it is highest")
  checkpoint_every: int = subjects.checkpoint_every(100)
  keep: int = subjects.keep()
  log_every: int = subjects.log_every(1)
  evaluate_every: int = subjects.evaluate_every(100)

  def conflicts(self) -> Iterator[tuple[str, str]]:
    yield from one_part(self.top, self.lora)
    metrics = ("loss", "accuracy", "score/mean", "eval/accuracy")
    yield from chosen_metric(self.best, metrics, bool(self.data.valid))
    if self.batch % self.data.together:
      yield "batch", f"choose a multiple of config.data.together={self.data.together}"
    if self.data.together > 1 and self.data.long == "drop":
      yield (
        "data.long",
        f"a prompt that is left out would part the neighbours of config.data.together="
        f"{self.data.together}; leave it error, and take long prompts out of the file",
      )


TINY = replaced(
  RewardSettings(),
  TINY_MODEL
  | TINY_RUN
  | TINY_LENGTHS
  | {
    "data.valid": "data/test_comparisons_movies.jsonl",
    "batch": 8,
    "optimizer.lr": 1e-3,
    "optimizer.clip": 1.0,
  },
)
# The paper has one reward model of 6B for policies of every size.
REWARD: Mapping[str, RewardSettings] = {
  "tiny": TINY,
  "1.3b": RewardSettings(),
  "6b": RewardSettings(),
  "175b": RewardSettings(),
}
