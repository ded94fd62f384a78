"""Checks of records: a row becomes a record, or all of its problems are named at once.

A problem is a line of text that begins with the field it is about. The functions here that return
`list[str]` return the problems of a value, and an empty list where there are none. They are called
for every row of every file, so they never raise because of what a row holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from instructjax.data.records import decoding
from instructjax.data.records.places import Row
from instructjax.data.records.schemas import (
  ANNOTATIONS,
  CONTINUATION,
  DERIVED,
  KINDS,
  NAMES,
  NOT_TEXT,
  ORIGIN,
  RATINGS,
  K,
  Message,
  Record,
  RecordError,
)

# The roles that a message may have, besides system, and the name of each in a transcript. `human`
# and `gpt` are how ShareGPT and the data sets in its format spell user and assistant.
ROLES = {"user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant"}
STANDARD_ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
SYSTEM = ("system", "developer")
# What a message has that calls a tool, and the roles of messages that are of one.
TOOL_CALLS = ("tool_calls", "function_call")
TOOL_ROLES = (
  "tool",
  "function",
  "function_call",
  "function_response",
  "observation",
  "tool_call",
  "tool_response",
  "ipython",
)
# A transcript ends with this, so that the next thing to write is the assistant's reply.
TURN = "\n\nAssistant:"

# A value in a message has at most this many characters, and a message at most MESSAGE_LENGTH.
VALUE_LENGTH = 40
MESSAGE_LENGTH = 400
# How like the name of a field another name is that is taken for it: "usr" is 0.86 like "user", and
# "answer" 0.6.
SLIP = 0.8
# Of the further fields of a prompt: the longest name, and how deeply a value may be nested.
NAME_LENGTH = 100
DEPTH = 20


# --- JSON ---


def objects(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
  """Yields the rows that are objects and leaves out the others."""
  for row in rows:
    with contextlib.suppress(RecordError):
      yield json_object(row.value)


def json_object(value: Any) -> dict[str, Any]:
  """Returns the value of a row as a dict; bytes are one JSON object in UTF-8.

  Raises:
    RecordError: if it is no JSON object, or was none where it was read.
  """
  if isinstance(value, RecordError):
    raise value
  if isinstance(value, bytes):
    objects_of_line = decoding.values(value)
    if len(objects_of_line) > 1:
      raise RecordError(f"{len(objects_of_line)} objects; write one object a line")
    (value,) = objects_of_line
  if not isinstance(value, dict):
    raise RecordError(f"a JSON object is expected, this is {_type_name(value)}")
  return value


# --- records ---


def record(
  row: dict[str, Any],
  kind: str,
  place: str | None = None,
  *,
  empty_completions: bool = False,
) -> Record:
  """Returns the record of this kind that a row holds, which stands at `place`.

  With `empty_completions` a completion of a comparison may be an empty text.

  Raises:
    RecordError: with all the problems of the row.
  """
  fields = [field for field in dataclasses.fields(KINDS[kind]) if field.name not in DERIVED]
  is_required = {field.name: field.default is dataclasses.MISSING for field in fields}
  further: dict[str, Any] = {}
  if kind == "prompt":
    row, further = _without_further(row, is_required)
  turns = None
  if isinstance(row.get("prompt"), list) and "prompt" in is_required:
    turns = chat("prompt", row["prompt"])
    row = row | {"prompt": transcript(turns)}
  row = _with_names(row)
  if kind == "comparison" and row.get("pairs") is not None:
    # The labels of pairs take the place of the ranks.
    is_required["ranks"] = False
  problems = _field_problems(row, kind, is_required) + _further_problems(further)
  # These two checks compare lists with each other, so they need all the fields to be there.
  if kind == "comparison" and not problems:
    problems += _comparison_problems(row, empty_completions)
  if kind == "few_shot" and not problems:
    problems += _pair_problems(row["pairs"])
  if problems:
    raise RecordError(*problems)

  # Records are frozen, so their lists are tuples.
  values: dict[str, Any] = {}
  for key, value in row.items():
    values[key] = tuple(value) if isinstance(value, list) else value
  if values.get("sources"):
    values["sources"] = tuple(
      {"model": source} if isinstance(source, str) else source for source in values["sources"]
    )
  if kind == "comparison" and values.get("pairs"):
    values["pairs"] = tuple(tuple(pair) for pair in values["pairs"])
    values["ranks"] = ()
  if turns:
    values["turns"] = turns
  if further:
    values["fields"] = further
  return KINDS[kind](**values, place=place)


def _with_names(row: dict[str, Any]) -> dict[str, Any]:
  """Returns the row with its ids, users and labelers as texts, where they are whole numbers."""
  numbers = {name: row[name] for name in NAMES if type(row.get(name)) is int}
  # Python refuses to print integers of more than 4300 digits; such a one is no text.
  texts = {name: str(value) for name, value in numbers.items() if abs(value) < 10**20}
  return row | texts if texts else row


def _without_further(
  row: dict[str, Any], names: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the fields of a prompt that have these names, and its further ones.

  A name that is nearly one of ours stays among the first, where it is a problem: it is a slip of
  the pen, and would be lost without a word. So does a name that cannot be printed.
  """
  ours, further = {}, {}
  for key, value in row.items():
    is_name = key.isprintable() and len(key) <= NAME_LENGTH
    if not is_name or key in names or difflib.get_close_matches(key, list(names), 1, SLIP):
      ours[key] = value
    else:
      further[key] = value
  return ours, further


