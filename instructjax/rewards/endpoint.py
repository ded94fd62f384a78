"""A reward by a server of the user, `http://...`, and what all rewards over HTTP share.

    POST {"prompts": ["...", ...], "responses": ["...", ...]}    ->    {"scores": [1.5, ...]}

Where a prompt of a run has further fields, the body has `fields` too: an object for each response,
empty where its prompt has none. A score may be null: the server abstains.

Requests go out in batches, several at a time. A request without an answer, or with the status
408, 429 or 5xx, is tried again after wait, 2 wait, 4 wait, ... seconds, at most MAX_PAUSE. Each
pause is shortened by up to half at random, so that many clients do not come back together. A
Retry-After header of the server may ask for a longer pause.

A server cannot hold a run up: an attempt ends after `timeout` seconds in all, however slowly its
parts arrive, and an answer has at most MAX_BYTES.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import math
import os
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from types import TracebackType
from typing import Any

from instructjax.errors import UserError
from instructjax.system import plain_json

MAX_PAUSE = 60.0  # seconds that we choose to wait
MAX_RETRY_AFTER = 600.0  # seconds that the server may ask us to wait
MAX_BYTES = 16_000_000  # of an answer; a batch of scores has a few hundred
# Statuses besides 5xx that may pass: Request Timeout and Too Many Requests.
PASSING = (408, 429)


# Prompts, responses and, where there are any, the further fields of the prompts.
Batch = tuple[Sequence[str], Sequence[str], Sequence[Mapping[str, Any]] | None]


class AgainError(Exception):
  """An attempt failed, but another may not; `pause` is the seconds that the server asks for."""

  def __init__(self, reason: str, pause: float = 0.0):
    super().__init__(reason)
    self.pause = pause


def open_endpoint(
  url: str,
  options: Mapping[str, Any],
) -> Callable[..., list[float]]:
  """Opens a server that scores texts.

  Args:
    url: The address that requests are posted to.
    options: Those of `spec.OPTIONS["http"]`.

  Returns:
    A function that scores (prompts, responses) with the further fields of the prompts; NaN is a
    response on which the server abstains. It raises UserError where the server refuses, does not
    answer in time however often it is asked, or answers with anything else.

  Raises:
    UserError: the environment variable of the token is not set.
  """
  head = headers(url, options)
  size = options["batch"]

  def score_batch(batch: Batch, stop: threading.Event) -> list[float]:
    prompts, responses, fields = batch
    body: dict[str, Any] = {"prompts": list(prompts), "responses": list(responses)}
    # Servers that were written before there were fields need not know of them.
    if fields is not None:
      body["fields"] = [dict(row) for row in fields]

    def attempt() -> list[float]:
      answer = send(url, body, head, options["timeout"])
      return scores_of(url, answer, len(prompts))

    return retry(url, options, stop, attempt)

  def score(
    prompts: Sequence[str],
    responses: Sequence[str],
    fields: Sequence[Mapping[str, Any]] = (),
  ) -> list[float]:
    has_fields = any(fields)
    batches: list[Batch] = []
    for start in range(0, len(prompts), size):
      part = slice(start, start + size)
      batches.append((prompts[part], responses[part], fields[part] if has_fields else None))
    scores: list[float] = []
    for batch_scores in concurrently(score_batch, batches, options["concurrent"]):
      scores += batch_scores
    return scores

  return score


def scores_of(url: str, answer: Any, count: int) -> list[float]:
  """Returns the `count` scores in a server's answer, NaN for null.

  Raises:
    UserError: the answer is anything else.
  """
  scores = answer.get("scores") if isinstance(answer, dict) else None
  if not isinstance(scores, list):
    raise UserError(f'{url}: answered {brief(json.dumps(answer))}; {{"scores": [...]}} is expected')
  if len(scores) != count:
    raise UserError(
      f"{url}: answered {len(scores)} scores for {count} responses; one for each is expected"
    )
  for i, value in enumerate(scores):
    # True and False are integers to Python, but no scores.
    if isinstance(value, bool) or not isinstance(value, int | float | None):
      text = brief(json.dumps(value))
      raise UserError(f"{url}: score {i} of {count} is {text}, a number or null is expected")
  return [math.nan if value is None else float(value) for value in scores]


def concurrently(
  call: Callable[[Any, threading.Event], Any],
  parts: Sequence[Any],
  workers: int,
) -> list[Any]:
  """Returns call(part, stop) of every part, in order, several at a time.

  The first error ends it: calls that have not begun are dropped, and `stop` is set, which cuts
  the pauses of the others short.
  """
  stop = threading.Event()
  # Threads are enough: a call waits for the network nearly all of its time.
  pool = ThreadPoolExecutor(max(min(workers, len(parts)), 1), "reward")
  try:
    futures = [pool.submit(call, part, stop) for part in parts]
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
      if future in done and future.exception() is not None:
        stop.set()
        future.result()  # raises the error
    return [future.result() for future in futures]
  finally:
    # Ctrl-C too must not wait for the requests that are under way.
    stop.set()
    pool.shutdown(wait=False, cancel_futures=True)


def retry(
  url: str,
  options: Mapping[str, Any],
  stop: threading.Event,
  attempt: Callable[[], Any],
) -> Any:
  """Returns the result of the first attempt that does not raise AgainError.

  Args:
    url: The address, for the error.
    options: `wait`, the seconds of the first pause, and `retries`, the attempts after the first.
    stop: Ends the pauses and with them the attempts.
    attempt: The function to call.

  Raises:
    UserError: all attempts failed, or `stop` was set between two of them.
  """
  retries = options["retries"]
  for count in range(retries + 1):
    try:
      return attempt()
    except AgainError as error:
      reason = str(error)
      server_pause = error.pause
    own_pause = min(options["wait"] * 2**count, MAX_PAUSE) * random.uniform(0.5, 1)
    if count == retries or stop.wait(max(server_pause, own_pause)):
      break
  raise UserError(
    f"{url}: {reason}, asked {count + 1} times; see that the server runs, or raise "
    f"#retries={retries} and #timeout={options['timeout']:g} (seconds)"
  )


def headers(url: str, options: Mapping[str, Any]) -> dict[str, str]:
  """Returns the headers of every request.

  The token is read from the environment and kept in memory only: it must not get into the files
  of a run.

  Raises:
    UserError: the environment variable of the token is not named or not set.
  """
  fields = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": "instructjax",
  }
  variable = options["token"]
  header = options["header"]
  if header and not variable:
    raise UserError(
      f"{url}: #header={header} needs #token=VARIABLE, the environment variable it sends"
    )
  if variable:
    token = os.environ.get(variable, "").strip()
    if not token:
      raise UserError(
        f"{url}: the environment variable {variable} of #token= is not set; export it first"
      )
    if header:
      fields[header] = token
    else:
      fields["Authorization"] = f"Bearer {token}"
  return fields


def send(url: str, body: Any, head: Mapping[str, str], timeout: float) -> Any:
  """Posts a body as JSON and returns the JSON of the answer.

  Args:
    url: The address.
    body: What is posted.
    head: The headers.
    timeout: The seconds that the connection and the whole answer may take.

  Raises:
    AgainError: there was no answer, or a status that may pass.
    UserError: the server refused, or the answer is too long or not JSON.
  """
  # urllib is in the standard library, so that a reward needs no package for HTTP.
  content = json.dumps(body).encode()
  request = urllib.request.Request(url, content, dict(head), method="POST")
  deadline = Deadline(timeout)
  try:
    with deadline:
      text = _answer(url, request, deadline)
  except TimeoutError:
    raise AgainError(f"no answer in {timeout:g} s") from None
  except (OSError, ValueError, http.client.HTTPException) as error:
    # An error of our own, which is a ValueError too, says what it has to say.
    if isinstance(error, UserError):
      raise
    # What a connection says that was closed at its deadline is of no use.
    reason = getattr(error, "reason", error)
    if deadline.is_over or isinstance(reason, TimeoutError):
      raise AgainError(f"no answer in {timeout:g} s") from None
    # A URLError, which is an OSError, wraps the reason.
    text = brief(str(reason)) or type(error).__name__
    raise AgainError(f"no answer ({text})") from None
  try:
    return plain_json.decode(text)
  except ValueError as error:
    content = text.decode(errors="replace")
    raise UserError(
      f"{url}: answered {brief(content)}; JSON is expected ({brief(str(error))})"
    ) from None


def _answer(url: str, request: urllib.request.Request, deadline: Deadline) -> bytes:
  """Returns the body of a server's answer."""
  try:
    with _opener(deadline).open(request, timeout=deadline.seconds) as reply:
      text = reply.read(MAX_BYTES + 1)
      missing = reply.length or 0  # bytes that were announced and have not come
  except urllib.error.HTTPError as error:
    raise _failure(url, error) from None
  if len(text) > MAX_BYTES:
    raise UserError(
      f"{url}: the answer has more than {MAX_BYTES:,} bytes; see what else listens there"
    )
  if missing:
    raise http.client.IncompleteRead(text, missing)
  if deadline.is_over:
    # A connection that is closed without an announced length looks like the end of the answer.
    raise TimeoutError
  return text


