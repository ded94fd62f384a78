"""What MFU is made of: the model's work in a step without what is computed again, and the peak."""

import jax
import pytest

from instructjax import settings
from instructjax.plan import aot, chips, counting, meter, programs
from instructjax.stages.wiring import share_of_real


def costs(stage, remat):
  """The cost of each program of a stage at full length."""
  config = settings.load(f"{stage}:tiny")
  built = programs.build(config, "tiny", "tiny", completions=3, remat=remat)
  return {
    program.name: counting.count(aot.trace(program).jaxpr, [], program.part.trips)
    for program in built
  }


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "dpo"])
def test_what_is_computed_again_is_no_work_of_the_model(stage):
  """With `remat` a step does more, and as much as without it where that is left out."""
  plain, again = costs(stage, "none"), costs(stage, "blocks")
  for name, cost in again.items():
    assert plain[name].recomputed_flops == 0
    assert cost.flops - cost.recomputed_flops == pytest.approx(plain[name].flops, rel=1e-6)
  trains = "update" if stage == "ppo" else stage
  # Of a block that is computed forward, again and backward, a quarter is computed again.
  assert 0.1 < again[trains].recomputed_flops / again[trains].flops < 0.26


def test_the_peak_is_that_of_the_data_sheet_or_unknown():
  assert meter.peak_flops("TPU v5 lite") == 197e12
  assert meter.peak_flops("NVIDIA H200") == 989.5e12
  assert meter.peak_flops("NVIDIA H200 NVL") is None  # which has another one
  assert meter.peak_flops("cpu") is None
  assert set(meter.KINDS.values()) == set(chips.CHIPS)


def planned(stage):
  return programs.plan_stage(settings.load(f"{stage}:tiny"), "tiny", "tiny", completions=3)


def test_a_cpu_has_no_peak_and_nothing_is_counted(monkeypatch):
  monkeypatch.setattr(meter, "costs_of", None)
  wired = planned("sft")
  assert meter.seconds_at_peak(wired.stage, *wired.start()) is None


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_the_seconds_at_the_peak_are_those_of_all_parts(stage, monkeypatch):
  monkeypatch.setitem(meter.KINDS, jax.devices()[0].device_kind, "v5e")
  wired = planned(stage)
  seconds = meter.seconds_at_peak(wired.stage, *wired.start())
  expected = {
    name: (cost.flops - cost.recomputed_flops) / 197e12 for name, cost in costs(stage, "").items()
  }
  assert seconds == pytest.approx(expected)


def test_rows_count_with_their_real_tokens():
  share = share_of_real("tokens/real", 200)
  assert share({"tokens/real": 50.0}) == 0.25


def test_an_update_of_ppo_counts_episodes_for_two_networks_and_text_for_one():
  """Half of the episodes and all of the text: (2 * 50 + 60) of (2 * 100 + 60)."""
  from instructjax.stages import ppo

  share = ppo.share_of_update(100, 60, {"tokens/episodes": 50.0, "tokens/real": 110.0})
  assert share == pytest.approx(160 / 260)
