r"""The reward model on ranked completions (Ouyang et al. 2022, section 3.5 and App. C.2).

  instructjax data tone --out=data
  instructjax reward --config=reward:tiny --model=runs/sft --workdir=runs/reward

  instructjax reward --config=reward:6b --model=runs/sft-6b \
    --config.data.comparisons=ranked.jsonl --config.data.demonstrations=demos.jsonl \
    --workdir=runs/reward-6b

Presets: tiny; 1.3b, 6b and 175b, which are one, because the paper has a 6B model for policies of
every size; ziegler, stiennon and stiennon-6.7b. The paper prints 1 epoch, the learning rate 9e-6, a
cosine to 10 %, batches of 64 prompts with all their pairs, and the bias that gives demonstrations
the mean score 0. It is silent on whether pairs that tie count in the divisor (they do not), and on
dropout (0).

ziegler has the values of openai/lm-human-preferences, for comparisons of four. There the scores are
normalised on samples of the reference policy, before and after training; here once, after it, on
what config.data.demonstrations holds (samples may be given there). stiennon has those of Stiennon
et al. 2020, App. B.1, whose references score 0; the end of its cosine is not printed (a tenth).
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "tiny") -> ConfigDict:
  """The fields and their sentences: `instructjax config reward:tiny`."""
  return settings.config_dict("reward", preset)
