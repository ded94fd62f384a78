"""The settings of the PPO stage, with the paper's presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from instructjax.settings import sampling as sampling_settings
from instructjax.settings import subjects
from instructjax.settings.fields import group, replaced, setting, settings
from instructjax.settings.method import KLSettings, MissingEosSettings, PPOConfig
from instructjax.settings.subjects import (
  Dtype,
  LoadedModelSettings,
  Long,
  LoraSettings,
  MeshSettings,
  OptimizerSettings,
)
from instructjax.settings.supervised import TINY_MODEL, neighbours, one_part


@settings
class PromptAndTextData:
  """Prompts that are answered, and pretraining text for the mix."""

  prompts: str = setting("data/prompts.jsonl", "Prompts, or a mixture of files.")
  text: str = setting(
    "data/text_train.jsonl", "Documents of the pretraining mix; plain PPO reads none."
  )
  valid: str = setting(
    "", "Held-out prompts that are answered now and then; empty evaluates nothing."
  )
  spelling: str = subjects.spelling("prompts")
  fields: str = subjects.fields()
  template: str = subjects.template()
  prompt: int = subjects.prompt_tokens()
  long: Long = subjects.long()
  together: int = subjects.together("prompts, such as two that ask for opposite tones,")
  buckets: int = setting(
    1,
    "Lengths that prompts are padded to, each half of the next; 1 pads all to `prompt`.",
    low=1,
    high=16,
  )
  length: int = subjects.tokens(2048, "Tokens of a row of pretraining text.")
  pack: bool = subjects.pack()
  lazy: bool = subjects.lazy()
  stems: bool = subjects.stems()


@settings
class RolloutSettings:
  """How PPO samples its episodes: from the whole distribution, which is the one that is scored."""

  response: int = subjects.tokens(1024, "Tokens of a response.")
  temperature: float = setting(
    1.0,
    "The temperature of samples, log-probabilities and the update alike (paper: 1).",
    above=0,
    high=100,
  )
  whole: bool = sampling_settings.whole()
  weights: sampling_settings.Stored = sampling_settings.weights()
  cache: sampling_settings.Stored = sampling_settings.cache()
  slots: int = sampling_settings.slots()
  halvings: int = sampling_settings.halvings()


def rounded_sampler(sampling: RolloutSettings, name: str) -> Iterator[tuple[str, str]]:
  """What is in conflict with ratios that begin at the sampler, under the name of that field."""
  for part, stored in (("weights", sampling.weights), ("cache", sampling.cache)):
    if stored == "int8":
      yield (
        name,
        f"config.sampling.{part}=int8 samples from a rounded model, whose log-probabilities "
        "no ratio may begin at; choose trainer",
      )


@settings
class PPOSettings:
  """PPO with the pretraining mix, PPO-ptx (Ouyang et al. 2022, Eq. 2 and App. C.4)."""

  stage: Literal["ppo"] = setting("ppo", "The stage that these settings belong to.")
  seed: int = subjects.seed()
  rl_init: str = setting("", "The run that left the model to start from; --model is short for it.")
  reward_model: str = setting(
    "",
    "The run that left the reward model, as which the value network starts; empty starts it as "
    "rl_init.",
  )
  rewards: str = setting(
    "",
    "What scores a response: a sum such as runs/reward + 0.5*python:my.py:f; empty is the reward "
    "model alone.",
  )
  gold: str = setting(
    "",
    "A second reward that judges the responses to held-out prompts and is never trained on; empty "
    "has none.",
  )
  model: LoadedModelSettings = group(LoadedModelSettings())
  data: PromptAndTextData = group(PromptAndTextData())
  sampling: RolloutSettings = group(RolloutSettings())
  iterations: int = setting(500, "Iterations of `batch` prompts (paper: 256,000 episodes).", low=1)
  batch: int = subjects.batch(512, "Prompts of an iteration.")
  n: int = setting(
    1,
    "Responses to each prompt, which is then computed once for all of them (paper: 1).",
    low=1,
    high=10_000,
  )
  ptx_ratio: int = setting(8, "Rows of pretraining text an episode (paper: 8).", low=1, high=10_000)
  kl: KLSettings = group(KLSettings())
  place: Literal["at_last_token", "after_last_token"] = setting(
    "at_last_token", "Where the score is paid."
  )
  missing_eos: MissingEosSettings = group(MissingEosSettings())
  ppo: PPOConfig = group(PPOConfig())
  top: int | None = subjects.top()
  trunk_dtype: Dtype | None = subjects.trunk_dtype()
  lora: LoraSettings = group(LoraSettings())
  frozen_dtype: Dtype = setting(
    "bfloat16", "The type of the matrices of the reference and the reward model."
  )
  policy_optimizer: OptimizerSettings = group(OptimizerSettings())
  value_optimizer: OptimizerSettings = group(OptimizerSettings())
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
    # Rewards of the user bring metrics of their own names under objective/score/.
    groups = (
      "objective/",
      "response/",
      "policy/",
      "loss/",
      "val/",
      "grad/",
      "rollout/",
      "scoring/",
      "update/",
    )
    if self.data.valid:
      groups = (*groups, "eval/")
    if self.gold.strip() and not self.data.valid:
      yield "gold", "it judges responses to held-out prompts; name some in config.data.valid"
    if self.best and not self.best.startswith(groups):
      yield (
        "best",
        "this stage does not measure it; it measures objective/scores, objective/kl, loss/total "
        "...",
      )
    if self.ppo.old_logp == "sampler":
      yield from rounded_sampler(self.sampling, "ppo.old_logp")
    yield from neighbours(self.batch, self.data.together, self.data.long)
    if self.data.buckets > 1 and self.data.together > 1:
      yield "data.buckets", "the prompts of a batch have one length, so neighbours would be parted"
    if self.episodes % self.ppo.minibatches:
      what = "it does not divide"
      if self.n > 1:
        what = f"with config.n={self.n} it has {self.episodes} episodes, which do not divide"
      yield (
        "batch",
        f"{what} by config.ppo.minibatches={self.ppo.minibatches}; choose a multiple of it",
      )

  @property
  def episodes(self) -> int:
    """Responses of an iteration."""
    return self.batch * self.n

  @property
  def updates(self) -> int:
    """Optimizer updates of an iteration."""
    return self.ppo.epochs * self.ppo.minibatches


def _ppo(shape: str, policy_lr: float, value_lr: float) -> PPOSettings:
  """A size of the paper; the policy's learning rate lies inside the sweep that it prints."""
  changes = {
    "model.shape": shape,
    "policy_optimizer.lr": policy_lr,
    "value_optimizer.lr": value_lr,
    # The policy warms up over 10 iterations from a tenth of the peak (App. C.4).
    "policy_optimizer.warmup": 10,
    "policy_optimizer.start": 0.1,
  }
  # Adam's epsilon is that of Stiennon et al. 2020.
  for name in ("policy_optimizer", "value_optimizer"):
    changes |= {f"{name}.schedule": "constant", f"{name}.eps": 1e-5}
  return replaced(PPOSettings(), changes)


