"""One SQLite file holds a labeling round: its prompts, who works on what, drafts and answers.

An answer is one transaction with synchronous=FULL: what was acknowledged is on the disk,
whatever is killed afterwards. The key of an answer is (task, labeler), so sending it twice
changes nothing.  A prompt is given to at most `per_prompt` labelers: finished answers and live
leases count; a lease that expires, or a skip, frees its place.  The outputs of a prompt are
shown to each labeler in an order of their own, which is recorded; answers are kept in the order
of the file.

While a process has the file open, SQLite keeps two more beside it (-wal and -shm).  After a kill
they hold the last answers: keep them with the file; the next opening folds them in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.label.tasks import Answer, Task, canonical, checked, present

APPLICATION = 0x494A4C42  # "IJLB" in the header of the file
SCHEMA = 1
LEASE = 1800.0  # seconds without a change after which a prompt may be given to someone else
TABLES = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE task (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE lease (
  task INTEGER NOT NULL REFERENCES task(id), labeler TEXT NOT NULL, shown TEXT NOT NULL, draft TEXT NOT NULL DEFAULT '{}',
  seq INTEGER NOT NULL DEFAULT 0, started REAL NOT NULL, expires REAL NOT NULL, PRIMARY KEY (task, labeler));
CREATE TABLE answer (
  task INTEGER NOT NULL REFERENCES task(id), labeler TEXT NOT NULL, value TEXT, reason TEXT NOT NULL DEFAULT '',
  shown TEXT NOT NULL, started REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (task, labeler));
"""
# What keeps others from a place of a task: answers of theirs (skips are not), and leases of theirs
# that live.
TAKEN = """
(SELECT count(*) FROM answer a WHERE a.task = task.id AND a.labeler <> :me AND a.value IS NOT NULL)
+ (SELECT count(*) FROM lease l WHERE l.task = task.id AND l.labeler <> :me AND l.expires > :now)
"""


class ConflictError(UserError):
  """The place of this answer is taken: by another labeler, or by another answer of the same one."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the file was made for: "demonstration" or "comparison", labelers of each prompt, the seed
  of the orders.
  """

  kind: str
  per_prompt: int
  seed: int


@dataclasses.dataclass(frozen=True)
class Given:
  """A task as one labeler sees it: outputs in the order shown, and the draft left there."""

  number: int
  prompt: str
  completions: tuple[str, ...]
  draft: dict[str, Any]
  seq: int


