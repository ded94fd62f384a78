"""What `instructjax eval` says: at once, how long it takes, and never silent for long."""

import re
import time

import pytest

from instructjax.evals import announce, run, subject
from instructjax.evals.tasks import Completion, Generate, Item, Metric, Suite, Task
from instructjax.settings import reading


def test_a_long_step_is_not_silent(capsys):
  with announce.speaking(every=0.02) as voice, announce.stepping(voice, "sft: batch", 4) as show:
    time.sleep(0.1)  # one long batch: nothing is called meanwhile
    show(3, "  about 2 minutes left")
    time.sleep(0.1)
  lines = capsys.readouterr().err.splitlines()
  assert sum("sft: batch  0/4" in line for line in lines) >= 2
  assert sum("sft: batch  3/4  about 2 minutes left  (0:00:00)" in line for line in lines) >= 2
  time.sleep(0.05)
  assert not capsys.readouterr().err  # the thread has ended


def test_no_line_is_further_than_15_seconds_from_the_next():
  assert announce.EVERY <= 15


def test_the_rest_is_estimated_by_cost_without_the_first_batch():
  """By hand: 30 s for the batches of cost 1 and 2 are 10 s a unit, and 4 units are left."""
  costs = [5, 1, 2, 3, 1]
  assert announce.seconds_left(costs, [100, 10, 20]) == pytest.approx(40)
  assert announce.seconds_left(costs, [100]) == pytest.approx(100 / 5 * 7)  # all there is
  assert announce.seconds_left(costs, [-1, -1]) is None  # their answers were there
  assert announce.seconds_left(costs, [-1, 50, 20]) == pytest.approx(20 / 2 * 4)
  assert announce.seconds_left([1], [3]) == 0


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (3, "less than a minute"),
    (61, "about 1 minute"),
    (89, "about 1 minute"),
    (100, "about 2 minutes"),
    (3600, "about 60 minutes"),
  ],
)
def test_minutes(seconds, text):
  assert announce.about(seconds) == text


class Clock:
  """Time that passes in `wait` alone."""

  now = 0.0

  def monotonic(self):
    return self.now

  def wait(self, seconds):
    self.now += seconds


def test_an_evaluation_begins_with_its_size_and_then_its_minutes(tmp_path, capsys, monkeypatch):
  clock = Clock()
  monkeypatch.setattr(run.time, "monotonic", clock.monotonic)

  def answer(batch, number):
    clock.wait(120)
    return [Completion("yes", 1, True) for _ in batch.entries]

  real = subject.open_subject
  monkeypatch.setattr(subject, "open_subject", lambda *args: real(*args)._replace(answer=answer))
  config = reading.override(
    reading.load("eval"), [("model.dtype", "float32"), ("tokens", "64"), ("baseline", "a")]
  )
  items = [Item(str(i), {"text": "x" * 20}) for i in range(6)]
  task = Task(
    "plain/one",
    items,
    lambda item: [Generate(item.data["text"], 4)],
    lambda items, replies: [{"n": 1.0} for _ in items],
    (Metric("n"),),
  )

  def open_suite(config):
    # Before anything was read, the models and the suites stand there.
    said = capsys.readouterr().err
    assert said.splitlines()[0].startswith("eval: models a=, b=; suites plain; reading")
    return Suite("plain", [task])

  run.main(config, tmp_path, {"a": "", "b": ""}, {"plain": open_suite})
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == (
    "eval: 6 items of 1 tasks, 12 answers of 2 models; the first batch of a model tells the minutes"
  )
  # A row is a batch: five batches of two minutes are left after the first, and six of the other.
  expectation = re.compile(
    r"eval: a: about (\d+) minutes by its first batch.*; about (\d+) minutes"
  )
  (minutes,) = [match.groups() for line in lines if (match := expectation.match(line))]
  assert minutes == ("10", "22")
  assert any(line.startswith("eval: b: about 10 minutes by its first batch") for line in lines)

  run.main(config, tmp_path, {"a": "", "b": ""}, {"plain": lambda config: Suite("plain", [task])})
  assert "12 answers of 2 models, all of which are there" in capsys.readouterr().err
