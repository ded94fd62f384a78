"""How a file is read that nobody named a spelling for: its first rows say it, or a hint does.

The columns of the first rows decide. Where they are those of one public layout, or our own, the
file is read so, and `Notes` hold a sentence that says it. Where they are not, the error names the
one option that reads the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from instructjax.data.records import formats, named, validation
from instructjax.data.records.named import LAYOUTS, Layout, LeftOut
from instructjax.data.records.records import TURN, Spelling
from instructjax.data.records.schemas import KINDS, K
from instructjax.errors import UserError

# The rows that are looked at.
FIRST = 16
# The first of these fields that a row of ours has says which kind of record it is. Prompt comes
# last, because most kinds have one.
KIND_BY_FIELD = {
  "completions": "comparison",
  "completion": "demonstration",
  "pairs": "few_shot",
  "text": "text",
  "prompt": "prompt",
}
# The names that prompts, answers and documents have elsewhere, the most telling first.
PROMPTS = (
  "prompt",
  "question",
  "instruction",
  "query",
  "problem",
  "input",
  "request",
  "user",
  "task",
  "post",
  "context",
  "title",
)
ANSWERS = (
  "completion",
  "response",
  "answer",
  "output",
  "reply",
  "solution",
  "target",
  "summary",
  "assistant",
  "chosen",
  "label",
)
TEXTS = ("text", "content", "document", "body", "passage", "article", "story", "raw_content")
# Parts of the names of columns that say which of two answers is the better one.
CHOICES = ("choice", "prefer", "winner", "better", "annotator", "verdict", "label")
# Parts of the names of columns with a number for each answer, the highest for the best.
SCORES = ("score", "rating", "votes", "winner")
# Parts of the names of columns that are the better and the worse answer in every row.
BETTER = ("chosen", "better", "good", "win", "prefer", "positive", "accept")
WORSE = ("reject", "worse", "bad", "lose", "loser", "negative")
# The most columns that a message lists.
LISTED = 12
# How like one of ours a name is that is taken for it: "usr" is 0.86 like "user", and "score" 0.73
# like "source".
SLIP = 0.8
LONGEST = 800  # characters of a hint

# The columns of most of the first rows, each with a value.
Columns = Mapping[str, Any]


@dataclasses.dataclass
class Notes:
  """What there is to say about how a source was read.

  `read_as` has the files of each sentence about a spelling that was found.
  """

  read_as: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  left_out: LeftOut = dataclasses.field(default_factory=LeftOut)


def sentences(notes: Notes, source: object) -> list[str]:
  """Returns the notes about a source, a line each; there are none for files of our own."""
  lines = []
  for text, files in notes.read_as.items():
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    lines.append(f"{files[0]}{more}: {text}")
  text = named.sentence(notes.left_out)
  return [*lines, f"{source}: {text}"] if text else lines


# --- the first rows ---


def columns_of(rows: Iterable[dict[str, Any]]) -> Columns:
  """Returns the columns that have a value in more than half of the first rows.

  One row that lacks a column, or has one too many, does not change what a file is.
  """
  first = list(itertools.islice(rows, FIRST))
  counts = Counter(name for row in first for name, value in row.items() if value is not None)
  names = [name for name, count in counts.items() if 2 * count > len(first)]
  return {name: next(row[name] for row in first if row.get(name) is not None) for name in names}


def _has(columns: Columns, *names: str) -> bool:
  return all(name in columns for name in names)


def spelling_of(columns: Columns) -> str | None:
  """Returns the name of the spelling of rows with these columns, or None if it is not clear."""
  name = _pairwise_spelling(columns) or _preference_spelling(columns)
  if name or _has(columns, "chosen", "rejected"):
    return name
  if _has(columns, "instruction", "pairs"):
    return "native"
  if _has(columns, "prompt", "completion"):
    has_verdict = any(isinstance(columns.get(name), bool) for name in formats.VERDICTS)
    is_native = isinstance(columns["completion"], str) and not has_verdict
    return "native" if is_native else "prompt_completion"
  if isinstance(columns.get("messages"), list):
    return "messages"
  if any(isinstance(columns.get(name), list) for name in ("conversations", "conversation")):
    return "conversations"
  if _has(columns, "instruction", "output"):
    return "alpaca"
  if _has(columns, "instruction", "response"):
    return "dolly"
  if any(name in columns for name in ("text", "completion", "pairs")):
    return "native"
  # An answer beside a prompt may be what a reward checks, but a response is there to be learnt.
  has_response = any(name in columns for name in ("response", "output", "reply"))
  is_prompt = "prompt" in columns and not has_response and not _pair_mapping(columns, "prompt")
  return "native" if is_prompt else None


def _pairwise_spelling(columns: Columns) -> str | None:
  """Returns the spelling of rows with several answers that are no pair of chosen and rejected."""
  is_ours = "completions" in columns and ("ranks" in columns or "pairs" in columns)
  if not is_ours and _is_ultrafeedback(columns):
    return "ultrafeedback"
  if "completions" in columns:
    return "native"
  needed = {
    "arena": ("conversation_a", "conversation_b", "winner"),
    "shp": ("history", "human_ref_A", "human_ref_B", "labels"),
    "pandalm": ("instruction", "response1", "response2", "annotator1"),
    "webgpt": ("question", "answer_0", "answer_1", "score_0", "score_1"),
    "fine_grained": ("question", "prediction 1", "prediction 2", "preference"),
    "summarize_feedback": ("info", "summaries", "choice"),
  }
  for name, names in needed.items():
    if _has(columns, *names):
      return name
  helpsteer = (
    ("prompt", "response", "helpfulness"),
    ("prompt", "response_1", "response_2", "preference_strength"),
    ("context", "response1", "response2", "overall_preference"),
  )
  if any(_has(columns, *names) for names in helpsteer):
    return "helpsteer"
  is_tree = isinstance(columns.get("prompt"), dict) and "message_tree_id" in columns
  return "oasst" if is_tree or _has(columns, "message_id", "role", "text") else None


def _is_ultrafeedback(columns: Columns) -> bool:
  """Returns whether completions have scores, in objects or in a list of ratings beside them."""
  if "instruction" not in columns and "prompt" not in columns:
    return False
  for name in ("completions", "generations", "responses"):
    values = columns.get(name)
    if isinstance(values, list) and values:
      is_object = isinstance(values[0], dict) and ("response" in values[0] or "text" in values[0])
      if is_object or (isinstance(values[0], str) and isinstance(columns.get("ratings"), list)):
        return True
  return False


def _preference_spelling(columns: Columns) -> str | None:
  """Returns the spelling of rows with a better and a worse answer, which may have no prompt."""
  if not _has(columns, "chosen", "rejected"):
    return None
  if any(name in columns for name in ("prompt", "instruction", *formats.CHATS)):
    return "preference"
  pair = [columns[name] for name in formats.PAIR]
  if all(isinstance(value, list) for value in pair):
    return "preference"
  are_transcripts = all(isinstance(value, str) and TURN in value for value in pair)
  return "hh" if are_transcripts else None


def kind_of(columns: Columns) -> str | None:
  """Returns the kind of record that rows of these columns hold first of all, or None."""
  name = spelling_of(columns)
  if name is None:
    return None
  return LAYOUTS[name].kinds[0] if LAYOUTS[name].kinds else native_kind(columns)


def native_kind(names: Iterable[str]) -> str | None:
  """Returns the kind of record of ours that has these fields, or None."""
  fields = set(names)
  return next((kind for field, kind in KIND_BY_FIELD.items() if field in fields), None)


# --- how a file is read ---


def reader(
  name: str,
  rows: Iterator[dict[str, Any]],
  kind: str,
  layout: Layout | None,
  place: str,
  notes: Notes,
) -> Spelling:
  """Returns the spelling of a file, and adds to the notes what there is to say about it.

  Args:
    name: the file, for messages.
    rows: its rows that are objects.
    kind: the kind of record that is wanted.
    layout: what the user named, or None.
    place: what stands before `spelling` and `fields` in messages, such as "--".
    notes: get a sentence, and the counts of columns that are left out while rows are read.

  Raises:
    UserError: if the rows are not of this kind, or nothing says how they are read.
  """
  columns = columns_of(rows)
  if layout is not None:
    _require_kind(name, layout, kind, f"{place}spelling={layout.name} reads")
    _refuse_pair(name, layout, columns, place)
    return named.counted(layout, notes.left_out)
  if not columns:
    # What is wrong with the rows is said of each of them.
    return LAYOUTS["native"].spell
  detected = spelling_of(columns)
  is_wanted = kind in columns and kind in ("prompt", "text")
  if is_wanted and (kind == "text" or detected is None):
    # A prompt or a text is what it is, whatever stands beside it.
    detected = "native"
  if detected is None or (detected == "native" and not _is_of_kind(columns, kind)):
    raise UserError(f"{name}: {hint(columns, kind, place)}")
  layout = LAYOUTS[detected]
  if detected == "native":
    _refuse_more_columns(name, columns, kind, place)
  else:
    fields = ", ".join(column for column in columns if column in _telling(layout))
    option = f"{place}spelling={detected} (fields {fields})"
    _require_kind(name, layout, kind, f"looks like {option}, which has")
    notes.read_as.setdefault(f"read as {option}", []).append(name)
  return named.counted(layout, notes.left_out)


def _telling(layout: Layout) -> frozenset[str]:
  """Returns the columns of a layout that are its own."""
  return (layout.columns or frozenset()) - set(named.OWN)


def _require_kind(name: str, layout: Layout, kind: str, beginning: str) -> None:
  """Raises UserError where a layout does not give records of a kind."""
  if layout.kinds and kind not in layout.kinds:
    kinds = ", ".join(f"{other}s" for other in layout.kinds)
    raise UserError(f"{name}: {beginning} {kinds} and no {kind}s; give a file of {kind}s")


def _is_of_kind(columns: Columns, kind: str) -> bool:
  """Returns whether rows with fields of ours can be meant as records of a kind.

  Fields that are missing or misspelt are said of each row. Only rows that are whole records of
  another kind are refused at once.
  """
  own_kind = native_kind(columns)
  if own_kind is None or own_kind == kind:
    return True
  if kind == "prompt":
    return "prompt" in columns
  if own_kind == "prompt":
    # An answer under another name is mapped; a completion that is misspelt is said of its row.
    return not _mapping(columns, kind)
  is_whole = all(field in columns for field in _required(own_kind))
  return not is_whole or all(field in columns for field in _required(kind))


def _refuse_more_columns(name: str, columns: Columns, kind: str, place: str) -> None:
  """Raises UserError where whole records of ours have more columns, none of them a slip of the pen.

  A prompt may have any, and what is missing or misspelt is said of each row.
  """
  allowed = [field.name for field in dataclasses.fields(KINDS[kind])]
  unknown = [column for column in columns if column not in allowed]
  is_whole = all(field in columns for field in _required(kind) if field != "ranks")
  if kind == "prompt" or not unknown or not is_whole:
    return
  if any(difflib.get_close_matches(column, allowed, 1, SLIP) for column in unknown):
    return
  ours = ",".join(f"{column}={column}" for column in columns if column in allowed)
  are = "is no field" if len(unknown) == 1 else "are no fields"
  text = f"{', '.join(unknown[:LISTED])} {are} of a {kind}; leave out what you do not need with "
  raise UserError(f"{name}: {validation.printable(text + _option(place, ours), LONGEST)}")


def _required(kind: str) -> list[str]:
  fields = dataclasses.fields(KINDS[kind])
  return [field.name for field in fields if field.default is dataclasses.MISSING]


# --- hints ---


def hint(columns: Columns, kind: str | None, place: str) -> str:
  """Returns what rows of these columns are, and the option that reads them, as one sentence."""
  return validation.printable(_hint(columns, kind, place), LONGEST)


def _hint(columns: Columns, kind: str | None, place: str) -> str:
  """Returns the sentence of `hint` with the names as they stand in the file."""
  names = [str(name) for name in columns][:LISTED]
  listed = ", ".join(names) + (", ..." if len(columns) > LISTED else "")
  own_kind = native_kind(columns)
  if own_kind and kind not in (None, own_kind) and kind != "text" and not _mapping(columns, kind):
    return f"holds {own_kind}s (fields {listed}), no {kind}s; give a file of {kind}s"
  mapping = _mapping(columns, kind)
  if mapping:
    return f"its fields are {listed}; read it with {_option(place, mapping)}"
  example = {
    "text": "text=COLUMN",
    "prompt": "prompt=COLUMN",
    "comparison": "prompt=COLUMN,completions=COLUMN|COLUMN,choice=COLUMN",
  }.get(kind or "", "prompt=COLUMN,completion=COLUMN")
  return f"its fields are {listed}; say which of them are ours with {_option(place, example)}"


def _option(place: str, mapping: str) -> str:
  """Returns the option of a mapping, in quotes where a shell would read something else."""
  quote = "'" if "|" in mapping or " " in mapping else ""
  return f"{place}fields={quote}{mapping}{quote}"


def _mapping(columns: Columns, kind: str | None) -> str:
  """Returns the mapping of fields that reads rows of these columns, or "" where it is not clear."""
  if kind == "text":
    body = _first_text(columns, TEXTS)
    return f"text={body}" if body else ""
  prompt = _first_text(columns, PROMPTS)
  if not prompt:
    return ""
  if kind in (None, "comparison"):
    pair = _pair_mapping(columns, prompt)
    if pair or kind == "comparison":
      return pair
  if kind == "prompt":
    return f"prompt={prompt}"
  answer = _first_text({name: columns[name] for name in columns if name != prompt}, ANSWERS)
  if answer:
    return f"prompt={prompt},completion={answer}"
  return f"prompt={prompt}" if kind is None else ""


def _pair_mapping(columns: Columns, prompt: str) -> str:
  """Returns the mapping of rows with several answers, or "" where there are none."""
  system = "system+" if isinstance(columns.get("system"), str) else ""
  if _has(columns, *formats.PAIR):
    return f"prompt={system}{prompt},chosen=chosen,rejected=rejected"
  texts = {name for name, value in columns.items() if isinstance(value, str) and name != prompt}
  answers = _numbered(texts)
  if not answers:
    return ""
  order = _order(columns, answers)
  return f"prompt={system}{prompt},completions={'|'.join(answers)},{order}" if order else ""


def _numbered(names: Iterable[str]) -> list[str]:
  """Returns the names that differ in a last number or letter alone: answer_0, answer_1."""
  groups: dict[str, list[str]] = {}
  for name in sorted(names):
    if name and (name[-1].isdigit() or name[-1] in "abAB"):
      groups.setdefault(name[:-1], []).append(name)
  fitting = [group for group in groups.values() if K[0] <= len(group) <= K[1]]
  # Answers stand beside models or explanations of theirs; the group with a telling name goes first.
  telling = [group for group in fitting if any(part in group[0].lower() for part in ANSWERS)]
  return next(iter(telling or fitting), [])


def _order(columns: Columns, answers: Sequence[str]) -> str:
  """Returns the part of a mapping that says which of the answers is the better one, or ""."""
  endings = [name[-1] for name in answers]
  for part in SCORES:
    scores = [name for name in columns if part in name.lower() and _is_number(columns[name])]
    by_ending = {name[-1]: name for name in scores}
    if all(ending in by_ending for ending in endings):
      return f"scores={'|'.join(by_ending[ending] for ending in endings)}"
  choices = [
    name
    for name, value in columns.items()
    if name not in answers
    and any(part in name.lower() for part in CHOICES)
    and isinstance(value, str | int | bool)
  ]
  if not choices:
    return ""
  label = f"choices={'|'.join(choices)}" if len(choices) > 1 else f"choice={choices[0]}"
  if isinstance(columns[choices[0]], str):
    return label
  # Only the user knows which number means which answer.
  meanings = "|".join(
    ["FIRST", "SECOND", "TIE"] if len(answers) == 2 else ["FIRST", "SECOND", "..."]
  )
  return f"{label},values={meanings}"


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _first_text(columns: Columns, names: Sequence[str]) -> str | None:
  """Returns the path of the first of these columns that holds a text, or a text in an object."""
  lower = {name.lower(): name for name in columns}
  for wanted in names:
    if wanted not in lower:
      continue
    name = lower[wanted]
    value = columns[name]
    if isinstance(value, str):
      return name
    inside = value if isinstance(value, dict) else {}
    texts = [key for key in inside if isinstance(inside[key], str) and "text" in key.lower()]
    if texts:
      return f"{name}.{texts[0]}"
    lists = [key for key in inside if isinstance(inside[key], list) and "text" in key.lower()]
    if lists:
      return f"{name}.{lists[0]}.0"
  return None


# --- a mapping that would turn labels round ---


def _refuse_pair(name: str, layout: Layout, columns: Columns, place: str) -> None:
  """Raises UserError where a mapping calls one column chosen, and another column has the choice."""
  mapping = layout.fields or {}
  chosen, rejected = (mapping.get(field, "") for field in formats.PAIR)
  is_fixed = any(part in chosen.lower() for part in BETTER) or any(
    part in rejected.lower() for part in WORSE
  )
  if not chosen or is_fixed:
    return
  order = _order(columns, [chosen, rejected])
  if not order:
    return
  others = {
    ours: theirs for ours, theirs in mapping.items() if ours not in (*formats.PAIR, "prompt")
  }
  prompt = mapping.get("prompt", "prompt")
  parts = [f"prompt={prompt}", f"completions={chosen}|{rejected}", order]
  parts += [f"{ours}={theirs}" for ours, theirs in others.items()]
  column = order.split(",")[0].partition("=")[2].replace("|", ", ")
  says = "say" if ", " in column else "says"
  raise UserError(
    f"{name}: {chosen} is not the better answer in every row, as {column} {says} which one is; "
    f"read it with {_option(place, ','.join(parts))}"
  )
