r"""Best-of-n: the response that a reward prefers among n samples (Stiennon et al. 2020).

  instructjax bestofn --config=bestofn:tiny --model=runs/sft --config.rewards=runs/reward \
    --workdir=runs/bestofn

Leaves samples.jsonl (the best and the first response of each prompt) and, in metrics.jsonl, the
mean score and the KL bound for n = 1, 2, 4, ... up to `n` (the step is n). Presets: tiny, and 1.3b,
6b and 175b, which are one: the size is that of the model.
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "tiny") -> ConfigDict:
  """The fields and their sentences: `instructjax config bestofn:tiny`."""
  return settings.config_dict("bestofn", preset)
