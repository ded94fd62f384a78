"""PPO-ptx of the quickstart with other settings, judged as the quickstart judges.

  instructjax quickstart --seed=0 --workdir=runs/seed0
  python experiments/quickstart/variant.py runs/seed0 lambda policy_optimizer.lr=1.5e-4 ppo.lam=0.5

It starts from the `rl_init` and the reward model of a finished quickstart, which stays as it is,
and leaves the run in runs/seed0/variants/NAME. The fields are those of `instructjax config ppo`.
One line says how its answers compare with SFT's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from instructjax import intervals, settings
from instructjax.models import freeze
from instructjax.quickstart import answers, data, judging, models, recipe
from instructjax.runs import origin
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.system import jsons

REMEDY = "run the quickstart there first"


def settings_of(workdir: Path) -> QuickstartSettings:
  """Returns the settings of a finished quickstart."""
  config = jsons.read_object(workdir / "config.json", REMEDY)
  # The writer of runs adds the number of its format.
  config.pop("format", None)
  return settings.from_dict(config)


def main(folder: str, name: str, *changes: str) -> None:
  workdir = Path(folder)
  quickstart = settings_of(workdir)
  stage_run = recipe.runs(quickstart, workdir)["ptx"]
  fields = []
  for change in changes:
    field, _, value = change.partition("=")
    fields.append((field, value))
  varied = settings.override(stage_run.settings, fields)
  left = workdir / "variants" / name
  stage_run.run(varied, left, ())
  print(judge(quickstart, workdir, left, name), flush=True)


def judge(quickstart: QuickstartSettings, workdir: Path, left: Path, name: str) -> str:
  """Returns a line about the answers of a variant and those of SFT to the same prompts."""
  trained = models.open_trained(quickstart, workdir)
  opened = origin.open_model(str(left), models.model_settings(quickstart), quickstart.seed)
  _, policy = freeze.split(opened.params, quickstart.top, dtype=quickstart.trunk_dtype)
  prompts = data.test_prompts(recipe.data_folder(workdir))
  answer = answers.answerer(quickstart, trained)
  sft, ours = (
    answer.measure(answer.draw(part, prompts)) for part in (trained.policies["sft"], policy)
  )
  judged = judging.judge(quickstart, trained, prompts, {"sft": sft.texts, name: ours.texts})

  gold: dict[str, Any] = {author: judged[author].scores["gold"] for author in judged}
  won = intervals.win_rate(gold[name], gold["sft"])
  directed = intervals.mean(judging.directed(judged[name]))
  follows = judged[name].follows
  repeated = judging.repeated(ours.texts).mean()
  return (
    f"{name}: gold win rate against SFT {won.value:.3f} ({won.low:.3f} to {won.high:.3f}, n "
    f"{won.n}), both ways {directed.value:.3f}, praises {follows[0::2].mean():.3f}, criticises "
    f"{follows[1::2].mean():.3f}, distinct 2-grams {judging.distinct(ours.texts):.3f} (SFT "
    f"{judging.distinct(sft.texts):.3f}), repeated {repeated:.3f}, tokens "
    f"{np.mean(ours.length):.1f}, KL {np.mean(ours.kl):.1f}"
  )


if __name__ == "__main__":
  main(*sys.argv[1:])
