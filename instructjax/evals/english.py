"""English words, for programs that compare texts: tokens, numbers, stems and function words."""

from __future__ import annotations

import re

# Numbers with commas, other numbers, and words with apostrophes inside.
TOKEN = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+(?:['’][^\W\d_]+)*")

MONTHS = (
  "january",
  "february",
  "march",
  "april",
  "may",
  "june",
  "july",
  "august",
  "september",
  "october",
  "november",
  "december",
)
WEEKDAYS = (
  "monday",
  "tuesday",
  "wednesday",
  "thursday",
  "friday",
  "saturday",
  "sunday",
)
DATES = {*MONTHS, *WEEKDAYS}

# The words from 0 to 19, in order.
ONES = (
  "zero",
  "one",
  "two",
  "three",
  "four",
  "five",
  "six",
  "seven",
  "eight",
  "nine",
  "ten",
  "eleven",
  "twelve",
  "thirteen",
  "fourteen",
  "fifteen",
  "sixteen",
  "seventeen",
  "eighteen",
  "nineteen",
)
TENS = {
  "twenty": 20.0,
  "thirty": 30.0,
  "forty": 40.0,
  "fifty": 50.0,
  "sixty": 60.0,
  "seventy": 70.0,
  "eighty": 80.0,
  "ninety": 90.0,
}
SMALL = {word: float(value) for value, word in enumerate(ONES)}
SMALL.update(TENS)
# Words that multiply the number before them.
SCALES = {
  "hundred": 1e2,
  "thousand": 1e3,
  "million": 1e6,
  "billion": 1e9,
  "trillion": 1e12,
}
# Words that are a number alone.
FRACTIONS = {
  "half": 0.5,
  "third": 1 / 3,
  "quarter": 0.25,
  "dozen": 12.0,
  "twice": 2.0,
  "once": 1.0,
}
NUMBER_WORDS = {*SMALL, *SCALES, *FRACTIONS}

# Words that say nothing about the content of a text, so that their lack in a source is no evidence.
# The list was written for this project: English function words and the most general verbs and
# nouns, and then the words with which a text speaks of another text ("the report says").
_FUNCTION_LINES = (
  "a about above after again against all almost along already also although",
  "always among an and any are around as at away back be became because become",
  "been before being below between both but by can could day did do does doing",
  "done down during each either else ever every few first for from further get",
  "gets give given go goes had half has have having he her here hers him his",
  "how however i if in instead into is it its just last later least less like",
  "made make makes many may me might more most much must my near need never",
  "next no nor not now of off often on once one only onto or other others our",
  "out over own per rather same several shall she should since so some soon",
  "still such take takes than that the their them then there therefore these",
  "they this those though through thus time to together too toward towards",
  "twice two under until up upon us used very was way we well were what when",
  "where whether which while who whom whose why will with within without would",
  "year yes yet you your thing things someone something people person",
  # Words of texts about texts.
  "accord according article author describe discuss explain mention note",
  "passage report said say says state story summary tell tells text told whole",
  "write",
)
FUNCTION = frozenset(" ".join(_FUNCTION_LINES).split())

# The endings that `stem` takes off; the first one that fits counts, so longer ones come first.
SUFFIXES = (
  "izations",
  "ization",
  "ations",
  "ation",
  "ments",
  "ment",
  "ness",
  "ingly",
  "edly",
  "ings",
  "ing",
  "ions",
  "ion",
  "ers",
  "er",
  "ors",
  "or",
  "ies",
  "ied",
  "est",
  "ed",
  "es",
  "ly",
  "s",
  "y",
  "e",
)
LEAST_STEM = 3  # letters


def bare(token: str) -> str:
  """Returns a token in lower case, without the end of a genitive."""
  without_genitive = re.sub(r"['’](s|S)?$", "", token)
  return without_genitive.replace("’", "'").lower()


def stem(word: str) -> str:
  """Returns an English word in lower case without its ending; at least three letters remain.

  Forms of one word get the same stem, and unrelated words rarely do. It is cruder than Porter's
  stemmer: it takes off one ending, and no table says which words are exceptions.
  """
  for suffix in SUFFIXES:
    if word.endswith(suffix) and len(word) - len(suffix) >= LEAST_STEM:
      word = word.removesuffix(suffix)
      break
  # "stopped" is "stopp" by now.
  if len(word) > LEAST_STEM and word[-1] == word[-2] and word[-1] not in "aeiou":
    word = word[:-1]
  # "carry" and "carried" meet in "carri".
  if len(word) > LEAST_STEM and word[-1] == "y":
    return word[:-1] + "i"
  return word.rstrip("e") if len(word) > 4 else word


def numbers(tokens: list[str]) -> list[tuple[float, int]]:
  """Returns (value, position of the first token) of all numbers, in digits and in words.

  "3.2 million" and "sixty five" are one number each.
  """
  values = []
  position = 0
  while position < len(tokens):
    value, end = _read_number(tokens, position)
    if end > position:
      values.append((value, position))
      position = end
    else:
      position += 1
  return values


def _read_number(tokens: list[str], start: int) -> tuple[float, int]:
  """Returns a number and the position after it; `start` itself where no number begins there."""
  total = 0.0  # the parts before a thousand, a million ...
  part = 0.0  # the part since then: in "two thousand three hundred", three hundred
  position = start
  while position < len(tokens):
    token = tokens[position]
    word = token.lower()
    is_first = position == start
    if token[0].isdigit() and is_first:
      part = float(word.replace(",", ""))
    elif word in SMALL and (is_first or _goes_on(tokens[position - 1].lower(), SMALL[word])):
      part += SMALL[word]
    elif word == "hundred":
      part = (part or 1) * SCALES[word]
    elif word in SCALES and not is_first:
      total += (part or 1) * SCALES[word]
      part = 0.0
    elif word in FRACTIONS and is_first:
      part = FRACTIONS[word]
    else:
      break
    position += 1
  return total + part, position


def _goes_on(previous: str, value: float) -> bool:
  """Returns whether a number word belongs to the one before: sixty five, two hundred twenty."""
  return previous in SCALES or (previous in TENS and value < 10)
