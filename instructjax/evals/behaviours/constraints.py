"""Explicit constraints that a program can check: how many, how long, with and without which words,
in which form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from instructjax.data.records.records import RecordError
from instructjax.evals.behaviours import languages

SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|\n+")
SHORTENED = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|[A-Z])\.$")
BULLET = re.compile(r"^\s*[-*•–·]\s+\S")
NUMBER = re.compile(r"^\s*(\d+)[.)]\s+\S")


def satisfied(constraints: Mapping[str, Any], text: str) -> list[bool]:
  """Whether the text satisfies each constraint, in their order; an empty text satisfies none."""
  text = text.strip()
  return [bool(text) and CHECKS[name](text, value) for name, value in constraints.items()]


def checked(constraints: Any) -> dict[str, Any]:
  """The constraints of a row.  Raises RecordError for none, an unknown one and a value that its
  check cannot read.
  """
  if not isinstance(constraints, Mapping) or not constraints:
    raise RecordError("constraints: an object with at least one constraint is expected")
  for name, value in constraints.items():
    if name not in CHECKS:
      raise RecordError(f"constraints.{name}: no such constraint; there are {', '.join(CHECKS)}")
    try:
      CHECKS[name]("Any text.", value)
    except (TypeError, ValueError, KeyError) as error:
      raise RecordError(
        f"constraints.{name}: {json.dumps(value)} is no value for it ({error})"
      ) from None
  return dict(constraints)


def sentences(text: str) -> int:
  """Sentences end with . ! or ? and a space, or with the line."""
  count, before = 0, ""
  for part in (piece.strip() for piece in SENTENCE.split(text)):
    count += bool(re.search(r"\w", part)) and not SHORTENED.search(before)
    before = part
  return count


def _matches(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
  return [found for line in text.splitlines() if (found := pattern.match(line))]


def _numbered(text: str, count: int) -> bool:
  return [int(found[1]) for found in _matches(NUMBER, text)] == list(range(1, count + 1))


def _says(text: str, words: str) -> bool:
  return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


def _listed(words: Any) -> list[str]:
  if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
    raise TypeError("a list of texts")
  return words


def _json(text: str, value: list[str] | int) -> bool:
  """An object with just these keys, or a list of so many texts, and nothing around it."""
  if not isinstance(value, int):
    _listed(value)
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):
    return False
  if isinstance(value, int):
    return (
      isinstance(found, list) and len(found) == value and all(isinstance(one, str) for one in found)
    )
  return isinstance(found, dict) and set(found) == set(value)


def _language(text: str, code: str) -> bool:
  return languages.identify(text) == {name: name for name in languages.NAMES}[code]


def _split(text: str, value: Any) -> bool:
  separator, count = value
  return (
    len([part for part in text.strip(f" .{separator}").split(separator) if part.strip()]) == count
  )


CHECKS: dict[str, Callable[[str, Any], bool]] = {  # (text, value): is it satisfied?
  "sentences": lambda text, count: sentences(text) == int(count),
  "words": lambda text, ends: ends[0] <= len(text.split()) <= ends[1],
  "lines": lambda text, count: (
    len([line for line in text.splitlines() if line.strip()]) == int(count)
  ),
  "paragraphs": lambda text, count: (
    len([part for part in re.split(r"\n\s*\n", text) if part.strip()]) == int(count)
  ),
  "items": lambda text, count: len(_matches(BULLET, text)) == int(count),
  "numbered": _numbered,
  "separated": _split,
  "include": lambda text, words: all(_says(text, word) for word in _listed(words)),
  "exclude": lambda text, words: not any(_says(text, word) for word in _listed(words)),
  "without": lambda text, part: str(part) not in text,
  "starts": lambda text, start: text.startswith(str(start)),
  "ends": lambda text, end: text.endswith(str(end)),
  "unended": lambda text, end: not text.endswith(str(end)),
  "case": lambda text, case: text == {"lower": text.lower(), "upper": text.upper()}[case],
  "json": _json,
  "language": _language,
}
