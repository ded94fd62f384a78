r"""Samples responses from one model or from several.

  instructjax sample --config=sample:tiny --model=runs/ppo --workdir=runs/sample
  instructjax sample --config=sample:tiny --model=sft=runs/sft --model=ppo=runs/ppo \
    --config.sampling.temperature=0.7,1 --config.n=2 --config.k=4 --workdir=runs/round
  instructjax sample --config=sample:1.3b --model=MODEL \
    --config.prompt="Explain the moon landing to a child."

Leaves samples.jsonl, which `instructjax label` reads, and prints what one model says at one
temperature. The paper samples InstructGPT at temperature 1 and GPT-3 at .7 (App. F), and people
rank 4 to 9 outputs of a prompt (section 3.5). Presets: tiny, and 1.3b, 6b and 175b, which are one.
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "tiny") -> ConfigDict:
  """The fields and their sentences: `instructjax config sample:tiny`."""
  return settings.config_dict("sample", preset)
