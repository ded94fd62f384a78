"""Records that are drawn together: the same texts, or prompts, under opposite instructions."""

import pytest

from instructjax.data.batches.mixture import Mixture
from instructjax.errors import UserError
from instructjax.settings import PPOSettings, RewardSettings, replaced
from instructjax.stages import neighbours


def stream(rows, together):
  return neighbours.stream(rows, list, size=4, together=together, seed=0, name="comparisons")


def drawn_numbers(together):
  """The numbers of the rows of the first four batches of eight rows."""
  draw = stream(range(8), together)
  return [draw(number) for number in range(4)]


def test_neighbours_are_drawn_together():
  batches = drawn_numbers(2)
  for batch in batches:
    assert [second - first for first, second in zip(batch[::2], batch[1::2], strict=True)] == [1, 1]
    assert all(first % 2 == 0 for first in batch[::2])
  # Two batches are an epoch, and each epoch has every comparison once and an order of its own.
  epochs = [batches[0] + batches[1], batches[2] + batches[3]]
  assert [sorted(epoch) for epoch in epochs] == [list(range(8))] * 2
  assert epochs[0] != epochs[1]


def test_each_comparison_is_drawn_alone_by_default():
  batches = drawn_numbers(1)
  assert sorted(batches[0] + batches[1]) == list(range(8))
  assert any(number % 2 for batch in batches for number in batch[::2])


def test_neighbours_that_cannot_be_drawn_together_are_an_error():
  for settings in (RewardSettings(), PPOSettings()):
    with pytest.raises(UserError, match=r"config\.batch=\d+: .*together=3"):
      replaced(settings, {"data.together": 3})
    with pytest.raises(UserError, match=r"config\.data\.long=drop: .*would part the neighbours"):
      replaced(settings, {"data.together": 2, "data.long": "drop"})
  with pytest.raises(UserError, match=r"config\.data\.buckets=2: .*would be parted"):
    replaced(PPOSettings(), {"data.together": 2, "data.buckets": 2})
  with pytest.raises(UserError, match="number of comparisons=7 does not divide"):
    stream(range(7), 2)
  mixture = Mixture((range(4), range(4)), (1.0, 1.0))
  with pytest.raises(UserError, match=r"config\.data\.together=2: a mixture"):
    stream(mixture, 2)