def _ziegler() -> PPOSettings:
  """The style tasks of Ziegler et al. 2019, as their released code runs them.

  The values are those of `launch.py` and the defaults of `train_policy.py` in
  openai/lm-human-preferences; Adam is TensorFlow's, with its own decay of the squares.
  """
  changes = {
    "model.shape": "gpt2-124M",
    "model.dtype": "float32",
    "frozen_dtype": "float32",
    "data.prompt": 64,
    "sampling.response": 24,
    "sampling.temperature": 0.7,
    "iterations": 1954,  # 1,000,000 episodes, rounded up
    "batch": 512,
    "kl.coef": 0.15,
    "kl.control": "adaptive",
    "kl.target": 6.0,
    "kl.horizon": 10_000.0,
    "ppo.epochs": 4,
    "ppo.minibatches": 1,
    "ppo.whiten_reward": True,
    "ppo.ptx_coef": 0.0,
    "ppo.ema_decay": None,
  }
  # One network gives policy and value there, so both have one learning rate.
  for name in ("policy_optimizer", "value_optimizer"):
    changes |= {
      f"{name}.lr": 1e-5,
      f"{name}.schedule": "linear",
      f"{name}.b2": 0.999,
      f"{name}.eps": 1e-5,
      f"{name}.eps_mode": "tf",
    }
  return replaced(PPOSettings(), changes)


def _stiennon(shape: str, lr: float, batch: int, iterations: int) -> PPOSettings:
  """Summaries of TL;DR (Stiennon et al. 2020, App. B.1): 1,000,000 episodes.

  The paper prints one learning rate. Minibatches and epsilon are those of Huang et al. 2024, who
  reproduced it.
  """
  changes = {
    "model.shape": shape,
    "data.prompt": 512,
    "sampling.response": 48,
    "iterations": iterations,
    "batch": batch,
    "kl.coef": 0.05,
    "ppo.epochs": 4,
    "ppo.minibatches": 1,
    "ppo.ptx_coef": 0.0,
    "ppo.ema_decay": None,
  }
  for name in ("policy_optimizer", "value_optimizer"):
    changes |= {f"{name}.lr": lr, f"{name}.schedule": "linear", f"{name}.eps": 1e-5}
  return replaced(PPOSettings(), changes)


PPO: Mapping[str, PPOSettings] = {
  "tiny": replaced(
    _ppo("tiny", 3e-4, 1e-3),
    TINY_MODEL
    | {
      "data.prompt": 128,
      "data.length": 64,
      "sampling.response": 24,
      "iterations": 10,
      "batch": 32,
      "ptx_ratio": 2,
      "ppo.minibatches": 4,
      "frozen_dtype": "float32",
      "policy_optimizer.warmup": 2,
      "policy_optimizer.clip": 1.0,
      "value_optimizer.clip": 1.0,
      "checkpoint_every": 0,
      "keep": 1,
    },
  ),
  # App. C.4 prints the learning rates of the value network: 9e-6, and 5e-6 for 175B.
  "1.3b": _ppo("1.3B", 5e-6, 9e-6),
  "6b": _ppo("6B", 5e-6, 9e-6),
  "175b": _ppo("175B", 2.55e-6, 5e-6),
  # What InstructGPT grew out of, and what it is compared with.
  "ziegler": _ziegler(),
  "stiennon": _stiennon("1.3B", 1.5e-5, 512, 1954),
  "stiennon-6.7b": _stiennon("6.7B", 7e-6, 256, 3907),
}
