"""A warning where a machine has an accelerator that JAX does not see.

JAX without the plugin of a GPU or a TPU computes on the CPU, a hundred times slower. A plugin of
another version than JAX is left out in the same way: that is what remains where an installer
replaced JAX alone.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

GOOGLE = "0x1ae0"  # the PCI vendor of a TPU


class Accelerator(NamedTuple):
  """A kind of accelerator: its name for people, and the packages by which JAX sees it.

  `plugins` maps the distribution of a plugin to the extra of JAX that installs it; the first is the
  one to install where there is none.
  """

  name: str
  plugins: dict[str, str]


GPU = Accelerator("an NVIDIA GPU", {"jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13"})
TPU = Accelerator("a TPU", {"libtpu": "tpu"})


def present(root: Path = Path("/")) -> Accelerator | None:
  """Returns the accelerator whose device files stand under a root, or None."""
  devices = root / "dev"
  if any(devices.glob("nvidia[0-9]*")):
    return GPU
  if any(devices.glob("accel[0-9]*")):
    return TPU
  # Newer TPUs are vfio devices. Those of other makers are too, so the vendor decides.
  if any((devices / "vfio").glob("[0-9]*")):
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    if any(vendor.read_text().strip() == GOOGLE for vendor in vendors):
      return TPU
  return None


def installed(distribution: str) -> str:
  """Returns the version of an installed package; "" where it is not installed."""
  try:
    return metadata.version(distribution)
  except metadata.PackageNotFoundError:
    return ""


def warning(accelerator: Accelerator, jax_version: str) -> str:
  """Returns the line for an accelerator that JAX does not see, with the remedy.

  A plugin that is installed decides which extra of JAX is the right one.
  """
  extra = next(iter(accelerator.plugins.values()))
  reason = "has no plugin for it"
  for distribution, extra_of_plugin in accelerator.plugins.items():
    version = installed(distribution)
    if version:
      extra = extra_of_plugin
      reason = f"cannot use its {distribution} {version}"
      break
  return (
    f"warning: this machine has {accelerator.name} and JAX {jax_version} {reason}, so everything "
    f'runs on the CPU: pip install "jax[{extra}]=={jax_version}", or set JAX_PLATFORMS=cpu to '
    "stay there"
  )


def warn_if_unseen(root: Path = Path("/")) -> None:
  """Prints one line where the machine has an accelerator and JAX computes on the CPU.

  Nothing is printed where the CPU was asked for. JAX is started only on a machine that has an
  accelerator.
  """
  accelerator = present(root)
  if accelerator is None:
    return
  import jax

  was_asked_for = bool(jax.config.values["jax_platforms"])
  if not was_asked_for and jax.default_backend() == "cpu":
    print(warning(accelerator, jax.__version__), file=sys.stderr, flush=True)
