"""What the quickstart says while it runs: what will happen, what a run has learnt, and what next.

Every sentence is made of the metrics that a run has left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from instructjax.data.records.records import read
from instructjax.quickstart import duration
from instructjax.quickstart.recipe import data_folder, model_folder
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.system import jsons

TITLES = {
  "sft": "SFT",
  "rl_init": "The start of RL",
  "reward": "The reward model",
  "gold": "The judge (gold)",
  "ppo": "PPO",
  "ptx": "PPO-ptx",
}


def begin(settings: QuickstartSettings, workdir: Path) -> None:
  """Says what will happen."""
  minutes = duration.minutes(settings)
  how_long = "" if minutes is None else f"All of it takes about {minutes:.0f} minutes here. "
  print(
    "The method of InstructGPT on SmolLM2-135M and sentences whose tone people rated: the model\n"
    "learns to praise or to criticise, as it is asked. Six runs follow: SFT, the model that RL\n"
    "starts from, a reward model, a second one that only judges, PPO and PPO-ptx. Then all answer\n"
    f"{3 * settings.test_prompts} new prompts. {how_long}The README has what to expect.\n"
    f"Everything is in {workdir}. Stop at any time: the same command goes on.",
    flush=True,
  )


def learnt(name: str, metrics: Sequence[Mapping[str, Any]]) -> str:
  """Returns one sentence about a run, of its metrics.

  The first and the last quarter of its steps are compared. What a step measures it measures before
  it learns, and SFT and the reward models see every record once: these are figures of new data.
  """
  title = TITLES[name]
  if name in ("ppo", "ptx"):
    first, last = ends(metrics, "objective/scores")
    _, kl = ends(metrics, "objective/kl")
    return (
      f"{title}: the reward model scored its answers {first:.2f} at first and {last:.2f} at last, "
      f"{kl:.1f} nats away from the start."
    )
  if name in ("reward", "gold"):
    first, last = ends(metrics, "accuracy")
    return (
      f"{title}: it ordered {first:.0%} of the pairs as people did at first and {last:.0%} at "
      "last, before it had learnt from them; chance is 50%."
    )
  first, last = ends(metrics, "loss")
  return (
    f"{title}: a token of what people wrote cost {first:.2f} nats at first and {last:.2f} at last."
  )


def ends(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
  """Returns the means of a metric over the first and the last quarter of the steps."""
  values = [row[name] for row in metrics if name in row]
  quarter = max(1, len(values) // 4)
  return fmean(values[:quarter]), fmean(values[-quarter:])


def finish(
  settings: QuickstartSettings, workdir: Path, samples: Sequence[Mapping[str, Any]]
) -> None:
  """Shows what everybody said to the first instruction, both ways, and what to try next."""
  for sample in samples[:2]:
    print(f"\n{sample['prompt']}")
    for name, text in sample["responses"].items():
      print(f"  {name:10} {text or '(nothing)'}")
  # A prompt of the training data has the template and the system message that the models know.
  asked = read(data_folder(workdir) / "prompts.jsonl", "prompt")[0]
  line = jsons.text({"prompt": asked.turns or asked.prompt})
  print(
    "\nTry an instruction of your own. The reward of each answer is in samples.jsonl:\n"
    f"echo '{line}' > own.jsonl\n"
    f"instructjax sample --model={model_folder(workdir, 'ptx')} --config.data.prompts=own.jsonl "
    "--config.n=4 \\\n"
    f"  --config.data.template={settings.template} "
    f"--config.sampling.response={settings.response} "
    f"--config.sampling.temperature={settings.temperature} \\\n"
    f"  --config.rewards={model_folder(workdir, 'reward')} --workdir={workdir / 'sample'}"
  )
