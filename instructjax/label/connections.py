"""Connections to the labeling page that cannot lock others out.

A connection costs its sender nothing, so that anyone who reaches the page could open hundreds and
say nothing, or a byte a minute. A connection must therefore complete its request within PATIENCE,
and where there are too many, the one that has waited longest for its request makes room for the
next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 20.0  # seconds for a request, from the connection or from the answer before it
MOST = 200  # connections at a time; a file of the system belongs to each


class Protocol(H11Protocol):
  """HTTP as uvicorn speaks it, with these two limits. The names of the methods are asyncio's."""

  def connection_made(self, transport: asyncio.Transport) -> None:
    make_room(self.connections)
    super().connection_made(transport)
    self._wait_for_request()

  def connection_lost(self, exc: Exception | None) -> None:
    self.timer.cancel()
    super().connection_lost(exc)

  def on_response_complete(self) -> None:
    self.timer.cancel()
    self._wait_for_request()
    super().on_response_complete()

  def _wait_for_request(self) -> None:
    """Gives the next request its time."""
    self.waiting_since = self.loop.time()
    self.timer = self.loop.call_later(PATIENCE, self._end_waiting)

  def _end_waiting(self) -> None:
    if waits(self):
      self.transport.abort()


def waits(connection: H11Protocol) -> bool:
  """Returns whether a connection has no whole request, so that nothing is lost with it."""
  cycle = connection.cycle
  return cycle is None or cycle.response_complete or cycle.more_body


def make_room(connections: Iterable[object]) -> None:
  """Ends the connection that has waited longest, where there are MOST or more."""
  ours = [connection for connection in connections if isinstance(connection, Protocol)]
  waiting = [connection for connection in ours if waits(connection)]
  if len(ours) >= MOST and waiting:
    oldest = min(waiting, key=lambda connection: connection.waiting_since)
    # It leaves the set when asyncio comes to it, and must not be chosen again before.
    oldest.connections.discard(oldest)
    oldest.transport.abort()