def further_fields(row: dict[str, Any]) -> dict[str, Any]:
  """Returns those columns of a row in another layout that a prompt can carry along.

  Columns with the name of a field of ours, or nearly so, mean something else there.
  """
  names = [field.name for field in dataclasses.fields(KINDS["prompt"]) if field.name not in DERIVED]
  _, further = _without_further(row, names)
  return {key: value for key, value in further.items() if _json_problem(value) is None}


def _further_problems(fields: dict[str, Any]) -> list[str]:
  """Returns the problems of the further fields of a prompt, which may hold any JSON."""
  problems = []
  for key, value in fields.items():
    problem = _json_problem(value)
    if problem:
      problems.append(f"{key}: {problem}")
  return problems


def _json_problem(value: Any) -> str | None:
  """Returns what keeps a value of any type from being written as JSON in UTF-8, or None."""
  # A loop rather than a recursion, since a row may be nested more deeply than Python can call.
  waiting = [(value, 0)]
  while waiting:
    item, depth = waiting.pop()
    if depth > DEPTH:
      return f"nested more than {DEPTH} deep; make it flatter"
    if isinstance(item, dict):
      waiting += [(part, depth + 1) for pair in item.items() for part in pair]
    elif isinstance(item, list | tuple):
      waiting += [(part, depth + 1) for part in item]
    elif isinstance(item, str) and _has_surrogate(item):
      return "half a surrogate pair, which is no character; take it out of the text"
    elif isinstance(item, float) and not math.isfinite(item):
      return f"{item} is no number that JSON has; give a number, or null"
    elif not isinstance(item, str | int | float | None):
      return f"holds a {type(item).__name__}, which JSON does not have; make it a text or a number"
  return None


def _field_problems(row: dict[str, Any], kind: str, is_required: dict[str, bool]) -> list[str]:
  """Returns the problems of single fields: their names, whether they are there, and their types."""
  unknown = [key for key in row if key not in is_required]
  problems = [f"{key}: unknown field{_suggest(key, is_required)}" for key in unknown]
  for key, needed in is_required.items():
    if needed and row.get(key) is None:
      problems.append(f"{key}: missing; a {kind} needs the fields {required(kind)}")
  for key in is_required:
    if row.get(key) is not None and key not in NOT_TEXT:
      problems += _text_problems(key, row[key])
  if row.get("consent") is not None and "consent" in is_required:
    problems += _flag_problems("consent", row["consent"])
  if row.get("annotations") is not None and "annotations" in is_required:
    problems += _annotation_problems("annotations", row["annotations"])
  return problems


