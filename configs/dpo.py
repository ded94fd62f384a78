r"""Direct preference optimisation: a policy from ranked completions (Rafailov et al. 2023).

  instructjax data tone --out=data
  instructjax dpo --config=dpo:tiny --model=runs/sft --workdir=runs/dpo

  instructjax dpo --config=dpo:6b --model=runs/sft-6b \
    --config.data.comparisons=ranked.jsonl --workdir=runs/dpo-6b

Presets: tiny, 1.3b, 6b, 175b. InstructGPT has no such stage: the sizes are its own, the values are
those of Rafailov et al. 2023, App. B, which prints beta .1 (.5 for summaries), batches of 64, and
the learning rate 1e-6 after a warm-up from 0 over 150 updates. It trains with RMSprop; here it is
Adam with the betas of InstructGPT. It has two completions a prompt; here all pairs of K are used,
as in Eq. 1 of Ouyang et al. 2022. The number of epochs (1) and the type of the reference (bfloat16
matrices) are ours.
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "tiny") -> ConfigDict:
  """The fields and their sentences: `instructjax config dpo:tiny`."""
  return settings.config_dict("dpo", preset)
