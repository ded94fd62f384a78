"""Compiles a program for a TPU topology that is not there, and reads what comes out.

The compiler is libtpu (the `plan` extra). Reports are kept in the user's cache folder under a hash
of the lowered StableHLO, the topology and the versions, because JAX's own cache does not serve
compile-only devices.
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

from instructjax import compiler, sharding
from instructjax.errors import UserError
from instructjax.plan import chips, collectives, cycles
from instructjax.plan.chips import GiB, Pod
from instructjax.plan.programs import Program
from instructjax.system import jsons

FORMAT = 5  # of the cached reports

# GiB in a unit of the compiler's messages.
UNITS = {"K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}


def available() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec("libtpu") is not None


def device_mesh(topology: Pod, mesh: Mapping[str, int]) -> Any:
  """Returns the mesh over the compile-only devices of a topology.

  Raises:
    UserError: for a shape that libtpu does not give, and for a mesh that its slices do not divide.
  """
  return sharding.make_mesh(**mesh, devices=devices(topology))


def devices(topology: Pod) -> list[Any]:
  """Returns the compile-only devices of a topology.

  Raises:
    UserError: for a shape that libtpu does not know, or of which it gives other devices.
  """
  from jax.experimental import topologies

  # Without the first two variables libtpu looks for a metadata server and reports that on stderr.
  # Without the third it waits for every other process that has it open, as if both wanted the
  # chips.
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  options: dict[str, Any] = {}
  if topology.slices > 1:
    options["num_slices"] = topology.slices
  if topology.kind == "v4":
    options["chip_config_name"] = "megacore"  # both cores of a chip are one device
  try:
    description = topologies.get_topology_desc(
      topology.name,
      platform="tpu",
      **options,
    )
  except Exception as error:  # the plugin's own errors have no common type
    first_line = str(error).strip().partition("\n")[0]
    raise UserError(
      f"--topology={topology.name}: libtpu does not give it ({first_line[:160]}); try another shape"
    ) from error
  compile_only = list(description.devices)
  if len(compile_only) != topology.devices:
    raise UserError(
      f"--topology={topology.name}: libtpu gives {len(compile_only)} devices, {topology.devices} "
      "are expected"
    )
  return compile_only


def places(topology: Pod, mesh: Mapping[str, int]) -> list[tuple[int, ...]]:
  """Returns where the chips of the devices of the first slice stand, in the order of the mesh."""
  in_first = [
    device
    for device in device_mesh(topology, mesh).devices.flatten()
    if getattr(device, "slice_index", 0) == 0
  ]
  return [tuple(device.coords) for device in in_first]


@contextlib.contextmanager
def on(
  topology: Pod,
  mesh: Mapping[str, int],
  compiling: bool,
) -> Iterator[None]:
  """Sets the mesh: of compile-only devices when `compiling`, else of no devices at all."""
  import jax

  if compiling:
    with _without_cache(), jax.set_mesh(device_mesh(topology, mesh)):
      yield
    return
  with jax.sharding.use_abstract_mesh(sharding.abstract_mesh(**mesh)):
    yield


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
  """Switches JAX's own cache off: it keeps what is compiled for such devices but cannot read it."""
  import jax
  from jax.experimental.compilation_cache.compilation_cache import reset_cache

  name = "jax_enable_compilation_cache"
  enabled = jax.config.values[name]
  jax.config.update(name, False)
  reset_cache()  # JAX remembers that the cache was on
  try:
    yield
  finally:
    jax.config.update(name, enabled)
    reset_cache()


def trace(program: Program) -> Any:
  """Traces a program on its abstract arguments, with the compiler's options of a run."""
  settings: dict[str, Any] = {}
  if program.donate:
    settings["donate_argnums"] = (0,)
  if program.outputs is not None:
    settings["out_shardings"] = program.outputs
  # Arguments that the program does not read stay, since a run holds them too.
  jitted = compiler.jit(program.function, program.options, keep_unused=True, **settings)
  return jitted.trace(*program.arguments)


def report(
  traced: Any,
  topology: Pod,
  mesh: Mapping[str, int],
  folder: Path,
  trips: Mapping[str, float],
  compiling: Callable[[], None] = lambda: None,
  options: str = "",
) -> dict[str, Any]:
  """Returns what the compiler reports of one device: its memory and the collectives.

  `trips` says how often its named loops run (`counting.count`). `compiling` is called where no
  report of this program is kept in `folder`. `options` are those with which it was traced.
  """
  lowered = traced.lower()
  versions = "/".join(metadata.version(name) for name in ("jax", "libtpu"))
  # Everything that a report depends on.
  key = (
    f"{FORMAT} {versions} {topology} {dict(mesh)} {dict(trips)} {compiler.options_for(options)} "
    f"{lowered.as_text()}"
  )
  digest = hashlib.sha256(key.encode()).hexdigest()
  path = folder / f"{digest[:32]}.json"
  with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged report is made anew
    return json.loads(path.read_text())
  compiling()
  slice_topology, mesh_in_slices = chips.in_slices(topology, mesh)
  machine = cycles.machine(slice_topology, places(topology, mesh))
  result = _compile(lowered, mesh_in_slices, trips, machine)
  folder.mkdir(parents=True, exist_ok=True)
  jsons.write(path, result, indent=None)
  return result


def _compile(
  lowered: Any,
  mesh: Mapping[str, int],
  trips: Mapping[str, float],
  machine: cycles.Machine,
) -> dict[str, Any]:
  """Compiles a program and reads its memory in bytes, or why the compiler refuses it."""
  import jax

  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return _refusal(str(error))
  memory = compiled.memory_analysis()
  text = compiled.as_text()
  moved = collectives.read(text, mesh, trips)
  return {
    "peak": memory.peak_memory_in_bytes,
    "arguments": memory.argument_size_in_bytes,
    "temp": memory.temp_size_in_bytes,
    # Without what is written over the arguments.
    "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "refused": None,
    "collectives": [collective.as_row() for collective in moved],
    "predicted": cycles.predict(text, mesh, trips, machine).as_row(),
  }


def _refusal(message: str) -> dict[str, Any]:
  """The report of a program that the compiler refuses, with its peak where the message has it."""
  used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message)
  if not used:
    first_line = message.strip().partition("\n")[0]
    return {"peak": None, "refused": first_line[:300], "collectives": []}
  need, need_unit, limit, limit_unit = used.groups()
  return {
    "peak": float(need) * UNITS[need_unit] * GiB,
    "limit": float(limit) * UNITS[limit_unit] * GiB,
    "refused": used[0],
    "collectives": [],
  }
