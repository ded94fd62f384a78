"""A trace of some steps: what the devices did, and when, as XProf and TensorBoard open it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import jax

from instructjax.errors import UserError
from instructjax.system.places import AnyPath


class Profile(NamedTuple):
  """The steps that are traced, and the folder that the trace goes to."""

  first: int
  steps: int
  folder: AnyPath

  @property
  def last(self) -> int:
    return self.first + self.steps - 1


class Tracing(NamedTuple):
  """begins(step), ends(step): whether the trace does so there; start(), stop(): it does.

  `stop` does nothing where no trace is running, so that it may stand at the end of everything.
  """

  begins: Callable[[int], bool]
  ends: Callable[[int], bool]
  start: Callable[[], None]
  stop: Callable[[], None]


def read(text: str, folder: AnyPath) -> Profile:
  """Reads START:STEPS, such as 100:5 for steps 100 to 104.

  Raises:
    UserError: where it is nothing of that kind.
  """
  first, _, steps = text.partition(":")
  numbers = [part for part in (first, steps) if part.isascii() and part.isdigit()]
  if len(numbers) < 2 or max(map(len, numbers)) > 9 or not int(first) or not int(steps):
    raise UserError(
      f"--profile={text[:40]}: write START:STEPS, such as 100:5 for steps 100 to 104; both are "
      "whole numbers from 1"
    )
  return Profile(int(first), int(steps), folder)


def tracing(profile: Profile | None, stage: str, start: int, steps: int) -> Tracing:
  """Returns the trace of a stage that goes from step `start` to step `steps`.

  Where the first of its steps was done before the run went on, nothing is traced, and this is said.

  Raises:
    UserError: where the stage has no such steps.
  """
  is_running = False
  if profile is not None and profile.last > steps:
    raise UserError(
      f"--profile={profile.first}:{profile.steps}: {stage} has {steps} steps; choose steps among "
      "them"
    )
  if profile is not None and profile.first <= start:
    text = f"--profile={profile.first}:{profile.steps}: {stage} goes on after step {start}"
    print(f"{text}, so nothing is traced", file=sys.stderr, flush=True)
    profile = None

  def begins(step: int) -> bool:
    return profile is not None and step == profile.first

  def ends(step: int) -> bool:
    return is_running and profile is not None and step == profile.last

  def start_trace() -> None:
    nonlocal is_running
    assert profile is not None
    jax.profiler.start_trace(str(profile.folder))
    is_running = True

  def stop_trace() -> None:
    nonlocal is_running
    if profile is None or not is_running:
      return
    is_running = False
    jax.profiler.stop_trace()
    if jax.process_index() == 0:
      print(f"{stage}: the trace is in {profile.folder}", file=sys.stderr, flush=True)

  return Tracing(begins, ends, start_trace, stop_trace)
