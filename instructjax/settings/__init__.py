"""Typed settings of every stage, their presets and ranges, and how a configuration is read.

  from instructjax import settings

  sft = settings.load("sft:1.3b")                                  # a typed, frozen object
  sft = settings.override(sft, [("optimizer.lr", "1e-5")])         # as the command line does
  sft = settings.replaced(sft, {"optimizer.lr": 1e-5})             # as Python does

An object cannot be made with a value out of its range: `UserError` names the field and the range.
"""

from instructjax.settings.dpo import DPOSettings
from instructjax.settings.evals import EvalSettings
from instructjax.settings.fields import replaced, to_dict
from instructjax.settings.grpo import EpisodeSettings, GRPOSettings
from instructjax.settings.ppo import PPOSettings
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.settings.reading import (
  PRESETS,
  AnySettings,
  DataSettings,
  TextSettings,
  TrainingSettings,
  assignments,
  config_dict,
  from_dict,
  load,
  override,
  preset,
)
from instructjax.settings.reward import RewardSettings
from instructjax.settings.sampling import BestOfNSettings, SampleSettings
from instructjax.settings.supervised import PretrainSettings, RLInitSettings, SFTSettings

__all__ = [
  "PRESETS",
  "AnySettings",
  "BestOfNSettings",
  "DPOSettings",
  "DataSettings",
  "EpisodeSettings",
  "EvalSettings",
  "GRPOSettings",
  "PPOSettings",
  "PretrainSettings",
  "QuickstartSettings",
  "RLInitSettings",
  "RewardSettings",
  "SFTSettings",
  "SampleSettings",
  "TextSettings",
  "TrainingSettings",
  "assignments",
  "config_dict",
  "from_dict",
  "load",
  "override",
  "preset",
  "replaced",
  "to_dict",
]
