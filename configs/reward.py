r"""The reward model on ranked completions (Ouyang et al. 2022, section 3.5 and App. C.2).

  instructjax data tone --out=data
  instructjax reward --config=reward:tiny --model=runs/sft --workdir=runs/reward

  instructjax reward --config=reward:6b --model=runs/sft-6b \
    --config.data.comparisons=ranked.jsonl --config.data.demonstrations=demos.jsonl \
    --workdir=runs/reward-6b

Presets: tiny, and 1.3b, 6b and 175b, which are one: the paper has a 6B model for policies of every
size. It prints 1 epoch, the learning rate 9e-6, a cosine to 10 %, batches of 64 prompts with all
their pairs, and the bias that gives demonstrations the mean score 0. It is silent on whether pairs
that tie count in the divisor (they do not), and on dropout (0).
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "tiny") -> ConfigDict:
  """The fields and their sentences: `instructjax config reward:tiny`."""
  return settings.config_dict("reward", preset)
