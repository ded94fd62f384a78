"""Explicit constraints that a program can check: how many, how long, which words, which form.

A row of data has an object with constraints and their values, such as
{"sentences": 3, "exclude": ["blue"]}. CHECKS lists them; docs/evaluation/behaviours.md says what
their values are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from instructjax.data.records.records import RecordError
from instructjax.evals.behaviours import languages
from instructjax.system import jsons

# Sentences end with . ! or ? (and closing quotes or brackets) and a space, or with the line.
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|\n+")
# A full stop after these does not end a sentence; a single letter is an initial.
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|[A-Z])\.$")
BULLET = re.compile(r"^\s*[-*•–·]\s+\S")
NUMBER = re.compile(r"^\s*(\d+)[.)]\s+\S")


def satisfied(constraints: Mapping[str, Any], text: str) -> list[bool]:
  """Returns whether a text satisfies each constraint, in order; an empty text satisfies none."""
  text = text.strip()
  if not text:
    return [False] * len(constraints)
  return [CHECKS[name](text, value) for name, value in constraints.items()]


def checked(constraints: Any) -> dict[str, Any]:
  """Returns the constraints of a row.

  Raises:
    RecordError: there are none, one has no check, or its check cannot read its value.
  """
  if not isinstance(constraints, Mapping) or not constraints:
    raise RecordError("constraints: an object with at least one constraint is expected")
  for name, value in constraints.items():
    if name not in CHECKS:
      raise RecordError(f"constraints.{name}: no such constraint; there are {', '.join(CHECKS)}")
    # A check fails on a value of another type, whatever the text.
    try:
      CHECKS[name]("Any text.", value)
    except (TypeError, ValueError, KeyError) as error:
      raise RecordError(
        f"constraints.{name}: {jsons.text_with_nulls(value)} is no value for it ({error})"
      ) from None
  return dict(constraints)


# --- how many, and how long ---


def count_sentences(text: str) -> int:
  """Returns the number of sentences of a text."""
  count = 0
  previous = ""
  for part in SENTENCE_END.split(text):
    sentence = part.strip()
    has_word = re.search(r"\w", sentence) is not None
    # After an abbreviation the sentence goes on.
    if has_word and not ABBREVIATION.search(previous):
      count += 1
    previous = sentence
  return count


def _has_sentences(text: str, count: Any) -> bool:
  return count_sentences(text) == int(count)


def _has_words(text: str, limits: Any) -> bool:
  """Takes [fewest, most]."""
  return limits[0] <= len(text.split()) <= limits[1]


def _has_lines(text: str, count: Any) -> bool:
  # Empty lines only separate.
  lines = [line for line in text.splitlines() if line.strip()]
  return len(lines) == int(count)


def _has_paragraphs(text: str, count: Any) -> bool:
  paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
  return len(paragraphs) == int(count)


def _has_items(text: str, count: Any) -> bool:
  """Counts the lines that begin with a bullet; other lines may stand around them."""
  return len(_matches(BULLET, text)) == int(count)


def _is_numbered(text: str, count: int) -> bool:
  """Takes a list whose numbers are 1 to `count`, in order."""
  numbers = [int(match[1]) for match in _matches(NUMBER, text)]
  return numbers == list(range(1, count + 1))


def _matches(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
  """Returns the matches at the beginning of lines."""
  matches = [pattern.match(line) for line in text.splitlines()]
  return [match for match in matches if match]


def _is_separated(text: str, value: Any) -> bool:
  """Takes [separator, number of parts]."""
  separator, count = value
  # A sign or a full stop at the end opens no further part.
  inner = text.strip(f" .{separator}")
  parts = [part for part in inner.split(separator) if part.strip()]
  return len(parts) == count


# --- which words, and which form ---


def _list_of_texts(words: Any) -> list[str]:
  if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
    raise TypeError("a list of texts")
  return words


def _says(text: str, words: str) -> bool:
  """Returns whether a text has a word or phrase, in any case."""
  return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


def _includes(text: str, words: Any) -> bool:
  return all(_says(text, word) for word in _list_of_texts(words))


def _excludes(text: str, words: Any) -> bool:
  return not any(_says(text, word) for word in _list_of_texts(words))


def _is_without(text: str, part: Any) -> bool:
  return str(part) not in text


def _starts(text: str, start: Any) -> bool:
  return text.startswith(str(start))


def _ends(text: str, end: Any) -> bool:
  return text.endswith(str(end))


def _is_unended(text: str, end: Any) -> bool:
  return not text.endswith(str(end))


def _has_case(text: str, case: Any) -> bool:
  converted = {"lower": text.lower(), "upper": text.upper()}
  return text == converted[case]


def _is_json(text: str, value: list[str] | int) -> bool:
  """Takes the keys of an object, or the length of a list of texts, with nothing around it."""
  if not isinstance(value, int):
    _list_of_texts(value)
  try:
    parsed = json.loads(text)
  except (ValueError, RecursionError):
    return False
  if isinstance(value, int):
    has_length = isinstance(parsed, list) and len(parsed) == value
    return has_length and all(isinstance(part, str) for part in parsed)
  return isinstance(parsed, dict) and set(parsed) == set(value)


def _has_language(text: str, code: str) -> bool:
  if code not in languages.NAMES:
    raise KeyError(code)
  return languages.identify(text) == code


# By the name of the constraint: (text, value) -> is it satisfied?
CHECKS: dict[str, Callable[[str, Any], bool]] = {
  "sentences": _has_sentences,
  "words": _has_words,
  "lines": _has_lines,
  "paragraphs": _has_paragraphs,
  "items": _has_items,
  "numbered": _is_numbered,
  "separated": _is_separated,
  "include": _includes,
  "exclude": _excludes,
  "without": _is_without,
  "starts": _starts,
  "ends": _ends,
  "unended": _is_unended,
  "case": _has_case,
  "json": _is_json,
  "language": _has_language,
}
