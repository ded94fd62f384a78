r"""PPO with the pretraining mix, PPO-ptx (Ouyang et al. 2022, Eq. 2 and App. C.4).

  instructjax data tone --out=data
  instructjax ppo --config=ppo:tiny --config.rl_init=runs/rl_init \
    --config.reward_model=runs/reward --workdir=runs/ppo

  instructjax ppo --config=ppo:1.3b --config.rl_init=runs/rl_init-1.3b \
    --config.reward_model=runs/reward-6b --config.data.prompts=prompts.jsonl \
    --config.data.text=text.jsonl --workdir=runs/ppo-1.3b

  instructjax ppo --config=ppo:tiny --config.rl_init=runs/rl_init \
    --config.rewards=python:my.py:polite --workdir=runs/ppo-polite

Presets: tiny, 1.3b, 6b, 175b, and ziegler, stiennon and stiennon-6.7b. --config.ppo.ptx_coef=0 is
plain PPO. The paper prints 256k episodes, 512 a batch, 64 a minibatch, 1 epoch, the KL coefficient
.02, the clip .2, no discount, temperature 1, a warm-up over 10 iterations from a tenth of the peak,
the learning rates of the value network, the EMA .992, and 8 times as many pretraining examples as
episodes with the coefficient 27.8. It does not print the learning rate of the policy (ours is
inside the printed sweep), lambda (.95) and the value loss (.1, clip .2; both from Stiennon et al.
2020), the epsilon of Adam (1e-5), whitening (advantages are, rewards are not), dropout (none), how
often the EMA moves (once a minibatch), the means of the losses (over tokens; ppo.normalise and
ppo.ptx_normalise have others), and what a response without an end scores (what the reward model
says).

ziegler has the values of the style tasks in openai/lm-human-preferences. There the policy and the
value are one network whose value head starts at zero; the nearest here is to leave reward_model
empty and give --config.rewards=runs/reward. Responses end at a full stop there, and one without it
among the tokens 16 to 24 scores -1: with a tokenizer that ends there, that is
--config.missing_eos.kind=replace --config.missing_eos.value=-1.

stiennon and stiennon-6.7b have the values of Stiennon et al. 2020, App. B.1. It prints no number of
minibatches (1) and no epsilon of Adam (1e-5; both are those of Huang et al. 2024), and no
temperature (1).
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "tiny") -> ConfigDict:
  """The fields and their sentences: `instructjax config ppo:tiny`."""
  return settings.config_dict("ppo", preset)
