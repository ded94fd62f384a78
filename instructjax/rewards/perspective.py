"""A reward by Google's Perspective API: `perspective:TOXICITY`, from 0 to 1 for a response alone.

Options: `token` names the environment variable of the key (it goes into a header, never into an
address), `qps` is the quota in requests a second, `language` the languages of the texts (en+de),
and `cache` a JSONL file of scores. It holds a digest of each text, not the text, and keeps a text
from being paid for twice, in this run or another.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.rewards.endpoint import brief, concurrently, headers, retry, send
from instructjax.system import jsons, plain_json

MAX_BYTES = 20_000  # of a comment; the service takes 20,480


def open_perspective(
  attribute: str,
  options: Mapping[str, Any],
) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
  """Opens one attribute of the service.

  Args:
    attribute: The name of the attribute, such as TOXICITY.
    options: Those of `spec.OPTIONS["perspective"]`.

  Returns:
    A function that scores (prompts, responses); the service is not asked about an empty response,
    whose score is 0. It raises UserError where the service refuses, does not answer, or answers
    with anything else.

  Raises:
    UserError: the environment variable of the key is not set, or the cache is broken.
  """
  url = options["url"]
  head = headers(url, options)
  languages = options["language"].split("+")
  # A score depends on the text, the attribute and the languages.
  cache = _Cache(options["cache"], [attribute, languages])
  pace = _Pace(options["qps"])

  def score_text(text: str, stop: threading.Event) -> float:
    # Half a character at the cut is dropped.
    shortened = text.encode()[:MAX_BYTES].decode(errors="ignore")
    body = {
      "comment": {"text": shortened},
      "languages": languages,
      "requestedAttributes": {attribute: {}},
      "doNotStore": True,
    }

    def attempt() -> float:
      pace.wait(stop)
      answer = send(url, body, head, options["timeout"])
      return _value(url, attribute, answer)

    value = retry(url, options, stop, attempt)
    # Each score is saved at once, so that an error in another request loses nothing.
    cache.add(text, value)
    return value

  def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    new_texts = [text for text in responses if text.strip() and text not in cache]
    distinct_texts = list(dict.fromkeys(new_texts))
    concurrently(score_text, distinct_texts, options["concurrent"])
    return [cache[text] if text.strip() else 0.0 for text in responses]

  return score


def _value(url: str, attribute: str, answer: Any) -> float:
  """Returns the score in an answer of the service; raises UserError where there is none."""
  try:
    value = answer["attributeScores"][attribute]["summaryScore"]["value"]
  except (KeyError, TypeError):
    value = None
  if value is None or not _is_share(value):
    text = brief(jsons.text_with_nulls(answer, ascii_only=True))
    raise UserError(
      f"{url}: answered {text}; a summaryScore of {attribute} from 0 to 1 is expected"
    )
  return float(value)


def _is_share(value: Any) -> bool:
  """Returns whether a value is a number from 0 to 1; True and False are none."""
  return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


class _Pace:
  """Lets at most `qps` requests a second begin, over all threads."""

  def __init__(self, qps: float):
    self.gap = 1 / qps  # seconds
    self.next_start = time.monotonic()
    self.lock = threading.Lock()

  def wait(self, stop: threading.Event) -> None:
    """Waits for the caller's turn, or until `stop` is set."""
    with self.lock:
      start = max(self.next_start, time.monotonic())
      self.next_start = start + self.gap
    # The wait is outside the lock, so that the next thread can take its turn meanwhile.
    stop.wait(start - time.monotonic())


class _Cache:
  """Scores by text, in memory and, where a path is given, in a file."""

  def __init__(self, path: str, question: Any):
    """Reads the file; `question` is what scores depend on besides the text."""
    self.path = Path(path) if path else None
    self.question = question
    self.lock = threading.Lock()
    self.scores: dict[str, float] = {}
    if self.path and self.path.is_file():
      self._read(self.path)

  def _read(self, path: Path) -> None:
    try:
      content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(
        f"{path}: cannot be read as UTF-8 text ({error}); name another #cache="
      ) from None
    lines = content.splitlines()
    for number, line in enumerate(lines, start=1):
      try:
        row = plain_json.decode(line)
        if not _is_share(row["score"]) or not isinstance(row["of"], str):
          raise ValueError("no score")
        self.scores[row["of"]] = float(row["score"])
      except (ValueError, KeyError, TypeError):
        # A last line without its end was cut off by a kill: it is dropped.
        if number < len(lines) or content.endswith("\n"):
          raise UserError(
            f"{path}:{number}: no score that was kept; delete the line, or name another #cache="
          ) from None
        path.write_text(content[: -len(line)], encoding="utf-8")

  def _key(self, text: str) -> str:
    content = jsons.text([self.question, text], ascii_only=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]

  def __contains__(self, text: str) -> bool:
    return self._key(text) in self.scores

  def __getitem__(self, text: str) -> float:
    return self.scores[self._key(text)]

  def add(self, text: str, score: float) -> None:
    """Adds a score, to the file too."""
    key = self._key(text)
    with self.lock:
      self.scores[key] = score
      if not self.path:
        return
      try:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
          file.write(jsons.lines([{"of": key, "score": score}]))
      except OSError as error:
        raise UserError(f"#cache={self.path}: cannot be written ({error}); name another") from None