# --- chats ---


def chat(place: str, messages: list[Any]) -> tuple[Message, ...]:
  """Returns the messages of a list with the roles system, user and assistant.

  Messages are objects of role and content, or of from and value. A content is a text, or a list of
  parts that are all texts, which are joined. A reply whose `weight` is 0 or whose `train` is false
  gets `train`: False. `place` is the field that the list comes from and
  stands in front of the messages of errors.

  Raises:
    RecordError: for an empty list, and for the first message that is wrong.
  """
  if not messages:
    raise RecordError(f"{place}: no messages; give a list of {{role, content}} objects")
  turns = []
  for index, message in enumerate(messages):
    if not isinstance(message, dict):
      raise RecordError(f"{place}[{index}]: an object with role and content is expected")
    role = message.get("role", message.get("from"))
    content = _content(f"{place}[{index}].content", message)
    _refuse_tools(f"{place}[{index}]", message, role)
    if not isinstance(role, str) or not isinstance(content, str):
      raise RecordError(f"{place}[{index}]: role and content must be texts")
    if role not in (*SYSTEM, *ROLES):
      roles_read = ", ".join((*SYSTEM, *ROLES))
      raise RecordError(f"{place}[{index}].role: {_excerpt(role)}; known are {roles_read}")
    if role in SYSTEM and not content.strip():
      # Many chats begin with a system message that says nothing.
      continue
    problems = _text_problems(f"{place}[{index}].content", content)
    if problems:
      raise RecordError(problems[0])
    turn: dict[str, Any] = {"role": STANDARD_ROLES.get(role, role), "content": content}
    is_learnt = _is_learnt(f"{place}[{index}]", message)
    if turn["role"] == "assistant" and not is_learnt:
      turn["train"] = False
    turns.append(turn)
  if not turns:
    raise RecordError(f"{place}: no messages with a text; give a list of {{role, content}} objects")
  return tuple(turns)


def _content(place: str, message: dict[str, Any]) -> Any:
  """Returns the content of a message, whose text may stand in several parts.

  Raises:
    RecordError: for a part that is no text.
  """
  content = message.get("content", message.get("value"))
  if not isinstance(content, list):
    return content
  texts = []
  for index, part in enumerate(content):
    text = part.get("text") if isinstance(part, dict) else part
    kind = part.get("type", "text") if isinstance(part, dict) else "text"
    if kind != "text" or not isinstance(text, str):
      what = "a part without a text" if kind == "text" else f"{_excerpt(kind)}"
      raise RecordError(
        f"{place}[{index}]: {what}; only texts are read, no images, sounds or tools, so take the "
        "record out"
      )
    texts.append(text)
  return "".join(texts)


def _refuse_tools(place: str, message: dict[str, Any], role: Any) -> None:
  """Raises RecordError for a message that calls a tool, or that is what a tool gave."""
  calls = [name for name in TOOL_CALLS if message.get(name)]
  remedy = "only system, user and assistant are read, so take the record out"
  if calls:
    raise RecordError(f"{place}.{calls[0]}: the message calls a tool; {remedy}")
  if role in TOOL_ROLES:
    raise RecordError(f"{place}.role: {role!r}, which is a message of a tool; {remedy}")


def _is_learnt(place: str, message: dict[str, Any]) -> bool:
  """Returns whether a message may be learnt: unless its `weight` is 0 or its `train` false.

  Raises:
    RecordError: for any other weight than 0 and 1, and a `train` that is neither true nor false.
  """
  weight, train = message.get("weight"), message.get("train")
  if weight not in (None, 0, 1) or isinstance(weight, bool):
    raise RecordError(f"{place}.weight: {_excerpt(weight)}; give 1, or 0 for a reply to leave out")
  if train is not None:
    problems = _flag_problems(f"{place}.train", train)
    if problems:
      raise RecordError(problems[0])
  return weight != 0 and train is not False