class Deadline:
  """Closes the connections of a request when its time is over.

  The timeout of a socket begins anew with every byte that arrives, so that a server which sends a
  byte now and then would never reach it.
  """

  def __init__(self, seconds: float):
    self.seconds = seconds
    self.is_over = False
    self.connections: list[http.client.HTTPConnection] = []
    self.sockets: list[socket.socket] = []
    self.timer = threading.Timer(seconds, self._end)
    self.timer.daemon = True

  def __enter__(self) -> Deadline:
    self.timer.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.timer.cancel()

  def connection(
    self,
    kind: Callable[..., http.client.HTTPConnection],
    host: str,
    **options: Any,
  ) -> http.client.HTTPConnection:
    """Returns a connection that ends with the time."""
    connection = kind(host, **options)
    connect = connection.connect

    def connect_and_note() -> None:
      connect()
      # The connection forgets its socket when the head of the answer is read.
      self.sockets.append(connection.sock)
      if self.is_over:
        raise TimeoutError

    connection.connect = connect_and_note
    self.connections.append(connection)
    return connection

  def _end(self) -> None:
    self.is_over = True
    unconnected = [connection.sock for connection in self.connections if connection.sock]
    for sock in [*unconnected, *self.sockets]:
      # It may be closed already. A read that waits in the other thread ends at once.
      with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
  """Opens addresses of both schemes by connections with a deadline."""

  def __init__(self, deadline: Deadline):
    super().__init__()
    self.deadline = deadline

  def do_open(self, http_class: Any, req: urllib.request.Request, **options: Any) -> Any:
    """Opens a connection; the name is urllib's."""
    return super().do_open(partial(self.deadline.connection, http_class), req, **options)


