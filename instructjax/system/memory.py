"""Memory: its peak so far, and returning what the host's allocator holds without need."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import jax


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


def device_peak() -> int:
  """Returns the most bytes that a device of this process has held so far.

  The host's own, which is that of this process, where devices do not count: those of a CPU.
  """
  peaks = []
  for device in jax.local_devices():
    statistics = device.memory_stats() or {}  # a CPU has none
    if "peak_bytes_in_use" in statistics:
      peaks.append(statistics["peak_bytes_in_use"])
  return max(peaks) if peaks else round(peak_gb() * 1e9)


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
