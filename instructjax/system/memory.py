"""Host memory: the peak so far, and returning what the allocator holds without need."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path


def peak_gb() -> float:
  """Returns the most memory that this process has held so far, in GB (10^9 bytes)."""
  status = Path("/proc/self/status")
  if status.is_file():
    # Linux. `getrusage` may give the peak of the process that started this one there.
    for line in status.read_text().splitlines():
      if line.startswith("VmHWM"):
        return int(line.split()[1]) / 1e6  # the file has kB
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # macOS counts bytes, other systems kB.
  return peak / (1e9 if sys.platform == "darwin" else 1e6)


def release() -> None:
  """Returns free memory to the system, where the C library can do that.

  Compiling a large step leaves a GB of freed memory with the allocator of glibc.
  """
  gc.collect()
  if sys.platform != "linux":
    return
  # musl, the C library of Alpine Linux, has no `malloc_trim`.
  malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if malloc_trim:
    malloc_trim(0)