def _failure(url: str, error: urllib.error.HTTPError) -> AgainError | UserError:
  """Returns the error to raise for an answer with a status that is no success."""
  with error:
    text = brief(_error_text(error))
  if error.code in PASSING or error.code >= 500:
    pause = _retry_after(error.headers)
    return AgainError(f"answered {error.code} {brief(error.reason)}", pause)
  redirect = ""
  if error.code < 400:
    target = brief(error.headers.get("Location") or "nowhere")
    redirect = f" (redirects are not followed, to {target})"
  hint = ""
  if error.code in (401, 403):
    hint = "; name the variable of its token with #token=VARIABLE"
  return UserError(f"{url}: answered {error.code} {brief(error.reason)}{redirect}: {text}{hint}")


def _opener(deadline: Deadline) -> urllib.request.OpenerDirector:
  """Returns an opener that does not follow redirects.

  A redirected POST would become a GET, and the token would go to another host.
  """
  opener = urllib.request.OpenerDirector()
  for handler in (
    urllib.request.ProxyHandler(),
    _Handler(deadline),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
  ):
    opener.add_handler(handler)
  return opener


def _error_text(error: urllib.error.HTTPError) -> str:
  """Returns the beginning of the body of an error; "" where it cannot be read."""
  try:
    return error.read(2000).decode(errors="replace")
  except (OSError, http.client.HTTPException):
    return ""


def _retry_after(head: Any) -> float:
  """Returns the seconds that a Retry-After header asks for, at most MAX_RETRY_AFTER."""
  text = (head.get("Retry-After") or "").strip()
  if not text:
    return 0.0
  # RFC 9110 allows a number of seconds or a date. Anything else is ignored.
  try:
    seconds = float(text)
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(text)
      seconds = date.timestamp() - time.time()
    # A date before the first year, or after the last.
    except (ValueError, TypeError, OverflowError, OSError):
      return 0.0
  if math.isnan(seconds):
    return 0.0
  return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def brief(text: str, limit: int = 120) -> str:
  """Returns the beginning of a text on one line, of at most `limit` characters."""
  text = " ".join(text.split())
  return text if len(text) <= limit else text[: limit - 3] + "..."
