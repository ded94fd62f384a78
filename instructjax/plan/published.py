"""What others measured, beside which a prediction can be laid, and what is taken from it.

Two conventions count the FLOPs of attention. The full one counts every score of a row, also of
tokens that are hidden; the causal one counts half of them. MaxText's table and torchtitan's shares
are by the full one, as their tokens a second show (`tests/plan/test_published.py`), so they are
larger than ours, which count about the causal half.
"""

from __future__ import annotations

from typing import NamedTuple

from instructjax.models import build
from instructjax.plan import chips, useful
from instructjax.runs.description import ModelConfig

# The shares of the peaks of GPUs that programs are predicted at. The first is published.
#
# compute  torchtitan, Llama 3.1 8B on 8 H100 with torch.compile: 39 % by the full convention, of
#          the peak of an SXM (benchmarks/llama3_h100_202412_torchtitan.md).
# memory   an assumption: no published share of a decoder's bandwidth was checked for this.
# links    an assumption too: the share of compute has the links of its 8 GPUs in it already, so
#          they count as they are.
GPU_SHARES = {"compute": 0.39, "memory": 0.6, "links": 1.0}


class Measured(NamedTuple):
  """A published run: so many tokens a second of each chip on rows of a length."""

  model: str  # of `origin.SHAPES`
  chip: str  # of `chips.CHIPS`
  chips: int
  length: int
  tokens_per_s: float
  mfu: float  # as it is printed
  source: str


MAXTEXT = "maxtext.readthedocs.io, reference/models/tiering"
TORCHTITAN = "pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
RUNS = (
  Measured("Llama-3-8B", "v6e", 256, 8192, 7207, 0.4546, MAXTEXT),
  Measured("Llama-3-8B", "h100", 8, 8192, 5762, 0.33, TORCHTITAN),
  Measured("Llama-3-8B", "h100", 8, 8192, 6667, 0.39, TORCHTITAN),
)


def flops_of_a_token(config: ModelConfig, length: int, share: float = 1.0) -> float:
  """Returns the FLOPs of training on a token of rows of `length`, the backward pass included.

  `share` is that of the scores which count: 1 by the full convention, 0.5 by the causal one.
  """
  model = useful.model_of(build(config))
  forward = model.layers + model.unembedding + share * model.key * length
  return 3 * forward


def mfu(run: Measured, config: ModelConfig, share: float = 1.0) -> float:
  """Returns the share of the peak that a published number of tokens a second is."""
  flops = flops_of_a_token(config, run.length, share)
  return run.tokens_per_s * flops / chips.CHIPS[run.chip].flops
