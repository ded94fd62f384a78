"""The six runs of the quickstart: the settings of each stage, from the few of the quickstart.

    base -> sft -> reward, gold        base -> rl_init -> ppo, ptx        (ppo and ptx read reward)

Each is a stage of the package, which `instructjax sft`, `reward` and `ppo` run in the same way. It
works in a directory of its own, WORKDIR/models/NAME, and leaves a whole model there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.settings import TrainingSettings
from instructjax.settings.fields import replaced
from instructjax.settings.ppo import PPOSettings
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.settings.reward import RewardSettings
from instructjax.settings.supervised import RLInitSettings, SFTSettings
from instructjax.stages import ppo, pretrain_sft, reward
from instructjax.stages.running import Watch


class StageRun(NamedTuple):
  """A stage with its settings: `run(settings, directory, sinks, watch)` trains it."""

  run: Callable[[Any, Path, tuple[str, ...], Watch], None]
  settings: TrainingSettings


def runs(settings: QuickstartSettings, workdir: Path) -> dict[str, StageRun]:
  """Returns the runs by their names, in the order in which they need each other.

  Raises:
    UserError: settings of the quickstart contradict each other.
  """
  return {
    "sft": StageRun(pretrain_sft.run, sft_settings(settings, workdir)),
    "rl_init": StageRun(pretrain_sft.run, rl_init_settings(settings, workdir)),
    "reward": StageRun(reward.run, reward_settings(settings, workdir, "comparisons")),
    # The gold model judges and is never trained on: other texts, other raters, another seed.
    "gold": StageRun(reward.run, reward_settings(settings, workdir, "gold", seed_shift=1)),
    "ppo": StageRun(ppo.run, ppo_settings(settings, workdir, ptx_coef=0.0)),
    "ptx": StageRun(ppo.run, ppo_settings(settings, workdir, ptx_coef=settings.ptx_coef)),
  }


def model_folder(workdir: Path, name: str) -> Path:
  """Returns the directory of a run."""
  return workdir / "models" / name


def data_file(workdir: Path, name: str) -> str:
  """Returns the path of a data file, as settings name it."""
  return str(data_folder(workdir) / f"{name}.jsonl")


def data_folder(workdir: Path) -> Path:
  """Returns the directory of the data files."""
  return workdir / "data"


# --- what the stages have in common ---


def shared(settings: QuickstartSettings) -> dict[str, Any]:
  """Returns the fields that every stage has."""
  return {
    "seed": settings.seed,
    "top": settings.top,
    "trunk_dtype": settings.trunk_dtype,
    "model.dtype": settings.dtype,
    "model.unroll": settings.unroll,
    # Six small blocks fit into memory as they are.
    "model.remat": "none",
    "data.template": settings.template,
    "data.prompt": settings.prompt,
    # The lower blocks never change: what they make of a row of data is computed once and kept.
    "data.stems": settings.top is not None,
    # A stage takes a minute or two. An interrupted one saves the step that it is at.
    "checkpoint_every": 0,
    "keep": 1,
  }


def supervised(settings: QuickstartSettings, workdir: Path, lr: float) -> dict[str, Any]:
  """Returns the fields that SFT, rl_init and the reward models have besides."""
  return shared(settings) | {
    # A few hundred updates need no dropout; PPO has none anyway.
    "model.dropout": 0.0,
    "data.response": settings.response,
    "data.demonstrations": data_file(workdir, "demonstrations"),
    "optimizer.lr": lr,
    "optimizer.clip": 1.0,
    "evaluate_every": 0,
  }


# --- each stage ---


def sft_settings(settings: QuickstartSettings, workdir: Path) -> SFTSettings:
  """Returns the settings of supervised fine-tuning on demonstrations."""
  changes = supervised(settings, workdir, settings.sft_lr) | {
    "model.source": str(model_folder(workdir, "base")),
    "epochs": settings.sft_epochs,
    "batch": settings.sft_batch,
    "rows_at_once": settings.rows_at_once,
  }
  return replaced(SFTSettings(), changes)


def rl_init_settings(settings: QuickstartSettings, workdir: Path) -> RLInitSettings:
  """Returns the settings of the model that PPO starts from: demonstrations and pretraining text."""
  changes = supervised(settings, workdir, settings.sft_lr) | {
    "model.source": str(model_folder(workdir, "base")),
    "data.text": data_file(workdir, "text_train"),
    "epochs": settings.sft_epochs,
    "batch": settings.sft_batch,
    "rows_at_once": settings.rows_at_once,
    "text_share": settings.text_share,
  }
  return replaced(RLInitSettings(), changes)


def reward_settings(
  settings: QuickstartSettings, workdir: Path, comparisons: str, seed_shift: int = 0
) -> RewardSettings:
  """Returns the settings of a reward model on the comparisons of one data file."""
  changes = supervised(settings, workdir, settings.reward_lr) | {
    "seed": settings.seed + seed_shift,
    "model.source": str(model_folder(workdir, "sft")),
    "data.comparisons": data_file(workdir, comparisons),
    # The same texts come twice in a row, to be praised and to be criticised (`data.public.tone`).
    "data.together": 2,
    "batch": settings.reward_batch,
  }
  return replaced(RewardSettings(), changes)


def ppo_settings(settings: QuickstartSettings, workdir: Path, ptx_coef: float) -> PPOSettings:
  """Returns the settings of PPO against the reward model; with `ptx_coef` it is PPO-ptx."""
  changes = shared(settings) | {
    "rl_init": str(model_folder(workdir, "rl_init")),
    "reward_model": str(model_folder(workdir, "reward")),
    "data.prompts": data_file(workdir, "prompts"),
    # The same instruction comes twice in a row, to praise and to criticise.
    "data.together": 2,
    "data.text": data_file(workdir, "text_train"),
    "data.length": settings.text,
    "sampling.response": settings.response,
    "sampling.temperature": settings.temperature,
    # Every episode has a slot: nothing waits. Fewer loops compile sooner, and the iterations are
    # too few to gain by more of them.
    "sampling.slots": settings.episodes,
    "sampling.halvings": settings.halvings,
    # The quickstart shows answers to test prompts, and its own are quicker without these.
    "sample_every": 0,
    "iterations": settings.iterations,
    "batch": settings.prompts,
    "n": settings.responses,
    "ptx_ratio": settings.ptx_ratio,
    "kl.coef": settings.kl_coef,
    # A response that runs into the limit is no sentence, whatever the reward model says of it.
    "missing_eos.kind": "subtract",
    "missing_eos.value": settings.eos_penalty,
    "ppo.minibatches": settings.minibatches,
    # The model that samples is the one that learns, with the same weights in the same type: its
    # log-probabilities serve, and a pass of the policy is saved.
    "ppo.old_logp": "sampler",
    # Values begin far from the targets, and in as few updates cannot come there in steps of .2.
    "ppo.value_clip": None,
    "ppo.rows_at_once": settings.ppo_rows_at_once,
    "ppo.ptx_coef": ptx_coef,
    "ppo.ptx_micro": settings.ptx_micro,
    "ppo.ema_decay": settings.ema_decay,
    "policy_optimizer.lr": settings.ppo_lr,
    "policy_optimizer.schedule": "constant",
    # In the first iteration the values are far off, and so is what the policy would learn of them.
    "policy_optimizer.warmup": 1,
    "policy_optimizer.start": 0.2,
    "value_optimizer.lr": settings.value_lr,
  }
  for name in ("policy_optimizer", "value_optimizer"):
    changes |= {f"{name}.eps": 1e-5, f"{name}.clip": 1.0}
  return replaced(PPOSettings(), changes)
