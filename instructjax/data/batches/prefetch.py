"""Batches that are made ahead: a thread makes the next ones while the device works on this one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

DEPTH = 2  # batches that are made before anyone asks for them


class Feed(NamedTuple):
  """Batches by their number, and how long their callers had to wait for them.

  `waited()` is in seconds. The first batch does not count: it cannot be ready, whatever the depth.
  """

  batch: Callable[[int], Any]
  waited: Callable[[], float]


@contextlib.contextmanager
def ahead(batches: Callable[[int], Any], *, stop: int, depth: int = DEPTH) -> Iterator[Feed]:
  """Gives the same batches, and makes batches i + 1 to i + depth while batch i is used.

  One thread makes them in order, under the mesh that is set here, and none from `stop` on. An
  error in making a batch is raised where that batch is asked for, with its number. On leaving, no
  further batch is begun, and the one in the making is waited for.
  """
  mesh = jax.sharding.get_mesh()
  futures: dict[int, Future] = {}  # the batches that were begun and not yet taken, by number
  first_wait = 0.0
  later_waits = 0.0
  requests = 0

  def make(i: int) -> Any:
    # The mesh belongs to the thread that set it, so the thread of the pool has to set it again.
    mesh_of_caller = contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh)
    try:
      with mesh_of_caller:
        return batches(i)
    except Exception as error:
      error.add_note(f"while batch {i} was made")
      raise

  def batch(i: int) -> Any:
    nonlocal first_wait, later_waits, requests
    # What lies outside of this window was made for another place in the stream.
    window = range(i, i + depth + 1)
    for number in list(futures):
      if number not in window:
        futures.pop(number).cancel()
    # Batch i itself is always made, even one from `stop` on.
    last = min(i + depth, stop - 1)
    for number in range(i, max(last, i) + 1):
      if number not in futures:
        futures[number] = pool.submit(make, number)
    begun = time.perf_counter()
    try:
      return futures.pop(i).result()
    finally:
      seconds = time.perf_counter() - begun
      if requests:
        later_waits += seconds
      else:
        first_wait = seconds
      requests += 1

  def waited() -> float:
    return later_waits

  pool = ThreadPoolExecutor(1, "batches")
  try:
    yield Feed(batch, waited)
  finally:
    pool.shutdown(cancel_futures=True)
