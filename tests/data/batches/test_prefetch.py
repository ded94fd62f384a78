import threading
import time

import jax
import pytest

from instructjax.data.batches import prefetch


def test_the_same_batches_in_order_and_none_too_many():
  numbers = []
  with prefetch.ahead(lambda i: numbers.append(i) or 10 * i, stop=5) as feed:
    assert [feed.batch(i) for i in range(5)] == [0, 10, 20, 30, 40]
  assert numbers == [0, 1, 2, 3, 4]


def test_only_so_many_are_made_ahead_and_in_another_thread():
  numbers, ready = [], threading.Semaphore(0)

  def batches(i):
    numbers.append((i, threading.current_thread() is threading.main_thread()))
    ready.release()
    return i

  with prefetch.ahead(batches, stop=99, depth=2) as feed:
    feed.batch(7)
    for _ in range(3):
      assert ready.acquire(timeout=60)
    assert numbers == [(7, False), (8, False), (9, False)]
    assert not ready.acquire(timeout=0.05)
  assert len(numbers) == 3


def test_any_batch_may_be_asked_for():
  with prefetch.ahead(lambda i: i, stop=9) as feed:
    assert [feed.batch(i) for i in (3, 4, 0, 8, 8, 20)] == [3, 4, 0, 8, 8, 20]


def test_an_error_comes_where_its_batch_is_asked_for():
  def batches(i):
    if i == 2:
      raise ValueError("bad row")
    return i

  with prefetch.ahead(batches, stop=9) as feed:
    assert [feed.batch(0), feed.batch(1)] == [0, 1]
    with pytest.raises(ValueError, match="bad row") as error:
      feed.batch(2)
    assert error.value.__notes__ == ["while batch 2 was made"]
    assert error.traceback[-1].name == "batches"


def test_leaving_ends_the_thread_whatever_happened():
  before = threading.active_count()
  with pytest.raises(KeyboardInterrupt), prefetch.ahead(lambda i: i, stop=9) as feed:
    feed.batch(0)
    raise KeyboardInterrupt
  assert threading.active_count() == before


def test_the_mesh_is_that_of_the_caller(mesh):
  with prefetch.ahead(lambda i: jax.sharding.get_mesh(), stop=2) as feed:
    assert feed.batch(0) == feed.batch(1) == mesh


def test_waiting_counts_from_the_second_batch_on():
  slow = lambda i: time.sleep(0.05)
  with prefetch.ahead(slow, stop=3, depth=0) as feed:
    feed.batch(0)
    assert feed.waited() == 0
    feed.batch(1)
    assert feed.waited() >= 0.05
