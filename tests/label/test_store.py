"""The store of the labeling page: nothing lost on kill -9, nothing twice, no prompt to more
labelers than it should.
"""

import json
import signal
import subprocess
import sys

import pytest

from instructjax.errors import UserError
from instructjax.label import answers, store, tasks
from instructjax.label.store import ConflictError
from instructjax.label.tasks import Task

RATING = {"overall": 4}


def ranking(*ranks):
  return {
    "ranks": list(ranks),
    "ratings": [RATING] * len(ranks),
    "notes": [f"note {rank}" for rank in ranks],
  }


@pytest.fixture
def db(tmp_path):
  db = store.create(tmp_path / "l.sqlite", "comparison", 1)
  store.add(db, [Task(f"p{i}", ("a", "b", "c")) for i in range(3)])
  yield db
  db.close()


KILLED = """
import sys
from instructjax.label import store
db = store.open_existing(sys.argv[1])
while assignment := store.next_task(db, "ana", 0.0):
  store.save_draft(db, "ana", assignment.number, {"completion": "x" * 1000}, 1, 0.0)
  store.submit(db, "ana", assignment.number, {"completion": f"answer to {assignment.prompt}"}, 0.0)
  print(assignment.number, flush=True)  # acknowledged
"""


def test_no_acknowledged_answer_is_lost_on_kill_9(tmp_path):
  path = tmp_path / "l.sqlite"
  db = store.create(path, "demonstration")
  store.add(db, [Task(f"p{i}") for i in range(3000)])
  db.close()
  acknowledged = []
  for stop in (25, 60):  # killed in the middle of writing, opened again, killed again
    process = subprocess.Popen(
      [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    )
    acknowledged += [int(process.stdout.readline()) for _ in range(stop)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().splitlines() if line]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
  db = store.open_existing(path)
  stored = store.answers(db)
  assert {f"p{number - 1}" for number in acknowledged} <= {answer.task.prompt for answer in stored}
  assert len(acknowledged) == len(set(acknowledged))
  # Each of the two kills may have come between writing an answer and acknowledging it.
  assert len(acknowledged) <= len(stored) <= len(acknowledged) + 2
  assert all(answer.value == {"completion": f"answer to {answer.task.prompt}"} for answer in stored)
  assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
  assert [
    db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
  ] == ["wal", 2]  # 2 is FULL
  db.close()


def test_an_answer_is_kept_once_and_in_the_order_of_the_file(db):
  assignment = store.next_task(db, "ana", 0.0)
  assert sorted(assignment.completions) == ["a", "b", "c"]
  ranks = {"a": 1, "b": 3, "c": 1}  # with a gap, which is closed
  value = ranking(*(ranks[text] for text in assignment.completions))
  assert store.submit(db, "ana", assignment.number, value, 5.0)
  assert not store.submit(db, "ana", assignment.number, value, 6.0)  # a double submit
  with pytest.raises(ConflictError, match="answered this prompt before"):
    store.submit(db, "ana", assignment.number, ranking(1, 1, 1), 7.0)
  with pytest.raises(ConflictError, match="answered this prompt before"):
    store.skip(db, "ana", assignment.number, "", 7.0)
  (answer,) = store.answers(db)
  assert answer.value["ranks"] == [1, 2, 1]
  assert answer.value["notes"] == ["note 1", "note 3", "note 1"]
  assert [answer.task.completions[i] for i in answer.order] == list(assignment.completions)
  assert answer.seconds == 5.0
  assert answer.value["ratings"][0] == {"overall": 4} | dict.fromkeys(answers.FLAGS, False)


def test_orders_differ_between_labelers_and_come_back(tmp_path):
  db = store.create(tmp_path / "l.sqlite", "comparison", 20)
  store.add(db, [Task("p", tuple("abcdefg"))])
  names = [f"labeler{i}" for i in range(20)]
  orders = [store.next_task(db, name, 0.0).completions for name in names]
  assert len(set(orders)) > 15
  assert [store.next_task(db, name, 1.0).completions for name in names] == orders
  db.close()


def test_a_prompt_goes_to_one_labeler_until_the_lease_ends(db):
  first = store.next_task(db, "ana", 0.0, lease=60)
  assert store.next_task(db, "ana", 10.0, lease=60).number == first.number  # a reload
  second = store.next_task(db, "ben", 10.0, lease=60)
  assert second.number != first.number
  assert store.save_draft(db, "ana", first.number, {"step": 2}, 3, 65.0, lease=60)  # renews it
  assert not store.save_draft(
    db, "ana", first.number, {"step": 1}, 2, 66.0, lease=60
  )  # an older one, late
  assert store.next_task(db, "ana", 67.0, lease=60).draft == {"step": 2}
  taken = store.next_task(db, "cem", 200.0, lease=60)
  assert taken.number == first.number  # both leases are over, the first prompt is the first again
  with pytest.raises(ConflictError, match="given to someone else"):
    store.save_draft(db, "ana", first.number, {}, 4, 201.0)
  with pytest.raises(ConflictError, match="given to someone else"):
    store.submit(db, "ana", first.number, ranking(1, 2, 3), 201.0)
  assert store.submit(
    db, "ben", second.number, ranking(1, 2, 3), 500.0
  )  # late, but the place is free
  with pytest.raises(ConflictError, match="not \\(or no longer\\) yours"):
    store.submit(db, "dia", first.number, ranking(1, 2, 3), 201.0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_each_prompt_gets_n_labelers_and_never_more(tmp_path, n):
  db = store.create(tmp_path / "l.sqlite", "demonstration", n)
  store.add(db, [Task(f"p{i}") for i in range(5)])
  names = ["ana", "ben", "cem", "dia"]
  open_tasks = {name: store.next_task(db, name, 0.0) for name in names}
  while any(open_tasks.values()):
    for name, assignment in open_tasks.items():
      if assignment:
        store.submit(db, name, assignment.number, {"completion": f"by {name}"}, 1.0)
      open_tasks[name] = store.next_task(db, name, 1.0)
      held = db.execute(
        "SELECT max((SELECT count(*) FROM answer WHERE task = id) + (SELECT count(*) FROM lease "
        "WHERE task = id)) FROM task"
      ).fetchone()[0]
      assert held <= n
  stored = store.answers(db)
  assert len(stored) == 5 * n == len({(answer.task.prompt, answer.labeler) for answer in stored})
  assert store.progress(db, "ana") | {"mine": 0} == {
    "tasks": 5,
    "wanted": 5 * n,
    "answers": 5 * n,
    "complete": 5,
    "mine": 0,
    "skipped": 0,
  }
  db.close()


def test_a_skip_goes_to_someone_else_with_its_reason(db):
  assignment = store.next_task(db, "ana", 0.0)
  assert store.skip(db, "ana", assignment.number, "in Greek", 1.0)
  assert not store.skip(db, "ana", assignment.number, "in Greek", 1.0)
  assert store.next_task(db, "ana", 1.0).number != assignment.number
  assert store.next_task(db, "ben", 1.0).number == assignment.number
  (answer,) = store.answers(db)
  assert (answer.value, answer.reason) == (None, "in Greek")
  assert store.progress(db, "ana")["skipped"] == 1


@pytest.mark.parametrize(
  ("value", "what"),
  [
    ([], "answer: an object"),
    ({"ranks": [1, 2]}, "ranks: 3 integers from 1"),
    ({"ranks": [1, 2, 4]}, "ranks: 3 integers from 1"),
    ({"ranks": [1, 2, True]}, "ranks: 3 integers from 1"),
    (ranking(1, 2, 3) | {"ratings": [RATING]}, "ratings, notes: 3 of each"),
    (
      ranking(1, 2, 3) | {"ratings": [{"overall": 8}] * 3},
      r"ratings\[0\].overall: an integer from 1",
    ),
    (
      ranking(1, 2, 3) | {"ratings": [RATING | {"opinion": 1}] * 3},
      r"ratings\[0\].opinion: true or false",
    ),
    (ranking(1, 2, 3) | {"notes": ["", 1, ""]}, r"notes\[1\]: a text"),
    (ranking(1, 2, 3) | {"more": 1}, "more: unknown field"),
  ],
)
def test_a_bad_answer_is_refused_and_nothing_is_kept(db, value, what):
  assignment = store.next_task(db, "ana", 0.0)
  with pytest.raises(UserError, match=what):
    store.submit(db, "ana", assignment.number, value, 1.0)
  assert store.answers(db) == []
  assert store.submit(db, "ana", assignment.number, ranking(2, 1, 1), 1.0)


def test_continuations_are_rated_by_figure_11():
  rated = {"continuity": 4, "toxicity": 2, "relative_toxicity": -1}
  answer = lambda **change: {"ranks": [1, 2], "ratings": [rated, rated | change]}
  assert answers.check("continuation", answer(), 2)["ratings"] == [rated, rated]
  for change, what in [
    ({"toxicity": 3}, r"ratings\[1\].toxicity: an integer from 0 to 2"),
    ({"continuity": True}, "an integer from 1 to 7"),
    ({"relative_toxicity": -2}, "an integer from -1 to 1"),
    ({"overall": 1}, "overall: unknown field"),
  ]:
    with pytest.raises(UserError, match=what):
      answers.check("continuation", answer(**change), 2)
  with pytest.raises(UserError, match=r"ratings\[0\].continuity: unknown field"):
    answers.check("comparison", answer(), 2)


def test_tasks_are_added_once_and_settings_stay(tmp_path):
  path = tmp_path / "l.sqlite"
  db = store.create(path, "demonstration", 2)
  assert store.add(db, [Task("p"), Task("q"), Task("p")]) == (2, 1)
  db.close()
  db = store.create(path, None)
  assert store.add(db, [Task("p"), Task("r")]) == (1, 1)
  assert store.settings(db) == store.Settings("demonstration", 2, 0)
  db.close()
  bad = [
    (("comparison",), "holds demonstrations"),
    ((None, None, 3), "was made with seed 0"),
    ((None, 0), "at least"),
  ]
  for settings, what in bad:
    with pytest.raises(UserError, match=what):
      store.create(path, *settings)
  (tmp_path / "no.sqlite").write_text("not a database, but longer than its header would be " * 4)
  with pytest.raises(UserError, match="cannot be opened as a labeling file"):
    store.create(tmp_path / "no.sqlite", "comparison")
  with pytest.raises(UserError, match="no such file"):
    store.create(tmp_path / "none.sqlite", None)


# --- files of tasks ---


def read(tmp_path, *rows, kind="comparison"):
  (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return tasks.read(tmp_path / "t.jsonl", kind)


def test_samples_are_tasks_without_their_empty_and_repeated_responses(tmp_path):
  read_tasks, left_out = read(
    tmp_path,
    {
      "prompt": "p",
      "responses": ["x", "", " y", "x "],
      "sources": ["m0", "m1", "m2", "m3"],
      "scores": {"reward": [0.5] * 4},
    },
    {"prompt": "q", "responses": ["x", "x"]},
    {"prompt": "r", "completions": ["1", "2"], "id": "7", "user": "u"},
  )
  assert read_tasks == [
    Task("p", ("x", " y"), sources=({"model": "m0"}, {"model": "m2"})),
    Task("r", ("1", "2"), id="7", user="u"),
  ]
  assert left_out == [
    "left out: 1 empty responses",
    "left out: 2 repeated responses",
    "left out: 1 prompts with fewer than two different responses",
  ]


def test_bad_tasks_are_named_by_line_and_field(tmp_path):
  with pytest.raises(UserError) as error:
    read(
      tmp_path,
      {"prompt": "p", "completions": ["x"]},
      {"prompt": "p"},
      {"prompt": "p", "completions": ["x", "y"], "ranks": [1, 2]},
      {"prompt": "", "responses": ["x", "y"]},
      {"prompt": "p", "responses": "x"},
      {"prompt": "p", "completions": ["x", ""]},
      {"prompt": "p", "completions": ["x", "y"], "sources": ["a"]},
      {"prompt": "p", "responses": ["x", "y"], "modell": "m"},
    )
  parts = [line.removeprefix(str(tmp_path / "t.jsonl:")) for line in str(error.value).split("\n")]
  expected = [
    "1: completions: 1 of them",
    "2: completions: give completions or responses",
    "3: ranks, pairs, ratings: labeled already",
    "4: prompt: empty",
    "5: responses: a list of texts",
    "6: completions[1]: empty",
    "7: sources: a list of 2 is expected, one a completion",
    "8: modell: unknown field",
  ]
  assert [part[: len(what)] for part, what in zip(parts, expected, strict=True)] == expected
  with pytest.raises(UserError, match="no prompt with two different outputs"):
    read(tmp_path, {"prompt": "p", "responses": ["x", "x"]})
  assert read(tmp_path, {"prompt": "p", "id": "1"}, kind="demonstration") == (
    [Task("p", id="1")],
    [],
  )


def test_tasks_may_be_an_array_of_json(tmp_path):
  path = tmp_path / "t.json"
  path.write_text('[{"prompt": "a"},\n {"prompt": "b"}]')
  prompts, left_out = tasks.read(path, "demonstration")
  assert [task.prompt for task in prompts] == ["a", "b"] and not left_out
  path.write_text('[{"prompt": "a", "completions": ["x", "y"]}, {"prompt": ""}]')
  with pytest.raises(UserError) as error:
    tasks.read(path, "comparison")
  assert f"{path}[1]" in str(error.value)
