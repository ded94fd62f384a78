"""What a setting is: a field of a frozen dataclass with a type, a range and one sentence.

  @settings
  class KL:
    coef: float = setting(0.02, "The coefficient of the KL penalty (paper: .02).", low=0, high=100)

The type says what a value may be: a number, a text, true or false, one of a `Literal`, `none`
where the type allows it, or several by commas. Every value is checked when a settings object is
made, so that no function ever sees one that is out of its range.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union, dataclass_transform, get_args, get_origin
from typing import get_type_hints as type_hints

from instructjax.errors import UserError

LONGEST_SHOWN = 200  # characters of a value in a message
LARGEST_FLOAT = sys.float_info.max
LARGEST = 10**9  # the bound of a whole number where its field names no other


class Limits(NamedTuple):
  """The range of a number: `low` and `high` belong to it, `above` and `below` do not."""

  low: float | None = None
  high: float | None = None
  above: float | None = None
  below: float | None = None

  def hold(self, value: float) -> bool:
    """Returns whether a number lies in the range."""
    if self.low is not None and value < self.low:
      return False
    if self.high is not None and value > self.high:
      return False
    if self.above is not None and value <= self.above:
      return False
    return self.below is None or value < self.below

  def words(self) -> str:
    """Returns the range as a person says it, for example "from 0 to 1" or "above 0 and below 1"."""
    parts = []
    if self.low is not None and self.high is not None:
      return f"from {_number(self.low)} to {_number(self.high)}"
    if self.low is not None:
      parts.append(f"from {_number(self.low)}")
    if self.above is not None:
      parts.append(f"above {_number(self.above)}")
    if self.high is not None:
      parts.append(f"up to {_number(self.high)}")
    if self.below is not None:
      parts.append(f"below {_number(self.below)}")
    return " and ".join(parts)


def _number(value: float) -> str:
  """A bound of a range: 4,294,967,295 and not 4.29497e+09."""
  return f"{int(value):,}" if value == int(value) else f"{value:g}"


def setting(
  default: Any,
  sentence: str,
  *,
  low: float | None = None,
  high: float | None = None,
  above: float | None = None,
  below: float | None = None,
) -> Any:
  """A field with its default, the sentence that explains it, and the range of a number."""
  metadata = {"sentence": sentence, "limits": Limits(low, high, above, below)}
  return dataclasses.field(default=default, metadata=metadata)


def group(default: Any) -> Any:
  """A field that holds other settings."""
  return dataclasses.field(default=default)


@dataclass_transform(frozen_default=True)
def settings(cls: type) -> Any:
  """Makes a class of settings: a frozen dataclass whose values are checked when it is made.

  A class may have a method `conflicts()` that yields (field, what is wrong) where fields contradict
  each other.

  Raises:
    UserError: from the made class, for a value of another type, out of its range or in conflict.
  """

  def check_itself(self: Any) -> None:
    for name, kind in kinds(type(self)).items():
      if not is_group(kind):
        value = checked(name, getattr(self, name), kind, limits_of(type(self), name))
        object.__setattr__(self, name, value)
    # Fields are compared with each other once each of them is right by itself.
    for name, complaint in conflicts_of(self):
      value = _brief(show(getattr_path(self, name)))
      raise UserError(f"config.{name}={value}: {complaint}")

  cls.__post_init__ = check_itself
  return dataclasses.dataclass(frozen=True)(cls)


# --- what the fields of a class are ---


def kinds(cls: type) -> dict[str, Any]:
  """The fields of a class of settings with their types."""
  # Annotations are texts (`from __future__ import annotations`) until they are resolved.
  if cls not in _KINDS:
    hints = type_hints(cls)
    _KINDS[cls] = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
  return _KINDS[cls]


_KINDS: dict[
  type, dict[str, Any]
] = {}  # resolving the types of a class takes a while, and is asked often


def is_group(kind: Any) -> bool:
  """Returns whether a field holds other settings."""
  return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def limits_of(cls: type, name: str) -> Limits:
  """The range of a field."""
  return metadata_of(cls, name).get("limits", Limits())


def sentence_of(cls: type, name: str) -> str:
  """The sentence that explains a field."""
  return metadata_of(cls, name).get("sentence", "")


def metadata_of(cls: type, name: str) -> Mapping[str, Any]:
  return next(field.metadata for field in dataclasses.fields(cls) if field.name == name)


class Field(NamedTuple):
  """One field of a settings object, at any depth."""

  path: str  # its dotted name, without "config."
  value: Any
  kind: Any
  limits: Limits
  sentence: str


def walk(value: Any, prefix: str = "") -> Iterator[Field]:
  """Yields every field of a settings object that holds no other settings."""
  cls = type(value)
  for name, kind in kinds(cls).items():
    part = getattr(value, name)
    if is_group(kind):
      yield from walk(part, f"{prefix}{name}.")
    else:
      yield Field(f"{prefix}{name}", part, kind, limits_of(cls, name), sentence_of(cls, name))


def conflicts_of(value: Any) -> Iterator[tuple[str, str]]:
  """Yields (field, what is wrong) for fields of one object that contradict each other."""
  find_conflicts = getattr(value, "conflicts", None)
  if find_conflicts is not None:
    yield from find_conflicts()


def getattr_path(value: Any, path: str) -> Any:
  """The value of a dotted name."""
  for part in path.split("."):
    value = getattr(value, part)
  return value


# --- checking and reading one value ---


def options(kind: Any) -> tuple[Any, ...]:
  """The types that a value may have: those of a union, or the type alone."""
  if get_origin(kind) in (Union, types.UnionType):
    return get_args(kind)
  return (kind,)


def expectation(kind: Any, limits: Limits) -> str:
  """What a field takes, in words."""
  words = []
  for option in options(kind):
    if option is type(None):
      words.append("none")
    elif get_origin(option) is Literal:
      words.append("one of " + ", ".join(choice or '""' for choice in get_args(option)))
    elif option is bool:
      words.append("true or false")
    elif option is int:
      words.append(f"a whole number {_with_bound(limits).words()}")
    elif option is float:
      words.append(f"a number {limits.words()}".strip())
    elif get_origin(option) is tuple:
      words.append(f"several by commas, each {expectation(get_args(option)[0], limits)}")
    else:
      words.append("a text")
  return ", or ".join(words)


def _with_bound(limits: Limits) -> Limits:
  """The range of a whole number, which always has an end."""
  if limits.high is None and limits.below is None:
    return limits._replace(high=LARGEST)
  return limits


def checked(path: str, value: Any, kind: Any, limits: Limits) -> Any:
  """The value as its field holds it: a whole number as a float where one is expected.

  Raises UserError for another type and for a value out of its range.
  """
  for option in options(kind):
    fitting, held = _fits(value, option, limits)
    if fitting:
      return held
  raise UserError(f"config.{path}={_brief(show(value))}: {expectation(kind, limits)} is expected")


def _fits(value: Any, option: Any, limits: Limits) -> tuple[bool, Any]:
  """(whether a value fits one type, the value as it is held)."""
  if option is type(None):
    return value is None, None
  if get_origin(option) is Literal:
    return value in get_args(option), value
  if get_origin(option) is tuple:
    if not isinstance(value, tuple | list):
      return False, value
    parts = [_fits(part, get_args(option)[0], limits) for part in value]
    return all(fitting for fitting, _ in parts), tuple(part for _, part in parts)
  if option is bool:
    return isinstance(value, bool), value
  if isinstance(value, bool):  # which Python counts among the whole numbers
    return False, value
  if option is int:
    # 1e6 is how a person writes a million.
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
      value = int(value)
    return isinstance(value, int) and _with_bound(limits).hold(value), value
  if option is float:
    # No setting means anything when it is infinite or not a number.
    if not isinstance(value, int | float) or not _is_finite(value):
      return False, value
    return limits.hold(value), float(value)
  return isinstance(value, option), value


def _brief(text: str) -> str:
  """Returns a value for a message: on one line, and not at any length."""
  if not text.isprintable():
    text = text.encode("unicode_escape").decode()
  return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _is_finite(value: float) -> bool:
  """Returns whether float64 holds a number; `math.isfinite` fails at the largest whole numbers."""
  return abs(value) <= LARGEST_FLOAT


def parsed(path: str, text: str, kind: Any, limits: Limits) -> Any:
  """The value that a text on the command line stands for.

  Raises UserError where it does not fit the field.
  """
  for option in options(kind):
    try:
      return checked(path, _literal(text, option), option, limits)
    except UserError:
      continue  # another option of the type may take it
  raise UserError(f"config.{path}={_brief(text)}: {expectation(kind, limits)} is expected")


def _literal(text: str, option: Any) -> Any:
  """A text as a value of one type; the text itself where it is none."""
  if option is str or get_origin(option) is Literal:
    return text
  if option is type(None):
    return None if text.lower() in ("none", "null") else text
  if option is bool:
    return {"true": True, "false": False}.get(text.lower(), text)
  if get_origin(option) is tuple:
    parts = (part.strip() for part in text.strip("()").split(","))
    return tuple(_literal(part, get_args(option)[0]) for part in parts if part)
  # Python's own reader of literals would take lists too, and fails in several ways.
  try:
    return int(text, 0)  # 0: the prefix 0x is read
  except ValueError:
    pass
  try:
    return float(text)  # nan and inf, which no field takes, and which get the message of a number
  except ValueError:
    return text


def show(value: Any) -> str:
  """A value as it is written on the command line."""
  if isinstance(value, tuple):
    return ",".join(show(part) for part in value)
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, int) and not _is_finite(value):
    return f"a number of {value.bit_length()} bits"  # Python would refuse to write it
  return f"{value:g}" if isinstance(value, float) else str(value)


# --- changing and building whole objects ---


def replaced(value: Any, changes: Mapping[str, Any]) -> Any:
  """The settings with other values for fields by their dotted names, all of them checked together.

  Raises UserError for an unknown field and for a value that does not fit.
  """
  return built(type(value), _changed(to_dict(value), type(value), changes))


def _changed(tree: dict[str, Any], cls: type, changes: Mapping[str, Any]) -> dict[str, Any]:
  for path, new in changes.items():
    parent_path, _, name = path.rpartition(".")
    parent, parent_class = tree, cls
    for part in parent_path.split(".") if parent_path else ():
      _require(parent_class, part, path)
      parent, parent_class = parent[part], kinds(parent_class)[part]
      if not is_group(parent_class):
        raise UserError(f"config.{path}: config.{parent_path} is a value and holds no fields")
    _require(parent_class, name, path)
    if is_group(kinds(parent_class)[name]) and not isinstance(new, Mapping):
      fields = ", ".join(kinds(kinds(parent_class)[name]))
      raise UserError(f"config.{path} holds the fields {fields}; set one of them")
    parent[name] = new
  return tree


def _require(cls: type, name: str, path: str) -> None:
  """Raises UserError, with the nearest name, where a class has no such field."""
  names = list(kinds(cls)) if is_group(cls) else []
  if name in names:
    return
  if not names:
    raise UserError(
      f"config.{path}: config.{path.rpartition('.')[0]} is a value and holds no fields"
    )
  # A misspelt name is the most frequent error of all.
  nearest = difflib.get_close_matches(name, names, 2)
  hint = f"there are {', '.join(names)}"
  if nearest:
    hint = "did you mean " + " or ".join(repr(candidate) for candidate in nearest) + "?"
  raise UserError(f"config.{path}: no such field; {hint}")


def built(cls: type, tree: Mapping[str, Any], prefix: str = "") -> Any:
  """Settings from nested mappings; what the mappings leave out has its default.

  Raises UserError for an unknown field, a value that does not fit and fields in conflict.
  """
  values: dict[str, Any] = {}
  for name, value in tree.items():
    _require(cls, name, f"{prefix}{name}")
    kind = kinds(cls)[name]
    path = f"{prefix}{name}"
    if is_group(kind):
      if not isinstance(value, Mapping):
        raise UserError(f"config.{path} holds the fields {', '.join(kinds(kind))}; set one of them")
      values[name] = built(kind, value, f"{path}.")
    else:
      values[name] = checked(path, value, kind, limits_of(cls, name))
  try:
    return cls(**values)
  except UserError as error:
    # A conflict between fields of a nested object names them without the path that leads there.
    raise UserError(str(error).replace("config.", f"config.{prefix}", 1)) from error


def to_dict(value: Any) -> dict[str, Any]:
  """Nested dictionaries of plain values, as config.json holds them."""
  return dataclasses.asdict(value)
