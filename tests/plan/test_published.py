"""The published runs: their shares of the peak follow from their tokens a second."""

import pytest

from instructjax.plan import chips, estimate, published
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


def test_a_gpu_is_predicted_by_shares_of_its_bounds():
  """0.39 s at the peak are a second; a decoder's 1.2 s of memory are two."""
  pod = chips.pod("h100:8")
  trains = estimate.prediction({"compute": 0.39, "memory": 0.1, "links": 0.5}, None, pod)
  assert trains["step"] == pytest.approx(1.0) and trains["by"] == "shares"
  decodes = estimate.prediction({"compute": 0.1, "memory": 1.2, "links": 0.0}, None, pod)
  assert decodes["step"] == pytest.approx(2.0)


def test_a_tpu_is_predicted_by_cycles_alone():
  pod = chips.pod("v5e:2x2")
  bounds = {"compute": 1.0, "memory": 0.1, "links": 0.1}
  assert estimate.prediction(bounds, None, pod) == {"step": 0.0, "by": ""}
  compiled = {"predicted": {"step": 2.5}}
  assert estimate.prediction(bounds, compiled, pod) == {"step": 2.5, "by": "cycles"}
