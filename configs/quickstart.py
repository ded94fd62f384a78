"""The quickstart: the whole method on SmolLM2-135M and sentences whose tone people rated.

  make quickstart                              # instructjax quickstart --workdir=runs/quickstart
  make quickstart ARGS=--fast                  # instructjax quickstart --fast --workdir=runs/fast
  instructjax quickstart --config.top=none --workdir=runs/whole        # trains all 30 blocks

The README holds its cost and its measured result. To fit two cores and minutes it trains the top
blocks and keeps the rest frozen in bfloat16, and samples shorter and cooler texts than the paper.
The method is whole: the stages are those of the other commands, and the loss of each is that of the
paper. Presets: full, fast.
"""

from ml_collections import ConfigDict

from instructjax import settings


def get_config(preset: str = "full") -> ConfigDict:
  """The fields and their sentences: `instructjax config quickstart:full`."""
  return settings.config_dict("quickstart", preset)