def transcript(messages: Sequence[Message]) -> str:
  """Returns a chat as one text that ends where the next reply begins.

  An empty line and "Human: " or "Assistant: " precede each message, as in the transcripts of HH
  (Bai et al. 2022). A system message has no name.
  """
  text = ""
  for message in messages:
    name = ROLES.get(message["role"])
    if name:
      text += f"\n\n{name}: {message['content']}"
    else:
      # A system message usually comes first, where no empty line is needed.
      text += ("\n\n" if text else "") + message["content"]
  return text + TURN


# --- comparisons ---


def _comparison_problems(row: dict[str, Any], empty_completions: bool) -> list[str]:
  """Returns the problems of the completions, ranks, ratings and sources of a comparison."""
  completions, pairs = row["completions"], row.get("pairs")
  if pairs is not None and row.get("ranks"):
    return ["ranks, pairs: give one of them; pairs are for labels that are no ranking"]
  name = "ranks" if pairs is None else "pairs"
  if not isinstance(completions, list | tuple) or not isinstance(row[name], list | tuple):
    types = f"{_type_name(completions)} and {_type_name(row[name])}"
    return [f"completions, {name}: lists are expected, not {types}"]
  k = len(completions)
  problems = []
  for index, text in enumerate(completions):
    if empty_completions and isinstance(text, str) and not text.strip():
      continue
    problems += _text_problems(f"completions[{index}]", text)
  if not K[0] <= k <= K[1]:
    problems.append(f"completions: {k} of them; a comparison has {K[0]} to {K[1]}")
  if pairs is not None:
    problems += _labelled_pair_problems(pairs, completions)
  else:
    problems += _rank_problems(row["ranks"], k)
    if not problems:  # they are texts, and there are as many ranks
      problems += _equal_text_problems(completions, row["ranks"])
  if row.get("ratings") is not None:
    problems += _rating_list_problems(row["ratings"], k)
  if row.get("sources") is not None:
    problems += origins(row["sources"], k)
  return problems


def _rank_problems(ranks: Sequence[Any], k: int) -> list[str]:
  """Returns the problems of the ranks of k completions."""
  if len(ranks) != k:
    return [f"ranks: {len(ranks)} of them for {k} completions; give one each"]
  # `type` rather than isinstance: true and false are integers too.
  in_range = all(type(rank) is int and 1 <= rank <= k for rank in ranks)
  if in_range and (not ranks or min(ranks) == 1):
    return []
  hint = f"give integers from 1 (best) to {k}, equal ones for ties"
  return [f"ranks: {_excerpt(ranks)}; {hint}"]


def _labelled_pair_problems(pairs: Sequence[Any], completions: Sequence[Any]) -> list[str]:
  """Returns the problems of the labels of pairs of completions."""
  if not pairs:
    return ["pairs: none; give [better, worse] for each pair that was compared"]
  problems = []
  first_index: dict[tuple[int, ...], int] = {}  # of each pair, to find the ones that are repeated
  for index, pair in enumerate(pairs):
    place = f"pairs[{index}]"
    problem = _labelled_pair_problem(pair, len(completions))
    if problem:
      problems.append(f"{place}: {problem}")
      continue
    i, j = sorted(pair[:2])
    first = first_index.setdefault((i, j), index)
    if first != index:
      problems.append(f"{place}: {i} and {j} are compared in pairs[{first}] already; keep one")
    elif completions[i] == completions[j] and (len(pair) == 2 or pair[2] > 0):
      problems.append(
        f"{place}: completions[{i}] and completions[{j}] are the same text, so neither is better; "
        "take the pair out"
      )
  return problems


