"""How far a long command has come that does not know how much there is: a count and its rate.

Everything goes to stderr. On a terminal one line is written over and over; elsewhere there is a
line every 10 seconds. A command that takes less than 2 seconds leaves no trace.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

QUIET = 2.0  # seconds before anything is shown
EVERY = 10.0  # seconds between lines where there is no terminal
REWRITTEN = 0.2  # seconds between changes of the line on a terminal
CLEAR = "\r\x1b[K"  # to the beginning of the line, which is emptied


@contextlib.contextmanager
def counting(what: str, things: str) -> Iterator[Callable[[int], None]]:
  """Yields a function of how many `things` are done, which is called after each of them."""
  is_terminal = sys.stderr.isatty()
  begin = time.monotonic()
  next_time = begin + (QUIET if is_terminal else EVERY)
  is_shown = False

  def show(done: int) -> None:
    nonlocal next_time, is_shown
    now = time.monotonic()
    if now < next_time:
      return
    line = f"{what}: {done:,} {things}, {done / (now - begin):,.0f} a second"
    if is_terminal:
      print(f"{CLEAR}{line}", end="", file=sys.stderr, flush=True)
    else:
      print(line, file=sys.stderr, flush=True)
    is_shown = True
    next_time = now + (REWRITTEN if is_terminal else EVERY)

  try:
    yield show
  finally:
    if is_terminal and is_shown:
      print(CLEAR, end="", file=sys.stderr, flush=True)
