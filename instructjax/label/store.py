"""One SQLite file holds a labeling round: its tasks, who works on what, drafts and answers.

An answer is one transaction with synchronous=FULL: an answer that was acknowledged is on the
disk, whatever is killed afterwards. The key of an answer is (task, labeler), so sending it twice
changes nothing.

A task is given to at most `per_prompt` labelers, who each take one of its places. Finished
answers and live leases of others take a place; a lease that expires, or a skip, frees it. The
outputs of a task are shown to each labeler in an order of their own, which is recorded; answers
are stored in the order of the task.

While a process has the file open, SQLite keeps two more beside it (-wal and -shm). After a kill
they hold the last answers, so they must stay with the file; the next opening folds them in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from instructjax.errors import UserError
from instructjax.label.answers import Answer, check, in_task_order
from instructjax.label.tasks import Task, as_fields
from instructjax.system import jsons

APPLICATION = 0x494A4C42  # "IJLB", the mark of our files in the header of SQLite
SCHEMA = 1
LEASE = 1800.0  # seconds without a change until a task may be given to someone else
# Times are seconds since the epoch. `value` of an answer is NULL for a skip, `shown` the order of
# the outputs as JSON, and `seq` the number that the page gave to the latest draft.
TABLES = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE task (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE lease (
  task INTEGER NOT NULL REFERENCES task(id),
  labeler TEXT NOT NULL,
  shown TEXT NOT NULL,
  draft TEXT NOT NULL DEFAULT '{}',
  seq INTEGER NOT NULL DEFAULT 0,
  started REAL NOT NULL,
  expires REAL NOT NULL,
  PRIMARY KEY (task, labeler));
CREATE TABLE answer (
  task INTEGER NOT NULL REFERENCES task(id),
  labeler TEXT NOT NULL,
  value TEXT,
  reason TEXT NOT NULL DEFAULT '',
  shown TEXT NOT NULL,
  started REAL NOT NULL,
  at REAL NOT NULL,
  PRIMARY KEY (task, labeler));
"""
# The places of a task that others have taken: their answers (skips are none) and live leases.
TAKEN = """
(SELECT count(*) FROM answer a
  WHERE a.task = task.id AND a.labeler <> :me AND a.value IS NOT NULL)
+ (SELECT count(*) FROM lease l
  WHERE l.task = task.id AND l.labeler <> :me AND l.expires > :now)
"""
# The first task that the labeler has not answered and that has a place. False sorts before true,
# so a task that the labeler has begun comes first.
NEXT = f"""
SELECT id, body FROM task
WHERE NOT EXISTS (SELECT 1 FROM answer a WHERE a.task = task.id AND a.labeler = :me)
  AND {TAKEN} < :per_prompt
ORDER BY NOT EXISTS (SELECT 1 FROM lease l WHERE l.task = task.id AND l.labeler = :me), id
LIMIT 1
"""
# A task that comes again keeps its first order, draft and start.
LEASE_TASK = """
INSERT INTO lease (task, labeler, shown, started, expires) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (task, labeler) DO UPDATE SET expires = excluded.expires
"""


class ConflictError(UserError):
  """The place of this answer is taken, by another labeler or by another answer of the same one."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings that a file was made with; only `per_prompt` can change later."""

  kind: str  # one of tasks.KINDS
  per_prompt: int  # the number of labelers of each task
  seed: int  # of the orders in which outputs are shown


@dataclasses.dataclass(frozen=True)
class Assignment:
  """A task as one labeler sees it."""

  number: int
  prompt: str
  completions: tuple[str, ...]  # in the order shown
  draft: dict[str, Any]  # what the page saved last; {} at the first sight
  seq: int  # the number of that draft


# --- the file ---


def create(
  path: str | Path,
  kind: str | None,
  per_prompt: int | None = None,
  seed: int | None = None,
) -> Connection:
  """Opens a labeling file, or makes it where there is none.

  Args:
    path: The file.
    kind: The kind of its tasks; None takes that of an existing file.
    per_prompt: The labelers of each task, which replaces that of an existing file; None keeps it
      (1 in a new file).
    seed: The seed of the orders; None takes that of an existing file (0 in a new file).

  Raises:
    UserError: the file cannot be opened, is not a labeling file or was made with other settings.
  """
  path = Path(path)
  if not path.is_file() and kind is None:
    raise UserError(
      f"{path}: no such file; give --kind=demonstration, comparison or continuation and --tasks to "
      "make it"
    )
  if per_prompt is not None and per_prompt < 1:
    raise UserError(f"--per-prompt={per_prompt}: at least one labeler sees a prompt")
  db = _connect(path, new=True)
  with db:
    # The write lock comes first: two processes that start at once must not both create tables.
    db.execute("BEGIN IMMEDIATE")
    if not _scalar(db, "PRAGMA user_version"):
      values = {"kind": kind, "per_prompt": per_prompt or 1, "seed": seed or 0}
      _make_tables(db, values)
    current = settings(db)
    if kind not in (None, current.kind):
      raise UserError(f"{path} holds {current.kind}s, --kind={kind}: name another --db")
    if seed not in (None, current.seed):
      raise UserError(f"{path} was made with seed {current.seed}, --seed={seed}: name another --db")
    if per_prompt:
      db.execute("UPDATE setting SET value = ? WHERE name = 'per_prompt'", [str(per_prompt)])
  return db


