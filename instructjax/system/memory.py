"""Host memory: the peak so far, and giving back what the allocator keeps."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path


def peak_gb() -> float:
  """The most memory that this process has held so far, in GB (10^9 bytes)."""
  status = Path("/proc/self/status")
  if (
    status.is_file()
  ):  # Linux: what `getrusage` says there may be the peak of the process that started this one
    return (
      next(
        int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")
      )
      / 1e6
    )
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / (1e9 if sys.platform == "darwin" else 1e6)


def release() -> None:
  """Returns free memory to the system, where glibc can: compiling a large step leaves a GB of it
  behind.
  """
  gc.collect()
  if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
    trim(0)