def _labelled_pair_problem(pair: Any, k: int) -> str:
  """Returns what is wrong with the label of one pair of k completions, or an empty text."""
  hint = f"give [better, worse], two numbers from 0 to {k - 1}, and a weight where it has one"
  if not isinstance(pair, list | tuple) or len(pair) not in (2, 3):
    return hint
  # `type` rather than isinstance: true and false are integers too.
  in_range = all(type(index) is int and 0 <= index < k for index in pair[:2])
  if not in_range or pair[0] == pair[1]:
    return f"{_excerpt(pair)}; {hint}"
  if len(pair) == 3 and (type(pair[2]) not in (int, float) or not 0 <= pair[2] < math.inf):
    return f"{_excerpt(pair)}; the weight is a number, 0 (a tie) or more"
  return ""


def _equal_text_problems(completions: Sequence[str], ranks: Sequence[int]) -> list[str]:
  """Returns the problems of completions that are one text and have different ranks."""
  problems = []
  first_index: dict[str, int] = {}
  for index, text in enumerate(completions):
    first = first_index.setdefault(text, index)
    if ranks[first] != ranks[index]:
      problems.append(
        f"completions[{index}]: the same text as completions[{first}], with another rank; give "
        "both one rank, or take one out"
      )
  return problems


def _rating_list_problems(ratings: Any, k: int) -> list[str]:
  """Returns the problems of the `ratings` of k completions."""
  is_list = isinstance(ratings, list | tuple) and len(ratings) == k
  if not is_list or not all(isinstance(rating, dict) for rating in ratings):
    return [f"ratings: a list of {k} objects is expected, one a completion"]
  problems = []
  for index, rating in enumerate(ratings):
    problems += _rating_problems(f"ratings[{index}]", rating)
  return problems


def _rating_problems(place: str, rating: dict[str, Any]) -> list[str]:
  """Returns the problems of the ratings of one completion: of Table 3, or of Fig. 11."""
  problems = []
  scales = {"overall": (1, 7), **CONTINUATION}
  for key, value in rating.items():
    if key in scales:
      low, high = scales[key]
      if type(value) is not int or not low <= value <= high:
        hint = f"give an integer from {low} to {high}"
        problems.append(f"{place}.{key}: {_excerpt(value)}; {hint}")
    elif key not in RATINGS:
      problems.append(f"{place}.{key}: unknown field{_suggest(key, (*RATINGS, *CONTINUATION))}")
    else:
      problems += _flag_problems(f"{place}.{key}", value)
  return problems


def origins(sources: Any, k: int, noun: str = "completion") -> list[str]:
  """Returns the problems of the `sources` of k completions, which messages call by `noun`."""
  is_list = isinstance(sources, list | tuple) and len(sources) == k
  if not is_list or not all(isinstance(source, dict | str) for source in sources):
    return [
      f"sources: a list of {k} is expected, one a {noun}: a text, or an object with model, "
      "temperature and seed"
    ]
  problems = []
  for index, source in enumerate(sources):
    problems += _origin_problems(f"sources[{index}]", source)
  return problems


def _origin_problems(place: str, source: dict[str, Any] | str) -> list[str]:
  """Returns the problems of one entry of `sources`: the name of a model, or an object."""
  if isinstance(source, str):
    return _text_problems(place, source)
  if "model" not in source:
    return [f"{place}.model: missing; say what drew the text"]
  problems = _text_problems(f"{place}.model", source["model"])
  for key, value in source.items():
    if key not in ORIGIN:
      problems.append(f"{place}.{key}: unknown field{_suggest(key, ORIGIN)}")
    elif key == "temperature":
      if type(value) not in (int, float) or not 0 <= value < math.inf:
        problems.append(f"{place}.temperature: {_excerpt(value)}; give a number, 0 or more")
    elif key == "seed" and type(value) is not int:
      problems.append(f"{place}.seed: {_excerpt(value)}; give an integer")
  return problems


# --- other fields ---


