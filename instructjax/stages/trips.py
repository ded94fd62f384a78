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
  sizes = rollout.sizes_of(shape.slots, cfg.halvings)
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
    number = steps + tail_steps
    blocks += blocks_in_use(shape, longest_prompt, longest_response, number)
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


def blocks_in_use(shape: rollout.Shape, prompt: int, response: int, step: int) -> int:
  """Blocks of the cache in which some row holds something, in step number `step`.

  `prompt` and `response` are the tokens of the longest live rows. Prompts end at one column, and a
  step writes into the column after the one before it, in a ring.
  """
  of_prompt = np.arange(shape.prompt - prompt, shape.prompt)
  of_response = shape.prompt + (step - np.arange(response)) % shape.response
  columns = np.concatenate([of_prompt, of_response])
  return len(np.unique(columns // shape.block))


class _Device:
  """The queue and the slots of one device."""

  def __init__(self, prompt: np.ndarray, response: np.ndarray):
    order = np.argsort(-prompt, kind="stable")
    self.shortest = int(prompt[order[-1]])
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
    """Takes a group; returns the length of the longest prompt that is read.

    Every device reads one where any of them takes a group: the next of its queue, or the last.
    """
    count = self.takable(shape, n)
    longest = int(self.waiting[0][0]) if self.waiting else self.shortest
    group, self.waiting = self.waiting[:count], self.waiting[count:]
    for length, responses in group:
      self.left = np.concatenate([self.left, responses])
      self.sampled = np.concatenate([self.sampled, np.zeros(n, np.int64)])
      self.prompt = np.concatenate([self.prompt, np.full(n, length)])
    self._sample(len(self.left) - count * n)
    return longest

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
