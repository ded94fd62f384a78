"""The five kinds of records, one JSON object a line, and their validation.

  demonstration  prompt, completion           [FROM, annotations]
  comparison     prompt, completions, ranks   [labeler, FROM, annotations, ratings]
  prompt         prompt                       [FROM, annotations]
  few_shot       instruction, pairs           [FROM, annotations]
  text           text                         [id, source]

FROM is id, user, organisation, source, use_case and consent (true or false: may this be used for training?);
`annotations` is Table 7's metadata of a prompt, `ratings` Table 3's of each completion.
A prompt is a text, or a chat: a list of {role, content} messages, which is also read as the transcript that HH uses.
A comparison has K of 2 to 9 completions and as many ranks: 1 is best, equal ranks are ties.
A few_shot record is a labeler's instruction with at least two {input, output} pairs (see `few_shot`).
`read` checks every line before it returns anything and lists all problems in one error: nothing is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from instructjax.errors import UserError

Message = Mapping[str, str]  # role (system, user, assistant) and content


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A prompt and the completion to imitate."""

  prompt: str
  completion: str
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = None
  turns: tuple[Message, ...] | None = dataclasses.field(default=None, compare=False)  # of a prompt that is a chat


@dataclasses.dataclass(frozen=True)
class Comparison:
  """K completions of one prompt and their ranks; `ratings` holds Table 3's metadata of each."""

  prompt: str
  completions: tuple[str, ...]
  ranks: tuple[int, ...]
  labeler: str | None = None
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = None
  ratings: tuple[Mapping[str, Any], ...] | None = None
  turns: tuple[Message, ...] | None = dataclasses.field(default=None, compare=False)  # of a prompt that is a chat


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt without a label."""

  prompt: str
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = None
  turns: tuple[Message, ...] | None = dataclasses.field(default=None, compare=False)  # of a prompt that is a chat


@dataclasses.dataclass(frozen=True)
class FewShot:
  """A labeler's instruction and {input, output} pairs that follow it; `few_shot` makes demonstrations of it."""

  instruction: str
  pairs: tuple[Mapping[str, str], ...]
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = None


@dataclasses.dataclass(frozen=True)
class Text:
  """A document of pretraining text."""

  text: str
  id: str | None = None
  source: str | None = None


Labelled = Demonstration | Comparison | Prompt | FewShot
Record = Labelled | Text
KINDS: dict[str, type] = {
  "demonstration": Demonstration,
  "comparison": Comparison,
  "prompt": Prompt,
  "few_shot": FewShot,
  "text": Text,
}
K = (2, 9)  # completions of a comparison
RATINGS = (  # Table 3; `overall` is 1 to 7, the others are true or false
  "overall", "fails_instruction", "inappropriate", "hallucination", "satisfies_constraint",
  "sexual", "violent", "encourages_harm", "denigrates", "harmful_advice", "opinion", "moral_judgment",
)  # fmt: skip
ANNOTATIONS = (  # Table 7, true or false
  "ambiguous", "sensitive_content", "identity_dependent", "closed_domain", "continuation_style", "requests_opinion",
  "requests_advice", "requests_moral_judgment", "explicit_safety_constraints", "other_explicit_constraints",
  "intent_unclear",
)  # fmt: skip
NOT_TEXT = ("completions", "ranks", "ratings", "pairs", "annotations", "consent")  # fields with checks of their own
ROLES = {"user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant"}
TURN = "\n\nAssistant:"


@runtime_checkable
class PathLike(Protocol):
  """What `lines` needs of a path: `pathlib.Path`, or etils' for buckets."""

  @property
  def suffix(self) -> str: ...

  def read_bytes(self) -> bytes: ...


class RecordError(ValueError):
  """What is wrong with one record, a message for each problem; `read` adds the place.  A message begins with the field."""


class Whole(NamedTuple):
  """A spelling that needs all rows at once: (line, row) pairs to (line, our fields, or what is wrong there) pairs."""

  spell: Callable[[list[tuple[int, dict[str, Any]]], str], Iterable[tuple[int, dict[str, Any] | RecordError]]]


Spelling = Callable[[dict[str, Any], str], dict[str, Any]] | Whole


def native(row: dict[str, Any], kind: str) -> dict[str, Any]:
  """Our own field names: nothing to translate.  `formats` has the other spellings."""
  return row


