"""Who may talk to the labeling page: the checks before every request, and the headers after it.

The page listens on this machine only.  A Host header that names another machine is refused, so
that a web site cannot reach it through a name of its own (DNS rebinding); a request from another
site's page is refused, and everything that writes is JSON, which a form of another site cannot
send.  Opened wider, every request needs the token of the printed link, which a cookie carries.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LARGEST = 2_000_000  # bytes of a request
HEADERS = {
  # Nothing but our own files runs or styles; texts cannot become HTML even by mistake (Trusted
  # Types).
  "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for "
  "'script'; trusted-types 'none'",
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-store",
}


class Guard(NamedTuple):
  """names: of this machine in a Host header; any_address: an IP address will do; token: "" where
  none is needed.
  """

  names: frozenset[str]
  any_address: bool
  token: str
  cookie: str


def guard(host: str, port: int, names: tuple[str, ...] = ()) -> Guard:
  """What to let in for a listening address; a token is made where that is not this machine alone."""
  if host in LOOPBACK:
    return Guard(frozenset({*LOOPBACK, *names}), any_address=False, token="", cookie="")
  own = {host, socket.gethostname(), *names, *LOOPBACK}
  return Guard(
    frozenset(name.lower() for name in own),
    True,
    secrets.token_urlsafe(24),
    f"instructjax-label-{port}",
  )


def guarded(app: Callable, known: Guard) -> Callable:
  """The app behind the checks, as ASGI."""

  async def run(scope: dict[str, Any], receive: Callable, send: Callable) -> None:
    if scope["type"] != "http":
      return

    async def with_headers(message: MutableMapping[str, Any]) -> None:
      if message["type"] == "http.response.start":
        headers = MutableHeaders(scope=message)
        for name, value in HEADERS.items():
          headers[name] = value
      await send(message)

    request = Request(scope)
    await (refusal(request, known) or app)(scope, receive, with_headers)

  return run


def refusal(request: Request, known: Guard) -> Response | None:
  """The answer to a request that may not pass; None where it may."""
  name = _hostname(request.headers.get("host", ""))
  if not (name in known.names or (known.any_address and _is_address(name))):
    return _error(
      421,
      f"Host '{name}' is not a name of this page; open the printed address, or start with "
      f"--name={name}",
    )
  site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
  same = origin is None or origin.partition("://")[2] == request.headers.get("host")
  if request.method != "GET" and (not same or site not in (None, "same-origin")):
    return _error(403, "this request comes from another site")
  if (
    request.method != "GET"
    and request.headers.get("content-type", "").split(";")[0] != "application/json"
  ):
    return _error(415, "send JSON: Content-Type application/json")
  length = request.headers.get("content-length", "0")
  if not length.isdigit() or int(length) > LARGEST:
    return _error(413, f"a request may have {LARGEST} bytes; shorten the text")
  return _without_token(request, known) if known.token else None


def _without_token(request: Request, known: Guard) -> Response | None:
  """Asks for the token; takes it out of the link into a cookie."""
  given = request.query_params.get("token")
  if given is not None and request.url.path == "/" and _equal(given, known.token):
    # A page that goes on by itself: after a redirect from another site (a chat) a strict cookie
    # would not be sent.
    answer = HTMLResponse(
      '<!doctype html><meta http-equiv="refresh" content="0;url=/"><title>Labeling</title>'
    )
    answer.set_cookie(
      known.cookie,
      known.token,
      httponly=True,
      samesite="strict",
      secure=request.url.scheme == "https",
      path="/",
    )
    return answer
  if _equal(request.cookies.get(known.cookie, ""), known.token):
    return None
  return _error(
    401,
    "open the link with ?token= that `instructjax label` printed; it changes when the page is "
    "started again",
  )


def _equal(a: str, b: str) -> bool:
  return hmac.compare_digest(a.encode(), b.encode())


def _hostname(host: str) -> str:
  """The name in a Host header, without its port and brackets."""
  if host.startswith("["):
    return host[1:].partition("]")[0].lower()
  return host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True


def _error(status: int, message: str) -> Response:
  return JSONResponse({"error": message}, status_code=status)
