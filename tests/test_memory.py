"""Host memory: the peak is in GB, and what was freed goes back."""

import numpy as np

from instructjax import memory


def test_the_peak_is_in_gb_and_never_falls():
  before = memory.peak_gb()
  assert 0.01 < before < 1000
  held = np.ones(int((before + 0.2) * 1e9), np.uint8)
  assert before + 0.15 < memory.peak_gb() < before + 1.5
  del held
  memory.release()
  assert memory.peak_gb() >= before + 0.15
