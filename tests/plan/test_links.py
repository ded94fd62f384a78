"""Collectives on links: the sides that a group spreads over, and which of them are rings."""

import itertools

import pytest

from instructjax.plan import chips, links


def all_of(topology):
  return list(itertools.product(*[range(side) for side in topology.shape]))


def line(topology, side):
  """The chips along one side, from the first one."""
  return [place for place in all_of(topology) if sum(place) == place[side]]


@pytest.mark.parametrize(
  ("name", "side", "gigabytes"),
  [
    # A v6e has 4 links of 100 GB/s, a v5p 6, a v5e 4 of 50.
    ("v6e:4x4", None, 200),  # two lines
    ("v6e:4x4", 0, 100),
    ("v5e:16x16", None, 200),  # two rings
    ("v5e:8x16", 1, 100),  # the side of 16 is a ring
    ("v5e:8x16", 0, 50),
    ("v5p:4x4x4", None, 600),  # three rings: a whole cube
    ("v5p:4x4x4", 2, 200),
    ("v5p:2x2x4", 2, 100),  # a part of one
  ],
)
def test_a_side_that_wraps_around_is_twice_as_fast(name, side, gigabytes):
  topology = chips.pod(name)
  places = all_of(topology) if side is None else line(topology, side)
  assert links.rate(topology, places) == pytest.approx(gigabytes * 1e9)


def test_a_part_of_a_ring_is_a_line():
  topology = chips.pod("v5p:4x4x8")
  assert links.rate(topology, line(topology, 2)[:4]) == pytest.approx(100e9)


def test_seconds_by_hand():
  """16 GB on v6e:4x4: each device receives 15 of them at 200 GB/s; sums go round twice."""
  topology = chips.pod("v6e:4x4")
  places = all_of(topology)
  assert links.seconds(topology, places, "all-gather", 16e9) == pytest.approx(0.075)
  assert links.seconds(topology, places, "all-reduce", 16e9) == pytest.approx(0.15)
  assert links.seconds(topology, places, "collective-permute", 1e9) == pytest.approx(0.01)
  # What is small takes the hops: 3 along each side.
  assert links.seconds(topology, places, "all-gather", 16) == pytest.approx(6e-6)
  assert links.seconds(topology, places[:1], "all-gather", 16e9) == 0


def test_a_group_of_a_program_is_looked_up_by_its_positions():
  topology = chips.pod("v6e:4x4")
  # JAX gives a third coordinate, which is always 0.
  seconds = links.timed(topology, [(*place, 0) for place in all_of(topology)])
  assert seconds("all-gather", [0, 1, 2, 3], 4e9) == pytest.approx(3e9 / 100e9)
  assert seconds("all-gather", [], 16e9) == pytest.approx(0.075)  # none stands for all
  assert seconds("between slices", [], 12.5e9) == pytest.approx(1.0)
