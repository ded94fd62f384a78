"""Configurations from files and from the command line: `--config=sft:1.3b --config.batch=8`.

A file in `configs/` has a function `get_config(preset)` that returns an
`ml_collections.ConfigDict`; what is read from it is a typed settings object, and the ConfigDict
goes no further.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.settings import (
  dpo,
  evals,
  fields,
  grpo,
  ppo,
  quickstart,
  reward,
  sampling,
  supervised,
)
from instructjax.system import user_code

# The settings of a stage that trains, of any stage, and the parts that say which data are read.
TrainingSettings = (
  supervised.SupervisedSettings
  | reward.RewardSettings
  | ppo.PPOSettings
  | grpo.GRPOSettings
  | dpo.DPOSettings
)
AnySettings = (
  TrainingSettings
  | sampling.BestOfNSettings
  | sampling.SampleSettings
  | evals.EvalSettings
  | quickstart.QuickstartSettings
)
TextSettings = (
  supervised.TextData | supervised.DemonstrationData | supervised.MixedData | ppo.PromptAndTextData
)
DataSettings = (
  TextSettings
  | reward.ComparisonData
  | dpo.PreferenceData
  | grpo.AnsweredData
  | sampling.PromptData
)

# The stages and their presets; the first preset of a stage is the one that is taken where none is
# named.
PRESETS: Mapping[str, Mapping[str, Any]] = {
  "pretrain": supervised.PRETRAIN,
  "sft": supervised.SFT,
  "rl_init": supervised.RL_INIT,
  "reward": reward.REWARD,
  "ppo": ppo.PPO,
  "grpo": grpo.GRPO,
  "dpo": dpo.DPO,
  "bestofn": sampling.BESTOFN,
  "sample": sampling.SAMPLE,
  "eval": evals.EVAL,
  "quickstart": quickstart.QUICKSTART,
}


PLAIN = (bool, int, float, str, dict)  # what a value of a configuration may be, beside None


def preset(stage: str, name: str = "") -> Any:
  """The settings of a stage under a preset.

  Raises UserError where the stage has no such preset.
  """
  presets = PRESETS[stage]
  name = name or next(iter(presets))
  if name not in presets:
    raise UserError(f"--config={stage}:{name}: no such preset; there are {', '.join(presets)}")
  return presets[name]


def config_dict(stage: str, name: str = "") -> Any:
  """A preset as the ConfigDict that `get_config` of a file in `configs/` returns."""
  import ml_collections

  return ml_collections.ConfigDict(fields.to_dict(preset(stage, name)))


def load(name: str) -> Any:
  """The settings of `sft:1.3b`, or of a file such as `my_sft.py:1.3b`; without `:1.3b` the default.

  Raises UserError where there is no such stage, file or preset, and for a field that does not fit.
  """
  # A file in ./configs goes before the preset of the same name: it may be a changed copy of it.
  file, _, preset_name = name.partition(":")
  path = Path(file)
  if path.suffix != ".py":
    path = Path("configs") / f"{file}.py"
  if path.is_file():
    return from_file(path, preset_name, f"--config={name}")
  # The package's own `configs/sft.py` is meant from any folder, and is those presets.
  if path.parent == Path("configs") and path.stem in PRESETS:
    return preset(path.stem, preset_name)
  raise UserError(
    f"--config={file}: no such configuration; there are {', '.join(PRESETS)}, or give the path "
    "of a file that ends in .py"
  )


def from_file(path: Path, preset_name: str, option: str) -> Any:
  """The settings that the `get_config` of a Python file returns.

  Raises UserError where the file or the function raises anything, where there is no such function
  or preset, where it returns no configuration, and for a field that does not fit.
  """
  module = user_code.import_file(path)
  get_config = getattr(module, "get_config", None)
  if not callable(get_config):
    raise UserError(f"{option}: {path} has no function get_config")
  with user_code.guarding(f"{option}: get_config of {path}", path.resolve().parent):
    # A user's own file may hold one configuration and no presets.
    if preset_name and not inspect.signature(get_config).parameters:
      raise UserError(f"{option}: get_config of {path} takes no preset; leave out :{preset_name}")
    try:
      config = get_config(preset_name) if preset_name else get_config()
    except KeyError as error:
      raise UserError(f"{option}: {path} has no preset {preset_name!r} ({error})") from error
    tree = config.to_dict() if hasattr(config, "to_dict") else config
    tree = plain(tree, f"{option}: get_config of {path}")
  try:
    return from_dict(tree, option)
  except UserError as error:
    # A field is named without the file that has set it.
    if str(path) in str(error):
      raise
    raise UserError(f"{path}: {error}") from error


def plain(tree: Any, place: str, path: str = "") -> dict[str, Any]:
  """A configuration as dictionaries of plain values, as JSON has them.

  Raises UserError for anything else that a user's function may return.
  """
  if not isinstance(tree, Mapping):
    raise UserError(
      f"{place} returned {_type_name(tree)}; it must return an ml_collections.ConfigDict, as "
      "configs/sft.py does"
    )
  values: dict[str, Any] = {}
  for name, value in tree.items():
    if not isinstance(name, str):
      raise UserError(f"{place}: config{path} has a key of type {_type_name(name)}, not a text")
    if isinstance(value, Mapping):
      value = plain(value, place, f"{path}.{name}")
    parts = value if isinstance(value, tuple | list) else [value]
    if not all(part is None or isinstance(part, PLAIN) for part in parts):
      raise UserError(
        f"{place}: config{path}.{name} is of type {_type_name(value)}; give a number, a text, true "
        "or false, None, or several of them"
      )
    values[name] = value
  return values


def _type_name(value: Any) -> str:
  return type(value).__name__


def from_dict(tree: Mapping[str, Any], option: str = "config") -> Any:
  """Settings from nested mappings, whose `stage` says which they are.

  Raises UserError for an unknown stage and for a field that does not fit.
  """
  stage = tree.get("stage")
  if not isinstance(stage, str) or stage not in PRESETS:
    raise UserError(f"{option}: stage={fields.show(stage)} is none of {', '.join(PRESETS)}")
  return fields.built(type(preset(stage)), tree)


def assignments(words: Sequence[str]) -> list[tuple[str, str]]:
  """`--config.a.b=v` or `--config.a.b v` as (a.b, v).  Raises UserError for anything else."""
  pairs, waiting = [], list(words)
  while waiting:
    word = waiting.pop(0)
    if not word.startswith("--config."):
      raise UserError(f"{word}: no such option; add --help to see those there are")
    name, sign, value = word.removeprefix("--config.").partition("=")
    if not sign and (not waiting or waiting[0].startswith("--")):
      raise UserError(f"{word}: give a value, {word}=VALUE")
    pairs.append((name, value if sign else waiting.pop(0)))
  return pairs


def override(settings: Any, pairs: Sequence[tuple[str, str]]) -> Any:
  """The settings with other values, given as texts for dotted names.

  All of them are set before fields are checked against each other, so that their order is free.
  Raises UserError for an unknown field, a value that does not fit and fields in conflict.
  """
  fields_by_path = {field.path: field for field in fields.walk(settings)}
  changes: dict[str, Any] = {}
  for path, text in pairs:
    field = fields_by_path.get(path)
    # A name that is no field gets its message from `replaced`.
    changes[path] = text if field is None else fields.parsed(path, text, field.kind, field.limits)
  return fields.replaced(settings, changes) if changes else settings
