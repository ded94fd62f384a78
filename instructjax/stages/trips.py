"""How often the loops of a rollout run for rows of given lengths: the loop is played on a host."""

from __future__ import annotations

import itertools
import math

import numpy as np

from instructjax import rollout, sharding
from instructjax.rollout import Sampling
from instructjax.types import Int


def of_rollout(
  cfg: Sampling,
  columns: int,
  prompt: Int[np.ndarray, " B"],
  response: Int[np.ndarray, " Bn"],
) -> dict[str, float]:
  """Returns the mean trips of the loops of `rollout.sample`, by name.

  `prompt` and `response` are the tokens of each prompt, in `columns` columns, and of each row. A
  loop inside another counts for each of its calls.
  """
  shards = sharding.batch_shards()
  shape = rollout.shape_of(cfg, len(prompt), columns)
  sizes = rollout.sizes_of(shape.slots)
  devices = [
    _Device(*lengths)
    for lengths in zip(np.split(prompt, shards), np.split(response, shards), strict=True)
  ]
  refills = steps = chunks = blocks = tail_steps = 0
  size = shape.slots

  def step() -> None:
    nonlocal blocks
    longest_prompt = max(device.longest_prompt() for device in devices)
    longest_response = max(device.longest_response() for device in devices)
    # The newest column may stand anywhere in its block.
    in_ring = min(longest_response / shape.block + 1, math.ceil(shape.response / shape.block))
    blocks += math.ceil(longest_prompt / shape.block) + in_ring
    for device in devices:
      device.step()

  while any(device.waiting or len(device.left) > sizes[1] for device in devices):
    refills += 1
    columns_read = max(device.refill(shape, cfg.n) for device in devices)
    chunks += math.ceil(max(columns_read, 1) / shape.chunk)
    while not any(device.is_due(shape, cfg.n) for device in devices):
      if all(not device.waiting and len(device.left) <= sizes[1] for device in devices):
        break
      step()
      steps += 1
  for size, half in itertools.pairwise(sizes[1:]):
    assert all(len(device.left) <= size for device in devices)
    while any(len(device.left) > half for device in devices):
      step()
      tail_steps += 1
  tails = max(len(sizes) - 2, 1)
  return {
    "refills": refills,
    "chunks": chunks / refills,
    "steps": steps / refills,
    "tail": tail_steps / tails,
    "blocks": blocks / max(steps + tail_steps, 1),
  }


class _Device:
  """The queue and the slots of one device."""

  def __init__(self, prompt: np.ndarray, response: np.ndarray):
    order = np.argsort(-prompt, kind="stable")
    n = len(response) // len(prompt)
    self.waiting = [(prompt[i], response[i * n : (i + 1) * n]) for i in order.tolist()]
    self.left = np.zeros(0, np.int64)  # tokens that each live row still has to sample
    self.sampled = np.zeros(0, np.int64)
    self.prompt = np.zeros(0, np.int64)

  def takable(self, shape: rollout.Shape, n: int) -> int:
    free = shape.slots - len(self.left)
    return min(free // n, shape.group, len(self.waiting))

  def is_due(self, shape: rollout.Shape, n: int) -> bool:
    whole_group = min(len(self.waiting), shape.group)
    return bool(self.waiting) and self.takable(shape, n) >= whole_group

  def refill(self, shape: rollout.Shape, n: int) -> int:
    """Takes a group; returns the length of its longest prompt."""
    count = self.takable(shape, n)
    group, self.waiting = self.waiting[:count], self.waiting[count:]
    for length, responses in group:
      self.left = np.concatenate([self.left, responses])
      self.sampled = np.concatenate([self.sampled, np.zeros(n, np.int64)])
      self.prompt = np.concatenate([self.prompt, np.full(n, length)])
    self._sample(len(self.left) - count * n)
    return int(max((length for length, _ in group), default=0))

  def step(self) -> None:
    self._sample(0)

  def _sample(self, first: int) -> None:
    """Samples a token in every slot from number `first` on, and drops the rows that end."""
    self.left[first:] -= 1
    self.sampled[first:] += 1
    live = self.left > 0
    self.left, self.sampled, self.prompt = self.left[live], self.sampled[live], self.prompt[live]

  def longest_prompt(self) -> int:
    return int(self.prompt.max(initial=0))

  def longest_response(self) -> int:
    return int(self.sampled.max(initial=0))
