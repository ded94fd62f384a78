r"""Supervised fine-tuning on demonstrations, the SFT baseline (Ouyang et al. 2022, App. C.1).

  instructjax data tone --out=data
  instructjax sft --config=sft:tiny --model=runs/pretrain --workdir=runs/sft

  instructjax sft --config=sft:1.3b --model=runs/pretrain-1.3b \
    --config.data.demonstrations=demos.jsonl --workdir=runs/sft-1.3b

Presets: tiny, 1.3b, 6b, 175b; flan and t0 are the baselines on public tasks (App. C.5), trained on
what `instructjax baseline mixture` writes; stiennon and stiennon-6.7b are the supervised summaries
of Stiennon et al. 2020, App. B.1, which prints no dropout (0). The paper prints the learning rate
and the batch of each size, 16 epochs, a cosine to 10 % without warm-up, residual dropout .2 and the
betas of Adam. It is silent on the epsilon of Adam (1e-8), weight decay (0), clipping (off) and loss
on the prompt (off).
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "tiny") -> ConfigDict:
  """The fields and their sentences: `instructjax config sft:tiny`."""
  return settings.config_dict("sft", preset)
