"""The grammar of rewards in a configuration, and the options of each kind of source.

python:my.py:polite + 0.5*http://localhost:8000/score#batch=8
min(runs/reward-1, runs/reward-2, runs/reward-3) + 0.1*python:my.py:polite
mean - 0.5*std(runs/reward-1, runs/reward-2, runs/reward-3)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from instructjax.data.batches.mixture import TERM
from instructjax.errors import UserError
from instructjax.system import places

GRAMMAR = (
  "rewards are written SOURCE, WEIGHT*SOURCE, or several of them with ' + ' between; a source is "
  "the directory of a reward run, python:FILE.py:FUNCTION, python:MODULE:FUNCTION, "
  "classifier:FOLDER_OR_HUB_ID#LABEL, http://..., https://..., openai:URL#MODEL or "
  "perspective:ATTRIBUTE; a term of the sum may also be min(SOURCE, SOURCE, ...), or "
  "mean - NUMBER*std(SOURCE, SOURCE, ...)"
)
# The options of all kinds that send requests. An option has the type of its default.
_ENDPOINT = {
  "token": "",  # the environment variable of a token
  "header": "",  # the header that carries it; "" is Authorization
  "concurrent": 4,  # requests at a time
  "timeout": 60.0,  # seconds
  "retries": 5,  # after the first attempt
  "wait": 1.0,  # seconds of the first pause
}
# The options of each kind of source, written #name=value,name=value, and their defaults.
OPTIONS: dict[str, dict[str, Any]] = {
  "run": {},
  "python": {"limit": 0.0},  # seconds of a call; 0 is none
  "classifier": {
    "as": "logit",
    "input": "joined",
    "long": "cut",  # what becomes of a prompt that does not fit, `classifier.LONG`
    "batch": 16,
    "device": "cpu",
  },
  "http": {"batch": 32, **_ENDPOINT},
  "openai": {"template": "", **_ENDPOINT},
  "perspective": {
    **_ENDPOINT,
    "url": "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze",
    "token": "PERSPECTIVE_API_KEY",
    "header": "X-Goog-Api-Key",
    "language": "en",
    "qps": 1.0,  # the quota of a new key
    "cache": "",
  },
}
_MOST = 1e6  # of every number, and of the seconds that Python's clocks can wait
_LEAST = {
  "batch": 1,
  "concurrent": 1,
  "timeout": 1e-3,
  "retries": 0,
  "wait": 0,
  "limit": 0,
  "qps": 1e-3,
}


class Group(NamedTuple):
  """Sources that make one term of a sum together."""

  number: int  # the place of that term in the sum; terms of other sums may have the same
  deviations: float | None  # subtracted from the mean; None takes the least of the scores

  def __str__(self) -> str:
    return "min" if self.deviations is None else f"mean - {self.deviations:g}*std"


@dataclass(frozen=True)
class Term:
  """One source of a sum, with its weight."""

  source: str  # as it was written, without the weight
  weight: float
  kind: str  # one of OPTIONS
  target: str  # what follows the kind: a path, a function, an address
  choice: str  # the bare word after the #: a label or a model; "" without one
  options: dict[str, Any]
  group: Group | None = None  # None stands in the sum by itself


def parse(text: str) -> tuple[Term, ...]:
  """Returns the terms of a sum.

  Raises:
    UserError: the text is not such a sum; the error quotes the grammar.
  """
  # A plus sign without spaces may be part of an address.
  parts = re.split(r"\s\+\s", text)
  terms: list[Term] = []
  for number, part in enumerate(parts):
    terms.extend(_terms(part.strip(), number))
  return tuple(terms)


def _terms(text: str, number: int) -> list[Term]:
  """Returns the sources of one part of a sum: a single one, or those of a group."""
  head, opening, rest = text.partition("(")
  is_mean = head.startswith("mean - ") and head.endswith("std")
  if not opening or not (head == "min" or is_mean):
    return [_term(text)]
  # What follows a comma alone is an option of a source.
  members = [member.strip() for member in rest.removesuffix(")").split(", ")]
  if not rest.endswith(")") or len(members) < 2:
    raise UserError(f"{text}: write two sources or more, with ', ' between and no sum: {GRAMMAR}")
  deviations = None
  if is_mean:
    factor = head.removeprefix("mean - ").removesuffix("std").strip().removesuffix("*").strip()
    deviations = _deviations(text, factor)
  group = Group(number, deviations)
  return [replace(_term(member), group=group) for member in members]


def _deviations(text: str, factor: str) -> float:
  """Returns the number before std(...), which is 1 where none is written."""
  try:
    deviations = float(factor or 1)
  except ValueError:
    raise UserError(f"{text}: {factor!r} is no number: {GRAMMAR}") from None
  if not 0 < deviations <= _MOST:
    raise UserError(f"{text}: the factor of std must be above 0, at most {_MOST:,.0f}")
  return deviations


def _term(text: str) -> Term:
  """Returns the term SOURCE or WEIGHT*SOURCE."""
  match = TERM.fullmatch(text)
  if not match:
    raise UserError(f"a reward is empty: {GRAMMAR}")
  weight = float(match[1] or 1)
  if not abs(weight) <= _MOST:
    raise UserError(f"{text}: the weight {match[1]} must be from -{_MOST:,.0f} to {_MOST:,.0f}")
  source = match[2]
  kind, rest = _kind(source)
  target, fragment = rest, ""
  # Kinds without options are paths, in which a # is a character like any other.
  if OPTIONS[kind]:
    target, _, fragment = rest.partition("#")
  choice, options = _options(source, kind, fragment)
  if kind == "python" and not re.fullmatch(r".+:[A-Za-z_]\w*", target):
    raise UserError(
      f"{source}: names no function, write python:FILE.py:FUNCTION or python:MODULE:FUNCTION"
    )
  if kind == "openai" and not choice:
    raise UserError(
      f"{source}: names no model, write openai:URL#MODEL, for one "
      "openai:http://localhost:8000/v1#judge"
    )
  if kind in ("http", "openai"):
    _check_url(source, target)
  if kind == "perspective":
    _check_url(source, options["url"])
  return Term(source, weight, kind, target, choice, options)


def _kind(source: str) -> tuple[str, str]:
  """Returns the kind of a source and the rest; without a kind it is the directory of a run."""
  word, colon, rest = source.partition(":")
  if word in ("http", "https"):
    return "http", source
  if places.is_address(source):  # of a run in a bucket
    return "run", source
  if colon and word in OPTIONS and rest:
    return word, rest
  # A single letter before the colon is a drive, as in C:\runs. A longer word is a misspelt kind,
  # and a star comes from a weight that is not a number.
  if "*" in source or (colon and len(word) > 1):
    raise UserError(f"reward {source!r}: {GRAMMAR}")
  return "run", source


def _options(source: str, kind: str, fragment: str) -> tuple[str, dict[str, Any]]:
  """Returns the choice and all options of a source, from what follows its #."""
  choice = ""
  options = dict(OPTIONS[kind])
  parts = fragment.split(",") if fragment else []
  for i, part in enumerate(parts):
    name, sign, value = part.partition("=")
    # The first part may be the bare word of the choice, for kinds that have one.
    if i == 0 and not sign and kind not in ("python", "http", "perspective"):
      choice = part
      continue
    if name not in options or not sign:
      names = ", ".join(f"{option}=" for option in options)
      raise UserError(f"{source}: {part!r} is no option; known are {names}")
    default = options[name]
    try:
      options[name] = type(default)(value)
    except ValueError:
      raise UserError(f"{source}: {name}={value} is no number; the default is {default}") from None
  for name, least in _LEAST.items():
    # No comparison with NaN holds, so that it is refused too.
    if name in options and not least <= options[name] <= _MOST:
      raise UserError(
        f"{source}: {name}={options[name]} must be at least {least}, at most {_MOST:,.0f}"
      )
  return choice, options


