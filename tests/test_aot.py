"""The compiler's half of the plan: every stage and every kind of chip compiles ahead of time with libtpu (`make test-plan`)."""

import pytest

from instructjax import origin, settings
from instructjax.models import gpt
from instructjax.plan import Options, plan

pytestmark = pytest.mark.tpu


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  """Reports are kept here, so that each test asks the compiler."""
  monkeypatch.setenv("INSTRUCTJAX_CACHE", str(tmp_path))


def compiled(preset: str, options: Options, say=lambda text: None) -> dict:
  found = plan(settings.load(preset), preset.partition(":")[2], options, say)
  assert found["compiled"], f"{found['why_not']}; make test-plan installs it"
  assert found["fits"]
  return found


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rl_init", "reward", "ppo"])
def test_every_stage_compiles_for_a_tpu(stage):
  options = Options("v5e:2x2", "fsdp=2,model=2")
  found = compiled(f"{stage}:tiny", options)
  for row in found["programs"]:
    assert row["compiled"]["temp"] >= 0 and row["compiled"]["arguments"] > 0
    assert {c["kind"] for c in row["compiled"]["collectives"]} >= {"all-gather", "all-reduce"}
  said = []
  again = compiled(f"{stage}:tiny", options, said.append)
  assert again["programs"] == found["programs"] and not said  # the reports were kept


@pytest.mark.parametrize(
  ("topology", "slices", "devices", "mesh"),
  [
    ("v4:2x2x1", 1, 4, "fsdp=4"),  # two cores a chip, taken as one device
    ("v6e:2x2", 1, 4, "fsdp=4"),
    ("tpu7x:2x2x1", 1, 8, "fsdp=4,model=2"),  # two devices a chip
    ("v5e:2x2", 2, 8, "data=2,fsdp=4"),
  ],
)
def test_every_kind_of_chip_and_several_slices(topology, slices, devices, mesh):
  found = compiled("sft:tiny", Options(topology, mesh, slices))
  assert found["devices"] == devices
  (row,) = found["programs"]
  assert row["compiled"]["limit"] > row["compiled"]["peak"] > row["compiled"]["arguments"] * 0.9
  crossing = [c for c in row["compiled"]["collectives"] if "data" in c["axes"]]
  assert bool(crossing) == (slices > 1)


def test_gradients_of_wide_matrices_are_scattered_as_they_are_summed(monkeypatch):
  """What is summed over fsdp and kept whole on every device is less than one matrix of one layer: biases and the embedding."""
  wide = gpt.GPTConfig(vocab_size=257, context=256, width=4096, depth=1, heads=32)
  monkeypatch.setitem(origin.SHAPES, "wide", wide)
  (row,) = compiled("sft:tiny", Options("v5e:2x2", "fsdp=4", policy="wide"))["programs"]
  moved = {c["kind"]: c["bytes"] for c in row["compiled"]["collectives"]}
  matrix = 4 * wide.width**2  # bytes; a layer has twelve such
  assert moved["all-reduce"] < matrix
  assert 12 * matrix <= moved["reduce-scatter"] < 13 * matrix
