r"""The paper's evaluations of any set of models, side by side.

  instructjax eval --models base=MODEL,sft=runs/sft,ppo=runs/ppo,ptx=runs/ptx \
    --suite nlp,truthfulqa --workdir=runs/eval --config.nlp.drop=tfds:drop@dev

Answers and scores are kept item by item: run the command again to go on, or to add models and
suites. docs/evaluation.md says what each suite needs; a task whose data is empty is left out. The
one preset is paper.
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "paper") -> ConfigDict:
  """The fields and their sentences: `instructjax config eval:paper`."""
  return settings.config_dict("eval", preset)
