"""JSON values out of lines and out of texts that come in pieces, with what is wrong in words.

An object in which a key occurs twice is refused, because one of the two values would be lost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any

from instructjax.data.records.schemas import RecordError

# How Python spells what JSON spells true, false and null.
PYTHON_WORDS = ("None", "True", "False")
# A text that ends within a value is refused at its end, or a few characters before where a letter
# is spelled \u00e9.
LONGEST_ESCAPE = 12
NUMBER_TAIL = 3  # characters after a number, with its last digit, that may still belong to it


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns a JSON object as a dict and refuses a repeated key, which would lose a value."""
  fields = dict(pairs)
  if len(fields) < len(pairs):
    counts = Counter(key for key, _ in pairs)
    repeated_key = counts.most_common(1)[0][0]
    raise RecordError(f"{repeated_key}: occurs twice in one object; keep one")
  return fields


# Making a decoder takes as long as reading a short line, so it is made once.
DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)
# Finds the end of an object that the other one refuses.
ANY_KEYS = json.JSONDecoder()


# --- lines ---


def values(line: bytes) -> list[Any]:
  """Returns the value of a line of JSON in UTF-8, or its values where it holds several objects.

  Raises:
    RecordError: if it is no JSON, if an object has a key twice, or if the nesting is too deep.
  """
  try:
    text = line.decode("utf-8")
  except UnicodeDecodeError as error:
    raise RecordError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from None
  try:
    return [DECODER.decode(text)]
  except JSONDecodeError as error:
    if error.msg == "Extra data":
      return _objects(text, error)
    raise RecordError(complaint(error)) from None
  except RecordError:
    # This is a ValueError too, but it already says what is wrong.
    raise
  except RecursionError:
    raise RecordError(too_deep()) from None
  except ValueError as error:
    # Python reads no integers of more than 4300 digits.
    raise RecordError(f"not JSON ({error}); shorten the number") from None


def _objects(text: str, failure: JSONDecodeError) -> list[Any]:
  """Returns the objects of a line that holds more than one value, or raises for `failure`."""
  scanner = Scanner(iter([text]))
  objects = []
  try:
    while scanner.next_character():
      objects.append(scanner.value())
  except JSONDecodeError:
    raise RecordError(complaint(failure)) from None
  if not all(isinstance(value, dict) for value in objects):
    raise RecordError(complaint(failure))
  return objects


def complaint(error: JSONDecodeError) -> str:
  """Returns what is wrong with a line that is no JSON, and what to do."""
  rest = error.doc[error.pos :]
  hint = "write one object a line"
  if rest.startswith(PYTHON_WORDS):
    hint = "JSON spells true, false and null; write it with json.dumps"
  elif rest.startswith("'"):
    hint = "texts of JSON stand in double quotes; write it with json.dumps"
  return f"not JSON ({reason(error)}); {hint}"


def reason(error: JSONDecodeError) -> str:
  """Returns what Python says of a text that is no JSON, with the character, counted from 1."""
  return f"{error.msg} at character {error.colno}"


def too_deep() -> str:
  """Returns what is wrong with objects and lists that lie too deep in each other."""
  return "nested too deeply; a record is an object of texts and short lists"


# --- texts in pieces ---


class Scanner:
  """Reads one JSON value after the other. No more than a value and a piece are in memory."""

  def __init__(self, pieces: Iterator[str]):
    self.pieces = pieces
    self.text = ""
    self.position = 0
    self._lines = 1
    self._counted = 0  # characters of `text` whose newlines are in `_lines`

  def line(self) -> int:
    """Returns the number of the line that the scanner is in, from 1."""
    self._lines += self.text.count("\n", self._counted, self.position)
    self._counted = self.position
    return self._lines

  def next_character(self) -> str:
    """Returns the next character that is no white space and stays before it; "" at the end."""
    while True:
      while self.position < len(self.text):
        if self.text[self.position] not in " \t\r\n":
          return self.text[self.position]
        self.position += 1
      if not self._read_on():
        return ""

  def skip(self) -> None:
    """Goes past one character."""
    self.position += 1

  def value(self) -> Any:
    """Returns the value that begins here, or a RecordError for an object with a repeated key.

    Raises:
      JSONDecodeError: if it is no JSON. The scanner stays before it.
      RecordError: if its end cannot be found, because the nesting is too deep or a number too long.
    """
    while True:
      try:
        value, end = self._decoded()
      except JSONDecodeError as error:
        if _is_incomplete(error, len(self.text)) and self._read_on():
          continue
        raise
      except RecursionError:
        raise RecordError(too_deep()) from None
      # A number may go on in the next piece, of which "1e+" at the end shows a 1 alone.
      if end > len(self.text) - NUMBER_TAIL and self._read_on():
        continue
      self.position = end
      return value

  def _decoded(self) -> tuple[Any, int]:
    try:
      return DECODER.raw_decode(self.text, self.position)
    except RecordError as error:
      _, end = ANY_KEYS.raw_decode(self.text, self.position)
      return error, end
    except JSONDecodeError:
      raise
    except ValueError as error:
      raise RecordError(f"not JSON ({error}); shorten the number") from None

  def skip_to_object(self) -> bool:
    """Goes to the next line that begins with an object; returns False where there is none."""
    while True:
      begin = self.text.find("\n{", self.position)
      if begin >= 0:
        self.position = begin + 1
        return True
      # The newline may be the last character of this piece.
      self.position = max(self.position, len(self.text) - 1)
      if not self._read_on():
        return False

  def _read_on(self) -> bool:
    """Adds the next pieces to the text and drops what is done; returns False at the end.

    The text at least doubles, so that a value of many pieces is not read as many times.
    """
    kept = self.text[self.position :]
    parts = [kept]
    length = 0
    for piece in self.pieces:
      parts.append(piece)
      length += len(piece)
      if length >= max(len(kept), 1):
        break
    if not length:
      return False
    self.line()
    self.text = "".join(parts)
    self.position = 0
    self._counted = 0
    return True


def _is_incomplete(error: JSONDecodeError, length: int) -> bool:
  """Returns whether a value may only have been cut off by the end of a text of this length."""
  return error.msg.startswith("Unterminated string") or error.pos >= length - LONGEST_ESCAPE