def _annotation_problems(place: str, annotations: Any) -> list[str]:
  """Returns the problems of the annotations of a prompt (Table 7)."""
  if not isinstance(annotations, dict):
    name = _type_name(annotations)
    return [f"{place}: an object of true and false is expected, this is {name}"]
  unknown = [key for key in annotations if key not in ANNOTATIONS]
  problems = [f"{place}.{key}: unknown field{_suggest(key, ANNOTATIONS)}" for key in unknown]
  for key in ANNOTATIONS:
    if key in annotations:
      problems += _flag_problems(f"{place}.{key}", annotations[key])
  return problems


def _flag_problems(place: str, value: Any) -> list[str]:
  return [] if isinstance(value, bool) else [f"{place}: {_excerpt(value)}; give true or false"]


def _pair_problems(pairs: Any) -> list[str]:
  """Returns the problems of the pairs of a few_shot record."""
  if not isinstance(pairs, list | tuple) or len(pairs) < 2:
    return ["pairs: a list of at least 2 objects with input and output is expected"]
  problems = []
  first_index: dict[str, int] = {}  # of each input, to find the ones that are repeated
  for index, pair in enumerate(pairs):
    place = f"pairs[{index}]"
    if not isinstance(pair, dict) or set(pair) != {"input", "output"}:
      problems.append(f"{place}: an object with input and output is expected")
      continue
    pair_problems = _text_problems(f"{place}.input", pair["input"])
    pair_problems += _text_problems(f"{place}.output", pair["output"])
    problems += pair_problems
    if pair_problems:
      continue
    first = first_index.setdefault(pair["input"], index)
    if first != index:
      problems.append(f"{place}.input: the same as pairs[{first}]'s; take one out")
  return problems


def _text_problems(place: str, value: Any) -> list[str]:
  if not isinstance(value, str):
    return [f"{place}: text is expected, this is {_type_name(value)}"]
  # JSON can spell half a surrogate pair, but no tokenizer and no UTF-8 file can hold one.
  if _has_surrogate(value):
    return [f"{place}: half a surrogate pair, which is no character; take it out of the text"]
  return [] if value.strip() else [f"{place}: empty; give a text or take the record out"]


def _has_surrogate(text: str) -> bool:
  return any("\ud800" <= letter <= "\udfff" for letter in text)


# --- the wording of messages ---


def _excerpt(value: Any) -> str:
  """Returns a value for a message. It is short, however large the value is."""
  if isinstance(value, list | tuple):
    # A list inside a list is only named, because it may be nested to any depth.
    items = [
      _type_name(item) if isinstance(item, list | tuple) else _excerpt(item)
      for item in value[: K[1]]
    ]
    if len(value) > K[1]:
      items.append("...")
    return f"[{', '.join(items)}]"
  # Python refuses to print integers of more than 4300 digits.
  is_huge = type(value) is int and abs(value) >= 10**20
  is_scalar = isinstance(value, str | bool | int | float)
  text = repr(value) if is_scalar and not is_huge else _type_name(value)
  return text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 3] + "..."


def printable(message: str, longest: int = MESSAGE_LENGTH) -> str:
  """Returns a message as one line of at most `longest` characters and an ellipsis.

  A message may quote the data, a key for example. What it quotes must not break the line or make
  up another one, so whatever cannot be printed is escaped.
  """
  letters = [c if c.isprintable() else ascii(c)[1:-1] for c in message[:longest]]
  return "".join(letters) + ("..." if len(message) > longest else "")


def required(kind: str) -> str:
  """Returns the names of the fields that a kind of record must have, as a list in a sentence."""
  fields = dataclasses.fields(KINDS[kind])
  return ", ".join(field.name for field in fields if field.default is dataclasses.MISSING)


def _suggest(key: str, names: Iterable[str]) -> str:
  """Returns a hint for a message about an unknown key: the name that is near it, or all names."""
  near = difflib.get_close_matches(key, list(names), 1)
  return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}"


def _type_name(value: Any) -> str:
  """Returns what JSON calls the type of a value, with its article."""
  names = {
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
  }
  return names.get(type(value), "a number")