def read(path: str | Path, kind: str, spelling: Spelling = native) -> list:
  """All records of a JSONL file (gzipped where it ends in .gz).  Record n of the list is line n + 1 of the
  file.

  Raises UserError with one line for every problem: the place, the field and what to do.
  """
  path = Path(path)
  return parse(lines(path), kind, spelling, name=str(path))


def objects(rows: Iterable[Any]) -> Iterator[dict[str, Any]]:
  """The rows that are JSON objects."""
  for row in rows:
    with contextlib.suppress(RecordError):
      yield _object(row)


def parse(rows: Iterable[Any], kind: str, spelling: Spelling = native, *, name: str = "data") -> list:
  """Records out of rows: dicts, or the text of a JSON object each.  Raises UserError as `read` does."""
  records, problems = scan(rows, kind, spelling, name=name)
  report(problems)
  return records


def scan(rows: Iterable[Any], kind: str, spelling: Spelling = native, *, name: str = "data") -> tuple[list, list[str]]:
  """(records, problems): every row gives a record or at least one problem, `name:line: what`.  A `Whole` spelling
  makes of all rows together what it makes of them.

  Raises UserError for an unknown kind.
  """
  if kind not in KINDS:
    raise UserError(f"unknown kind of record {kind!r}; there are {', '.join(KINDS)}")
  records, problems, empty = [], [], True
  for line, row in _spelled(rows, kind, spelling):
    empty = False
    try:
      if isinstance(row, RecordError):
        raise row
      records.append(_record(row, kind))
    except RecordError as problem:
      problems.extend(f"{name}:{line}: {_printable(what)}" for what in problem.args)
  if empty:
    problems.append(f"{name}: no records; give one JSON object a line with the fields {_required(kind)}")
  return records, problems


def _spelled(rows: Iterable[Any], kind: str, spelling: Spelling) -> Iterator[tuple[int, dict[str, Any] | RecordError]]:
  """(line, our fields or what is wrong) of every row."""
  good = []
  for line, row in enumerate(rows, 1):
    try:
      fields = _object(row)
      if isinstance(spelling, Whole):
        good.append((line, fields))
        continue
      fields = spelling(fields, kind)
    except RecordError as problem:
      yield line, problem
    else:
      yield line, fields
  if isinstance(spelling, Whole):
    yield from spelling.spell(good, kind)


def report(problems: Sequence[str], shown: int = 20) -> None:
  """Raise one UserError with a line for each problem; nothing where there is none."""
  if problems:
    more = [f"... and {len(problems) - shown} more problems"] if len(problems) > shown else []
    raise UserError("\n".join([*problems[:shown], *more]))


def write(path: str | Path, records: Iterable[Record]) -> None:
  """One JSON object a line without empty fields, gzipped where the name ends in .gz.  Never half a file."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  content = b"".join(_line(record) for record in records)
  partial = path.with_name(path.name + ".part")
  partial.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
  partial.replace(path)


def fingerprint(records: Iterable[Record]) -> str:
  """sha256 of the records as they would be written: the same data has the same fingerprint in any file."""
  digest = hashlib.sha256()
  for record in records:
    digest.update(_line(record))
  return digest.hexdigest()


def _line(record: Record) -> bytes:
  fields = {key: value for key, value in dataclasses.asdict(record).items() if value is not None}
  fields |= {"prompt": turns} if (turns := fields.pop("turns", None)) else {}
  return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


# --- validation ---


def lines(path: PathLike) -> list[bytes]:
  """The lines of a file, without the last line's end.  Raises UserError where it cannot be read."""
  try:
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
  except FileNotFoundError:
    raise UserError(f"{path}: no such file; give a JSONL file, one record a line") from None
  except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: a NUL in the name
    raise UserError(f"{path}: cannot be read ({error}); give a JSONL file, gzipped if it ends in .gz") from None
  found = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
  return found[:-1] if found[-1] == b"" else found


