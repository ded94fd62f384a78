"""Prints the table of docs/what_fits.md: `JAX_PLATFORMS=cpu python scripts/what_fits.py`.

Each line is a plan by arithmetic of one stage on one device (`instructjax plan --arithmetic`). Its
peak is then compared with the memory of every device. A micro-batch is one row, and PPO's reward
and value networks have the shape of the policy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from instructjax import settings
from instructjax.plan import chips, estimate, planning

# Shape, and the preset whose lengths and batch are taken.
MODELS = (("125M", "1.3b"), ("350M", "1.3b"), ("1.3B", "1.3b"), ("6B", "6b"))
# The settings that make a micro-batch as small as it can be.
STAGES = {
  "sft": {"micro": 32, "batch": 32},
  "reward": {"micro": 32, "batch": 32},
  "ppo": {"batch": 64, "ppo.minibatches": 8, "ppo.micro": 8, "ppo.ptx_micro": 64},
}
WAYS = {"full": {}, "LoRA": {"lora.rank": 8}}
GB = 1e9
# The device: its name, and its memory in bytes.
DEVICES = {
  "16 GB": 16 * GB,
  "24 GB": 24 * GB,
  "40 GB": 40 * GB,
  "80 GB": chips.CHIPS["h100"].memory,
  "141 GB": chips.CHIPS["h200"].memory,
  "v5e": chips.CHIPS["v5e"].memory,
  "v6e": chips.CHIPS["v6e"].memory,
  "v5p": chips.CHIPS["v5p"].memory,
}


def peak(stage: str, shape: str, preset: str, changes: dict[str, object]) -> float:
  """Returns the bytes that the largest program of a stage needs on one device."""
  config = settings.replaced(settings.preset(stage, preset), changes)
  options = planning.Options("h200:1", model=shape, reward=shape, arithmetic=True)
  report = planning.plan(config, options)
  return max(program["arithmetic"]["peak"] for program in report["programs"])


def rows() -> Iterator[str]:
  """Yields the lines of the table, as each is computed."""
  yield f"| model | stage | trained | GB | {' | '.join(DEVICES)} |"
  yield "|---" * (4 + len(DEVICES)) + "|"
  for shape, preset in MODELS:
    for stage, smallest in STAGES.items():
      for way, changes in WAYS.items():
        need = peak(stage, shape, preset, smallest | changes)
        limits = [estimate.SURE * memory for memory in DEVICES.values()]
        marks = ["yes" if need <= limit else "" for limit in limits]
        yield f"| {shape} | `{stage}` | {way} | {need / GB:.1f} | {' | '.join(marks)} |"


def main() -> int:
  """Prints the table."""
  for row in rows():
    print(row, flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
