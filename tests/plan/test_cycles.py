"""The schedule of a compiled program, by hand: a nanosecond a cycle and a byte."""

import pytest

from instructjax.plan import cycles

HLO = """HloModule jit_step, is_scheduled=true

%gather_starts (p: bf16[2,4]) -> (bf16[2,4], bf16[4,4]) {
  %p = bf16[2,4]{1,0} parameter(0)
  %all-gather.1 = bf16[4,4]{1,0} all-gather(%p), channel_id=5, replica_groups={{0,1}}
  ROOT %custom-call.1 = (bf16[2,4], bf16[4,4]) custom-call(%all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%gather_ends (q: bf16[2,4]) -> bf16[4,4] {
  %q = bf16[2,4]{1,0} parameter(0)
  %all-gather.2 = bf16[4,4]{1,0} all-gather(%q), channel_id=5, replica_groups={{0,1}}
  ROOT %custom-call.2 = bf16[4,4] custom-call(%all-gather.2), \
custom_call_target="AsyncCollectiveDone"
}

%body.1 (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %async-collective-start = (bf16[2,4], bf16[4,4]) fusion(%b), kind=kCustom, calls=%gather_starts
  %fusion.1 = f32[8]{0:T(8)} fusion(%b), kind=kLoop, calls=%fused_computation, \
backend_config={"window_config":{"estimated_cycles":"3000"}}
  %async-collective-done = bf16[4,4] fusion(%t), kind=kCustom, calls=%gather_ends
}

%condition.1 (c: (s32[], f32[8])) -> pred[] {
  %constant.5 = s32[] constant(4)
  ROOT %lt.1 = pred[] compare(%i, %constant.5), direction=LT
}

ENTRY %main.1 (arg: f32[500]) -> f32[8] {
  %arg = f32[500]{0} parameter(0)
  %copy-start = (f32[500]{0}, f32[500]{0}) copy-start(%arg)
  %fusion.2 = f32[8] fusion(%arg), kind=kLoop, calls=%fused_computation.2, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %copy-done = f32[500]{0} copy-done(%copy-start)
  %all-reduce.8 = f32[8] all-reduce(%fusion.2), channel_id=8, replica_groups={{0,1}}
  %while.1 = (s32[], f32[8]) while(%t), condition=%condition.1, body=%body.1
}
"""
MESH = {"data": 1, "fsdp": 2, "model": 1}


def machine(asked=None):
  def seconds(kind, group, payload):
    if asked is not None:
      asked.append((kind, tuple(group), payload))
    return 5000e-9

  return cycles.Machine(clock=1e9, flops=1e9, bandwidth=1e9, seconds=seconds)


def test_what_the_core_computes_and_waits_for():
  """A trip gathers for 5,000 ns beside 3,000 of computing. 2,000 bytes are fetched beside 1,000."""
  asked = []
  prediction = cycles.predict(HLO, MESH, {}, machine(asked))
  assert prediction.compute == pytest.approx((1000 + 4 * 3000) * 1e-9)
  assert prediction.links == pytest.approx((5000 + 4 * 2000) * 1e-9)
  assert prediction.memory == pytest.approx(1000e-9)
  assert prediction.kernels == 0 and prediction.unknown == 0
  assert prediction.as_row()["step"] == pytest.approx(27_000e-9)
  assert asked == [("all-reduce", (0, 1), 32.0), ("all-gather", (0, 1), 32.0)]


def test_what_is_ready_when_it_is_needed_costs_nothing():
  longer = HLO.replace('"3000"', '"6000"')
  prediction = cycles.predict(longer, MESH, {}, machine())
  assert prediction.links == pytest.approx(5000e-9)  # the all-reduce alone


def test_what_no_trip_ends_takes_no_less_than_the_links():
  """A gather that a trip starts for the next one: 4 trips of 3,000 ns start 5,000 ns each."""
  ends_later = HLO.replace("calls=%gather_ends", "calls=%nothing")
  prediction = cycles.predict(ends_later, MESH, {}, machine())
  assert prediction.links == pytest.approx((5000 + 4 * 2000) * 1e-9)


def test_attention_is_counted_by_its_products():
  """By hand: half of two products of 256 x 256 x 64 in each of two heads, at half of the peak."""
  text = """ENTRY %main.1 (q: bf16[2,256,64]) -> bf16[2,256,64] {
  %q = bf16[2,256,64]{2,1,0} parameter(0)
  %splash_mha_fwd.1 = (f32[512,128]{1,0}, bf16[2,256,64]{2,1,0}) custom-call(%q), \
custom_call_target="tpu_custom_call"
  %another = bf16[8]{0} custom-call(%q), custom_call_target="tpu_custom_call"
}
"""
  prediction = cycles.predict(text, MESH, {}, machine())
  flops = 0.5 * 2 * (2 * 256 * 256 * 64) * 2
  assert prediction.kernels == pytest.approx(flops / 0.5e9)
  assert prediction.unknown == 1
