"""A reward behind an address: JSON over HTTP in batches, several at a time, with timeouts and
retries.

    POST {"prompts": ["...", ...], "responses": ["...", ...]}    ->    {"scores": [1.5, ...]}

No answer, 408, 429 and 5xx are tried again after wait, 2 wait, 4 wait, ... seconds (at most
LONGEST, shortened by up to half at random so that clients do not come back together), or after
what a Retry-After header asks for.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from instructjax.errors import UserError

LONGEST = 60.0  # seconds of a pause that we choose
PATIENCE = 600.0  # seconds of a pause that the server may ask for
AGAIN = (408, 429)
Send = Callable[[Any], Any]  # what is posted -> the JSON of the answer


class AgainError(Exception):
  """This try failed, another may not; `pause` is what the server asks for, in seconds."""

  def __init__(self, reason: str, pause: float = 0.0):
    super().__init__(reason)
    self.pause = pause


def open_endpoint(
  url: str, options: Mapping[str, Any]
) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
  """The scores of an address.  Raises UserError where the variable of the token is not set; the
  function returned raises UserError where the server refuses, does not answer in time however
  often it is asked, or answers something else.
  """
  head, size = headers(url, options), options["batch"]

  def one(part: tuple[Sequence[str], Sequence[str]], stop: threading.Event) -> list[float]:
    prompts, responses = part
    body = {"prompts": list(prompts), "responses": list(responses)}
    return retried(
      url,
      options,
      stop,
      lambda: scores_of(url, send(url, body, head, options["timeout"]), len(prompts)),
    )

  def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    parts = [
      (prompts[at : at + size], responses[at : at + size]) for at in range(0, len(prompts), size)
    ]
    return [value for values in concurrently(one, parts, options["concurrent"]) for value in values]

  return score


def scores_of(url: str, answer: Any, count: int) -> list[float]:
  """The numbers of an answer.  Raises UserError where it is another thing or has another length."""
  scores = answer.get("scores") if isinstance(answer, dict) else None
  if not isinstance(scores, list):
    raise UserError(f'{url}: answered {brief(json.dumps(answer))}; {{"scores": [...]}} is expected')
  if len(scores) != count:
    raise UserError(
      f"{url}: answered {len(scores)} scores for {count} responses; one for each is expected"
    )
  for at, value in enumerate(scores):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise UserError(
        f"{url}: score {at} of {count} is {brief(json.dumps(value))}, a number is expected"
      )
  return [float(value) for value in scores]


def concurrently(
  one: Callable[[Any, threading.Event], Any], parts: Sequence[Any], workers: int
) -> list[Any]:
  """one(part, stop) of every part, in order.  The first error ends it: `stop` is set, what has not
  begun is dropped.
  """
  stop = threading.Event()
  pool = ThreadPoolExecutor(max(min(workers, len(parts)), 1), "reward")
  try:
    asked = [pool.submit(one, part, stop) for part in parts]
    done, _ = wait(asked, return_when=FIRST_EXCEPTION)
    for future in asked:
      if future in done and future.exception() is not None:
        stop.set()
        future.result()
    return [future.result() for future in asked]
  finally:
    stop.set()
    pool.shutdown(wait=False, cancel_futures=True)


def retried(
  url: str, options: Mapping[str, Any], stop: threading.Event, attempt: Callable[[], Any]
) -> Any:
  """The result of the first attempt that does not raise AgainError.  Raises UserError after
  `retries` more than the first.
  """
  for count in range(options["retries"] + 1):
    try:
      return attempt()
    except AgainError as failed:
      reason, pause = str(failed), failed.pause
    own = min(options["wait"] * 2**count, LONGEST) * random.uniform(0.5, 1)
    if count == options["retries"] or stop.wait(max(pause, own)):
      break
  raise UserError(
    f"{url}: {reason}, asked {count + 1} times; see that the server runs, or raise "
    f"#retries={options['retries']} and "
    f"#timeout={options['timeout']:g} (seconds)"
  )


def headers(url: str, options: Mapping[str, Any]) -> dict[str, str]:
  """The headers of every request.  The token is read from the environment and kept in memory only."""
  found = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": "instructjax",
  }
  if options["header"] and not options["token"]:
    raise UserError(
      f"{url}: #header={options['header']} needs #token=VARIABLE, the environment variable it sends"
    )
  if options["token"]:
    value = os.environ.get(options["token"], "").strip()
    if not value:
      raise UserError(
        f"{url}: the environment variable {options['token']} of #token= is not set; export it first"
      )
    found |= (
      {options["header"]: value} if options["header"] else {"Authorization": f"Bearer {value}"}
    )
  return found


def send(url: str, body: Any, head: Mapping[str, str], timeout: float) -> Any:
  """The JSON of the answer.  Raises AgainError for what may pass, UserError for a refusal and for
  an answer that is no JSON.
  """
  request = urllib.request.Request(url, json.dumps(body).encode(), dict(head), method="POST")
  try:
    with _opener().open(request, timeout=timeout) as reply:
      text = reply.read()
  except urllib.error.HTTPError as error:
    with error:
      said = brief(_words(error))
    if error.code in AGAIN or error.code >= 500:
      raise AgainError(
        f"answered {error.code} {error.reason}", _asked_pause(error.headers)
      ) from None
    where = (
      f" (redirects are not followed, to {error.headers.get('Location')})"
      if error.code < 400
      else ""
    )
    hint = (
      "; name the variable of its token with #token=VARIABLE" if error.code in (401, 403) else ""
    )
    raise UserError(f"{url}: answered {error.code} {error.reason}{where}: {said}{hint}") from None
  except TimeoutError:
    raise AgainError(f"no answer in {timeout:g} s") from None
  except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
    reason = getattr(error, "reason", error)
    late = isinstance(reason, TimeoutError)
    raise AgainError(
      f"no answer in {timeout:g} s" if late else f"no answer ({reason or type(error).__name__})"
    ) from None
  try:
    return json.loads(text)
  except ValueError:
    raise UserError(
      f"{url}: answered {brief(text.decode(errors='replace'))}; JSON is expected"
    ) from None


def _opener() -> urllib.request.OpenerDirector:
  """Without redirects: a POST would become a GET, and a token would follow to another host."""
  opener = urllib.request.OpenerDirector()
  for handler in (
    urllib.request.ProxyHandler(),
    urllib.request.HTTPHandler(),
    urllib.request.HTTPSHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
  ):
    opener.add_handler(handler)
  return opener


def _words(error: urllib.error.HTTPError) -> str:
  try:
    return error.read(2000).decode(errors="replace")
  except (OSError, http.client.HTTPException):
    return ""


def _asked_pause(head: Any) -> float:
  """Seconds that a Retry-After header asks for, a number or a date; at most PATIENCE."""
  text = (head.get("Retry-After") or "").strip()
  if not text:
    return 0.0
  try:
    seconds = float(text)
  except ValueError:
    try:
      seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except ValueError:
      return 0.0
  return min(max(seconds, 0.0), PATIENCE) if seconds == seconds else 0.0


def brief(text: str, limit: int = 120) -> str:
  """The beginning of a text on one line."""
  text = " ".join(text.split())
  return text if len(text) <= limit else text[: limit - 3] + "..."
