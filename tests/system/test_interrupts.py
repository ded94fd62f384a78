"""Ctrl-C arrives, also where Python or a library drops it or makes something else of it."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from instructjax.commands import cli
from instructjax.system import interrupts


@pytest.fixture(autouse=True)
def in_the_foreground():
  """A job in the background of a shell ignores Ctrl-C, and so does what it starts."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


# A weak reference whose callback is interrupted stands for the one in which JAX frees memory.
DROPPED = """
import os, signal, sys, time, weakref
from instructjax.commands import cli

class Thing:
  pass

def interrupted(words):
  thing = Thing()
  reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT) or time.sleep(1))
  del thing
  time.sleep(5)
  return 0

{place}
sys.exit(cli.start())
"""
# `cli.run` catches what it raises itself; here `interrupted` stands for what a command does.
IN_A_COMMAND = "cli.all_commands = lambda: interrupted(())"
# A library in the middle of its import, as the extension modules of NumPy and JAX are.
IN_AN_IMPORT = """
import types

def importing(words):
  library = types.ModuleType("numpy")
  library.__spec__ = types.SimpleNamespace(_initializing=True)
  sys.modules["numpy"] = library
  try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
  except KeyboardInterrupt as error:
    raise ImportError("the extension could not be initialised") from error

cli.all_commands = lambda: importing(())
"""


def stopped(place) -> subprocess.CompletedProcess:
  env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  # Without pages of 2 MiB, for which the command would start anew and lose this script.
  script = textwrap.dedent(DROPPED).replace("{place}", place)
  env["GLIBC_TUNABLES"] = ""
  return subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False
  )


def test_one_that_a_callback_drops_comes_again():
  run = stopped(IN_A_COMMAND)
  assert (run.returncode, run.stderr) == (128 + signal.SIGINT, "stopped\n")


def test_within_an_import_it_ends_the_command_without_a_traceback():
  run = stopped(IN_AN_IMPORT)
  assert (run.returncode, run.stderr) == (128 + signal.SIGINT, "stopped\n")


def test_what_a_library_makes_of_it_is_still_a_stop(monkeypatch, capsys):
  def translate():
    try:
      os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as error:
      raise ImportError("the extension could not be initialised") from error

  monkeypatch.setattr(cli, "all_commands", translate)
  assert cli.main(["report"]) == 128 + signal.SIGINT
  assert capsys.readouterr().err == "stopped\n"


def test_everything_is_as_before_afterwards():
  handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
  with interrupts.arriving() as is_interrupted:
    assert not is_interrupted()
    assert signal.getsignal(signal.SIGINT) is not handler
  assert signal.getsignal(signal.SIGINT) is handler
  assert sys.unraisablehook is hook
