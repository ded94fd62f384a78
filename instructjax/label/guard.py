"""Who may talk to the labeling page: the checks before every request, and the headers after it.

By default the page listens on this machine only, and two attacks remain. A web site could reach
the page through a host name of its own that resolves to this machine (DNS rebinding), so a Host
header that names another machine is refused. A page of another site could send requests with the
labeler's browser, so requests from other origins are refused, and all that writes must be JSON,
which a plain form of another site cannot send.

Opened wider, every request needs the token of the printed link, which a cookie carries.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_BYTES = 2_000_000  # of a request
LENGTH = re.compile(r"[0-9]{1,15}")
# Nothing but our own files may run or style the page. Trusted Types keep texts of tasks from
# becoming HTML even by a mistake in our scripts.
CONTENT_POLICY = (
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "connect-src 'self'",
  "img-src data:",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
)
HEADERS = {
  "Content-Security-Policy": "; ".join(CONTENT_POLICY),
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-store",
}


class Guard(NamedTuple):
  """The requests that may pass."""

  names: frozenset[str]  # the names of this machine that a Host header may have
  any_address: bool  # whether a Host header may be any IP address
  token: str  # "" where none is needed
  cookie: str  # the name of the cookie that carries the token


def make_guard(
  host: str,
  port: int,
  names: tuple[str, ...] = (),
) -> Guard:
  """Returns the guard of a listening address, with a new token unless it is this machine alone.

  Args:
    host: The address or name to listen on.
    port: The port, which makes the name of the cookie: browsers share cookies between ports.
    names: More names that the page is opened by.
  """
  if host in LOOPBACK:
    return Guard(_lower({*LOOPBACK, *names}), any_address=False, token="", cookie="")
  all_names = {host, socket.gethostname(), *names, *LOOPBACK}
  return Guard(
    _lower(all_names),
    any_address=True,
    token=secrets.token_urlsafe(24),
    cookie=f"instructjax-label-{port}",
  )


def _lower(names: set[str]) -> frozenset[str]:
  """Returns names as `_hostname` has them: DNS does not tell their cases apart."""
  return frozenset(name.lower().rstrip(".") for name in names if name)


def protect(app: Callable, guard: Guard) -> Callable:
  """Returns the ASGI app behind the checks of the guard, with our headers on every answer."""

  async def run(
    scope: dict[str, Any],
    receive: Callable,
    send: Callable,
  ) -> None:
    # There are no web sockets.
    if scope["type"] != "http":
      return

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
      if message["type"] == "http.response.start":
        headers = MutableHeaders(scope=message)
        for name, value in HEADERS.items():
          headers[name] = value
      await send(message)

    # A response is an ASGI app too.
    respond = refusal(Request(scope), guard) or app
    await respond(scope, receive, send_with_headers)

  return run


def refusal(request: Request, guard: Guard) -> Response | None:
  """Returns the answer to a request that may not pass; None where it may."""
  host = request.headers.get("host", "")
  name = _hostname(host)
  if name not in guard.names and not (guard.any_address and _is_address(name)):
    return _error(
      421,  # Misdirected Request
      f"Host '{host[:80]}' is not a name of this page; open the printed address, or start with "
      f"--name={name or 'NAME'}",
    )
  if request.method != "GET":
    # Browsers set both headers, and scripts cannot change them. Other clients may lack them.
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "same-origin")
    own_origin = origin is None or origin.partition("://")[2] == host
    if site != "same-origin" or not own_origin:
      return _error(403, "this request comes from another site")
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0] != "application/json":
      return _error(415, "send JSON: Content-Type application/json")
  length = request.headers.get("content-length", "0")
  if not LENGTH.fullmatch(length) or int(length) > MAX_BYTES:
    return _error(413, f"a request may have {MAX_BYTES} bytes; shorten the text")
  return _check_token(request, guard) if guard.token else None


def _check_token(request: Request, guard: Guard) -> Response | None:
  """Asks for the token, or moves it from the link into a cookie; None where the cookie has it."""
  token = request.query_params.get("token")
  if token is not None and request.url.path == "/" and _equal(token, guard.token):
    # This page goes on by itself, which counts as a navigation of our own site. After a plain
    # redirect from another site (a link in a chat) a strict cookie would not be sent.
    page = '<!doctype html><meta http-equiv="refresh" content="0;url=/"><title>Labeling</title>'
    answer = HTMLResponse(page)
    answer.set_cookie(
      guard.cookie,
      guard.token,
      httponly=True,
      samesite="strict",
      secure=request.url.scheme == "https",
      path="/",
    )
    return answer
  cookie = request.cookies.get(guard.cookie, "")
  if _equal(cookie, guard.token):
    return None
  return _error(
    401,
    "open the link with ?token= that `instructjax label` printed; it changes when the page is "
    "started again",
  )


def _equal(a: str, b: str) -> bool:
  """Compares in a time that does not depend on where two texts differ."""
  return hmac.compare_digest(a.encode(), b.encode())


# HOST[:PORT], where an IPv6 address stands in brackets. Nothing else may follow.
HOST = re.compile(r"(?:\[(?P<address>[0-9a-fA-F:.]+)\]|(?P<name>[^\[\]:/@\s]*))(?::[0-9]*)?")


def _hostname(host: str) -> str:
  """Returns the name in a Host header, without its port and the brackets of IPv6.

  A header that is not so has no name, which no guard lets pass.
  """
  match = HOST.fullmatch(host)
  if match is None:
    return ""
  name = match["address"] or match["name"]
  # A dot at the end of a name says that it is complete.
  return name.lower().rstrip(".")


def _is_address(name: str) -> bool:
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True


def _error(status: int, message: str) -> Response:
  return JSONResponse({"error": message}, status_code=status)
