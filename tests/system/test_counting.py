"""What a long command says of how far it has come."""

import time

import pytest

from instructjax.system import counting


@pytest.fixture
def clock(monkeypatch):
  """A clock that a test sets by hand."""

  class Clock:
    now = 100.0

  monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
  return Clock


def count_to(clock, seconds, things):
  clock.now = 100.0
  with counting.counting("check x", "rows") as show:
    for second in range(1, seconds + 1):
      clock.now = 100.0 + second
      show(second * things)


def test_a_line_every_ten_seconds_with_the_rate(clock, capsys):
  count_to(clock, 25, 500)
  assert capsys.readouterr().err.splitlines() == [
    "check x: 5,000 rows, 500 a second",
    "check x: 10,000 rows, 500 a second",
  ]


def test_a_quick_command_says_nothing(clock, capsys):
  count_to(clock, 9, 500)
  assert capsys.readouterr() == ("", "")


def test_on_a_terminal_one_line_is_rewritten_and_taken_away(clock, capsys, monkeypatch):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True)
  count_to(clock, 1, 500)
  assert capsys.readouterr().err == ""
  count_to(clock, 3, 500)
  clear = counting.CLEAR
  expected = [f"{clear}check x: {n:,} rows, 500 a second" for n in (1000, 1500)]
  assert capsys.readouterr().err == "".join(expected) + clear
