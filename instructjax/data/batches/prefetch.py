"""The next batches are made in a thread while the device works on this one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

DEPTH = 2  # batches that are made before they are asked for


class Feed(NamedTuple):
  """`batch(i)` is batch i; `waited()` the seconds that its callers waited, but for the first batch
  they asked for.
  """

  batch: Callable[[int], Any]
  waited: Callable[[], float]


@contextlib.contextmanager
def ahead(batches: Callable[[int], Any], *, stop: int, depth: int = DEPTH) -> Iterator[Feed]:
  """The same batches; while i is used, i + 1 to i + depth are made and placed, none from `stop` on.

  One thread makes them in order, under the mesh that is set here.  What it raises is raised
  where that batch is asked for, with its number.  At the end no batch is begun any more, and the
  one that is being made is waited for.
  """
  mesh = jax.sharding.get_mesh()
  waiting: dict[int, Future] = {}
  waits: list[float] = [0.0, 0.0]  # for the first batch, for all others
  asked = 0

  def make(i: int) -> Any:
    try:
      with contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh):
        return batches(i)
    except Exception as error:
      error.add_note(f"while batch {i} was made")
      raise

  def batch(i: int) -> Any:
    nonlocal asked
    for at in [at for at in waiting if not i <= at <= i + depth]:  # another place in the stream
      waiting.pop(at).cancel()
    for at in range(i, max(min(i + depth + 1, stop), i + 1)):
      if at not in waiting:
        waiting[at] = pool.submit(make, at)
    begun = time.perf_counter()
    try:
      return waiting.pop(i).result()
    finally:
      waits[min(asked, 1)] += time.perf_counter() - begun
      asked += 1

  pool = ThreadPoolExecutor(1, "batches")
  try:
    yield Feed(batch, lambda: waits[1])
  finally:
    pool.shutdown(cancel_futures=True)
