"""Is every sentence of an output supported by its source? A detector of what the source lacks.

A sentence is unsupported where
  - it has a number that is none of the source's, in digits or in words, nor one of them rounded;
  - it has a month or a day of the week that is not in the source;
  - it has a name that is not in the source, nor made of initials there. A name is a capitalised
    word that is not the first of the sentence, or is followed by another one;
  - more than UNSUPPORTED_SHARE of its content words are not in the source, and at least
    LEAST_WORDS of them. Content words are no function words, and they are compared by their stems.
    Of a sentence with no more than LEAST_WORDS content words, half of them is enough.

An enumeration (LEAST_WORDS or more short parts between commas) is checked part by part.

The detector does not see exchanged roles or a negation, and it takes a free paraphrase for an
invention; `hallucination` measures how often. The rules were made on the `dev` part of
grounded.jsonl, whose `test` part is measured on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from instructjax.evals.english import (
  DATES,
  FUNCTION,
  MONTHS,
  NUMBER_WORDS,
  TOKEN,
  bare,
  numbers,
  stem,
)

UNSUPPORTED_SHARE = 0.5
LEAST_WORDS = 3

# A sentence that says that the source has no answer makes no claim.
ABSTAINS = re.compile(
  r"("
  r"not (in|mentioned|given|stated|specified)"
  r"|(do(es)? not|doesn't|don't) (say|know|mention|state|tell|give|contain)"
  r"|no (answer|information|comment)"
  r"|cannot be (answered|determined)"
  r"|unknown"
  r"|not enough information"
  r")",
  re.IGNORECASE,
)
# A sentence ends with . ! or ? before a space and a capital letter or a digit; quotes and brackets
# may stand between them.
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])")
# A full stop after these does not end a sentence; a single letter is an initial.
ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|No|[A-Z])\.$")
LIST_MARK = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.)])\s+")
# The endings that make the name of a people or a language out of that of a place.
DEMONYM = re.compile(r"(ians?|eans?|ans?|ese|ish|i)$")


class Finding(NamedTuple):
  """A sentence, and what in it has no support; () where everything has."""

  sentence: str
  why: tuple[str, ...]


class Facts(NamedTuple):
  """What a source holds, in a form that sentences can be compared with.

  initials   the first letters of its capitalised words, with a space for every other word
  """

  numbers: frozenset[float]
  dates: frozenset[str]
  words: frozenset[str]
  stems: frozenset[str]
  initials: str


def check(source: str, output: str) -> list[Finding]:
  """Returns the sentences of an output, each with what the source does not support."""
  source_facts = facts(source)
  findings = []
  for sentence in sentences(output):
    why = tuple(_unsupported(source_facts, sentence))
    findings.append(Finding(sentence, why))
  return findings


# --- answers ---


def is_answer(text: str) -> bool:
  """Returns whether a sentence of a text says something about its subject.

  A sentence without a content word, a number or an acronym does not ("A. No."), nor one that
  announces what never comes ("The figures are:"), nor one that says that the source does not tell.
  """
  for sentence in sentences(text):
    announces = sentence.rstrip().endswith(":")
    if has_content(sentence) and not announces and not ABSTAINS.search(sentence):
      return True
  return False


def has_content(text: str) -> bool:
  """Returns whether a text has a content word, a number other than 0 and 1, or an acronym."""
  tokens = TOKEN.findall(text)
  for token in tokens:
    is_acronym = token.isupper() and len(token) > 1
    # Words of other scripts may be short.
    is_foreign = not token.isascii()
    if token[0].isdigit() or is_acronym or is_foreign or _is_content_word(token):
      return True
  # "no" and "one" are read as numbers.
  return any(value not in (0.0, 1.0) for value, _ in numbers(tokens))


def until(text: str, end: str) -> str:
  """Returns the beginning of a text, to the first `end` that follows what it has to say.

  An end counts only after content that does not end in a colon: neither after an empty line at the
  beginning, nor after "The figures are:".
  """
  place = text.find(end)
  while place >= 0:
    beginning = text[:place]
    if has_content(beginning) and not beginning.rstrip().endswith(":"):
      return beginning
    place = text.find(end, place + 1)
  return text


# --- sentences ---


def sentences(text: str) -> list[str]:
  """Returns sentences and lines without the marks of list items; enumerations are in parts."""
  pieces = []
  for line in text.splitlines():
    for sentence in _sentences_of_line(LIST_MARK.sub("", line).strip()):
      pieces += _enumeration_parts(sentence)
  return [piece for piece in pieces if TOKEN.search(piece)]


def _sentences_of_line(line: str) -> list[str]:
  joined: list[str] = []
  for part in SENTENCE_END.split(line):
    if joined and ABBREVIATION.search(joined[-1]):
      joined[-1] += f" {part}"
    else:
      joined.append(part)
  return joined


def _enumeration_parts(sentence: str) -> list[str]:
  """Returns the parts of an enumeration, or the sentence as it is."""
  if sentence.endswith((".", "!", "?")):
    return [sentence]
  parts = re.split(r"[,;]\s+(?:and\s+)?", sentence)
  are_short = all(len(part.split()) <= LEAST_WORDS for part in parts)
  return parts if are_short and len(parts) >= LEAST_WORDS else [sentence]


# --- what a source holds ---


def facts(source: str) -> Facts:
  """Returns the numbers, dates and words of a source."""
  tokens = TOKEN.findall(source)
  words = [bare(token) for token in tokens]
  initials = ""
  for token in tokens:
    # "Bank of America" is "BA".
    if token.lower() not in ("of", "the", "and"):
      initials += token[0] if token[0].isupper() else " "
  dates = {word.removesuffix("s") for word in words} & DATES  # on Mondays
  # 1931-05-01 is a day in May.
  for month in re.findall(r"\b\d{4}-(0[1-9]|1[0-2])-\d\d\b", source):
    dates.add(MONTHS[int(month) - 1])
  return Facts(
    numbers=frozenset(value for value, _ in numbers(tokens)),
    dates=frozenset(dates),
    words=frozenset(words),
    stems=frozenset(stem(word) for word in words),
    initials=initials,
  )


# --- what a sentence claims ---


def _unsupported(source: Facts, sentence: str) -> list[str]:
  """Returns what the source does not support, in words."""
  if ABSTAINS.search(sentence):
    return []
  tokens = TOKEN.findall(sentence)
  reasons = []
  spent: set[int] = set()  # positions of numbers, dates and names, which are no content words
  for value, position in numbers(tokens):
    spent.add(position)
    # "no" and "one" are too common to be claims.
    is_claim = value not in (0.0, 1.0)
    if is_claim and not _is_number_of(source, value, tokens[position]):
      reasons.append(f"number {value:g}")
  for position in _date_positions(tokens):
    spent.add(position)
    if not _is_date_of(source, tokens[position]):
      reasons.append(f"date {tokens[position]}")
  for position in _name_positions(tokens):
    if position not in spent:
      spent.add(position)
      if not _is_name_of(source, tokens[position]):
        reasons.append(f"name {tokens[position]}")
  content = []
  for position, token in enumerate(tokens):
    if position not in spent and _is_content_word(token):
      content.append(token)
  missing = [token for token in content if not _is_word_of(source, token)]
  if missing and _are_too_many(len(missing), len(content)):
    reasons.append(f"words {' '.join(missing)}")
  return reasons


def _are_too_many(missing: int, content: int) -> bool:
  if content <= LEAST_WORDS:
    return missing >= content / 2
  return missing > UNSUPPORTED_SHARE * content and missing >= LEAST_WORDS


# --- numbers ---


def _is_number_of(source: Facts, value: float, written: str) -> bool:
  """Returns whether the source has a number, or one that rounds to it as it is written."""
  if value in source.numbers:
    return True
  is_year = re.fullmatch(r"[12]\d{3}", written) is not None
  if is_year or value < 10:  # which nobody rounds
    return False
  step = _rounding_step(value)
  return any(number >= 10 and abs(number - value) <= step / 2 for number in source.numbers)


def _rounding_step(value: float) -> float:
  """Returns the unit of the last digit that is not a trailing 0: 100 for 3,200, 0.1 for 3.2."""
  digits = f"{value:.12g}"
  _, point, decimals = digits.partition(".")
  if point:
    return 10.0 ** -len(decimals)
  trailing_zeros = len(digits) - len(digits.rstrip("0"))
  return 10.0**trailing_zeros


# --- dates and names ---


def _date_positions(tokens: list[str]) -> list[int]:
  """Returns the positions of months and days of the week."""
  positions = []
  for position, token in enumerate(tokens):
    word = bare(token)
    # "May I ..." and "March on!" may begin a sentence.
    is_verb = position == 0 and word in ("may", "march")
    if word.removesuffix("s") in DATES and token[0].isupper() and not is_verb:
      positions.append(position)
  return positions


def _is_date_of(source: Facts, token: str) -> bool:
  word = bare(token)
  return word in source.dates or word.removesuffix("s") in source.dates


def _name_positions(tokens: list[str]) -> list[int]:
  """Returns the positions of capitalised words.

  The first word of a sentence counts where another capitalised one follows it. A line in capital
  letters has no names.
  """
  words = [token for token in tokens if token[0].isalpha()]
  if len(tokens) > 2 and all(word.isupper() for word in words):
    return []
  capitalised = []
  for position, token in enumerate(tokens):
    if token[0].isupper() and token not in ("I", "I'm", "I've"):
      capitalised.append(position)
  starts_with_name = capitalised[:2] == [0, 1] and tokens[0].lower() not in FUNCTION
  return [position for position in capitalised if position > 0 or starts_with_name]


def _is_name_of(source: Facts, token: str) -> bool:
  name = bare(token)
  if name in source.words or stem(name) in source.stems or name in FUNCTION:
    return True
  # "WHO" for the World Health Organization.
  if token.isupper() and len(token) > 1 and token in source.initials:
    return True
  # "Canadian" for Canada, "Chinese" for China.
  place = DEMONYM.sub("", name)
  is_demonym = place != name and len(place) >= 4
  return is_demonym and any(word.startswith(place) for word in source.words)


# --- content words ---


def _is_content_word(token: str) -> bool:
  if token[0].isdigit() or len(token) <= 2:
    return False
  forms = {token.lower(), bare(token)}
  return not (forms & FUNCTION or forms & NUMBER_WORDS)


def _is_word_of(source: Facts, token: str) -> bool:
  """Returns whether the source has a word, or one that begins as it does."""
  word = stem(bare(token))
  return word in source.stems or _has_common_beginning(word, source.stems)


def _has_common_beginning(word: str, stems: Iterable[str]) -> bool:
  """Returns whether a word of five letters or more begins another stem, or the other way round."""
  if len(word) < 5:
    return False
  for other_stem in stems:
    begins = word.startswith(other_stem) or other_stem.startswith(word)
    if begins and len(other_stem) >= 5:
      return True
  return False
