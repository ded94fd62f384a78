"""Personal data in text: how it is found, and how it is masked.

A detector is a function from a text to the spans of one kind that it finds. The paper filtered its
training split for personally identifiable information (Ouyang et al. 2022, section 3.2) and does
not say how; these patterns are ours. They are made to be right where they find something, not to
find everything: names of people, for one, are not looked for. A detector of your own is one more
entry: `pii.find(text, pii.DETECTORS | {"badge": my_function})`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple


class Span(NamedTuple):
  """A part of a text, text[start:end], and the kind of personal data that it is."""

  kind: str
  start: int
  end: int


Place = tuple[int, int]  # start and end of a span
Detector = Callable[[str], Iterable[Place]]


def luhn(digits: str) -> bool:
  """Returns whether a card number passes Luhn's check (ISO/IEC 7812-1).

  Every second digit from the right is doubled, and its own digits are added. The sum of all must
  end in 0.
  """
  total = 0
  for place, digit in enumerate(reversed(digits)):
    value = int(digit)
    if place % 2:
      value *= 2
      if value > 9:  # the sum of the two digits of 10 to 18
        value -= 9
    total += value
  return total % 10 == 0


def mod97(iban: str) -> bool:
  """Returns whether an IBAN passes its check (ISO 13616).

  The first four characters are moved to the end, and letters become 10 to 35. The number must be 1
  modulo 97.
  """
  moved = iban[4:] + iban[:4]
  digits = "".join(str(int(character, 36)) for character in moved)
  return int(digits) % 97 == 1


# --- detectors ---

# Every repetition below has an upper limit, so that no text makes a detector slow.
EMAIL = re.compile(
  # the name
  r"(?<![\w.+%-])[\w+%-](?:[\w.+%-]{0,62}[\w+%-])?@"
  # the host and its domains
  r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
  # the top level domain
  r"[A-Za-z]{2,24}(?![\w-])"
)
PHONE = re.compile(
  r"(?<![\w.+-])(?:"
  # an international number
  r"(?P<international>\+[1-9]\d{0,2}[ -]?(?:\(\d{1,4}\)[ -]?)?\d{1,4}(?:[ -]?\d{2,4}){1,5})"
  # a North American number
  r"|(?:\+?1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}"
  r")(?![\w-])"
)
DIGITS = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,}")
# How the number of an issuer's card begins, and how many digits it may have.
CARDS = (
  (re.compile(r"4"), (13, 16, 19)),  # Visa
  (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),  # Mastercard
  (re.compile(r"3[47]"), (15,)),  # American Express
  (re.compile(r"6011|65|64[4-9]"), (16, 19)),  # Discover
  (re.compile(r"3(?:0[0-5]|[68])"), (14,)),  # Diners Club
  (re.compile(r"35(?:2[89]|[3-8])|62"), (16, 17, 18, 19)),  # JCB and UnionPay
)
CARD_DIGITS = (13, 19)  # the fewest and the most
GROUP_DIGITS = 3  # the fewest digits of a group in a card number that is written in groups
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
# Characters of an IBAN by country, from the registry of ISO 13616.
IBAN_LENGTHS = {
  "AD": 24,
  "AE": 23,
  "AL": 28,
  "AT": 20,
  "AZ": 28,
  "BA": 20,
  "BE": 16,
  "BG": 22,
  "BH": 22,
  "BR": 29,
  "BY": 28,
  "CH": 21,
  "CR": 22,
  "CY": 28,
  "CZ": 24,
  "DE": 22,
  "DK": 18,
  "DO": 28,
  "EE": 20,
  "EG": 29,
  "ES": 24,
  "FI": 18,
  "FO": 18,
  "FR": 27,
  "GB": 22,
  "GE": 22,
  "GI": 23,
  "GL": 18,
  "GR": 27,
  "GT": 28,
  "HR": 21,
  "HU": 28,
  "IE": 22,
  "IL": 23,
  "IQ": 23,
  "IS": 26,
  "IT": 27,
  "JO": 30,
  "KW": 30,
  "KZ": 20,
  "LB": 28,
  "LI": 21,
  "LT": 20,
  "LU": 20,
  "LV": 21,
  "MC": 27,
  "MD": 24,
  "ME": 22,
  "MK": 19,
  "MR": 27,
  "MT": 31,
  "MU": 30,
  "NL": 18,
  "NO": 15,
  "PK": 24,
  "PL": 28,
  "PS": 29,
  "PT": 25,
  "QA": 29,
  "RO": 24,
  "RS": 22,
  "SA": 24,
  "SE": 24,
  "SI": 19,
  "SK": 24,
  "SM": 27,
  "TN": 24,
  "TR": 26,
  "UA": 29,
  "VG": 24,
  "XK": 20,
}
# Without the ranges that are never given out: 000, 666 and 9xx, 00, and 0000.
SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}([ -])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
# Words for a street, long and short.
STREETS = (
  "Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Square|Sq|Terrace|Ter"
  "|Highway|Hwy|Parkway|Pkwy"
)
ADDRESS = re.compile(
  # a house number, and a direction
  rf"(?<![\w.,$-])\d{{1,5}}[A-Za-z]? (?:[NSEW]\.? )?"
  # the name of the street
  rf"(?:(?:[A-Z][a-z'’-]{{1,20}}|\d{{1,3}}(?:st|nd|rd|th)) ){{1,3}}(?:{STREETS})\b"
  # a German street and its number
  r"|\b[A-ZÄÖÜ][a-zäöüß-]{1,30}(?:straße|strasse|allee|gasse) \d{1,4}[a-z]?\b"
)
SECRET = re.compile(
  # Amazon
  r"\bAKIA[0-9A-Z]{16}\b"
  # GitHub
  r"|\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_\w{22,255}\b"
  # Google
  r"|\bAIza[\w-]{35}(?![\w-])"
  # Slack
  r"|\bxox[abeprs]-[0-9A-Za-z-]{10,255}"
  # Stripe
  r"|\b[prs]k_(?:live|test)_[0-9A-Za-z]{16,255}\b"
  # OpenAI and others
  r"|\bsk-[\w-]{20,255}"
  # a JSON web token
  r"|\beyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}"
  # a private key, which may be cut off
  r"|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[\sA-Za-z0-9+/=:,-]{0,10000}?"
  r"(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|\Z)"
)
# A text in which SECRET finds something has one of these.
SECRET_BEGINS = (
  "AKIA",
  "ghp_",
  "gho_",
  "ghu_",
  "ghs_",
  "ghr_",
  "github_pat_",
  "AIza",
  "xox",
  "k_live_",
  "k_test_",
  "sk-",
  "eyJ",
  "-----BEGIN",
)
# In small letters a text in which ASSIGNED finds something has one of these.
ASSIGNED_WORDS = ("key", "secret", "token", "passw")
ASSIGNED = re.compile(
  # the name of a variable or field
  r"(?i)\b(?:api[_-]?key|access[_-]?key|secret(?:[_-]?key)?|auth[_-]?token|access[_-]?token"
  r"|passwd|password)\b"
  # what it is set to
  r"['\"]?\s{0,3}[:=]\s{0,3}['\"]?(?P<value>[\w+/=.!@#$%^&*-]{8,200})"
)


def emails(text: str) -> Iterator[Place]:
  """Yields the places of name@host.domain."""
  if "@" not in text:  # most texts, which the pattern would take long to search
    return
  for match in EMAIL.finditer(text):
    if ".." not in match[0]:
      yield match.span()


def phones(text: str) -> Iterator[Place]:
  """Yields the places of phone numbers.

  These are + and a country code with 8 to 15 digits in all, or a North American number of ten
  digits with its separators. A bare run of digits is none.
  """
  for match in PHONE.finditer(text):
    digits = sum(character.isdigit() for character in match[0])
    if not match["international"] or 8 <= digits <= 15:
      yield match.span()


def cards(text: str) -> Iterator[Place]:
  """Yields the places of card numbers.

  These are 13 to 19 digits, in one group or in groups of 3 or more, that begin as an issuer's
  numbers do, have their length, and pass Luhn's check.
  """
  for run in DIGITS.finditer(text):
    groups = [group.span() for group in re.finditer(r"\d+", run[0])]
    if text[run.end() : run.end() + 1].isalnum():
      groups.pop()  # 4111111111111111x is something else
    first = 0
    while first < len(groups):
      start, _ = groups[first]
      last = _last_group(run[0], groups, first)
      if last is None:
        first += 1
        continue
      _, end = groups[last]
      yield run.start() + start, run.start() + end
      first = last + 1


def _last_group(text: str, groups: Sequence[Place], first: int) -> int | None:
  """Returns the group that ends the card number which begins with group `first`, if there is one.

  The shortest number counts, because other digits may follow it.
  """
  fewest, most = CARD_DIGITS
  start, _ = groups[first]
  digits = 0
  for i in range(first, len(groups)):
    group_start, end = groups[i]
    size = end - group_start
    digits += size
    if size < GROUP_DIGITS or digits > most:
      return None
    if digits >= fewest and _is_card(text[start:end]):
      return i
  return None


def _is_card(number: str) -> bool:
  """Returns whether a number with its separators is one of an issuer, and passes the check."""
  digits = number.replace(" ", "").replace("-", "")
  for begin, sizes in CARDS:
    if len(digits) in sizes and begin.match(digits):
      return luhn(digits)
  return False


def ibans(text: str) -> Iterator[Place]:
  """Yields the places of IBANs: country, check digits and account, in groups or not.

  They have the length that the country's have, and are right modulo 97.
  """
  for match in IBAN.finditer(text):
    country = match[0][:2]
    length = IBAN_LENGTHS.get(country)
    places = [match.start() + i for i, character in enumerate(match[0]) if character != " "]
    if length is None or len(places) < length:
      continue
    # The pattern may go on into the next word, so the country's length decides where it ends.
    end = places[length - 1] + 1
    ends_a_word = not text[end : end + 1].isalnum()
    iban = "".join(text[place] for place in places[:length])
    if ends_a_word and mod97(iban):
      yield match.start(), end


def ssns(text: str) -> Iterator[Place]:
  """Yields the places of US social security numbers, of 3, 2 and 4 digits."""
  for match in SSN.finditer(text):
    yield match.span()


def addresses_ip(text: str) -> Iterator[Place]:
  """Yields the places of IPv4 and IPv6 addresses of the public internet.

  Private, local and reserved addresses say nothing about a person.
  """
  for match in IPV4.finditer(text):
    if _is_global(match[0]):
      yield match.span()
  if "::" not in text and text.count(":") < 7:  # then it holds no IPv6 address
    return
  for match in IPV6.finditer(text):
    # Only 2000::/3 has been given out.
    if match[0][0] in "23" and _is_global(match[0]):
      yield match.span()


def _is_global(address: str) -> bool:
  try:
    return ipaddress.ip_address(address).is_global
  except ValueError:  # 256.1.1.1, for one
    return False


def streets(text: str) -> Iterator[Place]:
  """Yields the places of street addresses.

  These are a house number, capitalised names and a word for a street, or a German street with a
  number.
  """
  for match in ADDRESS.finditer(text):
    yield match.span()


def secrets(text: str) -> Iterator[Place]:
  """Yields the places of keys and passwords.

  These are keys of well-known services, JSON web tokens and private keys, and also what a password
  or key is set to, if it has a digit and a letter.
  """
  # Most texts have none of the words, and to look for them is much quicker than the patterns are.
  if any(begin in text for begin in SECRET_BEGINS):
    for match in SECRET.finditer(text):
      yield match.span()
  folded = text.casefold()
  if not any(word in folded for word in ASSIGNED_WORDS):
    return
  for match in ASSIGNED.finditer(text):
    value = match["value"]
    # Words such as "password: correct" are text, not passwords.
    has_digit = any(character.isdigit() for character in value)
    has_letter = any(character.isalpha() for character in value)
    if has_digit and has_letter:
      yield match.span("value")


# Where two of them find the same span, the first one names its kind.
DETECTORS: Mapping[str, Detector] = {
  "secret": secrets,
  "email": emails,
  "iban": ibans,
  "credit_card": cards,
  "ssn": ssns,
  "phone": phones,
  "ip_address": addresses_ip,
  "street_address": streets,
}


# They find nothing in a text without digits, which most texts are.
OF_DIGITS = (ibans, cards, ssns, phones, addresses_ip, streets)
ANY_DIGIT = re.compile(r"\d")

# --- spans ---


def find(text: str, detectors: Mapping[str, Detector] = DETECTORS) -> list[Span]:
  """Returns the spans of a text in order and without overlaps.

  Of two that overlap the earlier one stays, then the longer one, then the earlier detector's.
  """
  candidates = []
  has_digits = ANY_DIGIT.search(text) is not None
  for kind, detector in detectors.items():
    if detector in OF_DIGITS and not has_digits:
      continue
    candidates += [Span(kind, start, end) for start, end in detector(text)]
  # Sorting is stable, which leaves equal spans in the order of the detectors.
  candidates.sort(key=lambda span: (span.start, -span.end))
  spans: list[Span] = []
  for span in candidates:
    if not spans or span.start >= spans[-1].end:
      spans.append(span)
  return spans


def mask(text: str, spans: Iterable[Span]) -> str:
  """Returns the text with [KIND] in the place of each span.

  The spans are in order and without overlaps, as `find` gives them.
  """
  parts = []
  rest = 0  # where the text after the last span begins
  for span in spans:
    parts.append(text[rest : span.start])
    parts.append(f"[{span.kind.upper()}]")
    rest = span.end
  parts.append(text[rest:])
  return "".join(parts)
