"""The settings of group-relative policy optimisation, with presets of the paper's sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from instructjax.settings import subjects
from instructjax.settings.fields import group, replaced, setting, settings
from instructjax.settings.method import GRPOConfig, KLSettings, MissingEosSettings, PPOConfig
from instructjax.settings.ppo import PPOSettings, RolloutSettings, rounded_sampler
from instructjax.settings.subjects import (
  Dtype,
  LoadedModelSettings,
  Long,
  LoraSettings,
  MeshSettings,
  OptimizerSettings,
)
from instructjax.settings.supervised import TINY_MODEL, one_part

METRICS = ("objective/", "response/", "policy/", "loss/", "val/", "grad/", "rollout/", "update/")


@settings
class AnsweredData:
  """Prompts that are answered several times each."""

  prompts: str = setting("data/prompts.jsonl", "Prompts, or a mixture of files.")
  valid: str = setting(
    "", "Held-out prompts that are answered now and then; empty evaluates nothing."
  )
  spelling: str = subjects.spelling("prompts")
  fields: str = subjects.fields()
  template: str = subjects.template()
  prompt: int = subjects.prompt_tokens()
  long: Long = subjects.long()

  @property
  def buckets(self) -> int:
    """One, and no setting: all prompts are padded to `prompt`."""
    return 1

  @property
  def together(self) -> int:
    """One, and no setting: the responses that are compared are of one prompt."""
    return 1


@settings
class GRPOSettings:
  """A policy from rewards alone, compared within groups of responses (Shao et al. 2024)."""

  stage: Literal["grpo"] = setting("grpo", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  rl_init: str = setting("", "The run that left the model to start from; --model is short for it.")
  rewards: str = setting("", "What scores a response: a sum such as python:my.py:f + 0.1*runs/rm.")
  gold: str = setting(
    "",
    "A second reward that judges the responses to held-out prompts and is never trained on; empty "
    "has none.",
  )
  model: LoadedModelSettings = group(LoadedModelSettings())
  data: AnsweredData = group(AnsweredData())
  sampling: RolloutSettings = group(RolloutSettings())
  iterations: int = setting(500, "Iterations of `batch` prompts.", low=1)
  batch: int = subjects.batch(64, "Prompts of an iteration.")
  n: int = setting(8, "Responses to each prompt, which are compared.", low=2, high=10_000)
  kl: KLSettings = group(KLSettings(coef=0.04))
  missing_eos: MissingEosSettings = group(MissingEosSettings())
  grpo: GRPOConfig = group(GRPOConfig())
  top: int | None = subjects.top()
  trunk_dtype: Dtype | None = subjects.trunk_dtype()
  lora: LoraSettings = group(LoraSettings())
  frozen_dtype: Dtype = setting("bfloat16", "The type of the matrices of the reference.")
  optimizer: OptimizerSettings = group(OptimizerSettings())
  mesh: MeshSettings = group(MeshSettings())
  best: str = subjects.best("objective/scores for one, which is best where it is highest")
  checkpoint_every: int = subjects.checkpoint_every(25)
  keep: int = subjects.keep()
  log_every: int = subjects.log_every(1)
  evaluate_every: int = subjects.evaluate_every(25)
  sample_every: int = setting(
    25, "Iterations between samples in samples.jsonl; 0 writes none.", low=0
  )
  samples: int = setting(8, "Responses that are written each time.", low=1, high=100_000)

  def conflicts(self) -> Iterator[tuple[str, str]]:
    yield from one_part(self.top, self.lora)
    groups = (*METRICS, "eval/") if self.data.valid else METRICS
    if self.gold.strip() and not self.data.valid:
      yield "gold", "it judges responses to held-out prompts; name some in config.data.valid"
    if self.best and not self.best.startswith(groups):
      yield "best", "this stage does not measure it; it measures objective/scores, loss/total ..."
    if self.grpo.old_logp == "sampler":
      yield from rounded_sampler(self.sampling, "grpo.old_logp")
    if self.episodes % self.grpo.minibatches:
      yield (
        "batch",
        f"with {self.n} responses a prompt it has {self.episodes} episodes, which do not divide "
        f"by config.grpo.minibatches={self.grpo.minibatches}; choose a multiple of it",
      )

  @property
  def episodes(self) -> int:
    """Responses of an iteration."""
    return self.batch * self.n

  @property
  def updates(self) -> int:
    """Optimizer updates of an iteration."""
    return self.grpo.epochs * self.grpo.minibatches

  @property
  def ppo(self) -> PPOConfig:
    """What `ppo.PPO` takes: without a value network, text, and an average of weights."""
    return PPOConfig(
      epochs=self.grpo.epochs,
      minibatches=self.grpo.minibatches,
      clip=self.grpo.clip,
      whiten_advantage=False,
      ptx_coef=0.0,
      normalise=self.grpo.normalise,
      ema_decay=None,
      old_logp=self.grpo.old_logp,
      rows_at_once=self.grpo.rows_at_once,
      micro=self.grpo.micro,
    )


# Stages that sample episodes and learn from them.
EpisodeSettings = PPOSettings | GRPOSettings


def _grpo(shape: str) -> GRPOSettings:
  """A size of the paper under the values of DeepSeekMath (Shao et al. 2024, section 4.2)."""
  changes = {
    "model.shape": shape,
    "batch": 16,
    "n": 64,
    "optimizer.lr": 1e-6,
    "optimizer.schedule": "constant",
  }
  return replaced(GRPOSettings(), changes)


GRPO: Mapping[str, GRPOSettings] = {
  "tiny": replaced(
    GRPOSettings(),
    TINY_MODEL
    | {
      "data.prompt": 128,
      "sampling.response": 24,
      "iterations": 10,
      "batch": 8,
      "n": 4,
      "frozen_dtype": "float32",
      "optimizer.lr": 3e-4,
      "optimizer.schedule": "constant",
      "optimizer.clip": 1.0,
      "checkpoint_every": 0,
      "keep": 1,
    },
  ),
  "1.3b": _grpo("1.3B"),
  "6b": _grpo("6B"),
  "175b": _grpo("175B"),
}
