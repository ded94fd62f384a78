r"""Pretraining on plain text (Brown et al. 2020, App. B): the model that everything else starts
from.

  instructjax data tone --out=data
  instructjax pretrain --config=pretrain:tiny --workdir=runs/pretrain      # 20 s on two cores

  instructjax pretrain --config=pretrain:1.3b --config.data.text=text.jsonl \
    --config.model.tokenizer=gpt2/tokenizer.json --config.mesh.data=8 --config.mesh.fsdp=32 \
    --workdir=runs/pretrain-1.3b

Presets: tiny, 1.3b, 6b, 175b. Brown et al. print the learning rate and the batch of each size, Adam
.9/.95/1e-8, clipping at 1, weight decay .1, a warm-up over 375M tokens and a cosine to 10 % over
260B tokens.
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "tiny") -> ConfigDict:
  """The fields and their sentences: `instructjax config pretrain:tiny`."""
  return settings.config_dict("pretrain", preset)
