"""The grammar of rewards in a configuration: "python:my.py:polite +
0.5*http://localhost:8000/score".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from instructjax.data.batches.mixture import TERM
from instructjax.errors import UserError

GRAMMAR = (
  "rewards are written SOURCE, WEIGHT*SOURCE, or several of them with ' + ' between; a source is "
  "the directory of a "
  "reward run, python:FILE.py:FUNCTION, python:MODULE:FUNCTION, classifier:FOLDER_OR_HUB_ID#LABEL, "
  "http://..., "
  "https://..., openai:URL#MODEL or perspective:ATTRIBUTE"
)
_ENDPOINT = {"token": "", "header": "", "concurrent": 4, "timeout": 60.0, "retries": 5, "wait": 1.0}
OPTIONS: dict[
  str, dict[str, Any]
] = {  # of each kind of source, written #name=value,name=value, and their defaults
  "run": {},
  "python": {},
  "classifier": {"as": "logit", "input": "joined", "batch": 16, "device": "cpu"},
  "http": {"batch": 32, **_ENDPOINT},
  "openai": {"template": "", **_ENDPOINT},
  "perspective": {
    **_ENDPOINT,
    "url": "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze",
    "token": "PERSPECTIVE_API_KEY",
    "header": "X-Goog-Api-Key",
    "language": "en",
    "qps": 1.0,
    "cache": "",
  },
}


@dataclass(frozen=True)
class Term:
  """One source.  `target` is what stands after its kind, `choice` the bare word after the # (a
  label, a model).
  """

  source: str
  weight: float
  kind: str
  target: str
  choice: str
  options: dict[str, Any]


def parse(text: str) -> tuple[Term, ...]:
  """The terms of a sum.  Raises UserError, which quotes the grammar, for anything else."""
  return tuple(_term(part.strip()) for part in re.split(r"\s\+\s", text))


def _term(text: str) -> Term:
  found = TERM.fullmatch(text)
  if not found:
    raise UserError(f"a reward is empty: {GRAMMAR}")
  weight, source = float(found[1] or 1), found[2]
  kind, rest = _kind(source)
  target, _, fragment = rest.partition("#") if OPTIONS[kind] else (rest, "", "")
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
    _url(source, target)
  if kind == "perspective":
    _url(source, options["url"])
  return Term(source, weight, kind, target, choice, options)


def _kind(source: str) -> tuple[str, str]:
  """(kind, the rest); what has no kind is the directory of a run."""
  word, sign, rest = source.partition(":")
  if word in ("http", "https"):
    return "http", source
  if sign and word in OPTIONS and rest:
    return word, rest
  if "*" in source or (sign and len(word) > 1):  # C:\runs is a directory
    raise UserError(f"reward {source!r}: {GRAMMAR}")
  return "run", source


def _options(source: str, kind: str, fragment: str) -> tuple[str, dict[str, Any]]:
  choice, options = "", dict(OPTIONS[kind])
  for number, part in enumerate(fragment.split(",") if fragment else []):
    name, sign, value = part.partition("=")
    if not sign and not number and kind not in ("http", "perspective"):
      choice = part
      continue
    if name not in options or not sign:
      raise UserError(
        f"{source}: {part!r} is no option; known are {', '.join(f'{known}=' for known in options)}"
      )
    try:
      options[name] = type(options[name])(value)
    except ValueError:
      raise UserError(
        f"{source}: {name}={value} is no number; the default is {options[name]}"
      ) from None
  for name, least in (
    ("batch", 1),
    ("concurrent", 1),
    ("timeout", 1e-3),
    ("retries", 0),
    ("wait", 0),
    ("qps", 1e-3),
  ):
    if name in options and not options[name] >= least:
      raise UserError(f"{source}: {name}={options[name]} must be at least {least}")
  return choice, options


def _url(source: str, url: str) -> None:
  try:
    parts = urlsplit(url)
    secret, host, _ = parts.password or parts.username, parts.hostname, parts.port
  except ValueError as error:
    raise UserError(f"{source}: no valid address ({error})") from None
  if parts.scheme not in ("http", "https") or not host:
    raise UserError(f"{source}: no valid address; write http://HOST:PORT/PATH")
  if secret:
    raise UserError(
      f"{parts.scheme}://{host}: a password in the address would be written into the run's files; "
      "put it in an "
      "environment variable and name that with #token=VARIABLE"
    )


def names(terms: tuple[Term, ...]) -> list[str]:
  """A short name for each term, for metrics and errors; the second of the same name gets -2."""
  found: list[str] = []
  for term in terms:
    match term.kind:
      case "python":
        text = term.target.rpartition(":")[2]
      case "http":
        parts = urlsplit(term.target)
        text = parts.netloc + parts.path
      case "openai":
        text = term.choice
      case _:
        text = re.split(r"[/\\]", term.target.rstrip("/\\"))[-1] + (
          f"-{term.choice}" if term.choice else ""
        )
    short = re.sub(r"[^\w.-]+", "-", text).strip("-.") or term.kind
    taken = sum(
      name == short or (name.startswith(f"{short}-") and name[len(short) + 1 :].isdigit())
      for name in found
    )
    found.append(f"{short}-{taken + 1}" if taken else short)
  return found
