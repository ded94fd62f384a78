"""An arm of laboratory T: PPO of a finished quickstart with other settings, judged by prompt.

  instructjax quickstart --seed=10 --workdir=runs/paper/tone10
  python experiments/paper/tone.py runs/paper/tone10 kl0.05 kl.coef=0.05

It starts from the quickstart's `rl_init` and reward model and leaves the run in
runs/paper/tone10/arms/NAME: PPO without the pretraining mix, unless `ppo.ptx_coef` is set. The
fields are those of `instructjax config ppo`. Without fields, NAME is a run of the quickstart (sft,
ppo or ptx), which is judged alone. Beside the run, NAME.jsonl has a line for each test prompt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from instructjax import quickstart, settings
from instructjax.models import freeze
from instructjax.quickstart import answers, data, evaluation, judging, models, recipe
from instructjax.runs import origin, writers
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.system import jsons

REMEDY = "run the quickstart there first"


def settings_of(workdir: Path) -> QuickstartSettings:
  """Returns the settings of a finished quickstart."""
  config = jsons.read_object(workdir / "config.json", REMEDY)
  # The writer of runs adds the number of its format.
  config.pop("format", None)
  return settings.from_dict(config)


def train(workdir: Path, name: str, fields: list[tuple[str, str]]) -> Path:
  """Trains an arm, if it is not finished, and returns its directory."""
  left = workdir / "arms" / name
  if not quickstart.is_finished(left):
    stage_run = recipe.runs(settings_of(workdir), workdir)["ppo"]
    stage_run.run(settings.override(stage_run.settings, fields), left, ())
  return left


def measure(workdir: Path, left: Path) -> list[dict[str, Any]]:
  """Returns a line for each test prompt: the answers of an arm and of SFT, and both gold scores.

  The losses on held-out text are of other rows, and stand in the lines of the first prompts.
  """
  chosen = settings_of(workdir)
  trained = models.open_trained(chosen, workdir)
  opened = origin.open_model(str(left), models.model_settings(chosen), chosen.seed)
  _, policy = freeze.split(opened.params, chosen.top, dtype=chosen.trunk_dtype)
  del opened
  folder = recipe.data_folder(workdir)
  prompts = data.test_prompts(folder)
  answer = answers.answerer(chosen, trained)
  sft = answer.measure(answer.draw(trained.policies["sft"], prompts))
  ours = answer.measure(answer.draw(policy, prompts))
  judged = judging.judge(chosen, trained, prompts, {"sft": sft.texts, "ours": ours.texts})
  text_loss = evaluation.text_loss_on(trained, data.held_out_text(folder), chosen.text_valid)
  losses = text_loss(policy)
  losses_at_start = text_loss(trained.reference)

  repeated = judging.repeated(ours.texts)
  lines = []
  for number, prompt in enumerate(prompts):
    line: dict[str, Any] = {
      "prompt": data.instruction(prompt),
      # Each instruction comes twice in a row, to praise and to criticise.
      "cluster": number // 2,
      "domain": prompt.source,
      "use_case": prompt.use_case,
      "response": ours.texts[number],
      "response_sft": sft.texts[number],
      "repeated": float(repeated[number]),
    }
    line |= {
      "tokens": float(ours.length[number]),
      "ended": float(ours.ended[number]),
      "kl": float(ours.kl[number]),
      "follows": float(judged["ours"].follows[number]),
    }
    for score in ("gold", "reward"):
      line[score] = float(judged["ours"].scores[score][number])
      line[f"{score}_sft"] = float(judged["sft"].scores[score][number])
    if number < len(losses):
      line |= {"nll": float(losses[number]), "nll_rl_init": float(losses_at_start[number])}
    lines.append(line)
  return lines


def main(folder: str, name: str, *changes: str) -> None:
  """Trains an arm where there are changes, and writes what it says."""
  workdir = Path(folder)
  fields = []
  for change in changes:
    field, _, value = change.partition("=")
    fields.append((field, value))
  if fields:
    left = train(workdir, name, [("ppo.ptx_coef", "0"), *fields])
  else:
    left = recipe.model_folder(workdir, name)
  lines = measure(workdir, left)
  writers.keep(workdir / "arms" / f"{name}.jsonl", lines)
  won = np.mean([(np.sign(line["gold"] - line["gold_sft"]) + 1) / 2 for line in lines])
  print(f"{name}: {won:.3f} against SFT on {len(lines)} prompts", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
