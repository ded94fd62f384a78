"""What a step of a run costs its model, and how long that would take at the peak of the devices.

It is what a run's MFU is made of. A device whose peak is not known, such as a CPU, has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from instructjax.plan import chips, counting, programs
from instructjax.stages.wiring import Stage
from instructjax.types import PyTree, TrainState

# What JAX calls the devices of `chips.CHIPS`. Other forms of an H100 or H200 have other peaks.
KINDS: Mapping[str, str] = {
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU7x": "tpu7x",
  "NVIDIA H100 80GB HBM3": "h100",
  "NVIDIA H200": "h200",
}


def peak_flops(kind: str) -> float | None:
  """The bfloat16 FLOP/s of a device of this kind; None where they are not known."""
  name = KINDS.get(kind)
  return None if name is None else chips.CHIPS[name].flops


def costs_of(
  stage: Stage,
  state: TrainState,
  frozen: PyTree,
  batch: Mapping[str, Any],
) -> dict[str, counting.Cost]:
  """What a call of each part of a stage costs at full length, by the name of the part."""
  values = dict(batch)
  costs = {}
  for part in stage.parts:
    inputs = tuple(values[name] for name in part.reads)
    kinds = (
      programs.kinds_of_state(state),
      programs.label("frozen", frozen),
      programs.label("other", inputs),
    )
    weights = [kind in ("params", "frozen") for kind in jax.tree.leaves(kinds)]
    traced = jax.jit(part.function, keep_unused=True).trace(state, frozen, *inputs)
    costs[part.name] = counting.count(traced.jaxpr, weights, part.trips)
    if part.writes != "state":
      values[part.writes] = jax.eval_shape(part.function, state, frozen, *inputs)
  return costs


def seconds_at_peak(stage: Stage, state: TrainState, frozen: PyTree) -> Mapping[str, float] | None:
  """The seconds of each part of a step at the peak of the devices that compute it.

  Rows are of full length. What is computed once more for the backward pass is no work of the model.
  None where the peak is not known, and nothing is then counted.
  """
  peak = peak_flops(jax.devices()[0].device_kind)
  if peak is None:
    return None
  costs = costs_of(stage, state, frozen, stage.batch)
  mesh = jax.sharding.get_abstract_mesh()
  rate = peak * (1 if mesh.empty else mesh.size)
  return {name: (cost.flops - cost.recomputed_flops) / rate for name, cost in costs.items()}
