"""Comparisons that are drawn together: the same texts, ranked by opposite instructions."""

import pytest

from instructjax.data.batches.mixture import Mixture
from instructjax.errors import UserError
from instructjax.settings import RewardSettings, replaced
from instructjax.stages import reward


def drawn_numbers(**changes):
  """The numbers of the rows of the first four batches of eight comparisons."""
  settings = replaced(RewardSettings(), {"batch": 4, **changes})
  draw = reward.draw_comparisons(settings, range(8), list)
  return [draw(number) for number in range(4)]


def test_neighbours_are_drawn_together():
  batches = drawn_numbers(**{"data.together": 2})
  for batch in batches:
    assert [second - first for first, second in zip(batch[::2], batch[1::2], strict=True)] == [1, 1]
    assert all(first % 2 == 0 for first in batch[::2])
  # Two batches are an epoch, and each epoch has every comparison once and an order of its own.
  epochs = [batches[0] + batches[1], batches[2] + batches[3]]
  assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 2
  assert epochs[0] != epochs[1]


def test_each_comparison_is_drawn_alone_by_default():
  batches = drawn_numbers()
  assert sorted(batches[0] + batches[1]) == list(range(8))
  assert any(number % 2 for batch in batches for number in batch[::2])


def test_neighbours_that_cannot_be_drawn_together_are_an_error():
  with pytest.raises(UserError, match=r"config\.batch=4: .*together=3"):
    drawn_numbers(**{"data.together": 3})
  settings = replaced(RewardSettings(), {"batch": 4, "data.together": 2})
  with pytest.raises(UserError, match="number of comparisons=7 does not divide"):
    reward.draw_comparisons(settings, range(7), list)
  mixture = Mixture((range(4), range(4)), (1.0, 1.0))
  with pytest.raises(UserError, match=r"config\.data\.together=2: a mixture"):
    reward.draw_comparisons(settings, mixture, list)
