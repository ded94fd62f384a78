"""A row becomes a record, or says all that is wrong with it: a message for each problem, which
begins with the field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from instructjax.data.records.schemas import (
  ANNOTATIONS,
  CONTINUATION,
  KINDS,
  NOT_TEXT,
  ORIGIN,
  RATINGS,
  K,
  Message,
  Record,
  RecordError,
)

ROLES = {"user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant"}
TURN = "\n\nAssistant:"


def objects(rows: Iterable[Any]) -> Iterator[dict[str, Any]]:
  """The rows that are JSON objects."""
  for row in rows:
    with contextlib.suppress(RecordError):
      yield json_object(row)


def json_object(row: Any) -> dict[str, Any]:
  """A dict out of a row."""
  if isinstance(row, bytes):
    try:
      row = json.loads(row.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
      raise RecordError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except RecordError:
      raise
    except RecursionError:
      raise RecordError(
        "nested too deeply; a record is an object of texts and short lists"
      ) from None
    except ValueError as error:
      raise RecordError(f"not JSON ({error}); write one object a line, no empty lines") from None
  if not isinstance(row, dict):
    raise RecordError(f"a JSON object is expected, this is {_name(row)}")
  return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object; a key that stands twice would lose a value."""
  found = dict(pairs)
  if len(found) < len(pairs):
    twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
    raise RecordError(f"{twice}: stands twice in one object; keep one")
  return found


def record(row: dict[str, Any], kind: str) -> Record:
  """The record of a row, all of its problems at once."""
  fields = [field for field in dataclasses.fields(KINDS[kind]) if field.name != "turns"]
  known = {field.name: field.default is dataclasses.MISSING for field in fields}
  turns = None
  if isinstance(row.get("prompt"), list) and "prompt" in known:
    turns = chat("prompt", row["prompt"])
    row = row | {"prompt": transcript(turns)}
  problems = [f"{key}: unknown field{_suggest(key, known)}" for key in row if key not in known]
  problems += [
    f"{key}: missing; a {kind} needs the fields {required(kind)}"
    for key, needed in known.items()
    if needed and row.get(key) is None
  ]
  for key in known:
    if row.get(key) is not None and key not in NOT_TEXT:
      problems += _text(key, row[key])
  if row.get("consent") is not None and "consent" in known:
    problems += _flag("consent", row["consent"])
  if row.get("annotations") is not None and "annotations" in known:
    problems += _flags("annotations", row["annotations"])
  if kind == "comparison" and not problems:
    problems += _ranking(row)
  if kind == "few_shot" and not problems:
    problems += _pairs(row["pairs"])
  if problems:
    raise RecordError(*problems)
  values = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
  if values.get("sources"):
    values["sources"] = tuple(
      {"model": one} if isinstance(one, str) else one for one in values["sources"]
    )
  return KINDS[kind](**values, **({"turns": turns} if turns else {}))


def chat(place: str, messages: list[Any]) -> tuple[Message, ...]:
  """The messages of a list, also in the spelling from/value, with the roles system, user and
  assistant.
  """
  if not messages:
    raise RecordError(f"{place}: no messages; give a list of {{role, content}} objects")
  found = []
  for at, message in enumerate(messages):
    if not isinstance(message, dict):
      raise RecordError(f"{place}[{at}]: an object with role and content is expected")
    role, content = (
      message.get("role", message.get("from")),
      message.get("content", message.get("value")),
    )
    if not isinstance(role, str) or not isinstance(content, str):
      raise RecordError(f"{place}[{at}]: role and content must be texts")
    if role not in ("system", *ROLES):
      raise RecordError(f"{place}[{at}].role: {role!r}; known are system, {', '.join(ROLES)}")
    if wrong := _text(f"{place}[{at}].content", content):
      raise RecordError(wrong[0])
    found.append(
      {"role": {"human": "user", "gpt": "assistant"}.get(role, role), "content": content}
    )
  return tuple(found)


def transcript(messages: Sequence[Message]) -> str:
  """A chat as text, ready for the next reply: an empty line and "Human: " or "Assistant: " before
  each message.

  A system message stands first, without a name.
  """
  text = ""
  for message in messages:
    name = ROLES.get(message["role"])
    text += (
      f"\n\n{name}: {message['content']}" if name else ("\n\n" if text else "") + message["content"]
    )
  return text + TURN


def _ranking(row: dict[str, Any]) -> list[str]:
  """What is wrong with the completions, ranks, ratings and sources of a comparison."""
  completions, ranks, ratings = row["completions"], row["ranks"], row.get("ratings")
  if not isinstance(completions, list | tuple) or not isinstance(ranks, list | tuple):
    return [f"completions, ranks: lists are expected, not {_name(completions)} and {_name(ranks)}"]
  k = len(completions)
  problems = [
    what for i, text in enumerate(completions) for what in _text(f"completions[{i}]", text)
  ]
  if not K[0] <= k <= K[1]:
    problems.append(f"completions: {k} of them; a comparison has {K[0]} to {K[1]}")
  if len(ranks) != k:
    problems.append(f"ranks: {len(ranks)} of them for {k} completions; give one each")
  elif any(type(rank) is not int or not 1 <= rank <= k for rank in ranks) or (
    ranks and min(ranks) != 1
  ):
    problems.append(
      f"ranks: {_shown(ranks)}; give integers from 1 (best) to {k}, equal ones for ties"
    )
  if ratings is not None:
    if (
      not isinstance(ratings, list | tuple)
      or len(ratings) != k
      or not all(isinstance(r, dict) for r in ratings)
    ):
      problems.append(f"ratings: a list of {k} objects is expected, one a completion")
    else:
      problems += [what for i, one in enumerate(ratings) for what in _rating(f"ratings[{i}]", one)]
  return problems if row.get("sources") is None else problems + origins(row["sources"], k)


