"""Ctrl-C that arrives, wherever it strikes.

Python turns Ctrl-C into an exception of whatever the main thread is doing. Where that is a callback
of a library (JAX frees memory in one), the exception is printed and dropped, and the command goes
on. Where it is the import of a library, it may come out as another exception, or be printed from
within.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

AGAIN = 0.05  # seconds until a Ctrl-C that was dropped comes again

# Libraries whose import prints a traceback from within where it is interrupted.
SLOW_IMPORTS = ("numpy", "jaxlib", "jax")


@contextlib.contextmanager
def arriving() -> Iterator[Callable[[], bool]]:
  """Lets a Ctrl-C that a callback has dropped come again.

  Outside the main thread, and where Ctrl-C means something else than an exception, nothing changes.

  Yields:
    A function that says whether Ctrl-C was pressed, for the exceptions that it may have become.
  """
  is_main = threading.current_thread() is threading.main_thread()
  if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    yield lambda: False
    return
  pressed = False
  hook_before = sys.unraisablehook

  def handle(number: int, frame: Any) -> None:
    nonlocal pressed
    pressed = True
    if any(map(_is_being_imported, SLOW_IMPORTS)):
      # They come before a command does anything, so there is nothing to take care of.
      os.write(sys.stderr.fileno(), b"stopped\n")
      os._exit(128 + number)
    raise KeyboardInterrupt

  def hook(report: Any) -> None:
    if not isinstance(report.exc_value, KeyboardInterrupt):
      hook_before(report)
      return
    # Not at once, or it would be dropped by the same callback.
    timer = threading.Timer(AGAIN, _thread.interrupt_main)
    timer.daemon = True
    timer.start()

  signal.signal(signal.SIGINT, handle)
  sys.unraisablehook = hook
  try:
    yield lambda: pressed
  finally:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.unraisablehook is hook:
      sys.unraisablehook = hook_before


def _is_being_imported(name: str) -> bool:
  """Returns whether the import of a module has begun and not yet ended."""
  spec = getattr(sys.modules.get(name), "__spec__", None)
  return getattr(spec, "_initializing", False)
