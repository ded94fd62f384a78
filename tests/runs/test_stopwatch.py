"""The parts of a step: each takes from the end of the one before it, whoever waits for what."""

import pytest

from instructjax.runs import stopwatch as module
from instructjax.runs.stopwatch import stopwatch


class Result:
  """A result that is there at a moment of the clock below."""

  def __init__(self, ready):
    self.ready = ready


@pytest.fixture
def clock(monkeypatch):
  """A clock that goes on when somebody waits for a result, or by hand."""
  now = [0.0]

  def wait(result):
    now[0] = max(now[0], result.ready)

  monkeypatch.setattr(module.jax, "block_until_ready", wait)
  monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
  return now


def dispatch(watch, **ready):
  watch.begin()
  for name, moment in ready.items():
    watch.mark(name, Result(moment))


def test_parts_follow_each_other(clock):
  watch = stopwatch()
  dispatch(watch, rollout=3.0, scoring=4.0, update=9.0)
  assert watch.seconds() == {"time/rollout": 3.0, "time/scoring": 1.0, "time/update": 5.0}


def test_a_step_that_was_dispatched_early_begins_at_the_end_of_the_one_before(clock):
  watch = stopwatch()
  dispatch(watch, rollout=3.0, update=9.0)
  dispatch(watch, rollout=11.0, update=12.0)
  assert watch.seconds() == {"time/rollout": 3.0, "time/update": 6.0}
  assert clock[0] == 9.0  # nobody has waited for the second step
  assert watch.seconds() == {"time/rollout": 2.0, "time/update": 1.0}


def test_a_step_that_was_dispatched_late_begins_then(clock):
  watch = stopwatch()
  dispatch(watch, update=9.0)
  watch.seconds()
  clock[0] = 20.0  # an evaluation
  dispatch(watch, update=25.0)
  assert watch.seconds() == {"time/update": 5.0}


def test_what_the_host_does_between_two_parts_belongs_to_the_second(clock):
  watch = stopwatch()
  watch.begin()
  watch.mark("rollout", Result(3.0))
  watch.settle()
  clock[0] = 10.0  # a reward from outside
  watch.mark("scoring", Result(11.0))
  assert watch.seconds() == {"time/rollout": 3.0, "time/scoring": 8.0}


def test_settling_keeps_the_times_of_the_step_before(clock):
  """A step that waits on the host would otherwise be over before the other is looked at."""
  watch = stopwatch()
  dispatch(watch, rollout=3.0, update=9.0)
  dispatch(watch, rollout=12.0)
  watch.settle()
  clock[0] = 30.0
  assert watch.seconds() == {"time/rollout": 3.0, "time/update": 6.0}
  watch.mark("update", Result(31.0))
  assert watch.seconds() == {"time/rollout": 3.0, "time/update": 19.0}


def test_without_steps_there_are_no_parts(clock):
  assert stopwatch().seconds() == {}
