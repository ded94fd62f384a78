"""A long text in overlapping pieces, of which each fits a classifier."""

import itertools

import pytest

from instructjax.rewards import classifier


@pytest.mark.parametrize("length", [1, 10, 11, 37, 400])
def test_pieces_fit_overlap_and_hold_everything(length):
  text = "".join(chr(0x4E00 + number) for number in range(length))
  parts = classifier.pieces(text, lambda part: len(part) <= 10)
  assert (len(parts) == 1) == (length <= 10)
  assert all(len(part) <= 10 for part in parts) and set("".join(parts)) == set(text)
  for part, following in itertools.pairwise(parts):
    assert part[-1] > following[0] or length <= 10  # characters stand in two pieces


def test_a_response_that_leaves_no_room_is_not_cut_into_pieces():
  assert classifier.pieces("a b c", lambda part: False) == ["a b c"]
