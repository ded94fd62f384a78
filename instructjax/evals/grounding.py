"""Is every sentence of an output supported by the source?  A detector of numbers, dates, names and
words out of nowhere.

A sentence is unsupported where
  - a number in it is none of the source, written in digits or words, nor one of them rounded, -
  a month or a day of the week is not in the source, - a capitalised word that is not the first
  of the sentence (or is followed by another) is not in the source, nor made of
    initials there, or
  - more than WORDS of its content words (no function words, stems compared) are not in the
  source, and at least LEAST of
    them; of a sentence with no more than LEAST content words: half of them.
An enumeration (LEAST or more short parts between commas) is checked part by part. It sees no
exchanged roles, no negation, and takes a free paraphrase for an invention: `hallucination`
measures how often.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

WORDS, LEAST = 0.5, 3
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
DATES = {
  *MONTHS,
  "monday",
  "tuesday",
  "wednesday",
  "thursday",
  "friday",
  "saturday",
  "sunday",
}
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
  "twenty": 20,
  "thirty": 30,
  "forty": 40,
  "fifty": 50,
  "sixty": 60,
  "seventy": 70,
  "eighty": 80,
  "ninety": 90,
}
SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
SMALL = {word: float(n) for n, word in enumerate(ONES)} | {
  word: float(n) for word, n in TENS.items()
}
FRACTIONS = {"half": 0.5, "third": 1 / 3, "quarter": 0.25, "dozen": 12.0, "twice": 2.0, "once": 1.0}
FUNCTION = frozenset(
  re.findall(
    r"\w+",
    """
  a about above after again against all almost along already also although always among an and any are around as at away
  back be became because become been before being below between both but by can could day did do does doing done down during
  each either else ever every few first for from further get gets give given go goes had half has have having he her here
  hers him his how however i if in instead into is it its just last later least less like made make makes many may me might
  more most much must my near need never next no nor not now of off often on once one only onto or other others our out over
  own per rather same several shall she should since so some soon still such take takes than that the their them then there
  therefore these they this those though through thus time to together too toward towards twice two under until up upon us
  used very was way we well were what when where whether which while who whom whose why will with within without would year
  yes yet you your thing things someone something people person
  accord according article author describe discuss explain mention note passage report said say says state story summary
  tell tells text told whole write
