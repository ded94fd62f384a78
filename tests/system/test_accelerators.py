"""A machine whose accelerator JAX does not see says so; /dev and the packages are stand-ins."""

import argparse
from importlib import metadata

import jax
import pytest

from instructjax.commands import options
from instructjax.system import accelerators
from instructjax.system.accelerators import GPU, TPU


def machine(root, *devices, vendor=""):
  """A root with these device files, and one PCI device of a vendor."""
  for device in devices:
    file = root / "dev" / device
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
  if vendor:
    file = root / "sys/bus/pci/devices/0000:00:05.0/vendor"
    file.parent.mkdir(parents=True)
    file.write_text(f"{vendor}\n")
  return root


@pytest.fixture
def no_platform():
  """Nobody has asked for a platform."""
  before = jax.config.jax_platforms
  jax.config.update("jax_platforms", None)
  yield
  jax.config.update("jax_platforms", before)


def pretend_installed(monkeypatch, versions):
  def version(name):
    if name not in versions:
      raise metadata.PackageNotFoundError(name)
    return versions[name]

  monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
  ("devices", "vendor", "accelerator"),
  [
    (["nvidia0", "nvidiactl"], "0x10de", GPU),
    (["accel0", "accel1"], "", TPU),
    (["vfio/0", "vfio/vfio"], "0x1ae0", TPU),
    (["vfio/7"], "0x8086", None),  # a device that a host gives to its guests
    (["vfio/vfio"], "0x1ae0", None),  # the network card of a machine without a TPU
    (["accel/accel0"], "", None),  # another maker's
    (["nvidiactl", "null"], "", None),  # a driver without a GPU
  ],
)
def test_device_files_say_what_is_there(tmp_path, devices, vendor, accelerator):
  assert accelerators.present(machine(tmp_path, *devices, vendor=vendor)) == accelerator


def test_one_line_with_the_remedy(tmp_path, monkeypatch, capsys, no_platform):
  pretend_installed(monkeypatch, {})
  accelerators.warn_if_unseen(machine(tmp_path, "nvidia0"))
  line = capsys.readouterr().err
  assert line.count("\n") == 1 and "NVIDIA GPU" in line and "no plugin" in line
  assert f'pip install "jax[cuda12]=={jax.__version__}"' in line and "JAX_PLATFORMS=cpu" in line


def test_the_plugin_that_is_there_gets_the_version_of_jax(monkeypatch):
  """What an installer leaves that replaces jax and not its plugin."""
  pretend_installed(monkeypatch, {"jax-cuda13-plugin": "0.7.2"})
  line = accelerators.warning(GPU, "0.10.2")
  assert "cannot use its jax-cuda13-plugin 0.7.2" in line and '"jax[cuda13]==0.10.2"' in line
  assert '"jax[tpu]==0.10.2"' in accelerators.warning(TPU, "0.10.2")


def test_no_word_where_all_is_well(tmp_path, monkeypatch, capsys, no_platform):
  root = machine(tmp_path, "accel0")
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  accelerators.warn_if_unseen(root)
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  jax.config.update("jax_platforms", "cpu")  # asked for
  accelerators.warn_if_unseen(root)
  accelerators.warn_if_unseen(tmp_path / "empty")
  assert capsys.readouterr().err == ""


def test_commands_check_once_the_processes_have_met(monkeypatch):
  calls = []
  monkeypatch.setattr(options.processes, "join", lambda value: calls.append(value))
  monkeypatch.setattr(accelerators, "warn_if_unseen", lambda: calls.append("checked"))
  monkeypatch.setattr(options, "prepare_jax", lambda: None)
  options.open_settings(argparse.Namespace(config="sft", distributed="auto"), [])
  assert calls == ["auto", "checked"]
