"""The frequencies of rotary positions (Su et al. 2021) and how public models stretch them to longer
contexts.
"""

from __future__ import annotations

import numpy as np

SCALINGS = ("none", "linear", "llama3")


def frequencies(features: int, base: float) -> np.ndarray:
  """base^(-2i/n) for the pairs i < n/2 of n rotated features; none of 0 features."""
  return (float(base) ** (-np.arange(0, features, 2) / max(features, 1))).astype(np.float32)


def stretched(
  frequency: np.ndarray, scaling: str, *, factor: float, low: float, high: float, context: int
) -> np.ndarray:
  """Frequencies for a context longer than the `context` that the model was first trained with.

  "linear" divides all of them by the factor (Chen et al. 2023).  "llama3" divides those that
  turn less than `low` times in the first context, leaves those that turn more than `high` times,
  and goes linearly from one to the other in between.
  """
  if scaling == "none":
    return frequency
  if scaling == "linear":
    return frequency / np.float32(factor)
  turns = context * frequency.astype(np.float64) / (2 * np.pi)
  share = np.clip((turns - low) / (high - low), 0, 1)
  return (frequency * (share + (1 - share) / factor)).astype(np.float32)
