r"""Group-relative policy optimisation: a policy from rewards alone (Shao et al. 2024).

  instructjax grpo --config=grpo:tiny --model=runs/sft --config.data.prompts=sums.jsonl \
    --config.rewards=python:sums.py:right --workdir=runs/grpo

Presets: tiny, 1.3b, 6b, 175b. InstructGPT has no such stage: the sizes are its own, the values are
those of DeepSeekMath, section 4.2: 1,024 episodes an iteration, 64 of each of 16 prompts, one
update on them, a KL of .04 in the loss and the learning rate 1e-6. The clip is .2. The number of
iterations (500) and the type of the reference (bfloat16 matrices) are ours.
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "tiny") -> ConfigDict:
  """The fields and their sentences: `instructjax config grpo:tiny`."""
  return settings.config_dict("grpo", preset)