def open_existing(path: str | Path) -> Connection:
  """Opens a labeling file; raises UserError where there is none."""
  if not Path(path).is_file():
    raise UserError(
      f"{path}: no such file; `instructjax label --tasks=FILE --kind=KIND --db={path}` makes it"
    )
  db = _connect(Path(path), new=False)
  settings(db)
  return db


def _connect(path: Path, *, new: bool) -> Connection:
  """Opens a labeling file or, where `new` allows it, an empty one."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The server may call from a thread of its own, but one thread at a time uses the connection.
    # isolation_level=None leaves it to us to begin transactions.
    db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
    mark = _scalar(db, "PRAGMA application_id")
    version = _scalar(db, "PRAGMA user_version")
    empty = not _scalar(db, "SELECT count(*) FROM sqlite_master")
    if (mark != APPLICATION or version != SCHEMA) and not (empty and new):
      db.close()
      raise UserError(
        f"{path}: not a labeling file of this version (mark {mark:#x} version {version}, expected "
        f"{APPLICATION:#x} version {SCHEMA}); name another --db"
      )
    # With a write-ahead log, readers such as `export` do not wait for the page. It needs shared
    # memory, which network disks lack; SQLite then stays in another mode without an error.
    mode = _scalar(db, "PRAGMA journal_mode = WAL")
    if mode != "wal":
      raise UserError(
        f"{path}: this disk has no shared memory for SQLite (journal '{mode}'); put it on a local "
        "disk"
      )
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
  except (OSError, sqlite3.Error) as error:
    raise UserError(
      f"{path}: cannot be opened as a labeling file ({error}); name another --db"
    ) from error
  return db


def _make_tables(db: Connection, values: dict[str, Any]) -> None:
  """Makes the tables of an empty file, with the values of its settings."""
  # `executescript` would commit the open transaction, so the statements run one by one.
  for statement in TABLES.split(";\n"):
    db.execute(statement)
  rows = [(name, str(value)) for name, value in values.items()]
  db.executemany("INSERT INTO setting VALUES (?, ?)", rows)
  db.execute(f"PRAGMA application_id = {APPLICATION}")
  db.execute(f"PRAGMA user_version = {SCHEMA}")


def settings(db: Connection) -> Settings:
  """Returns the settings that the file was made with."""
  values = dict(db.execute("SELECT name, value FROM setting"))
  return Settings(
    values["kind"],
    per_prompt=int(values["per_prompt"]),
    seed=int(values["seed"]),
  )


# --- what comes in ---


def add(db: Connection, tasks: Iterable[Task]) -> tuple[int, int]:
  """Adds the tasks that are not in the file yet, in their order.

  Returns:
    The number of tasks that were added, and of those that were there before.
  """
  with db:
    db.execute("BEGIN IMMEDIATE")
    are_new = [_insert(db, task) for task in tasks]
  return sum(are_new), len(are_new) - sum(are_new)


def put(
  db: Connection,
  answers: Sequence[Answer],
  now: float,
) -> tuple[int, int]:
  """Adds answers from elsewhere, with their tasks; an answer that is in the file stays as it is.

  Returns:
    The number of answers that were added, and of those that were there before.
  """
  added = 0
  kind = settings(db).kind
  with db:
    db.execute("BEGIN IMMEDIATE")
    for answer in answers:
      task = answer.task
      _insert(db, task)
      number = _scalar(db, "SELECT id FROM task WHERE digest = ?", digest(task))
      value = None
      if answer.value:
        checked = check(kind, answer.value, len(task.completions))
        value = _dump(checked)
      # An answer without an order is taken as shown in the order of the task.
      order = answer.order or tuple(range(len(task.completions)))
      started = now - answer.seconds
      cursor = db.execute(
        "INSERT OR IGNORE INTO answer VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
          number,
          answer.labeler,
          value,
          answer.reason,
          _dump(order),
          started,
          now,
        ],
      )
      added += cursor.rowcount
  return added, len(answers) - added


def _insert(db: Connection, task: Task) -> bool:
  """Adds a task; returns whether it is new."""
  cursor = db.execute(
    "INSERT OR IGNORE INTO task (digest, body) VALUES (?, ?)",
    [digest(task), _dump(as_fields(task))],
  )
  return cursor.rowcount == 1


def digest(task: Task) -> str:
  """Returns the name of a task: a digest of its id, prompt and outputs, which make it the same."""
  identity = _dump([task.id, task.prompt, list(task.completions)])
  return hashlib.sha256(identity.encode()).hexdigest()


# --- what a labeler does ---


def next_task(
  db: Connection,
  labeler: str,
  now: float,
  lease: float = LEASE,
) -> Assignment | None:
  """Leases the task that the labeler has begun, or else the first one that has a place.

  Args:
    db: The labeling file.
    labeler: The id of the labeler.
    now: The time in seconds since the epoch.
    lease: The seconds for which the place is the labeler's.

  Returns:
    The task as this labeler sees it; None where there is none at the moment.
  """
  current = settings(db)
  with db:
    db.execute("BEGIN IMMEDIATE")
    query = {"me": labeler, "now": now, "per_prompt": current.per_prompt}
    row = db.execute(NEXT, query).fetchone()
    if row is None:
      return None
    number, body = row
    task = _task(body)
    # The order depends on the task and the labeler alone, so a new start of the page keeps it.
    order = list(range(len(task.completions)))
    random.Random(f"{current.seed}/{digest(task)}/{labeler}").shuffle(order)
    db.execute(LEASE_TASK, [number, labeler, _dump(order), now, now + lease])
    saved_order, draft, seq = db.execute(
      "SELECT shown, draft, seq FROM lease WHERE task = ? AND labeler = ?", [number, labeler]
    ).fetchone()
  completions = tuple(task.completions[i] for i in json.loads(saved_order))
  return Assignment(number, task.prompt, completions, json.loads(draft), seq)


def save_draft(
  db: Connection,
  labeler: str,
  number: int,
  draft: dict[str, Any],
  seq: int,
  now: float,
  lease: float = LEASE,
) -> bool:
  """Saves the draft of an answer and renews the lease.

  Drafts may arrive in another order than they were sent. One with a `seq` that is not above that
  of the saved draft changes nothing.

  Returns:
    Whether the draft was saved.

  Raises:
    ConflictError: the lease expired and the place is taken.
  """
  with db:
    db.execute("BEGIN IMMEDIATE")
    _require_place(db, labeler, number, now)
    cursor = db.execute(
      "UPDATE lease SET draft = ?, seq = ?, expires = ? WHERE task = ? AND labeler = ? AND seq < ?",
      [_dump(draft), seq, now + lease, number, labeler, seq],
    )
  return cursor.rowcount == 1


def submit(
  db: Connection,
  labeler: str,
  number: int,
  value: Any,
  now: float,
) -> bool:
  """Stores an answer, whose lists are in the order shown.

  Returns:
    Whether it is new; False where the same answer is in the file already.

  Raises:
    UserError: the answer is invalid.
    ConflictError: the place is taken, or the labeler gave another answer before.
  """
  kind = settings(db).kind
  with db:
    db.execute("BEGIN IMMEDIATE")
    before = db.execute(
      "SELECT value, shown FROM answer WHERE task = ? AND labeler = ?", [number, labeler]
    ).fetchone()
    if before:
      stored, order = before
      _require_same(stored, _stored_value(kind, value, order))
      return False
    order, started = _require_place(db, labeler, number, now)
    text = _stored_value(kind, value, order)
    _insert_answer(db, labeler, number, (text, "", order, started, now))
  return True


def skip(
  db: Connection,
  labeler: str,
  number: int,
  reason: str,
  now: float,
) -> bool:
  """Leaves a task to someone else.

  Returns:
    Whether the skip is new; False where the labeler skipped the task before.

  Raises:
    ConflictError: the place is taken, or the labeler answered the task before.
  """
  with db:
    db.execute("BEGIN IMMEDIATE")
    before = db.execute(
      "SELECT value FROM answer WHERE task = ? AND labeler = ?", [number, labeler]
    ).fetchone()
    if before:
      _require_same(before[0], None)
      return False
    order, started = _require_place(db, labeler, number, now)
    _insert_answer(db, labeler, number, (None, reason, order, started, now))
  return True


def _stored_value(
  kind: str,
  value: Any,
  order: str,
) -> str:
  """Returns the stored text of an answer whose value is in `order`, a list as JSON."""
  outputs = json.loads(order)
  # The page asks for a rating of each output.
  checked = check(kind, value, len(outputs), rated=True)
  return _dump(in_task_order(checked, outputs))


def _require_same(before: str | None, now: str | None) -> None:
  """Raises ConflictError where an answer differs from the one that the labeler gave before."""
  if before != now:
    raise ConflictError("you answered this prompt before, in another way; the first answer stays")


def _require_place(
  db: Connection,
  labeler: str,
  number: int,
  now: float,
) -> tuple[str, float]:
  """Returns the order shown and the start of the labeler's lease of a task.

  An expired lease is good as long as nobody else has taken the place.

  Raises:
    ConflictError: the labeler has no lease of this task, or has lost the place.
  """
  row = db.execute(
    "SELECT shown, started FROM lease WHERE task = ? AND labeler = ?", [number, labeler]
  ).fetchone()
  if row is None:
    raise ConflictError(
      "this prompt is not (or no longer) yours; load the page again for the next one"
    )
  query = {"me": labeler, "now": now, "task": number}
  (taken,) = db.execute(f"SELECT {TAKEN} FROM task WHERE id = :task", query).fetchone()
  if taken >= settings(db).per_prompt:
    raise ConflictError(
      "this prompt was given to someone else while you were away; load the page again for the next "
      "one"
    )
  return row


def _insert_answer(
  db: Connection,
  labeler: str,
  number: int,
  columns: tuple,
) -> None:
  """Stores an answer or a skip and ends the lease; `columns` are those after task and labeler."""
  db.execute("INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?, ?)", [number, labeler, *columns])
  db.execute("DELETE FROM lease WHERE task = ? AND labeler = ?", [number, labeler])


# --- what comes out ---


def progress(db: Connection, labeler: str | None = None) -> dict[str, int]:
  """Returns counts for the page: of the round, and of one labeler's answers and skips.

  `wanted` is the number of answers when all is done, `complete` the tasks that have all theirs.
  """
  per_prompt = settings(db).per_prompt
  tasks = _scalar(db, "SELECT count(*) FROM task")
  answered = "SELECT count(*) FROM answer WHERE value IS NOT NULL"
  skipped = "SELECT count(*) FROM answer WHERE value IS NULL"
  complete = "SELECT task FROM answer WHERE value IS NOT NULL GROUP BY task HAVING count(*) >= ?"
  return {
    "tasks": tasks,
    "wanted": tasks * per_prompt,
    "answers": _scalar(db, answered),
    "complete": _scalar(db, f"SELECT count(*) FROM ({complete})", per_prompt),
    "mine": _scalar(db, f"{answered} AND labeler = ?", labeler),
    "skipped": _scalar(db, f"{skipped} AND labeler = ?", labeler),
  }


def has_incomplete_task(db: Connection, labeler: str) -> bool:
  """Returns whether some task that this labeler has not answered still needs answers."""
  query = """
  SELECT count(*) FROM task
  WHERE NOT EXISTS (SELECT 1 FROM answer a WHERE a.task = task.id AND a.labeler = ?)
    AND (SELECT count(*) FROM answer a WHERE a.task = task.id AND a.value IS NOT NULL) < ?
  """
  return bool(_scalar(db, query, labeler, settings(db).per_prompt))


def tasks(db: Connection) -> list[Task]:
  """Returns all tasks in the order in which they were added."""
  return [_task(body) for (body,) in db.execute("SELECT body FROM task ORDER BY id")]


def answers(db: Connection) -> list[Answer]:
  """Returns every answer and skip, by task and labeler."""
  rows = db.execute(
    "SELECT body, labeler, value, reason, shown, started, at "
    "FROM answer JOIN task ON task.id = answer.task ORDER BY task.id, labeler"
  )
  result = []
  for body, labeler, stored, reason, order, started, at in rows:
    value = json.loads(stored) if stored else None
    answer = Answer(
      _task(body),
      labeler,
      value,
      reason,
      order=tuple(json.loads(order)),
      seconds=at - started,
    )
    result.append(answer)
  return result


def _task(body: str) -> Task:
  """Returns a task from its stored fields."""
  fields: dict[str, Any] = json.loads(body)
  # JSON has no tuples.
  for name, value in fields.items():
    if isinstance(value, list):
      fields[name] = tuple(value)
  fields["sources"] = tuple(_origin(source) for source in fields.get("sources", ()))
  return Task(**fields)


def _origin(source: str | dict[str, Any]) -> dict[str, Any]:
  """Returns the origin of an output, which may be stored as the bare name of a model."""
  return {"model": source} if isinstance(source, str) else source


def _scalar(db: Connection, query: str, *values: Any) -> Any:
  """Returns the first value of the first row of a query."""
  return db.execute(query, values).fetchone()[0]


def _dump(value: Any) -> str:
  # Sorted keys make equal values equal texts, which digests and `_require_same` rely on.
  return jsons.text(value, sort_keys=True)
