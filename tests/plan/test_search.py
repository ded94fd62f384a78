"""What a search changes where a program does not fit."""

from types import SimpleNamespace

import pytest

from instructjax import settings
from instructjax.plan import chips, search

POD = chips.pod("v5e:2x2")
MESH = {"data": 1, "fsdp": 4, "model": 1}


def programs_of(config):
  """A sampler, of which a part is the weights, and an update."""
  whole = config.sampling.whole
  return [
    SimpleNamespace(updates=0, peak=20e9 if whole else 5e9),
    SimpleNamespace(updates=8, peak=9e9),
  ]


@pytest.fixture
def needs(monkeypatch):
  """The peaks that the programs have, against a limit of 14 GB."""

  def need(built, topology, mesh):
    peak = max(program.peak for program in built)
    return search.Need(peak, 1.0, peak < 14e9)

  monkeypatch.setattr(search, "_need", need)
  monkeypatch.setattr(search.estimate, "shares", lambda program: {"params": 4e9})


def test_a_sampler_without_room_for_whole_weights_gathers_by_layers(needs):
  plan = search.try_mesh(settings.load("ppo:tiny"), POD, MESH, programs_of)
  assert plan["fits"] and not plan["whole"]
  assert plan["flags"].endswith("--config.sampling.whole=False")
  assert plan["peak"] == 9e9


def test_a_sampler_that_fits_keeps_whole_weights(needs):
  def small(config):
    return [SimpleNamespace(updates=0, peak=6e9), SimpleNamespace(updates=8, peak=9e9)]

  plan = search.try_mesh(settings.load("ppo:tiny"), POD, MESH, small)
  assert plan["fits"] and plan["whole"]
  assert "whole" not in plan["flags"]
