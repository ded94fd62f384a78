"""One process at a time for a directory, and no directory that stays locked for nobody."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from instructjax.errors import UserError
from instructjax.system import lock, places

HOLD = """
import sys
import threading
from pathlib import Path
from instructjax.system import lock, places

with lock.holding(Path(sys.argv[1])):
  print("held", flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """Starts a process that holds a directory until it is killed."""
  processes = []

  def start(folder):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
      [sys.executable, "-c", HOLD, str(folder)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=env,
    )
    processes.append(process)
    assert process.stdout.readline() == b"held\n"
    return process

  yield start
  for process in processes:
    process.kill()
    process.communicate()


def test_the_second_process_is_told_who_is_first_and_a_killed_one_holds_nothing(holder, tmp_path):
  folder = tmp_path / "run"
  first = holder(folder)
  message = (
    rf"run: process {first.pid} on {socket.gethostname()} is writing here; wait until it ends"
  )
  with pytest.raises(UserError, match=message) as refusal, lock.holding(folder):
    pass
  assert "\n" not in str(refusal.value)
  first.send_signal(signal.SIGKILL)
  first.wait()
  assert (folder / lock.NAME).exists()  # what the killed one left holds nobody up
  with lock.holding(folder):
    assert json.loads((folder / lock.NAME).read_text())["pid"] == os.getpid()
  assert not (folder / lock.NAME).exists()


def test_a_command_and_what_it_calls_hold_it_together(tmp_path):
  with lock.holding(tmp_path):
    with lock.holding(tmp_path):
      pass
    assert (tmp_path / lock.NAME).exists()
  assert not (tmp_path / lock.NAME).exists()


def test_a_directory_that_was_made_for_nothing_goes_again(tmp_path):
  with pytest.raises(UserError), lock.holding(tmp_path / "a" / "b"):
    raise UserError("the data are wrong")
  assert not (tmp_path / "a").exists()
  with lock.holding(tmp_path / "a"):
    (tmp_path / "a" / "file").write_text("")
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
  (tmp_path / "empty").mkdir()  # somebody else's
  with lock.holding(tmp_path / "empty"):
    pass
  assert (tmp_path / "empty").is_dir()


@pytest.fixture
def without_locks(monkeypatch):
  """A file system, as of some clusters, that knows no locks: the content of the file counts."""

  def refuse(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", refuse)


def dead_pid():
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  return process.pid


def test_without_locks_a_living_process_and_another_machine_hold_and_a_dead_one_does_not(
  without_locks, tmp_path
):
  path = tmp_path / lock.NAME
  here = socket.gethostname()
  for pid, host in ((os.getppid(), here), (dead_pid(), "another-machine")):
    path.write_text(json.dumps({"pid": pid, "host": host}))
    message = f"process {pid} on {host} is writing here"
    with pytest.raises(UserError, match=message), lock.holding(tmp_path):
      pass
    assert path.exists()
  for content in (json.dumps({"pid": dead_pid(), "host": here}), "", '{"pid": 1'):
    path.write_text(content)
    with lock.holding(tmp_path):
      assert json.loads(path.read_text()) == {"pid": os.getpid(), "host": here}
    assert not path.exists()


# --- in a bucket, where the file of a living process changes ---


@pytest.fixture
def place(bucket):
  return places.directory("gs://bucket/run")


def beat(pid, number):
  return json.dumps({"pid": pid, "host": "elsewhere", "beat": number})


def test_a_directory_in_a_bucket_is_held_and_given_up(place):
  with lock.holding(place):
    assert json.loads((place / lock.NAME).read_text())["pid"] == os.getpid()
    with lock.holding(place):
      pass
    assert (place / lock.NAME).exists()
  assert not (place / lock.NAME).exists()


def test_a_holder_in_a_bucket_writes_its_file_anew(place, monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.001)
  second_beat = threading.Event()
  write = lock._write_beat

  def write_and_tell(path, number):
    write(path, number)
    if number == 2:
      second_beat.set()

  monkeypatch.setattr(lock, "_write_beat", write_and_tell)
  with lock.holding(place):
    assert second_beat.wait(60)
  assert not (place / lock.NAME).exists()


def test_a_living_holder_in_a_bucket_is_left_alone(place, monkeypatch):
  (place / lock.NAME).write_text(beat(7, 1))
  waited = []

  def sleep(seconds):
    waited.append(seconds)
    (place / lock.NAME).write_text(beat(7, 1 + len(waited) // 2))

  monkeypatch.setattr(lock.time, "sleep", sleep)
  message = "run: process 7 on elsewhere is writing here; wait until"
  with pytest.raises(UserError, match=message), lock.holding(place):
    pass
  assert waited == [20.0, 20.0]
  assert (place / lock.NAME).exists()


def test_a_dead_holder_in_a_bucket_is_passed_over(place, monkeypatch, capsys):
  (place / lock.NAME).write_text(beat(7, 1))
  waited = []
  monkeypatch.setattr(lock.time, "sleep", waited.append)
  with lock.holding(place):
    assert json.loads((place / lock.NAME).read_text())["pid"] == os.getpid()
  assert waited == [20.0] * 3
  assert "waiting 60 s to see whether it still runs" in capsys.readouterr().err


def test_a_dead_holder_of_this_machine_is_passed_over_at_once(place, monkeypatch):
  ended = subprocess.Popen([sys.executable, "-c", ""])
  ended.wait()
  (place / lock.NAME).write_text(json.dumps({"pid": ended.pid, "host": socket.gethostname()}))
  monkeypatch.setattr(lock.time, "sleep", pytest.fail)
  with lock.holding(place):
    pass
