"""`instructjax eval`: the paper's evaluations of any set of models, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from instructjax.commands.options import Fields, add_distributed, open_settings
from instructjax.errors import UserError
from instructjax.settings import EvalSettings

# The modules of the suites, which hold `open_suite` and, if the suite draws anything, `draw`. They
# are slow to import, which therefore waits until the command runs.
SUITES: dict[str, str] = {
  "nlp": "instructjax.evals.nlp",
  "truthfulqa": "instructjax.evals.truthfulqa",
  "preference": "instructjax.evals.preference",
  "toxicity": "instructjax.evals.toxicity",
  "bias": "instructjax.evals.bias",
  "hallucination": "instructjax.evals.hallucination",
  "behaviours": "instructjax.evals.behaviours",
}
# The suite whose models are rewards; it is evaluated by a command of its own.
REWARD = "reward"
REWARD_MODULE = "instructjax.evals.reward"


def arguments(command: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
  command.add_argument(
    "--models",
    required=True,
    action="append",
    metavar="NAME=SOURCE,...",
    help="base=MODEL,sft=runs/sft",
  )
  command.add_argument(
    "--suite",
    required=True,
    action="append",
    metavar="SUITE,...",
    help=f"{', '.join((*SUITES, REWARD))}; docs/evaluation.md says what each one needs",
  )
  command.add_argument(
    "--config",
    default="eval",
    metavar="FILE[:PRESET]",
    help="default eval: configs/eval.py",
  )
  command.add_argument(
    "--workdir",
    default="runs/eval",
    help="default runs/eval; run again to go on, or to add models",
  )
  add_distributed(command)


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Runs the command.

  Args:
    args: its options.
    fields: the fields of the configuration that the command line sets.

  Raises:
    UserError: if an option is wrong, and for whatever else a user can fix.
  """
  suites = suite_names(args.suite)
  models = named_models(args.models) if suites != [REWARD] else {}
  # A wrong name is reported before JAX starts, which takes seconds.
  config = open_settings(args, fields)
  workdir = Path(args.workdir)
  if suites == [REWARD]:
    # The page shows suites that were evaluated earlier too, so that it needs the drawings of all.
    modules = {name: import_module(place) for name, place in SUITES.items()}
    reward = import_module(REWARD_MODULE)
    reward_models = reward.named_rewards(args.models)
    check(config, reward_models, workdir)
    reward.main(config, workdir, reward_models, drawings(modules) | {REWARD: reward.draw})
    return
  check(config, models, workdir)
  from instructjax.evals import run

  modules = {name: import_module(place) for name, place in SUITES.items()}
  draws = drawings(modules) | {REWARD: import_module(REWARD_MODULE).draw}
  opened_suites = {name: modules[name].open_suite for name in suites}
  run.main(config, workdir, models, opened_suites, draws)


def drawings(modules: Mapping[str, ModuleType]) -> dict[str, Any]:
  """Returns the functions that draw a suite's own part of the page, of the suites that have one."""
  return {name: module.draw for name, module in modules.items() if hasattr(module, "draw")}


def check(config: EvalSettings, models: Mapping[str, str], workdir: Path) -> None:
  """Checks the settings that name something, before anything is opened.

  Raises:
    UserError: for a baseline that is no model, and a folder or a template that is not there.
  """
  from instructjax.data.tokens import chat
  from instructjax.runs import provenance

  # The default is a name that many evaluations do not have; they get a note instead.
  is_chosen = config.baseline != EvalSettings().baseline
  names = [*models, *provenance.noted(workdir)]
  if is_chosen and config.baseline not in names:
    raise UserError(
      f"config.baseline={config.baseline}: no model has this name, so nothing could be compared; "
      f"there are {', '.join(names)}"
    )
  if config.folder and not Path(config.folder).is_dir():
    raise UserError(
      f"config.folder={config.folder}: no such folder; give that of the prepared TFDS data sets"
    )
  if config.template not in ("", chat.OWN, chat.AUTO) and not Path(config.template).is_file():
    raise UserError(
      f"config.template={config.template}: no such file; give a .jinja file, '{chat.AUTO}', "
      f"'{chat.OWN}' or '' for plain text"
    )


def suite_names(texts: Sequence[str]) -> list[str]:
  """Returns the names of `--suite a,b --suite c`, each once.

  Raises:
    UserError: if there is no such suite.
  """
  names = []
  for text in texts:
    for part in text.split(","):
      name = part.strip()
      if name not in (*SUITES, REWARD):
        raise UserError(f"--suite={name}: no such suite; there are {', '.join((*SUITES, REWARD))}")
      if name not in names:  # naming a suite twice does no harm
        names.append(name)
  if REWARD in names and len(names) > 1:
    raise UserError(
      f"--suite={REWARD}: its models are rewards and not language models; evaluate it in a command "
      "of its own"
    )
  return names


def named_models(texts: Sequence[str]) -> dict[str, str]:
  """Returns {name: source} of `--models name=source,name=source`.

  Raises:
    UserError: if a part is not written so, or a name occurs twice.
  """
  source_by_name: dict[str, str] = {}
  for text in texts:
    for part in text.split(","):
      # The source may be empty (random weights), and may hold a = of its own (#prefix=FILE).
      name, sign, source = part.strip().partition("=")
      if not name or not sign:
        raise UserError(
          f"--models: {part.strip()!r}: write NAME=SOURCE, for example "
          "base=PATH_OR_HUB_ID,sft=runs/sft"
        )
      if name in source_by_name:
        earlier = source_by_name[name]
        raise UserError(f"--models: the name {name!r} occurs twice: {earlier} and {source}")
      source_by_name[name] = source
  return source_by_name
