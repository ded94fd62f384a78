"""The frequencies of rotary positions (Su et al. 2021), and how public models stretch them.

Dimensions: F frequencies, which is half of the features that are rotated.
"""

from __future__ import annotations

import numpy as np

SCALINGS = ("none", "linear", "llama3")


def frequencies(features: int, base: float) -> np.ndarray:
  """Returns base^(-2i/n) [F] for the pairs i < n/2 of n rotated features; empty for 0 features."""
  exponents = -np.arange(0, features, 2) / max(features, 1)
  return (float(base) ** exponents).astype(np.float32)


def stretched(
  frequency: np.ndarray,
  scaling: str,
  *,
  factor: float,
  low: float,
  high: float,
  context: int,
) -> np.ndarray:
  """Returns frequencies [F] for texts longer than the `context` of a model's first training.

  "linear" divides all of them by the factor (Chen et al. 2023). "llama3" divides those that turn
  less than `low` times in that context, leaves those that turn more than `high` times, and goes
  linearly from one to the other in between (Dubey et al. 2024).
  """
  if scaling == "none":
    return frequency
  if scaling == "linear":
    return frequency / np.float32(factor)
  # Full turns within the context of the first training.
  turns = context * frequency.astype(np.float64) / (2 * np.pi)
  # The share of each frequency that stays as it was.
  share = np.clip((turns - low) / (high - low), 0, 1)
  mixture = share + (1 - share) / factor
  return (frequency * mixture).astype(np.float32)
