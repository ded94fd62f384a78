"""The useful work of drawn lengths, by hand."""

import numpy as np
import pytest

from instructjax import models
from instructjax.plan import useful
from instructjax.plan.lengths import Lengths
from instructjax.runs import origin

MODEL = useful.Model(layers=100.0, key=1.0, unembedding=10.0)


def rows(prompt, response):
  return Lengths(np.array(prompt, np.int32), np.array(response, np.int32))


def test_a_token_meets_every_weight_and_the_keys_before_it():
  assert MODEL.trunk(np.array([4.0])) == [100 * 4 + 1 + 2 + 3 + 4]
  assert MODEL.trunk(np.array([2.0]), 3) == [100 * 2 + 4 + 5]


def test_the_parts_of_an_iteration_by_hand():
  part = rows([3, 1], [2, 1])
  # Prompt and response without the last token: 4 and 1 tokens, with 10 and 1 keys.
  assert useful.rollout_flops(MODEL, part) == 100 * 5 + 11 + 10 * 3
  # A second response reads the prompts no more: 1 token that meets 4 keys, and a last one.
  assert useful.rollout_flops(MODEL, part, responses=2) == (541 + (100 * 1 + 4) + 10 * 3)
  trunk = 100 * 7 + 15 + 3
  assert useful.scoring_flops(MODEL, part, useful.GRPO) == 2 * trunk + 2 * 10 * 3
  assert useful.update_flops(MODEL, part, useful.GRPO) == trunk + 10 * 3
  assert useful.scoring_flops(MODEL, part) == 4 * trunk + 2 * 10 * 3
  assert useful.update_flops(MODEL, part) == 2 * trunk + 10 * 3
  assert useful.text_flops(MODEL, 2, 3) == 2 * (100 * 3 + 6 + 10 * 3)
  assert useful.tokens(part) == 7


def test_a_prompt_is_read_once_for_its_completions():
  part = rows([3, 3, 1, 1], [1, 2, 1, 1])
  trunk = (300 + 6) + (100 + 4) + (200 + 4 + 5) + (100 + 1) + 2 * (100 + 2)
  assert useful.comparison_flops(MODEL, part, 2, logits=False) == trunk
  assert useful.comparison_flops(MODEL, part, 2, logits=True) == trunk + 10 * 5


def test_a_share_is_one_at_full_length_and_long_rows_do_not_overflow():
  full = rows([100_000] * 2, [100_000] * 2)
  flops = lambda part: useful.scoring_flops(MODEL, part)
  assert useful.share_of(flops, useful.tokens, full, full) == (1.0, 1.0)
  half = useful.share_of(flops, useful.tokens, rows([50_000] * 2, [50_000] * 2), full)
  assert half.bytes == 0.5
  assert half.flops == pytest.approx(0.25, rel=0.01)  # nearly all of it is attention


def test_the_weights_of_a_model():
  c = origin.SHAPES["tiny"]
  model = useful.model_of(models.build(c))
  assert model.layers == 2 * 12 * c.depth * c.width**2
  assert model.key == 4 * c.depth * c.width
  assert model.unembedding == 2 * 257 * c.width
