"""Compiles a program for a TPU topology that is not there, with libtpu (the `plan` extra), and
reads what comes out.

Reports are kept in the user's cache folder under a hash of the lowered StableHLO, the topology
and the versions: JAX's own cache does not serve compile-only devices.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.plan import collectives
from instructjax.plan.chips import GiB, Pod
from instructjax.plan.programs import Program
from instructjax.sharding import AXES

FORMAT = 2  # of the cached reports


def available() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec("libtpu") is not None


def device_mesh(where: Pod, mesh: Mapping[str, int]) -> Any:
  """The mesh over the compile-only devices of a topology.  Raises UserError for a shape that libtpu
  does not know.
  """
  from jax.experimental import mesh_utils, topologies
  from jax.sharding import AxisType, Mesh

  # Without the first two libtpu looks for a metadata server and says so on stderr; without the
  # third it waits for every other process that has it open, as if both wanted the chips.
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  options: dict[str, Any] = {"num_slices": where.slices} if where.slices > 1 else {}
  if where.kind == "v4":
    options["chip_config_name"] = "megacore"
  try:
    devices = list(topologies.get_topology_desc(where.name, platform="tpu", **options).devices)
  except Exception as error:  # the plugin's own errors have no common type
    first = str(error).strip().partition("\n")[0]
    raise UserError(
      f"--topology={where.name}: libtpu does not give it ({first[:160]}); try another shape"
    ) from error
  if len(devices) != where.devices:
    raise UserError(
      f"--topology={where.name}: libtpu gives {len(devices)} devices, {where.devices} are expected"
    )
  shape = tuple(mesh.values())
  if where.slices > 1:
    inside = (shape[0] // where.slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(
      inside, (where.slices, 1, 1), devices, allow_split_physical_axes=True
    )
  else:
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * 3)


@contextlib.contextmanager
def on(where: Pod, mesh: Mapping[str, int], compiling: bool) -> Iterator[None]:
  """Sets the mesh: of compile-only devices, or of no devices at all.

  JAX's own cache is off in the first case: it keeps what is compiled for such devices, but
  cannot read it again.
  """
  import jax
  from jax.experimental.compilation_cache.compilation_cache import reset_cache
  from jax.sharding import AbstractMesh, AxisType

  if compiling:
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # forgets that it was on
    try:
      with jax.set_mesh(device_mesh(where, mesh)):
        yield
    finally:
      jax.config.update("jax_enable_compilation_cache", enabled)
      reset_cache()
    return
  abstract = AbstractMesh(tuple(mesh.values()), AXES, axis_types=(AxisType.Explicit,) * 3)
  with jax.sharding.use_abstract_mesh(abstract):
    yield


def trace(program: Program) -> Any:
  """The program on abstract values; arguments that it does not read stay, since a run holds them
  too.
  """
  import jax

  settings: dict[str, Any] = {"donate_argnums": (0,)} if program.donate else {}
  if program.outputs is not None:
    settings["out_shardings"] = program.outputs
  return jax.jit(program.function, keep_unused=True, **settings).trace(*program.arguments)


def report(
  traced: Any,
  where: Pod,
  mesh: Mapping[str, int],
  folder: Path,
  compiling: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
  """What the compiler says of one device: its memory, and the collectives of the compiled program.

  `compiling` is called where no report of this program is kept in `folder`.
  """
  lowered = traced.lower()
  versions = "/".join(metadata.version(name) for name in ("jax", "libtpu"))
  about = f"{FORMAT} {versions} {where} {dict(mesh)} "
  path = folder / f"{hashlib.sha256((about + lowered.as_text()).encode()).hexdigest()[:32]}.json"
  if path.is_file():
    return json.loads(path.read_text())
  compiling()
  found = _compile(lowered, mesh)
  folder.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(found))
  return found


def _compile(lowered: Any, mesh: Mapping[str, int]) -> dict[str, Any]:
  import jax

  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", str(error))
    if not used:
      return {
        "peak": None,
        "refused": str(error).strip().partition("\n")[0][:300],
        "collectives": [],
      }
    scale = {"K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}
    need, have = (float(used[i]) * scale[used[i + 1]] * GiB for i in (1, 3))
    return {"peak": need, "limit": have, "refused": used[0], "collectives": []}
  stats = compiled.memory_analysis()
  return {
    "peak": stats.peak_memory_in_bytes,
    "arguments": stats.argument_size_in_bytes,
    "temp": stats.temp_size_in_bytes,
    "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
    "refused": None,
    "collectives": [
      c._asdict() | {"axes": list(c.axes)} for c in collectives.read(compiled.as_text(), mesh)
    ],
  }
