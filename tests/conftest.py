"""Eight fake devices, warnings as errors, and runtime shape checks for every test."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
from jaxtyping import install_import_hook

cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
if cache:
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# Every jaxtyping annotation in the package is checked while the tests run.
install_import_hook("instructjax", "beartype.beartype")

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]


@pytest.fixture(params=MESHES, ids=lambda m: "x".join(map(str, m)))
def mesh(request):
  """A mesh of eight fake devices with axes data, fsdp, model; active while the test runs."""
  from instructjax import sharding

  mesh = sharding.make_mesh(*request.param)
  with jax.set_mesh(mesh):
    yield mesh
