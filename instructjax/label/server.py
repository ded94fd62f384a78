"""The labeling page: five static files, and five JSON calls that read and write the store.

One thread serves all labelers: a call takes a few milliseconds of SQLite, most of which wait for
the disk.
"""

from __future__ import annotations

import re
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from sqlite3 import Connection
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from instructjax.errors import UserError
from instructjax.label import connections, store
from instructjax.label.guard import MAX_BYTES, make_guard, protect
from instructjax.label.store import ConflictError
from instructjax.system import plain_json

LABELER = re.compile(r"[\w.@+-]{1,64}")
# Path: (file, media type).
FILES = {
  "/": ("page.html", "text/html"),
  "/page.css": ("page.css", "text/css"),
  "/page.js": ("page.js", "text/javascript"),
  "/rate.js": ("rate.js", "text/javascript"),
  "/rank.js": ("rank.js", "text/javascript"),
}
MAX_REASON = 500  # characters of the reason of a skip


class Options(NamedTuple):
  """The options of a page."""

  instructions: str
  labelers: frozenset[str] = frozenset()  # the ids that may sign in; anyone may where it is empty
  lease: float = store.LEASE  # seconds
  clock: Callable[[], float] = time.time  # tests turn their own


Body = dict[str, Any]  # the JSON object of a request or an answer
# The function behind a call: (db, options, labeler, body of the request) -> body of the answer.
Action = Callable[[Connection, Options, str, Body], Body]


def instructions(kind: str, path: str | None = None) -> str:
  """Returns the labelers' instructions as text: those of a file, or ours for a kind of task.

  Raises:
    UserError: the file cannot be read.
  """
  if path is None:
    file = resources.files("instructjax.label").joinpath(f"instructions_{kind}.md")
    return file.read_text(encoding="utf-8")
  try:
    return Path(path).read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    raise UserError(f"--instructions={path}: cannot be read as UTF-8 text ({error})") from None


def application(db: Connection, options: Options) -> Starlette:
  """Returns the app without its guard."""
  actions: dict[str, Action] = {
    "start": _start,
    "next": _next,
    "draft": _draft,
    "answer": _answer,
    "skip": _skip,
  }
  routes = []
  for path, (name, media_type) in FILES.items():
    routes.append(Route(path, _file_endpoint(name, media_type)))
  for name, action in actions.items():
    endpoint = _call_endpoint(db, options, action)
    routes.append(Route(f"/api/{name}", endpoint, methods=["POST"]))
  return Starlette(routes=routes)


def _file_endpoint(name: str, media_type: str) -> Callable:
  file = resources.files("instructjax.label").joinpath(name)
  content = file.read_bytes()

  async def send(request: Request) -> Response:
    return Response(content, media_type=f"{media_type}; charset=utf-8")

  return send


def _call_endpoint(
  db: Connection,
  options: Options,
  action: Action,
) -> Callable:
  """Returns an endpoint that runs an action; errors become {"error": text} with a status."""

  async def run(request: Request) -> Response:
    try:
      body = await _body(request)
      labeler = _labeler(body.get("labeler"), options)
      return JSONResponse(action(db, options, labeler, body))
    except ConflictError as error:
      return JSONResponse({"error": str(error)}, status_code=409)
    except UserError as error:
      return JSONResponse({"error": str(error)}, status_code=400)
    except sqlite3.Error as error:
      # The page tries again, but whoever runs it should see that, for one, the disk is full.
      print(f"error: not saved: {error}", file=sys.stderr, flush=True)
      return JSONResponse({"error": f"not saved: {error}"}, status_code=503)

  return run


async def _body(request: Request) -> Body:
  """Returns the JSON object in the body of a request; raises UserError for anything else."""
  content = b""
  # The guard has checked Content-Length, but a body that comes in chunks has none.
  async for chunk in request.stream():
    content += chunk
    if len(content) > MAX_BYTES:
      raise UserError(f"a request may have {MAX_BYTES} bytes; shorten the text")
  try:
    body = plain_json.decode(content)
  except ValueError as error:
    raise UserError(f"the request is not JSON ({error})") from None
  if not isinstance(body, dict):
    raise UserError("the request is not a JSON object")
  return body


def _labeler(name: Any, options: Options) -> str:
  """Returns the id of a labeler who may sign in."""
  if not isinstance(name, str) or not LABELER.fullmatch(name):
    raise UserError("labeler: 1 to 64 letters, digits or . _ @ + - are expected")
  if options.labelers and name not in options.labelers:
    raise UserError(f"labeler: '{name}' is not on the list; ask whoever started this page")
  return name


