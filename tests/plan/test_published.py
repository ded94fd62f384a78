"""The published runs: their shares of the peak follow from their tokens a second."""

import pytest

from instructjax.plan import published
from instructjax.runs import origin


def test_flops_of_a_token_by_hand():
  """The tiny shape: 12 D^2 weights a layer, an unembedding, and 4 D FLOPs a key and layer."""
  config = origin.SHAPES["tiny"]
  D, L, V = config.width, config.depth, config.vocab_size
  weights = 2 * 12 * D**2 * L + 2 * V * D
  assert published.flops_of_a_token(config, 100) == 3 * (weights + 4 * D * L * 100)
  assert published.flops_of_a_token(config, 100, 0.5) == 3 * (weights + 4 * D * L * 50)


@pytest.mark.parametrize("run", published.RUNS, ids=lambda run: f"{run.chip} {run.tokens_per_s}")
def test_what_is_printed_counts_every_score(run):
  """By the full convention to a percent of the peak; by the causal one it would be far less."""
  config = origin.SHAPES[run.model]
  assert published.mfu(run, config) == pytest.approx(run.mfu, abs=0.01)
  assert published.mfu(run, config, 0.5) < run.mfu - 0.02
