"""What a user sees of the progress of a stage: lines, a bar, or nothing."""

import pytest

from instructjax.runs import progress


def run_through(stage, steps):
  """Shows every step of a stage, as the training loop does."""
  with progress.progressing(stage, 0, steps) as shown:
    for step in range(1, steps + 1):
      shown.show(step, {"loss": 0.5, "grad/norm": 1.0})


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
  seconds = iter(range(0, 10_000, 4))
  monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))
  run_through("a", 9)
  lines = capsys.readouterr().err.splitlines()
  assert lines[-1].startswith("a 9/9  ")
  assert "left" in lines[0]
  assert "loss 0.500" in lines[0]
  assert "norm" not in lines[0]


def test_a_quick_stage_shows_nothing(capsys):
  run_through("a", 3)
  assert capsys.readouterr().err == ""


def test_a_stage_with_nothing_left_to_do_shows_nothing(capsys, monkeypatch):
  monkeypatch.setattr(progress, "QUIET", -1.0)
  with progress.progressing("a", 3, 3) as shown:
    shown.show(3, {})
  assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(capsys, monkeypatch):
  monkeypatch.setattr(progress, "QUIET", -1.0)
  monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
  run_through("warm", 3)
  screen = capsys.readouterr().err
  assert "warm" in screen
  assert "3/3" in screen


@pytest.mark.parametrize(
  ("rate", "text"), [(0.0, ""), (12.34, "12.3 steps/s"), (1.0, "1.0 steps/s"), (0.5, "2.0 s/step")]
)
def test_a_rate_is_spelled_as_steps_a_second_or_seconds_a_step(rate, text):
  assert progress.speed(rate) == text


def test_a_duration_has_hours_minutes_and_seconds():
  assert progress.duration(3723.9) == "1:02:03"
