"""Scripts of the tests in processes of their own: one, or two that work together."""

import os
import socket
import subprocess
import sys

import jax


def start(script, *arguments, **changed):
  """Starts a module of the tests; `changed` are environment variables."""
  env = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,  # of this worker alone
  }
  command = [sys.executable, script.__file__, *map(str, arguments)]
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env | changed
  )


def ended(process) -> tuple[int, str, str]:
  """Exit code, output and errors of a process that was started."""
  out, err = process.communicate(timeout=900)
  return process.returncode, out, err


def together(script, *each) -> list[tuple[int, str, str]]:
  """Starts two processes of four devices each, each with its arguments, and returns how they ended.

  Both compile: only the first would write to a cache, and be through with it while the other
  compiles for longer than connections wait on a busy machine.
  """
  with socket.socket() as found:
    found.bind(("localhost", 0))
    place = f"--distributed=localhost:{found.getsockname()[1]},2,"
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
  changed = {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
  both = [
    start(script, *arguments, f"{place}{index}", **changed) for index, arguments in enumerate(each)
  ]
  return [ended(process) for process in both]
