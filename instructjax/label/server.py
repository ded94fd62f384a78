"""The labeling page: five static files and five JSON calls over the store.

One thread serves all labelers: a call is a few milliseconds of SQLite, most of it waiting for
the disk.
"""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from instructjax.errors import UserError
from instructjax.label import store
from instructjax.label.guard import LARGEST, guard, guarded
from instructjax.label.store import ConflictError

LABELER = re.compile(r"[\w.@+-]{1,64}")
FILES = {
  "/": ("page.html", "text/html"),
  "/page.css": ("page.css", "text/css"),
  "/page.js": ("page.js", "text/javascript"),
  "/rate.js": ("rate.js", "text/javascript"),
  "/rank.js": ("rank.js", "text/javascript"),
}
REASONS = 500  # characters of the reason of a skip


class Options(NamedTuple):
  """What the page is told at the start; `labelers` are the ids that may sign in, empty for any."""

  instructions: str
  labelers: frozenset[str] = frozenset()
  lease: float = store.LEASE
  clock: Callable[[], float] = time.time


def instructions(kind: str, path: str | None = None) -> str:
  """The labelers' instructions as text: of a file, or ours for this kind of task."""
  if path is None:
    return (
      resources.files("instructjax.label")
      .joinpath(f"instructions_{kind}.md")
      .read_text(encoding="utf-8")
    )
  try:
    return Path(path).read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    raise UserError(f"--instructions={path}: cannot be read as UTF-8 text ({error})") from None


def application(db: sqlite3.Connection, options: Options) -> Starlette:
  """The app without its guard."""
  calls = {"start": _start, "next": _next, "draft": _draft, "answer": _answer, "skip": _skip}
  routes = [Route(path, _file(*file)) for path, file in FILES.items()]
  routes += [
    Route(f"/api/{name}", _call(db, options, act), methods=["POST"]) for name, act in calls.items()
  ]
  return Starlette(routes=routes)


def _file(name: str, kind: str) -> Callable:
  content = resources.files("instructjax.label").joinpath(name).read_bytes()

  async def send(request: Request) -> Response:
    return Response(content, media_type=f"{kind}; charset=utf-8")

  return send


def _call(db: sqlite3.Connection, options: Options, act: Callable) -> Callable:
  """An endpoint out of `act(db, options, labeler, body) -> answer`; errors become {"error": text}
  with a status.
  """

  async def run(request: Request) -> Response:
    try:
      body = await _body(request)
      return JSONResponse(act(db, options, _labeler(body.get("labeler"), options), body))
    except ConflictError as error:
      return JSONResponse({"error": str(error)}, status_code=409)
    except UserError as error:
      return JSONResponse({"error": str(error)}, status_code=400)
    except sqlite3.Error as error:
      print(f"error: not saved: {error}", file=sys.stderr, flush=True)
      return JSONResponse({"error": f"not saved: {error}"}, status_code=503)

  return run


async def _body(request: Request) -> dict[str, Any]:
  content = b""
  async for chunk in request.stream():
    content += chunk
    if len(content) > LARGEST:
      raise UserError(f"a request may have {LARGEST} bytes; shorten the text")
  try:
    found = json.loads(content)
  except (ValueError, RecursionError):
    raise UserError("the request is not JSON") from None
  if not isinstance(found, dict):
    raise UserError("the request is not a JSON object")
  try:  # what cannot be stored and sent back: infinities, half a surrogate pair
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
  except (ValueError, RecursionError) as error:
    raise UserError(f"the request holds what JSON or UTF-8 cannot ({error})") from None
  return found


def _labeler(name: Any, options: Options) -> str:
  if not isinstance(name, str) or not LABELER.fullmatch(name):
    raise UserError("labeler: 1 to 64 letters, digits or . _ @ + - are expected")
  if options.labelers and name not in options.labelers:
    raise UserError(f"labeler: '{name}' is not on the list; ask whoever started this page")
  return name


