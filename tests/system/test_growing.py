"""Files of lines in a bucket: written by time, asked for, lost by nobody."""

from types import SimpleNamespace

import pytest

from instructjax.errors import UserError
from instructjax.system import growing, places


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test sets; `now[1]` is how long a look at it takes."""
  now = [0.0, 0.0]

  def monotonic():
    now[0] += now[1]
    return now[0]

  monkeypatch.setattr(growing, "time", SimpleNamespace(monotonic=monotonic))
  return now


@pytest.fixture
def path(bucket):
  return places.directory("gs://bucket/run/metrics.jsonl")


def test_a_file_on_a_disk_is_written_at_once(tmp_path):
  growing.append(tmp_path / "a", "1\n")
  growing.append(tmp_path / "a", "2\n")
  assert (tmp_path / "a").read_text() == "1\n2\n"


def test_lines_wait_for_their_time(bucket, clock, path):
  path.write_text("0\n")
  for number in range(1, 100):
    growing.append(path, f"{number}\n")
    clock[0] += 1.0
  # At second 30, and then 30 seconds after each write.
  assert len(bucket.writes) == 1 + 3
  assert path.read_text().split() == [str(number) for number in range(92)]
  growing.flush(path.parent)
  assert path.read_text().split() == [str(number) for number in range(100)]
  growing.flush(path.parent)
  assert len(bucket.writes) == 1 + 4  # nothing was waiting


def test_a_long_file_is_written_more_rarely(bucket, clock, path):
  growing.append(path, "1\n")
  clock[:] = [30.0, 1.0]  # the write takes a second
  growing.append(path, "2\n")
  clock[1] = 0.0
  clock[0] += 99.0
  growing.append(path, "3\n")
  assert len(bucket.writes) == 1
  clock[0] += 1.0
  growing.append(path, "4\n")
  assert len(bucket.writes) == 2


def test_what_is_forgotten_is_read_again(bucket, clock, path):
  growing.append(path, "1\n")
  growing.forget(path.parent)
  path.write_text("a\n")
  growing.append(path, "2\n")
  growing.flush(path)
  assert path.read_text() == "a\n2\n"


def test_folders_with_one_beginning_are_two(bucket, clock, path):
  other = places.directory("gs://bucket/run2/metrics.jsonl")
  growing.append(path, "1\n")
  growing.append(other, "1\n")
  growing.flush(path.parent)
  assert bucket.writes == [str(path)]


def test_a_bucket_that_is_out_of_reach_loses_no_line(bucket, clock, path, monkeypatch, capsys):
  growing.append(path, "1\n")

  def fail(self, content):
    raise ConnectionError("no route")

  with monkeypatch.context() as broken:
    broken.setattr(type(path), "write_bytes", fail)
    clock[0] = 31.0
    growing.append(path, "2\n")
    assert "note: gs://bucket/run/metrics.jsonl: cannot be reached (no route)" in (
      capsys.readouterr().err
    )
    growing.append(path, "3\n")
    assert not capsys.readouterr().err  # it is tried again after a while
    with pytest.raises(UserError, match="cannot be reached"):
      growing.flush(path)
  clock[0] = 62.0
  growing.append(path, "4\n")
  assert path.read_text().split() == ["1", "2", "3", "4"]
