"""The quickstart: the whole method on SmolLM2-135M and sentences whose tone people rated.

  make quickstart                                   instructjax quickstart --workdir=runs/quickstart
  make quickstart ARGS=--fast                       instructjax quickstart --fast --workdir=runs/fast
  instructjax quickstart --config.top=None --workdir=runs/full        trains all 30 blocks

The README holds its cost and its measured result.  To fit two cores and minutes it trains the
top blocks and keeps the rest frozen in bfloat16, and samples shorter and cooler texts than the
paper.  The method is whole: the loss of every stage is the paper's.  `instructjax/quickstart.py`
explains each field.
"""

import dataclasses

from ml_collections import ConfigDict

from instructjax.quickstart import FAST, Quickstart


def get_config(arg: str = "full") -> ConfigDict:
  return ConfigDict(dataclasses.asdict({"full": Quickstart(), "fast": FAST}[arg]))
