"""How Google's Perspective API sees a response alone, from 0 to 1: perspective:TOXICITY.

Options: token= names the environment variable of the key (it goes into a header, never into an
address), qps= is the quota in requests a second, language= the languages of the texts (en+de),
cache= a JSONL file of answers by digest of the text, so that no text is paid for twice, in this
run or another.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.rewards.endpoint import brief, concurrently, headers, retried, send

LONGEST = 20_000  # bytes of a comment; the service takes 20,480


def open_perspective(
  attribute: str, options: Mapping[str, Any]
) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
  """Scores of the responses; an empty one is 0 and is not asked.

  Raises UserError where the variable of the key is not set or the cache is broken; the function
  returned raises it where the service refuses, does not answer, or answers something else.
  """
  url, head, languages = (
    options["url"],
    headers(options["url"], options),
    options["language"].split("+"),
  )
  kept, pace = _Kept(options["cache"], [attribute, languages]), _Pace(options["qps"])

  def one(text: str, stop: threading.Event) -> float:
    cut = text.encode()[:LONGEST].decode(errors="ignore")
    body = {
      "comment": {"text": cut},
      "languages": languages,
      "requestedAttributes": {attribute: {}},
      "doNotStore": True,
    }

    def attempt() -> float:
      pace.wait(stop)
      return _value(url, attribute, send(url, body, head, options["timeout"]))

    value = retried(url, options, stop, attempt)
    kept.add(text, value)
    return value

  def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    texts = list(dict.fromkeys(text for text in responses if text.strip() and text not in kept))
    concurrently(one, texts, options["concurrent"])
    return [kept[text] if text.strip() else 0.0 for text in responses]

  return score


def _value(url: str, attribute: str, answer: Any) -> float:
  try:
    value = answer["attributeScores"][attribute]["summaryScore"]["value"]
  except (KeyError, TypeError):
    value = None
  if not isinstance(value, int | float) or not 0 <= value <= 1:
    raise UserError(
      f"{url}: answered {brief(json.dumps(answer))}; a summaryScore of {attribute} from 0 to 1 is "
      "expected"
    )
  return float(value)


class _Pace:
  """At most so many requests a second, over all threads."""

  def __init__(self, qps: float):
    self.gap, self.next, self.lock = 1 / qps, time.monotonic(), threading.Lock()

  def wait(self, stop: threading.Event) -> None:
    with self.lock:
      at = max(self.next, time.monotonic())
      self.next = at + self.gap
    stop.wait(at - time.monotonic())


class _Kept:
  """Scores by text, and on disk by a digest of the text and of what was asked; a line that was cut
  off is dropped.
  """

  def __init__(self, path: str, asked: Any):
    self.path, self.asked, self.lock, self.found = (
      Path(path) if path else None,
      asked,
      threading.Lock(),
      {},
    )
    if self.path and self.path.is_file():
      content = self.path.read_text(encoding="utf-8")
      for number, line in enumerate(content.splitlines(), 1):
        try:
          row = json.loads(line)
          self.found[row["of"]] = float(row["score"])
        except (ValueError, KeyError, TypeError):
          if number < len(content.splitlines()) or content.endswith("\n"):
            raise UserError(
              f"{self.path}:{number}: no score that was kept; delete the line, or name another "
              "#cache="
            ) from None
          self.path.write_text(content[: -len(line)], encoding="utf-8")

  def _of(self, text: str) -> str:
    return hashlib.sha256(json.dumps([self.asked, text]).encode()).hexdigest()[:32]

  def __contains__(self, text: str) -> bool:
    return self._of(text) in self.found

  def __getitem__(self, text: str) -> float:
    return self.found[self._of(text)]

  def add(self, text: str, score: float) -> None:
    of = self._of(text)
    with self.lock:
      self.found[of] = score
      if self.path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
          file.write(json.dumps({"of": of, "score": score}) + "\n")