def create(
  path: str | Path, kind: str | None, per_prompt: int | None = None, seed: int | None = None
) -> sqlite3.Connection:
  """Opens a labeling file, or makes it where there is none; a given `per_prompt` replaces the one
  before.

  Raises UserError where it cannot be opened, is another kind of file or was made with other
  settings.
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
    db.execute("BEGIN IMMEDIATE")
    if not db.execute("PRAGMA user_version").fetchone()[0]:
      for statement in TABLES.split(";\n"):
        db.execute(statement)
      made = {"kind": kind, "per_prompt": per_prompt or 1, "seed": seed or 0}
      db.executemany(
        "INSERT INTO setting VALUES (?, ?)", [(name, str(value)) for name, value in made.items()]
      )
      db.execute(f"PRAGMA application_id = {APPLICATION}")
      db.execute(f"PRAGMA user_version = {SCHEMA}")
    now = settings(db)
    if kind not in (None, now.kind):
      raise UserError(f"{path} holds {now.kind}s, --kind={kind}: name another --db")
    if seed not in (None, now.seed):
      raise UserError(f"{path} was made with seed {now.seed}, --seed={seed}: name another --db")
    if per_prompt:
      db.execute("UPDATE setting SET value = ? WHERE name = 'per_prompt'", [str(per_prompt)])
  return db


def open_existing(path: str | Path) -> sqlite3.Connection:
  """Opens a labeling file that is there."""
  if not Path(path).is_file():
    raise UserError(
      f"{path}: no such file; `instructjax label --tasks=FILE --kind=KIND --db={path}` makes it"
    )
  db = _connect(Path(path), new=False)
  settings(db)
  return db


def _connect(path: Path, *, new: bool) -> sqlite3.Connection:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(
      path, isolation_level=None, timeout=10, check_same_thread=False
    )  # one thread at a time uses it
    owner, version = (
      db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (owner != APPLICATION or version != SCHEMA) and not (empty and new):
      db.close()
      raise UserError(
        f"{path}: not a labeling file of this version (mark {owner:#x} version {version}, expected "
        f"{APPLICATION:#x} "
        f"version {SCHEMA}); name another --db"
      )
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
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


def settings(db: sqlite3.Connection) -> Settings:
  found = dict(db.execute("SELECT name, value FROM setting"))
  return Settings(found["kind"], int(found["per_prompt"]), int(found["seed"]))


def add(db: sqlite3.Connection, tasks: Iterable[Task]) -> tuple[int, int]:
  """Adds those that are not there yet, in their order.  Returns (added, known before)."""
  with db:
    db.execute("BEGIN IMMEDIATE")
    counts = [_insert(db, task) for task in tasks]
  return sum(counts), len(counts) - sum(counts)


def _insert(db: sqlite3.Connection, task: Task) -> int:
  body = _dump(present(task))
  row = db.execute("INSERT OR IGNORE INTO task (digest, body) VALUES (?, ?)", [digest(task), body])
  return row.rowcount


def digest(task: Task) -> str:
  """Names a task by what makes it one: its id, prompt and outputs."""
  return hashlib.sha256(_dump([task.id, task.prompt, list(task.completions)]).encode()).hexdigest()


def put(db: sqlite3.Connection, answers: Sequence[Answer], now: float) -> tuple[int, int]:
  """Adds answers given elsewhere and their tasks; one that is there stays.  Returns (added, known
  before).
  """
  added = 0
  kind = settings(db).kind
  with db:
    db.execute("BEGIN IMMEDIATE")
    for answer in answers:
      _insert(db, answer.task)
      number = db.execute("SELECT id FROM task WHERE digest = ?", [digest(answer.task)]).fetchone()[
        0
      ]
      value = answer.value and checked(kind, answer.value, len(answer.task.completions))
      shown = answer.shown or tuple(range(len(answer.task.completions)))
      row = db.execute(
        "INSERT OR IGNORE INTO answer VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
          number,
          answer.labeler,
          value and _dump(value),
          answer.reason,
          _dump(shown),
          now - answer.seconds,
          now,
        ],
      )
      added += row.rowcount
  return added, len(answers) - added


# --- what a labeler does ---


def next_task(
  db: sqlite3.Connection, labeler: str, now: float, lease: float = LEASE
) -> Given | None:
  """The task this labeler left, or the first that has a place; None where there is none (now)."""
  known = settings(db)
  with db:
    db.execute("BEGIN IMMEDIATE")
    row = db.execute(
      "SELECT id, body FROM task WHERE NOT EXISTS (SELECT 1 FROM answer a WHERE a.task = task.id "
      "AND a.labeler = :me) "
      f"AND {TAKEN} < :n ORDER BY NOT EXISTS (SELECT 1 FROM lease l WHERE l.task = task.id AND "
      "l.labeler = :me), id LIMIT 1",
      {"me": labeler, "now": now, "n": known.per_prompt},
    ).fetchone()
    if row is None:
      return None
    number, task = row[0], _task(row[1])
    order = list(range(len(task.completions)))
    random.Random(f"{known.seed}/{digest(task)}/{labeler}").shuffle(order)
    db.execute(
      "INSERT INTO lease (task, labeler, shown, started, expires) VALUES (?, ?, ?, ?, ?) "
      "ON CONFLICT (task, labeler) DO UPDATE SET expires = excluded.expires",
      [number, labeler, _dump(order), now, now + lease],
    )
    shown, draft, seq = db.execute(
      "SELECT shown, draft, seq FROM lease WHERE task = ? AND labeler = ?", [number, labeler]
    ).fetchone()
  return Given(
    number,
    task.prompt,
    tuple(task.completions[i] for i in json.loads(shown)),
    json.loads(draft),
    seq,
  )


def save_draft(
  db: sqlite3.Connection,
  labeler: str,
  number: int,
  draft: dict[str, Any],
  seq: int,
  now: float,
  lease: float = LEASE,
) -> bool:
  """Keeps a draft and renews the lease; an older one (by `seq`) than what is there changes nothing.

  Raises ConflictError where the lease expired and the place is taken.
  """
  with db:
    db.execute("BEGIN IMMEDIATE")
    _place(db, labeler, number, now)
    row = db.execute(
      "UPDATE lease SET draft = ?, seq = ?, expires = ? WHERE task = ? AND labeler = ? AND seq < ?",
      [_dump(draft), seq, now + lease, number, labeler, seq],
    )
  return row.rowcount == 1


def submit(db: sqlite3.Connection, labeler: str, number: int, value: Any, now: float) -> bool:
  """Keeps an answer, given in the order shown.  False where the same one is there already.

  Raises UserError for a bad answer, ConflictError where the place is taken or another answer was
  given.
  """
  known = settings(db)
  with db:
    db.execute("BEGIN IMMEDIATE")
    before = db.execute(
      "SELECT value, shown FROM answer WHERE task = ? AND labeler = ?", [number, labeler]
    ).fetchone()
    shown, started = (before[1], now) if before else _place(db, labeler, number, now)
    order = json.loads(shown)
    text = _dump(canonical(checked(known.kind, value, len(order)), order))
    if before:
      _same(before[0], text)
      return False
    _finish(db, labeler, number, (text, "", shown, started, now))
  return True


def skip(db: sqlite3.Connection, labeler: str, number: int, reason: str, now: float) -> bool:
  """Leaves a task to someone else.  False where it was skipped before."""
  with db:
    db.execute("BEGIN IMMEDIATE")
    before = db.execute(
      "SELECT value FROM answer WHERE task = ? AND labeler = ?", [number, labeler]
    ).fetchone()
    if before:
      _same(before[0], None)
      return False
    shown, started = _place(db, labeler, number, now)
    _finish(db, labeler, number, (None, reason, shown, started, now))
  return True


def _same(before: str | None, now: str | None) -> None:
  if before != now:
    raise ConflictError("you answered this prompt before, in another way; the first answer stays")


def _finish(db: sqlite3.Connection, labeler: str, number: int, rest: tuple) -> None:
  db.execute("INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?, ?)", [number, labeler, *rest])
  db.execute("DELETE FROM lease WHERE task = ? AND labeler = ?", [number, labeler])


def _place(db: sqlite3.Connection, labeler: str, number: int, now: float) -> tuple[str, float]:
  """(order shown, start) of the labeler's lease.  Raises ConflictError where it has none, or has
  lost its place.
  """
  row = db.execute(
    "SELECT shown, started FROM lease WHERE task = ? AND labeler = ?", [number, labeler]
  ).fetchone()
  if row is None:
    raise ConflictError(
      "this prompt is not (or no longer) yours; load the page again for the next one"
    )
  taken = db.execute(
    f"SELECT {TAKEN} FROM task WHERE id = :task", {"me": labeler, "now": now, "task": number}
  ).fetchone()[0]
  if taken >= settings(db).per_prompt:
    raise ConflictError(
      "this prompt was given to someone else while you were away; load the page again for the next "
      "one"
    )
  return row


# --- what comes out ---


def progress(db: sqlite3.Connection, labeler: str | None = None) -> dict[str, int]:
  """tasks; wanted and given answers; tasks that have all they want; and one labeler's own answers
  and skips.
  """
  one = lambda query, *values: db.execute(query, values).fetchone()[0]
  tasks, n = one("SELECT count(*) FROM task"), settings(db).per_prompt
  answered = "SELECT task FROM answer WHERE value IS NOT NULL GROUP BY task HAVING count(*) >= ?"
  return {
    "tasks": tasks,
    "wanted": tasks * n,
    "answers": one("SELECT count(*) FROM answer WHERE value IS NOT NULL"),
    "complete": one(f"SELECT count(*) FROM ({answered})", n),
    "mine": one("SELECT count(*) FROM answer WHERE value IS NOT NULL AND labeler = ?", labeler),
    "skipped": one("SELECT count(*) FROM answer WHERE value IS NULL AND labeler = ?", labeler),
  }


def tasks(db: sqlite3.Connection) -> list[Task]:
  return [_task(body) for (body,) in db.execute("SELECT body FROM task ORDER BY id")]


def answers(db: sqlite3.Connection) -> list[Answer]:
  """Every answer and skip, by task and labeler."""
  rows = db.execute(
    "SELECT body, labeler, value, reason, shown, started, at FROM answer JOIN task ON task.id = "
    "answer.task "
    "ORDER BY task.id, labeler"
  )
  return [
    Answer(
      _task(body),
      labeler,
      value and json.loads(value),
      reason,
      tuple(json.loads(shown)),
      at - started,
    )
    for body, labeler, value, reason, shown, started, at in rows
  ]


def _task(body: str) -> Task:
  fields: dict[str, Any] = json.loads(body)
  fields = {
    name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
  }
  fields["sources"] = tuple(
    {"model": one} if isinstance(one, str) else one for one in fields.get("sources", ())
  )
  return Task(**fields)


def _dump(value: Any) -> str:
  return json.dumps(value, ensure_ascii=False, sort_keys=True)
