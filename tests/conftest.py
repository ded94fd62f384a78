"""Eight fake devices, warnings as errors, and runtime shape checks for every test."""

import os
from importlib.metadata import version
from pathlib import Path

# Compiling is most of the time of these tests, and what is compiled runs once or twice: so without optimization, in one piece,
# and by the emitters that take half as long as their successors (jaxlib 0.12 has only those, and dies of a flag it does not know).
FLAGS = [
  "--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true", "--xla_cpu_parallel_codegen_split_count=1",
]  # fmt: skip
if version("jaxlib").startswith("0.10."):
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
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

# Every jaxtyping annotation of a function is checked while the tests run.  `types` is left out: JAX makes its dataclasses also
# of shardings, numpy arrays and other leaves.
package = Path(__file__).parent.parent / "instructjax"
checked = [f"instructjax.{path.stem}" for path in package.iterdir() if path.stem not in ("__init__", "types", "py")]
install_import_hook(checked, "checks.check")

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]


@pytest.fixture(params=MESHES, ids=lambda m: "x".join(map(str, m)))
def mesh(request):
  """A mesh of eight fake devices with axes data, fsdp, model; active while the test runs."""
  from instructjax import sharding

  mesh = sharding.make_mesh(*request.param)
  with jax.set_mesh(mesh):
    yield mesh