def _whole(body: dict[str, Any], name: str) -> int:
  value = body.get(name)
  if type(value) is not int or not 0 <= value < 2**53:
    raise UserError(f"{name}: a whole number is expected")
  return value


def _start(
  db: sqlite3.Connection, options: Options, labeler: str, body: dict[str, Any]
) -> dict[str, Any]:
  return {"kind": store.settings(db).kind, "instructions": options.instructions, "labeler": labeler}


def _next(
  db: sqlite3.Connection, options: Options, labeler: str, body: dict[str, Any]
) -> dict[str, Any]:
  """The task to do, or none: `waiting` where others hold what is left."""
  given = store.next_task(db, labeler, options.clock(), options.lease)
  progress = store.progress(db, labeler)
  if given is None:
    return {
      "task": None,
      "waiting": progress["answers"] < progress["wanted"] and _held(db, labeler),
      "progress": progress,
    }
  task = {"number": given.number, "prompt": given.prompt, "completions": given.completions}
  return {"task": task, "draft": given.draft, "seq": given.seq, "progress": progress}


def _held(db: sqlite3.Connection, labeler: str) -> bool:
  """Whether some task that this labeler has not answered is not complete."""
  query = (
    "SELECT count(*) FROM task WHERE NOT EXISTS (SELECT 1 FROM answer a WHERE a.task = task.id AND "
    "a.labeler = ?) "
    "AND (SELECT count(*) FROM answer a WHERE a.task = task.id AND a.value IS NOT NULL) < ?"
  )
  return bool(db.execute(query, [labeler, store.settings(db).per_prompt]).fetchone()[0])


def _draft(
  db: sqlite3.Connection, options: Options, labeler: str, body: dict[str, Any]
) -> dict[str, Any]:
  draft, number, seq = body.get("draft"), _whole(body, "task"), _whole(body, "seq")
  if not isinstance(draft, dict):
    raise UserError("draft: an object is expected")
  return {
    "saved": store.save_draft(db, labeler, number, draft, seq, options.clock(), options.lease)
  }


def _answer(
  db: sqlite3.Connection, options: Options, labeler: str, body: dict[str, Any]
) -> dict[str, Any]:
  return {
    "new": store.submit(db, labeler, _whole(body, "task"), body.get("answer"), options.clock())
  }


def _skip(
  db: sqlite3.Connection, options: Options, labeler: str, body: dict[str, Any]
) -> dict[str, Any]:
  reason = body.get("reason")
  if not isinstance(reason, str) or len(reason) > REASONS:
    raise UserError(f"reason: a text of at most {REASONS} characters is expected")
  return {"new": store.skip(db, labeler, _whole(body, "task"), reason, options.clock())}


# --- listening ---


def listen(host: str, port: int) -> socket.socket:
  """A listening socket; port 0 takes a free one.  Raises UserError where it cannot be had."""
  found = None
  try:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(address)
    found.listen(64)
  except (OSError, OverflowError) as error:
    if found:
      found.close()
    raise UserError(
      f"--host={host} --port={port}: cannot listen there ({error}); try another --port"
    ) from None
  return found


def serve(
  db: sqlite3.Connection, options: Options, host: str, port: int, names: tuple[str, ...] = ()
) -> None:
  """Serves the page until it is stopped."""
  with listen(host, port) as found:
    port = found.getsockname()[1]
    known = guard(host, port, names)
    shown = f"[{host}]" if ":" in host else host
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else shown
    print(f"http://{shown}:{port}/" + (f"?token={known.token}" if known.token else ""), flush=True)
    if known.token:
      print(
        "Whoever has this link can label.  Nothing is encrypted: on an open network use ssh -L or "
        "a TLS proxy.",
        flush=True,
      )
    app = guarded(application(db, options), known)
    config = uvicorn.Config(
      app,
      log_level="warning",
      lifespan="off",
      ws="none",
      loop="asyncio",
      http="h11",
      server_header=False,
      limit_concurrency=200,
      timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[found])
