"""How fast the links of a topology carry a collective, from where its devices stand.

A collective is taken to be a ring along each side of the topology that its devices spread over, all
sides at once. A side is closed to a ring, and has both directions for a message, where its links
wrap around. Else it is a line, whose ends receive everything over one link.

The sources of what wraps around are the pages of `chips`: a v5e or v6e has it on sides of 16, which
are those of a whole pod. v4, v5p and tpu7x have it where optical switches join whole cubes of
4 x 4 x 4, and not in a part of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from instructjax.plan.chips import CUBE_SIDE, Pod

# Seconds from a chip to its neighbour, whatever the size of the message: "How to Scale Your Model"
# (Austin et al. 2025), the chapter on TPUs.
HOP = 1e-6
WHOLE_SIDE = 16  # of a pod of chips with two dimensions

Place = tuple[int, ...]  # the coordinates of a device's chip


def wraps(topology: Pod) -> tuple[bool, ...]:
  """Returns for each side of a topology whether its last chip is linked to its first."""
  if topology.chip.dims == 2:
    return tuple(side == WHOLE_SIDE for side in topology.shape)
  cubes = all(side % CUBE_SIDE == 0 for side in topology.shape)
  return tuple(cubes for _ in topology.shape)


def spread(places: Sequence[Place]) -> tuple[int, ...]:
  """Returns over how many chips of each side some devices spread."""
  return tuple(len(set(positions)) for positions in zip(*places, strict=True))


def rate(topology: Pod, places: Sequence[Place]) -> float:
  """Returns the bytes/s at which each of some devices receives what the others have.

  Devices of one chip have no links between them that are counted, so they have all of the chip's.
  """
  one_link = topology.chip.link / (2 * topology.chip.dims)
  total = 0.0
  for count, side, wrapped in zip(spread(places), topology.shape, wraps(topology), strict=True):
    if count == 1:
      continue
    is_ring = wrapped and count == side
    total += 2 * one_link if is_ring else one_link
  return total or topology.chip.link


def hops(topology: Pod, places: Sequence[Place]) -> int:
  """Returns how many links the longest way of a collective has, one side after the other."""
  longest = 0
  for count, side, wrapped in zip(spread(places), topology.shape, wraps(topology), strict=True):
    is_ring = wrapped and count == side
    longest += count // 2 if is_ring else count - 1
  return longest


def seconds(topology: Pod, places: Sequence[Place], kind: str, payload: float) -> float:
  """Returns the seconds of a collective of `payload` bytes within one slice.

  The payload is what a device holds that has the parts of all (`collectives.Collective`).
  """
  devices = len(places)
  if devices < 2:
    return 0.0
  if kind == "collective-permute":
    # Each device sends what it has to one other.
    one_link = topology.chip.link / (2 * topology.chip.dims)
    return max(HOP, payload / one_link)
  turns = 2 if kind == "all-reduce" else 1  # sums are scattered, then gathered
  moved = payload * (devices - 1) / devices
  return turns * max(hops(topology, places) * HOP, moved / rate(topology, places))


def timed(topology: Pod, places: Sequence[Place]) -> Callable[[str, Sequence[int], float], float]:
  """Returns the seconds of a collective of a compiled program (`cycles.Machine.seconds`).

  `places` are the coordinates of the devices of one slice, in the order of its mesh.
  """
  # JAX gives three coordinates to chips of two dimensions too.
  places = [place[: topology.chip.dims] for place in places]
  topology = topology._replace(shape=spread(places))

  def of_group(kind: str, group: Sequence[int], payload: float) -> float:
    if kind == "between slices":
      return payload / topology.chip.far
    members = [places[position] for position in group] if group else places
    return seconds(topology, members, kind, payload)

  return of_group
