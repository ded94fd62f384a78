"""Memory: the peaks, and freed memory goes back to the system."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from instructjax.system import memory

CODE = """
import numpy as np
from instructjax.system import memory

def now():
  for line in open("/proc/self/status"):
    if line.startswith("VmRSS"):
      return int(line.split()[1]) / 1e6


before = now()
# Half a GB in blocks of a MB, which the allocator keeps when they are freed.
blocks = [np.ones(1 << 17) for _ in range(500)]
peak = memory.peak_gb()
del blocks
memory.release()
print(before, peak, memory.peak_gb(), now())
"""


def test_the_peak_is_in_gb_and_what_is_free_goes_back():
  command = [sys.executable, "-c", CODE]
  env = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "PATH": ""}
  out = subprocess.run(
    command, capture_output=True, text=True, check=True, timeout=60, env=env
  ).stdout
  before, peak, after, now = map(float, out.split())
  assert 0.01 < before < 0.5
  assert 0.5 < peak - before < 0.7  # GB
  assert after > peak - 0.01  # it never falls, but for the error of the counter
  assert now < before + 0.1


def device(**statistics):
  return SimpleNamespace(memory_stats=lambda: statistics or None)


def test_the_peak_of_devices_is_that_of_the_fullest(monkeypatch):
  devices = [device(peak_bytes_in_use=5, bytes_in_use=1), device(peak_bytes_in_use=7)]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  assert memory.device_peak() == 7


def test_where_devices_do_not_count_it_is_that_of_the_host(monkeypatch):
  monkeypatch.setattr(jax, "local_devices", lambda: [device(), device(bytes_in_use=1)])
  monkeypatch.setattr(memory, "peak_gb", lambda: 2.5)
  assert memory.device_peak() == pytest.approx(2.5e9)
