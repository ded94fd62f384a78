"""Personal data in text: detectors, functions from a text to the spans they find, and what to do
with the spans.

The paper filtered its training split for personally identifiable information and does not say
how; these patterns are ours. They are made to be right where they speak, not to find everything:
names of people, for one, are not looked for.  A detector of your own is a function:
`pii.find(text, pii.DETECTORS | {"badge": my_function})`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple


class Span(NamedTuple):
  """text[start:end] is of this kind."""

  kind: str
  start: int
  end: int


Detector = Callable[[str], Iterable[tuple[int, int]]]


def luhn(digits: str) -> bool:
  """The check of card numbers: every second digit from the right doubled, its digits added; the sum
  ends in 0.
  """
  values = [int(digit) for digit in reversed(digits)]
  return sum(values[::2] + [2 * v - 9 * (v > 4) for v in values[1::2]]) % 10 == 0


def mod97(iban: str) -> bool:
  """The check of IBANs (ISO 13616): the first four characters moved to the end, letters as 10 to
  35, is 1 modulo 97.
  """
  return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


# --- detectors ---

EMAIL = re.compile(
  r"(?<![\w.+%-])[\w+%-](?:[\w.+%-]{0,62}[\w+%-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
PHONE = re.compile(
  r"(?<![\w.+-])(?:"
  r"(?P<international>\+[1-9]\d{0,2}[ -]?(?:\(\d{1,4}\)[ -]?)?\d{1,4}(?:[ -]?\d{2,4}){1,5})"
  r"|(?:\+?1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}"
  r")(?![\w-])"
)
DIGITS = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,}")
CARDS = (  # how the number begins, how many digits it has
  (re.compile(r"4"), (13, 16, 19)),
  (re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),
  (re.compile(r"3[47]"), (15,)),
  (re.compile(r"6011|65|64[4-9]"), (16, 19)),
  (re.compile(r"3(?:0[0-5]|[68])"), (14,)),
  (re.compile(r"35(?:2[89]|[3-8])|62"), (16, 17, 18, 19)),
)
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
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
SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}([ -])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
STREETS = "Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Square|Sq|Terrace|Ter|Highway|Hwy|Parkway|Pkwy"
ADDRESS = re.compile(
  rf"(?<![\w.,$-])\d{{1,5}}[A-Za-z]? (?:[NSEW]\.? )?"
  rf"(?:(?:[A-Z][a-z'’-]{{1,20}}|\d{{1,3}}(?:st|nd|rd|th)) ){{1,3}}(?:{STREETS})\b"
  r"|\b[A-ZÄÖÜ][a-zäöüß-]{1,30}(?:straße|strasse|allee|gasse) \d{1,4}[a-z]?\b"
)
SECRET = re.compile(
  r"\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_\w{22,255}\b|\bAIza[\w-]{35}(?![\w-])"
  r"|\bxox[abeprs]-[0-9A-Za-z-]{10,255}|\b[prs]k_(?:live|test)_[0-9A-Za-z]{16,255}\b|\bsk-[\w-]{20,255}"
  r"|\beyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}"
  r"|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[\sA-Za-z0-9+/=:,-]{0,10000}?(?:-----END [A-Z "
  r"]{0,20}PRIVATE KEY-----|\Z)"
)
ASSIGNED = re.compile(
  r"(?i)\b(?:api[_-]?key|access[_-]?key|secret(?:[_-]?key)?|auth[_-]?token|access[_-]?token|passwd|password)\b"
  r"['\"]?\s{0,3}[:=]\s{0,3}['\"]?(?P<value>[\w+/=.!@#$%^&*-]{8,200})"
)


def emails(text: str) -> Iterator[tuple[int, int]]:
  """name@host.domain"""
  for found in EMAIL.finditer(text) if "@" in text else ():
    if ".." not in found[0]:
      yield found.span()


def phones(text: str) -> Iterator[tuple[int, int]]:
  """+CC and 8 to 15 digits in all, or a North American number of ten with its separators; a bare
  run of digits is none.
  """
  for found in PHONE.finditer(text):
    digits = sum(c.isdigit() for c in found[0])
    if not found["international"] or 8 <= digits <= 15:
      yield found.span()


def cards(text: str) -> Iterator[tuple[int, int]]:
  """13 to 19 digits, in groups of 3 or more or in one, with the beginning and length of an issuer,
  that pass Luhn's check.
  """
  for run in DIGITS.finditer(text):
    groups = [group.span() for group in re.finditer(r"\d+", run[0])]
    if text[run.end() : run.end() + 1].isalnum():
      groups.pop()  # 4111111111111111x
    first = 0
    while first < len(groups):
      last = next(
        (i for i in _ends(run[0], groups, first) if _card(run[0], groups[first][0], groups[i][1])),
        None,
      )
      if last is not None:
        yield run.start() + groups[first][0], run.start() + groups[last][1]
      first = (first if last is None else last) + 1


def _ends(text: str, groups: list[tuple[int, int]], first: int) -> Iterator[int]:
  """Groups at which a number of 13 to 19 digits that begins with group `first` may end."""
  digits = 0
  for i in range(first, len(groups)):
    size = groups[i][1] - groups[i][0]
    digits += size
    if size < 3 or digits > 19:
      return
    if digits >= 13:
      yield i


def _card(text: str, start: int, end: int) -> bool:
  digits = text[start:end].replace(" ", "").replace("-", "")
  return any(len(digits) in lengths and begin.match(digits) for begin, lengths in CARDS) and luhn(
    digits
  )


def ibans(text: str) -> Iterator[tuple[int, int]]:
  """Country, check digits and account, in groups or not, of the country's length and right modulo
  97.
  """
  for found in IBAN.finditer(text):
    places = [found.start() + i for i, c in enumerate(found[0]) if c != " "]
    length = IBAN_LENGTHS.get(found[0][:2])
    if length is None or len(places) < length:
      continue
    end = places[length - 1] + 1
    inside = not text[end : end + 1].isalnum()
    if inside and mod97("".join(text[i] for i in places[:length])):
      yield found.start(), end


def ssns(text: str) -> Iterator[tuple[int, int]]:
  """US social security numbers, 3-2-4 digits, without the ranges that are never given out."""
  yield from (found.span() for found in SSN.finditer(text))


def addresses_ip(text: str) -> Iterator[tuple[int, int]]:
  """IPv4 and IPv6 addresses of the public internet; private, local and reserved ones say nothing
  about a person.
  """
  for found in IPV4.finditer(text):
    if _global(found[0]):
      yield found.span()
  for found in IPV6.finditer(text) if "::" in text or text.count(":") > 6 else ():
    if _global(found[0]) and found[0][0] in "23":  # 2000::/3 is what has been given out
      yield found.span()


def _global(address: str) -> bool:
  try:
    return ipaddress.ip_address(address).is_global
  except ValueError:
    return False


def streets(text: str) -> Iterator[tuple[int, int]]:
  """A house number, capitalised names and a word for a street, or a German street with a number."""
  yield from (found.span() for found in ADDRESS.finditer(text))


def secrets(text: str) -> Iterator[tuple[int, int]]:
  """Keys of known services, JSON web tokens, private keys; what a password or key is set to, if it
  has a digit and a letter.
  """
  yield from (found.span() for found in SECRET.finditer(text))
  for found in ASSIGNED.finditer(text):
    value = found["value"]
    if any(c.isdigit() for c in value) and any(c.isalpha() for c in value):
      yield found.span("value")


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


# --- spans ---


def find(text: str, detectors: Mapping[str, Detector] = DETECTORS) -> list[Span]:
  """The spans in order, without overlaps: the earlier one stays, then the longer one, then the
  earlier detector's.
  """
  every = [
    Span(kind, start, end) for kind, detector in detectors.items() for start, end in detector(text)
  ]
  kept: list[Span] = []
  for span in sorted(every, key=lambda span: (span.start, -span.end)):
    if not kept or span.start >= kept[-1].end:
      kept.append(span)
  return kept


def mask(text: str, spans: Iterable[Span]) -> str:
  """The text with [KIND] in the place of each span; spans in order and without overlaps, as `find`
  gives them.
  """
  parts, at = [], 0
  for span in spans:
    parts += [text[at : span.start], f"[{span.kind.upper()}]"]
    at = span.end
  return "".join([*parts, text[at:]])