def origins(found: Any, k: int, what: str = "completion") -> list[str]:
  """What is wrong with the `sources` of k completions."""
  if (
    not isinstance(found, list | tuple)
    or len(found) != k
    or not all(isinstance(one, dict | str) for one in found)
  ):
    return [
      f"sources: a list of {k} is expected, one a {what}: a text, or an object with model, "
      "temperature and seed"
    ]
  return [problem for i, one in enumerate(found) for problem in _origin(f"sources[{i}]", one)]


def _origin(place: str, one: dict[str, Any] | str) -> list[str]:
  if isinstance(one, str):
    return _text(place, one)
  if "model" not in one:
    return [f"{place}.model: missing; say what drew the text"]
  problems = _text(f"{place}.model", one["model"])
  for key, value in one.items():
    if key not in ORIGIN:
      problems.append(f"{place}.{key}: unknown field{_suggest(key, ORIGIN)}")
    elif key == "temperature" and (type(value) not in (int, float) or not 0 <= value < math.inf):
      problems.append(f"{place}.temperature: {_shown(value)}; give a number, 0 or more")
    elif key == "seed" and type(value) is not int:
      problems.append(f"{place}.seed: {_shown(value)}; give an integer")
  return problems


def _rating(place: str, rating: dict[str, Any]) -> list[str]:
  problems, scales = [], {"overall": (1, 7)} | CONTINUATION
  for key, value in rating.items():
    if key in scales:
      low, high = scales[key]
      if type(value) is not int or not low <= value <= high:
        problems.append(f"{place}.{key}: {_shown(value)}; give an integer from {low} to {high}")
    elif key not in RATINGS:
      problems.append(f"{place}.{key}: unknown field{_suggest(key, (*RATINGS, *CONTINUATION))}")
    else:
      problems += _flag(f"{place}.{key}", value)
  return problems


def _flags(place: str, found: Any) -> list[str]:
  """What is wrong with the annotations of a prompt."""
  if not isinstance(found, dict):
    return [f"{place}: an object of true and false is expected, this is {_name(found)}"]
  problems = [
    f"{place}.{key}: unknown field{_suggest(key, ANNOTATIONS)}"
    for key in found
    if key not in ANNOTATIONS
  ]
  return problems + [
    what for key in ANNOTATIONS if key in found for what in _flag(f"{place}.{key}", found[key])
  ]


def _flag(place: str, value: Any) -> list[str]:
  return [] if isinstance(value, bool) else [f"{place}: {_shown(value)}; give true or false"]


def _pairs(pairs: Any) -> list[str]:
  """What is wrong with the pairs of a few_shot record."""
  if not isinstance(pairs, list | tuple) or len(pairs) < 2:
    return ["pairs: a list of at least 2 objects with input and output is expected"]
  problems, seen = [], {}
  for i, pair in enumerate(pairs):
    if not isinstance(pair, dict) or set(pair) != {"input", "output"}:
      problems.append(f"pairs[{i}]: an object with input and output is expected")
      continue
    wrong = [what for key in ("input", "output") for what in _text(f"pairs[{i}].{key}", pair[key])]
    problems += wrong
    if not wrong and seen.setdefault(pair["input"], i) != i:
      problems.append(f"pairs[{i}].input: the same as pairs[{seen[pair['input']]}]'s; take one out")
  return problems


def _text(place: str, value: Any) -> list[str]:
  if not isinstance(value, str):
    return [f"{place}: text is expected, this is {_name(value)}"]
  if any("\ud800" <= letter <= "\udfff" for letter in value):
    return [f"{place}: half a surrogate pair, which is no character; take it out of the text"]
  return [] if value.strip() else [f"{place}: empty; give a text or take the record out"]


def _shown(value: Any) -> str:
  """A value for a message, short whatever it holds."""
  if isinstance(value, list | tuple):
    parts = [_name(one) if isinstance(one, list | tuple) else _shown(one) for one in value[: K[1]]]
    return f"[{', '.join([*parts, *(['...'] if len(value) > K[1] else [])])}]"
  plain = isinstance(value, str | bool | int | float) and not (
    type(value) is int and abs(value) >= 10**20
  )
  text = repr(value) if plain else _name(value)
  return text if len(text) <= 40 else text[:37] + "..."


def printable(message: str, longest: int = 400) -> str:
  """A message on one line: what the data brought along in it, a key say, cannot break or forge a
  line.
  """
  text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message[:longest])
  return text + ("..." if len(message) > longest else "")


def required(kind: str) -> str:
  return ", ".join(
    f.name for f in dataclasses.fields(KINDS[kind]) if f.default is dataclasses.MISSING
  )


def _suggest(key: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(key, list(known), 1)
  return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _name(value: Any) -> str:
  names = {
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
  }
  return names.get(type(value), "a number")
