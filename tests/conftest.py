"""Eight fake devices, warnings as errors, and runtime shape checks for every test."""

import gc
import os
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

# Compiling is most of the time of these tests, and what is compiled runs once or twice: so without
# optimization, in one piece, and by the emitters that take half as long as those after them (jaxlib
# 0.12 has only these, and dies of an unknown flag). A collective of eight fake devices waits for
# eight threads: by default XLA ends the process where one of them is a minute late, as it may be on
# cores that others share.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
  "--xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_parallel_codegen_split_count=1"
  " --xla_cpu_collective_call_terminate_timeout_seconds=300"
  + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# What took long to compile is kept, here and not in the user's cache, for runs of the same stage
# and the next time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax
import pytest

from instructjax.system import shapes

# Entries are written in place: processes side by side, which could read half of one, have a folder
# each.
cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / os.environ.get("PYTEST_XDIST_WORKER", "gw0")
jax.config.update("jax_compilation_cache_dir", str(cache))

# Every jaxtyping annotation of a function is checked while the tests run, before any module but
# that of the checks is imported.
shapes.install()


pytest_plugins = [
  "stage_runs",
  "servers",
  "buckets",
]  # fixtures that several files share; imported after the lines above


def pytest_collection_modifyitems(items):
  """What takes as long as many others together, in one process, begins first."""
  items.sort(key=lambda item: item.get_closest_marker("first") is None)


def pytest_collection_finish():
  import_module(
    "hypothesis"
  )  # which asks, once, who holds a generator, and would not see a frozen holder
  gc.freeze()


# Linux gives a process 65,530 mapped regions (vm.max_map_count) and lets XLA die at the next one.
# Every compiled program has three or more of its own, and the tests of a worker would compile more
# than 20,000 programs. A module seldom needs those of another.
MANY_REGIONS = 20_000


def mapped_regions() -> int:
  """The mapped regions of this process; 0 where the system does not list them."""
  regions = Path("/proc/self/maps")
  return regions.read_bytes().count(b"\n") if regions.exists() else 0


def pytest_runtest_logreport(report):
  """Drops the programs when they are too many, after what took long enough to compile many."""
  if report.duration > 1 and mapped_regions() > MANY_REGIONS:
    gc.unfreeze()
    jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def frozen_heap():
  """Traced and compiled programs stay: the collector, which loop.fit calls, need not walk them
  again.
  """
  yield
  gc.collect()
  gc.freeze()


MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]


@pytest.fixture(params=MESHES, ids=lambda m: "x".join(map(str, m)))
def mesh(request):
  """A mesh of eight fake devices with axes data, fsdp, model; active while the test runs."""
  from instructjax import sharding

  mesh = sharding.make_mesh(*request.param)
  with jax.set_mesh(mesh):
    yield mesh
