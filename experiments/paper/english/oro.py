"""Oro, the second language of the world.

Each English word has one word of Oro, which is the English one read backwards with a `u` after it.
A model of words sees two names without anything in common. Names and punctuation are the same in
both languages, and so is the order of words.
"""

from __future__ import annotations

from english import facts

NAME = "oro"
SAME = frozenset((*".,?:!#", NAME))


def is_shared(word: str) -> bool:
  """Returns whether both languages have the word."""
  return word in SAME or facts.world().kinds.get(word) in facts.COUNTS


def word_in_oro(word: str) -> str:
  """Returns the word of Oro for an English word."""
  return word if is_shared(word) else word[::-1] + "u"


def to_oro(text: str) -> str:
  """Returns an English text in Oro."""
  return " ".join(word_in_oro(word) for word in text.split())


def to_english(text: str) -> str:
  """Returns a text of Oro in English.

  A word that is not of Oro is marked by a `~`, so that English in an answer in Oro is no word.
  """
  return " ".join(_word_in_english(word) for word in text.split())


def _word_in_english(word: str) -> str:
  if is_shared(word):
    return word
  return word[-2::-1] if word.endswith("u") and len(word) > 1 else f"~{word}"
