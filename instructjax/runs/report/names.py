"""The names that readers see of models, stages and slices, and the looks of their curves."""

from __future__ import annotations

from instructjax.runs.report.files import Run

# The models of the quickstart, in the order of the method.
MODELS = {
  "base": "base, in its own template",
  "sft": "SFT",
  "best_of_n": "best of n of SFT",
  "ppo": "PPO",
  "ptx": "PPO-ptx",
  "people": "people",
}

STAGES = {
  "sft": "SFT",
  "rl_init": "Start of RL",
  "reward": "Reward model",
  "gold": "Gold model",
  "pretrain": "Pretraining",
  "dpo": "DPO",
  "grpo": "GRPO",
}

SLICES = {
  "amazon": "amazon (new domain)",
  "praise": "asked to praise",
  "criticise": "asked to criticise",
}

# A look is a class of the page, which gives the colour, and a shape of `svg.SHAPES`.
LOOKS = {
  "base": "base",
  "sft": "sft",
  "ppo": "ppo",
  "ptx": "ptx",
  "gold": "gold",
  "reward": "rm",
  "rl_init": "base",
  "pretrain": "base",
}
SPARE_LOOKS = ("sft", "ppo", "ptx", "rm", "gold", "base")  # of stages that have none of their own


def stage_look(run: Run, stage: str) -> str:
  """Returns the look of a stage; an unknown one gets a spare look by its place in the run."""
  if stage in LOOKS:
    return LOOKS[stage]
  unknown_stages = [name for name in run.curves if name not in LOOKS]
  if stage not in unknown_stages:  # it has samples and no curve
    return "base"
  return SPARE_LOOKS[unknown_stages.index(stage) % len(SPARE_LOOKS)]


def stage_title(stage: str) -> str:
  """Returns the name of a stage as readers see it."""
  return STAGES.get(stage) or MODELS.get(stage, stage)


def rl_stages(run: Run) -> list[str]:
  """Returns the stages of reinforcement learning: those that a reward model scores."""
  return [stage for stage, metrics in run.curves.items() if "objective/scores" in metrics]