""",
  )
)
# What says that the source has no answer is no claim.
ABSTAINS = re.compile(
  r"(not (in|mentioned|given|stated|specified)|(do(es)? not|doesn't|don't) "
  r"(say|know|mention|state|tell|give|contain)|"
  r"no (answer|information|comment)|cannot be (answered|determined)|unknown|not enough "
  r"information)",
  re.IGNORECASE,
)
SHORTENED = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|No|[A-Z])\.$")
TOKEN = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+(?:['’][^\W\d_]+)*")
MARK = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.)])\s+")


class Finding(NamedTuple):
  """A sentence, and what in it has no support; () where it is supported."""

  sentence: str
  why: tuple[str, ...]


class Facts(NamedTuple):
  """What a source holds, normalised."""

  numbers: frozenset[float]
  dates: frozenset[str]
  words: frozenset[str]
  stems: frozenset[str]
  initials: str


def check(source: str, output: str) -> list[Finding]:
  """The sentences of an output, each with what the source does not support."""
  known = facts(source)
  return [Finding(one, tuple(_unsupported(known, one))) for one in sentences(output)]


def sentences(text: str) -> list[str]:
  """Sentences and lines; marks of list items are left out."""
  found: list[str] = []
  for line in text.splitlines():
    parts = re.split(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]?[A-Z0-9])", MARK.sub("", line).strip())
    joined: list[str] = []
    for part in parts:
      if joined and SHORTENED.search(joined[-1]):
        joined[-1] += f" {part}"
      else:
        joined.append(part)
    found += [piece for part in joined for piece in _enumerated(part) if TOKEN.search(piece)]
  return found


def _enumerated(sentence: str) -> list[str]:
  pieces = re.split(r"[,;]\s+(?:and\s+)?", sentence)
  short = len(pieces) >= LEAST and all(len(piece.split()) <= LEAST for piece in pieces)
  return pieces if short and sentence[-1] not in ".!?" else [sentence]


def facts(source: str) -> Facts:
  """The numbers, dates and words of a source."""
  tokens = TOKEN.findall(source)
  plain = [_plain(token) for token in tokens]
  initials = "".join(
    token[0] if token[0].isupper() else " "
    for token in tokens
    if token.lower() not in ("of", "the", "and")
  )
  found = [value for value, _ in numbers(tokens)]
  months = {
    MONTHS[int(month) - 1] for month in re.findall(r"\b\d{4}-(0[1-9]|1[0-2])-\d\d\b", source)
  }
  dates = {word.removesuffix("s") for word in plain} & DATES | months
  return Facts(
    frozenset(found), frozenset(dates), frozenset(plain), frozenset(map(stem, plain)), initials
  )


def numbers(tokens: list[str]) -> list[tuple[float, int]]:
  """(value, the position of its first token) of numbers in digits and words; "3.2 million" and
  "sixty five" are one each.
  """
  found: list[tuple[float, int]] = []
  at = 0
  while at < len(tokens):
    start, total, part, seen = at, 0.0, 0.0, False
    while at < len(tokens):
      word = tokens[at].lower()
      if tokens[at][0].isdigit() and not seen:
        part = float(word.replace(",", ""))
      elif word in SMALL and (not seen or _joins(tokens[at - 1].lower(), SMALL[word])):
        part += SMALL[word]
      elif word in SCALES and (seen or word == "hundred"):
        scale = SCALES[word]
        total, part = (
          (total, (part or 1) * scale) if scale == 100 else (total + (part or 1) * scale, 0.0)
        )
      elif word in FRACTIONS and not seen:
        part = FRACTIONS[word]
      else:
        break
      seen, at = True, at + 1
    if seen:
      found.append((total + part, start))
    else:
      at += 1
  return found


def _joins(before: str, value: float) -> bool:
  """Does a number word go on with the number before it?  Sixty five, two hundred twenty."""
  return before in SCALES or (before in TENS and value < 10)


def _unsupported(known: Facts, sentence: str) -> Iterable[str]:
  if ABSTAINS.search(sentence):
    return
  tokens = TOKEN.findall(sentence)
  spent: set[int] = set()  # positions of numbers, dates and names
  for value, at in numbers(tokens):
    spent.add(at)
    if value not in (0.0, 1.0) and not _rounded(value, tokens[at], known.numbers):
      yield f"number {value:g}"
  for at, token in enumerate(tokens):
    if (
      _plain(token).removesuffix("s") in DATES
      and token[0].isupper()
      and not (at == 0 and _plain(token) in ("may", "march"))
    ):
      spent.add(at)
      if not {_plain(token), _plain(token).removesuffix("s")} & known.dates:
        yield f"date {token}"
  for at in _names(tokens):
    if at not in spent:
      spent.add(at)
      if not _named(known, tokens[at]):
        yield f"name {tokens[at]}"
  content = [
    token
    for at, token in enumerate(tokens)
    if at not in spent
    and not token[0].isdigit()
    and len(token) > 2
    and not {token.lower(), _plain(token)} & (FUNCTION | set(SMALL) | set(SCALES) | set(FRACTIONS))
  ]
  missing = [token for token in content if not _held(known, token)]
  few = len(content) <= LEAST
  if missing and (
    2 * len(missing) >= len(content) if few else len(missing) > max(WORDS * len(content), LEAST - 1)
  ):
    yield f"words {' '.join(missing)}"


def _names(tokens: list[str]) -> list[int]:
  """Positions of capitalised words; the first of a sentence counts where another follows it."""
  upper = [token[0].isupper() and token not in ("I", "I'm", "I've") for token in tokens]
  shout = all(
    token.isupper() for token in tokens if token[0].isalpha()
  )  # a line in capital letters has no names
  first = len(tokens) > 1 and upper[0] and upper[1] and tokens[0].lower() not in FUNCTION
  return (
    []
    if shout and len(tokens) > 2
    else [at for at, up in enumerate(upper) if up and (at > 0 or first)]
  )


def _named(known: Facts, token: str) -> bool:
  name = _plain(token)
  if name in known.words or stem(name) in known.stems or name in FUNCTION:
    return True
  if token.isupper() and len(token) > 1 and token in known.initials:
    return True
  base = re.sub(r"(ians?|eans?|ans?|ese|ish|i)$", "", name)  # Canadian, Chinese
  return base != name and len(base) >= 4 and any(word.startswith(base) for word in known.words)


def _held(known: Facts, token: str) -> bool:
  one = stem(_plain(token))
  return one in known.stems or any(
    min(len(one), len(other)) >= 5 and (one.startswith(other) or other.startswith(one))
    for other in known.stems
  )


def _rounded(value: float, written: str, known: Iterable[float]) -> bool:
  """Is the value among the known ones, or one of them rounded to the digits that it is written
  with?
  """
  digits = f"{value:.12g}"
  step = (
    10.0 ** -len(digits.partition(".")[2])
    if "." in digits
    else 10.0 ** (len(digits) - len(digits.rstrip("0")))
  )
  exact = re.fullmatch(r"[12]\d{3}", written) is not None  # a year is not rounded
  return any(
    one == value or (not exact and value >= 10 and abs(one - value) <= step / 2 and one >= 10)
    for one in known
  )


def _plain(token: str) -> str:
  """Without the end of a genitive, in lower case."""
  return re.sub(r"['’](s|S)?$", "", token).replace("’", "'").lower()


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


def stem(word: str) -> str:
  """What is left of an English word without its ending; at least three letters."""
  for suffix in SUFFIXES:
    if word.endswith(suffix) and len(word) - len(suffix) >= 3:
      word = word.removesuffix(suffix)
      break
  word = (
    word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou" else word
  )  # stopped
  return (
    word[:-1] + "i"
    if len(word) > 3 and word[-1] == "y"
    else word.rstrip("e")
    if len(word) > 4
    else word
  )
