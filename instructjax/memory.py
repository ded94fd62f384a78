"""Host memory: the peak so far, and giving back what the allocator keeps."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys


def peak_gb() -> float:
  """The most memory that this process has held so far, in GB (10^9 bytes)."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / (1e9 if sys.platform == "darwin" else 1e6)


def release() -> None:
  """Returns free memory to the system, where glibc can: compiling a large step leaves a GB of it behind."""
  gc.collect()
  if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
    trim(0)