def _object(row: Any) -> dict[str, Any]:
  """A dict out of a row."""
  if isinstance(row, bytes):
    try:
      row = json.loads(row.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
      raise RecordError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except RecordError:
      raise
    except RecursionError:
      raise RecordError("nested too deeply; a record is an object of texts and short lists") from None
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


def _record(row: dict[str, Any], kind: str) -> Record:
  """The record of a row, all of its problems at once."""
  fields = [field for field in dataclasses.fields(KINDS[kind]) if field.name != "turns"]
  known = {field.name: field.default is dataclasses.MISSING for field in fields}
  turns = None
  if isinstance(row.get("prompt"), list) and "prompt" in known:
    turns = chat("prompt", row["prompt"])
    row = row | {"prompt": transcript(turns)}
  problems = [f"{key}: unknown field{_suggest(key, known)}" for key in row if key not in known]
  problems += [
    f"{key}: missing; a {kind} needs the fields {_required(kind)}"
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
  return KINDS[kind](**values, **({"turns": turns} if turns else {}))


def chat(place: str, messages: list[Any]) -> tuple[Message, ...]:
  """The messages of a list, also in the spelling from/value, with the roles system, user and assistant."""
  if not messages:
    raise RecordError(f"{place}: no messages; give a list of {{role, content}} objects")
  found = []
  for at, message in enumerate(messages):
    if not isinstance(message, dict):
      raise RecordError(f"{place}[{at}]: an object with role and content is expected")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
      raise RecordError(f"{place}[{at}]: role and content must be texts")
    if role not in ("system", *ROLES):
      raise RecordError(f"{place}[{at}].role: {role!r}; known are system, {', '.join(ROLES)}")
    if wrong := _text(f"{place}[{at}].content", content):
      raise RecordError(wrong[0])
    found.append({"role": {"human": "user", "gpt": "assistant"}.get(role, role), "content": content})
  return tuple(found)


def transcript(messages: Sequence[Message]) -> str:
  """A chat as text, ready for the next reply: an empty line and "Human: " or "Assistant: " before each message.

  A system message stands first, without a name.
  """
  text = ""
  for message in messages:
    name = ROLES.get(message["role"])
    text += f"\n\n{name}: {message['content']}" if name else ("\n\n" if text else "") + message["content"]
  return text + TURN


def _ranking(row: dict[str, Any]) -> list[str]:
  """What is wrong with the completions, ranks and ratings of a comparison."""
  completions, ranks, ratings = row["completions"], row["ranks"], row.get("ratings")
  if not isinstance(completions, list | tuple) or not isinstance(ranks, list | tuple):
    return [f"completions, ranks: lists are expected, not {_name(completions)} and {_name(ranks)}"]
  k = len(completions)
  problems = [what for i, text in enumerate(completions) for what in _text(f"completions[{i}]", text)]
  if not K[0] <= k <= K[1]:
    problems.append(f"completions: {k} of them; a comparison has {K[0]} to {K[1]}")
  if len(ranks) != k:
    problems.append(f"ranks: {len(ranks)} of them for {k} completions; give one each")
  elif any(type(rank) is not int or not 1 <= rank <= k for rank in ranks) or (ranks and min(ranks) != 1):
    problems.append(f"ranks: {_shown(ranks)}; give integers from 1 (best) to {k}, equal ones for ties")
  if ratings is not None:
    if not isinstance(ratings, list | tuple) or len(ratings) != k or not all(isinstance(r, dict) for r in ratings):
      problems.append(f"ratings: a list of {k} objects is expected, one a completion")
    else:
      problems += [what for i, one in enumerate(ratings) for what in _rating(f"ratings[{i}]", one)]
  return problems


def _rating(place: str, rating: dict[str, Any]) -> list[str]:
  problems = []
  for key, value in rating.items():
    if key not in RATINGS:
      problems.append(f"{place}.{key}: unknown field{_suggest(key, RATINGS)}")
    elif key == "overall" and (type(value) is not int or not 1 <= value <= 7):
      problems.append(f"{place}.overall: {_shown(value)}; give an integer from 1 to 7")
    elif key != "overall":
      problems += _flag(f"{place}.{key}", value)
  return problems


def _flags(place: str, found: Any) -> list[str]:
  """What is wrong with the annotations of a prompt."""
  if not isinstance(found, dict):
    return [f"{place}: an object of true and false is expected, this is {_name(found)}"]
  problems = [f"{place}.{key}: unknown field{_suggest(key, ANNOTATIONS)}" for key in found if key not in ANNOTATIONS]
  return problems + [what for key in ANNOTATIONS if key in found for what in _flag(f"{place}.{key}", found[key])]


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
  plain = isinstance(value, str | bool | int | float) and not (type(value) is int and abs(value) >= 10**20)
  text = repr(value) if plain else _name(value)
  return text if len(text) <= 40 else text[:37] + "..."


def _printable(message: str, longest: int = 400) -> str:
  """A message on one line: what the data brought along in it, a key say, cannot break or forge a line."""
  text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message[:longest])
  return text + ("..." if len(message) > longest else "")


def _required(kind: str) -> str:
  return ", ".join(f.name for f in dataclasses.fields(KINDS[kind]) if f.default is dataclasses.MISSING)


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
