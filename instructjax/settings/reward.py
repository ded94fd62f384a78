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
  held_out_twice,
  neighbours,
  one_part,
)


@settings
class ComparisonData:
  """Prompts with ranked completions."""

  comparisons: str = setting("data/comparisons.jsonl", "Ranked completions, or a mixture of files.")
  demonstrations: str = setting(
    "data/demonstrations.jsonl",
    "Demonstrations that score 0 on average, by the bias; empty leaves it as it is.",
  )
  valid: str = setting("", "Held-out comparisons; empty evaluates nothing.")
  held_out: float = subjects.held_out()
  spelling: str = subjects.spelling("comparisons")
  fields: str = subjects.fields()
  empty_completions: bool = subjects.empty_completions()
  template: str = subjects.template()
  prompt: int = subjects.prompt_tokens()
  response: int = subjects.response_tokens()
  long: Long = subjects.long()
  together: int = subjects.together("comparisons, such as two that rank the same texts,")
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
  micro: int = subjects.parts()
  pairs: Literal["remaining", "all"] = setting(
    "remaining", "Divides the loss of a prompt by the pairs that do not tie, or by all."
  )
  loss: Literal["pairs", "best_of_k"] = setting(
    "pairs", "Eq. 1 on all pairs, or the choice of the best of K (Ziegler et al. 2019, Eq. 1)."
  )
  centering: float = setting(
    0.0,
    "The weight of the squared sum of the scores of a pair, which holds them near 0 (Eisenstein "
    "et al. 2023).",
    low=0,
    high=1000,
  )
  margin: float = setting(
    0.0,
    "By how much the better of a pair has to score higher, for each `margin_by` (Touvron et al. "
    "2023).",
    low=0,
    high=1000,
  )
  margin_by: Literal["pair", "rank", "rating"] = setting(
    "pair", "What a margin is counted by: the pair, ranks between, or points of overall quality."
  )
  normalise: Literal["mean", "mean_and_std"] = setting(
    "mean", "Gives the scores of demonstrations the mean 0, and the deviation 1 too."
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
  samples: int = subjects.samples("the highest and the lowest score are shown")

  def conflicts(self) -> Iterator[tuple[str, str]]:
    yield from one_part(self.top, self.lora)
    yield from held_out_twice(self.data.valid, self.data.held_out)
    metrics = ("loss", "accuracy", "score/mean", "eval/accuracy", "eval/log_loss")
    yield from chosen_metric(self.best, metrics, bool(self.data.valid or self.data.held_out))
    if self.margin and self.loss == "best_of_k":
      yield (
        "margin",
        "the choice of the best of K has no pairs; set config.loss=pairs, or leave it 0",
      )
    if self.margin_by != "pair" and not self.margin:
      yield "margin_by", "there is no margin to count; set config.margin too"
    if self.normalise == "mean_and_std" and not self.data.demonstrations:
      yield "normalise", "give demonstrations to normalise on, config.data.demonstrations"
    yield from neighbours(self.batch, self.data.together, self.data.long)
    if self.data.together > 1 and self.data.held_out:
      yield (
        "data.held_out",
        f"it would part the neighbours of config.data.together={self.data.together}; leave it 0, "
        "and give held-out comparisons in config.data.valid",
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


def _ziegler() -> RewardSettings:
  """The style tasks of Ziegler et al. 2019: the best of four, 4,992 labels once.

  The values are those of `launch.py` and `train_reward.py` in openai/lm-human-preferences. Their
  model is normalised on samples of the reference policy, before and after training.
  """
  changes = {
    "model.shape": "gpt2-124M",
    "model.dtype": "float32",
    "data.prompt": 64,
    "data.response": 24,
    "batch": 32,
    "loss": "best_of_k",
    "normalise": "mean_and_std",
    "optimizer.lr": 5e-5,
    "optimizer.schedule": "linear",
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-5,
    "optimizer.eps_mode": "tf",
  }
  return replaced(RewardSettings(), changes)


def _stiennon(shape: str, lr: float) -> RewardSettings:
  """Summaries of TL;DR (Stiennon et al. 2020, App. B.1): one epoch, reference summaries at 0."""
  changes = {
    "model.shape": shape,
    "data.prompt": 512,
    "data.response": 48,
    "batch": 64,
    "optimizer.lr": lr,
  }
  return replaced(RewardSettings(), changes)


# The paper has one reward model of 6B for policies of every size.
REWARD: Mapping[str, RewardSettings] = {
  "tiny": TINY,
  "1.3b": RewardSettings(),
  "6b": RewardSettings(),
  "175b": RewardSettings(),
  "ziegler": _ziegler(),
  "stiennon": _stiennon("1.3B", 1.5e-5),
  "stiennon-6.7b": _stiennon("6.7B", 5e-6),
}