def _whole_number(body: Body, name: str) -> int:
  value = body.get(name)
  # Above 2^53 JavaScript's numbers are not exact.
  if type(value) is not int or not 0 <= value < 2**53:
    raise UserError(f"{name}: a whole number is expected")
  return value


# --- the calls ---


def _start(
  db: Connection,
  options: Options,
  labeler: str,
  body: Body,
) -> Body:
  """Signs a labeler in."""
  kind = store.settings(db).kind
  return {"kind": kind, "instructions": options.instructions, "labeler": labeler}


def _next(
  db: Connection,
  options: Options,
  labeler: str,
  body: Body,
) -> Body:
  """Gives the labeler a task; without one, `waiting` says whether one may become free."""
  now = options.clock()
  assignment = store.next_task(db, labeler, now, options.lease)
  progress = store.progress(db, labeler)
  if assignment is None:
    # Others hold the places that are left. Their leases may expire, or they may skip.
    unfinished = progress["answers"] < progress["wanted"]
    waiting = unfinished and store.has_incomplete_task(db, labeler)
    return {"task": None, "waiting": waiting, "progress": progress}
  task = {
    "number": assignment.number,
    "prompt": assignment.prompt,
    "completions": assignment.completions,
  }
  return {
    "task": task,
    "draft": assignment.draft,
    "seq": assignment.seq,
    "progress": progress,
  }


def _draft(
  db: Connection,
  options: Options,
  labeler: str,
  body: Body,
) -> Body:
  """Saves what the labeler has done so far, in the page's own form."""
  draft = body.get("draft")
  number = _whole_number(body, "task")
  seq = _whole_number(body, "seq")
  if not isinstance(draft, dict):
    raise UserError("draft: an object is expected")
  now = options.clock()
  saved = store.save_draft(db, labeler, number, draft, seq, now, options.lease)
  return {"saved": saved}


def _answer(
  db: Connection,
  options: Options,
  labeler: str,
  body: Body,
) -> Body:
  """Stores an answer."""
  number = _whole_number(body, "task")
  value = body.get("answer")
  is_new = store.submit(db, labeler, number, value, options.clock())
  return {"new": is_new}


def _skip(
  db: Connection,
  options: Options,
  labeler: str,
  body: Body,
) -> Body:
  """Leaves a task to someone else."""
  reason = body.get("reason")
  if not isinstance(reason, str) or len(reason) > MAX_REASON:
    raise UserError(f"reason: a text of at most {MAX_REASON} characters is expected")
  number = _whole_number(body, "task")
  is_new = store.skip(db, labeler, number, reason, options.clock())
  return {"new": is_new}


# --- listening ---


def listen(host: str, port: int) -> socket.socket:
  """Returns a listening socket; port 0 takes a free one.

  Raises:
    UserError: the address is wrong or taken.
  """
  listener = None
  try:
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, _, _, address = addresses[0]
    listener = socket.socket(family, kind)
    # Without it a page that was just stopped would block its own port for a minute.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(512)  # connections that the kernel holds until they are taken
  except (OSError, OverflowError) as error:
    if listener:
      listener.close()
    raise UserError(
      f"--host={host} --port={port}: cannot listen there ({error}); try another --port"
    ) from None
  return listener


def serve(
  db: Connection,
  options: Options,
  host: str,
  port: int,
  names: tuple[str, ...] = (),
) -> None:
  """Prints the address of the page and serves it until it is stopped.

  Args:
    db: The labeling file.
    options: The options of the page.
    host: The address or name to listen on.
    port: The port; 0 takes a free one.
    names: More names that the page is opened by.
  """
  with listen(host, port) as listener:
    port = listener.getsockname()[1]
    guard = make_guard(host, port, names)
    query = f"?token={guard.token}" if guard.token else ""
    print(f"http://{_printed_host(host)}:{port}/{query}", flush=True)
    if guard.token:
      print(
        "Whoever has this link can label. Nothing is encrypted: on an open network use ssh -L or a "
        "TLS proxy.",
        flush=True,
      )
    app = protect(application(db, options), guard)
    uvicorn.Server(web_config(app)).run(sockets=[listener])


def web_config(app: Callable) -> uvicorn.Config:
  """Returns how the page is served."""
  return uvicorn.Config(
    app,
    log_level="warning",
    lifespan="off",
    ws="none",
    # Fixed, so that packages that happen to be installed do not change the server.
    loop="asyncio",
    http=connections.Protocol,
    server_header=False,
    timeout_graceful_shutdown=5,  # seconds
  )


def _printed_host(host: str) -> str:
  """Returns the host for a link that others can open."""
  if host in ("0.0.0.0", "::"):
    return socket.gethostname()
  return f"[{host}]" if ":" in host else host
