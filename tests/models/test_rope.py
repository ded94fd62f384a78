"""Frequencies of the rotation by hand."""

import numpy as np
import pytest

from instructjax.models import rope

LLAMA3 = {"factor": 8.0, "low": 1.0, "high": 4.0, "context": 8192}


def test_frequencies_fall_from_one_by_powers_of_the_base():
  np.testing.assert_allclose(rope.frequencies(6, 1000.0), [1, 0.1, 0.01], rtol=1e-6)
  assert rope.frequencies(0, 1000.0).shape == (0,)


def test_linear_stretching_divides_all():
  frequencies = rope.stretched(
    rope.frequencies(4, 100.0), "linear", factor=4.0, low=0, high=0, context=0
  )
  np.testing.assert_allclose(frequencies, [0.25, 0.025], rtol=1e-6)


@pytest.mark.parametrize(
  "turns, share",
  [
    (0.5, 1 / 8),
    (1.0, 1 / 8),
    (2.5, 0.5 + 0.5 / 8),
    (3.25, 0.75 + 0.25 / 8),
    (4.0, 1.0),
    (100.0, 1.0),
  ],
)
def test_llama3_leaves_the_fast_and_divides_the_slow(turns, share):
  """The turns within the first context decide: up to 1 is slow, from 4 on fast, halfway between is
  half of both.
  """
  frequency = np.array([turns * 2 * np.pi / 8192], np.float32)
  np.testing.assert_allclose(
    rope.stretched(frequency, "llama3", **LLAMA3), frequency * share, rtol=1e-5
  )
