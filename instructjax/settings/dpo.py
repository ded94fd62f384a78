"""The settings of direct preference optimisation, with presets of the paper's sizes."""

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
  one_part,
)

METRICS = ("loss", "accuracy", "reward/margin", "eval/accuracy", "eval/log_loss")


@settings
class PreferenceData:
  """Prompts with ranked completions, of which a policy learns."""

  comparisons: str = setting("data/comparisons.jsonl", "Ranked completions, or a mixture of files.")
  valid: str = setting("", "Held-out comparisons; empty evaluates nothing.")
  held_out: float = subjects.held_out()
  spelling: str = subjects.spelling("comparisons")
  fields: str = subjects.fields()
  empty_completions: bool = subjects.empty_completions()
  template: str = subjects.template()
  prompt: int = subjects.prompt_tokens()
  response: int = subjects.response_tokens()
  long: Long = subjects.long()
  stems: bool = subjects.stems()
  separator: str = subjects.separator()


@settings
class DPOSettings:
  """A policy from ranked completions, without a reward model (Rafailov et al. 2023)."""

  stage: Literal["dpo"] = setting("dpo", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  model: ModelSettings = group(ModelSettings())
  data: PreferenceData = group(PreferenceData())
  steps: int = setting(0, "Optimizer updates; 0 counts epochs.", low=0)
  epochs: int = setting(1, "Passes over the comparisons, where steps is 0.", low=1, high=1_000_000)
  batch: int = subjects.batch(64, "Prompts of a batch, each with all its completions.")
  micro: int = subjects.parts()
  beta: float = setting(
    0.1, "How strongly the policy is held to its start (Rafailov et al.: .1).", above=0, high=1000
  )
  pairs: Literal["remaining", "all"] = setting(
    "remaining", "Divides the loss of a prompt by the pairs that do not tie, or by all."
  )
  top: int | None = subjects.top()
  trunk_dtype: Dtype | None = subjects.trunk_dtype()
  lora: LoraSettings = group(LoraSettings())
  frozen_dtype: Dtype = setting("bfloat16", "The type of the matrices of the reference.")
  optimizer: OptimizerSettings = group(OptimizerSettings())
  mesh: MeshSettings = group(MeshSettings())
  best: str = subjects.best("eval/accuracy for one, which is best where it is highest")
  checkpoint_every: int = subjects.checkpoint_every(100)
  keep: int = subjects.keep()
  log_every: int = subjects.log_every(1)
  evaluate_every: int = subjects.evaluate_every(100)
  samples: int = subjects.samples("an answer is left")

  def conflicts(self) -> Iterator[tuple[str, str]]:
    yield from one_part(self.top, self.lora)
    yield from held_out_twice(self.data.valid, self.data.held_out)
    yield from chosen_metric(self.best, METRICS, bool(self.data.valid or self.data.held_out))


def _dpo(shape: str) -> DPOSettings:
  """A size of the paper under the values of Rafailov et al. 2023, App. B."""
  changes = {
    "model.shape": shape,
    "optimizer.lr": 1e-6,
    "optimizer.schedule": "constant",
    "optimizer.warmup": 150,
    "optimizer.start": 0.0,
  }
  return replaced(DPOSettings(), changes)


DPO: Mapping[str, DPOSettings] = {
  "tiny": replaced(
    DPOSettings(),
    TINY_MODEL
    | TINY_RUN
    | TINY_LENGTHS
    | {
      "data.valid": "data/test_comparisons_movies.jsonl",
      "batch": 8,
      "frozen_dtype": "float32",
      "optimizer.lr": 3e-4,
      "optimizer.clip": 1.0,
    },
  ),
  "1.3b": _dpo("1.3B"),
  "6b": _dpo("6B"),
  "175b": _dpo("175B"),
}
