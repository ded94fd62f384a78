r"""The model that PPO starts from and is held to (Ouyang et al. 2022, App. C.3).

  instructjax data tone --out=data
  instructjax rl_init --config=rl_init:tiny --model=runs/pretrain --workdir=runs/rl_init

  instructjax rl_init --config=rl_init:1.3b --model=runs/pretrain-1.3b \
    --config.data.demonstrations=demos.jsonl --config.data.text=text.jsonl \
    --workdir=runs/rl_init-1.3b

Presets: tiny, 1.3b, 6b, 175b. The paper prints the learning rate and the batch of each size, 2
epochs, 10 % pretraining data and a cosine to 10 %. It does not print the form of the mix: here a
tenth of the rows of each batch is pretraining text (3 of 32; 1 of 8), and the rest are
demonstrations.
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "tiny") -> ConfigDict:
  """The fields and their sentences: `instructjax config rl_init:tiny`."""
  return settings.config_dict("rl_init", preset)
