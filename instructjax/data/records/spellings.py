"""Which function reads the rows of a source: a spelling by its name, or a mapping of fields.

Names and mappings come from the options --spelling and --fields of the commands, or from
`config.data`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping

from instructjax.data.records import detect, formats, records
from instructjax.data.records.named import LAYOUTS, Layout
from instructjax.data.records.schemas import DERIVED
from instructjax.errors import UserError

# The fields that each kind of record must have.
REQUIRED = {
  kind: [field.name for field in dataclasses.fields(record) if field.default is dataclasses.MISSING]
  for kind, record in records.KINDS.items()
}


# What a mapping can name on the left besides the fields of a record, for comparisons.
LABELS = (*formats.PAIR, *formats.ORDER, "values")


def kind(name: str = "", fields: str = "") -> str | None:
  """Returns the kind of record that a spelling or a mapping of fields gives, or None if neither."""
  if name and name != "native":
    return LAYOUTS[name].kinds[0]
  mapping = parse(fields, "--")
  return "comparison" if "chosen" in mapping else detect.native_kind(mapping)


def choose(
  name: str,
  kind: str,
  fields: Mapping[str, str] | str = "",
  place: str = "config.data.",
  field: str = "",
) -> Layout | None:
  """Returns how rows are read: by the spelling of a name, or by a mapping of fields.

  None means that the source itself decides: its first rows, or the ready mapping of a TFDS data
  set. Text is always native, so only its fields can be mapped. A mapping counts for the kinds of
  which it names a required field; for comparisons these are also chosen and rejected.

  Args:
    name: the name of a spelling, "" for the source's own, or one for each field of `config.data`
      by itself: "comparisons=hh,demonstrations=native".
    kind: the kind of record that is wanted.
    fields: our names and theirs, as `parse` takes them.
    place: what stands before `spelling` and `fields` in messages, such as "--".
    field: the field of `config.data` that names the source.

  Raises:
    UserError: for an unknown name or field, and for a mapping beside a spelling.
  """
  by_field = "=" in name
  own_name = _name_by_field(name, place).get(field, "") if by_field else name
  if own_name and own_name not in LAYOUTS:
    raise UserError(f"{place}spelling={name!r}: known are {', '.join(LAYOUTS)}")
  mapping = parse(fields, place)
  if mapping and own_name not in ("", "native") and not by_field:
    raise UserError(f"{place}fields and {place}spelling={name!r}: give one of them")
  # A spelling that is named for this field alone goes before a mapping for several.
  layout = None if by_field and own_name else _mapped_spelling(mapping, kind, place)
  if layout:
    return layout
  return None if not own_name or kind == "text" else LAYOUTS[own_name]


def _name_by_field(text: str, place: str) -> dict[str, str]:
  """Returns the spellings of a text such as "comparisons=hh,demonstrations=native" by field.

  Raises:
    UserError: if it is no such text.
  """
  names = {}
  for piece in text.split(","):
    field, is_pair, name = piece.partition("=")
    if not is_pair or not field.strip() or not name.strip():
      raise UserError(
        f"{place}spelling={text!r}: give one name, or FIELD=NAME,... such as "
        "comparisons=hh,demonstrations=native"
      )
    names[field.strip()] = name.strip()
  return names


def fields_of(text: str) -> list[str]:
  """Returns the fields of `config.data` that a spelling names, none where it is one for all."""
  return list(_name_by_field(text, "config.data.")) if "=" in text else []


def _mapped_spelling(mapping: dict[str, str], kind: str, place: str) -> Layout | None:
  """Returns the spelling of a mapping of fields, or None where it is not about this kind.

  One mapping may serve several kinds: of prompt=q,completion=a a prompt takes its half.
  """
  needed = set(REQUIRED.get(kind, ()))
  allowed = set(_fields(kind))
  if kind == "comparison":
    needed.update(formats.PAIR)
    allowed.update(LABELS)
  if not needed & set(mapping):
    return None

  # Only comparisons may have chosen and rejected. They take the place of completions and ranks.
  pair = [field for field in formats.PAIR if field in mapping and field in allowed]
  replaced = {"completions", "ranks"} if pair else set()
  if len(pair) == 1 or replaced & set(mapping):
    raise UserError(f"{place}fields: give chosen and rejected, or completions and ranks")
  order = [field for field in ("ranks", "pairs", *formats.ORDER) if field in mapping]
  if kind == "comparison":
    if len(order) + bool(pair) > 1:
      raise UserError(
        f"{place}fields: {', '.join([*pair, *order])} all say which is better; give one"
      )
    if order:
      replaced.add("ranks")
    if "values" in mapping and not {"choice", "choices", "pairs"} & set(mapping):
      raise UserError(
        f"{place}fields: values are those of choice, choices or pairs; give one of them"
      )

  # Required fields that the mapping does not name are expected under our own names.
  missing = [field for field in REQUIRED[kind] if field not in {*mapping, *replaced}]
  full_mapping = {field: field for field in missing}
  full_mapping.update({ours: theirs for ours, theirs in mapping.items() if ours in allowed})
  columns = formats.columns_of(full_mapping)
  return Layout("", formats.mapped(full_mapping), (), columns, full_mapping)


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
  names = [*dict.fromkeys(all_fields), *LABELS]
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
  fields = dataclasses.fields(records.KINDS[kind])
  return [field.name for field in fields if field.name not in DERIVED]
