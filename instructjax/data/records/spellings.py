"""Which function reads the rows of a source: a spelling by its name, or a mapping of fields.

Names and mappings come from the options --spelling and --fields of the commands, or from
`config.data`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from instructjax.data.records import formats, records, sources
from instructjax.data.records.feedback import oasst, summarize_feedback, ultrafeedback
from instructjax.data.records.records import Spelling, Whole
from instructjax.errors import UserError

SPELLINGS: dict[str, Spelling] = {
  **formats.SPELLINGS,
  "ultrafeedback": ultrafeedback,
  "summarize_feedback": summarize_feedback,
  "oasst": Whole(oasst),
}
# The spellings whose rows are comparisons first of all. The others hold demonstrations.
COMPARISONS = (
  "preference",
  "hh",
  "ultrafeedback",
  "summarize_feedback",
  "oasst",
)
# The fields that each kind of record must have.
REQUIRED = {
  kind: [field.name for field in dataclasses.fields(record) if field.default is dataclasses.MISSING]
  for kind, record in records.KINDS.items()
}


def kind(name: str = "native", fields: str = "") -> str | None:
  """Returns the kind of record that a spelling or a mapping of fields gives, or None if neither."""
  if name != "native":
    return "comparison" if name in COMPARISONS else "demonstration"
  mapping = parse(fields, "--")
  return "comparison" if "chosen" in mapping else sources.kind_of_fields(mapping)


def choose(
  name: str,
  kind: str,
  fields: Mapping[str, str] | str = "",
  candidates: Mapping[str, Spelling] = SPELLINGS,
  place: str = "config.data.",
) -> Spelling | None:
  """Returns the spelling of a name, or of a mapping of fields.

  None means that the source itself decides: our own field names, or the ready mapping of a TFDS
  data set. Text is always native, so only its fields can be mapped. A mapping counts for the kinds
  of which it names a required field; for comparisons these are also chosen and rejected.

  Args:
    name: one of `candidates`.
    kind: the kind of record that is wanted.
    fields: our names and theirs, as `parse` takes them.
    candidates: the spellings by their names.
    place: what stands before `spelling` and `fields` in messages, such as "--".

  Raises:
    UserError: for an unknown name or field, and for a mapping beside a spelling.
  """
  if name not in candidates:
    raise UserError(f"{place}spelling={name!r}: known are {', '.join(candidates)}")
  mapping = parse(fields, place)
  if mapping and name != "native":
    raise UserError(f"{place}fields and {place}spelling={name!r}: give one of them")
  spelling = _mapped_spelling(mapping, kind, place)
  if spelling:
    return spelling
  return None if name == "native" or kind == "text" else candidates[name]


def _mapped_spelling(mapping: dict[str, str], kind: str, place: str) -> Spelling | None:
  """Returns the spelling of a mapping of fields, or None where it is not about this kind.

  One mapping may serve several kinds: of prompt=q,completion=a a prompt takes its half.
  """
  needed = set(REQUIRED.get(kind, ()))
  allowed = set(_fields(kind))
  if kind == "comparison":
    needed.update(formats.PAIR)
    allowed.update(formats.PAIR)
  if not needed & set(mapping):
    return None

  # Only comparisons may have chosen and rejected. They take the place of completions and ranks.
  pair = [field for field in formats.PAIR if field in mapping and field in allowed]
  replaced = {"completions", "ranks"} if pair else set()
  if len(pair) == 1 or replaced & set(mapping):
    raise UserError(f"{place}fields: give chosen and rejected, or completions and ranks")

  # Required fields that the mapping does not name are expected under our own names.
  missing = [field for field in REQUIRED[kind] if field not in {*mapping, *replaced}]
  full_mapping = {field: field for field in missing}
  full_mapping.update({ours: theirs for ours, theirs in mapping.items() if ours in allowed})
  return formats.mapped(full_mapping)


def parse(fields: Mapping[str, str] | str, place: str = "config.data.") -> dict[str, str]:
  """Returns a mapping such as "prompt=question,completion=answer" as {our name: their name}.

  Raises:
    UserError: if it is no such mapping, or if it names a field that no record has.
  """
  if isinstance(fields, str):
    pieces = [piece for piece in fields.split(",") if piece.strip()]
    pairs = [[name.strip() for name in piece.split("=", 1)] for piece in pieces]
  else:
    pairs = [[ours, theirs] for ours, theirs in dict(fields).items()]

  # `fromkeys` keeps the order, in which a message lists them.
  all_fields = [field for kind in records.KINDS for field in _fields(kind)]
  names = [*dict.fromkeys(all_fields), *formats.PAIR]
  for pair in pairs:
    # A piece without "=" is a list of one name.
    if len(pair) != 2 or not all(isinstance(name, str) and name for name in pair):
      raise UserError(
        f"{place}fields={fields!r}: give OURS=THEIRS,... such as prompt=question,completion=answer"
      )
    if pair[0] not in names:
      near = difflib.get_close_matches(pair[0], names, 1)
      hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
      raise UserError(f"{place}fields: {pair[0]!r} is no field of a record; {hint}")
  mapping = {pair[0]: pair[1] for pair in pairs}
  if len(mapping) < len(pairs):
    raise UserError(f"{place}fields={fields!r}: a field is named twice")
  return mapping


def _fields(kind: str) -> list[str]:
  """Returns the fields that a file may have for a kind of record; none for an unknown kind."""
  if kind not in records.KINDS:
    return []
  names = [field.name for field in dataclasses.fields(records.KINDS[kind])]
  return [name for name in names if name not in records.MADE]