def _check_url(source: str, url: str) -> None:
  """Raises UserError for an address that is invalid or holds a password."""
  try:
    parts = urlsplit(url)
    host = parts.hostname
    password = parts.password or parts.username
    _ = parts.port  # a wrong port is noticed only when it is read
  except ValueError as error:
    raise UserError(f"{source}: no valid address ({error})") from None
  if parts.scheme not in ("http", "https") or not host:
    raise UserError(f"{source}: no valid address; write http://HOST:PORT/PATH")
  if password:
    # This text must not quote the source.
    raise UserError(
      f"{parts.scheme}://{host}: a password in the address would be written into the run's files; "
      "put it in an environment variable and name that with #token=VARIABLE"
    )


def names(terms: Sequence[Term]) -> list[str]:
  """Returns a short name for each term, for metrics and errors; equal ones get -2, -3, ..."""
  unique: list[str] = []
  for term in terms:
    # The names of metrics allow only some characters.
    name = re.sub(r"[^\w.-]+", "-", _title(term)).strip("-.") or term.kind
    numbered = re.compile(rf"{re.escape(name)}(-\d+)?")
    count = sum(numbered.fullmatch(earlier) is not None for earlier in unique)
    unique.append(f"{name}-{count + 1}" if count else name)
  return unique


def _title(term: Term) -> str:
  """Returns the part of a source that tells a reader the most."""
  match term.kind:
    case "python":
      return term.target.rpartition(":")[2]  # the function
    case "http":
      parts = urlsplit(term.target)
      return parts.netloc + parts.path
    case "openai":
      return term.choice  # the model
    case _:
      folder = re.split(r"[/\\]", term.target.rstrip("/\\"))[-1]
      return f"{folder}-{term.choice}" if term.choice else folder
